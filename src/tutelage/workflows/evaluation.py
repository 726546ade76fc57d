"""The evaluate stage: predictions of one model on the test images, matched once, measured with intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tutelage import stats
from tutelage.config import RunConfig
from tutelage.data.duplicates import near_duplicate_groups
from tutelage.data.index import Index
from tutelage.data.loader import evaluation_batches, shown_boxes
from tutelage.data.splits import group_ids, merge_groups
from tutelage.engine.progress import Progress
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic, read_json
from tutelage.models.model import RetinaNet
from tutelage.tasks.detection import DetectionTask
from tutelage.tasks.metrics import Matches, bootstrap_metrics, detection_metrics, match_detections
from tutelage.types import Boxes, Prediction
from tutelage.workflows.assembly import build_task, load_detector, open_all, open_model
from tutelage.workflows.options import Paths, require_sources
from tutelage.workflows.stages import Place, Stage, console, figure_lines, remove_run, run_stage

POINT_FIGURES = ("ap", "ap50", "ap75")


@dataclass(frozen=True)
class Measured:
    """Point figures of one model on one set, and what they came from."""

    metrics: dict[str, Any]
    truth: list[Boxes]
    predictions: list[Prediction]


def evaluate(
    model: str | Path,
    *,
    test: Paths,
    out: str | Path,
    images: str | Path = "",
    recipe: str | Path = "",
    device: str = "",
    devices: int = 0,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Measures a model on labeled images; figures with intervals, predictions and matches go to `out`.

    Args:
        model: run, stage or model folder.
        test: labeled images, joined with the model's classes by name.
        out: folder of the result.
        images: folder that image paths in annotations are relative to.
        recipe: where options come from; the model's card alone when empty.
        device: auto, cpu, cuda or mps.
        devices: how many.
        overwrite: replace the result that is there.
        overrides: `key=value` options.

    Returns:
        The record, as in `out/run.json`.
    """
    out = Path(out)
    trained, config = open_model(model, recipe, overrides, device=device, devices=devices, test=test, images=images)
    require_sources(config, "test")
    if overwrite:
        remove_run(out)
    sets = open_all(config.sources.test, config)
    assert sets is not None, "require_sources has seen to it"
    card: dict[str, Any] = read_json(trained.model_folder / "model.json")
    index = sets.with_classes(tuple(card["class_names"]))
    task = build_task(config, index.class_names)
    groups = merge_groups(group_ids(index, config.data.group), near_duplicate_groups(index, config.data))
    stage = launch(config.runtime, _evaluate, out, config, task, trained, index, groups)
    record = stage.record
    console.print(figure_lines(record["metrics"], record["intervals"]))
    return record


def _evaluate(
    runtime: Runtime,
    out: Path,
    config: RunConfig,
    task: DetectionTask,
    trained: Stage,
    index: Index,
    groups: np.ndarray,
) -> Stage:
    return evaluate_stage(Place(out, alone=True), "evaluate", config, task, trained, index, groups, runtime)


def evaluate_stage(
    place: Place,
    name: str,
    config: RunConfig,
    task: DetectionTask,
    trained: Stage,
    test: Index,
    groups: np.ndarray,
    runtime: Runtime,
) -> Stage:
    """The stage that measures the model of `trained` on `test`.

    Args:
        place: where the stage is made.
        name: the stage's name.
        config: the run.
        task: decodes and names the classes.
        trained: the training stage whose model is measured.
        test: the test images.
        groups: (images,) numbers of images that are resampled together.
        runtime: devices.
    """
    key = {
        "kind": "evaluate",
        "model": trained.hash,
        "postprocess": config.postprocess.model_dump(mode="json"),
        "eval": config.eval.model_dump(mode="json", exclude={"points"}),
        "data": config.data.model_dump(mode="json"),
        "test": test.fingerprint,
    }

    def work(stage: Stage) -> dict[str, Any]:
        model = load_detector(trained)
        measured = measure(model, task, test, config, runtime)
        return save_measured(stage.folder, measured, task, test, groups, config) if runtime.is_main else {}

    return run_stage(place, name, key, runtime, work)


