"""SpineNet (arXiv:1912.05027; TPU detection code, spinenet.py): a backbone that is its own feature pyramid.

Scales are permuted: blocks of all levels follow one another in an order found by search, each fed by two earlier ones.
A level's stride is 2^level. Legend: B images, H x W pixels, W_e the endpoints' width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tutelage.config import NormConfig
from tutelage.models.pyramids import ACTIVATIONS, batch_norm
from tutelage.types import InputError

FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
"""Filters of a block by level, before scaling."""
EXPANSION = 4  # output over filters of a bottleneck
STEM_WIDTH = 64  # not scaled
SMALLEST = 64  # pixels
NORMAL_IN_2_SIGMA = 0.87962566103423978
"""Standard deviation of a unit normal cut at two; by it TensorFlow's variance scaling corrects its truncated normal."""


class Node(NamedTuple):
    """A group of blocks, and what it is fed."""

    level: int
    bottleneck: bool  # blocks of 1x1, 3x3, 1x1; else of 3x3, 3x3
    parents: tuple[int, ...] = ()  # two earlier nodes; none in the stem
    extra: int | None = None  # node of the same size that is summed in besides, since no other takes it


NODES = (
    Node(2, True),  # nodes 0 and 1: the stem
    Node(2, True),
    Node(2, True, (0, 1)),
    Node(4, False, (0, 1)),
    Node(3, True, (2, 3)),
    Node(4, True, (2, 4)),  # node 5
    Node(6, False, (3, 5)),
    Node(4, True, (3, 5)),
    Node(5, False, (6, 7)),
    Node(7, False, (6, 8)),
    Node(5, True, (8, 9)),  # node 10
    Node(5, True, (8, 10)),
    Node(4, True, (5, 10)),  # 12: level 4 of the output
    Node(3, True, (4, 10)),  # 13: level 3
    Node(5, True, (7, 12), extra=11),  # 14: level 5
    Node(7, True, (5, 14)),  # 15: level 7
    Node(6, True, (12, 14)),  # 16: level 6
)
NUM_STEM = 2
OUTPUTS = (13, 12, 14, 16, 15)
"""Nodes that become endpoints, finest first."""
LEVELS = (3, 4, 5, 6, 7)


class SpineNetShape(NamedTuple):
    """What tells one SpineNet from another."""

    scale: float  # of FILTERS
    alpha: float  # of a parent's filters where it is resampled
    repeats: int  # blocks a node

    def filters(self, node: Node) -> int:
        """Filters of a node's blocks."""
        return int(FILTERS[node.level] * self.scale)

    def channels(self, node: Node) -> int:
        """Channels of a node's output."""
        return self.filters(node) * (EXPANSION if node.bottleneck else 1)


SPINENETS = {
    "spinenet49s": SpineNetShape(0.65, 0.5, 1),
    "spinenet49": SpineNetShape(1.0, 0.5, 1),
    "spinenet96": SpineNetShape(1.0, 0.5, 2),
    "spinenet143": SpineNetShape(1.0, 1.0, 3),
    "spinenet143l": SpineNetShape(1.3, 1.0, 3),
    "spinenet190": SpineNetShape(1.3, 1.0, 4),
    "spinenet-tiny": SpineNetShape(0.125, 0.5, 1),  # ours, for tests
}


@dataclass(frozen=True)
class Layers:
    """Makes convolutions without bias, with batch-norm and activation."""

    activation: str
    norm: NormConfig

    def act(self) -> nn.Module:
        """The activation; not in place where the backward pass needs its input, which would be copied."""
        return ACTIVATIONS[self.activation](inplace=self.activation == "relu")

    def conv(self, channels: int, width: int, kernel: int = 1, stride: int = 1, act: bool = True) -> nn.Sequential:
        """Convolution with symmetric padding, batch-norm, and the activation if `act`."""
        conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, batch_norm(width, self.norm), *([self.act()] if act else []))


class Block(nn.Module):
    """A residual block, a bottleneck or not; stochastic depth drops its branch, for each image by itself."""

    def __init__(self, layers: Layers, channels: int, filters: int, bottleneck: bool, drop_path: float) -> None:
        super().__init__()
        kernels, width = ((1, 3, 1), EXPANSION * filters) if bottleneck else ((3, 3), filters)
        widths = [channels] + [filters] * (len(kernels) - 1) + [width]
        last = len(kernels) - 1
        self.branch = nn.Sequential(
            *(
                layers.conv(before, after, kernel, act=at < last)
                for at, (kernel, (before, after)) in enumerate(zip(kernels, pairwise(widths), strict=True))
            )
        )
        self.shortcut = nn.Identity() if channels == width else layers.conv(channels, width, act=False)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.activation = layers.act()

    def forward(self, feature: Tensor) -> Tensor:
        """A map of the same size."""
        out: Tensor = self.activation(self.drop_path(self.branch(feature)) + self.shortcut(feature))
        return out


