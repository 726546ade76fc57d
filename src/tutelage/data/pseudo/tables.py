"""The tables of a store's parts: how they are laid out, written and read.

A part is a few Parquet files named `part-00000.TABLE.parquet`. Every store has `images`; which other tables there are
and what they hold depends on its kind (`boxes.py`, `masks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.files import atomic
from tutelage.types import Annotation, InputError

Stored = Annotation | Literal["classes"]
"""What a store holds of each image: annotations of a task, or classes of the whole image."""
Columns = dict[str, NDArray[Any]]
NULLABLE = ("reason", "verdict")
Limits = NDArray[np.float32]
"""(K,) least confidence of a pseudo-label, by class."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is written."""

    schema: pa.Schema
    settings: Mapping[str, Any] = field(default_factory=lambda: {"compression": "zstd"})  # of pyarrow's writer

    def write(self, path: Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str]) -> None:
        """Writes columns, given image by image, behind one another: whole or not at all.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        tables = [self.schema.empty_table(), *(pa.table(columns, self.schema) for columns in rows)]
        table = pa.concat_tables(tables).combine_chunks().replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()  # a part is small; one plain write reports a full disk plainly
        pq.write_table(table, sink, **self.settings)
        with atomic(path) as temporary:
            temporary.write_bytes(sink.getvalue())


IMAGES = Layout(
    pa.schema(
        {
            "image_id": pa.int64(),  # row of the pool
            "path": pa.string(),  # relative, as the pool's listing has it
            "height": pa.int32(),  # of the original, as shown
            "width": pa.int32(),
            "scale": pa.float32(),  # stored over original pixels: 1 for boxes
            "status": pa.string(),  # ok, skipped or leak
            "reason": pa.string(),
        }
    )
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a teacher saw in some images: m boxes, or m areas of one image, class and confidence."""

    image_ids: NDArray[np.int64]  # (m,)
    labels: NDArray[np.integer]  # (m,)
    scores: NDArray[np.float32]  # (m,) in [0, 1]
    amounts: NDArray[np.int64]  # (m,) boxes (1 each) or pixels

    def kept(self, limits: Limits) -> NDArray[np.bool_]:
        """(m,) what reaches its class's threshold."""
        return np.asarray(self.scores >= limits[self.labels])


def table_path(folder: Path, part: int, table: str) -> Path:
    """File of a table of a part."""
    return folder / f"part-{part:05d}.{table}.parquet"


def read_columns(path: Path, layout: Layout) -> Columns:
    """Columns of a table.

    Raises:
        InputError: it is missing, damaged, or laid out in another way.
    """
    try:
        table = pq.read_table(path)
        lacking = [name for name in table.column_names if table.column(name).null_count and name not in NULLABLE]
        if lacking or not table.schema.equals(layout.schema):
            raise ValueError("other columns than this version of Tutelage writes")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: missing or damaged ({' '.join(str(error).split())}). Delete it and manifest.json, and run the "
            "labeling again: it makes what is missing."
        ) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


def read_metadata(path: Path) -> Mapping[bytes, bytes]:
    """Metadata of a table.

    Raises:
        InputError: it is damaged.
    """
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: damaged ({error}). Delete this file and run the same command again.") from None
