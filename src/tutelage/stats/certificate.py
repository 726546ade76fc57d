"""What precision and recall pseudo-labels of a class have at every threshold, and which threshold can be promised.

The unit is the image (or the group of images that belong together), never the box or the pixel: what a teacher gets
wrong comes in clusters. All figures are ratios of sums over images.

Legend: T thresholds, n images (or groups).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from tutelage.stats.draws import Floats

Bools = NDArray[np.bool_]


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
    more_images: int | None  # labeled images of the class that would show it; 0: shown; None: no number would

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON; None in place of NaN."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def certify_class(
    sums: Sums, precision: float, confidence: float, groups: NDArray[Any] | None = None
) -> ClassCertificate:
    """Intervals of one class's precision and recall, and the lowest threshold shown to have at least `precision`."""
    sums = sums if groups is None else _grouped(sums, groups)
    truths = np.broadcast_to(sums.truths, sums.hits.shape)
    point, low, high = ratio_interval(sums.hits, sums.claims, confidence)
    recall, recall_low, recall_high = ratio_interval(sums.hits, truths, confidence)
    shown = _lower(sums.hits, sums.claims, 1 - confidence) >= precision
    chosen = _lowest_in_sequence(sums.thresholds, shown)
    best = None if np.isnan(low).all() else int(np.nanargmax(low))
    return ClassCertificate(
        sums.thresholds,
        point,
        low,
        high,
        recall,
        recall_low,
        recall_high,
        chosen,
        None if best is None else (float(sums.thresholds[best]), float(low[best])),
        0 if chosen is not None else None,
    )


def ratio_interval(hits: NDArray[Any], of: NDArray[Any], confidence: float) -> tuple[Floats, Floats, Floats]:
    """(T,) ratio of sums over images, with the two ends of its interval; NaN where there is nothing to divide by."""
    tail = (1 - confidence) / 2
    total = of.sum(axis=1).astype(float)
    point = np.divide(hits.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    return point, _lower(hits, of, tail), 1 - _lower(of - hits, of, tail)


def _lower(hits: NDArray[Any], of: NDArray[Any], tail: float) -> Floats:
    total, images = of.sum(axis=1).astype(float), (of > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        point = hits.sum(axis=1) / total
        residual = hits - point[:, None] * of
        variance = images / (images - 1) * (residual**2).sum(axis=1) / total**2
        design = np.maximum(variance / (point * (1 - point) / (total - 1)), 0)
        quantiles = stdtrit(np.maximum(total - 1, 1), 1 - tail) / stdtrit(np.maximum(images - 1, 1), 1 - tail)
        size = np.where((point > 0) & (point < 1), total / design * quantiles**2, np.nan)
        size = np.where(point == 1, total**2 / (of.astype(float) ** 2).sum(axis=1), size)
        size = np.minimum(size, total)
        low = betaincinv(point * size, (1 - point) * size + 1, tail)
        low = np.minimum(low, tail ** (1 / images))
    return np.where(total > 0, np.where(point > 0, low, 0.0), np.nan)


def _lowest_in_sequence(thresholds: Floats, shown: Bools) -> float | None:
    descending = np.flatnonzero(~shown[::-1])
    passed = int(descending[0]) if len(descending) else len(shown)
    return float(thresholds[len(thresholds) - passed]) if passed else None


def _grouped(sums: Sums, groups: NDArray[Any]) -> Sums:
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    claims, hits = (np.add.reduceat(one[:, order], starts, axis=1) for one in (sums.claims, sums.hits))
    return Sums(sums.thresholds, claims, hits, np.add.reduceat(sums.truths[order], starts))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if math.isnan(one) else one for one in value.tolist()]
    return list(value) if isinstance(value, tuple) else value
