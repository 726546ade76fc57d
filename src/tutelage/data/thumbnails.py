"""Thumbnails of images as JPEG data URIs, for pages that hold all they show; missing images are counted, not fatal."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import DataConfig
from tutelage.data.images import Decoded, decode
from tutelage.data.members import file_of
from tutelage.types import InputError

QUALITY = 78
"""JPEG quality of the thumbnails."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail and how to get boxes onto it: `(xy - origin) * scale`."""

    href: str  # data URI; empty when the image could not be read
    width: float
    height: float
    origin: tuple[float, float]  # (x, y) of its top left corner in the original
    scale: float  # thumbnail pixels an original pixel

    def place(self, xyxy: Sequence[float] | NDArray[np.float32]) -> tuple[float, float, float, float]:
        """x, y, width, height on the thumbnail of a box in original pixels, cut at the picture's border."""
        left, top = self.origin
        x1, x2 = ((float(x) - left) * self.scale for x in (xyxy[0], xyxy[2]))
        y1, y2 = ((float(y) - top) * self.scale for y in (xyxy[1], xyxy[3]))
        x1, x2 = max(x1, 0.0), min(x2, self.width)
        y1, y2 = max(y1, 0.0), min(y2, self.height)
        return round(x1, 1), round(y1, 1), round(max(x2 - x1, 0.5), 1), round(max(y2 - y1, 0.5), 1)


class Album:
    """Makes thumbnails of a run's images and remembers which were missing."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._data = DataConfig(truncated="accept")
        self.missing: list[str] = []

    def whole(self, path: str, size: tuple[int, int], side: int) -> Picture:
        """The whole image with its longer side at `side` pixels; `size` stands in where the file is missing."""
        decoded = self._decoded(path, size, side)
        height, width = decoded.size if decoded else size
        window = (0.0, 0.0, float(max(width, 1)), float(max(height, 1)))
        return _picture(decoded, window, side)

    def around(self, path: str, xyxy: Sequence[float], side: int) -> Picture:
        """A square cut around a box, with as much around it as inside, `side` pixels large."""
        x1, y1, x2, y2 = xyxy
        reach = max(x2 - x1, y2 - y1, 16.0)
        decoded = self._decoded(path, (int(2 * reach), int(2 * reach)), side)
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        if decoded:
            height, width = decoded.size
            reach = min(reach, width / 2, height / 2)
            center_x = min(max(center_x, reach), width - reach)
            center_y = min(max(center_y, reach), height - reach)
        return _picture(decoded, (center_x - reach, center_y - reach, center_x + reach, center_y + reach), side)

    def _decoded(self, path: str, size: tuple[int, int], side: int) -> Decoded | None:
        """Pixels of an image, None (and a note) where it is missing or unreadable."""
        place = next((root / path for root in self._roots if file_of(root / path).is_file()), None)
        if place is None:
            self.missing.append(path)
            return None
        try:
            return decode(place, self._data, needed_scale=min(1.0, side / max(*size, 1)))
        except InputError:
            self.missing.append(path)
            return None


def _picture(decoded: Decoded | None, window: tuple[float, float, float, float], side: int) -> Picture:
    """The part of an image inside a window (original pixels), with its longer side at `side` pixels."""
    x1, y1, x2, y2 = window
    scale = side / max(x2 - x1, y2 - y1)
    width, height = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)
    if decoded is None:
        return Picture("", width, height, (x1, y1), scale)
    shrunk = decoded.pixels.shape[1] / decoded.size[1], decoded.pixels.shape[0] / decoded.size[0]
    box = (x1 * shrunk[0], y1 * shrunk[1], x2 * shrunk[0], y2 * shrunk[1])
    image = Image.fromarray(decoded.pixels).resize((width, height), Image.Resampling.LANCZOS, box=box)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{data}", width, height, (x1, y1), scale)
