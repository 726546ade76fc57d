"""One look at every image of an index: can it be used, what does it look like; kept in the cache.

Check, leak search and domain gap all read the result, so that images are opened once. JPEGs are decoded at reduced
scale, which still reads every byte of them.

Legend: n images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.cores import available_cores
from tutelage.data.images import decode, file_digest, probe
from tutelage.data.index import Index, cache_folder, cache_key
from tutelage.data.members import file_of
from tutelage.files import atomic
from tutelage.types import InputError

LAYOUT = 1  # changes with anything that is computed here, so that older caches are not used
SIDE = 96  # pixels of the shorter side that everything is computed at
THUMBNAIL = 24
STEP = 2  # gray levels; smaller steps are noise, whose bits would differ between copies of a flat picture
TRAITS = ("brightness", "contrast", "saturation", "red to green", "blue to yellow", "size", "aspect", "sharpness")
NAMED = 5  # broken files named in an error


@dataclass(frozen=True, slots=True)
class Prints:
    """What images look like, for telling copies; arrays by image."""

    digests: NDArray[np.uint64]  # (n, 2) of the file's bytes
    hashes: NDArray[np.uint64]  # (n,) difference hashes
    thumbnails: NDArray[np.uint8]  # (n, THUMBNAIL, THUMBNAIL) gray

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, rows: NDArray[Any]) -> Self:
        """Those of some images."""
        return type(self)(self.digests[rows], self.hashes[rows], self.thumbnails[rows])


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look at each image found; arrays by image, zeros where it cannot be used."""

    stored: NDArray[np.int32]  # (n, 2) (height, width) in the file
    sizes: NDArray[np.int32]  # (n, 2) (height, width) as shown
    orientation: NDArray[np.int8]  # (n,) EXIF
    truncated: NDArray[np.bool_]  # (n,) ends early, accepted
    traits: NDArray[np.float32]  # (n, len(TRAITS))
    digests: NDArray[np.uint64]  # (n, 2)
    hashes: NDArray[np.uint64]  # (n,)
    thumbnails: NDArray[np.uint8]  # (n, THUMBNAIL, THUMBNAIL)
    reasons: NDArray[np.str_]  # (n,) why it cannot be used; empty where it can

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) whether each image can be used."""
        return np.asarray(self.reasons == "")

    @property
    def prints(self) -> Prints:
        """What the images look like."""
        return Prints(self.digests, self.hashes, self.thumbnails)


def survey(index: Index, data: DataConfig, *, tolerant: bool = False) -> Survey:
    """A look at every image of `index`, from the cache where nothing changed.

    Args:
        index: the images.
        data: how they are decoded.
        tolerant: record images that cannot be used instead of raising.

    Raises:
        InputError: images cannot be used; the first few are named. Not when `tolerant`.
    """
    paths = [index.path(row) for row in range(len(index))]
    cached = cache_folder().with_name("surveys") / f"{_key(paths, data)}.npz"
    if cached.is_file():
        with np.load(cached) as arrays:
            return Survey(**arrays)
    found = _survey(paths, data)
    if not found.usable.all():
        return found if tolerant else _refuse(found.reasons[~found.usable], len(found))
    cached.parent.mkdir(exist_ok=True)
    with atomic(cached) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{field.name: getattr(found, field.name) for field in fields(found)})
    return found


def _refuse(reasons: NDArray[np.str_], count: int) -> Survey:
    if len(reasons) == 1:
        raise InputError(str(reasons[0]))
    more = f"\nand {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    named = "\n".join(reasons[:NAMED])
    raise InputError(f"{len(reasons)} of {count} images cannot be used:\n{named}{more}")


def _key(paths: Iterable[Path], data: DataConfig) -> str:
    content = hashlib.sha256()
    for path in paths:
        try:
            status = file_of(path).stat()
        except OSError:
            continue
        content.update(f"{path}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return cache_key("survey", LAYOUT, content.hexdigest(), data.range, data.max_pixels, data.truncated)


def _survey(paths: list[Path], data: DataConfig) -> Survey:
    with ThreadPoolExecutor(available_cores()) as pool:
        looks = list(pool.map(lambda path: _look(path, data), paths))
    columns = zip(*looks, strict=True) if looks else [[]] * len(_COLUMNS)
    arrays = {
        name: np.array(list(column), dtype).reshape(-1, *shape)
        for (name, (dtype, shape)), column in zip(_COLUMNS.items(), columns, strict=True)
    }
    return Survey(**arrays)


_COLUMNS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "stored": (np.int32, (2,)),
    "sizes": (np.int32, (2,)),
    "orientation": (np.int8, ()),
    "truncated": (np.bool_, ()),
    "traits": (np.float32, (len(TRAITS),)),
    "digests": (np.uint64, (2,)),
    "hashes": (np.uint64, ()),
    "thumbnails": (np.uint8, (THUMBNAIL, THUMBNAIL)),
    "reasons": (np.str_, ()),
}


def _look(path: Path, data: DataConfig) -> tuple[Any, ...]:
    """Values of `Survey` for one image, in the order of its fields."""
    try:
        shorter = min(probe(path).stored_size)
        decoded = decode(path, data, needed_scale=min(1.0, SIDE / shorter))
        content = file_digest(path)
    except InputError as error:
        blank = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
        return (0, 0), (0, 0), 1, False, np.zeros(len(TRAITS)), (0, 0), 0, blank, str(error)
    small = working_size(decoded.pixels)
    code, thumbnail = fingerprint(small)
    digest = (int(content[:16], 16), int(content[16:], 16))
    info = decoded.info
    traits = _traits(small, decoded.size)
    return info.stored_size, decoded.size, info.orientation, decoded.truncated, traits, digest, code, thumbnail, ""


def working_size(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (h, w, 3) with a shorter side of SIDE pixels, at most 8 times as long as wide."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    size = (min(round(width * scale), 8 * SIDE), min(round(height * scale), 8 * SIDE))
    return np.asarray(
        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8
    )


def fingerprint(small: NDArray[np.uint8]) -> tuple[np.uint64, NDArray[np.uint8]]:
    """Difference hash and gray thumbnail of a picture of `working_size`.

    Bit 8 y + x of the hash says whether pixel (x + 1, y) of the picture shrunk to 9 x 8 is brighter than pixel (x, y)
    by more than STEP.
    """
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    tiny = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1] + STEP, bitorder="little")
    thumbnail = np.asarray(cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA), np.uint8)
    return bits.view("<u8")[0], thumbnail


def _traits(small: NDArray[np.uint8], size: tuple[int, int]) -> list[float]:
    """Simple statistics in the order of TRAITS; color in shares of full range, the rest as log2.

    Sharpness is the strength of edges over the contrast.
    """
    color = small.astype(np.float32) / 255
    red, green, blue = (float(mean) for mean in color.mean(axis=(0, 1)))
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(gray, cv2.CV_32F)
    saturation = float((color.max(axis=2) - color.min(axis=2)).mean())
    height, width = size
    return [
        float(gray.mean()) / 255,
        float(gray.std()) / 255,
        saturation,
        red - green,
        blue - (red + green) / 2,
        float(np.log2(np.sqrt(height * width))),
        float(np.log2(width / height)),
        float(np.log2((1 + edges.std()) / (1 + gray.std()))),
    ]
