"""The label stage: the teacher over the pool, into a pseudo-label store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tutelage.config import PseudoConfig, RunConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.loader import evaluation_batches
from tutelage.data.pseudo import (
    Leak,
    Manifest,
    PseudoStore,
    StoreWriter,
    open_store,
    score_limits,
    store_index,
    with_class_shares,
)
from tutelage.engine.guard import device_batch, memory_limited
from tutelage.engine.progress import Progress
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import read_json
from tutelage.tasks.table import TASKS, build_task
from tutelage.tasks.task import Task
from tutelage.types import IGNORE, Annotation, Batch, Boxes, Prediction, Skipped
from tutelage.workflows.assembly import PSEUDO_LABELS, load_trained, open_all, open_model, require_format
from tutelage.workflows.options import Paths, require_sources
from tutelage.workflows.stages import Place, Stage, console, run_stage
from tutelage.workflows.watching import LabelGuard

Outcome = Prediction | Skipped | Leak
Size = tuple[int, int]
SKIPPED_NAMED = 50
STORE_FILES = ("part-*.parquet", ".tmp-*", "manifest.json", "run.json", "export")


def label(
    model: str | Path,
    *,
    unlabeled: Paths,
    out: str | Path,
    test: Paths = (),
    recipe: str | Path = "",
    export: str = "",
    device: str = "",
    devices: int = 0,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Pseudo-labels a pool with a model, into a store in `out`; a stopped labeling continues.

    Args:
        model: run, stage or model folder.
        unlabeled: the pool.
        out: folder of the store.
        test: images that must not be labeled; those found in the pool are kept out and counted.
        recipe: where `label` and `pseudo` come from; the model's card alone when empty.
        export: also write what is above the threshold to `out/export`: boxes as coco, yolo or voc, masks as png or
            coco.
        device: auto, cpu, cuda or mps.
        devices: how many.
        overwrite: replace the store that is there.
        overrides: `key=value` options.

    Returns:
        The store's record, as in `out/run.json`.
    """
    out = Path(out)
    teacher, config = open_model(
        model, recipe, overrides, device=device, devices=devices, unlabeled=unlabeled, test=test
    )
    require_sources(config, "unlabeled")
    annotation = TASKS[config.task].annotation
    if export:
        require_format("--export", export, PSEUDO_LABELS, annotation)
    class_names = tuple(read_json(teacher.model_folder / "model.json")["class_names"])
    score_limits(config.pseudo, class_names)  # refused before the pool is labeled
    place = Place(out, own_files=STORE_FILES)
    place.prepare(overwrite=overwrite)
    pool = open_all(config.sources.unlabeled, config, unlabeled=True)
    kept_out = open_all(config.sources.test, config)
    assert pool is not None, "require_sources has seen to it"
    pool = pool.with_classes(class_names)  # as fit opens it, so that the store enters one
    held_out = () if kept_out is None else (kept_out.with_classes(class_names),)
    stage = launch(config.runtime, _label_alone, place, config, teacher, pool, held_out)
    store = open_store(stage.folder)
    pseudo = with_class_shares(config.pseudo, store)
    counts = ", ".join(f"{value} {name}" for name, value in store.counts(pseudo).items())
    console.print(f"{out}: {counts}")
    if export:
        write, name = PSEUDO_LABELS[annotation][export]
        write(out / "export" / name, RECORDS[annotation](store, pool, pseudo), class_names)
        console.print(f"Exported to {out / 'export' / name}")
    return stage.record


def _box_records(store: PseudoStore, pool: Index, pseudo: PseudoConfig) -> Iterator[tuple[str, Size, Boxes]]:
    kept = store_index(store, pool, pseudo)
    return ((kept.relative_path(row), kept.size(row), kept.boxes(row)) for row in range(len(kept)))


def _mask_records(
    store: PseudoStore, pool: Index, pseudo: PseudoConfig
) -> Iterator[tuple[str, Size, NDArray[np.uint8]]]:
    for one in store.masks(store.usable_rows(), pseudo):
        if pseudo.empty != "drop" or (one.mask != IGNORE).any():
            yield one.path, one.size, one.mask


RECORDS: dict[Annotation, Callable[[PseudoStore, Index, PseudoConfig], Iterator[Any]]] = {
    "boxes": _box_records,
    "masks": _mask_records,
}
"""What is exported of a store: relative path, size of the image, and its boxes or mask."""


def _label_alone(
    runtime: Runtime, place: Place, config: RunConfig, teacher: Stage, pool: Index, held_out: tuple[Index, ...]
) -> Stage:
    card: dict[str, Any] = read_json(teacher.model_folder / "model.json")
    task = build_task(config, tuple(card["class_names"]))
    task.check_label(config.label)
    return label_stage(place, "label", config, task, teacher, pool, held_out, runtime, round_=1)


