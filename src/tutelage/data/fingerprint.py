"""Hash of what an index holds, in chunks, so that millions of images take little memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tutelage.data.index import Index

CHUNK = 65_536  # images hashed at once


def chunks(count: int) -> Iterator[NDArray[np.int64]]:
    """Rows 0 to count - 1, some at a time."""
    for first in range(0, count, CHUNK):
        yield np.arange(first, min(first + CHUNK, count))


def fingerprint_of(index: Index) -> str:
    """Hex digest of relative paths, sizes, classes, boxes and masks; one hash a column whatever the chunks."""
    parts = [hashlib.sha256() for _ in range(10 if index.has_masks else 9)]
    for rows in chunks(len(index)):
        view = index.select(rows)
        boxes = view.box_columns()
        paths = "\n".join([*view.relative_paths().to_pylist(), ""])
        columns = (
            np.frombuffer(paths.encode("utf-8", "surrogateescape"), np.uint8),
            *view.sizes().T,
            view.image_classes(),
            np.bincount(boxes.images, minlength=len(rows)),
            *(boxes.xyxy, boxes.labels, boxes.area, np.stack([boxes.ignore, boxes.scores], axis=1)),
            *((view.mask_columns()[2],) if index.has_masks else ()),
        )
        for digest, column in zip(parts, columns, strict=True):
            digest.update(np.ascontiguousarray(column).tobytes())
    names = json.dumps(index.class_names).encode()
    return hashlib.sha256(names + b"".join(part.digest() for part in parts)).hexdigest()
