"""Pseudo-boxes in a store: every detection above a low floor, with its score.

Legend: K classes, n images used, m boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index
from tutelage.data.pseudo.tables import Columns, Found, Layout, Limits
from tutelage.data.pseudo.verdicts import SAME_PLACE, JudgedImage, People, ious
from tutelage.types import IGNORE_BOX, NOT_IGNORED, Boxes, Prediction

CORNERS = ("x1", "y1", "x2", "y2")


class BoxKind:
    """Stores of boxes (see `Kind`): one table, `boxes`."""

    unit = "boxes"
    table = "boxes"
    layouts: Mapping[str, Layout] = {
        "boxes": Layout(
            pa.schema(
                {
                    "image_id": pa.int64(),
                    **{name: pa.float32() for name in CORNERS},  # original pixels, as shown
                    "label": pa.int32(),  # place in the manifest's class names
                    "score": pa.float32(),
                    "verdict": pa.string(),  # of a reviewer; null where nobody looked
                }
            )
        )
    }

    def scale(self, prediction: Prediction) -> float:
        """Boxes are in original pixels."""
        return 1.0

    def rows(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Rows of `boxes`."""
        boxes = prediction.boxes or Boxes.empty()
        columns = {
            "image_id": np.full(len(boxes), prediction.image_id),
            **{name: boxes.xyxy[:, axis] for axis, name in enumerate(CORNERS)},
            "label": boxes.labels.astype(np.int32),
            "score": boxes.scores,
            "verdict": pa.nulls(len(boxes), pa.string()),
        }
        return {"boxes": columns}

    def found(self, table: Columns) -> Found:
        """Each box with its score, without those that people ignored."""
        shown = {name: table[name][table["verdict"] != "ignore"] for name in ("image_id", "label", "score")}
        return Found(shown["image_id"], shown["label"], shown["score"], np.ones(len(shown["label"]), np.int64))

    def judged(self, folder: Path, part: int, images: Columns, table: Columns, people: People) -> Columns:
        """`boxes` with what people said: theirs have score 1, and stored ones that they speak of give way."""
        said = people.of(images["image_id"])
        gone = np.zeros(len(table["label"]), bool)
        for row, image in said.items():
            own = slice(*np.searchsorted(table["image_id"], [row, row + 1]))
            gone[own] = _gives_way(_corners(table)[own], table["label"][own], image, people)
        added = [_rows_of(row, image, people) for row, image in said.items()]
        joined = {name: np.concatenate([table[name][~gone], *(rows[name] for rows in added)]) for name in table}
        order = np.argsort(joined["image_id"], kind="stable")
        return {name: column[order] for name, column in joined.items()}

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Of one part: counts (n,); xyxy (m, 4), labels, scores and ignore (m,)."""
        ids = images["image_id"][used]
        ignored = table["verdict"] == "ignore"
        kept = (table["score"] >= limits[table["label"]]) & ~ignored
        shown = np.isin(table["image_id"], ids)
        if pseudo.unsure == "negative":
            shown &= kept | ignored
        return {
            "counts": np.bincount(np.searchsorted(ids, table["image_id"][shown]), minlength=len(ids)),
            "xyxy": _corners(table)[shown],
            "labels": table["label"][shown],
            "scores": table["score"][shown],
            # An unsure box may be one object: it excuses what overlaps it, not everything inside it.
            "ignore": np.where(kept[shown], NOT_IGNORED, IGNORE_BOX).astype(np.uint8),
        }

    def index(
        self, images: Index, targets: Columns, store: Path, limits: Limits, people: People, **described: Any
    ) -> Index:
        """The images with their boxes."""
        return images.with_boxes(
            np.concatenate([[0], np.cumsum(targets["counts"])]),
            targets["xyxy"],
            targets["labels"],
            scores=targets["scores"],
            ignore=targets["ignore"],
            **described,
        )


def _corners(table: Columns) -> NDArray[np.float32]:
    return np.stack([table[name] for name in CORNERS], axis=1)


def _gives_way(
    xyxy: NDArray[np.float32], labels: NDArray[np.integer], image: JudgedImage, people: People
) -> NDArray[np.bool_]:
    """(m,) which stored boxes of an image people spoke of: all, or those that overlap theirs of the same class."""
    if image.reviewed or not image.labels:
        return np.full(len(labels), image.reviewed)
    spoken = np.array([label.xyxy for label in image.labels])
    same = labels[:, None] == np.array([people.label(label) for label in image.labels])
    return np.asarray(((ious(xyxy, spoken) >= SAME_PLACE) & same).any(axis=1))


def _rows_of(row: int, image: JudgedImage, people: People) -> Columns:
    """Rows of `boxes` with what people said is there, or is to be ignored, cut at the image's borders."""
    labels = [label for label in image.labels if label.verdict != "reject"]
    limits = np.array(image.size[::-1] * 2)
    xyxy = np.array([label.xyxy for label in labels], np.float64).reshape(-1, 4).clip(0, limits).astype(np.float32)
    return {
        "image_id": np.full(len(labels), row, np.int64),
        **{name: xyxy[:, axis] for axis, name in enumerate(CORNERS)},
        "label": np.array([people.label(label) for label in labels], np.int32),
        "score": np.ones(len(labels), np.float32),
        "verdict": np.array([label.verdict for label in labels], object),
    }
