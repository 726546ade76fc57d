"""Feature pyramids (TPU detection code, fpn.py).

Legend: B images, C_l channels of backbone level l, W the pyramid's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import ModelConfig, NormConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
LAST_BACKBONE_LEVEL = 5
FUSED_LEVEL = 2
"""Where a segmenter predicts, stride 4: arXiv:2006.06882, sec. 3.2."""


def batch_norm(channels: int, norm: NormConfig) -> nn.BatchNorm2d:
    """Batch normalization with the model's constants."""
    return nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum)


class FPN(nn.Module):
    """Feature pyramid network: lateral 1x1, top-down nearest sums, 3x3, stride-2 levels above 5, batch-norm on all.

    Level 6 is made from the finished level 5, every further level from the activation of the one below. The output is
    linear: batch-norm comes last, without an activation.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        width = config.pyramid_width
        num_extra = max(0, config.max_level - LAST_BACKBONE_LEVEL)
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.extras = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(num_extra))
        self.norms = nn.ModuleList(batch_norm(width, config.norm) for _ in range(len(channels) + num_extra))
        self.activation = ACTIVATIONS[config.activation]()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels (B, W, H_l, W_l), finest first, from the backbone's features (B, C_l, H_l, W_l)."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for below in range(len(merged) - 2, -1, -1):
            size = merged[below].shape[-2:]
            merged[below] = merged[below] + F.interpolate(merged[below + 1], size=size, mode="nearest")
        levels = [output(level) for output, level in zip(self.outputs, merged, strict=True)]
        for number, extra in enumerate(self.extras):
            levels.append(_halved(cast(nn.Conv2d, extra), self.activation(levels[-1]) if number else levels[-1]))
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]


def fuse(levels: Sequence[Tensor], min_level: int) -> Tensor:
    """The sum (B, W, H_2, W_2) of all levels, finest first, each enlarged to level 2 (TPU detection code, nn_ops.py).

    Each goes there in one bilinear step; a chain of doublings would give something else. It is enlarged by the whole
    factor and then cut: where the canvas does not divide into it, a coarse level reaches beyond the others.
    """
    height, width = (side << (min_level - FUSED_LEVEL) for side in levels[0].shape[-2:])
    fused = _enlarged(levels[0], min_level)
    for number, level in enumerate(levels[1:], min_level + 1):
        fused += _enlarged(level, number)[..., :height, :width]  # in place: at this size memory traffic is the cost
    return fused


def _enlarged(level: Tensor, number: int) -> Tensor:
    return F.interpolate(level, scale_factor=2.0 ** (number - FUSED_LEVEL), mode="bilinear", align_corners=False)


def _halved(conv: nn.Conv2d, level: Tensor) -> Tensor:
    """A stride-2 convolution; of a map one pixel wide in the weights' type.

    In bfloat16 on a CPU, oneDNN leaves its weight gradient uninitialized there (found with torch 2.15, AVX-512 BF16).
    """
    if level.shape[-1] > 1:
        halved: Tensor = conv(level)
        return halved
    with torch.autocast(level.device.type, enabled=False):
        halved = conv(level.to(conv.weight.dtype))
        return halved
