"""Graphs to ONNX files, and back into onnxruntime: the only place that knows either library.

Legend: B pictures, A anchors, K classes, N boxes that suppression leaves in the whole batch, D detections a picture.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.config import PostprocessConfig
from tutelage.files import atomic
from tutelage.types import InputError

OPSET = 18  # the exporter's own in every torch from 2.8 on
CANDIDATES = ("all_boxes", "all_scores")  # what goes from a detector's graph to its suppression
EXAMPLE = 2  # pictures that the network is traced with; one would be taken for a constant


def require_onnx(*packages: str) -> None:
    """Refuses to go on without what exporting or running needs (`InputError`)."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise InputError(
                f"{name}: is not installed; ONNX files need it. Install it with pip install '.[onnx]' in a checkout."
            ) from None


def to_onnx(graph: nn.Module, canvas: tuple[int, int], outputs: Sequence[str]) -> Any:
    """The ONNX model of a graph with inputs `images` and `valid`, for any number of pictures.

    Args:
        graph: in eval mode, in float32 on the CPU.
        canvas: (height, width).
        outputs: their names.
    """
    require_onnx("onnx", "onnxscript")
    images = torch.zeros(EXAMPLE, *canvas, 3, dtype=torch.uint8)
    valid = torch.tensor([canvas] * EXAMPLE)
    batch = {0: torch.export.Dim("B")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own code
        program = torch.onnx.export(
            graph,
            (images, valid),
            dynamo=True,
            dynamic_shapes=(batch, batch),
            opset_version=OPSET,
            input_names=["images", "valid"],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None, "dynamo=True returns the program"
    return program.model_proto


def with_suppression(model: Any, num_anchors: int, num_classes: int, postprocess: PostprocessConfig) -> Any:
    """The model of a `CandidateGraph`, whose outputs are named `CANDIDATES`, with hard suppression behind it.

    Outputs become boxes (B, D, 4), scores (B, D), labels (B, D) int64 and counts (B,) int64, best first; rows beyond
    the count are 0, labels -1.
    """
    import onnx
    import onnx.compose
    import onnx.parser

    tail = onnx.parser.parse_model(_suppression(model.ir_version, num_anchors, num_classes, postprocess))
    return onnx.compose.merge_models(model, tail, io_map=[(name, name) for name in CANDIDATES])


def _suppression(version: int, num_anchors: int, num_classes: int, postprocess: PostprocessConfig) -> str:
    """Suppression as ONNX text. Survivors keep their score at their place, all others 0; the best places are taken."""
    most = min(postprocess.max_detections, num_anchors * num_classes)
    return f"""
    <ir_version: {version}, opset_import: ["": {OPSET}]>
    suppression (float[B, {num_anchors}, 4] all_boxes, float[B, {num_anchors}, {num_classes}] all_scores)
      => (float[B, {most}, 4] boxes, float[B, {most}] scores, int64[B, {most}] labels, int64[B] counts)
    {{
      zero = Constant <value = float {{0.0}}> ()
      threshold = Constant <value = float[1] {{{postprocess.nms_iou}}}> ()
      least = Constant <value = float[1] {{0.0}}> ()
      most = Constant <value = int64[1] {{{most}}}> ()
      anchors = Constant <value = int64 {{{num_anchors}}}> ()
      nobody = Constant <value = int64 {{-1}}> ()
      last = Constant <value = int64[1] {{-1}}> ()
      joined = Constant <value = int64[2] {{0, -1}}> ()
      by_class = Transpose <perm = [0, 2, 1]> (all_scores)
      survivors = NonMaxSuppression (all_boxes, by_class, most, threshold, least)
      shape = Shape (by_class)
      nothing = ConstantOfShape <value = float[1] {{0.0}}> (shape)
      kept_scores = GatherND (by_class, survivors)
      kept = ScatterND (nothing, survivors, kept_scores)
      flat = Reshape (kept, joined)
      scores, places = TopK <axis = 1> (flat, most)
      found = Greater (scores, zero)
      classes = Div (places, anchors)
      labels = Where (found, classes, nobody)
      anchor = Mod (places, anchors)
      which = Unsqueeze (anchor, last)
      best = GatherND <batch_dims = 1> (all_boxes, which)
      found_boxes = Unsqueeze (found, last)
      boxes = Where (found_boxes, best, zero)
      numbers = Cast <to = 7> (found)
      axis = Constant <value = int64[1] {{1}}> ()
      counts = ReduceSum <keepdims = 0> (numbers, axis)
    }}
    """


def save_onnx(path: Path, model: Any, notes: Mapping[str, str]) -> None:
    """Checks a model and writes it atomically, with notes that tools show.

    Raises:
        InputError: the disk is full or not writable.
    """
    import onnx
    import onnx.helper

    onnx.helper.set_model_props(model, dict(notes))
    onnx.checker.check_model(model)
    with atomic(path) as temporary:
        onnx.save(model, str(temporary))


class OnnxModel:
    """An ONNX file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Opens the file.

        Args:
            path: the file.
            threads: compute threads; 0 leaves the choice to onnxruntime.

        Raises:
            InputError: onnxruntime is not installed, or there is no such file.
        """
        require_onnx("onnxruntime")
        import onnxruntime

        if not path.is_file():
            raise InputError(f"{path}: does not exist; an ONNX file is needed. Make it with tutelage export.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: NDArray[np.uint8], valid: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Outputs by name, for images (B, H, W, 3) RGB that cover `valid` (B, 2) of the canvas."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {"images": images, "valid": valid}), strict=True))
