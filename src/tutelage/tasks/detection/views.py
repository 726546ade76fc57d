"""The way back from a test-time view for a detector's raw outputs.

They are mapped back anchor by anchor, so that the outputs of several views can be averaged before decoding.

Legend: B images, h x w a level's map, A anchors, n anchors at a location, D values an anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

import torch
from torch import Tensor

from tutelage.config import AnchorConfig
from tutelage.models.model import DetectionOutputs
from tutelage.ops.anchors import level_sizes, num_anchors
from tutelage.tasks.views import VIEWS, View, check_passes
from tutelage.types import InputError


def outputs_from(
    outputs: DetectionOutputs, view: View, canvas: tuple[int, int], levels: Sequence[int], anchors: AnchorConfig
) -> DetectionOutputs:
    """A view's raw outputs, in float32, as outputs for the images that `view_of` was given, of size `canvas`."""
    logits, deltas = outputs.logits.float(), outputs.deltas.float()
    if view.hflip or view.vflip:
        deltas = deltas * deltas.new_tensor([-1 if view.hflip else 1, -1 if view.vflip else 1, 1, 1])
    if view.transpose:
        deltas = deltas[..., [1, 0, 3, 2]]
    return DetectionOutputs(
        *(_cells_from(values, view, level_sizes(canvas, levels), anchors) for values in (logits, deltas))
    )


def check_views(
    views: Sequence[str], scales: Sequence[float], canvas: tuple[int, int], coarsest: int, anchors: AnchorConfig
) -> None:
    """Refuses views that this network cannot take.

    Args:
        views: names.
        scales: canvas scales.
        canvas: (height, width).
        coarsest: stride of the coarsest level.
        anchors: anchors of a location.

    Raises:
        InputError: flips of a canvas that is no multiple of the coarsest stride, transposes of an oblong canvas or
            with aspect ratios that have no inverse among them, a scale that is not above 0, or no view.
    """
    check_passes(views, scales)
    if set(views) != {"identity"} and any(side % coarsest for side in canvas):
        raise InputError(
            f"label.views: a canvas of {canvas[0]} x {canvas[1]} is no multiple of the coarsest stride {coarsest}, so "
            "that flipped anchors would not meet. Change model.canvas or max_level, or use label.views=[identity]."
        )
    turned = [name for name in views if VIEWS[name].transpose]
    if turned and canvas[0] != canvas[1]:
        raise InputError(
            f"label.views: {', '.join(turned)} need a square canvas, this one is {canvas[0]} x {canvas[1]}. Use "
            "identity, hflip, vflip, rot180, or a square model.canvas."
        )
    if turned:
        _inverse_ratios(anchors.aspect_ratios)


def _cells_from(values: Tensor, view: View, sizes: list[tuple[int, int]], anchors: AnchorConfig) -> Tensor:
    """(B, A, D) of a view, every cell and anchor moved to its place in the identity view."""
    per_cell = num_anchors(anchors)
    order = _turned_anchors(anchors) if view.transpose else []
    counts = [height * width * per_cell for height, width in sizes]
    moved = []
    for level, (height, width) in zip(torch.split(values, counts, dim=1), sizes, strict=True):
        cells = level.reshape(len(level), height, width, per_cell, -1)  # (B, h, w, n, D); square if transposed
        flipped = [axis for axis, flip in ((1, view.vflip), (2, view.hflip)) if flip]
        cells = cells.flip(flipped) if flipped else cells
        cells = cells.transpose(1, 2)[:, :, :, order] if view.transpose else cells
        moved.append(cells.flatten(1, 3))
    return torch.cat(moved, dim=1)


def _turned_anchors(anchors: AnchorConfig) -> list[int]:
    """For each anchor of a cell the one with inverse aspect ratio and the same octave."""
    inverse = _inverse_ratios(anchors.aspect_ratios)
    return [octave * len(inverse) + ratio for octave in range(anchors.octaves) for ratio in inverse]


def _inverse_ratios(ratios: Sequence[float]) -> list[int]:
    found = [[at for at, other in enumerate(ratios) if isclose(ratio * other, 1, rel_tol=1e-3)] for ratio in ratios]
    if not all(found):
        raise InputError(
            f"label.views: transposed views need the inverse of each of model.anchors.aspect_ratios {list(ratios)} "
            "among them. Use identity, hflip, vflip, rot180, or other aspect ratios."
        )
    return [places[0] for places in found]
