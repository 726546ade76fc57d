"""What could stop a training midway: memory, disk, signals; activations computed again."""

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy_task import CANVAS, ToyBlock, ToyTask, toy_batch, toy_network
from tests.toy_training import CPU
from tutelage.config import StudentConfig
from tutelage.engine.guard import StopSignals, StreamSize, device_batch, rehearse, require_disk, split_batch
from tutelage.engine.memory import available_bytes, step_bytes
from tutelage.engine.objectives import Objective, Student, Supervised
from tutelage.engine.recompute import blocks, recomputed_activations
from tutelage.engine.runtime import Runtime, launch
from tutelage.types import InputError


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


def test_rehearsal_changes_nothing_and_names_the_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Student(ToyTask(), toy_network(), StudentConfig())
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    check = partial(rehearse, objective, {"labeled": StreamSize(8, CANVAS), "second": StreamSize(16, CANVAS)})
    assert 0 < launch(CPU, check) < 0.01  # seconds a pixel
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
        sizes = {"labeled": StreamSize(1, CANVAS), "second": StreamSize(16, CANVAS)}
        launch(CPU, partial(rehearse, objective, sizes))


def test_memory_of_a_cpu_is_reckoned_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Supervised(ToyTask(), toy_network(), "mask")
    check = partial(rehearse, objective, {"labeled": StreamSize(64, CANVAS)})
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
    with pytest.raises(InputError, match="MB are free on this disk; the run needs about 1,000,000,000,000 MB"):
        require_disk(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize(("size", "largest", "micro_batches"), [(8, 0, 1), (8, 8, 1), (8, 3, 4), (8, 1, 8), (6, 4, 2)])
def test_device_batch_size_sets_the_micro_batches(size: int, largest: int, micro_batches: int) -> None:
    config = CPU.model_copy(update={"device_batch_size": largest})
    assert launch(config, lambda runtime: split_batch({"labeled": size}, runtime)) == micro_batches


def test_all_streams_must_divide_into_the_micro_batches() -> None:
    config = CPU.model_copy(update={"device_batch_size": 3})
    assert launch(config, lambda runtime: split_batch({"labeled": 12, "extra": 6}, runtime)) == 6
    with pytest.raises(
        InputError, match=r"stream 'extra': its 5 images .* 1 devices x 4 micro-batches.*joint\.batch_size"
    ):
        launch(config, lambda runtime: split_batch({"labeled": 12, "extra": 5}, runtime))


@pytest.mark.parametrize(
    ("size", "devices", "largest", "images"), [(8, 1, 0, 8), (8, 1, 3, 3), (8, 2, 0, 4), (8, 3, 0, 2), (2, 4, 16, 1)]
)
def test_inference_passes_as_many_images_as_a_training(size: int, devices: int, largest: int, images: int) -> None:
    config = CPU.model_copy(update={"device_batch_size": largest})

    def ask(runtime: Runtime) -> int:
        runtime.world_size = devices
        return device_batch(size, runtime)

    assert launch(config, ask) == images
