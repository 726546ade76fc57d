"""Heads of a RetinaNet (arXiv:1708.02002) and of a segmenter (arXiv:2006.06882, sec. 3.2); TPU code, heads.py.

Legend: B images, A anchors of all levels, K classes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.pyramids import ACTIVATIONS, batch_norm, fuse
from tutelage.ops.anchors import num_anchors

PRIOR = 0.01
"""Foreground probability that the class predictor starts from: arXiv:1708.02002, sec. 4.1."""


class Tower(nn.Module):
    """Convolutions shared by all levels, each followed by the level's own batch-norm and the activation."""

    def __init__(self, config: ModelConfig, num_levels: int) -> None:
        super().__init__()
        widths = [config.pyramid_width] + [config.head_width] * config.head_depth
        self.width = widths[-1]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.ModuleList(batch_norm(config.head_width, config.norm) for _ in self.convs) for _ in range(num_levels)
        )
        self.activation = ACTIVATIONS[config.activation](inplace=True)
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, level: Tensor, number: int) -> Tensor:
        """The features of pyramid level `number` (0 is the finest), the same size."""
        for conv, norm in zip(self.convs, self.norms[number], strict=True):  # type: ignore[call-overload]
            level = self.activation(norm(conv(level)))
        return level


class RetinaNetHead(nn.Module):
    """Two towers and two predictors; channels are ordered anchor x class and anchor x coordinate."""

    def __init__(self, config: ModelConfig, num_classes: int, num_levels: int) -> None:
        super().__init__()
        anchors = num_anchors(config.anchors)
        self.num_classes = num_classes
        self.class_tower = Tower(config, num_levels)
        self.box_tower = Tower(config, num_levels)
        self.class_predictor = nn.Conv2d(self.class_tower.width, anchors * num_classes, 3, padding=1)
        self.box_predictor = nn.Conv2d(self.box_tower.width, anchors * 4, 3, padding=1)
        for predictor, bias in ((self.class_predictor, -math.log((1 - PRIOR) / PRIOR)), (self.box_predictor, 0.0)):
            nn.init.normal_(predictor.weight, std=1e-5)
            nn.init.constant_(predictor.bias, bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, A, K) and deltas (B, A, 4) in the anchors' order."""
        logits = [self.class_predictor(self.class_tower(level, number)) for number, level in enumerate(levels)]
        deltas = [self.box_predictor(self.box_tower(level, number)) for number, level in enumerate(levels)]
        return _by_anchor(logits, self.num_classes), _by_anchor(deltas, 4)


class SegmentationHead(nn.Module):
    """All levels fused at stride 4, a tower on the one map, and a 1x1 predictor."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.min_level = config.min_level
        self.tower = Tower(config, num_levels=1)
        self.class_predictor = nn.Conv2d(self.tower.width, num_classes, 1)
        nn.init.zeros_(self.class_predictor.bias)  # type: ignore[arg-type]
        # The TPU code's 0.01 is meant for 256 channels; with fewer the outputs keep their variance, and the steps of
        # AdamW, whose length does not follow the weights, stay small beside them.
        for conv in (*self.tower.convs, self.class_predictor):
            nn.init.normal_(conv.weight, std=0.01 * math.sqrt(256 / conv.in_channels))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Logits (B, K, H_2, W_2), H_2 x W_2 being the canvas at stride 4."""
        logits: Tensor = self.class_predictor(self.tower(fuse(levels, self.min_level), 0))
        return logits


def _by_anchor(maps: list[Tensor], depth: int) -> Tensor:
    """(B, A, depth) from maps (B, anchors x depth, H, W); no copy but the joining one where maps are channels-last."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, depth) for level in maps], dim=1)
