"""The networks that tasks train: a detector, a segmenter, and a classifier that shares their backbone.

All take pictures as they are (uint8) with their covered size, and normalize on the device.
Legend: B images, H x W canvas pixels, A anchors, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, PlainViT, build_backbone
from tutelage.models.heads import RetinaNetHead, SegmentationHead
from tutelage.models.nasfpn import LEVELS, NASFPN
from tutelage.models.pyramids import FPN, FUSED_LEVEL, LAST_BACKBONE_LEVEL
from tutelage.models.spinenet import SPINENETS, SpineNet
from tutelage.types import InputError

PYRAMIDS: dict[str, Callable[[Sequence[int], ModelConfig], nn.Module]] = {
    "fpn": FPN,
    "nas-fpn": NASFPN,
    "none": nn.Identity,
}
WIRED = {"nas-fpn": "a nas-fpn", "none": "a SpineNet"}
"""What is made for fixed levels, by `model.pyramid`."""
MASK_STRIDE = 2**FUSED_LEVEL
"""Canvas pixels a cell of a segmenter's logits."""


class DetectionOutputs(NamedTuple):
    """Raw outputs of a detector, in the anchors' order (level, y, x, octave, aspect ratio)."""

    logits: Tensor  # (B, A, K)
    deltas: Tensor  # (B, A, 4) dx, dy, dw, dh


class Normalize(nn.Module):
    """Pixel statistics in the range 0 .. 255; they travel with the weights."""

    mean: Tensor
    std: Tensor
    eps: float | None = None  # of the backbone's batch-norms, where the initialization decides it

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) from uint8 ones; outside of `valid` (B, 2) all is 0, the mean color."""
        scale, mean = 1 / self.std[:, None, None], self.mean[:, None, None]
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < valid[:, :1]
        columns = torch.arange(width, device=images.device) < valid[:, 1:]
        covered = rows[:, None, :, None] & columns[:, None, None, :]
        return (images.to(self.mean.dtype) - mean).mul_(scale).mul_(covered)


class PyramidNetwork(nn.Module):
    """What detector and segmenter have in common: pixel statistics, backbone and feature pyramid."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize()
        self.backbone = backbone_of(config)
        self.pyramid = PYRAMIDS[config.pyramid](self.backbone.channels, config)
        self.classifier: nn.Linear | None = None  # of whole images, in joint training

    def add_classifier(self, num_image_classes: int) -> None:
        """Adds a random head that tells the classes of whole images, or replaces the one there is."""
        self.classifier = _linear_classifier(self.backbone.channels[-1], num_image_classes)

    def classify(self, images: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, K') of whole images: uint8 (B, 3, H, W) that cover `valid` (B, 2) = (height, width)."""
        assert self.classifier is not None, "joint training adds the classifier"
        logits: Tensor = self.classifier(pooled(self.backbone(self.normalize(images, valid))))
        return logits


class RetinaNet(PyramidNetwork):
    """Backbone, feature pyramid and head (arXiv:1708.02002)."""

    kind: ClassVar[str] = "detector"

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.levels = tuple(range(config.min_level, config.max_level + 1))
        self.head = RetinaNetHead(config, num_classes, len(self.levels))

    def forward(self, images: Tensor, valid: Tensor) -> DetectionOutputs:
        """Raw outputs for uint8 images (B, 3, H, W) that cover `valid` (B, 2) = (height, width) of their canvas."""
        return self.raw(self.normalize(images, valid))

    def raw(self, normalized: Tensor) -> DetectionOutputs:
        """Raw outputs for images (B, 3, H, W) that `normalize` made."""
        return DetectionOutputs(*self.head(self.pyramid(self.backbone(normalized))))


class Segmenter(PyramidNetwork):
    """Backbone, feature pyramid, and a head on its levels fused at stride 4 (arXiv:2006.06882, sec. 3.2)."""

    kind: ClassVar[str] = "segmenter"

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.head = SegmentationHead(config, num_classes)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, K, H / 4, W / 4) for uint8 images (B, 3, H, W) that cover `valid` (B, 2) = (height, width)."""
        return self.raw(self.normalize(images, valid))

    def raw(self, normalized: Tensor) -> Tensor:
        """Logits (B, K, H / 4, W / 4) for images (B, 3, H, W) that `normalize` made."""
        logits: Tensor = self.head(self.pyramid(self.backbone(normalized)))
        return logits


class Classifier(nn.Module):
    """Backbone, global average pool, dropout and one linear layer; its backbone initializes the other networks'."""

    kind: ClassVar[str] = "classifier"

    def __init__(self, config: ModelConfig, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize()
        self.backbone = backbone_of(config)
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear_classifier(self.backbone.channels[-1], num_classes)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, K) for uint8 images (B, 3, H, W) that cover `valid` (B, 2) = (height, width) of their canvas."""
        features = pooled(self.backbone(self.normalize(images, valid)))
        logits: Tensor = self.linear(self.dropout(features))
        return logits


Network = RetinaNet | Segmenter
"""What a task trains; a classifier only gives its backbone to one."""


def pooled(features: Sequence[Tensor]) -> Tensor:
    """The global average (B, C) of a backbone's last map.

    Of a SpineNet, whose maps are all last ones, the mean over the averages of its five: as if they were enlarged to the
    finest and averaged (TPU detection code, heads.py).
    """
    levels = features if len(features) == len(LEVELS) else features[-1:]
    return torch.stack([level.mean(dim=(2, 3)) for level in levels]).mean(dim=0)


def canvas_stride(config: ModelConfig) -> int:
    """What both sides of a canvas must be multiples of.

    A nas-fpn and a SpineNet repeat and pool pixels by whole factors between all their levels; an fpn never looks back
    from the levels above the backbone's, which may be rounded up.
    """
    return 1 << (min(config.max_level, LAST_BACKBONE_LEVEL) if config.pyramid == "fpn" else LEVELS[-1])


def build_detector(config: ModelConfig, num_classes: int) -> RetinaNet:
    """A detector with random weights, drawn from torch's default generator.

    Raises:
        InputError: an unknown backbone, one without the strides, levels or a canvas that cannot be.
    """
    check_levels(config)
    return RetinaNet(config, num_classes)


def build_segmenter(config: ModelConfig, num_classes: int) -> Segmenter:
    """A segmenter with random weights, drawn from torch's default generator.

    Raises:
        InputError: as `build_detector`.
    """
    check_levels(config)
    return Segmenter(config, num_classes)


def build_classifier(config: ModelConfig, num_classes: int, dropout: float = 0.0) -> Classifier:
    """A classifier with the same backbone as the other networks', with random weights."""
    return Classifier(config, num_classes, dropout)


