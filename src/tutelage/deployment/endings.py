"""How an exported model ends: what of post-processing is inside, by task and option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tutelage.config import RunConfig
from tutelage.deployment.graphs import CandidateGraph, ClassesGraph, DetectorGraph, LogitsGraph
from tutelage.deployment.onnx_files import CANDIDATES, to_onnx, with_suppression
from tutelage.models.model import Network, RetinaNet, Segmenter
from tutelage.types import InputError

Build = Callable[[Network, RunConfig], Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """One way for a model to end."""

    build: Build  # network in eval mode, config -> ONNX model
    outputs: Mapping[str, str]  # their meaning by name


@dataclass(frozen=True, slots=True)
class Endings:
    """The ways of one task, the first of them the default."""

    option: str  # of `export`
    ways: Mapping[str, Ending]
    constants: tuple[str, ...] = ()  # parts of the config that post-processing goes by

    def choose(self, name: str) -> Ending:
        """The way of that name; the default if it is empty.

        Raises:
            InputError: there is no such way.
        """
        if name and name not in self.ways:
            raise InputError(f"{self.option}: unknown value {name!r}; choose one of {', '.join(self.ways)}.")
        return self.ways[name or next(iter(self.ways))]


def _suppressed(network: Network, config: RunConfig) -> Any:
    if config.postprocess.nms == "soft":
        raise InputError(
            "--nms inside: this model goes by Soft-NMS (postprocess.nms=soft), which ONNX has no operator for; hard "
            "suppression is allowed inside. Take --nms outside and suppress the boxes yourself, or set "
            "postprocess.nms=hard, which changes what is found."
        )
    detector = _detector(network, config)
    model = to_onnx(CandidateGraph(detector, config.postprocess).eval(), config.model.canvas, CANDIDATES)
    return with_suppression(model, len(detector.anchors), network.num_classes, config.postprocess)


def _raw_boxes(network: Network, config: RunConfig) -> Any:
    return to_onnx(_detector(network, config), config.model.canvas, ("boxes", "scores"))


def _detector(network: Network, config: RunConfig) -> DetectorGraph:
    graph = DetectorGraph(cast(RetinaNet, network), config.model.canvas)
    graph.eval()
    return graph


def _classes(network: Network, config: RunConfig) -> Any:
    graph = ClassesGraph(LogitsGraph(cast(Segmenter, network))).eval()
    return to_onnx(graph, config.model.canvas, ("classes", "confidence"))


def _logits(network: Network, config: RunConfig) -> Any:
    return to_onnx(LogitsGraph(cast(Segmenter, network)).eval(), config.model.canvas, ("logits",))


SUPPRESSED = Ending(
    _suppressed,
    {
        "boxes": "(B, D, 4) float32: x1, y1, x2, y2 in canvas pixels from the top left corner, best first",
        "scores": "(B, D) float32 in [0, 1]; 0 beyond the count",
        "labels": "(B, D) int64: index of the class name; -1 beyond the count",
        "counts": "(B,) int64: how many of the D rows are detections",
    },
)
RAW_BOXES = Ending(
    _raw_boxes,
    {
        "boxes": "(B, A, 4) float32: x1, y1, x2, y2 in canvas pixels of every anchor, clipped to the picture",
        "scores": "(B, A, K) float32 in [0, 1]: of every anchor and class, nothing dropped, nothing suppressed",
    },
)
CLASSES = Ending(
    _classes,
    {
        "classes": "(B, H, W) uint8: index of the class name of every canvas pixel; of no meaning in the padding",
        "confidence": "(B, H, W) float32 in [0, 1]: probability of that class",
    },
)
LOGITS = Ending(
    _logits,
    {"logits": "(B, K, H, W) float32: of every canvas pixel, before softmax; of no meaning in the padding"},
)
ENDINGS: Mapping[str, Endings] = {
    "detection": Endings("--nms", {"inside": SUPPRESSED, "outside": RAW_BOXES}, ("postprocess",)),
    "segmentation": Endings("--masks", {"classes": CLASSES, "logits": LOGITS}),
}
