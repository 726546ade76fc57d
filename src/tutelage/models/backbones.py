"""Backbones: timm networks behind one interface, and where their trained weights come from. timm's only door.

Sources: TPU detection code (resnet.py, efficientnet.py), arXiv:2006.06882 sec. 3.1 for the initializations.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.models import FeatureInfo
from torch import Tensor, nn

from tutelage.config import NormConfig
from tutelage.types import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGENET_WEIGHTS = {
    "resnet10t": "c3_in1k",
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv_in1k",
    "resnet101": "tv_in1k",
    "resnet152": "tv_in1k",
    "efficientnet_b0": "ra_in1k",
    "efficientnet_b1": "ft_in1k",
    "efficientnet_b2": "ra_in1k",
    "efficientnet_b3": "ra2_in1k",
    "efficientnet_b4": "ra2_in1k",
    **{f"tf_efficientnet_b{size}": "aa_in1k" for size in range(8)},  # b7: the paper's ImageNet checkpoint
}
"""`init=imagenet`: timm's tag of weights trained on ImageNet-1k alone, with plain recipes where there is a choice."""

NOISY_STUDENT_WEIGHTS = {
    **{f"tf_efficientnet_b{size}": "ns_jft_in1k" for size in range(8)},  # b7: the paper's ImageNet++ checkpoint
    "tf_efficientnet_l2": "ns_jft_in1k",
}
"""`init=imagenet++`: Noisy Student (arXiv:1911.04252), ImageNet-1k with unlabeled JFT images."""

EFFICIENTNET = re.compile(r"(tf_)?efficientnet_")
EFFICIENTNET_NORM = NormConfig(momentum=0.01, eps=1e-3)  # 1 - 0.99 (TPU code, efficientnet_builder.py); timm says 0.1

OTHER_DATA = re.compile(r"in12k|in21k|in22k|jft|ig\d|yfcc|laion|bamboo|openai|dfn|fb_|lvd")


class Backbone(nn.Module):
    """A timm network cut to the stage outputs that a pyramid needs; `channels` and `strides`, finest first."""

    def __init__(self, name: str, levels: Sequence[int], drop_path: float) -> None:
        super().__init__()
        strides = [2**level for level in levels]
        self.body = _create(name, out_indices=_stages_at(name, strides), drop_path=drop_path)
        self.channels: list[int] = _info(self.body).channels()
        self.strides: list[int] = _info(self.body).reduction()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, H / stride_l, W / stride_l), finest first, of normalized images (B, 3, H, W)."""
        features: list[Tensor] = self.body(images)
        return features


def build_backbone(
    name: str, *, levels: Sequence[int] = (3, 4, 5), drop_path: float = 0.0, norm: NormConfig | None = None
) -> Backbone:
    """A backbone with random weights and stage outputs at strides 2^level.

    Args:
        name: a timm model.
        levels: which outputs; each stride must be one of the model's.
        drop_path: stochastic depth at the last block, growing linearly from 0.
        norm: batch-norm constants; None gives the model's own: an EfficientNet its authors', all others timm's.

    Raises:
        InputError: timm knows no such model, or the model has no such strides.
    """
    backbone = Backbone(name, levels, drop_path)
    if norm is None and EFFICIENTNET.match(name):
        norm = EFFICIENTNET_NORM
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # also the last one of a residual block, unlike timm (TPU code, nn_blocks.py)
            if norm is not None:
                module.momentum, module.eps = norm.momentum, norm.eps
    return backbone


def _create(name: str, *, out_indices: tuple[int, ...], drop_path: float) -> nn.Module:
    options: dict[str, Any] = {"out_indices": out_indices} if out_indices else {}
    if drop_path:
        options["drop_path_rate"] = drop_path
    return timm.create_model(name, pretrained=False, features_only=True, **options)


def _info(body: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, body.feature_info)


def _stages_at(name: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the stage outputs that have these strides."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f" Did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
        raise InputError(
            f"model.backbone: timm {timm.__version__} knows no model {name!r}; any of its convolutional models with "
            f"stages at strides 8, 16, 32 is allowed.{hint} Change model.backbone."
        )
    with torch.device("meta"):
        found = _feature_strides(name)
    if not set(strides) <= set(found) or len(set(found)) < len(found):
        raise InputError(
            f"model.backbone: {name} has features at strides {found}; one at each of {list(strides)} is needed. "
            "Choose a network with stages (resnet50, efficientnet_b0), or other model.min_level and model.max_level."
        )
    return tuple(found.index(stride) for stride in strides)


def _feature_strides(name: str) -> list[int]:
    try:
        strides: list[int] = _info(_create(name, out_indices=(), drop_path=0)).reduction()
    except (RuntimeError, AssertionError, AttributeError) as error:  # timm's answers for models without stages
        raise InputError(
            f"model.backbone: {name} cannot give stage features ({error}); choose a network with stages, for example "
            "resnet50 or efficientnet_b0."
        ) from None
    return strides


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a backbone's body, with the pixel statistics (0 .. 255) that they were trained with."""

    source: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def weights_name(name: str, init: Literal["imagenet", "imagenet++"]) -> str:
    """The full name (model.tag) in timm of the weights that `init` means for a backbone.

    Raises:
        InputError: there are none.
    """
    tag = (IMAGENET_WEIGHTS if init == "imagenet" else NOISY_STUDENT_WEIGHTS).get(name)
    if tag is None and init == "imagenet":
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        tag = next((tag for tag in tags if tag.endswith("in1k") and not OTHER_DATA.search(tag)), None)
    if tag is None:
        table = ", ".join(IMAGENET_WEIGHTS if init == "imagenet" else NOISY_STUDENT_WEIGHTS)
        raise InputError(
            f"model.init: {init} has no weights for {name}; there are some for {table}. "
            "Choose one of these as model.backbone, or give model.init=random or a file of weights."
        )
    return f"{name}.{tag}"


def pretrained_weights(name: str, init: Literal["imagenet", "imagenet++"]) -> TrainedWeights:
    """Trained weights through timm's own download and cache.

    Raises:
        InputError: no such weights, or they cannot be downloaded here; the message says how to hand over a file.
    """
    full = weights_name(name, init)
    try:
        body = timm.create_model(full, pretrained=True, features_only=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] or type(error).__name__
        raise InputError(
            f"model.init: the {init} weights {full} are not in timm's cache and could not be downloaded ({reason}). "
            f"Fetch model.safetensors of https://huggingface.co/timm/{full} on a machine with network access and give "
            "model.init=PATH/model.safetensors, or start from model.init=random."
        ) from None
    cfg = timm.get_pretrained_cfg(full)
    assert cfg is not None, "timm made this model"
    return TrainedWeights(
        full, body.state_dict(), tuple(255 * value for value in cfg.mean), tuple(255 * value for value in cfg.std)
    )


def to_sync_batchnorm(module: nn.Module) -> nn.Module:
    """The module with batch statistics shared by all devices; timm's converter keeps timm's fused activations."""
    converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