def _linear_classifier(width: int, num_classes: int) -> nn.Linear:
    linear = nn.Linear(width, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def backbone_of(config: ModelConfig) -> Backbone | PlainViT | SpineNet:
    """The backbone that a config names, with random weights from torch's default generator."""
    if config.backbone in SPINENETS:
        return SpineNet(
            config.backbone,
            endpoint_width=config.pyramid_width,
            drop_path=config.drop_path,
            activation=config.activation,
            norm=config.norm,
        )
    levels = range(config.min_level, min(config.max_level, LAST_BACKBONE_LEVEL) + 1)
    norm = config.norm if config.backbone_norm == "shared" else None
    return build_backbone(
        config.backbone, levels=levels, drop_path=config.drop_path, norm=norm, width=config.pyramid_width
    )


def check_levels(config: ModelConfig) -> None:
    """Refuses levels that the pyramid cannot have, and a canvas that does not divide into them (`InputError`)."""
    if config.min_level > config.max_level:
        raise InputError(
            f"model.min_level: {config.min_level} is above model.max_level {config.max_level}; "
            "it must be at most that. Change one of them."
        )
    if (config.backbone in SPINENETS) != (config.pyramid == "none"):
        raise InputError(
            f"model.pyramid: {config.pyramid} on {config.backbone}; a SpineNet ({', '.join(SPINENETS)}) is its own "
            "pyramid and has none, every other backbone needs one. Set model.pyramid=none for a SpineNet, else fpn "
            "or nas-fpn."
        )
    if config.pyramid != "fpn" and (config.min_level, config.max_level) != (LEVELS[0], LEVELS[-1]):
        raise InputError(
            f"model.pyramid: {WIRED[config.pyramid]} is wired for levels {LEVELS[0]} to {LEVELS[-1]}; model.min_level "
            f"and max_level are {config.min_level} and {config.max_level}. Set them so, or take a backbone with "
            "model.pyramid=fpn."
        )
    stride = canvas_stride(config)
    if any(side % stride for side in config.canvas):
        coarsest = "the backbone" if config.pyramid == "fpn" else f"the coarsest level of {WIRED[config.pyramid]}"
        raise InputError(
            f"model.canvas: {config.canvas[0]} x {config.canvas[1]}; both sides must be multiples of {stride}, the "
            f"stride of {coarsest}. Round them, for example to "
            f"{[-(-side // stride) * stride for side in config.canvas]}."
        )
