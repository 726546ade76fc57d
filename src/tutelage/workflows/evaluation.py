"""The evaluate stage: predictions of one model on the test images, judged one by one, measured with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import nn

from tutelage import stats
from tutelage.config import LabelConfig, RunConfig
from tutelage.cores import available_cores
from tutelage.data.duplicates import near_duplicate_groups
from tutelage.data.index import Index
from tutelage.data.loader import evaluation_batches
from tutelage.data.splits import group_ids, merge_groups
from tutelage.engine.guard import device_batch, memory_limited
from tutelage.engine.progress import Progress
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic
from tutelage.tasks.table import build_task
from tutelage.tasks.task import Columns, Judged, Tally, Task
from tutelage.types import Prediction
from tutelage.workflows.assembly import load_trained, of_the_models_classes, open_all, open_model
from tutelage.workflows.options import Paths, require_sources
from tutelage.workflows.stages import Place, Stage, console, figure_lines, run_stage

MEASURED_FILES = ("*.parquet", "*.npz", ".tmp-*", "run.json")
TALLY, RESAMPLED = "tally.npz", "resampled.npz"


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
    index = of_the_models_classes(sets, trained, "--test")
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
    task: Task,
    trained: Stage,
    index: Index,
    groups: np.ndarray,
) -> Stage:
    return evaluate_stage(place, "evaluate", config, task, trained, index, groups, runtime)


def evaluate_stage(
    place: Place,
    name: str,
    config: RunConfig,
    task: Task,
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
        task: decodes, judges and names the classes.
        trained: the training stage whose model is measured.
        test: the test images.
        groups: (images,) numbers of images that are resampled together.
        runtime: devices.
    """
    key = {
        "kind": "evaluate",
        "task": config.task,
        "seed": config.seed,  # of the resamples
        "few_groups": stats.FEW_GROUPS,
        "weights": trained.hash,
        "model": config.model.model_dump(mode="json", exclude={"init", "num_classes"}),
        "postprocess": config.postprocess.model_dump(mode="json"),
        "eval": config.eval.model_dump(mode="json", exclude={"points"}),
        "data": config.data.model_dump(mode="json"),
        "test": test.fingerprint,
    }

    def work(stage: Stage) -> dict[str, Any]:
        judged = judge_all(load_trained(trained, config.task), task, test, config, runtime)
        return save_measured(stage.folder, judged, task, test, groups, config) if runtime.is_main else {}

    return run_stage(place, name, key, runtime, work)


def judge_all(model: nn.Module, task: Task, index: Index, config: RunConfig, runtime: Runtime) -> list[Judged]:
    """Every image of `index` judged in one view, in its order; processes share the work, all get the result."""
    mine = list(_judged_share(model, task, index, config, runtime))
    every: list[Judged] = [one for share in runtime.gather(mine) for one in share]
    return sorted(every, key=lambda one: one.image_id)


def _judged_share(model: nn.Module, task: Task, index: Index, config: RunConfig, runtime: Runtime) -> Iterator[Judged]:
    rows = np.arange(runtime.rank, len(index), runtime.world_size)
    for prediction in predictions_of("predict", model, task, index, rows, None, config, runtime):
        yield task.judge(prediction, index, config.data)


def predictions_of(
    name: str,
    model: nn.Module,
    task: Task,
    index: Index,
    rows: NDArray[np.int64],
    label: LabelConfig | None,
    config: RunConfig,
    runtime: Runtime,
) -> Iterator[Prediction]:
    """What a model says of the images `rows` of `index`, in their order; one that cannot be read is an error.

    Args:
        name: of the work, as progress and errors have it.
        model: of `task`.
        task: predicts.
        index: labeled images.
        rows: of the index.
        label: views and scales; None is the single pass that is measured.
        config: of the run.
        runtime: devices.
    """
    model = model.to(runtime.device).eval()
    batches = evaluation_batches(
        index,
        canvas=config.model.canvas,
        data=config.data,
        device_batch_size=device_batch(config.teacher.batch_size, runtime),
        rows=rows,
        workers=runtime.workers,
        tolerant=False,
    )
    with Progress(name, len(rows), runtime.is_main, unit="images") as progress:
        for batch, _ in batches:
            assert batch is not None, "an intolerant loader skips nothing"
            with memory_limited(name, len(batch), runtime), runtime.autocast():
                predictions = task.predict(model, batch.to(runtime.device), label)
            yield from predictions
            progress.advance(len(batch))


