"""Names and shapes of the authors' variables, spelled out as their TPU code creates them, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = range(3, 8)


class Graph:
    """Names variables as TensorFlow 1 does; a layer without a name has its kind's, counted in its scope."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.scopes: list[str] = []
        self.made: Counter[str] = Counter()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self.scopes.append(name)
        yield
        self.scopes.pop()

    def layer(self, kind: str, name: str | None, variables: dict[str, tuple[int, ...]]) -> None:
        if name is None:
            path = "/".join([*self.scopes, kind])
            name = f"{kind}_{self.made[path]}" if self.made[path] else kind
            self.made[path] += 1
        for variable, shape in variables.items():
            self.shapes["/".join([*self.scopes, name, variable])] = shape

    def conv(self, size: int, before: int, after: int, name: str | None = None, bias: bool = False) -> None:
        extra = {"bias": (after,)} if bias else {}
        self.layer("conv2d", name, {"kernel": (size, size, before, after), **extra})

    def separable(self, size: int, before: int, after: int, name: str | None = None) -> None:
        kernels = {"depthwise_kernel": (size, size, before, 1), "pointwise_kernel": (1, 1, before, after)}
        self.layer("separable_conv2d", name, {**kernels, "bias": (after,)})

    def depthwise(self, size: int, channels: int) -> None:
        self.layer("depthwise_conv2d", None, {"depthwise_kernel": (size, size, channels, 1)})

    def norm(self, channels: int, name: str | None = None, kind: str = "batch_normalization") -> None:
        self.layer(kind, name, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,)))

    def normalized(self, size: int, before: int, after: int) -> None:
        self.conv(size, before, after)
        self.norm(after)

    def zeros(self) -> dict[str, NDArray[Any]]:
        return {name: np.zeros(shape, dtype=np.float32) for name, shape in self.shapes.items()}