class Stem(nn.Module):
    """From images to node 0: a strided convolution, a maximum, and the first blocks."""

    def __init__(self, layers: Layers, shape: SpineNetShape) -> None:
        super().__init__()
        self.conv = layers.conv(3, STEM_WIDTH, kernel=7, stride=2)
        self.blocks = _blocks(layers, shape, NODES[0], STEM_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """A map at stride 4."""
        out: Tensor = self.blocks(_max_pool(self.conv(images), window=3, stride=2))
        return out


class Resample(nn.Module):
    """A parent brought to a node's size and width.

    Enlarging comes last: repeating pixels commutes with a 1x1 convolution and leaves the statistics of a batch as they
    are, exactly so where sizes are whole multiples; before the convolution, as in the TPU code, it costs more.
    """

    def __init__(self, layers: Layers, shape: SpineNetShape, parent: Node, node: Node) -> None:
        super().__init__()
        inner = int(shape.filters(parent) * shape.alpha)
        self.reduce = layers.conv(shape.channels(parent), inner)
        self.halve = layers.conv(inner, inner, kernel=3, stride=2) if parent.level < node.level else None
        self.expand = layers.conv(inner, shape.channels(node), act=False)

    def forward(self, parent: Tensor, size: tuple[int, int]) -> Tensor:
        """The parent at `size`."""
        feature = self.reduce(parent)
        if self.halve is not None:
            feature = _shrunk(self.halve(feature), parent.shape[-1], size)
        return _resized(self.expand(feature), size)


class Merge(nn.Module):
    """A node: its parents resampled and summed, the activation, and its blocks."""

    def __init__(self, layers: Layers, shape: SpineNetShape, node: Node, drop_path: float) -> None:
        super().__init__()
        self.first, self.second = (Resample(layers, shape, NODES[parent], node) for parent in node.parents)
        self.activation = layers.act()
        self.blocks = _blocks(layers, shape, node, shape.channels(node), drop_path)

    def forward(self, first: Tensor, second: Tensor, size: tuple[int, int], extra: Tensor | None = None) -> Tensor:
        """The node's map, of `size`."""
        merged = self.first(first, size) + self.second(second, size)
        if extra is not None:
            merged = merged + extra
        out: Tensor = self.blocks(self.activation(merged))
        return out


class SpineNet(nn.Module):
    """Levels 3 to 7 of one width, by the interface of `backbones.Backbone`."""

    def __init__(self, name: str, *, endpoint_width: int, drop_path: float, activation: str, norm: NormConfig) -> None:
        """A network with random weights.

        Args:
            name: key of SPINENETS.
            endpoint_width: channels of the outputs.
            drop_path: stochastic depth at the last of the 15 merges, growing linearly from a 15th of it at the first.
            activation: key of ACTIVATIONS; the published networks have silu.
            norm: batch-norm constants.
        """
        super().__init__()
        self.channels = [endpoint_width] * len(LEVELS)
        self.strides = [2**level for level in LEVELS]
        shape, layers, merges = SPINENETS[name], Layers(activation, norm), NODES[NUM_STEM:]
        second = _blocks(layers, shape, NODES[1], shape.channels(NODES[0]))
        self.stem = nn.ModuleList((Stem(layers, shape), second))
        self.merges = nn.ModuleList(
            Merge(layers, shape, node, drop_path * number / len(merges)) for number, node in enumerate(merges, 1)
        )
        self.endpoints = nn.ModuleList(layers.conv(shape.channels(NODES[at]), endpoint_width) for at in OUTPUTS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _variance_scaling(module.weight)

    @property
    def body(self) -> nn.Module:
        """Where foreign weights go: all of it."""
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, W_e, H / stride_l, W / stride_l), finest first, of normalized images (B, 3, H, W).

        Raises:
            InputError: images of 64 px or less, whose levels 6 and 7 would both be one cell.
        """
        height, width = images.shape[-2:]
        if min(height, width) <= SMALLEST:
            raise InputError(
                f"model.backbone: a SpineNet reaches stride {self.strides[-1]} and images are {height} x {width}; both "
                f"sides must be above {SMALLEST}. Enlarge model.canvas (pretrain.size, joint.size), or take another "
                "backbone."
            )
        maps = [self.stem[0](images)]
        maps.append(self.stem[1](maps[0]))
        for node, merge in zip(NODES[NUM_STEM:], self.merges, strict=True):
            size = _cells(height, node.level), _cells(width, node.level)
            extra = None if node.extra is None else maps[node.extra]
            maps.append(merge(*(maps[parent] for parent in node.parents), size, extra))
        return [endpoint(maps[at]) for endpoint, at in zip(self.endpoints, OUTPUTS, strict=True)]


def _blocks(layers: Layers, shape: SpineNetShape, node: Node, channels: int, drop_path: float = 0.0) -> nn.Sequential:
    """A node's blocks; only the first can have another number of channels before it."""
    widths = [channels] + [shape.channels(node)] * (shape.repeats - 1)
    return nn.Sequential(*(Block(layers, width, shape.filters(node), node.bottleneck, drop_path) for width in widths))


def _cells(pixels: int, level: int) -> int:
    return math.ceil(pixels / (1 << level))


def _shrunk(feature: Tensor, before: int, size: tuple[int, int]) -> Tensor:
    """What the strided convolution has halved, at `size`, by a maximum; `before` was its width before that."""
    target = size[1]
    if before // target > 2:
        stride = before // target // 2 if before % target == 0 else 2
        feature = _max_pool(feature, window=3 if before <= 4 * target else 5, stride=stride)
    return _resized(feature, size)


def _resized(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[-2:] == size else F.interpolate(feature, size, mode="nearest")


def _max_pool(feature: Tensor, window: int, stride: int) -> Tensor:
    """TensorFlow's SAME max-pooling: sizes are divided and rounded up; an odd border cell lies at the far end."""
    sizes = feature.shape[-2:]
    borders = [max(0, (math.ceil(size / stride) - 1) * stride + window - size) for size in sizes]
    return F.max_pool2d(feature, window, stride, [border // 2 for border in borders], ceil_mode=True)


def _variance_scaling(kernel: Tensor) -> None:
    """TensorFlow's default of it: scale 1, fan in, a normal distribution cut at two standard deviations."""
    std = 1 / math.sqrt(kernel[0].numel()) / NORMAL_IN_2_SIGMA
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
