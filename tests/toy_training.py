"""Trainings of the toy task, small enough to run many of them."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tests.toy_task import ToyTask, toy_network, toy_stream
from tutelage.config import RuntimeConfig, StudentConfig, TrainConfig
from tutelage.engine.loop import Stream, Training, TrainResult, train
from tutelage.engine.objectives import Objective, Student, Supervised
from tutelage.engine.runtime import Runtime, launch

CPU = RuntimeConfig(device="cpu", precision="float32", threads=1, workers=0, log_every=2, checkpoint_seconds=1e9)

OPTIONS: dict[str, Any] = {"lr": 0.05, "lr_rule": "fixed", "batch_size": 4, "ema_decay": 0.9, "clip_norm": 5.0}


def training_in(folder: Path, *, method: str = "student", num_steps: int = 8, **changes: Any) -> Training:
    stream = Stream(None, 4, toy_stream)  # type: ignore[arg-type]  # it makes its images itself
    streams = {"labeled": stream, "second": stream} if method == "student" else {"labeled": stream}
    config = StudentConfig(**OPTIONS) if method == "student" else TrainConfig(**OPTIONS)
    network = toy_network(seed=3)
    objective: Objective = Supervised(ToyTask(), network, "mask")
    if isinstance(config, StudentConfig):
        objective = Student(ToyTask(), network, config)
    training = Training(
        name="toy",
        run_hash="0123456789abcdef",
        folder=folder,
        objective=objective,
        streams=streams,
        config=config,
        num_steps=num_steps,
        seed=5,
        round=0,
    )
    return replace(training, **changes)


def run(training: Training, runtime: RuntimeConfig = CPU) -> TrainResult:
    return launch(runtime, lambda runtime: train(training, runtime))


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def stop_at(steps: int) -> dict[str, Any]:
    def raise_signal(_model: nn.Module, _runtime: Runtime) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    return {"validate": raise_signal, "validate_steps": (steps,)}
