r"""Which pool images are worth a person's look: those whose pseudo-labels are in doubt, and of rare classes.

    informativeness of an image = sum over its labels of  w * d * r * c

w, weight: 1 of a box; the share of the image of pixels of one class and confidence.

d, disagreement, 0 to 1. With stores of two rounds: 1 - agreement with the other round, and the labels of both count.
A box agrees by the largest IoU * (1 - |difference of the scores|) with a box of its class; a class of a mask by the
lesser over the greater of its two areas, each pixel weighted by its confidence. With one round: 1 - (1 - g) (1 - o),
where g = 4 s (1 - s) is the chance that two draws of a coin of chance s, the score, differ (Gini impurity, scaled to
reach 1), and o the largest IoU with a box of another class times the lesser over the greater score.

r, rarity: sqrt(most frequent class / this class), at most 10, by the number of images in which a class is kept: the
repeat factor of LVIS (arXiv:1908.03195, sec. 5.1) without its threshold.

c, closeness: exp(-|s - t| / 0.1), t the threshold of the class.

Legend: n images, m labels (boxes, or areas of one class and level), K classes, p pairs of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from tutelage.data.pseudo import PseudoStore
from tutelage.data.pseudo.boxes import CORNERS
from tutelage.data.pseudo.tables import Columns, Limits, Stored

REACH = 0.1  # score difference over which closeness falls to 1/e
MOST_RARE = 10.0
PAIRS_AT_ONCE = 4_000_000

Values = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Usable pool images, the most informative first; of equal ones the first in the pool."""

    image_ids: Rows  # (n,) rows of the pool
    paths: NDArray[np.object_]  # (n,) as the pool's listing has them
    informativeness: Values  # (n,)

    def select(self, which: NDArray[np.bool_] | Rows) -> Ranking:
        """The images of a mask (n,), or of places in the order."""
        return Ranking(self.image_ids[which], self.paths[which], self.informativeness[which])


def rank(store: PseudoStore, earlier: PseudoStore | None, limits: Limits, rarity: Values) -> Ranking:
    """Every image of a store that could be read, by what looking at it is worth.

    Args:
        store: of boxes or masks.
        earlier: of another round, `comparable`; None where there is none.
        limits: (K,) thresholds.
        rarity: (K,) see `rarity_of`.

    Raises:
        InputError: a part is missing or damaged.
    """
    ids, paths, values = [np.zeros(0, np.int64)], [np.zeros(0, object)], [np.zeros(0)]
    others = (table for _, table in earlier.parts()) if earlier else repeat(None, store.manifest.num_parts)
    for (images, table), other in zip(store.parts(), others, strict=True):
        usable = images["status"] == "ok"
        worth = np.zeros(len(usable))
        for one, against in [(table, None)] if other is None else [(table, other), (other, table)]:
            values_of = _worth(store, one, against, limits, rarity)
            worth += np.bincount(one["image_id"] - images["image_id"][0], values_of, len(usable))
        ids.append(images["image_id"][usable])
        paths.append(images["path"][usable])
        values.append(worth[usable])
    ranking = Ranking(np.concatenate(ids), np.concatenate(paths), np.concatenate(values))
    return ranking.select(np.argsort(-ranking.informativeness, kind="stable"))


def _worth(store: PseudoStore, one: Columns, other: Columns | None, limits: Limits, rarity: Values) -> Values:
    """(m,) w * d * r * c of the labels of a table, against those of another round or among themselves."""
    kind = KINDS[store.manifest.annotation]
    found = store.kind.found(one)
    doubt = kind.within(one) if other is None else kind.between(one, other)
    distance = np.abs(found.scores - limits[found.labels]).astype(np.float64)
    return np.asarray(kind.weights(one) * doubt * rarity[found.labels] * np.exp(-distance / REACH))


def comparable(store: PseudoStore, earlier: PseudoStore) -> bool:
    """Whether two stores say something of the same images, part by part, with the same classes."""
    one, other = store.manifest, earlier.manifest
    same = (one.pool, one.part_size, one.class_names, one.annotation)
    return same == (other.pool, other.part_size, other.class_names, other.annotation)


def rarity_of(images: NDArray[np.int64]) -> Values:
    """(K,) weight of each class, from the number of images in which it is kept (K,); 1 of the most frequent."""
    return np.minimum(np.sqrt(max(int(images.max(initial=0)), 1) / np.maximum(images, 1)), MOST_RARE)


