"""Copies among images: exact ones by digest, re-encoded and resized ones by how they look.

Two images look alike when their difference hashes differ in few bits and their thumbnails agree everywhere: the hash
finds candidates fast, the thumbnail keeps apart pictures whose faint structure gives similar hashes. Pictures without
structure (a blank wall) have no looks to go by and count as copies only when their bytes are equal.

Legend: n images, k pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.survey import THUMBNAIL, Prints, fingerprint, survey, working_size

MAX_BITS = 8  # of 64 that may differ
MAX_MEAN = 4.0  # mean difference of thumbnails, of 255
MAX_CELL = 24  # largest difference of a thumbnail's cell, of 255
MIN_STRUCTURE = 4.0  # standard deviation of a thumbnail that has looks to go by
CHUNK = 4_000_000  # pairs compared at once

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leaks:
    """Images of one set that are also in another, as labeled ones in the test set."""

    rows: Rows  # (k,) of the one set, each once
    twins: Rows  # (k,) of an image of the other that is the same
    exact: NDArray[np.bool_]  # (k,) whether the bytes are equal; else they look the same

    def __len__(self) -> int:
        return len(self.rows)


def leaks_between(ours: Prints, theirs: Prints) -> Leaks:
    """Which images of `ours` are also in `theirs`."""
    exact, looks = _equal_pairs(ours, theirs), _similar_pairs(ours, theirs)
    pairs = np.concatenate([exact, looks])
    rows, first = np.unique(pairs[:, 0], return_index=True)
    return Leaks(rows, pairs[first, 1], first < len(exact))


def copies_of(held_out: Index, index: Index, data: DataConfig) -> Rows:
    """(k,) rows of `index` that show what is held out; decodes every image once, and passes over unreadable ones."""
    return leaks_between(survey(index, data, tolerant=True).prints, survey(held_out, data).prints).rows


def near_duplicate_groups(index: Index, data: DataConfig) -> Rows:
    """(n,) group numbers: images that are copies of each other, directly or through others, share one."""
    return groups_of(survey(index, data).prints)


def groups_of(prints: Prints) -> Rows:
    """(n,) group numbers from 0, in the order of each group's first image."""
    pairs = np.concatenate([_equal_pairs(prints, prints), _similar_pairs(prints, prints)])
    labels = np.arange(len(prints))
    while True:  # the smallest row of a group spreads through its pairs
        spread = labels.copy()
        np.minimum.at(spread, pairs[:, 0], labels[pairs[:, 1]])
        np.minimum.at(spread, pairs[:, 1], labels[pairs[:, 0]])
        spread = spread[spread]
        if np.array_equal(spread, labels):
            return np.unique(labels, return_inverse=True)[1].astype(np.int64)
        labels = spread


class HashBook:
    """How the images of a set look, to recognize them among others as those are decoded."""

    def __init__(self, prints: Prints) -> None:
        self._prints = prints.select(_structured(prints))  # looked up once an image, so chosen once

    @classmethod
    def build(cls, index: Index, data: DataConfig) -> Self:
        """The book of the images of `index`."""
        return cls(survey(index, data).prints)

    @classmethod
    def of_pictures(cls, pictures: Iterable[NDArray[np.uint8]]) -> Self:
        """The book of pictures (h, w, 3) as they are given, say cropped."""
        looks = [fingerprint(working_size(np.ascontiguousarray(picture))) for picture in pictures]
        codes = np.array([code for code, _ in looks], np.uint64)
        thumbnails = np.array([thumbnail for _, thumbnail in looks], np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)
        return cls(Prints(np.zeros((len(looks), 2), np.uint64), codes, thumbnails))

    def contains(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether the book holds the picture (h, w, 3), at whatever scale it was decoded."""
        code, thumbnail = fingerprint(working_size(np.ascontiguousarray(pixels)))
        near = np.bitwise_count(self._prints.hashes ^ code) <= MAX_BITS
        return bool(_has_structure(thumbnail) and _agree(thumbnail[None], self._prints.thumbnails[near]).any())


def _equal_pairs(ours: Prints, theirs: Prints) -> Rows:
    """(k, 2) rows of images whose bytes are equal, one of `theirs` for each of `ours`."""
    places = {digest.tobytes(): row for row, digest in reversed(list(enumerate(theirs.digests)))}
    pairs = ((row, places.get(digest.tobytes(), -1)) for row, digest in enumerate(ours.digests))
    found = [pair for pair in pairs if pair[1] >= 0]
    return np.array(found, np.int64).reshape(-1, 2)


def _similar_pairs(ours: Prints, theirs: Prints) -> Rows:
    """(k, 2) rows of images that look the same."""
    return np.concatenate([np.zeros((0, 2), np.int64), *_similar_in_chunks(ours, theirs)])


def _similar_in_chunks(ours: Prints, theirs: Prints) -> Iterator[Rows]:
    own_rows, other_rows = _structured(ours), _structured(theirs)
    step = max(CHUNK // max(len(other_rows), 1), 1)
    for first in range(0, len(own_rows), step):
        rows = own_rows[first : first + step]
        bits = np.bitwise_count(ours.hashes[rows][:, None] ^ theirs.hashes[other_rows])
        mine, other = np.nonzero(bits <= MAX_BITS)
        pairs = np.stack([rows[mine], other_rows[other]], axis=1)
        for start in range(0, len(pairs), 2**14):
            part = pairs[start : start + 2**14]
            yield part[_agree(ours.thumbnails[part[:, 0]], theirs.thumbnails[part[:, 1]])]


def _agree(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(k,) whether thumbnails (k, h, w) agree in every cell, but for their overall brightness."""
    difference = one.astype(np.float32) - other
    difference = np.abs(difference - difference.mean(axis=(1, 2), keepdims=True))
    return np.asarray((difference.mean(axis=(1, 2)) <= MAX_MEAN) & (difference.max(axis=(1, 2)) <= MAX_CELL))


def _structured(prints: Prints) -> Rows:
    return np.flatnonzero(_has_structure(prints.thumbnails))


def _has_structure(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(...) whether thumbnails (..., h, w) have looks to go by."""
    return np.asarray(thumbnails.std(axis=(-2, -1)) >= MIN_STRUCTURE)
