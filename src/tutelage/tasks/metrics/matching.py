"""Which detections hit: COCO's greedy matching for all images, thresholds and sizes at once, kept for resampling.

The rules are pycocotools' (`COCOeval.evaluateImg`), to which the results are equal: in each image and class the surest
100 detections choose in turn the box of highest IoU that is still free; a box that counts is preferred to an ignored
one; of equal IoUs the later box is taken. IGNORE_REGION is never used up and overlaps by intersection over the
detection's area; IGNORE_BOX is matched like any box.

Legend: D detections, G truth boxes, P pairs of the two, A sizes, T IoU thresholds, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tutelage.types import IGNORE_REGION, NOT_IGNORED, Boxes

# Square pixels, both ends included: pycocotools, Params.setDetParams.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100  # of one class in one image
MISS, HIT, IGNORED = 0, 1, 2
PAIRS_AT_ONCE = 1 << 20

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Detections and truth of a test set, class by class, with what became of each detection.

    Rows of class k are `offsets[k]:offsets[k + 1]`, surest first; of equal scores the earlier image, then the earlier
    detection, stands first. This order is fixed here, before any resampling.
    """

    num_images: int
    image: NDArray[np.int32]  # (D,)
    score: NDArray[np.float32]  # (D,)
    outcome: NDArray[np.uint8]  # (D, A, T) MISS, HIT or IGNORED
    offsets: Rows  # (K + 1,)
    truth_image: NDArray[np.int32]  # (G,)
    truth_counts: NDArray[np.bool_]  # (G, A) whether the box counts in that size
    truth_offsets: Rows  # (K + 1,)

    def rows(self, label: int) -> slice:
        """Detections of a class."""
        return slice(int(self.offsets[label]), int(self.offsets[label + 1]))

    def truth_images(self, label: int, area: str = "all") -> NDArray[np.int32]:
        """The image of every truth box of a class that counts in a size."""
        rows = slice(int(self.truth_offsets[label]), int(self.truth_offsets[label + 1]))
        return self.truth_image[rows][self.truth_counts[rows, list(AREAS).index(area)]]

    def groups_with_truth(self, groups: NDArray[Any]) -> Rows:
        """(K,) number of groups (`groups[image]`) that hold a box of each class that counts."""
        return np.array([len(np.unique(groups[self.truth_images(k)])) for k in range(len(self.offsets) - 1)], np.int64)

    def groups_with_size(self, groups: NDArray[Any], area: str) -> int:
        """Number of groups that hold a box, of any class, that counts in a size."""
        return len(np.unique(groups[self.truth_image[self.truth_counts[:, list(AREAS).index(area)]]]))

    def save(self, path: Path) -> None:
        """Writes a compressed npz file."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            columns: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)}
        return cls(**{**columns, "num_images": int(columns["num_images"])})


def match_detections(truth: Sequence[Boxes], predictions: Sequence[Boxes], num_classes: int) -> Matches:
    """Matches the predictions of every image with its truth, at all IoU thresholds and sizes."""
    assert len(truth) == len(predictions), f"{len(truth)} images of truth, {len(predictions)} of predictions"
    truth_image, boxes = _by_class(truth)
    image, detections = _by_class(predictions)
    best = _ranks(image * num_classes + detections.labels) < MAX_DETECTIONS
    image, detections = image[best], detections.select(best)
    counts = (boxes.ignore == NOT_IGNORED)[:, None] & _inside_areas(boxes.area)
    pairs = _candidates(
        image * num_classes + detections.labels, detections, truth_image * num_classes + boxes.labels, boxes
    )
    group = image * num_classes + detections.labels
    outcome = _choose_in_turn(pairs, _ranks(group), counts, boxes.ignore == IGNORE_REGION)
    outside = ~_inside_areas(_areas(detections.xyxy.astype(np.float64)))
    outcome[(outcome == MISS) & outside[:, :, None]] = IGNORED
    classes = np.arange(num_classes + 1)
    return Matches(
        num_images=len(truth),
        image=image.astype(np.int32),
        score=detections.scores,
        outcome=outcome,
        offsets=np.searchsorted(detections.labels, classes),
        truth_image=truth_image.astype(np.int32),
        truth_counts=counts,
        truth_offsets=np.searchsorted(boxes.labels, classes),
    )


def _by_class(images: Sequence[Boxes]) -> tuple[Rows, Boxes]:
    """Boxes of all images with the image of each, sorted by class, then score, then image, then place."""
    image = np.repeat(np.arange(len(images)), [len(boxes) for boxes in images])
    parts = [*images, Boxes.empty()]
    joined = Boxes(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Boxes)}
    )
    order = np.lexsort((-joined.scores, joined.labels))
    return image[order], joined.select(order)


def _ranks(keys: Rows) -> Rows:
    """(N,) how many earlier rows have the same key."""
    order = np.argsort(keys, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return ranks


def _areas(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    return (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])


def _inside_areas(area: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, A) whether an area lies in each size range."""
    low, high = np.array(list(AREAS.values())).T
    inside: NDArray[np.bool_] = (area[:, None] >= low) & (area[:, None] <= high)
    return inside


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Detections with truth boxes of the same image and class that overlap by the lowest threshold at least."""

    detection: Rows  # (P,)
    truth: Rows  # (P,)
    overlap: NDArray[np.float64]  # (P,)


def _candidates(group: Rows, detections: Boxes, truth_group: Rows, boxes: Boxes) -> _Pairs:
    parts = []
    for detection, truth in _same_group(group, truth_group):
        overlap = _overlaps(detections.xyxy[detection], boxes.xyxy[truth], boxes.ignore[truth] == IGNORE_REGION)
        near = overlap >= IOU_THRESHOLDS[0]
        parts.append((detection[near], truth[near], overlap[near]))
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return _Pairs(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))


def _same_group(group: Rows, truth_group: Rows) -> Iterator[tuple[Rows, Rows]]:
    """All (detection, truth) rows of equal group, some at a time, so that crowded sets stay small in memory."""
    order = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[order], group)
    count = np.searchsorted(truth_group[order], group, side="right") - first
    some = np.flatnonzero(count)
    blocks = np.cumsum(count[some]) // PAIRS_AT_ONCE
    for rows in np.split(some, np.flatnonzero(np.diff(blocks)) + 1):
        width = count[rows]
        within = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
        yield np.repeat(rows, width), order[np.repeat(first[rows], width) + within]


def _overlaps(
    detections: NDArray[np.float32], boxes: NDArray[np.float32], region: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(P,) IoU, or intersection over the detection's area where `region`; float64 as in pycocotools' bbIou."""
    one, other = detections.astype(np.float64), boxes.astype(np.float64)
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    common = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    own = _areas(one)
    union = np.where(region, own, own + _areas(other) - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _choose_in_turn(
    pairs: _Pairs, rank: Rows, counts: NDArray[np.bool_], region: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """(D, A, T) outcomes: the surest detections of all images and classes choose first, then the second surest, ..."""
    num_areas, num_thresholds = len(AREAS), len(IOU_THRESHOLDS)
    outcome = np.full((len(rank), num_areas, num_thresholds), MISS, np.uint8)
    taken = np.zeros((len(region), num_areas, num_thresholds), np.bool_)
    pair_rank = rank[pairs.detection]
    order = np.lexsort((pairs.truth, pairs.overlap, pairs.detection, pair_rank))
    for turn in np.split(order, np.flatnonzero(np.diff(pair_rank[order])) + 1):
        detection, truth = pairs.detection[turn], pairs.truth[turn]
        near = pairs.overlap[turn][:, None] >= IOU_THRESHOLDS
        free = ~taken[truth] | region[truth][:, None, None]
        # The later of a detection's pairs is the better one, and any that counts is better than all that do not.
        value = np.arange(len(turn))[:, None] + len(turn) * counts[truth]
        value = np.where(free & near[:, None, :], value[:, :, None], -1)
        starts = np.flatnonzero(np.diff(detection, prepend=-1))
        best = np.maximum.reduceat(value, starts, axis=0) if len(turn) else value
        row, area, threshold = np.nonzero(best >= 0)
        chosen = truth[best[row, area, threshold] % max(len(turn), 1)]
        taken[chosen, area, threshold] = True
        outcome[detection[starts[row]], area, threshold] = np.where(counts[chosen, area], HIT, IGNORED)
    return outcome
