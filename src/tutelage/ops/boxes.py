"""Overlap, coding and clipping of boxes: pure tensor functions.

Legend: N, M boxes. Boxes are xyxy in pixels, measured at pixel edges (no "+1" convention anywhere).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE_EPS = 1e-8
"""Added to widths and heights before they are divided or logged (TPU object detection code, faster_rcnn_box_coder)."""

MAX_LOG_SCALE = math.log(1000 / 16)
"""Cap on decoded dw and dh (TPU detection code, box_utils.py)."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas (..., N) of boxes (..., N, 4); 0 for boxes that are inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Areas (..., N, M) shared by boxes a (..., N, 4) and b (..., M, 4)."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    return width.mul_(height)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of boxes a (..., N, 4) and b (..., M, 4); 0 between two empty boxes."""
    shared = pairwise_intersection(a, b)
    union = (box_area(a)[..., :, None] + box_area(b)[..., None, :]).sub_(shared)
    return shared.div_(union.clamp_(min=SIZE_EPS))


def pairwise_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over the area of a (..., N, M) of boxes a (..., N, 4) and b (..., M, 4)."""
    return pairwise_intersection(a, b).div_(box_area(a)[..., :, None].clamp(min=SIZE_EPS))


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas (..., 4) = (dx, dy, dw, dh) that `decode` turns back into boxes (..., 4); no variance scaling."""
    centers, sizes = _centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    anchor_sizes = anchor_sizes + SIZE_EPS
    shift = (centers - anchor_centers) / anchor_sizes
    return torch.cat([shift, torch.log((sizes + SIZE_EPS) / anchor_sizes)], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) from deltas (..., 4) on anchors (..., 4).

    The TPU code decodes in an inclusive-pixel convention that its encoding does not use; here decode inverts encode.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers = anchor_centers + deltas[..., :2] * anchor_sizes
    half = anchor_sizes * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centers - half, centers + half], dim=-1)


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) cut to images of size (2,) = (height, width); what was outside becomes empty."""
    height, width = size.to(boxes.dtype).unbind()
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))
