"""Checkpoints of an unfinished training: safetensors and json, whole or absent.

`checkpoint/checkpoint.json` is replaced last and names the tensor file that belongs to it. What follows from the step
is not stored: the streams' positions, the learning rate, and torch's random state, which the loop seeds anew at each
step.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.engine.objectives import Objective
from tutelage.engine.watch import TrainingWatch
from tutelage.files import make_folder, read_json, write_json
from tutelage.models.tensors import save_tensors
from tutelage.types import InputError

FOLDER = "checkpoint"
RECORD = "checkpoint.json"


@dataclass
class State:
    """What changes during a training."""

    objective: Objective  # the network and the running averages of its losses
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None
    step: int = 0  # finished steps
    seconds: float = 0.0  # spent on them, over all sessions
    unread: dict[str, float] = field(default_factory=dict)  # sums of figures since the last line of the log
    unread_steps: int = 0
    watch: TrainingWatch = field(default_factory=TrainingWatch)


@dataclass(frozen=True)
class Record:
    """What `checkpoint.json` holds."""

    hash: str  # of the run
    step: NonNegativeInt
    seconds: float
    tensors: str  # file beside it
    unread: dict[str, float]
    unread_steps: NonNegativeInt
    watch: dict[str, Any]


RECORDS = TypeAdapter(Record)
DAMAGED = (OSError, SafetensorError, ValueError, LookupError, TypeError)  # pydantic's are ValueErrors


def save_checkpoint(folder: Path, run_hash: str, state: State) -> None:
    """Writes `folder/checkpoint`; the one before stays valid until this one is complete.

    Raises:
        InputError: the disk is full.
    """
    place = folder / FOLDER
    make_folder(place)
    name = f"step-{state.step:08d}.safetensors"
    save_tensors(place / name, _tensors(state))
    watch = state.watch.as_dict()
    record = Record(run_hash, state.step, state.seconds, name, state.unread, state.unread_steps, watch)
    write_json(place / RECORD, asdict(record))
    for old in place.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, run_hash: str, state: State) -> bool:
    """Fills `state` from `folder/checkpoint`; False if there is none.

    Raises:
        InputError: the checkpoint is of another run or network, or damaged.
    """
    place = folder / FOLDER
    if not (place / RECORD).is_file():
        return False
    try:
        record = RECORDS.validate_python(read_json(place / RECORD))
        if record.hash != run_hash:
            raise InputError(
                f"{place}: is the checkpoint of another run ({record.hash[:8]}); this run is {run_hash[:8]}. "
                "Choose another --out, or start anew with --overwrite."
            )
        state.watch = TrainingWatch.from_dict(record.watch)
        _restore(state, load_file(place / record.tensors))
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f"{place}: the checkpoint is damaged ({_one_line(error)}). Start anew with --overwrite."
        ) from None
    except RuntimeError as error:
        raise InputError(f"{place}: {_one_line(error)}. Start anew with --overwrite.") from None
    state.step, state.seconds = record.step, record.seconds
    state.unread, state.unread_steps = record.unread, record.unread_steps
    return True


def remove_checkpoint(folder: Path) -> None:
    """Deletes `folder/checkpoint`, once the training's result is written."""
    (folder / FOLDER / RECORD).unlink(missing_ok=True)  # first: it vouches for the tensors
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _tensors(state: State) -> dict[str, Tensor]:
    """All tensors of the state, as contiguous copies in memory of their own (safetensors refuses shared memory)."""
    named = {f"objective.{name}": tensor for name, tensor in state.objective.state_dict().items()}
    if state.ema is not None:
        named |= {f"ema.{name}": tensor for name, tensor in state.ema.state_dict().items()}
    for number, weight in enumerate(_weights(state.optimizer)):
        kept = state.optimizer.state.get(weight, {})
        named |= {f"optimizer.{number}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    return {name: _contiguous_copy(tensor) for name, tensor in named.items()}


def _restore(state: State, tensors: dict[str, Tensor]) -> None:
    state.objective.load_state_dict(_below("objective.", tensors))
    if state.ema is not None:
        state.ema.load_state_dict(_below("ema.", tensors))
    for number, weight in enumerate(_weights(state.optimizer)):
        kept = _below(f"optimizer.{number}.", tensors)
        state.optimizer.state[weight] = {name: _placed_like(weight, value) for name, value in kept.items()}


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _contiguous_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _placed_like(weight: Tensor, value: Tensor) -> Tensor:
    """On the weight's device in the weight's memory layout; step counts, which are scalars, stay as they are."""
    return torch.empty_like(weight, dtype=value.dtype).copy_(value) if value.ndim else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
