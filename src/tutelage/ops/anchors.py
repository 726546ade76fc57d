"""Anchor boxes of a feature pyramid (TPU detection code, anchor.py).

Legend: A anchors of all levels. Order: level, y, x, octave, aspect ratio; the heads' channels follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PLACES = 4  # a cell's side is looked at in as many places


class AnchorShape(Protocol):
    """The anchors of one location (`AnchorConfig` is one)."""

    @property
    def side(self) -> float:
        """Of the base anchor, in strides."""
        ...

    @property
    def octaves(self) -> int:
        """Scales a level: 2^(0/n) .. 2^((n-1)/n)."""
        ...

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        """Width over height."""
        ...


def num_anchors(shape: AnchorShape) -> int:
    """Anchors at one location."""
    return shape.octaves * len(shape.aspect_ratios)


def level_sizes(canvas: tuple[int, int], levels: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of each level's map: strides divide the canvas, rounded up."""
    height, width = canvas
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def make_anchors(canvas: tuple[int, int], levels: Sequence[int], shape: AnchorShape) -> Tensor:
    """Anchors (A, 4) float32 of a canvas (height, width): xyxy pixels, centered in their cells, not clipped."""
    sizes = level_sizes(canvas, levels)
    return torch.cat([_level_anchors(size, 2**level, shape) for size, level in zip(sizes, levels, strict=True)])


def _level_anchors(size: tuple[int, int], stride: int, shape: AnchorShape) -> Tensor:
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centers = torch.stack([x, y, x, y], dim=-1) * stride  # (height, width, 4)
    return (centers[:, :, None] + _cell_anchors(stride, shape)).reshape(-1, 4)


def _cell_anchors(stride: int, shape: AnchorShape) -> Tensor:
    """The anchors (octaves x ratios, 4) of one location, around the origin."""
    octaves = 2.0 ** (torch.arange(shape.octaves) / shape.octaves)
    ratios = torch.tensor(shape.aspect_ratios)  # width over height
    base = shape.side * stride * octaves[:, None]
    half = torch.stack([base * ratios.sqrt(), base / ratios.sqrt()], dim=-1).reshape(-1, 2) / 2
    return torch.cat([-half, half], dim=-1)


def mean_best_overlap(sides: NDArray[np.float64], levels: Sequence[int], shape: AnchorShape) -> float:
    """How well anchors of this shape fit boxes wherever these lie: the mean over boxes of the best anchor's IoU.

    The best anchor's center is at most half a stride away on each axis; all such places are equally likely.

    Args:
        sides: (N, 2) widths and heights of boxes, pixels of the canvas.
        levels: of the pyramid.
        shape: of the anchors.
    """
    best = np.zeros((len(sides), PLACES, PLACES))
    away = np.abs(np.arange(PLACES) + 0.5 - PLACES / 2) / PLACES  # in strides
    for level in levels:
        corners = _cell_anchors(2**level, shape).numpy().astype(np.float64)
        for width, height in corners[:, 2:] - corners[:, :2]:
            common_x, common_y = (
                np.clip(
                    np.minimum(np.minimum(own, side)[:, None], (own + side)[:, None] / 2 - away * 2**level), 0, None
                )
                for own, side in ((sides[:, 0], width), (sides[:, 1], height))
            )
            common = common_x[:, :, None] * common_y[:, None, :]
            whole = (sides.prod(axis=1) + width * height)[:, None, None] - common
            np.maximum(best, common / whole, out=best)
    return float(best.mean())


@lru_cache(maxsize=16)
def anchors_on(device: torch.device, canvas: tuple[int, int], levels: tuple[int, ...], shape: AnchorShape) -> Tensor:
    """`make_anchors` on a device, made once for each canvas; shared, so never write to it."""
    with torch.inference_mode(False):  # also training will use them
        return make_anchors(canvas, levels, shape).to(device)