@dataclass(frozen=True, slots=True)
class Doubt:
    """How labels of one kind are weighed and compared."""

    weights: Callable[[Columns], Values]  # (m,)
    between: Callable[[Columns, Columns], Values]  # (m,) disagreement of the first table with the second
    within: Callable[[Columns], Values]  # (m,) disagreement of a table with itself


def impurity(scores: NDArray[np.floating]) -> Values:
    """4 s (1 - s)."""
    chances = scores.astype(np.float64)
    return 4 * chances * (1 - chances)


def boxes_between(one: Columns, other: Columns) -> Values:
    """(m,) 1 - the largest IoU * (1 - |score difference|) with a box of the other table, same image and class."""
    agreement = np.zeros(len(one["label"]))
    for mine, theirs in _pairs(_image_and_class(one), _image_and_class(other)):
        close = 1 - np.abs(one["score"][mine].astype(np.float64) - other["score"][theirs])
        np.maximum.at(agreement, mine, _iou(_corners(one, mine), _corners(other, theirs)) * close)
    return 1 - agreement


def boxes_within(boxes: Columns) -> Values:
    """(m,) how undecided a box's score is, and how much a box of another class disputes its place."""
    dispute = np.zeros(len(boxes["label"]))
    for mine, theirs in _pairs(boxes["image_id"], boxes["image_id"]):
        rivals = boxes["label"][mine] != boxes["label"][theirs]
        mine, theirs = mine[rivals], theirs[rivals]
        lesser, greater = np.sort([boxes["score"][mine], boxes["score"][theirs]], axis=0).astype(np.float64)
        even = lesser / np.maximum(greater, 1e-9)
        np.maximum.at(dispute, mine, _iou(_corners(boxes, mine), _corners(boxes, theirs)) * even)
    return 1 - (1 - impurity(boxes["score"])) * (1 - dispute)


def areas_between(one: Columns, other: Columns) -> Values:
    """(m,) 1 - lesser over greater area of the class in the two masks, in shares of the image by confidence."""
    keys, place = np.unique(_image_and_class(one), return_inverse=True)
    other_keys, other_place = np.unique(_image_and_class(other), return_inverse=True)
    mine = np.bincount(place, pixel_shares(one) * _confidence(one))
    theirs = np.zeros(len(keys))
    _, at, other_at = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
    theirs[at] = np.bincount(other_place, pixel_shares(other) * _confidence(other), len(other_keys))[other_at]
    return np.asarray((1 - np.minimum(mine, theirs) / np.maximum(np.maximum(mine, theirs), 1e-12))[place])


def areas_within(areas: Columns) -> Values:
    """(m,) how undecided the confidence of the pixels is."""
    return impurity(_confidence(areas))


def pixel_shares(areas: Columns) -> Values:
    """(m,) share of its image's pixels."""
    _, place = np.unique(areas["image_id"], return_inverse=True)
    return np.asarray(areas["pixels"] / np.bincount(place, areas["pixels"])[place]) if len(place) else np.zeros(0)


KINDS: Mapping[Stored, Doubt] = {
    "boxes": Doubt(lambda boxes: np.ones(len(boxes["label"])), boxes_between, boxes_within),
    "masks": Doubt(pixel_shares, areas_between, areas_within),
}


def _confidence(areas: Columns) -> Values:
    return np.asarray(areas["level"] / 256)


def _image_and_class(table: Columns) -> Rows:
    return np.asarray(table["image_id"].astype(np.int64) << 16 | table["label"].astype(np.int64))


def _pairs(mine: Rows, theirs: Rows) -> Iterator[tuple[Rows, Rows]]:
    """All pairs of rows with equal keys, some millions at a time."""
    order = np.argsort(theirs, kind="stable")
    ordered = theirs[order]
    first, last = (np.searchsorted(ordered, mine, side=side) for side in ("left", "right"))
    counts = last - first
    ends = np.cumsum(counts)
    parts = int(ends[-1]) // PAIRS_AT_ONCE + 1 if len(ends) else 0
    for rows in np.split(np.arange(len(mine)), np.searchsorted(ends, PAIRS_AT_ONCE * np.arange(1, parts))):
        many = counts[rows]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield np.repeat(rows, many), order[np.repeat(first[rows], many) + within]


def _corners(boxes: Columns, rows: Rows) -> NDArray[np.float64]:
    """(4, p) x1, y1, x2, y2."""
    return np.stack([boxes[name][rows] for name in CORNERS]).astype(np.float64)


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> Values:
    """(p,) intersection over union of boxes (4, p) pair by pair."""
    shared = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0).prod(axis=0)
    areas = [(boxes[2:] - boxes[:2]).prod(axis=0) for boxes in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-9))
