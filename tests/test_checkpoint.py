"""Checkpoints: complete, whole or absent, refused where they belong to another run."""

import resource
from pathlib import Path

import pytest
import torch

from tests.toy_task import ToyTask, toy_batch, toy_network
from tutelage.config import StudentConfig
from tutelage.engine.checkpoint import State, load_checkpoint, remove_checkpoint, save_checkpoint
from tutelage.engine.objectives import Student
from tutelage.engine.optim import averaged_copy, build_optimizer
from tutelage.types import InputError

HASH = "0123456789abcdef"


def fresh(seed: int = 0, optimizer: str = "adamw") -> State:
    config = StudentConfig(optimizer=optimizer, lr=0.1, weight_decay=0.1)
    objective = Student(ToyTask(), toy_network(seed).to(memory_format=torch.channels_last), config)
    return State(objective, build_optimizer(objective.model, config), averaged_copy(objective.model))


def trained(steps: int = 3, optimizer: str = "adamw") -> State:
    state = fresh(optimizer=optimizer)
    for step in range(steps):
        advance(state, step)
    state.step, state.seconds = steps, 12.5
    return state


def advance(state: State, step: int) -> None:
    batches = {"labeled": toy_batch(step), "second": toy_batch(100 + step)}
    targets = state.objective.prepare(batches)
    sums, counts = state.objective(batches, targets), state.objective.counts(targets)
    state.optimizer.zero_grad()
    state.objective.total(sums, counts).backward()
    state.optimizer.step()
    state.objective.update(sums, counts)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_everything_comes_back(tmp_path: Path, optimizer: str) -> None:
    state, other = trained(optimizer=optimizer), fresh(seed=9, optimizer=optimizer)
    save_checkpoint(tmp_path, HASH, state)
    assert load_checkpoint(tmp_path, HASH, other)
    assert (other.step, other.seconds) == (3, 12.5)
    assert other.objective.ratio() == state.objective.ratio() != 1  # type: ignore[attr-defined]
    assert state.ema is not None and other.ema is not None
    torch.testing.assert_close(other.ema.state_dict(), state.ema.state_dict(), rtol=0, atol=0)
    for one in (state, other):
        advance(one, 3)  # equal only if the optimizer's state came back as well
    torch.testing.assert_close(other.objective.state_dict(), state.objective.state_dict(), rtol=0, atol=0)


def test_nothing_to_load(tmp_path: Path) -> None:
    assert not load_checkpoint(tmp_path, HASH, fresh())


def test_another_run_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, HASH, trained())
    with pytest.raises(InputError, match=r"checkpoint of another run \(01234567\).*--overwrite"):
        load_checkpoint(tmp_path, "ffff" * 4, fresh())


def test_another_network_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, HASH, trained())
    wider = fresh()
    wider.objective.model = type(toy_network())(width=16)
    with pytest.raises(InputError, match="size mismatch"):
        load_checkpoint(tmp_path, HASH, wider)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, HASH, trained())
    (tensors,) = (tmp_path / "checkpoint").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path, HASH, fresh())


def test_the_one_before_stays_valid_when_the_disk_is_full(tmp_path: Path) -> None:
    state = trained()
    save_checkpoint(tmp_path, HASH, state)
    state.step = 4
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(InputError, match="run the same command"):
            save_checkpoint(tmp_path, HASH, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    other = fresh()
    assert load_checkpoint(tmp_path, HASH, other)
    assert other.step == 3
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2


def test_only_the_last_is_kept_and_all_can_be_removed(tmp_path: Path) -> None:
    state = trained()
    save_checkpoint(tmp_path, HASH, state)
    state.step = 4
    save_checkpoint(tmp_path, HASH, state)
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["checkpoint.json", "step-00000004.safetensors"]
    remove_checkpoint(tmp_path)
    remove_checkpoint(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
