"""The precision of a run, measured once when its config.yaml is first written; every stage and continuing reads it."""

from __future__ import annotations

import torch

from tutelage.config import RunConfig
from tutelage.engine.precision import faster_precision
from tutelage.engine.runtime import Runtime, launch
from tutelage.tasks.table import build_task

LARGEST_SIDE = 256  # pixels of the probe's canvas: which precision is faster does not hang on the size


def with_precision(config: RunConfig) -> RunConfig:
    """The config with `runtime.precision=auto` replaced by what this machine is faster in.

    CPUs that multiply in bfloat16 are measured on, for two seconds; of other devices it is known.
    """
    if config.runtime.precision != "auto":
        return config
    precision = launch(config.runtime.model_copy(update={"devices": 1}), _measured, config)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": precision})})


def _measured(runtime: Runtime, config: RunConfig) -> str:
    if runtime.device.type != "cpu" or runtime.precision == "float32":
        return runtime.precision
    height, width = (min(side, LARGEST_SIDE) for side in config.model.canvas)
    with torch.random.fork_rng():
        model = build_task(config, ("object",)).build_model()
    return faster_precision(model, (height, width))
