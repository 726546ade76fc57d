"""Levels of several strides from the one map of a plain vision transformer: ViTDet's simple feature pyramid.

Source: arXiv:2203.16527, sec. 3; detectron2, modeling/backbone/vit.py.
Legend: B images, C channels of the transformer, W of the levels, h x w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 16
"""Side of a patch in pixels, the stride of the transformer's map; other patch sizes are resampled to it."""
PATCH_LEVEL = 4


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization of each pixel's channels, of maps (B, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same size."""
        normalized = F.layer_norm(maps.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normalized.permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """From the map at stride 16: deconvolutions for 4 and 8, itself for 16, the maximum of each block for 32.

    Each is then brought to one width by a 1x1 and a 3x3 convolution, both with layer normalization.
    """

    def __init__(self, channels: int, levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(channels, level, width) for level in levels)

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Levels (B, W, h x 16 / stride, w x 16 / stride), finest first, from a map (B, C, h, w)."""
        return [level(patches) for level in self.levels]


def _level(channels: int, level: int, width: int) -> nn.Sequential:
    resampling = _resampling(channels, level)
    return nn.Sequential(
        *resampling,
        nn.Conv2d(channels >> max(0, PATCH_LEVEL - level), width, 1, bias=False),
        LayerNorm2d(width, eps=1e-6),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width, eps=1e-6),
    )


def _resampling(channels: int, level: int) -> list[nn.Module]:
    """From stride 16 to that of a level; a deconvolution halves the channels."""
    if level == 2:
        return [_doubling(channels), LayerNorm2d(channels // 2, eps=1e-6), nn.GELU(), _doubling(channels // 2)]
    if level == 3:
        return [_doubling(channels)]
    return [nn.MaxPool2d(2)] if level == 5 else []


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
