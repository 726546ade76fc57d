"""Decoded images, boxes and masks of an index by row; the images and masks of a small set are kept in memory.

Legend: n images, h x w the shown picture at full resolution, h' x w' the decoded pixels, which may be reduced.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.images import ImageInfo, decode, oriented_boxes, oriented_mask, probe
from tutelage.data.index import Index
from tutelage.data.masks import Mask, read_mask
from tutelage.types import IGNORE, Boxes, InputError

PIXEL = (3,)  # bytes of a decoded pixel
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


def shown_mask(index: Index, row: int, data: DataConfig, info: ImageInfo | None = None) -> Mask | None:
    """Mask (h, w) of the shown picture, whatever its EXIF orientation; None where the image has none.

    Pseudo-masks of a store are of the size that they were stored at.

    Raises:
        InputError: it cannot be read, or is of another size than the image.
    """
    file = index.mask_file(row)
    if file is None:
        return None
    mask = read_mask(file)
    if file.coding.kind == "store":
        return mask
    info = info or probe(index.path(row))
    if mask.shape not in (info.shown_size, info.stored_size):
        (height, width), (mask_height, mask_width) = info.shown_size, mask.shape
        raise InputError(
            f"{file.file}: the mask is {mask_width} x {mask_height} pixels; its image {index.path(row)} is "
            f"{width} x {height}, and both must be of one size. Resize the mask (nearest), or pair it with its image."
        )
    return oriented_mask(mask, info, data.boxes_in)


class Pictures:
    """Images of an index by row, and their masks. Pixels are the same bytes with and without the memory."""

    def __init__(
        self, index: Index, data: DataConfig, cache_megabytes: int = 0, mask_size: tuple[int, int] | None = None
    ) -> None:
        """Reads no more than headers.

        Args:
            index: the images.
            data: how they are decoded.
            cache_megabytes: sets that fit decoded are kept, shared by forked workers; 0 keeps none.
            mask_size: (height, width) that masks have at most, or else that of their image; None if none are wanted.

        """
        self.index = index
        self.data = data
        self._infos = _infos_if_small(index, cache_megabytes * 2**20, mask_size)
        self._memory = self._mask_memory = None
        if self._infos:
            shapes = _shapes([info.shown_size if info else (0, 0) for info in self._infos])
            self._memory = DecodedMemory(shapes, PIXEL)
            self._mask_memory = mask_size and DecodedMemory(np.maximum(shapes[:, :1], mask_size), ())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None, "_mask_memory": None}  # a spawned process cannot see it: it decodes

    def info(self, row: int) -> ImageInfo:
        """What the header of an image says.

        Raises:
            InputError: it cannot be read.
        """
        known = self._infos[row] if self._infos else None
        return known or probe(self.index.path(row))

    def pixels(self, row: int, needed_scale: float) -> NDArray[np.uint8]:
        """(h', w', 3) RGB, reduced where `needed_scale` allows it; not to be written to."""
        level = max(level for level, divisor in enumerate(DIVISORS) if level == 0 or 1 / divisor >= needed_scale)
        kept = self._memory.get(row, level) if self._memory else None
        if kept is not None:
            return kept
        pixels = decode(self.index.path(row), self.data, needed_scale=1 / DIVISORS[level]).pixels
        if self._memory:
            self._memory.put(row, pixels, level)
        return pixels

    def mask(self, row: int) -> Mask:
        """(h, w) classes, of any size (see `shown_mask`), all IGNORE where the image has none; not to be written to."""
        kept = self._mask_memory.get(row) if self._mask_memory else None
        if kept is not None:
            return kept
        info = self.info(row)
        mask = shown_mask(self.index, row, self.data, info)
        if mask is None:
            return np.full(info.shown_size, IGNORE, np.uint8)
        if self._mask_memory:
            self._mask_memory.put(row, mask)
        return mask


def _infos_if_small(index: Index, budget: int, mask_size: tuple[int, int] | None) -> list[ImageInfo | None]:
    """Headers of all images if they fit decoded into `budget` bytes, else none; stops at the first that does not.

    None stands for a header that cannot be read, which is said once its image is asked for.
    """
    infos: list[ImageInfo | None] = []
    for row in range(len(index) if budget else 0):
        info = _probed(index.path(row))
        infos.append(info)
        (shapes,) = _shapes([info.shown_size if info else (0, 0)])
        budget -= PIXEL[0] * int(shapes.prod(-1).sum())
        budget -= 0 if mask_size is None else int(np.maximum(shapes[0], mask_size).prod())
        if budget < 0:
            return []
    return infos


def _probed(path: Path) -> ImageInfo | None:
    try:
        return probe(path)
    except InputError:
        return None


def _shapes(sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(n, levels, 2) decoded (h', w') at every reduction."""
    shapes: NDArray[np.int64] = -(-np.array(sizes, np.int64)[:, None] // np.array(DIVISORS)[:, None])
    return shapes


class DecodedMemory:
    """Decoded bytes by row and reduction, in anonymous memory that forked workers share and fill as they decode.

    Two workers that decode the same image write the same bytes; the shape is entered last, under a lock, so that
    nobody sees half an image.
    """

    def __init__(self, shapes: NDArray[np.int64], channels: tuple[int, ...]) -> None:
        """Makes room, which is taken as it is filled.

        Args:
            shapes: (n, levels, 2) expected (h', w').
            channels: behind height and width: (3,) for RGB, () for masks.
        """
        self._shapes = shapes
        self._channels = channels
        self._sizes = shapes.prod(-1) * math.prod(channels)  # (n, levels) bytes
        self._starts = self._sizes.cumsum().reshape(self._sizes.shape) - self._sizes
        self._bytes = np.frombuffer(mmap.mmap(-1, max(1, int(self._sizes.sum()))), np.uint8)
        filled = mmap.mmap(-1, shapes.size * 4)
        self._filled = np.frombuffer(filled, np.int32).reshape(shapes.shape)  # (n, levels, 2) h', w'; 0: empty
        self._lock = multiprocessing.Lock()

    def get(self, row: int, level: int = 0) -> NDArray[np.uint8] | None:
        """(h', w', *channels), read-only; None where it is not known yet."""
        with self._lock:
            height, width = self._filled[row, level].tolist()
        if not height:
            return None
        decoded = self._slot(row, level, height, width)
        decoded.flags.writeable = False
        return decoded

    def put(self, row: int, decoded: NDArray[np.uint8], level: int = 0) -> None:
        """Keeps what fits; a format that knows no reduction fills the slot of the whole image."""
        height, width = decoded.shape[:2]
        if decoded.size > self._sizes[row, self._place(row, level, height, width)]:
            return
        self._slot(row, level, height, width)[:] = decoded
        with self._lock:
            self._filled[row, level] = height, width

    def _place(self, row: int, level: int, height: int, width: int) -> int:
        return 0 if (height, width) == tuple(self._shapes[row, 0]) else level

    def _slot(self, row: int, level: int, height: int, width: int) -> NDArray[np.uint8]:
        start = int(self._starts[row, self._place(row, level, height, width)])
        shape = (height, width, *self._channels)
        return self._bytes[start : start + math.prod(shape)].reshape(shape)
