"""The loop: it learns, resumes bit for bit, stops when asked, and refuses to go on with what is not finite."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.toy_task import CANVAS, ToyBlock, ToyTask, toy_batch, toy_network, toy_stream
from tutelage.config import DataConfig, ModelConfig, PostprocessConfig, RuntimeConfig, StudentConfig, TrainConfig
from tutelage.data.demo import draw_scenes
from tutelage.data.loader import train_batches
from tutelage.data.readers import open_index
from tutelage.engine.guard import StopSignals, rehearse, require_disk, split_batch
from tutelage.engine.loop import Interrupted, Training, TrainResult, train
from tutelage.engine.memory import available_bytes, step_bytes
from tutelage.engine.objectives import Objective, Student, Supervised
from tutelage.engine.progress import Progress, TrainingLog, duration
from tutelage.engine.recompute import blocks, recomputed_activations
from tutelage.engine.runtime import Runtime, launch, resolve
from tutelage.tasks.detection import DetectionTask
from tutelage.types import InputError

CPU = RuntimeConfig(device="cpu", precision="float32", threads=1, workers=0, log_every=2, checkpoint_seconds=1e9)
OPTIONS: dict[str, Any] = {"lr": 0.05, "lr_rule": "fixed", "batch_size": 4, "ema_decay": 0.9, "clip_norm": 5.0}


def training_in(folder: Path, *, method: str = "student", num_steps: int = 8, **changes: Any) -> Training:
    streams: dict[str, Any] = {"labeled": None, "second": None} if method == "student" else {"labeled": None}
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
        batch_sizes=dict.fromkeys(streams, 4),
        config=config,
        canvas=CANVAS,
        data=DataConfig(),
        num_steps=num_steps,
        seed=5,
        round=0,
        open_stream=toy_stream,
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
    same_batch = replace(training, config=config, open_stream=lambda *_, num_steps, **__: iter([fixed] * num_steps))
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


def test_signals_are_answered_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    found: list[bool] = []

    def elsewhere() -> None:
        with StopSignals() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


def step_with(recompute: bool) -> tuple[nn.Module, list[Tensor]]:
    objective = Supervised(ToyTask(), toy_network(double=True).train(), "mask")
    batches = {"labeled": toy_batch(1)}
    targets = objective.prepare(batches)
    with recomputed_activations(objective.model, recompute):
        objective.total(objective(batches, targets), objective.counts(targets)).backward()
    return objective.model, [weight.grad for weight in objective.model.parameters() if weight.grad is not None]


def test_recomputed_activations_leave_gradients_and_batch_norm_statistics_alone() -> None:
    plain, expected = step_with(recompute=False)
    again, found = step_with(recompute=True)
    assert [type(block).__name__ for block in blocks(again)] == ["ToyBlock"]
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(again.named_buffers())[name], buffer), name
    assert plain.body.norm.num_batches_tracked == 1  # type: ignore[union-attr]
    assert again.body.norm.momentum == 0.1  # type: ignore[union-attr]
    assert "forward" not in vars(again.body)


def test_recomputation_keeps_no_activations() -> None:
    def saved_bytes(enabled: bool) -> int:
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        network = nn.Sequential(ToyBlock(4), ToyBlock(4), ToyBlock(4))
        with recomputed_activations(network, enabled), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            network(torch.ones(2, 4, 32, 32))
        return sum(kept)

    inputs = 4 * 2 * 4 * (32 * 32 + 16 * 16 + 8 * 8)  # bytes x images x channels x pixels of the three blocks
    assert saved_bytes(True) == inputs
    assert saved_bytes(False) > 1.5 * inputs


def test_compilation_and_recomputation_exclude_each_other(tmp_path: Path) -> None:
    both = CPU.model_copy(update={"compile": True, "activation_checkpointing": True})
    with pytest.raises(InputError, match=r"runtime\.compile.*only one"):
        run(training_in(tmp_path), both)


@pytest.mark.slow
def test_a_compiled_training_gives_the_same_losses(tmp_path: Path) -> None:
    plain = run(training_in(tmp_path / "plain"))
    compiled = run(training_in(tmp_path / "compiled"), CPU.model_copy(update={"compile": True}))
    assert compiled.losses["loss"] == pytest.approx(plain.losses["loss"], rel=1e-3)


def test_rehearsal_changes_nothing_and_names_the_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Student(ToyTask(), toy_network(), StudentConfig())
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    check = partial(rehearse, objective, CANVAS, {"labeled": 8, "second": 16})
    assert 0 < launch(CPU, check) < 10  # seconds an image
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    forward = Objective.forward

    def limited(self: Objective, batches: Any, targets: Any) -> Any:
        if sum(len(batch) for batch in batches.values()) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batches, targets)

    monkeypatch.setattr(Objective, "forward", limited)
    with pytest.raises(InputError, match=r"8 labeled images at 32x32 .*; 2 do\. Set runtime\.device_batch_size=2"):
        launch(CPU, check)
    launch(CPU.model_copy(update={"device_batch_size": 2}), check)
    with pytest.raises(InputError, match="not even one image"):
        launch(CPU, partial(rehearse, objective, CANVAS, {"labeled": 1, "second": 16}))


def test_memory_of_a_cpu_is_reckoned_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Supervised(ToyTask(), toy_network(), "mask")
    check = partial(rehearse, objective, CANVAS, {"labeled": 64})
    network, batch = toy_network(), toy_batch(0, size=1)

    def forward(size: int) -> Tensor:
        return network(batch.images[:, 0].expand(size, -1, -1, -1), batch.valid[:, 0]).logits

    needed = step_bytes(forward, network, 64)
    assert needed - step_bytes(forward, network, 32) == pytest.approx(needed / 2, rel=0.2)
    monkeypatch.setattr("tutelage.engine.guard.available_bytes", lambda: needed // 3)
    with pytest.raises(InputError, match=r"64 labeled images .* cpu device; 16 do"):
        launch(CPU, check)
    monkeypatch.setattr("tutelage.engine.guard.available_bytes", lambda: 2 * needed)
    launch(CPU, check)


def test_free_memory_is_known() -> None:
    available = available_bytes()
    assert available is None or 2**20 < available < 2**50


def test_free_disk_is_checked(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError, match=r"GB are free on this disk; the run needs about 1000000000\.0 GB"):
        require_disk(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize(("size", "largest", "micro_batches"), [(8, 0, 1), (8, 8, 1), (8, 3, 4), (8, 1, 8), (6, 4, 2)])
def test_device_batch_size_sets_the_micro_batches(size: int, largest: int, micro_batches: int) -> None:
    config = CPU.model_copy(update={"device_batch_size": largest})
    assert launch(config, lambda runtime: split_batch({"labeled": size}, runtime)) == micro_batches


@pytest.mark.parametrize(
    ("cores", "device", "given", "expected"),
    [
        (2, "cpu", {}, (0, 2)),
        (8, "cpu", {}, (2, 6)),
        (8, "cpu", {"devices": 4}, (0, 2)),
        (2, "cpu", {"workers": 1}, (1, 1)),
        (8, "cpu", {"threads": 7}, (1, 7)),
        (1, "cpu", {}, (0, 1)),
        (8, "cuda", {}, (7, 1)),
        (64, "cuda", {"devices": 2}, (16, 1)),
    ],
)
def test_threads_and_workers_share_the_cores(
    cores: int, device: str, given: dict[str, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.engine.runtime._available_cores", lambda: cores)
    chosen = resolve(RuntimeConfig(precision="float32", **given), device)  # type: ignore[arg-type]
    assert (chosen.workers, chosen.threads) == expected
    assert (chosen.workers + chosen.threads) * chosen.devices <= cores


def test_seeds_decide_all_that_torch_draws() -> None:
    def draw(runtime: Runtime) -> list[list[float]]:
        drawn = []
        for seed in ((1, 2), (1, 2), (2, 1)):
            runtime.seed_everything(*seed)
            drawn.append(torch.rand(4).tolist())
        return drawn

    first, again, other = launch(CPU, draw)
    assert first == again != other


def lines_of(work: Callable[[Progress], None], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Progress("label", 100, unit="images", console=Console(width=200)) as progress:
        work(progress)
    return capsys.readouterr().out.splitlines()


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def work(progress: Progress) -> None:
        progress.advance(40)
        progress.note("loss 1.5")
        progress.advance(60)

    lines = lines_of(work, capsys)
    assert lines[0].startswith("label: 40/100 images, loss 1.5, ") and lines[0].endswith(" left")
    assert lines[1:] == ["label: 100/100 images, loss 1.5"]


def test_durations_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3725)] == ["0 s", "59 s", "1:01", "1:02:05"]


def test_only_the_main_process_writes_the_log(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "log", 0, main=False) as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "log").exists()


def test_detectors_on_real_streams_resume_bit_for_bit_with_workers_and_recomputation(tmp_path: Path) -> None:
    index = open_index(draw_scenes(tmp_path / "scenes", images=6, size=64), DataConfig())
    network = ModelConfig(backbone="test_resnet", canvas=(64, 64), pyramid_width=8, head_width=8, head_depth=1)
    task = DetectionTask(network, PostprocessConfig(), index.class_names)

    def make(folder: str, **changes: Any) -> Training:
        training = training_in(tmp_path / folder, num_steps=4, canvas=(64, 64), open_stream=train_batches, **changes)
        torch.manual_seed(0)
        objective = Student(task, task.build_model(), StudentConfig(**OPTIONS))
        return replace(training, objective=objective, streams={"labeled": index, "second": index})

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
    parts = run(make("parts"), auto.model_copy(update={"activation_checkpointing": True})).model.state_dict()
    for name, tensor in parts.items():
        assert torch.equal(tensor, whole[name]), name
