"""Writing a pseudo-label store: what a teacher said of a pool, before any threshold.

`part-00000.boxes.parquet` and `part-00000.images.parquet` hold `part_size` consecutive pool images. Each file is
written under a temporary name and renamed, the images table last, so that its presence proves the part;
`manifest.json`, written at the very end, proves the store. Parts are the same bytes whoever writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.data.index import Index
from tutelage.files import atomic, write_json
from tutelage.types import Boxes, InputError, Prediction, Skipped

LAYOUT = 1
IMAGES = pa.schema(
    {
        "image_id": pa.int64(),  # row of the pool
        "path": pa.string(),  # relative, as the pool's listing has it
        "height": pa.int32(),
        "width": pa.int32(),
        "scale": pa.float32(),  # stored coordinates over original pixels: 1 for boxes
        "status": pa.string(),  # ok, skipped or leak
        "reason": pa.string(),
    }
)
BOXES = pa.schema(
    {
        "image_id": pa.int64(),
        **{name: pa.float32() for name in ("x1", "y1", "x2", "y2")},  # original pixels, as shown
        "label": pa.int32(),  # place in the manifest's class names
        "score": pa.float32(),
        "verdict": pa.string(),  # of a reviewer; null where nobody looked
    }
)


@dataclass(frozen=True, slots=True)
class Leak:
    """A pool image that must not be trained on, because it is in the test set."""

    image_id: int
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What a store was made of, and how."""

    teacher: str  # hash
    round: int
    class_names: tuple[str, ...]
    score_floor: float  # detections below are not in the store
    label: Mapping[str, Any]  # views and scales
    pool: str  # fingerprint of the pool's listing
    held_out: tuple[str, ...]  # fingerprints of the sets whose images were kept out (test, selection split)
    key: str  # hash of all that the labeling depends on
    num_images: int
    part_size: int

    @property
    def num_parts(self) -> int:
        """Parts of a whole store."""
        return -(-self.num_images // self.part_size)

    def rows(self, part: int) -> range:
        """Pool rows of a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.num_images))

    def digest(self) -> str:
        """Hex digest, written into every part: parts of another labeling are recognized."""
        return hashlib.sha256(json.dumps([LAYOUT, asdict(self)], sort_keys=True).encode()).hexdigest()


class StoreWriter:
    """Writes a store part by part, in any order and by any number of processes; what is there is kept."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        folder.mkdir(parents=True, exist_ok=True)

    def missing_parts(self) -> list[int]:
        """Numbers of the parts that are still to be written.

        Raises:
            InputError: the folder holds parts of another labeling.
        """
        return [part for part in range(self.manifest.num_parts) if not self._is_written(part)]

    def _is_written(self, part: int) -> bool:
        path = images_path(self.folder, part)
        if not path.is_file():
            return False
        if (_read_schema(path).metadata or {}).get(b"manifest") != self.manifest.digest().encode():
            raise InputError(
                f"{path}: belongs to pseudo-labels of another teacher, pool or label.part_size. "
                "Give another folder, or start anew with --overwrite."
            )
        return True

    def write_part(self, part: int, outcomes: Sequence[Prediction | Skipped | Leak], pool: Index) -> None:
        """Writes what became of every image of a part.

        Raises:
            InputError: the disk is full or the folder cannot be written to; the part is then missing as before.
        """
        outcomes = sorted(outcomes, key=lambda outcome: outcome.image_id)
        assert [outcome.image_id for outcome in outcomes] == list(self.manifest.rows(part)), "one outcome an image"
        metadata = {"manifest": self.manifest.digest()}
        images = [_image_row(outcome, pool) for outcome in outcomes]
        _write_table(boxes_path(self.folder, part), pa.table(_box_columns(outcomes), schema=BOXES))
        _write_table(
            images_path(self.folder, part), pa.Table.from_pylist(images, schema=IMAGES.with_metadata(metadata))
        )

    def finish(self) -> None:
        """Writes the manifest once all parts are there, with counts and a digest of their content."""
        assert not self.missing_parts(), "a store is finished when all its parts are written"
        for leftover in self.folder.glob(".tmp-*-part-*"):
            leftover.unlink()
        content = hashlib.sha256()
        for part in range(self.manifest.num_parts):
            for path in (images_path(self.folder, part), boxes_path(self.folder, part)):
                content.update(path.read_bytes())
        write_json(self.folder / "manifest.json", {**asdict(self.manifest), "content": content.hexdigest()})


def _image_row(outcome: Prediction | Skipped | Leak, pool: Index) -> dict[str, Any]:
    height, width = outcome.size if isinstance(outcome, Prediction) else (0, 0)
    status = {Prediction: "ok", Skipped: "skipped", Leak: "leak"}[type(outcome)]
    return {
        "image_id": outcome.image_id,
        "path": pool.relative_path(outcome.image_id),
        "height": height,
        "width": width,
        "scale": 1.0,
        "status": status,
        "reason": "" if isinstance(outcome, Prediction) else outcome.reason,
    }


def _box_columns(outcomes: Sequence[Prediction | Skipped | Leak]) -> dict[str, Any]:
    found = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
    boxes = [prediction.boxes or Boxes.empty() for prediction in found]
    ids = np.repeat([prediction.image_id for prediction in found], [len(each) for each in boxes])
    xyxy = np.concatenate([Boxes.empty().xyxy, *(each.xyxy for each in boxes)])
    return {
        "image_id": ids.astype(np.int64),
        **{name: xyxy[:, axis] for axis, name in enumerate(("x1", "y1", "x2", "y2"))},
        "label": np.concatenate([np.zeros(0, np.int32), *(each.labels.astype(np.int32) for each in boxes)]),
        "score": np.concatenate([np.zeros(0, np.float32), *(each.scores for each in boxes)]),
        "verdict": pa.nulls(len(ids), pa.string()),
    }


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()  # a part is small; one plain write reports a full disk plainly
    pq.write_table(table, sink, compression="zstd")
    with atomic(path) as temporary:
        temporary.write_bytes(sink.getvalue())


def images_path(folder: Path, part: int) -> Path:
    """The table whose presence proves a part."""
    return folder / f"part-{part:05d}.images.parquet"


def boxes_path(folder: Path, part: int) -> Path:
    """The table of a part's boxes."""
    return folder / f"part-{part:05d}.boxes.parquet"


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: damaged ({error}). Delete this file and run the same command again.") from None
