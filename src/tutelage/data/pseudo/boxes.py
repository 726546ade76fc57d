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
        """Each box with its score."""
        return Found(table["image_id"], table["label"], table["score"], np.ones(len(table["label"]), np.int64))

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Of one part: counts (n,); xyxy (m, 4), labels, scores and ignore (m,)."""
        ids = images["image_id"][used]
        kept = self.found(table).kept(limits)
        shown = np.isin(table["image_id"], ids)
        if pseudo.unsure == "negative":
            shown &= kept
        return {
            "counts": np.bincount(np.searchsorted(ids, table["image_id"][shown]), minlength=len(ids)),
            "xyxy": np.stack([table[name][shown] for name in CORNERS], axis=1),
            "labels": table["label"][shown],
            "scores": table["score"][shown],
            # An unsure box may be one object: it excuses what overlaps it, not everything inside it.
            "ignore": np.where(kept[shown], NOT_IGNORED, IGNORE_BOX).astype(np.uint8),
        }

    def index(self, images: Index, targets: Columns, store: Path, limits: Limits, **described: Any) -> Index:
        """The images with their boxes."""
        return images.with_boxes(
            np.concatenate([[0], np.cumsum(targets["counts"])]),
            targets["xyxy"],
            targets["labels"],
            scores=targets["scores"],
            ignore=targets["ignore"],
            **described,
        )
