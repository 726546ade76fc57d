"""What labeled masks hold, found by reading each once: codes, how many pixels of each, and where.

Legend: h, w pixels of a mask; c different codes in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.cores import available_cores
from tutelage.data.masks import Codes, Kind, open_mask, read_codes

COLOR_MODES = ("RGB", "RGBA", "CMYK", "YCbCr")
GRAY = 0x010101  # a value times this is its gray


@dataclass(frozen=True)
class Scan:
    """Content of one mask."""

    kind: Kind  # of its codes
    size: tuple[int, int]  # (h, w)
    codes: NDArray[np.int64]  # (c,) ascending
    pixels: NDArray[np.int64]  # (c,)
    hulls: NDArray[np.int64]  # (c, 4) xyxy pixel edges around all pixels of a code
    digest: int  # 64 bits of a hash of size and codes
    palette: NDArray[np.int64] | None = None  # (c,) colors 0xRRGGBB of the codes, where the file has a palette


def scan_files(paths: Sequence[Path], kind: Kind | None = None) -> list[Scan]:
    """Contents of mask files, read in threads; values and colors as each file has them unless `kind` says which.

    Raises:
        InputError: a mask cannot be read.
    """
    return in_threads(lambda path: scan_file(path, kind), paths)


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results for all items in their order, computed on all cores."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(function, items))


def scan_file(path: Path, kind: Kind | None = None) -> Scan:
    """Content of one mask file (`InputError` where it cannot be read)."""
    with open_mask(path) as image:
        mode, colors = image.mode, image.getpalette("RGB") if image.mode == "P" else None
    kind = kind or ("colors" if mode in COLOR_MODES else "values")
    scan = scan_codes(read_codes(path, kind), kind)
    if colors is None or kind != "values":
        return scan
    table = np.zeros((256, 3), np.int64)
    table[: len(colors) // 3] = np.reshape(colors, (-1, 3))
    return replace(scan, palette=(table[scan.codes] * (1 << 16, 1 << 8, 1)).sum(axis=1))


def scan_codes(codes: Codes, kind: Kind) -> Scan:
    """Content of a mask's codes (h, w): found from runs of equal codes, which are few."""
    height, width = codes.shape
    begins = np.ones((height, width), bool)
    np.not_equal(codes[:, 1:], codes[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=codes.size)
    found, which = np.unique(codes.reshape(-1)[starts], return_inverse=True)
    rows, lefts = np.divmod(starts, width)
    order = np.argsort(which, kind="stable")
    firsts = np.searchsorted(which[order], np.arange(len(found)))
    low = [np.minimum.reduceat(side[order], firsts) for side in (lefts, rows)]
    high = [np.maximum.reduceat(side[order], firsts) for side in (lefts + lengths, rows + 1)]
    pixels = np.bincount(which, lengths, len(found)).astype(np.int64)
    content = hashlib.blake2b(f"{height}x{width}".encode() + codes.tobytes(), digest_size=8)
    digest = int.from_bytes(content.digest(), "little")
    return Scan(kind, (height, width), found.astype(np.int64), pixels, np.stack(low + high, axis=1), digest)


def through_palette(scan: Scan) -> Scan:
    """The same mask by colors: those of its palette, or the grays of its values."""
    if scan.kind == "colors":
        return scan
    colors = scan.codes * GRAY if scan.palette is None else scan.palette
    return merged(replace(scan, kind="colors"), colors)


def merged(scan: Scan, names: NDArray[np.int64]) -> Scan:
    """A scan whose codes (c,) are called otherwise, equal ones made one."""
    codes, which = np.unique(names, return_inverse=True)
    order = np.argsort(which, kind="stable")
    firsts = np.searchsorted(which[order], np.arange(len(codes)))
    hulls = np.concatenate(
        [
            np.minimum.reduceat(scan.hulls[order, :2], firsts),
            np.maximum.reduceat(scan.hulls[order, 2:], firsts),
        ],
        axis=1,
    )
    pixels = np.bincount(which, scan.pixels, len(codes)).astype(np.int64)
    return replace(scan, codes=codes, pixels=pixels, hulls=hulls, palette=None)
