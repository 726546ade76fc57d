"""Outlines to masks: polygons as cocoapi rasterizes them, and annotations painted over each other into one mask.

Legend: h, w pixels of the mask. Spans are runs of pixels down the columns (data/rle.py), so that areas, unions and the
order of painting cost no memory by the pixel. Called by reading.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.data.rle import Spans, num_pixels
from tutelage.types import IGNORE

FINENESS = 5  # steps a pixel of the traced outline: maskApi.c, rleFrPoly


def rasterize(
    outlines: Sequence[tuple[int, Spans]], size: tuple[int, int], uncovered: int = IGNORE
) -> NDArray[np.uint8]:
    """The mask (h, w) of annotations, painted from the largest area to the smallest, equal ones in their order.

    So small things stay visible on large ones, whatever the order of the file.

    Args:
        outlines: label and spans of each annotation.
        size: (h, w) of the mask.
        uncovered: label of pixels that nothing covers.
    """
    height, width = size
    pixels = np.full(height * width, uncovered, np.uint8)
    areas = np.array([num_pixels(spans) for _, spans in outlines], np.int64)
    for at in np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)]:
        label, spans = outlines[at]
        first, last = spans[0, 0], spans[-1, 1]
        lengths = np.diff(spans.ravel())
        inside = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
        pixels[first:last][inside] = label
    return np.asarray(cv2.transpose(pixels.reshape(width, height)), np.uint8)  # in blocks: many times NumPy's speed


def polygon_spans(points: NDArray[np.float64], size: tuple[int, int]) -> Spans:
    """Spans of a polygon with corners (n, 2) x, y in pixels, pixel for pixel as cocoapi's rleFrPoly draws it.

    The outline is traced in fifths of a pixel; it enters or leaves the mask where it crosses the middle of a column.
    What lies outside of the image is cut off.
    """
    height, width = size
    x, y = _traced(points)
    crossed = np.flatnonzero(x[1:] != x[:-1]) + 1
    before = np.where(x[crossed] < x[crossed - 1], x[crossed], x[crossed] - 1)
    column = before // FINENESS
    in_column = (before % FINENESS == FINENESS // 2) & (column >= 0) & (column < width)
    crossed, column = crossed[in_column], column[in_column]
    upper = (np.minimum(y[crossed], y[crossed - 1]) + 0.5) / FINENESS - 0.5
    row = np.ceil(np.clip(upper, 0, height)).astype(np.int64)
    return _between(column * height + row, height * width)


def _between(crossings: NDArray[np.int64], pixels: int) -> Spans:
    """Spans from the positions where an outline is crossed: each one turns the mask on or off."""
    edges, times = np.unique(crossings, return_counts=True)
    edges = edges[(times % 2 == 1) & (edges < pixels)]
    return np.concatenate([edges, np.full(len(edges) % 2, pixels)]).reshape(-1, 2)


def _traced(points: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Coordinates x and y of all steps along a closed outline, in fifths of a pixel.

    Each edge is walked by its longer side, always upwards in its coordinate, so that the edge of two neighbors is the
    same for both; conversions cut towards zero as C does.
    """
    corners = (FINENESS * points + 0.5).astype(np.int64)
    following = np.roll(corners, -1, axis=0)
    extent = np.abs(following - corners)
    along = (extent[:, 1] > extent[:, 0]).astype(np.int64)  # axis of the longer side: 0 is x, 1 is y
    steps = extent.max(axis=1)
    edge = np.arange(len(corners))
    flip = corners[edge, along] > following[edge, along]
    start, end = np.where(flip[:, None], (following, corners), (corners, following))
    slope = (end - start)[edge, 1 - along] / np.maximum(steps, 1)
    lengths = steps + 1
    edge = np.repeat(edge, lengths)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    step = np.where(flip[edge], steps[edge] - step, step)
    longer = start[np.arange(len(start)), along][edge] + step
    other = (start[np.arange(len(start)), 1 - along][edge] + slope[edge] * step + 0.5).astype(np.int64)
    upright = along[edge] == 1
    return np.where(upright, other, longer), np.where(upright, longer, other)
