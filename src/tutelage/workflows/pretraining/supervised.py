"""Supervised pre-training: a backbone that learns to tell the classes of a set of classified images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.loader import classification_batches, classification_evaluation_batches
from tutelage.engine import loop
from tutelage.engine.checkpoint import remove_checkpoint
from tutelage.engine.guard import device_batch
from tutelage.engine.objectives import Supervised
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.models.init import init_digest, initialize, save_model
from tutelage.models.model import Classifier
from tutelage.tasks.classification import ClassificationTask
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.stages import Place, Stage, run_stage


def pretrain_supervised(runtime: Runtime, config: RunConfig, place: Place, data: PretrainData) -> Stage:
    """The stage `pretrain`: a classifier trained on what is not held out, measured on what is."""
    assert data.labeled is not None, "open_data refuses images without classes"
    index, held_out, kept = data.labeled, data.held_out, data.images
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
        batches = partial(classification_batches, data=config.data, pretrain=config.pretrain)
        result = loop.train(
            loop.Training(
                name=stage.name,
                run_hash=stage.hash,
                folder=stage.folder,
                objective=Supervised(task, model, config.train.ignored),
                streams={"labeled": loop.Stream(kept, config.train.batch_size, batches)},
                config=config.train,
                num_steps=num_steps_for(config.train, len(kept)),
                seed=config.seed,
                round=0,
            ),
            runtime,
        )
        assert isinstance(result.model, Classifier), type(result.model)
        accuracy = accuracy_of(task, result.model, index, held_out, config, runtime)
        if runtime.is_main:
            card = {"task": "classification", "class_names": list(index.class_names), "hash": stage.hash}
            save_model(stage.folder / "model", result.model, {**card, "accuracy": accuracy})
        figures = {"accuracy": accuracy, "held_out": len(held_out), "num_images": {"labeled": len(kept)}}
        return {"kind": "pretrain", **figures, "classes": list(index.class_names), **result.as_dict()}

    stage = run_stage(place, "pretrain", key, runtime, work)
    if runtime.is_main:
        remove_checkpoint(stage.folder)
    return stage


def accuracy_of(
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
