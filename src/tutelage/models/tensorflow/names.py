"""Where the authors' files hold the layers of each of our parts of a network.

Names follow from the TPU code: from the variable scopes of resnet.py, spinenet.py, fpn.py, nasfpn.py, heads.py and
efficientnet_model.py, and in a scope from the layers' own names. A layer without one is called by its kind (conv2d,
batch_normalization) and counted in its scope in the order of creation, in which a shortcut comes before its block.
A layer is a module of ours that has tensors, by its name in the part, or what its variables' names begin with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from tutelage.config import ModelConfig
from tutelage.models.heads import RetinaNetHead, SegmentationHead
from tutelage.models.nasfpn import LEVELS, NASFPN
from tutelage.models.pyramids import FPN, LAST_BACKBONE_LEVEL
from tutelage.models.spinenet import NUM_STEM

UNEXPANDED = {
    "conv_dw": "depthwise_conv2d",
    "bn1": "tpu_batch_normalization",
    "se.conv_reduce": "se/conv2d",
    "se.conv_expand": "se/conv2d_1",
    "conv_pw": "conv2d",
    "bn2": "tpu_batch_normalization_1",
}
"""An EfficientNet's block of the first stage: timm's layers, the authors'."""
EXPANDED = {
    "conv_pw": "conv2d",
    "bn1": "tpu_batch_normalization",
    "conv_dw": "depthwise_conv2d",
    "bn2": "tpu_batch_normalization_1",
    "se.conv_reduce": "se/conv2d",
    "se.conv_expand": "se/conv2d_1",
    "conv_pwl": "conv2d_1",
    "bn3": "tpu_batch_normalization_2",
}
"""All other blocks."""


class Part(NamedTuple):
    """One part of a network in the file."""

    layers: dict[str, str]  # ours in the part -> theirs
    scopes: tuple[str, ...]  # what the names of its variables begin with


def _efficientnet(backbone: nn.Module, name: str) -> Part:
    scope = name.removeprefix("tf_").replace("_", "-")
    layers = {"body.conv_stem": f"{scope}/stem/conv2d", "body.bn1": f"{scope}/stem/tpu_batch_normalization"}
    modules = dict(backbone.named_modules())
    for number, block in enumerate(_matching(modules, r"body\.blocks\.\d+\.\d+")):
        table = EXPANDED if f"{block}.conv_pwl" in modules else UNEXPANDED
        layers |= {f"{block}.{ours}": f"{scope}/blocks_{number}/{theirs}" for ours, theirs in table.items()}
    return Part(layers, (f"{scope}/stem/", f"{scope}/blocks_"))


def _resnet(backbone: nn.Module, name: str) -> Part:
    modules = dict(backbone.named_modules())
    pairs = [("body.conv1", "body.bn1")]
    for block in _matching(modules, r"body\.layer\d\.\d+"):
        if f"{block}.downsample" in modules:
            pairs.append((f"{block}.downsample.0", f"{block}.downsample.1"))
        pairs += [(f"{block}.conv{at}", f"{block}.bn{at}") for at in (1, 2, 3)]
    return Part(_counted(pairs, f"{name}/"), (f"{name}/",))


def _spinenet(backbone: nn.Module, _: str) -> Part:
    modules = dict(backbone.named_modules())
    endpoints = _matching(modules, r"endpoints\.\d+")
    first, second = _blocks(modules, "stem.0.blocks"), _blocks(modules, "stem.1")
    layers = _counted(_sequential("stem.0.conv", *first, *second, *endpoints), "spinenet/")
    for number, merge in enumerate(_matching(modules, r"merges\.\d+")):
        scope = f"spinenet/sub_policy{number}/"
        for parent, place in enumerate(("first", "second")):
            steps = (f"{merge}.{place}.{step}" for step in ("reduce", "halve", "expand"))
            pairs = _sequential(*(step for step in steps if step in modules))
            layers |= _counted(pairs, f"{scope}resample_with_alpha_resample_{number}_{parent}/")
        pairs = _sequential(*_blocks(modules, f"{merge}.blocks"))
        layers |= _counted(pairs, f"{scope}scale_permuted_block_{number + NUM_STEM}/")
    return Part(layers, ("spinenet/",))


def _blocks(modules: Mapping[str, nn.Module], group: str) -> Iterator[str]:
    """The convolutions, each with its batch-norm, of a SpineNet's blocks, in their order of creation."""
    for block in _matching(modules, rf"{re.escape(group)}\.\d+"):
        yield from _matching(modules, rf"{re.escape(block)}\.shortcut", nn.Sequential)
        yield from _matching(modules, rf"{re.escape(block)}\.branch\.\d+")


