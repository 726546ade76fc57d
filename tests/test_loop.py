"""The loop: it learns, resumes bit for bit, stops when asked, and refuses to go on with what is not finite."""

import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy_task import ToyTask, toy_batch, toy_network
from tests.toy_training import CPU, OPTIONS, log_of, run, stop_at, training_in
from tutelage.config import DataConfig, ModelConfig, PostprocessConfig, StudentConfig
from tutelage.data.demo import draw_scenes
from tutelage.data.loader import train_batches
from tutelage.data.readers import open_index
from tutelage.engine.loop import Interrupted, Stream, Training
from tutelage.engine.objectives import Student
from tutelage.engine.runtime import Runtime
from tutelage.tasks.detection import DetectionTask
from tutelage.types import InputError


@pytest.mark.parametrize("method", ["supervised", "student"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_and_continued_training_equals_one_never_stopped(method: str, optimizer: str, tmp_path: Path) -> None:
    def make(folder: str, **changes: Any) -> Training:
        training = training_in(tmp_path / folder, method=method, **changes)
        return replace(training, config=training.config.model_copy(update={"optimizer": optimizer}))

    whole = run(make("whole"))
    with pytest.raises(Interrupted, match=r"toy: stopped after step 5 of 8; .* Run the same command again"):
        run(make("parts", **stop_at(5)))
    parts = run(make("parts"))
    assert (parts.resumed_from, parts.steps) == (5, 8)
    expected = whole.model.state_dict()
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    steps = [line["step"] for line in log_of(tmp_path / "parts") if "loss" in line]
    assert steps == [2, 4, 6, 8]
    last, last_whole = log_of(tmp_path / "parts")[-1], log_of(tmp_path / "whole")[-1]
    assert last["loss"] == last_whole["loss"]


def test_a_stop_in_the_last_step_is_not_lost(tmp_path: Path) -> None:
    whole = run(training_in(tmp_path / "whole"))
    with pytest.raises(Interrupted, match=r"toy: stopped after step 8 of 8; "):
        run(training_in(tmp_path / "parts", **stop_at(8)))
    parts = run(training_in(tmp_path / "parts"))
    assert (parts.resumed_from, parts.steps) == (8, 8)
    assert not parts.model.training
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.model.state_dict().items())
    assert parts.losses["loss"] == whole.losses["loss"] and parts.losses.keys() == whole.losses.keys()
    assert [line["step"] for line in log_of(tmp_path / "parts") if "loss" in line] == [2, 4, 6, 8]


def test_a_killed_training_continues_from_its_last_checkpoint_without_double_lines(tmp_path: Path) -> None:
    def die(_model: nn.Module, _runtime: Runtime) -> dict[str, float]:
        raise SystemExit

    often = CPU.model_copy(update={"checkpoint_seconds": 0.0, "log_every": 1})
    with pytest.raises(SystemExit):
        run(training_in(tmp_path, validate=die, validate_steps=(5,)), often)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # cut short by the kill
    result = run(training_in(tmp_path), often)
    assert result.resumed_from == 4
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    expected = run(training_in(tmp_path / "whole")).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.state_dict().items())


