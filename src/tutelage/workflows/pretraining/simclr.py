"""SimCLR pre-training: a backbone that learns from images alone, and what a linear classifier then makes of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.loader import view_batches
from tutelage.engine import loop
from tutelage.engine.checkpoint import remove_checkpoint
from tutelage.engine.contrastive import SimCLR
from tutelage.engine.guard import split_batch
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.models.embedder import Embedder
from tutelage.models.init import init_digest, initialize, save_model
from tutelage.types import InputError
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.pretraining.probe import Probe, probe_rows
from tutelage.workflows.stages import Place, Stage, run_stage


def pretrain_simclr(runtime: Runtime, config: RunConfig, place: Place, data: PretrainData) -> Stage:
    """The stage `pretrain`: a network trained on views of all images but those held out, then probed on these.

    Raises:
        InputError: a batch without others to contrast with, or one that would pass in parts.
    """
    images = data.images if data.pool is None else join([data.images, data.pool])
    _check_batch(config, images, runtime)
    key = {
        "kind": "pretrain",
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "init": init_digest(config.model.init),
        "train": config.train.model_dump(mode="json"),
        "pretrain": config.pretrain.model_dump(mode="json"),
        "data": data.fingerprints,
    }

    def work(stage: Stage) -> dict[str, Any]:
        result = loop.train(_training(stage, images, config, runtime), runtime)
        assert isinstance(result.model, Embedder), type(result.model)
        probe = _probed(result.model, data, config, runtime)
        classes = list(data.source.class_names)
        if runtime.is_main:
            card = {"task": "embedding", "class_names": classes, "hash": stage.hash, "accuracy": probe["accuracy"]}
            save_model(stage.folder / "model", result.model, card)
        figures = {"accuracy": probe["accuracy"], "probe": probe, "held_out": len(data.held_out)}
        counts = {"num_images": {"images": len(images)}, "classes": classes}
        return {"kind": "pretrain", **figures, **counts, **result.as_dict()}

    stage = run_stage(place, "pretrain", key, runtime, work)
    if runtime.is_main:
        remove_checkpoint(stage.folder)
    return stage


def _training(stage: Stage, images: Index, config: RunConfig, runtime: Runtime) -> loop.Training:
    batches = partial(view_batches, data=config.data, pretrain=config.pretrain)
    return loop.Training(
        name=stage.name,
        run_hash=stage.hash,
        folder=stage.folder,
        objective=SimCLR(_start(config, runtime), config.pretrain.simclr.temperature),
        streams={"images": loop.Stream(images, config.train.batch_size, batches)},
        config=config.train,
        num_steps=num_steps_for(config.train, len(images)),
        seed=config.seed,
        round=0,
    )


def _start(config: RunConfig, runtime: Runtime) -> Embedder:
    """The network before training: the same each time."""
    runtime.seed_everything(config.seed)
    options = config.pretrain.simclr
    model = Embedder(config.model, options.projection_width, options.projection_layers)
    initialize(model, config.model.init, backbone_name=config.model.backbone)
    return model


def _probed(model: Embedder, data: PretrainData, config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Linear evaluation of the trained network, and of its start, which shows what the training was worth."""
    if data.labeled is None or not len(data.held_out):
        return {"accuracy": None}
    kept = np.setdiff1d(np.arange(len(data.labeled)), data.held_out)
    probe = Probe(data.labeled, probe_rows(kept), data.held_out, config, runtime)
    found = probe.measure(model)
    start = probe.measure(probe.settle(_start(config, runtime)))
    return {**found, "accuracy_of_start": start["accuracy"], "trained_on": len(probe.trained)}


def _check_batch(config: RunConfig, images: Index, runtime: Runtime) -> None:
    size = config.train.batch_size
    if not 2 <= size <= len(images):
        raise InputError(
            f"train.batch_size={size}: SimCLR tells each image from the others of its batch; of these {len(images)} "
            f"images 2 to {len(images)} a step are allowed. Change train.batch_size, or give more images."
        )
    if split_batch({"images": size}, runtime) > 1:
        raise InputError(
            f"runtime.device_batch_size={runtime.config.device_batch_size}: SimCLR tells each image from all others of "
            f"its step, so that a device's {size // runtime.world_size} images cannot pass in parts. Set it to 0, "
            "and where memory is short runtime.activation_checkpointing=true, or a smaller train.batch_size."
        )
