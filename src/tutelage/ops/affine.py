"""Affine maps of the plane as 3 x 3 float64 matrices, and what they do to points and boxes.

A matrix maps pixel-EDGE coordinates (x, y, 1) of one image to those of another: the corner of the image is (0, 0) and
the center of its first pixel (0.5, 0.5). `at_pixel_centers` turns such a matrix into one for libraries that count
from pixel centers (OpenCV). The maps follow each other from right to left: `later @ earlier`.

Legend: N boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SMALLEST_SIDE = 1e-3
"""Pixels; what is thinner after clipping lies outside but for rounding."""


def identity() -> Matrix:
    """The map that moves nothing."""
    return np.eye(3)


def translation(x: float, y: float) -> Matrix:
    """Moves content by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: float, y: float) -> Matrix:
    """Scales about the origin."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def shear(x: float, y: float) -> Matrix:
    """Moves content by `x` times its y coordinate to the right and by `y` times its x coordinate down."""
    return np.array([[1.0, x, 0.0], [y, 1.0, 0.0], [0.0, 0.0, 1.0]])


def rotation(degrees: float, size: tuple[int, int]) -> Matrix:
    """Turns content counter-clockwise, as seen, about the center of an image of `size` (height, width)."""
    height, width = size
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])  # y points down
    centered = turn @ translation(-width / 2, -height / 2)
    return np.asarray(translation(width / 2, height / 2) @ centered, np.float64)


def horizontal_flip(width: float) -> Matrix:
    """Mirrors left and right of an image `width` pixels wide."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def at_pixel_centers(matrix: Matrix) -> Matrix:
    """The same map between images whose first pixel has its center, not its corner, at (0, 0)."""
    return translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)


def inverse(matrix: NDArray[Any]) -> Matrix:
    """The way back, of one matrix or of a batch (..., 3, 3)."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def magnification(matrix: Matrix) -> float:
    """The largest factor by which the map stretches any direction (its first singular value)."""
    return float(np.linalg.norm(matrix[:2, :2], ord=2))


def transform_points(matrix: Matrix, points: NDArray[Any]) -> NDArray[np.float64]:
    """Points (..., N, 2) moved by a matrix (..., 3, 3)."""
    linear, offset = matrix[..., :2, :2], matrix[..., None, :2, 2]
    return np.asarray(points, np.float64) @ np.swapaxes(linear, -1, -2) + offset


def corners_of(xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """The four corners (..., N, 4, 2) of boxes (..., N, 4), clockwise from the top left."""
    return np.asarray(xyxy, np.float64)[..., [[0, 1], [2, 1], [2, 3], [0, 3]]]


def hull_of_warped(
    xyxy: NDArray[Any], matrix: Matrix, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Smallest boxes (N, 4) around the visible part of warped boxes, and which of them have an area (N,).

    A warped box is a parallelogram; what of it lies inside an area of `size` (height, width) is a convex polygon,
    whose corners are corners of the parallelogram, corners of the area, and crossings of the two outlines. The hull of
    that polygon is tighter than the clipped hull of the parallelogram. Boxes without a visible part are zeros.
    """
    if len(xyxy) == 0:
        return np.zeros((0, 4), np.float32), np.zeros(0, bool)
    height, width = size
    limit = np.array([width, height], np.float64)
    area = corners_of(np.array([0.0, 0.0, width, height]))  # (4, 2)
    shapes = transform_points(matrix, corners_of(xyxy).reshape(-1, 2)).reshape(-1, 4, 2)
    seen_from_boxes = transform_points(inverse(matrix), area)  # the area's corners in the boxes' own pixels
    boxes = np.asarray(xyxy, np.float64)[:, None]
    covered = np.all((seen_from_boxes >= boxes[..., :2]) & (seen_from_boxes <= boxes[..., 2:]), axis=-1)  # (N, 4)
    points = np.concatenate([shapes, np.broadcast_to(area, shapes.shape), _crossings(shapes, limit)], axis=1)
    inside = np.array(np.all((points >= 0) & (points <= limit), axis=-1))
    inside[:, 4:8] = covered
    lowest = np.where(inside[..., None], points, np.inf).min(axis=1)
    highest = np.where(inside[..., None], points, -np.inf).max(axis=1)
    keep = np.array(np.all(highest - lowest >= SMALLEST_SIDE, axis=-1))
    hulls = np.concatenate([lowest, highest], axis=1)
    return np.where(keep[:, None], hulls, 0.0).astype(np.float32), keep


def _crossings(shapes: NDArray[np.float64], limit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where edges of polygons (N, 4, 2) cross the lines x, y = 0, limit: (N, 16, 2); infinite where they do not."""
    start, step = shapes[:, :, None], (np.roll(shapes, -1, axis=1) - shapes)[:, :, None]  # (N, 4, 1, 2)
    axis = np.array([0, 0, 1, 1])
    line = np.array([0.0, limit[0], 0.0, limit[1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (line - start[..., 0, axis]) / step[..., 0, axis]  # (N, 4, 4): position on the edge, 0 to 1
        points = start + along[..., None] * step  # (N, 4, 4, 2)
    points[..., np.arange(4), axis] = line  # on the line in spite of rounding
    points[~((along >= 0) & (along <= 1))] = np.inf
    return points.reshape(len(shapes), 16, 2)


def boxes_to_original(xyxy: NDArray[Any], matrix: Matrix, size: NDArray[Any] | tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (..., N, 4) on a canvas in the pixels of the original image, clipped to it.

    Args:
        xyxy: canvas pixels.
        matrix: (..., 3, 3) original to canvas, one for each image of a batch.
        size: (..., 2) original (height, width).
    """
    corners = corners_of(xyxy)
    points = corners.reshape(*corners.shape[:-3], -1, 2)
    moved = transform_points(inverse(matrix), points).reshape(corners.shape)
    limit = np.asarray(size, np.float64)[..., None, ::-1]  # (..., 1, 2) as (x, y)
    lowest, highest = np.clip(moved.min(-2), 0, limit), np.clip(moved.max(-2), 0, limit)
    return np.concatenate([lowest, highest], axis=-1).astype(np.float32)