def test_training_learns_and_logs(tmp_path: Path) -> None:
    fixed = [toy_batch(1)]
    training = training_in(tmp_path, method="supervised", num_steps=120)
    config = training.config.model_copy(update={"clip_norm": 0.0, "warmup_steps": 0})
    stream = replace(training.streams["labeled"], batches=lambda *_, num_steps, **__: iter([fixed] * num_steps))
    same_batch = replace(training, config=config, streams={"labeled": stream})
    result = run(same_batch, CPU.model_copy(update={"log_every": 40}))
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [40, 80, 120]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert {"lr", "loss", "labeled_class", "labeled_box", "gradient_norm", "images_per_second"} < set(lines[0])
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["labeled_class"] + lines[-1]["labeled_box"], rel=1e-5)
    assert result.losses["loss"] == lines[-1]["loss"]
    assert result.as_dict()["parameters"] == sum(weight.numel() for weight in toy_network().parameters())
    assert not result.model.training
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_micro_batches_leave_the_result_as_it_is(tmp_path: Path) -> None:
    def train_without_norms(folder: str, device_batch_size: int) -> dict[str, Tensor]:
        training = training_in(tmp_path / folder, num_steps=3)
        training.objective.model.stem[1] = training.objective.model.body.norm = nn.Identity()
        return run(training, CPU.model_copy(update={"device_batch_size": device_batch_size})).model.state_dict()

    whole, halves = train_without_norms("whole", 0), train_without_norms("halves", 2)
    for name, tensor in whole.items():
        torch.testing.assert_close(halves[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_step_stream_and_values(tmp_path: Path) -> None:
    broken = training_in(tmp_path)
    broken.objective.task = ToyTask(scale=math.inf)
    with pytest.raises(InputError, match=r"toy, step 1: .*labeled.* not finite .*labeled_class inf.*Lower train\.lr"):
        run(broken)
    assert not (tmp_path / "checkpoint").exists()


def test_selection_figures_are_measured_on_averaged_weights_and_logged(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    def validate(model: nn.Module, _runtime: Runtime) -> dict[str, float]:
        seen.append((model.training, model is training.objective.model))
        return {"val_ap": 0.5}

    training = training_in(tmp_path, validate=validate, validate_steps=(4, 8))
    run(training)
    assert seen == [(False, False)] * 2
    assert [line for line in log_of(tmp_path) if "val_ap" in line] == [
        {"step": 4, "val_ap": 0.5},
        {"step": 8, "val_ap": 0.5},
    ]


def test_compilation_and_recomputation_exclude_each_other(tmp_path: Path) -> None:
    both = CPU.model_copy(update={"compile": True, "activation_checkpointing": True})
    with pytest.raises(InputError, match=r"runtime\.compile.*only one"):
        run(training_in(tmp_path), both)


@pytest.mark.slow
def test_a_compiled_training_gives_the_same_losses(tmp_path: Path) -> None:
    plain = run(training_in(tmp_path / "plain"))
    compiled = run(training_in(tmp_path / "compiled"), CPU.model_copy(update={"compile": True}))
    assert compiled.losses["loss"] == pytest.approx(plain.losses["loss"], rel=1e-3)


def test_detectors_on_real_streams_resume_bit_for_bit_with_workers_and_recomputation(tmp_path: Path) -> None:
    index = open_index(draw_scenes(tmp_path / "scenes", images=6, size=64), DataConfig())
    network = ModelConfig(backbone="test_resnet", canvas=(64, 64), pyramid_width=8, head_width=8, head_depth=1)
    task = DetectionTask(network, PostprocessConfig(), index.class_names)

    def make(folder: str, **changes: Any) -> Training:
        training = training_in(tmp_path / folder, num_steps=4, **changes)
        batches = partial(train_batches, data=DataConfig(), canvas=(64, 64), augment=training.config.augment)
        stream = Stream(index, 4, batches)
        torch.manual_seed(0)
        objective = Student(task, task.build_model(), StudentConfig(**OPTIONS))
        return replace(training, objective=objective, streams={"labeled": stream, "second": stream})

    def signal_all(_model: nn.Module, _runtime: Runtime) -> dict[str, float]:  # as a terminal or a scheduler does
        workers = [child.pid or 0 for child in multiprocessing.active_children()]
        for process in (*workers, os.getpid()):
            os.kill(process, signal.SIGINT)
            os.kill(process, signal.SIGTERM)
        time.sleep(0.2)
        assert len(multiprocessing.active_children()) == len(workers) == 2
        return {}

    auto = CPU.model_copy(update={"precision": "auto"})
    whole = run(make("whole"), auto).model.state_dict()
    with pytest.raises(Interrupted, match="after step 2"):
        run(make("parts", validate=signal_all, validate_steps=(2,)), auto.model_copy(update={"workers": 2}))
    with pytest.raises(Interrupted, match="after step 4 of 4"):
        run(make("parts", **stop_at(4)), auto.model_copy(update={"activation_checkpointing": True}))
    parts = run(make("parts"), auto).model.state_dict()
    for name, tensor in parts.items():
        assert torch.equal(tensor, whole[name]), name