def efficientnet(graph: Graph) -> None:
    """B0: blocks as efficientnet_builder.py decodes them: repeats, kernel, expansion, input, output."""
    norm = partial(graph.norm, kind="tpu_batch_normalization")
    table = [(1, 3, 1, 32, 16), (2, 3, 6, 16, 24), (2, 5, 6, 24, 40), (3, 3, 6, 40, 80), (3, 5, 6, 80, 112)]
    table += [(4, 5, 6, 112, 192), (1, 3, 6, 192, 320)]
    blocks = [(k, e, o if again else i, o) for r, k, e, i, o in table for again in range(r)]
    with graph.scope("efficientnet-b0"):
        with graph.scope("stem"):
            graph.conv(3, 3, 32)
            norm(32)
        for number, (size, expansion, before, after) in enumerate(blocks):
            wide = before * expansion
            with graph.scope(f"blocks_{number}"):
                if expansion != 1:
                    graph.conv(1, before, wide)
                    norm(wide)
                graph.depthwise(size, wide)
                norm(wide)
                with graph.scope("se"):
                    graph.conv(1, wide, before // 4, bias=True)
                    graph.conv(1, before // 4, wide, bias=True)
                graph.conv(1, wide, after)
                norm(after)
        with graph.scope("head"):
            graph.conv(1, 320, 1280)
            norm(1280)
            graph.layer("dense", None, {"kernel": (1280, 1000), "bias": (1000,)})


def bottleneck(graph: Graph, before: int, filters: int, shortcut: bool) -> None:
    if shortcut:
        graph.normalized(1, before, 4 * filters)
    graph.normalized(1, before, filters)
    graph.normalized(3, filters, filters)
    graph.normalized(1, filters, 4 * filters)


def resnet50(graph: Graph) -> None:
    with graph.scope("resnet50"):
        graph.normalized(7, 3, 64)
        before = 64
        for filters, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for number in range(repeats):
                bottleneck(graph, before, filters, shortcut=number == 0)
                before = 4 * filters


FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
SPINENET = [  # spinenet.py: level, bottleneck, parents
    (2, True, (0, 1)),
    (4, False, (0, 1)),
    (3, True, (2, 3)),
    (4, True, (2, 4)),
    (6, False, (3, 5)),
    (4, True, (3, 5)),
    (5, False, (6, 7)),
    (7, False, (6, 8)),
    (5, True, (8, 9)),
    (5, True, (8, 10)),
    (4, True, (5, 10)),
    (3, True, (4, 10)),
    (5, True, (7, 12)),
    (7, True, (5, 14)),
    (6, True, (12, 14)),
]


def spinenet(graph: Graph, scale: float, alpha: float, repeats: int, endpoints: int) -> None:
    def group(before: int, filters: int, is_bottleneck: bool) -> None:
        for number in range(repeats):
            if is_bottleneck:
                bottleneck(graph, before, filters, shortcut=number == 0 and before != 4 * filters)
                before = 4 * filters
            else:
                graph.normalized(3, filters, filters)
                graph.normalized(3, filters, filters)

    with graph.scope("spinenet"):
        graph.normalized(7, 3, 64)
        small = int(64 * scale)
        group(64, small, True)
        group(4 * small, small, True)
        made = [(2, small, True), (2, small, True)]
        for number, (level, wide, parents) in enumerate(SPINENET):
            filters = int(FILTERS[level] * scale)
            after = 4 * filters if wide else filters
            with graph.scope(f"sub_policy{number}"):
                for at, (its_level, its_filters, its_wide) in enumerate(made[parent] for parent in parents):
                    with graph.scope(f"resample_with_alpha_resample_{number}_{at}"):
                        inner = int(its_filters * alpha)
                        graph.normalized(1, 4 * its_filters if its_wide else its_filters, inner)
                        if its_level < level:
                            graph.normalized(3, inner, inner)
                        graph.normalized(1, inner, after)
                with graph.scope(f"scale_permuted_block_{len(made)}"):
                    group(after, filters, wide)
            made.append((level, filters, wide))
        for number in (11, 10, 12, 14, 13):  # outputs of levels 3 to 7
            graph.normalized(1, 4 * int(FILTERS[SPINENET[number][0]] * scale), endpoints)


def fpn(graph: Graph, channels: tuple[int, ...], width: int) -> None:
    with graph.scope("fpn"):
        for level, before in zip((3, 4, 5), channels, strict=True):
            graph.conv(1, before, width, f"l{level}", bias=True)
            graph.conv(3, width, width, f"post_hoc_d{level}", bias=True)
        for level in (6, 7):
            graph.conv(3, width, width, f"p{level}", bias=True)
        for level in LEVELS:
            graph.norm(width, f"p{level}-bn")


def nas_fpn(graph: Graph, channels: tuple[int, ...], width: int, repeats: int, separable: bool) -> None:
    conv: Callable[..., None] = graph.separable if separable else partial(graph.conv, bias=True)
    for level, before in zip((3, 4, 5), channels, strict=True):
        if before != width:
            with graph.scope(f"resample_l{level}"):
                conv(1, before, width)
                graph.norm(width, "bn")
    for cell in range(repeats):
        for merge in range(7):
            with graph.scope(f"fpn_cells/cell_{cell}/sub_policy{merge}/op_after_combine{5 + merge}"):
                conv(3, width, width, "conv")
                graph.norm(width, "bn")


def retinanet_head(graph: Graph, before: int, width: int, depth: int, num_classes: int) -> None:
    for kind, outputs in (("class", 9 * num_classes), ("box", 9 * 4)):
        with graph.scope(f"retinanet/{kind}_net"):
            for number in range(depth):
                graph.conv(3, width if number else before, width, f"{kind}-{number}", bias=True)
                for level in LEVELS:
                    graph.norm(width, f"{kind}-{number}-{level}")
            graph.conv(3, width, outputs, f"{kind}-predict", bias=True)


def segmentation_head(graph: Graph, width: int, depth: int, num_classes: int) -> None:
    with graph.scope("segmentation"):
        for number in range(depth):
            graph.conv(3, width, width, f"class-{number}", bias=True)
            graph.norm(width, f"class-{number}-bn")
        graph.conv(1, width, num_classes, bias=True)