def label_stage(
    place: Place,
    name: str,
    config: RunConfig,
    task: Task,
    teacher: Stage,
    pool: Index,
    held_out: tuple[Index, ...],
    runtime: Runtime,
    *,
    round_: int,
    labeled: Index | None = None,
) -> Stage:
    """The stage that labels `pool` with `teacher`; copies of `held_out` images are kept out and counted.

    Raises:
        InputError: by what the guard knows of `labeled` images, the labeling is lost, and it is to stop then.
    """
    key = {
        "kind": "label",
        "task": config.task,
        "teacher": teacher.hash,
        "label": config.label.model_dump(mode="json", exclude={"part_size"}),
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "data": config.data.model_dump(mode="json"),
        "postprocess": config.postprocess.model_dump(mode="json"),
        "pool": pool.fingerprint,
        "held_out": [index.fingerprint for index in held_out],
    }

    def work(stage: Stage) -> dict[str, Any]:
        model = load_trained(teacher, config.task)
        manifest = Manifest(
            annotation=task.annotation,
            teacher=teacher.hash,
            round=round_,
            class_names=task.class_names,
            score_floor=config.postprocess.score_floor,
            label=config.label.model_dump(mode="json"),
            pool=pool.fingerprint,
            held_out=tuple(index.fingerprint for index in held_out),
            key=stage.hash,
            num_images=len(pool),
            part_size=config.label.part_size,
        )
        guard = LabelGuard(stage, config, task, labeled, runtime)
        if labeled is not None:
            guard.try_teacher(partial(label_images, config, task, model, labeled, (), runtime))
        label_rows = partial(label_images, config, task, model, pool, held_out, runtime)
        write_store(stage.folder, manifest, pool, runtime, label_rows, guard)
        return {**store_record(stage.folder, pool, config), "warnings": guard.conclude()}

    return run_stage(place, name, key, runtime, work)


def write_store(
    folder: Path,
    manifest: Manifest,
    pool: Index,
    runtime: Runtime,
    label_rows: Callable[[NDArray[np.int64]], Iterator[Outcome]],
    guard: LabelGuard | None = None,
) -> None:
    """Labels what is not yet in the store; each process takes every `world_size`-th part, the main one ends it."""
    writer = StoreWriter(folder, manifest)
    missing = writer.missing_parts()
    mine = [part for part in missing if part % runtime.world_size == runtime.rank]

    def take(part: int) -> None:
        if guard is not None:
            guard.take(part, num_images=manifest.num_images)

    for part in sorted(set(range(manifest.num_parts)) - set(missing)):
        take(part)
    outcomes = label_rows(_rows(mine, manifest))
    for part in mine:
        writer.write_part(part, islice(outcomes, len(manifest.rows(part))), pool)
        take(part)
    assert next(outcomes, None) is None, "one outcome an image"
    runtime.barrier()
    if runtime.is_main:
        writer.finish()
    runtime.barrier()


def _rows(parts: Iterable[int], manifest: Manifest) -> NDArray[np.int64]:
    size, total = manifest.part_size, manifest.num_images
    ranges = [np.arange(part * size, min((part + 1) * size, total)) for part in parts]
    return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def label_images(
    config: RunConfig,
    task: Task,
    model: nn.Module,
    pool: Index,
    held_out: tuple[Index, ...],
    runtime: Runtime,
    rows: NDArray[np.int64],
) -> Iterator[Outcome]:
    """What became of each of `rows` (a prediction, or why there is none), in their order."""
    model = model.to(runtime.device).eval()
    batches = evaluation_batches(
        pool,
        canvas=config.model.canvas,
        data=config.data,
        device_batch_size=batch_in_part(device_batch(config.teacher.batch_size, runtime), config.label.part_size),
        rows=rows,
        workers=runtime.workers,
        tolerant=True,
    )
    leaks = HashBook.build(join(held_out), config.data) if held_out else None
    return outcomes_of(batches, lambda batch: task.predict(model, batch, config.label), leaks, runtime, len(rows))


def batch_in_part(most: int, part_size: int) -> int:
    """The largest batch of at most `most` images that parts divide into.

    No batch reaches over the end of a part: last digits depend on what else is in a batch, and a stopped labeling must
    continue with the batches that it would have had.
    """
    return max(size for size in range(1, min(most, part_size) + 1) if part_size % size == 0)


def outcomes_of(
    batches: Iterator[tuple[Batch | None, list[Skipped]]],
    predict: Callable[[Batch], list[Prediction]],
    leaks: HashBook | None,
    runtime: Runtime,
    total: int,
) -> Iterator[Outcome]:
    """What became of the images of a tolerant stream, in its order; those that `leaks` holds are kept out."""
    with Progress("label", total, runtime.is_main, unit="images") as progress:
        for batch, skipped in batches:
            found: list[Outcome] = list(skipped)
            if batch is not None:
                with memory_limited("label", len(batch), runtime), runtime.autocast():
                    found += predict(batch.to(runtime.device))
                found = [_without_leak(outcome, batch, leaks) for outcome in found]
            yield from sorted(found, key=lambda outcome: outcome.image_id)
            progress.advance(len(found))


def _without_leak(outcome: Outcome, batch: Batch, leaks: HashBook | None) -> Outcome:
    if leaks is None or not isinstance(outcome, Prediction):
        return outcome
    row = batch.image_ids.tolist().index(outcome.image_id)
    height, width = batch.valid[row, 0].tolist()
    pixels = batch.images[row, 0, :, :height, :width].permute(1, 2, 0).numpy()
    return Leak(outcome.image_id, "also in the test set or selection split") if leaks.contains(pixels) else outcome


def store_record(folder: Path, pool: Index, config: RunConfig) -> dict[str, Any]:
    """What a stage's record says of its store."""
    store = open_store(folder)
    pseudo = with_class_shares(config.pseudo, store)
    return {
        "kind": "label",
        "counts": store.counts(pseudo),
        "skipped": [{"path": path, "reason": reason} for path, reason in store.skipped(SKIPPED_NAMED)],
        "views": list(config.label.views),
        "scales": list(config.label.scales),
        "threshold": pseudo.model_dump(mode="json")["score_threshold"],
        "pool": pool.description,
        "roots": [str(root.resolve()) for root in pool.roots],  # for pages that show its images
    }