def _matching(modules: Mapping[str, nn.Module], pattern: str, kind: type[nn.Module] = nn.Module) -> list[str]:
    return [name for name, module in modules.items() if re.fullmatch(pattern, name) and isinstance(module, kind)]


def _sequential(*names: str) -> list[tuple[str, str]]:
    """Convolution and batch-norm of modules that begin with them."""
    return [(f"{name}.0", f"{name}.1") for name in names]


def _counted(pairs: Iterable[tuple[str, str]], scope: str) -> dict[str, str]:
    """Convolutions and batch-norms, in the order of creation, to a scope's unnamed layers."""
    layers: dict[str, str] = {}
    for number, (conv, norm) in enumerate(pairs):
        suffix = f"_{number}" if number else ""
        layers |= {conv: f"{scope}conv2d{suffix}", norm: f"{scope}batch_normalization{suffix}"}
    return layers


def _fpn(_: nn.Module, config: ModelConfig) -> Part:
    layers: dict[str, str] = {}
    for at, level in enumerate(range(config.min_level, config.max_level + 1)):
        layers[f"norms.{at}"] = f"fpn/p{level}-bn"
        if level <= LAST_BACKBONE_LEVEL:
            layers |= {f"laterals.{at}": f"fpn/l{level}", f"outputs.{at}": f"fpn/post_hoc_d{level}"}
        else:
            layers[f"extras.{level - LAST_BACKBONE_LEVEL - 1}"] = f"fpn/p{level}"
    return Part(layers, ("fpn/",))


def _nas_fpn(pyramid: nn.Module, config: ModelConfig) -> Part:
    layers: dict[str, str] = {}
    modules = dict(pyramid.named_modules())
    unnamed = "separable_conv2d" if config.pyramid_separable else "conv2d"
    for name in _matching(modules, r"inputs\.\d+", nn.Sequential):
        level = LEVELS[int(name.rpartition(".")[2])]
        layers |= _normalized(name, modules[name], f"resample_l{level}", unnamed)
    for name in _matching(modules, r"cells\.\d+\.convs\.\d+"):
        cell, merge = (int(part) for part in name.split(".")[1::2])
        scope = f"fpn_cells/cell_{cell}/sub_policy{merge}/op_after_combine{len(LEVELS) + merge}"
        layers |= _normalized(name, modules[name], scope, "conv")
    return Part(layers, ("resample_l", "fpn_cells/"))


def _normalized(ours: str, module: nn.Module, scope: str, conv: str) -> dict[str, str]:
    """One convolution of theirs, which is one or two of ours, and the batch-norm after it."""
    *convs, norm = (f"{ours}.{name}" for name, _ in module.named_children())
    return {**dict.fromkeys(convs, f"{scope}/{conv}"), norm: f"{scope}/bn"}


def _retinanet_head(_: nn.Module, config: ModelConfig) -> Part:
    layers: dict[str, str] = {}
    for kind in ("class", "box"):
        scope = f"retinanet/{kind}_net/{kind}-"
        layers[f"{kind}_predictor"] = f"{scope}predict"
        for number in range(config.head_depth):
            layers[f"{kind}_tower.convs.{number}"] = f"{scope}{number}"
            for at, level in enumerate(range(config.min_level, config.max_level + 1)):
                layers[f"{kind}_tower.norms.{at}.{number}"] = f"{scope}{number}-{level}"
    return Part(layers, ("retinanet/",))


def _segmentation_head(_: nn.Module, config: ModelConfig) -> Part:
    layers = {"class_predictor": "segmentation/conv2d"}
    for number in range(config.head_depth):
        layers[f"tower.convs.{number}"] = f"segmentation/class-{number}"
        layers[f"tower.norms.0.{number}"] = f"segmentation/class-{number}-bn"
    return Part(layers, ("segmentation/",))


BACKBONES: dict[str, Callable[[nn.Module, str], Part]] = {
    r"(tf_)?efficientnet_(b\d|l2)": _efficientnet,
    r"resnet(50|101|152|200)": _resnet,  # the smaller ones have a shortcut in the first block that timm's lack
    r"spinenet.*": _spinenet,
}
PARTS: dict[type[nn.Module], Callable[[nn.Module, ModelConfig], Part]] = {
    FPN: _fpn,
    NASFPN: _nas_fpn,
    RetinaNetHead: _retinanet_head,
    SegmentationHead: _segmentation_head,
}
