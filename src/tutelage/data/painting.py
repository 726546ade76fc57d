"""Masks as half-transparent paint: classes in their colors, outlined; pixels without a label striped; where names fit.

Legend: h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.data.colors import NUM_COLORS, class_colors
from tutelage.types import IGNORE

Mask = NDArray[np.uint8]  # (h, w) classes
Paint = NDArray[np.uint8]  # (h, w, 4) RGBA

OPACITY = 140  # of class colors, of 255: the picture shines through
OUTLINE = (11, 13, 15, 190)
STRIPES = (150, 150, 150, 170), (70, 70, 70, 170)  # pixels without a label
STRIPE, FINENESS = 4, 500  # pixels of a stripe, and lines over the shorter side, in pictures of FINENESS pixels


@dataclass(frozen=True, slots=True)
class Place:
    """Where a class has most room for its name."""

    label: int
    x: int
    y: int
    radius: float  # pixels around that are of the class


def paint(mask: Mask) -> Paint:
    """A mask (h, w) as paint to be laid over a picture of its size."""
    table = np.zeros((IGNORE + 1, 4), np.uint8)
    table[:NUM_COLORS] = np.insert(class_colors(NUM_COLORS), 3, OPACITY, axis=1)
    painted: Paint = table[mask]
    width = max(round(min(mask.shape) / FINENESS), 1)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    first = (x + y) // (STRIPE * width) % 2 == 0
    unlabeled = mask == IGNORE
    painted[unlabeled & first], painted[unlabeled & ~first] = STRIPES
    painted[_outlines(mask, width)] = OUTLINE
    return painted


def _outlines(mask: Mask, width: int) -> NDArray[np.bool_]:
    """(h, w) the first `width` pixels of a class below or right of another one."""
    reach = np.ones((width + 1, width + 1), np.uint8)
    highest, lowest = (turn(mask, reach, anchor=(width, width)) for turn in (cv2.dilate, cv2.erode))
    return np.asarray(highest != lowest)


def name_places(mask: Mask) -> list[Place]:
    """The widest place of each class of a mask (h, w), widest first."""
    found = []
    for label in np.unique(mask[mask != IGNORE]).tolist():
        inside = cv2.copyMakeBorder((mask == label).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = divmod(int(distance.argmax()), distance.shape[1])
        found.append(Place(label, x, y, float(distance[y, x])))
    return sorted(found, key=lambda place: -place.radius)
