"""Pseudo-labels held against what people drew, image by image and threshold by threshold: what a certificate is of.

A pseudo-label at or above a threshold *claims* that there is an object, or that a pixel is of a class; a claim that
people agree with is a *hit*. How the two are counted in one image differs between boxes and masks.

Legend: K classes, T thresholds, n images, m scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.certificate import Sums

Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageClaims:
    """What was claimed in one image."""

    claims: Counts  # (K, T) pseudo-labels at or above each threshold
    hits: Counts  # (K, T) those of them that are right
    truths: Counts  # (K,) what there is to find


def counted_from(scores: NDArray[np.float32], thresholds: NDArray[np.float64]) -> Counts:
    """(T,) how many scores (m,) reach each threshold; compared in float32, as a store does when it is read."""
    below = np.searchsorted(np.sort(scores), thresholds.astype(np.float32), side="left")
    return (len(scores) - below).astype(np.int32)


def sums_of(images: Iterable[ImageClaims], thresholds: NDArray[np.float64], num_classes: int) -> list[Sums]:
    """The sums of each class over the images, in their order."""
    every = list(images)
    none = np.zeros((num_classes, len(thresholds), 0), np.int32)
    claims, hits = (
        np.stack([getattr(one, name) for one in every], axis=-1) if every else none for name in ("claims", "hits")
    )
    truths = np.stack([one.truths for one in every], axis=-1) if every else none[:, 0]
    return [Sums(thresholds, *parts) for parts in zip(claims, hits, truths, strict=True)]


def joined_sums(parts: Sequence[Sums], order: NDArray[np.int64]) -> Sums:
    """One class's sums over several shares of the images, put behind one another and then into `order` (n,)."""
    claims, hits = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("claims", "hits"))
    truths = np.concatenate([part.truths for part in parts])
    return Sums(parts[0].thresholds, claims[:, order], hits[:, order], truths[order])
