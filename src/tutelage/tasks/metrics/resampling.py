"""Average precision of many resamples of the test images, from matches made once.

A resample is an integer weight for each image: how many copies of it the resample holds. Average precision is what
pycocotools computes on those copies. What makes it quick: copies of a detection stand together in the order by score,
and precision matters only at hits, which are a few percent of all detections.

Legend: R resamples, D detections of a class, M hits among them, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tutelage.tasks.metrics.matching import AREAS, HIT, IGNORED, IOU_THRESHOLDS, Matches

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
ELEMENTS_AT_ONCE = 1 << 20  # weights gathered at a time; a few MB stay in the cache

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]


def bootstrap_metrics(matches: Matches, weights: NDArray[np.integer], *, threads: int = 1) -> dict[str, Floats]:
    """Figures of every resample.

    Args:
        matches: of one model on the test images.
        weights: (R, images) copies of each image; the same for models that are compared.
        threads: compute threads.

    Returns:
        `ap, ap50, ap75` (R,) and `class_ap, class_ap50` (R, K), in [0, 1]. A class without truth in a resample is NaN
        there and left out of its means.
    """
    precision = average_precision(matches, weights, threads=threads)
    return {
        "ap": _defined_mean(precision.mean(axis=2)),
        "ap50": _defined_mean(precision[:, :, 0]),
        "ap75": _defined_mean(precision[:, :, 5]),
        "class_ap": precision.mean(axis=2),
        "class_ap50": precision[:, :, 0],
    }


def bootstrap_size_metrics(matches: Matches, weights: NDArray[np.integer], *, threads: int = 1) -> dict[str, Floats]:
    """`ap_small, ap_medium, ap_large` (R,) of every resample, otherwise as `bootstrap_metrics`."""
    return {
        f"ap_{area}": _defined_mean(average_precision(matches, weights, area, threads=threads).mean(axis=2))
        for area in list(AREAS)[1:]
    }


def average_precision(matches: Matches, weights: NDArray[np.integer], area: str = "all", *, threads: int = 1) -> Floats:
    """(R, K, T) average precision of every resample, class and IoU threshold; NaN without truth. See `AREAS`."""
    assert weights.shape[1] == matches.num_images, f"weights {weights.shape} for {matches.num_images} images"
    copies = np.ascontiguousarray(weights.T, dtype=np.int32)
    result = np.empty((len(weights), len(matches.offsets) - 1, len(IOU_THRESHOLDS)))

    def fill(task: tuple[int, slice]) -> None:
        label, resamples = task
        result[resamples, label] = _class_precision(matches, label, area, copies[:, resamples])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, _tasks(matches, len(weights))))
    return result


def precision_recall(matches: Matches, label: int, iou: float = 0.5) -> tuple[Floats, Floats]:
    """Recall (N,) and precision (N,) of a class after each detection that is not ignored, surest first.

    `iou` is one of COCO's thresholds (0.5, 0.55, ... 0.95). Both are empty where the class has no truth.
    """
    outcome = matches.outcome[matches.rows(label), 0, int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))]
    num_truth = len(matches.truth_images(label))
    if not num_truth:
        return np.zeros(0), np.zeros(0)
    hits = np.cumsum(outcome[outcome != IGNORED] == HIT)
    return hits / num_truth, hits / np.arange(1, len(hits) + 1)


def _tasks(matches: Matches, num_resamples: int) -> Iterator[tuple[int, slice]]:
    for label, size in enumerate(np.diff(matches.offsets)):
        step = max(1, ELEMENTS_AT_ONCE // max(1, int(size)))
        for start in range(0, num_resamples, step):
            yield label, slice(start, start + step)


def _class_precision(matches: Matches, label: int, area: str, copies: Counts) -> Floats:
    """(R, T) average precision of one class; copies (images, R)."""
    rows = matches.rows(label)
    image, outcome = matches.image[rows], matches.outcome[rows, list(AREAS).index(area)]
    counts = (outcome != IGNORED).any(axis=1)  # most detections are of other sizes
    image, outcome = image[counts], outcome[counts]
    num_truth = copies[matches.truth_images(label, area)].sum(axis=0)
    result = np.zeros((copies.shape[1], outcome.shape[1]))
    last_hit = int(np.flatnonzero((outcome == HIT).any(axis=1)).max(initial=-1))
    seen = copies[image[: last_hit + 1]].cumsum(axis=0, dtype=np.int32)
    for threshold in range(outcome.shape[1]):
        hits = np.flatnonzero(outcome[:, threshold] == HIT)
        ignored = np.flatnonzero(outcome[: last_hit + 1, threshold] == IGNORED)
        num_seen = seen[hits] - _sum_before(copies[image[ignored]], np.searchsorted(ignored, hits))
        num_hits = copies[image[hits]].cumsum(axis=0, dtype=np.int32)
        result[:, threshold] = _interpolated(num_hits, num_seen, num_truth)
    result[num_truth == 0] = np.nan
    return result


def _sum_before(values: Counts, rows: NDArray[np.int64]) -> Counts:
    """(M, R) sums of the values (N, R) that stand before each row."""
    if not len(values):
        return np.zeros((1, values.shape[1]), np.int32)
    sums = np.vstack([np.zeros((1, values.shape[1]), np.int32), values.cumsum(axis=0, dtype=np.int32)])
    return sums[rows]


def _interpolated(num_hits: Counts, num_seen: Counts, num_truth: NDArray[np.int64]) -> Floats:
    """(R,) precision interpolated at 101 recall levels; arguments (M, R) after each hit, and (R,).

    A level takes the highest precision at or behind the first hit that reaches it, so a hit is worth its envelope
    times the levels that it is the first to reach.
    """
    precision = num_hits / np.maximum(num_seen, 1)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = _levels_reached(num_hits / np.maximum(num_truth, 1))
    first_reached = np.diff(reached, axis=0, prepend=np.zeros((1, reached.shape[1]), reached.dtype))
    total: Floats = np.einsum("mr,mr->r", envelope, first_reached)
    return total / len(RECALL_LEVELS)


def _levels_reached(recall: Floats) -> Counts:
    """How many of the recall levels are <= recall, in the float comparison of pycocotools (0.29 < 29 * 0.01)."""
    level = (recall * (len(RECALL_LEVELS) - 1) + 1e-9).astype(np.int32)
    reached: Counts = level + (recall >= RECALL_LEVELS[level])
    return reached


def _defined_mean(values: Floats) -> Floats:
    """(R,) mean over classes (R, K) that are defined; NaN where none is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    means: Floats = np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)
    return means
