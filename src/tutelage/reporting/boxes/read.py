"""Box tables of a run folder: what was there, what was seen, and what a store of pseudo-boxes holds.

Legend: N images, K classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.reporting.read import Columns
from tutelage.types import NOT_IGNORED, Boxes

SCORE_BINS = 40
"""Bars of the score histogram between 0 and 1."""


@dataclass(frozen=True, slots=True, order=True)
class PseudoBox:
    """One pseudo-label, to be shown."""

    score: float
    path: str
    xyxy: tuple[float, float, float, float]
    label: int


@dataclass(slots=True)
class PseudoSummary:
    """A pseudo-label store in numbers, gathered part by part."""

    histogram: NDArray[np.int64]  # (SCORE_BINS,) boxes by score
    kept_per_class: NDArray[np.int64]  # (K,) boxes at or above the threshold
    images: int = 0
    surest: list[PseudoBox] = field(default_factory=list)
    least_sure: list[PseudoBox] = field(default_factory=list)  # just above the threshold


def boxes_by_image(ids: NDArray[np.int64], rows: Columns) -> list[Boxes]:
    """Rows of a box table as one `Boxes` for each image id, best score first."""
    scores = rows.get("score", np.ones(len(rows["image_id"])))
    order = np.lexsort((-scores, rows["image_id"]))
    owner = rows["image_id"][order]
    xyxy = np.stack([rows[name][order] for name in ("x1", "y1", "x2", "y2")], axis=1)
    ignore = rows.get("ignore", np.full(len(order), NOT_IGNORED))[order]
    area = rows["area"][order] if "area" in rows else np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    everything = Boxes.build(xyxy, rows["label"][order], scores[order], area, ignore)
    starts, ends = np.searchsorted(owner, ids, side="left"), np.searchsorted(owner, ids, side="right")
    return [everything.select(np.arange(start, end)) for start, end in zip(starts, ends, strict=True)]


def summarize_store(
    store: PseudoStore, pseudo: PseudoConfig, class_names: tuple[str, ...], num_shown: int
) -> PseudoSummary:
    """Scores, class counts and the boxes to show of a pseudo-label store, under the threshold of `pseudo`.

    At most one box an image is shown, so that one crowded picture does not fill the page.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    limits = score_limits(pseudo, class_names)
    summary = PseudoSummary(np.zeros(SCORE_BINS, np.int64), np.zeros(len(class_names), np.int64))
    for images, boxes in store.parts():
        summary.images += len(images["image_id"])
        scores, labels = boxes["score"], boxes["label"]
        summary.histogram += np.histogram(scores, bins=SCORE_BINS, range=(0, 1))[0]
        kept = np.flatnonzero(scores >= limits[labels])
        summary.kept_per_class += np.bincount(labels[kept], minlength=len(class_names))
        order = kept[np.argsort(scores[kept], kind="stable")]
        summary.least_sure += _shown(order, images, boxes, num_shown)
        summary.surest += _shown(order[::-1], images, boxes, num_shown)
        summary.least_sure = heapq.nsmallest(num_shown, summary.least_sure)
        summary.surest = heapq.nlargest(num_shown, summary.surest)
    return summary


def _shown(
    order: NDArray[Any], images: Mapping[str, NDArray[Any]], boxes: Mapping[str, NDArray[Any]], num_shown: int
) -> list[PseudoBox]:
    """The first boxes of an order, one an image."""
    paths = dict(zip(images["image_id"].tolist(), images["path"].tolist(), strict=True))
    _, first = np.unique(boxes["image_id"][order], return_index=True)
    return [
        PseudoBox(
            float(boxes["score"][row]),
            str(paths[int(boxes["image_id"][row])]),
            tuple(float(boxes[name][row]) for name in ("x1", "y1", "x2", "y2")),  # type: ignore[arg-type]
            int(boxes["label"][row]),
        )
        for row in order[np.sort(first)[:num_shown]]
    ]
