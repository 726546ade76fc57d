"""NAS-FPN (arXiv:1904.07392; TPU detection code, nasfpn.py): a pyramid whose wiring was found by search.

Legend: B images, C_l channels of backbone level l, W the pyramid's width, H_l x W_l pixels of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.pyramids import ACTIVATIONS, batch_norm

LEVELS = (3, 4, 5, 6, 7)
"""Pyramid levels, the only ones that the wiring is made for; they are nodes 0 to 4 of every cell."""


class Merge(NamedTuple):
    """How a cell makes one further node out of two earlier ones."""

    level: int  # of the new node
    coarse: int  # node; where the merge attends, the gate comes from this one
    fine: int  # node
    attends: bool  # coarse + fine * gate; else coarse + fine
    extra: int | None = None  # node that is summed in besides: an incoming level that no merge before has used


MERGES = (
    Merge(level=4, coarse=3, fine=1, attends=True),  # node 5
    Merge(level=4, coarse=1, fine=5, attends=False),
    Merge(level=3, coarse=6, fine=0, attends=False),  # node 7: level 3 of the output
    Merge(level=4, coarse=6, fine=7, attends=False),  # 8: level 4
    Merge(level=5, coarse=8, fine=7, attends=True, extra=2),  # 9: level 5
    Merge(level=7, coarse=9, fine=6, attends=True, extra=4),  # 10: level 7
    Merge(level=6, coarse=10, fine=9, attends=True),  # 11: level 6
)
NODE_LEVELS = (*LEVELS, *(merge.level for merge in MERGES))
OUTPUTS = (7, 8, 9, 11, 10)
"""Nodes that a cell hands on, finest first."""


class NASFPN(nn.Module):
    """Backbone levels brought to one width, then cells one after the other, each with weights of its own.

    The output is linear: batch-norm comes last, the activation before the next convolution.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        width = config.pyramid_width
        self.inputs = nn.ModuleList(
            nn.Identity() if count == width else _normalized_conv(count, config, kernel=1) for count in channels
        )
        self.cells = nn.ModuleList(Cell(config) for _ in range(config.pyramid_repeats))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)  # TensorFlow's default, for depthwise kernels too
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels 3 to 7, (B, W, H_l, W_l), from the backbone's levels 3 to 5, (B, C_l, H_l, W_l)."""
        levels = [narrow(feature) for narrow, feature in zip(self.inputs, features, strict=True)]
        while len(levels) < len(LEVELS):
            levels.append(F.max_pool2d(levels[-1], 2))
        for cell in self.cells:
            levels = cell(levels)
        return levels


class Cell(nn.Module):
    """Seven merges, each followed by activation, 3x3 convolution and batch-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation](inplace=True)
        self.convs = nn.ModuleList(_normalized_conv(config.pyramid_width, config, kernel=3) for _ in MERGES)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels of the same sizes, finest first."""
        nodes = list(levels)
        for merge, conv in zip(MERGES, self.convs, strict=True):
            nodes.append(conv(self.activation(_merged(merge, nodes))))
        return [nodes[node] for node in OUTPUTS]


def _merged(merge: Merge, nodes: Sequence[Tensor]) -> Tensor:
    coarse, fine = (_resampled(nodes[node], NODE_LEVELS[node], merge.level) for node in (merge.coarse, merge.fine))
    if merge.attends:
        fine = fine * coarse.amax(dim=(2, 3), keepdim=True).sigmoid()
    merged = coarse + fine
    return merged if merge.extra is None else merged + nodes[merge.extra]


def _resampled(node: Tensor, level: int, target: int) -> Tensor:
    """A node at another level's size: the maximum of each block of pixels, or every pixel repeated."""
    if level < target:
        return F.max_pool2d(node, 2 ** (target - level))
    return F.interpolate(node, scale_factor=2.0 ** (level - target), mode="nearest") if level > target else node


def _normalized_conv(channels: int, config: ModelConfig, kernel: int) -> nn.Sequential:
    """Convolution to the pyramid's width with bias (on the pointwise part where separable), and batch-norm."""
    width, depthwise = config.pyramid_width, []
    if config.pyramid_separable:
        depthwise = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)]
        kernel = 1
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
    return nn.Sequential(*depthwise, conv, batch_norm(width, config.norm))
