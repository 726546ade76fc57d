"""The verb `pretrain`: a backbone trained to tell the classes of a folder of class folders."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.loader import classification_batches, classification_evaluation_batches
from tutelage.data.readers import open_index
from tutelage.engine import loop
from tutelage.engine.checkpoint import remove_checkpoint
from tutelage.engine.guard import device_batch
from tutelage.engine.objectives import Supervised
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import read_json, write_json
from tutelage.models.init import init_digest, initialize, save_model
from tutelage.models.model import Classifier
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import InputError
from tutelage.workflows.options import resolve
from tutelage.workflows.stages import Place, Stage, console, open_run, pin_data, run_stage


def pretrain(
    folder: str | Path,
    *,
    out: str | Path,
    recipe: str | Path = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains a backbone on a folder of class folders into `out/model`; `model.init=OUT` then starts from it.

    The `train` and `pretrain` parts of the config are used; a seeded part of each class is held out to measure the
    accuracy of the last weights.

    Args:
        folder: one folder of images a class.
        out: the run folder; the same call on an unfinished run continues it.
        recipe: name or YAML file.
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: continue with the folder's own config.
        overwrite: replace a run that is there.
        overrides: `key=value` options.

    Returns:
        The record, as in `out/run.json`.

    Raises:
        InputError: fewer than two classes, and what else a user can mend.
    """
    out = Path(out)
    config = resolve(recipe, overrides, {"labeled": folder}, seed=seed, device=device, devices=devices)
    config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    if (out / "run.json").is_file():
        record: dict[str, Any] = read_json(out / "run.json")
        console.print(f"{out}: finished earlier, accuracy {_percent(record['accuracy'])}.")
        return record
    index = open_index(config.sources.labeled[0], config.data)
    classes = index.image_classes()
    if len(index.class_names) < 2 or (classes < 0).any():
        raise InputError(
            f"{folder}: {len(index.class_names)} classes were found; pre-training needs at least two folders of "
            "images, one a class. Give the folder that holds them."
        )
    console.print(index.description)
    pin_data(out, {"labeled": index.fingerprint})
    held_out = _held_out(classes, config)
    stage = launch(config.runtime, _pretrain, config, Place(out / "stages"), index, held_out)
    shutil.copytree(stage.folder / "model", out / "model", dirs_exist_ok=True)
    write_json(out / "run.json", stage.record)
    console.print(f"Accuracy {_percent(stage.record['accuracy'])}. Model: {out / 'model'}")
    return stage.record


def _pretrain(runtime: Runtime, config: RunConfig, place: Place, index: Index, held_out: NDArray[np.int64]) -> Stage:
    key = {
        "kind": "pretrain",
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "init": init_digest(config.model.init),
        "train": config.train.model_dump(mode="json"),
        "pretrain": config.pretrain.model_dump(mode="json"),
        "data": index.fingerprint,
    }

    def work(stage: Stage) -> dict[str, Any]:
        runtime.seed_everything(config.seed)
        task = ClassificationTask(config.model, config.pretrain.label_smoothing, index.class_names)
        model = task.build_model()
        initialize(model, config.model.init, backbone_name=config.model.backbone)
        kept = index.select(np.setdiff1d(np.arange(len(index)), held_out))
        result = loop.train(
            loop.Training(
                name=stage.name,
                run_hash=stage.hash,
                folder=stage.folder,
                objective=Supervised(task, model, config.train.ignored),
                streams={"labeled": kept},
                batch_sizes={"labeled": config.train.batch_size},
                config=config.train,
                canvas=(config.pretrain.size, config.pretrain.size),
                data=config.data,
                num_steps=num_steps_for(config.train, len(kept)),
                seed=config.seed,
                round=0,
                open_stream=partial(classification_batches, pretrain=config.pretrain),
            ),
            runtime,
        )
        assert isinstance(result.model, Classifier), type(result.model)
        accuracy = _accuracy(task, result.model, index, held_out, config, runtime)
        if runtime.is_main:
            card = {"task": "classification", "class_names": list(index.class_names), "hash": stage.hash}
            save_model(stage.folder / "model", result.model, {**card, "accuracy": accuracy})
        figures = {"accuracy": accuracy, "held_out": len(held_out), "num_images": {"labeled": len(kept)}}
        return {"kind": "pretrain", **figures, "classes": list(index.class_names), **result.as_dict()}

    stage = run_stage(place, "pretrain", key, runtime, work)
    if runtime.is_main:
        remove_checkpoint(stage.folder)
    return stage


def _accuracy(
    task: ClassificationTask,
    model: Classifier,
    index: Index,
    rows: NDArray[np.int64],
    config: RunConfig,
    runtime: Runtime,
) -> float | None:
    """Share of the held-out images whose class is ranked first; None where none was held out."""
    if not len(rows):
        return None
    batches = classification_evaluation_batches(
        index,
        pretrain=config.pretrain,
        data=config.data,
        device_batch_size=device_batch(config.train.batch_size, runtime),
        rows=rows[runtime.rank :: runtime.world_size],
        workers=runtime.workers,
    )
    correct = torch.zeros((), dtype=torch.int64, device=runtime.device)
    model = model.to(runtime.device).eval()
    with torch.inference_mode(), runtime.autocast():
        for batch in batches:
            moved = batch.to(runtime.device)
            outputs = model(moved.images[:, 0], moved.valid[:, 0])
            correct += task.num_correct(outputs, task.assign(moved))
    return int(runtime.all_reduce_sum(correct)) / len(rows)


def _held_out(classes: NDArray[np.int32], config: RunConfig) -> NDArray[np.int64]:
    """Rows (n,) of a seeded part of each class, sorted."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xC1A55]))
    parts = []
    for label in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == label))
        parts.append(rows[: round(len(rows) * config.pretrain.test_fraction)])
    return np.sort(np.concatenate(parts))


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"
