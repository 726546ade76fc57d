"""Carries out a plan: source operations, one warp, canvas operations; image, boxes and mask by one matrix.

Sampling is linear between pixels. Where the decoded image is at least twice too large, it is first halved (2 x 2 means,
as often as needed), so that the warp never skips pixels; a JPEG decoded at 1/2, 1/4 or 1/8 needs that no more.
Pixels beyond the decoded image repeat its border while operations run, and become `FILL` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.augment.ops import FILL as FILL
from tutelage.augment.ops import GEOMETRY, Covered, Pixels, run_canvas_ops
from tutelage.augment.plan import BoxOperation, ColorOperation, Hole, Plan
from tutelage.ops import affine
from tutelage.ops.affine import Matrix
from tutelage.types import IGNORE, Boxes

Size = tuple[int, int]  # (height, width)

MOST_WASTE = 2.5  # a whole-image resize of up to this many times the wanted pixels is faster than a warp


@dataclass(frozen=True, slots=True)
class Warped:
    """An image on its canvas with what belongs to it."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    valid: tuple[int, int]  # covered (height, width)
    boxes: Boxes | None = None  # canvas pixels; invisible ones are gone
    mask: NDArray[np.uint8] | None = None  # (H, W), IGNORE outside the image


def apply(
    plan: Plan, pixels: Pixels, size: Size, boxes: Boxes | None = None, mask: NDArray[np.uint8] | None = None
) -> Warped:
    """What the plan makes of an image; the arguments are left as they are.

    Args:
        plan: drawn for an original of `size`.
        pixels: (h, w, 3) decoded image, of full size or reduced.
        size: (height, width) of the original.
        boxes: in pixels of the original.
        mask: (h, w) classes of the whole image, of its own or another size (a pseudo-mask of network size).
    """
    to_original = _enlargement(pixels.shape[:2], size)
    pixels = _with_box_operations(pixels, plan.source_ops, affine.scaling(*to_original))
    covered = _coverage(plan.matrix, size, plan.valid)
    warped = warp(pixels, plan.matrix @ affine.scaling(*to_original), plan.valid)
    warped = run_canvas_ops(warped, plan.canvas_ops, covered)
    return Warped(
        pixels=_on_canvas(warped, covered, plan.canvas),
        valid=plan.valid,
        boxes=None if boxes is None else warped_boxes(boxes, plan),
        mask=None if mask is None else _warped_mask(mask, _from_resized(mask, size), plan, covered),
    )


def warp(pixels: Pixels, matrix: Matrix, size: Size) -> Pixels:
    """Pixels (h, w, 3) moved by a matrix to an image of `size`, the border repeated where there is nothing."""
    pixels, matrix = _halved(pixels, matrix)
    return _resized(pixels, matrix, size) if _is_cheap_resize(pixels, matrix, size) else _sampled(pixels, matrix, size)


def _enlargement(decoded: Size, size: Size) -> tuple[float, float]:
    """Original over decoded size as (x, y); a JPEG decoder that divides by 2, 4 or 8 rounds its size up."""
    factor = max(1, round(size[0] / decoded[0]))
    if decoded == (-(-size[0] // factor), -(-size[1] // factor)):
        return float(factor), float(factor)
    return size[1] / decoded[1], size[0] / decoded[0]


def _halved(pixels: Pixels, matrix: Matrix) -> tuple[Pixels, Matrix]:
    """The image divided by the largest power of two that the matrix shrinks it by, and the rest of the matrix."""
    shrunk = 1 / max(affine.magnification(matrix), 1e-6)
    factor = 2 ** max(0, math.floor(math.log2(shrunk) + 1e-9))
    if factor == 1:
        return pixels, matrix
    height, width = -(-pixels.shape[0] // factor), -(-pixels.shape[1] // factor)
    below, right = height * factor - pixels.shape[0], width * factor - pixels.shape[1]
    if below or right:  # whole blocks: a division without remainder is 20 times faster
        pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)
    smaller = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.uint8), matrix @ affine.scaling(factor, factor)


def _is_cheap_resize(pixels: Pixels, matrix: Matrix, size: Size) -> bool:
    """Whether the map is a resize to whole numbers, mirrored or not, and a crop of most of it."""
    height, width = matrix[1, 1] * pixels.shape[0], abs(matrix[0, 0]) * pixels.shape[1]
    left = matrix[0, 2] - width if matrix[0, 0] < 0 else matrix[0, 2]
    wholes = np.array([height, width, left, matrix[1, 2]])
    return bool(
        matrix[0, 1] == 0
        and matrix[1, 0] == 0
        and np.abs(wholes - np.rint(wholes)).max() < 1e-3
        and -0.5 < -left <= width - size[1] + 0.5
        and -0.5 < -matrix[1, 2] <= height - size[0] + 0.5
        and height * width <= MOST_WASTE * size[0] * size[1]
    )


def _resized(pixels: Pixels, matrix: Matrix, size: Size) -> Pixels:
    height, width = round(matrix[1, 1] * pixels.shape[0]), round(abs(matrix[0, 0]) * pixels.shape[1])
    mirrored = matrix[0, 0] < 0
    left, top = round(width - matrix[0, 2] if mirrored else -matrix[0, 2]), round(-matrix[1, 2])
    whole = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    whole = cv2.flip(whole, 1) if mirrored else whole
    return np.ascontiguousarray(whole[top : top + size[0], left : left + size[1]], np.uint8)


def _sampled(pixels: Pixels, matrix: Matrix, size: Size) -> Pixels:
    # OpenCV wants the way back, from centers to centers
    back = affine.at_pixel_centers(affine.inverse(matrix))[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)  # four channels take two thirds of the time of three
    warped = cv2.warpAffine(four, back, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), np.uint8)


