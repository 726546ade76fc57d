"""What a finished run folder holds, read for the page; the only part of the report that knows file names.

Legend: N images, K classes. Optional pieces that are absent come back as None or empty; only `run.json` must exist.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.files import read_json
from tutelage.types import NOT_IGNORED, Boxes, InputError

SCORE_BINS = 40
"""Bars of the score histogram between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run: its name, its folder and what its `run.json` says."""

    name: str
    folder: Path
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    folder: Path
    record: dict[str, Any]
    config: str  # YAML as written
    stages: dict[str, Stage]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Test images with what was there and what one model saw."""

    paths: list[str]
    sizes: NDArray[np.int64]  # (N, 2) height, width
    truth: list[Boxes]
    predictions: list[Boxes]

    def names(self) -> list[str]:
        """The paths without the folders that all of them share."""
        parents = [os.path.dirname(path) for path in self.paths]
        shared = os.path.commonpath(parents) if parents and all(parents) else ""
        return [os.path.relpath(path, shared) if shared else path for path in self.paths]


@dataclass(frozen=True, slots=True, order=True)
class PseudoBox:
    """One pseudo-label, to be shown."""

    score: float
    path: str
    xyxy: tuple[float, float, float, float]
    label: int


@dataclass(slots=True)
class PseudoSummary:
    """A pseudo-label store in numbers, gathered part by part."""

    histogram: NDArray[np.int64]  # (SCORE_BINS,) boxes by score
    kept_per_class: NDArray[np.int64]  # (K,) boxes at or above the threshold
    images: int = 0
    surest: list[PseudoBox] = field(default_factory=list)
    least_sure: list[PseudoBox] = field(default_factory=list)  # just above the threshold


def read_run(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        InputError: the folder has no readable `run.json`, which is written last.
    """
    place = folder / "run.json"
    if not place.is_file():
        raise InputError(
            f"{folder}: no run.json; a report needs a finished run, and run.json is written last. "
            "Give the folder of a finished run, or continue this one with the command that started it."
        )
    record = read_json(place)
    config = folder / "config.yaml"
    stages = {
        name: Stage(name, folder / relative, read_json(folder / relative / "run.json"))
        for name, relative in record.get("stages", {}).items()
        if (folder / relative / "run.json").is_file()
    }
    return Run(folder, record, config.read_text() if config.is_file() else "", stages)


def training_log(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Columns (rows, 2) of step and value, by name, of a training's log.

    The last line of a step wins: a continued training writes some steps again.
    """
    place = folder / "log.jsonl"
    columns: dict[str, dict[int, float]] = {}
    for line in place.read_text().splitlines() if place.is_file() else ():
        entry = json.loads(line)
        for key, value in entry.items():
            if key != "step" and "step" in entry and isinstance(value, int | float):
                columns.setdefault(key, {})[entry["step"]] = value
    return {key: np.array(sorted(rows.items()), dtype=np.float64) for key, rows in columns.items()}


def read_evaluation(stage: Stage) -> Evaluation | None:
    """Truth and predictions of a stage on the test images; None where its tables are absent."""
    places = [stage.folder / f"{name}.parquet" for name in ("images", "truth", "predictions")]
    if not all(place.is_file() for place in places):
        return None
    images, truth, predictions = (_columns(place) for place in places)
    ids = images["image_id"]
    return Evaluation(
        [str(path) for path in images["path"]],
        np.stack([images["height"], images["width"]], axis=1).astype(np.int64),
        _boxes_of(ids, truth),
        _boxes_of(ids, predictions),
    )


def summarize_store(
    store: PseudoStore, pseudo: PseudoConfig, class_names: tuple[str, ...], num_shown: int
) -> PseudoSummary:
    """Scores, class counts and the boxes to show of a pseudo-label store, under the threshold of `pseudo`.

    At most one box an image is shown, so that one crowded picture does not fill the page.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    limits = score_limits(pseudo, class_names)
    summary = PseudoSummary(np.zeros(SCORE_BINS, np.int64), np.zeros(len(class_names), np.int64))
    for images, boxes in store.parts():
        summary.images += len(images["image_id"])
        scores, labels = boxes["score"], boxes["label"]
        summary.histogram += np.histogram(scores, bins=SCORE_BINS, range=(0, 1))[0]
        kept = np.flatnonzero(scores >= limits[labels])
        summary.kept_per_class += np.bincount(labels[kept], minlength=len(class_names))
        order = kept[np.argsort(scores[kept], kind="stable")]
        summary.least_sure += _shown(order, images, boxes, num_shown)
        summary.surest += _shown(order[::-1], images, boxes, num_shown)
        summary.least_sure = heapq.nsmallest(num_shown, summary.least_sure)
        summary.surest = heapq.nlargest(num_shown, summary.surest)
    return summary


def _columns(place: Path) -> dict[str, NDArray[Any]]:
    table = pq.read_table(place)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _boxes_of(ids: NDArray[Any], rows: Mapping[str, NDArray[Any]]) -> list[Boxes]:
    """Rows of a box table as one `Boxes` for each image id, best score first."""
    scores = rows.get("score", np.ones(len(rows["image_id"])))
    order = np.lexsort((-scores, rows["image_id"]))
    owner = rows["image_id"][order]
    xyxy = np.stack([rows[name][order] for name in ("x1", "y1", "x2", "y2")], axis=1)
    ignore = rows.get("ignore", np.full(len(order), NOT_IGNORED))[order]
    area = rows["area"][order] if "area" in rows else np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    everything = Boxes.build(xyxy, rows["label"][order], scores[order], area, ignore)
    starts, ends = np.searchsorted(owner, ids, side="left"), np.searchsorted(owner, ids, side="right")
    return [everything.select(np.arange(start, end)) for start, end in zip(starts, ends, strict=True)]


def _shown(
    order: NDArray[Any], images: Mapping[str, NDArray[Any]], boxes: Mapping[str, NDArray[Any]], num_shown: int
) -> list[PseudoBox]:
    """The first boxes of an order, one an image."""
    paths = dict(zip(images["image_id"].tolist(), images["path"].tolist(), strict=True))
    _, first = np.unique(boxes["image_id"][order], return_index=True)
    return [
        PseudoBox(
            float(boxes["score"][row]),
            str(paths[int(boxes["image_id"][row])]),
            tuple(float(boxes[name][row]) for name in ("x1", "y1", "x2", "y2")),  # type: ignore[arg-type]
            int(boxes["label"][row]),
        )
        for row in order[np.sort(first)[:num_shown]]
    ]
