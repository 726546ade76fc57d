"""Arrow files of an index: how they are laid out, written, mapped, and where they are cached."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from tutelage import __version__
from tutelage.files import TEMPORARY, atomic, remove_stale
from tutelage.types import InputError

LAYOUT = 4
"""Changes whenever columns or readers change what they write, so that caches of older code are not used."""


@dataclass(frozen=True, slots=True)
class BoxColumns:
    """Boxes of many images as read, for bulk statistics."""

    images: NDArray[np.int64]  # (m,) row of the image in the index that was asked
    xyxy: NDArray[np.float64]  # (m, 4) pixels; fractions of the image where `relative`
    labels: NDArray[np.int64]  # (m,)
    area: NDArray[np.float64]  # (m,) square pixels as annotated
    ignore: NDArray[np.uint8]  # (m,)
    scores: NDArray[np.float64]  # (m,) 1 for human labels
    relative: NDArray[np.bool_]  # (m,)

    def __len__(self) -> int:
        return len(self.labels)


def cache_folder() -> Path:
    """Folder of cached indexes: `TUTELAGE_CACHE`, else the user's cache folder.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(os.environ.get("TUTELAGE_CACHE") or platformdirs.user_cache_dir("tutelage")) / "indexes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: the cache folder cannot be made ({error.strerror}). Set TUTELAGE_CACHE to a folder that can be "
            "written to."
        ) from None
    _tidy(folder.parent)
    return folder


@cache
def _tidy(root: Path) -> None:
    """Once a process, what killed ones left in the folders of the cache."""
    remove_stale(root.glob(f"*/{TEMPORARY}"))


def cache_key(*parts: object) -> str:
    """Hex key of a cached index, made of our version and whatever its content depends on."""
    return hashlib.sha256(json.dumps([__version__, LAYOUT, *map(str, parts)]).encode()).hexdigest()[:32]


def image_table(
    paths: Any, sizes: ArrayLike | None, offsets: ArrayLike | None, **columns: ArrayLike | None
) -> pa.RecordBatch:
    """One row an image: path, size, where its boxes begin and end, and `root`, `relative`, `image_class`.

    With masks (`masks` not None) also `mask`, `coding` and `digest`.
    """
    count = len(paths)
    extent = (np.zeros((count, 2), np.int32) if sizes is None else np.ascontiguousarray(sizes, np.int32)).reshape(-1, 2)
    ends = np.zeros(count + 1, np.int64) if offsets is None else np.ascontiguousarray(offsets, np.int64)
    return pa.RecordBatch.from_pydict(
        {
            "path": paths if isinstance(paths, pa.Array) else pa.array(paths, pa.large_string()),
            "root": _column(columns["root"], count, np.int32, 0),
            "height": extent[:, 0].copy(),
            "width": extent[:, 1].copy(),
            "relative": _column(columns["relative"], count, np.uint8, 0),
            "image_class": _column(columns["image_class"], count, np.int32, -1),
            "start": ends[:-1],
            "end": ends[1:],
            **({} if columns["masks"] is None else _mask_columns(count, **columns)),
        }
    )


def _mask_columns(count: int, **columns: Any) -> dict[str, pa.Array]:
    masks = columns["masks"]
    coding = np.array([0 if mask else -1 for mask in masks]) if columns["coding_of"] is None else columns["coding_of"]
    return {
        "mask": masks if isinstance(masks, pa.Array) else pa.array(masks, pa.large_string()),
        "coding": _column(coding, count, np.int32, -1),
        "digest": _column(columns["digests"], count, np.uint64, 0),
    }


def box_table(
    xyxy: ArrayLike, labels: ArrayLike, area: ArrayLike | None, ignore: ArrayLike | None, scores: ArrayLike | None
) -> pa.RecordBatch:
    """One row a box."""
    corners = np.ascontiguousarray(xyxy, np.float64).reshape(-1, 4)
    count = len(corners)
    if area is None:
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return pa.RecordBatch.from_pydict(
        {
            "xyxy": pa.FixedSizeListArray.from_arrays(pa.array(corners.reshape(-1)), 4),
            "label": _column(labels, count, np.int32, 0),
            "area": _column(area, count, np.float64, 0),
            "ignore": _column(ignore, count, np.uint8, 0),
            **({} if scores is None else {"score": _column(scores, count, np.float64, 1)}),
        }
    )


def write_tables(folder: Path, images: pa.RecordBatch, boxes: pa.RecordBatch) -> None:
    """Writes images.arrow and boxes.arrow."""
    for name, batch in (("images", images), ("boxes", boxes)):
        with atomic(folder / f"{name}.arrow") as path, pa.OSFile(str(path), "wb") as sink:
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)


def content_key(meta: dict[str, Any], *tables: pa.RecordBatch) -> str:
    """Cache key of an index that has no source file."""
    content = hashlib.sha256(json.dumps(meta).encode())
    for column in (column for table in tables for column in table.columns):
        for buffer in filter(None, column.buffers()):
            content.update(buffer)
    return cache_key("content", content.hexdigest())


def map_images(folder: Path) -> dict[str, Any]:
    """Columns of images.arrow, memory-mapped: `path` and `mask` as Arrow arrays, the others as numpy."""
    batch = _mapped(folder / "images.arrow")
    strings = ("path", "mask")
    return {name: batch.column(name) if name in strings else _numpy(batch, name) for name in batch.schema.names}


def map_boxes(folder: Path) -> dict[str, NDArray[Any]]:
    """Columns of boxes.arrow, memory-mapped; `xyxy` is (m, 4)."""
    batch = _mapped(folder / "boxes.arrow")
    flat = batch.column("xyxy").flatten().to_numpy(zero_copy_only=True)
    return {"xyxy": flat.reshape(-1, 4), **{name: _numpy(batch, name) for name in batch.schema.names[1:]}}


def _column(values: ArrayLike | None, count: int, dtype: type, default: int) -> pa.Array:
    filled: NDArray[Any] = np.full(count, default, dtype) if values is None else np.ascontiguousarray(values, dtype)
    return pa.array(filled.reshape(count))


def _mapped(path: Path) -> pa.RecordBatch:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).get_batch(0)
    except (FileNotFoundError, pa.ArrowInvalid):
        raise InputError(f"{path}: a cached index is missing or damaged. Delete {path.parent} and run again.") from None


def _numpy(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    column: NDArray[Any] = batch.column(name).to_numpy(zero_copy_only=True)
    return column
