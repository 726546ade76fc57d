"""The evaluate stage: predictions of one model on the test images, matched once, measured with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage import stats
from tutelage.config import RunConfig
from tutelage.cores import available_cores
from tutelage.data.duplicates import near_duplicate_groups
from tutelage.data.index import Index
from tutelage.data.loader import evaluation_batches, shown_boxes
from tutelage.data.splits import group_ids, merge_groups
from tutelage.engine.guard import device_batch
from tutelage.engine.progress import Progress
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic, read_json
from tutelage.models.model import RetinaNet
from tutelage.tasks.detection import DetectionTask
from tutelage.tasks.metrics import (
    Matches,
    bootstrap_metrics,
    bootstrap_size_metrics,
    detection_metrics,
    match_detections,
)
from tutelage.types import Boxes, Prediction
from tutelage.workflows.assembly import build_task, load_detector, open_all, open_model
from tutelage.workflows.options import Paths, require_sources
from tutelage.workflows.stages import Place, Stage, console, figure_lines, run_stage

MEASURED_FILES = ("*.parquet", "*.npz", ".tmp-*", "run.json")
SIZES = ("small", "medium", "large")
RESAMPLED = "resampled.npz"

Floats = NDArray[np.float64]


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
    place = Place(out, own_files=MEASURED_FILES)
    place.prepare(overwrite=overwrite)
    sets = open_all(config.sources.test, config)
    assert sets is not None, "require_sources has seen to it"
    card: dict[str, Any] = read_json(trained.model_folder / "model.json")
    index = sets.with_classes(tuple(card["class_names"]))
    task = build_task(config, index.class_names)
    groups = merge_groups(group_ids(index, config.data.group), near_duplicate_groups(index, config.data))
    stage = launch(config.runtime, _evaluate, place, config, task, trained, index, groups)
    record = stage.record
    console.print(figure_lines(record["metrics"], record["intervals"]))
    return record


def _evaluate(
    runtime: Runtime,
    place: Place,
    config: RunConfig,
    task: DetectionTask,
    trained: Stage,
    index: Index,
    groups: np.ndarray,
) -> Stage:
    return evaluate_stage(place, "evaluate", config, task, trained, index, groups, runtime)


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
        "seed": config.seed,  # of the resamples
        "weights": trained.hash,
        "model": config.model.model_dump(mode="json", exclude={"init", "num_classes"}),
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
        device_batch_size=device_batch(config.teacher.batch_size, runtime),
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
    """Writes the tables and resampled figures that report and comparison read; returns the stage's record."""
    found = [prediction.boxes or Boxes.empty() for prediction in measured.predictions]
    matches = match_detections(measured.truth, found, len(task.class_names))
    with atomic(folder / "matches.npz") as temporary:
        matches.save(temporary)
    resampled = resample(matches, groups, config)
    with atomic(folder / RESAMPLED) as temporary:
        np.savez_compressed(temporary, **resampled)  # type: ignore[arg-type]
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
        "intervals": intervals_of(resampled, measured.metrics, matches, groups, config.eval.confidence),
        "task": config.task,
    }


def intervals_of(
    resampled: Mapping[str, Floats],
    metrics: Mapping[str, Any],
    matches: Matches,
    groups: np.ndarray,
    confidence: float,
) -> dict[str, Any]:
    """Intervals of the figures that are defined, by name; in `per_class` AP and AP50 of every class, each or None.

    Sizes and classes with truth in fewer than `stats.FEW_WITH_TRUTH` groups get none.
    """
    intervals: dict[str, Any] = {
        name: stats.percentile_interval(resampled[name], metrics[name], confidence).as_dict()
        for name in ("ap", "ap50", "ap75")
        if metrics[name] is not None
    }
    sizes = [f"ap_{size}" for size in SIZES]
    found = stats.separate_intervals(
        np.stack([resampled[name] for name in sizes], axis=1),
        [metrics[name] for name in sizes],
        np.array([matches.groups_with_size(groups, size) for size in SIZES]),
        confidence,
    )
    intervals |= {name: one.as_dict() for name, one in zip(sizes, found, strict=True) if one}
    return {**intervals, "per_class": _class_intervals(resampled, metrics["per_class"], matches, groups, confidence)}


def _class_intervals(
    resampled: Mapping[str, Floats],
    per_class: Mapping[str, Any],
    matches: Matches,
    groups: np.ndarray,
    confidence: float,
) -> dict[str, dict[str, Any]]:
    with_truth = matches.groups_with_truth(groups)
    columns = {}
    for metric in ("ap", "ap50"):
        points = [figures[metric] for figures in per_class.values()]
        columns[metric] = stats.separate_intervals(resampled[f"class_{metric}"], points, with_truth, confidence)
    return {
        name: {metric: one and one.as_dict() for metric, one in zip(columns, intervals, strict=True)}
        for name, *intervals in zip(per_class, *columns.values(), strict=True)
    }


def resample(matches: Matches, groups: np.ndarray, config: RunConfig) -> dict[str, Floats]:
    """Figures of every bootstrap resample, by name; the resamples are the same for every model of one test set."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xB007]))
    weights = stats.resample_weights(groups, config.eval.resamples, rng)
    threads = available_cores()
    return {
        **bootstrap_metrics(matches, weights, threads=threads),
        **bootstrap_size_metrics(matches, weights, threads=threads),
    }


def read_resampled(folder: Path) -> dict[str, Floats]:
    """Figures (R,) and class figures (R, K) of every resample that an evaluate stage has kept, by name."""
    with np.load(folder / RESAMPLED, allow_pickle=False) as stored:
        return dict(stored)


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
