"""Every named operation: its parameter at a level, and what it does to pixels or to the plane.

Sources: TPU detection code, utils/autoaugment_utils.py; arXiv:1909.13719 (RandAugment); arXiv:2002.05709 (SimCLR).
Color operations are Pillow's (`ImageOps`, `ImageEnhance`), hue and blur are torchvision's, within one gray value. All
that map values alone are tables of 256 entries; a run of them is merged and costs one histogram and one pass.

Legend: H x W pixels, always uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.augment.plan import ColorOperation, Hole
from tutelage.ops import affine
from tutelage.ops.affine import Matrix

Pixels = NDArray[np.uint8]  # (H, W, 3)
Covered = NDArray[np.uint8] | None  # (H, W), 1 where the image is, 0 where fill will be; None is all image
Table = NDArray[np.uint8]  # (256, 3) new value of each value and channel

FILL = (124, 116, 104)
"""Color of vacated pixels: the ImageNet mean, 0 after normalization (the original fills policies' holes with 128)."""

GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's "L"
VALUES = np.arange(256, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Reach:
    """Distances at level 10, in pixels."""

    translate: float
    cutout: float  # half the side of the square


# TPU code, autoaugment_utils.py (detection) and efficientnet/autoaugment.py (classification, at 224 px).
IMAGE_REACH = Reach(translate=250, cutout=100)
BOX_REACH = Reach(translate=120, cutout=50)
CLASSIFICATION_REACH = Reach(translate=100, cutout=40)

MAX_LEVEL = 10.0

# Parameter of an operation at a share (level / 10) of its range; above 1 the line goes on.
AMOUNTS: dict[str, Callable[[float, Reach], float]] = {
    "Rotate": lambda share, reach: 30.0 * share,  # degrees
    "ShearX": lambda share, reach: 0.3 * share,
    "ShearY": lambda share, reach: 0.3 * share,
    "TranslateX": lambda share, reach: reach.translate * share,
    "TranslateY": lambda share, reach: reach.translate * share,
    "Cutout": lambda share, reach: float(int(reach.cutout * share)),
    "BBox_Cutout": lambda share, reach: min(0.75 * share, 1.0),  # of the box's sides
    "Color": lambda share, reach: 0.1 + 1.8 * share,  # 1 changes nothing, 0 is the gray image
    "Contrast": lambda share, reach: 0.1 + 1.8 * share,
    "Brightness": lambda share, reach: 0.1 + 1.8 * share,
    "Sharpness": lambda share, reach: 0.1 + 1.8 * share,
    # Threshold 256 (level 10) lies outside 8 bits and overflowed in the original; here it inverts nothing.
    "Solarize": lambda share, reach: float(int(256 * share)),
    "SolarizeAdd": lambda share, reach: float(int(110 * share)),
    # 0 bits (below level 2.5) was left to an 8-bit shift by 8 in the original; here one bit stays.
    "Posterize": lambda share, reach: float(min(max(int(4 * share), 1), 8)),
    "AutoContrast": lambda share, reach: 0.0,
    "Equalize": lambda share, reach: 0.0,
    "Invert": lambda share, reach: 0.0,
    "Flip": lambda share, reach: 0.0,
}
SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})


def amount_at(name: str, level: float, reach: Reach) -> float:
    """Parameter of an operation at a level (10 is the policies' maximum; RandAugment may go beyond)."""
    return AMOUNTS[name](level / MAX_LEVEL, reach)


# Where content moves, for (parameter, image size). Signs as the original: a positive shift goes left or up.
GEOMETRY: dict[str, Callable[[float, tuple[int, int]], Matrix]] = {
    "Rotate": lambda degrees, size: affine.rotation(degrees, size),
    "ShearX": lambda factor, size: affine.shear(-factor, 0.0),
    "ShearY": lambda factor, size: affine.shear(0.0, -factor),
    "TranslateX": lambda pixels, size: affine.translation(-pixels, 0.0),
    "TranslateY": lambda pixels, size: affine.translation(0.0, -pixels),
    "Flip": lambda _, size: affine.horizontal_flip(size[1]),
}


def _blend(degenerate: NDArray[np.float32] | float, factor: float) -> Table:
    """Table of degenerate + factor x (value - degenerate), cut to whole numbers as Pillow does."""
    mixed = degenerate + np.float32(factor) * (VALUES - np.float32(degenerate))
    return _same_for_all_channels(np.clip(mixed, 0, 255))


def _same_for_all_channels(values: NDArray[np.float32]) -> Table:
    return np.repeat(values.astype(np.uint8)[:, None], 3, axis=1)


VALUE_TABLES: dict[str, Callable[[float], Table]] = {
    "Brightness": lambda factor: _blend(0.0, factor),
    "Invert": lambda _: _same_for_all_channels(255 - VALUES),
    "Posterize": lambda bits: _same_for_all_channels(VALUES - VALUES % 2 ** (8 - int(bits))),
    "Solarize": lambda threshold: _same_for_all_channels(np.where(VALUES < threshold, VALUES, 255 - VALUES)),
    "SolarizeAdd": lambda added: _same_for_all_channels(
        np.where(VALUES < 128, np.minimum(VALUES + added, 255), VALUES)
    ),
}


def _contrast(factor: float, counts: NDArray[np.int64]) -> Table:
    # The mean gray value, as Pillow; the original takes the pixel count / 256, that is white for most photographs.
    mean = GRAY @ (counts @ VALUES) / max(int(counts[0].sum()), 1)
    return _blend(float(int(mean + 0.5)), factor)


