"""Where each label of a second stream came from: a table beside what was trained on it.

One row a label, image by image in the pool's order, the teacher's before people's: the image's `path`, `class`,
`score` (of the teacher; none where a person drew it), `teacher` (hash), `round`, `verdict` (none where nobody looked)
and the place. Boxes have their corners x1, y1, x2, y2 in pixels, as they were trained on; masks the `share` of the
image that they cover, one row a class for the teacher's pixels, with their mean confidence.

Legend: m labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo.boxes import CORNERS
from tutelage.data.pseudo.masks import SURE
from tutelage.data.pseudo.reading import PseudoStore, score_limits
from tutelage.data.pseudo.tables import Columns, Limits, Stored
from tutelage.data.pseudo.verdicts import JudgedImage, Label
from tutelage.files import atomic

ORIGIN = {
    "path": pa.string(),
    "class": pa.string(),
    "score": pa.float32(),
    "teacher": pa.string(),
    "round": pa.int32(),
    "verdict": pa.string(),
}
PLACES: Mapping[Stored, Mapping[str, pa.DataType]] = {
    "boxes": {name: pa.float32() for name in CORNERS},
    "masks": {"share": pa.float32()},
}


def write_provenance(path: Path, store: PseudoStore, pseudo: PseudoConfig) -> None:
    """Writes the table of all labels that `store_index` makes of the store, part by part.

    Raises:
        InputError: a part is missing or damaged, or the disk is full.
    """
    limits = score_limits(pseudo, store.manifest.class_names)
    schema = pa.schema({**ORIGIN, **PLACES[store.manifest.annotation]})
    told = TEACHERS[store.manifest.annotation]
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for images, table in store.parts():
            paths = dict(zip(images["image_id"].tolist(), images["path"].tolist(), strict=True))
            writer.write_table(_of_part(store, paths, told(images, table, limits, pseudo), schema))


def _of_part(store: PseudoStore, paths: Mapping[int, str], teachers: Columns, schema: pa.Schema) -> pa.Table:
    manifest, count = store.manifest, len(teachers["image_id"])
    columns = {
        **{name: teachers[name] for name in ("score", *PLACES[manifest.annotation])},
        "path": [paths[row] for row in teachers["image_id"].tolist()],
        "class": [manifest.class_names[label] for label in teachers["label"].tolist()],
        "teacher": [manifest.teacher] * count,
        "round": [manifest.round] * count,
        "verdict": [None] * count,
    }
    said = [(row, store.people.images[row]) for row in paths if row in store.people.images]
    peoples = [_row(label, image) for _, image in said for label in image.labels if label.verdict != "reject"]
    ids = [row for row, image in said for label in image.labels if label.verdict != "reject"]
    both = pa.concat_tables([pa.table(columns, schema), pa.Table.from_pylist(peoples, schema)])
    order = np.argsort(np.concatenate([teachers["image_id"], np.array(ids, np.int64)]), kind="stable")
    return both.take(pa.array(order))


def _row(label: Label, image: JudgedImage) -> dict[str, object]:
    """What a person said, as a row."""
    place = _cut(label, image) if label.xyxy else {"share": float(label.region.mask().mean()) if label.region else 0.0}
    origin = {"score": label.score, "teacher": label.teacher, "round": label.round, "verdict": label.verdict}
    return {"path": image.path, "class": label.name, **origin, **place}


def _cut(label: Label, image: JudgedImage) -> dict[str, float]:
    """Corners inside the image, as they are trained on."""
    xyxy: list[float] = np.clip(label.xyxy or (), 0, image.size[::-1] * 2).tolist()
    return dict(zip(CORNERS, xyxy, strict=True))


def _boxes(images: Columns, table: Columns, limits: Limits, pseudo: PseudoConfig) -> Columns:
    """The teacher's boxes that are trained on, or left out of the loss."""
    kept = (table["score"] >= limits[table["label"]]) | (pseudo.unsure == "ignore")
    return _rows(table, kept & (table["verdict"] == None))  # noqa: E711 elementwise


def _masks(images: Columns, table: Columns, limits: Limits, pseudo: PseudoConfig) -> Columns:
    """The teacher's pixels that are trained on: (m,) image and class, share and mean confidence."""
    scores = table["level"] / SURE
    kept = _rows({**table, "score": scores}, (scores >= limits[table["label"]]) & (table["level"] < SURE))
    keys, at = np.unique(np.stack([kept["image_id"], kept["label"]]), axis=1, return_inverse=True)
    pixels = np.bincount(at.ravel(), kept["pixels"], keys.shape[1])
    sums = np.bincount(at.ravel(), kept["pixels"] * kept["score"], keys.shape[1])
    at = np.searchsorted(images["image_id"], keys[0])
    share = pixels / (images["height"] * images["width"] * images["scale"].astype(np.float64) ** 2)[at]
    return {"image_id": keys[0], "label": keys[1], "score": sums / np.maximum(pixels, 1), "share": share}


def _rows(table: Columns, which: NDArray[np.bool_]) -> Columns:
    return {name: column[which] for name, column in table.items()}


TEACHERS: Mapping[Stored, Callable[[Columns, Columns, Limits, PseudoConfig], Columns]] = {
    "boxes": _boxes,
    "masks": _masks,
}
"""What of the teacher's is trained on: image, class, score and place of each label."""
