"""Anchor boxes of a feature pyramid (TPU detection code, anchor.py).

Legend: A anchors of all levels. Order: level, y, x, octave, aspect ratio; the heads' channels follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tutelage.config import AnchorConfig


def num_anchors(config: AnchorConfig) -> int:
    """Anchors at one location."""
    return config.octaves * len(config.aspect_ratios)


def level_sizes(canvas: tuple[int, int], levels: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of each level's map: strides divide the canvas, rounded up."""
    height, width = canvas
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def make_anchors(canvas: tuple[int, int], levels: Sequence[int], config: AnchorConfig) -> Tensor:
    """Anchors (A, 4) float32 of a canvas (height, width): xyxy pixels, centered in their cells, not clipped."""
    sizes = level_sizes(canvas, levels)
    return torch.cat([_level_anchors(size, 2**level, config) for size, level in zip(sizes, levels, strict=True)])


def _level_anchors(size: tuple[int, int], stride: int, config: AnchorConfig) -> Tensor:
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centers = torch.stack([x, y, x, y], dim=-1) * stride  # (height, width, 4)
    return (centers[:, :, None] + _cell_anchors(stride, config)).reshape(-1, 4)


def _cell_anchors(stride: int, config: AnchorConfig) -> Tensor:
    """The anchors (octaves x ratios, 4) of one location, around the origin."""
    octaves = 2.0 ** (torch.arange(config.octaves) / config.octaves)
    ratios = torch.tensor(config.aspect_ratios)  # width over height
    base = config.size * stride * octaves[:, None]
    half = torch.stack([base * ratios.sqrt(), base / ratios.sqrt()], dim=-1).reshape(-1, 2) / 2
    return torch.cat([-half, half], dim=-1)


@lru_cache(maxsize=16)
def anchors_on(device: torch.device, canvas: tuple[int, int], levels: tuple[int, ...], config: AnchorConfig) -> Tensor:
    """`make_anchors` on a device, made once for each canvas; shared, so never write to it."""
    return make_anchors(canvas, levels, config).to(device)
