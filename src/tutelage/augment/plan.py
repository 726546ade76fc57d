"""What one image will undergo: drawn by `policies`, carried out by `apply`.

All places are pixel edges: of the original image, full resolution as shown, for `BoxOperation`; of the canvas
for `Hole`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.ops.affine import Matrix, magnification


@dataclass(frozen=True, slots=True)
class BoxOperation:
    """An operation on the picture inside one box, whose coordinates stay."""

    name: str  # an operation of `ops`
    amount: float  # its parameter; distances are pixels of the original image
    box: tuple[float, float, float, float]
    center: tuple[float, float]  # of Cutout, as fractions of the box's width and height


@dataclass(frozen=True, slots=True)
class ColorOperation:
    """An operation on the pixels' values."""

    name: str
    amount: float


@dataclass(frozen=True, slots=True)
class Hole:
    """A quadrilateral of the canvas that is painted over."""

    corners: NDArray[np.float64]  # (4, 2) canvas pixels


@dataclass(frozen=True, slots=True)
class Plan:
    """Source operations on the decoded image, one warp, canvas operations on the warped one."""

    matrix: Matrix  # (3, 3) original (x, y, 1) -> canvas
    canvas: tuple[int, int]  # (height, width) of the result
    valid: tuple[int, int]  # (height, width) at its top left that show the image; the rest is padding
    source_ops: tuple[BoxOperation, ...] = ()
    canvas_ops: tuple[ColorOperation | Hole, ...] = ()
    drawn: tuple[tuple[str, float], ...] = ()  # the policy's operations and parameters in their order, to be read

    @property
    def min_scale(self) -> float:
        """The least decoded size over the original size (at most 1) from which nothing needs to be enlarged."""
        return min(1.0, magnification(self.matrix))
