"""From raw outputs to a class and a confidence for every pixel asked for, in bounded memory.

Logits stand at the centers of their cells. They are interpolated linearly straight to the centers of the pixels that
are asked for, whatever grid these are on, and only then turned into probabilities; of several passes (views, scales)
the probabilities are averaged there. A strip of rows is in work at a time, so that the memory does not grow with the
picture: about four arrays of K x rows x W floats, rows being as many as `VALUES_AT_ONCE` allows and at least one.

Legend: K classes, P passes, h x w cells of a pass's logits, H x W pixels asked for, n pixels along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VALUES_AT_ONCE = {"cpu": 1 << 20}
"""Class scores (K x rows x W) in work at a time: on a CPU what its cache holds (4 MB), elsewhere 128 MB."""
VALUES_AT_ONCE_ELSEWHERE = 1 << 25
HIGHEST_LEVEL = 255


class Taps(NamedTuple):
    """Along one axis: the two cells that each pixel's center lies between."""

    lower: Tensor  # (n,) int64
    upper: Tensor  # (n,) int64
    weight: Tensor  # (n,) float32 of the upper one


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels that are asked for, and where they lie on the canvas."""

    size: tuple[int, int]  # (H, W)
    step: tuple[float, float]  # canvas pixels from one to the next, along y and x
    start: tuple[float, float]  # canvas (y, x) of the upper left one's corner
    covered: tuple[int, int]  # (height, width) of the canvas that the picture covers, from its top left

    @classmethod
    def of_canvas(cls, covered: tuple[int, int]) -> Self:
        """The pixels of the canvas that the picture covers."""
        return cls(covered, (1.0, 1.0), (0.0, 0.0), covered)

    @classmethod
    def of_original(
        cls, size: tuple[int, int], original: tuple[int, int], matrix: NDArray[np.float64], covered: tuple[int, int]
    ) -> Self:
        """The original picture resized to `size`.

        Args:
            size: (H, W).
            original: (height, width) as shown.
            matrix: (3, 3) original to canvas; it may scale and shift, as all do that are predicted with.
            covered: (height, width) of the canvas.
        """
        assert not matrix[[0, 1], [1, 0]].any(), "pictures that are predicted for are not turned"
        step = (matrix[1, 1] * original[0] / size[0], matrix[0, 0] * original[1] / size[1])
        return cls(size, step, (matrix[1, 2], matrix[0, 2]), covered)

    def taps(self, canvas: tuple[int, int], cells: tuple[int, int]) -> tuple[Taps, Taps]:
        """Taps of rows and of columns among the cells (h, w) that a canvas (height, width) is divided into."""
        rows, columns = (
            _taps(count, step * cell / side, start * cell / side, covered * cell / side)
            for count, step, start, covered, cell, side in zip(
                self.size, self.step, self.start, self.covered, cells, canvas, strict=True
            )
        )
        return rows, columns


def _taps(count: int, step: float, start: float, covered: float) -> Taps:
    """Taps of pixels that stand `step` apart, all in cells from the first one's edge.

    Cells whose center lies beyond `covered`, in the padding, have no say, nor has anything outside: what lies past the
    first or last center takes that cell's value.
    """
    last = max(0, math.ceil(covered - 0.5) - 1)
    centers = start + step * (torch.arange(count, dtype=torch.float64) + 0.5)
    place = (centers - 0.5).clamp(0, last)
    lower = place.floor().long()
    return Taps(lower, (lower + 1).clamp(max=last), (place - lower).float())


def classify(passes: Sequence[Tensor], rows: Sequence[Taps], columns: Sequence[Taps]) -> tuple[Tensor, Tensor]:
    """Class (H, W) uint8 and confidence (H, W) uint8 in 256ths, rounded down: >= 128 is a probability >= 0.5.

    Args:
        passes: P logits (K, h, w) of one image, each of its own size.
        rows: for each pass, taps of the pixels' rows.
        columns: the same of their columns.
    """
    height, width = len(rows[0].lower), len(columns[0].lower)
    classes = torch.empty(height, width, dtype=torch.uint8, device=passes[0].device)
    levels = torch.empty_like(classes)
    at_once = VALUES_AT_ONCE.get(classes.device.type, VALUES_AT_ONCE_ELSEWHERE)
    step = max(1, at_once // (len(passes[0]) * width))
    for start in range(0, height, step):
        strip = slice(start, start + step)
        probabilities = _mean_softmax(passes, [Taps(*(part[strip] for part in each)) for each in rows], columns)
        highest, label = probabilities.max(dim=0)
        classes[strip] = label
        levels[strip] = highest.mul_(HIGHEST_LEVEL + 1).clamp_(max=HIGHEST_LEVEL)  # the cast rounds down
    return classes, levels


def _mean_softmax(passes: Sequence[Tensor], rows: Sequence[Taps], columns: Sequence[Taps]) -> Tensor:
    """Probabilities (K, rows, W) float32, averaged over the passes."""
    total = _interpolated(passes[0], rows[0], columns[0]).softmax(dim=0)
    for logits, along_y, along_x in zip(passes[1:], rows[1:], columns[1:], strict=True):
        total += _interpolated(logits, along_y, along_x).softmax(dim=0)
    return total.div_(len(passes))


def _interpolated(logits: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Logits (K, h, w) at the pixels of a strip: (K, rows, W) float32; columns first, of the needed rows alone."""
    first = int(rows.lower[0])
    needed = logits[:, first : int(rows.upper[-1]) + 1].float()
    wide = _between(needed, 2, columns)
    return _between(wide, 1, Taps(rows.lower - first, rows.upper - first, rows.weight))


def _between(values: Tensor, axis: int, along: Taps) -> Tensor:
    lower, upper, weight = (part.to(values.device) for part in along)
    shape = [len(weight) if place == axis else 1 for place in range(values.ndim)]
    return values.index_select(axis, lower).lerp_(values.index_select(axis, upper), weight.view(shape))
