"""Decoded images and boxes of an index by row; the images of a small set are kept in memory.

Legend: n images, h x w the shown picture at full resolution, h' x w' the decoded pixels, which may be reduced.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.images import ImageInfo, decode, oriented_boxes, probe
from tutelage.data.index import Index
from tutelage.types import Boxes

DIVISORS = (1, 2, 4, 8)
"""Reductions of a JPEG that cost less than decoding it whole."""


def shown_boxes(index: Index, row: int, data: DataConfig, info: ImageInfo | None = None) -> Boxes:
    """Boxes of an image in pixels of the shown picture, whatever its EXIF orientation.

    Raises:
        InputError: the image has boxes and its header cannot be read.
    """
    boxes = index.boxes(row)
    if index.shown or not len(boxes):
        return boxes
    xyxy, _ = oriented_boxes(boxes.xyxy, index.size(row), info or probe(index.path(row)), data.boxes_in)
    return replace(boxes, xyxy=xyxy.astype(np.float32))


class Pictures:
    """Images of an index by row. Pixels are the same bytes with and without the memory."""

    def __init__(self, index: Index, data: DataConfig, cache_megabytes: int = 0) -> None:
        """Reads no more than headers.

        Args:
            index: the images.
            data: how they are decoded.
            cache_megabytes: sets that fit decoded are kept, shared by forked workers; 0 keeps none.

        Raises:
            InputError: the header of an image of a small set cannot be read.
        """
        self.index = index
        self.data = data
        self._infos = _infos_if_small(index, cache_megabytes * 2**20)
        self._memory = PixelMemory([info.shown_size for info in self._infos]) if self._infos else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}  # a spawned process cannot see the memory: it decodes

    def info(self, row: int) -> ImageInfo:
        """What the header of an image says."""
        return self._infos[row] if self._infos else probe(self.index.path(row))

    def pixels(self, row: int, needed_scale: float) -> NDArray[np.uint8]:
        """(h', w', 3) RGB, reduced where `needed_scale` allows it; not to be written to."""
        level = max(level for level, divisor in enumerate(DIVISORS) if level == 0 or 1 / divisor >= needed_scale)
        kept = self._memory.get(row, level) if self._memory else None
        if kept is not None:
            return kept
        pixels = decode(self.index.path(row), self.data, needed_scale=1 / DIVISORS[level]).pixels
        if self._memory:
            self._memory.put(row, level, pixels)
        return pixels


def _infos_if_small(index: Index, budget: int) -> list[ImageInfo]:
    """Headers of all images if they fit decoded into `budget` bytes, else none; stops at the first that does not."""
    infos = []
    for row in range(len(index) if budget else 0):
        infos.append(probe(index.path(row)))
        budget -= int(_num_bytes([infos[-1].shown_size]).sum())
        if budget < 0:
            return []
    return infos


def _shapes(sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(n, levels, 2) decoded (h', w') at every reduction."""
    shapes: NDArray[np.int64] = -(-np.array(sizes, np.int64)[:, None] // np.array(DIVISORS)[:, None])
    return shapes


def _num_bytes(sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(n, levels) bytes of decoded pixels."""
    capacities: NDArray[np.int64] = 3 * _shapes(sizes).prod(-1)
    return capacities


class PixelMemory:
    """Decoded pixels by row and reduction, in anonymous memory that forked workers share and fill as they decode.

    Two workers that decode the same image write the same bytes; the shape is entered last, under a lock, so that
    nobody sees half an image.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._shapes = _shapes(sizes)
        ends = _num_bytes(sizes).cumsum().reshape(self._shapes.shape[:2])
        self._starts = ends - _num_bytes(sizes)
        self._bytes = np.frombuffer(mmap.mmap(-1, int(ends[-1, -1])), np.uint8)
        filled = mmap.mmap(-1, self._shapes.size * 4)
        self._filled = np.frombuffer(filled, np.int32).reshape(self._shapes.shape)  # (n, levels, 2) h', w'; 0: empty
        self._lock = multiprocessing.Lock()

    def get(self, row: int, level: int) -> NDArray[np.uint8] | None:
        """Pixels (h', w', 3), read-only; None where they are not known yet."""
        with self._lock:
            height, width = self._filled[row, level].tolist()
        if not height:
            return None
        pixels = self._slot(row, level, height, width)
        pixels.flags.writeable = False
        return pixels

    def put(self, row: int, level: int, pixels: NDArray[np.uint8]) -> None:
        """Keeps pixels; a format that knows no reduction fills the slot of the whole image."""
        height, width = pixels.shape[:2]
        if (height, width) not in (tuple(self._shapes[row, 0]), tuple(self._shapes[row, level])):
            return
        self._slot(row, level, height, width)[:] = pixels
        with self._lock:
            self._filled[row, level] = height, width

    def _slot(self, row: int, level: int, height: int, width: int) -> NDArray[np.uint8]:
        whole = (height, width) == tuple(self._shapes[row, 0])
        start = int(self._starts[row, 0 if whole else level])
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)
