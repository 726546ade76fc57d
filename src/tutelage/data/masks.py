"""Masks as files: what their values mean, and how they become classes.

An index holds masks as paths, nothing more; a `MaskFile` is such a path with the coding of its values, and `read_mask`
decodes it. Called by the loader, evaluation, `check` and the readers.

Legend: h, w pixels of the mask; K classes. A *code* is what a file holds at a pixel: a value, a color 0xRRGGBB, or
ADE20K's R // 10 * 256 + G. A decoded mask is (h, w) uint8: class 0 .. K - 1 or IGNORE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from tutelage.data.images import BROKEN
from tutelage.types import IGNORE, InputError

MAX_CLASSES = 255  # the 256th value is IGNORE
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG")  # JPEG is recognized to be refused
NOT_SHOWN = -1  # label of codes, and of classes, that become IGNORE
NUM_VALUES = 1 << 16  # values are at most 16 bits
QUICK = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
SAMPLE_SCALES = {"L;2": 85, "L;4": 17}  # Pillow spreads samples of 2 and 4 bits over 0..255

Kind = Literal["values", "colors", "ade20k", "store"]
Mask = NDArray[np.uint8]
Codes = NDArray[Any]  # (h, w) unsigned integers


@dataclass(frozen=True)
class MaskCoding:
    """What the codes of mask files mean."""

    kind: Kind
    root: Path  # paths of the masks are relative to it
    table: Mapping[int, int]  # code -> label; NOT_SHOWN becomes IGNORE
    least: tuple[int, ...] = ()  # (K,) kind "store": level in 0..256 below which a class is not kept

    @classmethod
    def of_store(cls, root: Path, least: NDArray[Any]) -> Self:
        """The coding of pseudo-masks: stored classes keep their label where their level is at least `least` (K,)."""
        table = {label: label for label in range(len(least))} | {IGNORE: NOT_SHOWN}
        return cls("store", root, table, tuple(int(level) for level in least))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """What `as_dict` wrote."""
        return cls(raw["kind"], Path(raw["root"]), dict(raw["table"]), tuple(raw["least"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = [[code, label] for code, label in self.table.items()]
        return {"kind": self.kind, "root": str(self.root), "table": pairs, "least": list(self.least)}

    def relabeled(self, shown: NDArray[np.integer]) -> MaskCoding:
        """The same codes with other labels: label k becomes `shown[k]`."""
        table = {code: NOT_SHOWN if label < 0 else int(shown[label]) for code, label in self.table.items()}
        return MaskCoding(self.kind, self.root, table, self.least)

    @cached_property
    def places(self) -> NDArray[np.int16]:
        """Place of every code: 0 is unknown, 1 IGNORE, k + 2 label k.

        (Untouched pages of the 2^24 colors take no memory.)
        """
        places = np.zeros(1 << 24 if self.kind == "colors" else NUM_VALUES, np.int16)
        places[list(self.table)] = np.array(list(self.table.values()), np.int16) + 2
        return places


@dataclass(frozen=True)
class MaskFile:
    """One mask, ready to be read, also in another process."""

    path: str  # below the coding's root; "part-00003.masks.parquet#17" is a row of a part of a store
    coding: MaskCoding
    shown: NDArray[np.int64] | None = field(default=None, compare=False)  # stored label -> label now, NOT_SHOWN: IGNORE

    @property
    def file(self) -> Path:
        """The file that holds it."""
        return self.coding.root / (self.path.rpartition("#")[0] if self.coding.kind == "store" else self.path)


def read_mask(file: MaskFile) -> Mask:
    """(h, w) classes of a mask file, IGNORE where it has none.

    Raises:
        InputError: unreadable, a JPEG, floating point, with transparency, RGB without a table of colors, or a code
            that the coding does not know.
    """
    coding = file.coding
    levels = None
    if coding.kind == "store":
        codes, levels = read_stored(file)
    else:
        codes = read_codes(file.file, coding.kind)
    places = _looked_up(coding.places, codes)
    if not places.all():
        raise unknown_codes(file.file, codes[places == 0], codes.size, coding)
    labels = _labels_by_place(coding, file.shown)
    mask: Mask = labels[places]
    if levels is not None:
        least = np.full(IGNORE + 1, 256, np.uint16)
        least[: len(coding.least)] = coding.least
        mask[levels < _looked_up(least, codes)] = IGNORE
    return mask


def _looked_up(table: NDArray[Any], codes: Codes) -> NDArray[Any]:
    """`table[codes]`, in half the time where codes are bytes."""
    return cv2.LUT(codes, table[: IGNORE + 1]) if codes.dtype == np.uint8 else np.asarray(table[codes])


def read_codes(path: Path, kind: Kind) -> Codes:
    """(h, w) codes of an image file; "values" are indices of palettes too, "colors" and "ade20k" look through them.

    Raises:
        InputError: see `read_mask`.
    """
    try:
        with open_mask(path) as image:
            return _values(image, path) if kind == "values" else _color_codes(image, path, kind)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path}: broken mask ({error}). Restore or remove the file.") from None


def open_mask(path: Path) -> ImageFile:
    """The image behind a mask file, its header read.

    Raises:
        InputError: missing, no image, or a JPEG.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: is no mask: {error}. It must be one of {', '.join(FORMATS[:-1])}.") from None
    except BROKEN as error:
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}). Restore the file."
        ) from None
    if image.format == "JPEG":
        image.close()
        raise InputError(
            f"{path}: is a JPEG, which changes values near edges, so that its classes are lost there. Give the mask "
            "that it was made from, as PNG."
        )
    return image


