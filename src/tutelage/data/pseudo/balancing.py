"""How often each pool image is used, so that all classes are equally frequent (arXiv:1911.04252, sec. 3.2).

The rule is that of the authors' code (noisystudent, filter_unlabel.py). Images are binned by the probability of their
first class. A class takes its bins from the most confident one down, until it has its target or the floor is reached.
Each image taken is then used target / taken times on average: the whole part for certain, the rest by chance. So a
class that took too many is thinned at random, and one that has too few is duplicated.

Legend: m images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 101  # of width 0.01, the last one holds what is certain (filter_unlabel.py)
EDGES = (np.arange(BINS) / (BINS - 1)).astype(np.float32)  # least probability of each bin


@dataclass(frozen=True)
class Balance:
    """What became of each class's images."""

    per_class: int  # target
    found: NDArray[np.int64]  # (K,) images whose first class it is
    kept: NDArray[np.int64]  # (K,) of them at or above the floor
    taken: NDArray[np.int64]  # (K,) of them in bins that the target needed
    used: NDArray[np.int64]  # (K,) images after thinning and duplicating, copies counted

    def as_dict(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Counts by class name, for a record."""
        columns = {name: getattr(self, name).tolist() for name in ("found", "kept", "taken", "used")}
        classes = {
            name: {key: values[label] for key, values in columns.items()} for label, name in enumerate(class_names)
        }
        return {"per_class": self.per_class, "classes": classes}


def balance(
    labels: NDArray[np.integer],
    scores: NDArray[np.float32],
    *,
    num_classes: int,
    floor: float,
    per_class: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], Balance]:
    """How often each image is used, (m,), and the counts by class.

    Args:
        labels: (m,) first classes.
        scores: (m,) their probabilities.
        num_classes: K.
        floor: images below are not used.
        per_class: target; 0 is the median, over the classes that have any, of the images at or above the floor.
        rng: draws one number an image, whatever becomes of it.
    """
    kept = scores >= np.float32(floor)
    num_kept = np.bincount(labels[kept], minlength=num_classes)
    target = per_class or median_count(num_kept)
    bins = np.searchsorted(EDGES, scores, side="right") - 1
    taken = kept & (bins >= _lowest_bins(labels[kept], bins[kept], num_classes, target)[labels])
    num_taken = np.bincount(labels[taken], minlength=num_classes)
    whole, rest = np.divmod(target / np.maximum(num_taken, 1), 1)
    copies = np.where(taken, whole[labels] + (rng.random(len(labels)) < rest[labels]), 0).astype(np.int64)
    found = np.bincount(labels, minlength=num_classes)
    used = np.bincount(labels, copies, num_classes).astype(np.int64)
    return copies, Balance(target, found, num_kept, num_taken, used)


def median_count(counts: NDArray[np.integer]) -> int:
    """The median of those that are not zero, rounded; 0 where all are."""
    return round(float(np.median(counts[counts > 0]))) if counts.any() else 0


def _lowest_bins(
    labels: NDArray[np.integer], bins: NDArray[np.integer], num_classes: int, target: int
) -> NDArray[np.int64]:
    """(K,) the bin at which each class, from the most confident down, has its target; 0 where it never has."""
    histogram = np.bincount(labels * BINS + bins, minlength=num_classes * BINS).reshape(num_classes, BINS)
    at_least = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # images in this bin and above
    lowest: NDArray[np.int64] = np.maximum((at_least >= target).sum(axis=1) - 1, 0)
    return lowest
