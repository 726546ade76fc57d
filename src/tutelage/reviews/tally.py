"""How many labels and images each threshold keeps, by class: what the page counts while the threshold moves.

Legend: K classes, T thresholds of a grid, m labels (boxes, or areas of one class and level).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.data.pseudo import PseudoStore
from tutelage.data.pseudo.tables import Found, Limits, Stored

STEPS: Mapping[Stored, int] = {"boxes": 100, "masks": 64}
"""Thresholds between 0 and 1; the confidence of pixels is stored in steps of 1/64."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a whole store; the last column is at the class's own threshold."""

    amounts: NDArray[np.int64]  # (K, T + 1) boxes or pixels at or above
    images: NDArray[np.int64]  # (K, T + 1) images with any
    total: int  # usable images
    everything: int  # boxes or pixels, whatever their score


def grid_of(store: PseudoStore) -> NDArray[np.float32]:
    """(T,) thresholds from 0 to 1."""
    steps = STEPS[store.manifest.annotation]
    return (np.arange(steps + 1) / steps).astype(np.float32)


def tally(store: PseudoStore, limits: Limits) -> Tally:
    """Counts of a store under every threshold of its grid and under `limits` (K,).

    Raises:
        InputError: a part is missing or damaged.
    """
    grid = grid_of(store)
    amounts, images = np.zeros((2, len(limits), len(grid) + 1), np.int64)
    total = everything = 0
    for listed, table in store.parts():
        found = store.kind.found(table)
        amounts += _at_or_above(found, grid, limits)
        images += _at_or_above(_best_of_images(found), grid, limits)
        total += int((listed["status"] == "ok").sum())
        everything += int(found.amounts.sum())
    return Tally(amounts, images, total, everything)


def _at_or_above(found: Found, grid: NDArray[np.float32], limits: Limits) -> NDArray[np.int64]:
    """(K, T + 1) amounts at or above each threshold."""
    reached = np.searchsorted(grid, found.scores, side="right")  # thresholds at or below the score
    size = len(grid) + 1
    counts = np.bincount(found.labels.astype(np.int64) * size + reached, found.amounts, len(limits) * size)
    above = counts.reshape(len(limits), size)[:, :0:-1].cumsum(axis=1)[:, ::-1]
    kept = found.kept(limits)
    own = np.bincount(found.labels[kept], found.amounts[kept], len(limits))
    return np.concatenate([above, own[:, None]], axis=1).astype(np.int64)


def _best_of_images(found: Found) -> Found:
    """The best score of each class in each image, counted once."""
    order = np.lexsort((-found.scores, found.labels, found.image_ids))
    ids, labels = found.image_ids[order], found.labels[order]
    first = np.ones(len(order), bool)
    first[1:] = (ids[1:] != ids[:-1]) | (labels[1:] != labels[:-1])
    chosen = order[first]
    return Found(ids[first], labels[first], found.scores[chosen], np.ones(len(chosen), np.int64))