def unknown_codes(path: Path, unknown: Codes, pixels: int, coding: MaskCoding) -> InputError:
    """The error for the codes (n,) of a mask of so many pixels that its coding does not know."""
    codes, counts = np.unique(unknown, return_counts=True)
    order = np.argsort(-counts)
    shown = ", ".join(f"{code_name(codes[at], coding.kind)} ({counts[at] / pixels:.2%})" for at in order[:5])
    more = f" and {len(codes) - 5} more" if len(codes) > 5 else ""
    known = ", ".join(code_name(code, coding.kind) for code in sorted(coding.table)[:30])
    return InputError(
        f"{path}: holds {'values' if len(codes) > 1 else 'the value'} {shown}{more} of no class (share of its pixels); "
        f"known are {known}{', ...' if len(coding.table) > 30 else ''}. Mend the mask, name the value in data.classes, "
        "or list it in data.ignore_values."
    )


def code_name(code: int, kind: Kind) -> str:
    """A code as people write it: 17, or #FF8000."""
    return f"#{int(code):06X}" if kind == "colors" else str(int(code))


def encode_png(mask: Mask) -> bytes:
    """(h, w) uint8 as a gray PNG, packed quickly."""
    done, packed = cv2.imencode(".png", mask, QUICK)
    assert done, mask.shape
    return packed.tobytes()


def decode_png(content: bytes) -> Mask:
    """What `encode_png` packed.

    Raises:
        InputError: it is no gray PNG of 8 bits.
    """
    mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise InputError("a stored mask is damaged: no gray PNG of 8 bits. Make the store again.")
    return np.asarray(mask, np.uint8)


def _labels_by_place(coding: MaskCoding, shown: NDArray[np.int64] | None) -> Mask:
    highest = max(coding.table.values(), default=-1)
    labels = np.arange(-2, highest + 1)
    if shown is not None:
        labels[2:] = shown[: highest + 1]
    return np.where(labels < 0, IGNORE, labels).astype(np.uint8)


def _values(image: ImageFile, path: Path) -> Codes:
    if image.mode == "F":
        raise InputError(f"{path}: holds floating-point values; a mask has whole numbers. Write it as 8-bit PNG.")
    if image.mode in ("P", "1", "L"):
        scale = SAMPLE_SCALES.get(str(image.tile[0].args), 1) if image.format == "PNG" and image.tile else 1
        values = np.asarray(image).astype(np.uint8, copy=False)
        return values if scale == 1 else values // np.uint8(scale)
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() >= NUM_VALUES:
            raise InputError(
                f"{path}: values from {deep.min()} to {deep.max()}; a mask has 0 to 65535. Write it as 8-bit PNG."
            )
        return deep.astype(np.uint16)
    colors = _opaque_colors(image, path)
    if not (colors == colors[..., :1]).all():
        raise InputError(_colors_without_table(path, colors))
    return np.asarray(colors[..., 0])


def _colors_without_table(path: Path, colors: Mask) -> str:
    codes, counts = np.unique(packed(colors), return_counts=True)
    order = np.argsort(-counts)[:8]
    found = ", ".join(f"{code_name(codes[at], 'colors')} ({counts[at] / counts.sum():.1%})" for at in order)
    example = ", ".join(f'"{code_name(codes[at], "colors")}=NAME"' for at in order[:2])
    return (
        f"{path}: is an RGB mask and nothing says which color is which class; it holds {found}"
        f"{' and more' if len(codes) > 8 else ''}. Name them, data.classes=[{example}, ...]."
    )


def _color_codes(image: ImageFile, path: Path, kind: Kind) -> Codes:
    colors = _opaque_colors(image, path)
    if kind == "colors":
        return packed(colors)
    # ADE20K, full data set, README: ObjectClassMasks = R / 10 * 256 + G, R / 10 being whole
    return colors[..., 0] // np.uint16(10) * np.uint16(256) + colors[..., 1]


def packed(colors: Mask) -> NDArray[np.int32]:
    """(h, w) codes 0xRRGGBB of colors (h, w, 3)."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.int32)


def _opaque_colors(image: ImageFile, path: Path) -> Mask:
    if image.tile and ";16" in str(image.tile[0].args):  # Pillow keeps the upper bytes alone: small values become 0
        raise InputError(f"{path}: holds colors of 16 bits a channel; a mask has 8. Write it as 8-bit PNG.")
    if image.mode in ("RGBA", "LA", "PA") and np.asarray(image.getchannel("A")).min() < 255:
        raise InputError(f"{path}: has transparent pixels, whose class is unclear. Write the mask without alpha.")
    if image.mode == "F" or image.mode.startswith("I"):
        raise InputError(f"{path}: holds {image.mode} values; colors are needed here. Write it as RGB PNG.")
    return np.asarray(image.convert("RGB"))


def read_stored(file: MaskFile) -> tuple[Mask, Mask]:
    """Classes and levels (h, w) of one row of a part of a store, before any threshold.

    Raises:
        InputError: the part is missing or damaged.
    """
    part, firsts = _part(str(file.file))
    row = int(file.path.rpartition("#")[2])
    group = int(np.searchsorted(firsts, row, side="right")) - 1
    table = part.read_row_group(group, columns=["classes", "levels"], use_threads=False)
    at = row - int(firsts[group])
    return decode_png(table["classes"][at].as_py()), decode_png(table["levels"][at].as_py())


@lru_cache(maxsize=32)
def _part(path: str) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """An opened part, and the first row of each of its row groups."""
    try:
        part = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: a part of the store is missing or damaged ({error}). Restore it, or label again."
        ) from None
    rows = [part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)]
    return part, np.cumsum([0, *rows])[:-1]
