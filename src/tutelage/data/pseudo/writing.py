"""Writing a pseudo-label store: what a teacher said of a pool, before any threshold.

A part holds `part_size` consecutive pool images: `part-00000.images.parquet`, and beside it the tables of the store's
kind (`boxes`; or `levels` and `masks`). Each file is written under a temporary name and renamed, the images table last,
so that its presence proves the part; `manifest.json`, written at the very end, proves the store. Parts are the same
bytes whoever writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.data.index import Index
from tutelage.data.pseudo.kinds import KINDS
from tutelage.data.pseudo.tables import IMAGES, read_metadata, table_path
from tutelage.files import write_json
from tutelage.types import Annotation, InputError, Prediction, Skipped

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
    num_images: int
    part_size: int
    annotation: Annotation = "boxes"  # what is stored

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
        folder.mkdir(parents=True, exist_ok=True)

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

    def write_part(self, part: int, outcomes: Sequence[Outcome], pool: Index) -> None:
        """Writes what became of every image of a part.

        Raises:
            InputError: the disk is full or the folder cannot be written to; the part is then missing as before.
        """
        outcomes = sorted(outcomes, key=lambda outcome: outcome.image_id)
        assert [outcome.image_id for outcome in outcomes] == list(self.manifest.rows(part)), "one outcome an image"
        predictions = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        for name, columns in self.kind.columns(predictions).items():
            self.kind.layouts[name].write(table_path(self.folder, part, name), columns)
        rows = [self._image_row(outcome, pool) for outcome in outcomes]
        images = {name: [row[name] for row in rows] for name in IMAGES.schema.names}
        IMAGES.write(table_path(self.folder, part, "images"), images, {"manifest": self.manifest.digest()})

    def _image_row(self, outcome: Outcome, pool: Index) -> dict[str, Any]:
        row = {"image_id": outcome.image_id, "path": pool.relative_path(outcome.image_id)}
        if not isinstance(outcome, Prediction):
            status = {Skipped: "skipped", Leak: "leak"}[type(outcome)]
            return {**row, "height": 0, "width": 0, "scale": 1.0, "status": status, "reason": outcome.reason}
        height, width = outcome.size
        scale = self.kind.scale(outcome)
        return {**row, "height": height, "width": width, "scale": scale, "status": "ok", "reason": ""}

    def finish(self) -> None:
        """Writes the manifest once all parts are there, with counts and a digest of their content."""
        assert not self.missing_parts(), "a store is finished when all its parts are written"
        for leftover in self.folder.glob(".tmp-*-part-*"):
            leftover.unlink()
        content = hashlib.sha256()
        for part in range(self.manifest.num_parts):
            for table in ("images", *self.kind.layouts):
                content.update(table_path(self.folder, part, table).read_bytes())
        write_json(self.folder / "manifest.json", {**asdict(self.manifest), "content": content.hexdigest()})