def _stretched(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Table (256,) that spreads the values present over 0 .. 255."""
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return np.arange(256.0)
    low, high = int(present[0]), int(present[-1])
    scale = 255.0 / (high - low)
    return np.asarray(np.clip(np.trunc(np.arange(256) * scale - low * scale), 0, 255), np.float64)


def _equalized(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Table (256,) that makes the values present equally frequent, as Pillow computes it."""
    present = counts[counts > 0]
    step = int(present[:-1].sum()) // 255
    if step == 0:
        return np.arange(256.0)
    below = np.cumsum(counts) - counts
    return np.asarray(np.clip((step // 2 + below) // step, 0, 255), np.float64)


# Tables that depend on what is in the picture: (parameter, counts (3, 256)) -> table.
PICTURE_TABLES: dict[str, Callable[[float, NDArray[np.int64]], Table]] = {
    "AutoContrast": lambda _, counts: np.stack([_stretched(channel) for channel in counts], 1).astype(np.uint8),
    "Equalize": lambda _, counts: np.stack([_equalized(channel) for channel in counts], 1).astype(np.uint8),
    "Contrast": _contrast,
}


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the gray image: one 3 x 3 matrix on the channels."""
    return np.asarray(cv2.transform(pixels, factor * np.eye(3) + (1 - factor) * GRAY), np.uint8)


def _sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the smoothed image in one filter; the outermost pixels stay, as in Pillow."""
    kernel = np.full((3, 3), (1 - factor) / 13, np.float32)
    kernel[1, 1] = (1 - factor) * 5 / 13 + factor
    filtered = np.asarray(cv2.filter2D(pixels, -1, kernel), np.uint8)
    filtered[[0, -1]] = pixels[[0, -1]]
    filtered[:, [0, -1]] = pixels[:, [0, -1]]
    return filtered


def _turned_hue(pixels: Pixels, turn: float) -> Pixels:
    """Hue moved by a part of the circle. In float32: 8 bits for a hue would cost up to six gray values."""
    hsv = np.asarray(cv2.cvtColor(cv2.LUT(pixels, VALUES), cv2.COLOR_RGB2HSV), np.float32)
    hsv[..., 0] += 360 * (turn % 1)  # OpenCV goes on round the circle, but not backwards
    return np.asarray(cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)), np.uint8)


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian, its kernel a tenth of the height (google-research/simclr, data_util.py) where it reaches that far."""
    radius = min(pixels.shape[0] // 10 // 2, math.ceil(4 * sigma))
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
    return np.asarray(cv2.sepFilter2D(pixels, -1, kernel, kernel), np.uint8)


MIXERS: dict[str, Callable[[Pixels, float], Pixels]] = {
    "Color": _saturation,
    "Sharpness": _sharpness,
    "Hue": _turned_hue,
    "GaussianBlur": _blurred,
}
COLOR_OPERATIONS = AMOUNTS.keys() & {*VALUE_TABLES, *PICTURE_TABLES, *MIXERS}  # that policies draw, by levels


def run_canvas_ops(pixels: Pixels, operations: Sequence[ColorOperation | Hole], covered: Covered) -> Pixels:
    """Pixels after the operations, in order; those that look at the picture look at its covered pixels only.

    `pixels` may be painted on. Tables are collected and applied when a mixer or hole comes, or at the end.
    """
    table: Table | None = None
    counts: NDArray[np.int64] | None = None  # of `pixels`, without the table
    for operation in operations:
        if isinstance(operation, Hole) or operation.name in MIXERS:
            pixels, table, counts = _looked_up(pixels, table), None, None
            pixels = _painted(pixels, operation) if isinstance(operation, Hole) else _mixed(pixels, operation)
        elif operation.name in PICTURE_TABLES:
            counts = _histogram(pixels, covered) if counts is None else counts
            later = PICTURE_TABLES[operation.name](operation.amount, _passed_through(counts, table))
            table = _followed_by(table, later)
        else:
            table = _followed_by(table, VALUE_TABLES[operation.name](operation.amount))
    return _looked_up(pixels, table)


def _mixed(pixels: Pixels, operation: ColorOperation) -> Pixels:
    return MIXERS[operation.name](pixels, operation.amount)


def _followed_by(table: Table | None, later: Table) -> Table:
    return later if table is None else np.take_along_axis(later, table.astype(np.intp), axis=0)


def _looked_up(pixels: Pixels, table: Table | None) -> Pixels:
    if table is None:
        return pixels
    gray = bool((table[:, 0] == table[:, 1]).all() and (table[:, 0] == table[:, 2]).all())
    lookup = table[:, 0] if gray else table[None]  # one table for all channels takes half the time
    return np.asarray(cv2.LUT(pixels, np.ascontiguousarray(lookup)), np.uint8)


def _histogram(pixels: Pixels, covered: Covered) -> NDArray[np.int64]:
    """How many covered pixels have each value: (3, 256)."""
    counts = [cv2.calcHist([pixels], [channel], covered, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(np.int64)


def _passed_through(counts: NDArray[np.int64], table: Table | None) -> NDArray[np.int64]:
    """The histogram that the pixels would have after a table."""
    if table is None:
        return counts
    moved = [np.bincount(table[:, channel], counts[channel], 256) for channel in range(3)]
    return np.stack(moved).astype(np.int64)


def _painted(pixels: Pixels, hole: Hole) -> Pixels:
    """The hole filled, by pixel centers at a sixteenth of a pixel."""
    corners = np.round((np.clip(hole.corners, -1e6, 1e6) - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(pixels, corners, FILL, shift=4)
    return pixels