def save_measured(
    folder: Path, judged: Sequence[Judged], task: Task, test: Index, groups: np.ndarray, config: RunConfig
) -> dict[str, Any]:
    """Writes the tables and resampled figures that report and comparison read; returns the stage's record."""
    tally, metrics = task.tally(judged), task.metrics(judged)
    with atomic(folder / TALLY) as temporary:
        tally.save(temporary)
    resampled = resample(tally, groups, config)
    with atomic(folder / RESAMPLED) as temporary:
        resampled.save(temporary)
    with_truth = tally.groups_with_truth(groups)
    images = {
        "image_id": np.arange(len(test)),
        "path": [str(test.path(row)) for row in range(len(test))],
        "height": [one.size[0] for one in judged],
        "width": [one.size[1] for one in judged],
    }
    for name, columns in {"images": images, **task.tables(judged)}.items():
        _write_table(folder / f"{name}.parquet", columns)
    return {
        "kind": "evaluate",
        "num_images": len(test),
        "metrics": metrics,
        "intervals": intervals_of(resampled, metrics, with_truth, config.eval.confidence),
        "groups_with_truth": with_truth,
        "task": config.task,
    }


def intervals_of(
    resampled: stats.Resampled, metrics: Mapping[str, Any], with_truth: Mapping[str, Any], confidence: float
) -> dict[str, Any]:
    """Intervals of the figures that have one, by name; in `per_class` those of every class, each or None.

    Args:
        resampled: what `resample` returns.
        metrics: figures as measured.
        with_truth: how many groups hold truth, see `Tally.groups_with_truth`; figures of fewer than
            `stats.FEW_WITH_TRUTH` groups get none.
        confidence: coverage.
    """
    kind, figures = resampled.kind, resampled.figures
    whole, parts = {}, [name for name in with_truth if name != "per_class"]
    for name in metrics.keys() - {"per_class", *parts}:
        if metrics[name] is not None:
            whole[name] = stats.figure_interval(figures[name], metrics[name], kind, confidence)
    of_parts = stats.separate_intervals(
        np.stack([figures[name] for name in parts], axis=1) if parts else np.zeros((0, 0)),
        [metrics[name] for name in parts],
        np.array([with_truth[name] for name in parts]),
        kind,
        confidence,
    )
    found = {**whole, **dict(zip(parts, of_parts, strict=True))}
    intervals = {name: one.as_dict() for name in metrics if (one := found.get(name))}
    return {**intervals, "per_class": _class_intervals(resampled, metrics["per_class"], with_truth, confidence)}


def _class_intervals(
    resampled: stats.Resampled, per_class: Mapping[str, Any], with_truth: Mapping[str, Any], confidence: float
) -> dict[str, dict[str, Any]]:
    groups = np.array(with_truth["per_class"])
    columns = {}
    for key, values in resampled.figures.items():
        metric = key.removeprefix("class_")
        if metric != key:
            points = [figures[metric] for figures in per_class.values()]
            columns[metric] = stats.separate_intervals(values, points, groups, resampled.kind, confidence)
    return {
        name: {metric: one and one.as_dict() for metric, one in zip(columns, intervals, strict=True)}
        for name, *intervals in zip(per_class, *columns.values(), strict=True)
    }


def resample(tally: Tally, groups: np.ndarray, config: RunConfig) -> stats.Resampled:
    """Figures of the test set redrawn, by name; the draws are the same for every model of one test set."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xB007]))
    draws = stats.draw(groups, config.eval.resamples, rng)
    return stats.Resampled(draws.kind, tally.resample(draws.weights, threads=available_cores()))


def read_resampled(folder: Path) -> stats.Resampled:
    """Figures of the redrawn test set that an evaluate stage has kept."""
    return stats.Resampled.load(folder / RESAMPLED)


def _write_table(path: Path, columns: Columns) -> None:
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
