"""Supervised pre-training: a backbone that learns to tell the classes of a set of classified images.

Noisy Student makes its teacher, student and control of the same parts.

Legend: h held-out images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.loader import classification_batches, classification_evaluation_batches
from tutelage.engine import loop
from tutelage.engine.guard import device_batch
from tutelage.engine.objectives import Objective, Supervised
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.models.init import init_digest, initialize, save_model
from tutelage.models.model import Classifier
from tutelage.tasks.classification import ClassificationTask
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.stages import Place, Stage, console, run_stage

CORRECT = "correct.npy"
"""File of a training stage that says which held-out images it classifies correctly, (h,) bool."""

BuildObjective = Callable[[ClassificationTask, Classifier], Objective]


def pretrain_supervised(runtime: Runtime, config: RunConfig, place: Place, data: PretrainData) -> Stage:
    """The stage `pretrain`: a classifier trained on what is not held out, measured on what is."""
    return supervised_stage(place, "pretrain", config, data, runtime)


def supervised_stage(place: Place, name: str, config: RunConfig, data: PretrainData, runtime: Runtime) -> Stage:
    """A classifier trained on labeled images alone."""

    def work(stage: Stage) -> dict[str, Any]:
        streams = {"labeled": stream_of(data.images, config.train.batch_size, config)}

        def build(task: ClassificationTask, model: Classifier) -> Objective:
            return Supervised(task, model, config.train.ignored)

        return train_classifier(stage, config, data, runtime, build, streams, round_=0)

    return run_stage(place, name, base_key(config, data), runtime, work)


def base_key(config: RunConfig, data: PretrainData) -> dict[str, Any]:
    """What the training of any classifier here depends on."""
    methods = {"method", "simclr", "noisy_student"}
    return {
        "kind": "pretrain",
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "init": init_digest(config.model.init),
        "train": config.train.model_dump(mode="json"),
        "pretrain": config.pretrain.model_dump(mode="json", exclude=methods),
        "data": config.data.model_dump(mode="json"),
        "labeled": data.source.fingerprint,
    }


def stream_of(index: Index, batch_size: int, config: RunConfig) -> loop.Stream:
    """Classified images in training, augmented as `pretrain` says."""
    return loop.Stream(index, batch_size, partial(classification_batches, data=config.data, pretrain=config.pretrain))


def train_classifier(
    stage: Stage,
    config: RunConfig,
    data: PretrainData,
    runtime: Runtime,
    build_objective: BuildObjective,
    streams: dict[str, loop.Stream],
    *,
    round_: int,
) -> dict[str, Any]:
    """Trains, measures and saves a classifier in the stage's folder; what the stage's record says of it."""
    runtime.seed_everything(config.seed)
    task = task_of(config, data)
    model = task.build_model()
    report = initialize(model, config.model.init, backbone_name=config.model.backbone)
    if runtime.is_main:
        console.print(f"{stage.name} starts from {report}")
    training = loop.Training(
        name=stage.name,
        run_hash=stage.hash,
        folder=stage.folder,
        objective=build_objective(task, model),
        streams=streams,
        config=config.train,
        num_steps=num_steps_for(config.train, len(data.images)),
        seed=config.seed,
        round=round_,
    )
    result = loop.train(training, runtime)
    assert isinstance(result.model, Classifier), type(result.model)
    correct = correct_on_held_out(task, result.model, data, config, runtime)
    if runtime.is_main:
        _save(stage, result.model, data, correct, config)
    return {
        "kind": "pretrain",
        "accuracy": accuracy_of(correct),
        "held_out": len(correct),
        "num_images": {name: len(stream.index) for name, stream in streams.items()},
        "classes": list(task.class_names),
        "load_report": report.as_dict(),
        **result.as_dict(),
    }


def task_of(config: RunConfig, data: PretrainData) -> ClassificationTask:
    """Classification into the data's classes, with the config's smoothing and dropout."""
    options = config.pretrain
    return ClassificationTask(config.model, options.label_smoothing, data.source.class_names, options.dropout)


def _save(stage: Stage, model: Classifier, data: PretrainData, correct: NDArray[np.bool_], config: RunConfig) -> None:
    np.save(stage.folder / CORRECT, correct)
    card = {
        "task": "classification",
        "class_names": list(data.source.class_names),
        "split": data.split,
        "data": config.data.model_dump(mode="json", include={"range"}),  # 16-bit pictures are read the same later
        "hash": stage.hash,
        "accuracy": accuracy_of(correct),
    }
    save_model(stage.folder / "model", model, card)


def stored_correct(folder: Path) -> NDArray[np.bool_]:
    """(h,) which held-out images the classifier of a training stage gets right."""
    correct: NDArray[np.bool_] = np.load(folder / CORRECT)
    return correct


def accuracy_of(correct: NDArray[np.bool_]) -> float | None:
    """Share of the held-out images whose class is ranked first; None where none was held out."""
    return int(correct.sum()) / len(correct) if len(correct) else None


def correct_on_held_out(
    task: ClassificationTask, model: Classifier, data: PretrainData, config: RunConfig, runtime: Runtime
) -> NDArray[np.bool_]:
    """(h,) whether each held-out image's class is ranked first; every process calls it."""
    batches = classification_evaluation_batches(
        data.source,
        pretrain=config.pretrain,
        data=config.data,
        device_batch_size=device_batch(config.train.batch_size, runtime),
        rows=data.held_out[runtime.rank :: runtime.world_size],
        workers=runtime.workers,
    )
    model = model.to(runtime.device).eval()
    own = [torch.zeros(0, dtype=torch.bool)]
    with torch.inference_mode(), runtime.autocast():
        for batch in batches:
            moved = batch.to(runtime.device)
            outputs = model(moved.images[:, 0], moved.valid[:, 0])
            own.append(task.correct(outputs, task.assign(moved)).cpu())
    correct = np.zeros(len(data.held_out), np.bool_)
    for rank, part in enumerate(runtime.gather(torch.cat(own).numpy())):
        correct[rank :: runtime.world_size] = part
    return correct
