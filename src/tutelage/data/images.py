"""Image files to RGB pixels as a viewer shows them, and the boxes that belong to them.

Files may be members of a tar (`members`). What one is, is told by its content, never by its suffix. Orientation is
applied, so that everything above this file knows one picture: the shown one. Called by the loader, `check`, `predict`
and the readers.

Legend: h, w the shown picture at full resolution; h', w' the decoded pixels, which may be reduced.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from tutelage.config import DataConfig
from tutelage.data.members import file_of, opened, read_bytes
from tutelage.types import InputError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
"""What is read; formats that would start another program (EPS) or hold no photographs are left out."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged content."""

UPRIGHT = 1
# EXIF 2.3, tag 0x0112: what turns stored pixels into shown ones, in this order
FLIPPED_COLUMNS = (2, 3, 7, 8)
FLIPPED_ROWS = (3, 4, 6, 7)
TURNED = (5, 6, 7, 8)  # rows become columns
PAPER = 255  # transparent pixels lie on white, as in the browsers that people annotate in

Pixels = NDArray[np.uint8]


class Vanished(InputError):  # noqa: N818 (it says what happened, as its base does not)
    """The folder that an image lies in is gone: a disk or a share, not a broken file."""


BoxPixels = Literal["upright", "shown by size", "stored by size", "shown by option", "stored by option"]
"""How it was decided which pixels boxes refer to; only the first three are certain."""
STORED: tuple[BoxPixels, ...] = ("stored by size", "stored by option")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an image file says."""

    format: str
    stored_size: tuple[int, int]  # (height, width) before the orientation is applied
    orientation: int  # EXIF 1..8

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as a viewer shows it."""
        height, width = self.stored_size
        return (width, height) if self.orientation in TURNED else (height, width)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image, as shown."""

    pixels: Pixels  # (h', w', 3) RGB; (h, w) over a power of two, rounded up
    info: ImageInfo
    truncated: bool = False  # the file ends early and the rest was filled in

    @property
    def size(self) -> tuple[int, int]:
        """Full-resolution (height, width) as shown, whatever scale was decoded."""
        return self.info.shown_size

    @property
    def orientation(self) -> int:
        """EXIF orientation 1..8 that was applied."""
        return self.info.orientation


def decode(path: Path, data: DataConfig, *, needed_scale: float = 1.0) -> Decoded:
    """RGB pixels of an image file, turned as a viewer shows them.

    Transparency is laid on white; of an animation the first frame is taken; CMYK is converted without a profile;
    16-bit values map `data.range` to 0..255.

    Args:
        path: the file.
        data: `range`, `max_pixels` and `truncated` are used.
        needed_scale: at most this share of the full resolution will be used. A JPEG is then decoded at 1/2, 1/4 or
            1/8 where that still gives `needed_scale`; against a full decode reduced by area, the mean difference is
            below 1.5 of 255 and geometry agrees within one full-resolution pixel.

    Raises:
        InputError: the file is missing, damaged, no image, or larger than `data.max_pixels`.
    """
    content = _read(path)
    try:
        return _decode(content, path, data, needed_scale)
    except InputError:
        raise
    except BROKEN as error:
        if not _ends_early(content, error):
            raise InputError(f"{path}: broken image ({error}). Restore or remove the file.") from None
    return _decode_truncated(content, path, data, needed_scale)


def pixels_of(image: Image.Image, data: DataConfig) -> Pixels:
    """RGB pixels of an open Pillow image, turned as a viewer shows it; as `decode` makes them of a file."""
    return _eight_bit(ImageOps.exif_transpose(image), Path("Pillow image"), data)


def probe(path: Path) -> ImageInfo:
    """Format, size and orientation from the header of an image file; nothing is decoded.

    Raises:
        InputError: the file is missing or no image.
    """
    try:
        with opened(path) as file:
            return _info(_open(file, path))
    except OSError as error:
        raise _unreadable(path, error) from None


def is_image(path: Path) -> bool:
    """Whether the content of a file is an image that can be read, whatever its name."""
    try:
        probe(path)
    except InputError:
        return False
    return True


def file_digest(path: Path) -> str:
    """Hex digest of the content of a file (128 bits)."""
    return hashlib.blake2b(_read(path), digest_size=16).hexdigest()


def oriented_boxes(
    xyxy: NDArray[np.floating], annotated_size: tuple[int, int], info: ImageInfo, boxes_in: str
) -> tuple[NDArray[np.floating], BoxPixels]:
    """Boxes (N, 4) in shown pixels, and how it was decided what they were meant for.

    Annotation tools disagree on whether boxes of a rotated photo refer to the stored or to the shown pixels. Where
    the annotated size equals one of the two alone it decides; else `boxes_in` does (`data.boxes_in`).

    Args:
        xyxy: boxes as annotated.
        annotated_size: (height, width) beside the boxes, (0, 0) where unknown.
        info: of the image file.
        boxes_in: shown or stored.
    """
    how = _meant_for(annotated_size, info, boxes_in)
    return (_turned_boxes(xyxy, info) if how in STORED else xyxy), how


def oriented_mask(mask: Pixels, info: ImageInfo, boxes_in: str) -> Pixels:
    """A mask (h, w) of the stored or the shown picture in shown pixels; which it is, is told as for boxes."""
    return _turned_pixels(mask, info.orientation) if _meant_for(mask.shape, info, boxes_in) in STORED else mask


def _meant_for(annotated_size: tuple[int, ...], info: ImageInfo, boxes_in: str) -> BoxPixels:
    if info.orientation == UPRIGHT:
        return "upright"
    by_size = info.stored_size != info.shown_size and annotated_size in (info.stored_size, info.shown_size)
    stored = annotated_size == info.stored_size if by_size else boxes_in == "stored"
    return _HOW[stored, by_size]


_HOW: dict[tuple[bool, bool], BoxPixels] = {
    (False, True): "shown by size",
    (True, True): "stored by size",
    (False, False): "shown by option",
    (True, False): "stored by option",
}


def _turned_boxes(xyxy: NDArray[np.floating], info: ImageInfo) -> NDArray[np.floating]:
    height, width = info.stored_size
    x1, y1, x2, y2 = xyxy.reshape(-1, 4).T
    if info.orientation in FLIPPED_COLUMNS:
        x1, x2 = width - x2, width - x1
    if info.orientation in FLIPPED_ROWS:
        y1, y2 = height - y2, height - y1
    columns = (y1, x1, y2, x2) if info.orientation in TURNED else (x1, y1, x2, y2)
    return np.stack(columns, axis=-1).astype(xyxy.dtype)


def _turned_pixels(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in FLIPPED_COLUMNS:
        pixels = pixels[:, ::-1]
    if orientation in FLIPPED_ROWS:
        pixels = pixels[::-1]
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    file = file_of(path)
    if _is_gone(file):
        return Vanished(
            f"{file}: is gone, and with it all that was in its folder. Bring the disk, share or folder back, then run "
            "the same command: it continues."
        )
    return InputError(f"{path}: cannot be read ({error.strerror or error}). Restore the file or mend its path.")


def _is_gone(file: Path) -> bool:
    """Whether neither the file nor anything else can be found in its folder."""
    if os.access(file, os.F_OK):
        return False
    try:
        with os.scandir(file.parent) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _open(file: IO[bytes], path: Path) -> ImageFile:
    """The image behind an open file, its header read."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error} Cut it into tiles.") from None
    except UnidentifiedImageError:
        file.seek(0)
        raise InputError(f"{path}: {_looks_like(file.read(512))}. Restore or remove the file.") from None
    except BROKEN as error:
        raise InputError(f"{path}: broken image header ({error}). Restore or remove the file.") from None


