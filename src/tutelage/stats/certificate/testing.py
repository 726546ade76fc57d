"""Which threshold of a class can be promised to have a wanted precision, and how many images are missing for that.

Choosing among thresholds is a choice too: that any of a hundred looks good by chance is likely. So thresholds are
tested in an order fixed beforehand, from a high one down, and the first failure ends it (fixed-sequence testing, with
several starts that share the allowed error, as in Learn then Test: Angelopoulos et al., arXiv:2110.01052).

Legend: T thresholds, n images (or groups), S starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.certificate.intervals import Evidence, evidence, ratio_interval
from tutelage.stats.draws import Floats

Bools = NDArray[np.bool_]

STARTS = (1, 2, 4)
"""Sequences start where this many times the fewest images hold claims that could show the precision, all being right.

The first serves a teacher that is nearly always right when it is sure, the last one that is just good enough.
"""
MOST_IMAGES = 2.0**20  # times those at hand: more would not be looked for


@dataclass(frozen=True, slots=True)
class Sums:
    """Pseudo-labels (boxes or pixels) of one class, counted per image at every threshold."""

    thresholds: Floats  # (T,) ascending
    claims: NDArray[Any]  # (T, n) pseudo-labels at or above the threshold
    hits: NDArray[Any]  # (T, n) those of them that are right
    truths: NDArray[Any]  # (n,) what there is to find


@dataclass(frozen=True, slots=True)
class ClassCertificate:
    """What is known of one class; NaN where nothing is."""

    thresholds: Floats  # (T,)
    precision: Floats  # (T,)
    low: Floats  # (T,)
    high: Floats  # (T,)
    recall: Floats  # (T,)
    recall_low: Floats  # (T,)
    recall_high: Floats  # (T,)
    chosen: float | None  # the lowest threshold shown to meet the wanted precision
    best: tuple[float, float] | None  # the threshold of the highest lower bound of the precision, and that bound
    balanced: float | None  # the threshold of the highest F1, by the point estimates; None where nothing is right
    more_images: int | None  # about how many more labeled images of the class would show it; None: no number would

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON; None in place of NaN."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def certify_class(
    sums: Sums, precision: float, confidence: float, groups: NDArray[Any] | None = None
) -> ClassCertificate:
    """Intervals of one class's precision and recall, and the lowest threshold shown to have at least `precision`.

    Args:
        sums: of the class.
        precision: that is wanted, in (0, 1).
        confidence: of each two-sided interval, and that the true precision at the chosen threshold is no lower.
        groups: (n,) which images belong together; they are one unit. None: every image is a unit.
    """
    images_of_class = int((sums.truths > 0).sum())
    sums = sums if groups is None else _grouped(sums, groups)
    intervals = ratio_interval(sums.hits, sums.claims, confidence)
    recalls = ratio_interval(sums.hits, np.broadcast_to(sums.truths, sums.hits.shape), confidence)
    starts = _starts((sums.claims > 0).sum(axis=1), precision, confidence)
    tail = (1 - confidence) / (max(len(starts), 1) + 1)  # a share each; one to spare, for the bounds are approximate
    found = evidence(sums.hits, sums.claims, tail)
    passed = [_passed(found.lower(tail) >= precision, start) for start in starts]
    chosen = min((first for first in passed if first is not None), default=None)
    return ClassCertificate(
        sums.thresholds,
        *intervals,
        *recalls,
        chosen=None if chosen is None else float(sums.thresholds[chosen]),
        best=_best(sums.thresholds, intervals[1]),
        balanced=_balanced(sums),
        more_images=0 if chosen is not None else _more_images(found, precision, tail, images_of_class),
    )


def _starts(images: NDArray[np.intp], precision: float, confidence: float) -> list[int]:
    """The highest threshold at which enough of images (T,) hold claims, for each of `STARTS`; none where it never is.

    Only claims are looked at, not whether they are right: the order of the tests stays fixed beforehand.
    """
    fewest = math.log((1 - confidence) / 2) / math.log(precision)
    enough = [np.flatnonzero(images >= times * fewest) for times in STARTS]
    return sorted({int(held[-1]) for held in enough if len(held)})


def _passed(shown: Bools, start: int) -> int | None:
    """The lowest threshold that the sequence from `start` down reaches before a test in shown (T,) fails."""
    failed = np.flatnonzero(~shown[: start + 1])
    lowest = int(failed[-1]) + 1 if len(failed) else 0
    return lowest if lowest <= start else None


def _best(thresholds: Floats, low: Floats) -> tuple[float, float] | None:
    if np.isnan(low).all():
        return None
    best = int(np.nanargmax(low))
    return float(thresholds[best]), float(low[best])


def _balanced(sums: Sums) -> float | None:
    """Where precision and recall balance: a threshold that cannot silence a class of which anything right is found."""
    hits, claims = sums.hits.sum(axis=1), sums.claims.sum(axis=1)
    if not hits.any():
        return None
    return float(sums.thresholds[np.argmax(hits / (claims + sums.truths.sum()))])  # half of F1


def _more_images(found: Evidence, precision: float, tail: float, images_of_class: int) -> int | None:
    """Images of the class to add until the test would pass at one threshold, if what was observed there persists."""
    better = found.hits > precision * (found.hits + found.misses)
    failed = found.at(better & ~(found.lower(tail) >= precision))
    few, many = np.zeros(len(failed.hits)), np.full(len(failed.hits), math.log2(MOST_IMAGES))
    for _ in range(16):  # bisection in powers of two
        middle = (few + many) / 2
        shown = failed.times(2**middle).lower(tail) >= precision
        few, many = np.where(shown, few, middle), np.where(shown, middle, many)
    if not len(many):  # a threshold that no sequence reached may pass by itself
        return 1 if better.any() else None
    factor = 2 ** float(many.min())
    return max(math.ceil((factor - 1) * images_of_class), 1) if factor < MOST_IMAGES else None


def _grouped(sums: Sums, groups: NDArray[Any]) -> Sums:
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    claims, hits = (np.add.reduceat(one[:, order], starts, axis=1) for one in (sums.claims, sums.hits))
    return Sums(sums.thresholds, claims, hits, np.add.reduceat(sums.truths[order], starts))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if math.isnan(one) else one for one in value.tolist()]
    return list(value) if isinstance(value, tuple) else value
