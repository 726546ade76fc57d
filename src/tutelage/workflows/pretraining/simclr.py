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
from tutelage.engine.contrastive import SimCLR
from tutelage.engine.guard import split_batch
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.models.embedder import Embedder
from tutelage.models.foreign import LoadReport
from tutelage.models.init import initialize, save_model
from tutelage.types import InputError
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.pretraining.probe import Probe, probe_rows
from tutelage.workflows.pretraining.supervised import base_key
from tutelage.workflows.stages import Place, Stage, console, run_stage


def pretrain_simclr(runtime: Runtime, config: RunConfig, place: Place, data: PretrainData) -> Stage:
    """The stage `pretrain`: a network trained on views of all images but those held out, then probed on these.

    Raises:
        InputError: a batch without others to contrast with, or one that would pass in parts.
    """
    images = data.images if data.pool is None else join([data.images, data.pool])
    _check_batch(config, images, runtime)
    pool = {} if data.pool is None else {"unlabeled": data.pool.fingerprint}
    key = {**base_key(config, data), **pool, "simclr": config.pretrain.simclr.model_dump(mode="json")}

    def work(stage: Stage) -> dict[str, Any]:
        model, report = _start(config, runtime)
        if runtime.is_main:
            console.print(f"{stage.name} starts from {report}")
        training = _training(stage, model, images, config)
        result = loop.train(training, runtime)
        assert isinstance(result.model, Embedder), type(result.model)
        probe = _probed(result.model, data, config, runtime)
        if runtime.is_main:
            save_model(stage.folder / "model", result.model, _card(stage, config, data, probe))
        return {
            "kind": "pretrain",
            **probe,
            "num_images": {"images": len(images)},
            "leaks": data.leaks,
            "load_report": report.as_dict(),
            "warning": training.objective.warning(result.losses),
            **result.as_dict(),
        }

    return run_stage(place, "pretrain", key, runtime, work)


def _start(config: RunConfig, runtime: Runtime) -> tuple[Embedder, LoadReport]:
    """The network before training, the same each time, and what was loaded into it."""
    runtime.seed_everything(config.seed)
    options = config.pretrain.simclr
    model = Embedder(config.model, options.projection_width, options.projection_layers)
    return model, initialize(model, config.model.init, backbone_name=config.model.backbone)


def _training(stage: Stage, model: Embedder, images: Index, config: RunConfig) -> loop.Training:
    batches = partial(view_batches, data=config.data, pretrain=config.pretrain)
    return loop.Training(
        name=stage.name,
        run_hash=stage.hash,
        folder=stage.folder,
        objective=SimCLR(model, config.pretrain.simclr.temperature),
        streams={"images": loop.Stream(images, config.train.batch_size, batches)},
        config=config.train,
        num_steps=num_steps_for(config.train, len(images)),
        seed=config.seed,
        round=0,
    )


def _probed(model: Embedder, data: PretrainData, config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Linear evaluation of the trained network, and of its start, which shows what the training was worth."""
    if data.labeled is None or not len(data.held_out):
        return {"accuracy": None}
    kept = np.setdiff1d(np.arange(len(data.labeled)), data.held_out)
    probe = Probe(data.labeled, probe_rows(kept), data.held_out, config, runtime)
    found, start = probe.measure(model), probe.measure(probe.settle(_start(config, runtime)[0]))
    verdict = (
        f"A linear classifier of the frozen features is right on {100 * found['accuracy']:.1f} % of "
        f"{len(data.held_out)} held-out images; of those of the same network before the training, on "
        f"{100 * start['accuracy']:.1f} %."
    )
    return {
        "accuracy": found["accuracy"],
        "accuracy_of_start": start["accuracy"],
        "probe": {"images": len(probe.trained), "decay": found["decay"], "decay_of_start": start["decay"]},
        "verdict": verdict,
    }


def _card(stage: Stage, config: RunConfig, data: PretrainData, probe: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": "embedding",
        "class_names": list(data.source.class_names),
        "data": config.data.model_dump(mode="json", include={"range"}),  # 16-bit pictures are read the same later
        "hash": stage.hash,
        "accuracy": probe["accuracy"],
    }


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