def measure(model: RetinaNet, task: DetectionTask, index: Index, config: RunConfig, runtime: Runtime) -> Measured:
    """The model's figures on `index`, seen in one view; processes share the work, all get the result."""
    predictions = predict_all(model, task, index, config, runtime)
    truth = [shown_boxes(index, row, config.data) for row in range(len(index))]
    found = [prediction.boxes or Boxes.empty() for prediction in predictions]
    return Measured(detection_metrics(truth, found, task.class_names), truth, predictions)


def predict_all(
    model: RetinaNet, task: DetectionTask, index: Index, config: RunConfig, runtime: Runtime
) -> list[Prediction]:
    """A prediction for every image of `index`, in its order, on every process."""
    model = model.to(runtime.device).eval()
    rows = np.arange(runtime.rank, len(index), runtime.world_size)
    batches = evaluation_batches(
        index,
        canvas=config.model.canvas,
        data=config.data,
        device_batch_size=config.teacher.batch_size,
        rows=rows,
        workers=runtime.workers,
        tolerant=False,
    )
    mine: list[Prediction] = []
    with Progress("predict", len(rows), runtime.is_main, unit="images") as progress:
        for batch, _ in batches:
            assert batch is not None, "an intolerant loader skips nothing"
            with runtime.autocast():
                mine += task.predict(model, batch.to(runtime.device), None)
            progress.advance(len(batch))
    every = [prediction for share in runtime.gather(mine) for prediction in share]
    return sorted(every, key=lambda prediction: prediction.image_id)


def save_measured(
    folder: Path, measured: Measured, task: DetectionTask, test: Index, groups: np.ndarray, config: RunConfig
) -> dict[str, Any]:
    """Writes the tables that the report and the comparison read; returns the stage's record."""
    found = [prediction.boxes or Boxes.empty() for prediction in measured.predictions]
    matches = match_detections(measured.truth, found, len(task.class_names))
    with atomic(folder / "matches.npz") as temporary:
        matches.save(temporary)
    sizes = [prediction.size for prediction in measured.predictions]
    _write_table(
        folder / "images.parquet",
        {
            "image_id": np.arange(len(test)),
            "path": [str(test.path(row)) for row in range(len(test))],
            "height": [height for height, _ in sizes],
            "width": [width for _, width in sizes],
        },
    )
    _write_table(folder / "truth.parquet", _box_columns(measured.truth, ("area", "ignore")))
    _write_table(folder / "predictions.parquet", _box_columns(found, ("scores",)))
    return {
        "kind": "evaluate",
        "num_images": len(test),
        "metrics": measured.metrics,
        "intervals": _intervals(matches, measured.metrics, groups, config),
        "task": config.task,
    }


def _intervals(matches: Matches, metrics: dict[str, Any], groups: np.ndarray, config: RunConfig) -> dict[str, Any]:
    resampled = resample(matches, groups, config)
    return {
        name: stats.percentile_interval(resampled[name], metrics[name], config.eval.confidence).as_dict()
        for name in POINT_FIGURES
        if metrics[name] is not None
    }


def resample(matches: Matches, groups: np.ndarray, config: RunConfig) -> dict[str, np.ndarray]:
    """Figures of every bootstrap resample, by name; the resamples are the same for every model of one test set."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xB007]))
    weights = stats.resample_weights(groups, config.eval.resamples, rng)
    return bootstrap_metrics(matches, weights, threads=os.cpu_count() or 1)


def _box_columns(rows: Sequence[Boxes], extra: tuple[str, ...]) -> dict[str, Any]:
    xyxy = np.concatenate([boxes.xyxy for boxes in rows]) if rows else np.zeros((0, 4), np.float32)
    columns: dict[str, Any] = {"image_id": np.repeat(np.arange(len(rows)), [len(boxes) for boxes in rows])}
    columns |= {name: xyxy[:, axis] for axis, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns["label"] = np.concatenate([boxes.labels for boxes in rows])
    for name in extra:
        column = "score" if name == "scores" else name
        columns[column] = np.concatenate([getattr(boxes, name) for boxes in rows])
    return columns


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