def _looks_like(head: bytes) -> str:
    if not head:
        return "is empty (0 bytes)"
    if head.lstrip().lower().startswith((b"<html", b"<!doctype html")):
        return "holds a web page, not an image; a download may have failed"
    return f"is not an image; it must be one of {', '.join(FORMATS)}"


def _info(image: ImageFile) -> ImageInfo:
    try:
        # the base class's: Pillow's PNG plugin decodes the whole image to look for metadata behind the pixels
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
    except BROKEN:  # damaged metadata does not damage the pixels
        orientation = UPRIGHT
    if orientation not in range(1, 9):  # 0 and 65537 are seen in the wild
        orientation = UPRIGHT
    width, height = image.size
    if image.format == "TIFF" and orientation in TURNED:  # Pillow opens these with the shown size
        width, height = height, width
    return ImageInfo(image.format or "", (height, width), orientation)


def _decode(content: bytes, path: Path, data: DataConfig, needed_scale: float) -> Decoded:
    image = _open(io.BytesIO(content), path)
    info = _info(image)
    width, height = image.size
    if width * height > data.max_pixels:
        raise InputError(
            f"{path}: {width} x {height} pixels; at most {data.max_pixels} are allowed, for it may be a decompression "
            "bomb. Remove it, or raise data.max_pixels."
        )
    if image.format == "PNG":
        _open(io.BytesIO(content), path).verify()  # checksums, which loading leaves alone
    if _is_deep(image):
        return Decoded(_turned_pixels(_deep_pixels(content, path, data), info.orientation), info)
    divisor = next(divisor for divisor in (8, 4, 2, 1) if divisor * needed_scale <= 1 or divisor == 1)
    image.draft(None, (max(width // divisor, 1), max(height // divisor, 1)))
    image.load()
    turned_by_pillow = image.format == "TIFF"
    pixels = _eight_bit(image, path, data)
    return Decoded(_turned_pixels(pixels, UPRIGHT if turned_by_pillow else info.orientation), info)


def _ends_early(content: bytes, error: BaseException) -> bool:
    return content[:2] == b"\xff\xd8" and isinstance(error, OSError) and "truncated" in str(error)


def _decode_truncated(content: bytes, path: Path, data: DataConfig, needed_scale: float) -> Decoded:
    """A JPEG that ends early; libjpeg fills in the rest once the end marker is there."""
    if data.truncated == "error":
        raise InputError(f"{path}: this JPEG ends early. Restore or remove it, or set data.truncated=accept.")
    try:
        whole = _decode(content + b"\xff\xd9", path, data, needed_scale)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path}: broken image ({error}). Restore or remove the file.") from None
    return Decoded(whole.pixels, whole.info, truncated=True)


def _is_deep(image: ImageFile) -> bool:
    """Whether this is 16-bit color, of which Pillow would keep the high bytes alone.

    (As it does for gray with alpha, which OpenCV reads with swapped bytes.)
    """
    arguments = image.tile[0].args if image.tile else ""
    rawmode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return (
        image.format in ("PNG", "TIFF")
        and image.mode in ("RGB", "RGBA")
        and "RGB" in str(rawmode)
        and ";16" in str(rawmode)
    )


def _deep_pixels(content: bytes, path: Path, data: DataConfig) -> Pixels:
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise InputError(f"{path}: broken 16-bit image. Restore or remove the file.")
    color = _in_range(stored[..., 2::-1], data)
    if stored.shape[2] == 3:
        return color
    opacity = stored[..., 3:].astype(np.float32) / 65535
    return np.asarray(np.rint(color * opacity + PAPER * (1 - opacity)), np.uint8)


def _in_range(values: NDArray[np.generic], data: DataConfig) -> Pixels:
    low, high = data.range
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), np.uint8)


def _eight_bit(image: Image.Image, path: Path, data: DataConfig) -> Pixels:
    if image.mode.startswith(("I", "F")):
        if not image.mode.startswith("I;16") and data.range == DataConfig().range:
            raise InputError(f"{path}: holds 32-bit values. Set data.range to the values that become 0 and 255.")
        return np.repeat(_in_range(np.asarray(image), data)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (PAPER, PAPER, PAPER, 255))
        image.alpha_composite(layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # which would copy
