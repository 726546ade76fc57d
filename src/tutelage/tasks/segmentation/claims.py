"""Pseudo-masks of an image against the mask that people drew, pixel by pixel.

Legend: h x w pixels, K classes, T thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.data.pseudo.masks import LEVELS, STEP
from tutelage.tasks.claims import Counts, ImageClaims
from tutelage.types import IGNORE

STEPS = LEVELS // STEP
THRESHOLDS = np.arange(STEPS) / STEPS
"""(T,) confidences as a store keeps them."""


def claimed_pixels(
    found: NDArray[np.uint8], levels: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int
) -> ImageClaims:
    """What the pixels of one image claim; all (h, w), `levels` in 256ths. Pixels without a human label are left out."""
    scored = truth != IGNORE
    right = scored & (found == truth)
    place = found.astype(np.int64) * STEPS + levels // STEP
    return ImageClaims(
        _from_each(place[scored], num_classes),
        _from_each(place[right], num_classes),
        np.bincount(truth[scored], minlength=num_classes).astype(np.int32),
    )


def _from_each(place: NDArray[np.int64], num_classes: int) -> Counts:
    """(K, T) pixels of each class at or above each confidence, from places class * T + step."""
    counts = np.bincount(place, minlength=num_classes * STEPS).reshape(num_classes, STEPS)
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.int32)
