"""Predicted boxes beside the truth: image by image, then all together.

Legend: R resamples, n test images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.loader import shown_boxes
from tutelage.tasks.metrics import Matches, bootstrap_metrics, bootstrap_size_metrics, match_detections
from tutelage.tasks.task import Columns
from tutelage.types import Boxes, Prediction

SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class JudgedBoxes:
    """The boxes of one image: what is there and what was found."""

    image_id: int
    size: tuple[int, int]  # (height, width) of the original
    truth: Boxes
    found: Boxes


def judge_boxes(prediction: Prediction, index: Index, data: DataConfig) -> JudgedBoxes:
    """A prediction beside the truth of its image."""
    truth = shown_boxes(index, prediction.image_id, data)
    return JudgedBoxes(prediction.image_id, prediction.size, truth, prediction.boxes or Boxes.empty())


@dataclass(frozen=True)
class DetectionTally:
    """Detections matched with the truth of all images."""

    matches: Matches

    @classmethod
    def of(cls, judged: Sequence[JudgedBoxes], num_classes: int) -> Self:
        """Matches at all IoU thresholds and sizes."""
        return cls(match_detections([one.truth for one in judged], [one.found for one in judged], num_classes))

    def resample(self, weights: NDArray[np.integer], *, threads: int = 1) -> dict[str, NDArray[np.float64]]:
        """`ap, ap50, ap75, ap_small, ap_medium, ap_large` (R,), `class_ap, class_ap50` (R, K) of weights (R, n)."""
        return {
            **bootstrap_metrics(self.matches, weights, threads=threads),
            **bootstrap_size_metrics(self.matches, weights, threads=threads),
        }

    def groups_with_truth(self, groups: NDArray[np.integer]) -> dict[str, Any]:
        """How many groups (n,) hold a box of each class (`per_class`) and of each size (`ap_SIZE`)."""
        sizes = {f"ap_{size}": self.matches.groups_with_size(groups, size) for size in SIZES}
        return {"per_class": self.matches.groups_with_truth(groups).tolist(), **sizes}

    def save(self, path: Path) -> None:
        """Writes a compressed npz file."""
        self.matches.save(path)


def box_tables(judged: Sequence[JudgedBoxes]) -> dict[str, Columns]:
    """`truth` with area and ignore flag, `predictions` with score: one row a box."""
    return {
        "truth": _box_columns([one.truth for one in judged], {"area": "area", "ignore": "ignore"}),
        "predictions": _box_columns([one.found for one in judged], {"score": "scores"}),
    }


def _box_columns(rows: Sequence[Boxes], extra: dict[str, str]) -> Columns:
    xyxy = np.concatenate([boxes.xyxy for boxes in rows]) if rows else np.zeros((0, 4), np.float32)
    columns: Columns = {"image_id": np.repeat(np.arange(len(rows)), [len(boxes) for boxes in rows])}
    columns |= {name: xyxy[:, axis] for axis, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns["label"] = np.concatenate([boxes.labels for boxes in rows])
    return columns | {name: np.concatenate([getattr(boxes, field) for boxes in rows]) for name, field in extra.items()}
