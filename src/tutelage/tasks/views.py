"""Test-time views and scales of a canvas: how a network sees it, and the way back for maps of what it says.

A view is `transpose`, then `hflip`, then `vflip`.

Legend: B images, H x W pixels, h x w a map's cells, D values a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.types import InputError


@dataclass(frozen=True, slots=True)
class View:
    """A symmetry of the square; rotations count counterclockwise."""

    transpose: bool = False
    hflip: bool = False
    vflip: bool = False


VIEWS = {
    "identity": View(),
    "hflip": View(hflip=True),
    "vflip": View(vflip=True),
    "rot180": View(hflip=True, vflip=True),
    "transpose": View(transpose=True),
    "antitranspose": View(transpose=True, hflip=True, vflip=True),
    "rot90": View(transpose=True, vflip=True),
    "rot270": View(transpose=True, hflip=True),
}


def view_of(images: Tensor, view: View) -> Tensor:
    """Images (B, 3, H, W) as the view sees them."""
    if view.transpose:
        images = images.transpose(2, 3)
    return _flipped(images, view).contiguous(memory_format=torch.channels_last)


def map_from(seen: Tensor, view: View) -> Tensor:
    """Maps (B, D, h, w) of what `view_of` gave, moved back: what they say of each place of the images themselves."""
    flipped = _flipped(seen, view)
    return flipped.transpose(2, 3) if view.transpose else flipped


def rescaled(images: Tensor, scale: float, stride: int) -> Tensor:
    """Images (B, 3, H, W) at `scale`, sides rounded to multiples of `stride`; as they are at scale 1."""
    if scale == 1:
        return images
    size = [max(1, round(side * scale / stride)) * stride for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def check_passes(views: Sequence[str], scales: Sequence[float]) -> None:
    """Refuses to look not at all.

    Raises:
        InputError: no view, no scale, or a scale that is not above 0.
    """
    if not views or not scales or min(scales) <= 0:
        raise InputError(
            f"label.views={list(views)}, label.scales={list(scales)}: at least one of each, and scales above 0, are "
            "needed. Give label.views=[identity] label.scales=[1.0] for a single pass."
        )


def _flipped(values: Tensor, view: View) -> Tensor:
    axes = [axis for axis, flip in ((2, view.vflip), (3, view.hflip)) if flip]
    return values.flip(axes) if axes else values
