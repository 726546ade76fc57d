"""Writing a pseudo-label store: what a teacher said of a pool, before any threshold.

A part holds `part_size` consecutive pool images: `part-00000.images.parquet`, and beside it the tables of the store's
kind (`boxes`; or `levels` and `masks`). Each file is written under a temporary name and renamed, the images table last,
so that its presence proves the part; `manifest.json`, written at the very end, proves the store. Parts are the same
bytes whoever writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from tutelage.data.index import Index
from tutelage.data.pseudo.kinds import KINDS
from tutelage.data.pseudo.tables import IMAGES, Stored, read_metadata, table_path
from tutelage.files import make_folder, write_json
from tutelage.types import InputError, Prediction, Skipped

LAYOUT = 2


@dataclass(frozen=True, slots=True)
class Leak:
    """A pool image that must not be trained on, because it is in the test set."""

    image_id: int
    reason: str


Outcome = Prediction | Skipped | Leak
"""What became of a pool image."""


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
    num_images: NonNegativeInt
    part_size: PositiveInt
    annotation: Stored = "boxes"  # what is stored

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
        self.kind = KINDS[manifest.annotation]
        make_folder(folder)

    def missing_parts(self) -> list[int]:
        """Numbers of the parts that are still to be written.

        Raises:
            InputError: the folder holds parts of another labeling.
        """
        return [part for part in range(self.manifest.num_parts) if not self._is_written(part)]

    def _is_written(self, part: int) -> bool:
        path = table_path(self.folder, part, "images")
        if not path.is_file():
            return False
        if read_metadata(path).get(b"manifest") != self.manifest.digest().encode():
            raise InputError(
                f"{path}: belongs to pseudo-labels of another teacher, pool or label.part_size. "
                "Give another folder, or start anew with --overwrite."
            )
        return True

    def write_part(self, part: int, outcomes: Iterable[Outcome], pool: Index) -> None:
        """Writes what became of every image of a part; outcomes are packed as they come.

        Raises:
            InputError: the disk is full or the folder cannot be written to; the part is then missing as before.
        """
        packed = sorted(((outcome.image_id, self._rows(outcome, pool)) for outcome in outcomes), key=itemgetter(0))
        assert [image_id for image_id, _ in packed] == list(self.manifest.rows(part)), "one outcome an image"
        for name, layout in {**self.kind.layouts, "images": IMAGES}.items():  # images last: they prove the part
            rows = [tables[name] for _, tables in packed if name in tables]
            layout.write(table_path(self.folder, part, name), rows, {"manifest": self.manifest.digest()})

    def _rows(self, outcome: Outcome, pool: Index) -> dict[str, dict[str, Any]]:
        """Columns of each table, of one image."""
        row = {"image_id": outcome.image_id, "path": pool.relative_path(outcome.image_id)}
        found: dict[str, dict[str, Any]] = {}
        if isinstance(outcome, Prediction):
            height, width = outcome.size
            row |= {"height": height, "width": width, "scale": self.kind.scale(outcome), "status": "ok", "reason": ""}
            found = self.kind.rows(outcome)
        else:
            status = {Skipped: "skipped", Leak: "leak"}[type(outcome)]
            row |= {"height": 0, "width": 0, "scale": 1.0, "status": status, "reason": outcome.reason}
        return {"images": {name: [value] for name, value in row.items()}, **found}

    def finish(self) -> None:
        """Writes the manifest once all parts are there, with counts and a digest of their content."""
        assert not self.missing_parts(), "a store is finished when all its parts are written"
        content = hashlib.sha256()
        for part in range(self.manifest.num_parts):
            for table in ("images", *self.kind.layouts):
                content.update(table_path(self.folder, part, table).read_bytes())
        write_json(self.folder / "manifest.json", {**asdict(self.manifest), "content": content.hexdigest()})