def _coverage(matrix: Matrix, source: Size, size: Size) -> Covered:
    """Where pixels of an area of `size` show the source: (H, W) of 0 and 1, or None where all do."""
    area = affine.corners_of(np.array([0, 0, size[1], size[0]]))
    seen = affine.transform_points(affine.inverse(matrix), area)
    limit = np.array(source[::-1])
    if ((seen >= -1e-6) & (seen <= limit + 1e-6)).all():
        return None
    outline = affine.transform_points(matrix, affine.corners_of(np.array([0, 0, *limit])))
    covered = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(covered, np.round((outline - 0.5) * 16).astype(np.int32), 1, shift=4)
    return covered


@lru_cache(maxsize=8)
def _blank(size: Size) -> Pixels:
    """An image of nothing but fill (to be copied: filling three values costs 50 times a copy)."""
    blank = np.full((*size, 3), FILL, np.uint8)
    blank.flags.writeable = False
    return blank


def _on_canvas(pixels: Pixels, covered: Covered, canvas: Size) -> Pixels:
    """The covered pixels at the canvas' top left, fill everywhere else."""
    height, width = pixels.shape[:2]
    if covered is None and (height, width) == canvas:
        return pixels
    result = _blank(canvas).copy()
    if covered is None:
        result[:height, :width] = pixels
    else:
        cv2.copyTo(pixels, covered, result[:height, :width])
    return result


def warped_boxes(boxes: Boxes, plan: Plan) -> Boxes:
    """Boxes around what of them is still shown on the plan's canvas; those that left are dropped.

    The original keeps boxes that were pushed out as thin ghosts on the border; here they are gone.
    """
    hulls, visible = affine.hull_of_warped(boxes.xyxy, plan.matrix, plan.valid)
    stretched = boxes.area * np.float32(abs(np.linalg.det(plan.matrix)))
    return replace(boxes, xyxy=hulls, area=stretched).select(visible)


def warped_mask(mask: NDArray[np.uint8], to_original: Matrix, size: Size, plan: Plan) -> NDArray[np.uint8]:
    """Classes (H, W) on the plan's canvas of a mask (h, w), say of another view of an original of `size`.

    Args:
        mask: classes of what its view shows; IGNORE is the answer for all else.
        to_original: (3, 3) the mask's pixels -> the original's.
        size: (height, width) of the original.
        plan: drawn for the original.
    """
    return _warped_mask(mask, to_original, plan, _coverage(plan.matrix, size, plan.valid))


def _from_resized(mask: NDArray[np.uint8], size: Size) -> Matrix:
    """Pixels of a mask of the whole image -> those of the original of `size`."""
    return affine.scaling(size[1] / mask.shape[1], size[0] / mask.shape[0])


def _warped_mask(mask: NDArray[np.uint8], to_original: Matrix, plan: Plan, covered: Covered) -> NDArray[np.uint8]:
    """The class at the place that each pixel's center comes from; IGNORE wherever the picture shows fill."""
    back = affine.at_pixel_centers(affine.inverse(plan.matrix @ to_original))[:2]
    height, width = plan.valid
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(
        mask, back, (width, height), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
    )
    if covered is None and plan.valid == plan.canvas:
        return np.asarray(warped, np.uint8)
    result = np.full(plan.canvas, IGNORE, np.uint8)
    if covered is None:
        result[:height, :width] = warped
    else:
        cv2.copyTo(warped, covered, result[:height, :width])
    return result


def _with_box_operations(pixels: Pixels, operations: Sequence[BoxOperation], to_original: Matrix) -> Pixels:
    """A copy of the decoded image with the pictures inside boxes changed, one after the other."""
    if not operations:
        return pixels
    pixels = pixels.copy()
    scale = 1 / to_original.diagonal()[:2]  # decoded over original pixels, as (x, y)
    for operation in operations:
        corners = np.array(operation.box).reshape(2, 2) * scale
        (left, top), (right, bottom) = np.clip(corners.astype(int), 0, np.array(pixels.shape[1::-1]) - 1)
        inside = pixels[top : bottom + 1, left : right + 1]  # the last pixel belongs to it, as in the original
        inside[:] = _changed_inside(np.ascontiguousarray(inside), operation, scale)
    return pixels


def _changed_inside(picture: Pixels, operation: BoxOperation, scale: NDArray[np.float64]) -> Pixels:
    size = picture.shape[:2]
    if operation.name in GEOMETRY:
        to_decoded = affine.scaling(*scale)
        shown = (size[0] / scale[1], size[1] / scale[0])  # in original pixels, which the amount is given in
        move = GEOMETRY[operation.name](operation.amount, shown)
        matrix = to_decoded @ move @ affine.inverse(to_decoded)
        return _on_canvas(_sampled(picture, matrix, size), _coverage(matrix, size, size), size)
    if operation.name == "Cutout":
        return run_canvas_ops(picture, [_hole_inside(size, operation, scale)], None)
    return run_canvas_ops(picture, [ColorOperation(operation.name, operation.amount)], None)


def _hole_inside(size: Size, operation: BoxOperation, scale: NDArray[np.float64]) -> Hole:
    center, half = np.array(operation.center) * size[::-1], operation.amount * scale
    return Hole(affine.corners_of(np.concatenate([center - half, center + half])))
