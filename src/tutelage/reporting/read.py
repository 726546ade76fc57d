"""What a finished run folder holds, read for the page; the only part of the report that knows file names.

Legend: N images. Optional pieces that are absent come back as None or empty; only `run.json` must exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.files import read_json
from tutelage.types import InputError


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


Label = TypeVar("Label")
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[Label]):
    """Test images with what was there and what one model saw."""

    paths: list[str]
    sizes: NDArray[np.int64]  # (N, 2) height, width
    truth: list[Label]
    predictions: list[Label]

    def names(self) -> list[str]:
        """The paths without the folders that all of them share."""
        parents = [os.path.dirname(path) for path in self.paths]
        shared = os.path.commonpath(parents) if parents and all(parents) else ""
        return [os.path.relpath(path, shared) if shared else path for path in self.paths]


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
    record = _record(place)
    config = folder / "config.yaml"
    stages = {
        name: Stage(name, folder / relative, _record(folder / relative / "run.json"))
        for name, relative in record.get("stages", {}).items()
        if (folder / relative / "run.json").is_file()
    }
    return Run(folder, record, config.read_text() if config.is_file() else "", stages)


def _record(place: Path) -> dict[str, Any]:
    record = read_json(place)
    stages = record.get("stages", {}) if isinstance(record, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(relative, str) for relative in stages.values()):
        raise InputError(f"{place}: is no record of a run. Restore the file, or run the command again.")
    return dict(record)


def training_log(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Columns (rows, 2) of step and value, by name, of a training's log.

    The last line of a step wins: a continued training writes some steps again.

    Raises:
        InputError: a line of it is damaged.
    """
    place = folder / "log.jsonl"
    columns: dict[str, dict[int, float]] = {}
    for number, line in enumerate(place.read_bytes().splitlines() if place.is_file() else (), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise InputError(f"{place}: line {number} is no JSON object. Remove it: pages alone are made of it.")
        for key, value in entry.items():
            if key != "step" and isinstance(entry.get("step"), int) and isinstance(value, int | float):
                columns.setdefault(key, {})[entry["step"]] = value
    return {key: np.array(sorted(rows.items()), dtype=np.float64) for key, rows in columns.items()}


def read_evaluation(
    stage: Stage, labels_of: Callable[[NDArray[np.int64], Columns], list[Label]]
) -> Evaluation[Label] | None:
    """Truth and predictions of a stage on the test images; None where its tables are absent.

    Args:
        stage: an evaluation.
        labels_of: what stands in a table of truth or predictions, by image ids (N,).
    """
    places = [stage.folder / f"{name}.parquet" for name in ("images", "truth", "predictions")]
    if not all(place.is_file() for place in places):
        return None
    images, truth, predictions = (_columns(place) for place in places)
    ids = images["image_id"]
    return Evaluation(
        [str(path) for path in images["path"]],
        np.stack([images["height"], images["width"]], axis=1).astype(np.int64),
        labels_of(ids, truth),
        labels_of(ids, predictions),
    )


def _columns(place: Path) -> Columns:
    table = pq.read_table(place)
    return {name: table.column(name).to_numpy() for name in table.column_names}
