"""Training, read from top to bottom: `train` sets up, steps, logs, saves, and returns the weights.

Called by the workflows for every stage that trains. There are no hooks: what a step does stands in `train` and
`accumulate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.config import TrainConfig
from tutelage.data.index import Index
from tutelage.engine.checkpoint import State, load_checkpoint, save_checkpoint
from tutelage.engine.guard import StopSignals, memory_limited, split_batch
from tutelage.engine.meter import Meter, describe
from tutelage.engine.objectives import Objective, Sums, pack, unpack
from tutelage.engine.optim import averaged_copy, build_optimizer, lr_at, ramped_decay, set_lr, update_average
from tutelage.engine.progress import Progress, TrainingLog, last_losses
from tutelage.engine.recompute import recomputed_activations
from tutelage.engine.runtime import Interrupted, Runtime
from tutelage.engine.watch import Alarm, Guard, stop_if_lost
from tutelage.models.backbones import to_sync_batchnorm
from tutelage.types import Batch, InputError

__all__ = ["Interrupted", "TrainResult", "Training", "accumulate", "train"]

AGREE_EVERY = 20  # steps between the questions of GPU processes whether any was asked to stop


@dataclass(frozen=True)
class Stream:
    """Images of a training, how many of them a step takes, and how they become batches."""

    index: Index
    batch_size: int  # images a step over all devices
    batches: Callable[..., Iterator[list[Batch]]]  # of `data.loader`, told all but its `StreamOptions`


@dataclass(frozen=True)
class Training:
    """One training: what is trained on what, for how long, and where it is written."""

    name: str
    run_hash: str  # of all that the result depends on; a checkpoint of another hash is refused
    folder: Path  # log.jsonl, tensorboard/, and checkpoint/ while unfinished
    objective: Objective
    streams: Mapping[str, Stream]  # the first one's batch is what `runtime.device_batch_size` divides
    config: TrainConfig
    num_steps: int
    seed: int
    round: int
    validate: Callable[[nn.Module, Runtime], Mapping[str, float]] | None = None  # every process calls it
    validate_steps: tuple[int, ...] = ()  # finished steps after which it is called
    guard: Guard = "warn"  # what happens when the watch finds it lost
    average: Callable[[int], float] | None = None  # decay after a step; None: that of `config.ema_decay`, ramped

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Images a step over all devices, by stream."""
        return {name: stream.batch_size for name, stream in self.streams.items()}

    @property
    def keeps_average(self) -> bool:
        """Whether the weights are averaged."""
        return self.average is not None or self.config.ema_decay > 0

    def decay(self, step: int) -> float:
        """Of the averaged weights after `step` (from 0)."""
        return ramped_decay(self.config.ema_decay, step) if self.average is None else self.average(step)


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    model: nn.Module  # averaged weights where they are kept; in evaluation mode
    losses: dict[str, float]  # last line of the log
    steps: int
    seconds: float  # over all sessions
    images_per_second: float  # of this session, all streams
    log: Path
    resumed_from: int  # steps that an earlier session did
    alarms: tuple[Alarm, ...] = ()  # of the watch, the first one of each cause

    def as_dict(self) -> dict[str, Any]:
        """What the stage's record says of it."""
        return {
            "steps": self.steps,
            "loss_last": self.losses.get("loss"),
            "losses_last": self.losses,
            "train_seconds": round(self.seconds, 2),
            "images_per_second": round(self.images_per_second, 2),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "resumed_from": self.resumed_from,
            "warnings": [alarm.as_dict() for alarm in self.alarms],
        }


def train(training: Training, runtime: Runtime) -> TrainResult:
    """Trains to the end, from the folder's checkpoint if there is one.

    Raises:
        InputError: a loss is not finite, the disk is full, the checkpoint is of another run, or the training is lost
            and the guard is to stop it; its checkpoint is written then.
        Interrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint written.
    """
    config, num_steps = training.config, training.num_steps
    state = _build_state(training, runtime)
    load_checkpoint(training.folder, training.run_hash, state)
    first = state.step
    with ExitStack() as stack:
        log = stack.enter_context(TrainingLog(training.folder, first, runtime.is_main))
        progress = stack.enter_context(Progress(training.name, num_steps, runtime.is_main, first=first))
        stack.enter_context(recomputed_activations(state.objective.model, runtime.config.activation_checkpointing))
        wrapped = runtime.setup(state.objective)
        images = sum(training.batch_sizes.values())
        meter = Meter(training.name, state, images)
        ask_every = AGREE_EVERY if runtime.world_size > 1 and runtime.device.type != "cpu" else 1
        stop = stack.enter_context(StopSignals())
        for step, micro_batches in enumerate(_open_streams(training, runtime, first), start=first):
            runtime.seed_everything(training.seed, training.round, step, runtime.rank)
            set_lr(state.optimizer, lr_at(step, config, num_steps))
            with memory_limited(training.name, len(next(iter(micro_batches[0].values()))), runtime):
                sums, counts = accumulate(wrapped, state.objective, micro_batches, state.ema, runtime)
                norm = _clip_gradient(state.objective.model, config.clip_norm)
                state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema is not None:
                update_average(state.ema, state.objective.model, training.decay(step))
            state.step = step + 1
            figures = state.objective.report(sums, counts)
            meter.add({**figures, "gradient_norm": norm})
            state.watch.begin(figures["loss"])
            state.objective.update(sums, counts)

            progress.advance()
            logged = state.step % runtime.config.log_every == 0 or state.step == num_steps
            if logged:
                log.write(state.step, meter.read())
                progress.note(describe(meter.figures))
                progress.warn(state.objective.warning(meter.figures))
            if training.validate is not None and state.step in training.validate_steps:
                log.write(state.step, _validate(training.validate, state, runtime))
            if logged:
                _heed(state.watch.look(meter.figures, config), training, state, meter, progress, runtime)
            if state.step % ask_every == 0 and _asked_to_stop(stop, runtime):
                break
            if meter.seconds_unsaved() > runtime.config.checkpoint_seconds:
                _save(training, state, meter, runtime)
        if _asked_to_stop(stop, runtime):
            _save(training, state, meter, runtime)
            runtime.barrier()  # the first process to end takes the others with it
            raise Interrupted(
                f"{training.name}: stopped after step {state.step} of {num_steps}; its checkpoint is in "
                f"{training.folder}. Run the same command again to continue."
            )
    return TrainResult(
        model=(state.ema or state.objective.model).eval(),
        losses=meter.figures or last_losses(log.path),  # it was stopped after its last step
        steps=state.step,
        seconds=meter.seconds(),
        images_per_second=meter.images_per_second(),
        log=log.path,
        resumed_from=first,
        alarms=tuple(state.watch.alarms.values()),
    )


def accumulate(
    wrapped: nn.Module,
    objective: Objective,
    micro_batches: Sequence[Mapping[str, Batch]],
    ema: nn.Module | None,
    runtime: Runtime,
) -> tuple[Sums, Tensor]:
    """Adds the gradients of one step to the weights, whatever the numbers of devices and micro-batches.

    Returns:
        Loss sums and counts (S,) over all devices and micro-batches, detached.
    """
    with runtime.autocast():  # a teacher may be asked
        targets = [objective.prepare(batches, ema) for batches in micro_batches]
    counts = runtime.all_reduce_sum(torch.stack([objective.counts(target) for target in targets]).sum(0))
    parts = []
    for number, (batches, target) in enumerate(zip(micro_batches, targets, strict=True), start=1):
        with runtime.accumulating(wrapped, number < len(micro_batches)):
            with runtime.autocast():
                sums: Sums = wrapped(batches, target)
            # Gradients are averaged over devices, but the loss is a sum over them.
            runtime.backward(objective.total(sums, counts) * runtime.world_size)
        parts.append(pack(sums))
    return unpack(runtime.all_reduce_sum(torch.stack(parts).sum(0)), like=sums), counts


def _build_state(training: Training, runtime: Runtime) -> State:
    """Network, optimizer and averaged weights on the device, as the runtime wants them."""
    objective, config = training.objective, runtime.config
    if config.compile and config.activation_checkpointing:
        raise InputError(
            "runtime.compile=true with runtime.activation_checkpointing=true: only one of them works at a time. "
            "Set one of them to false."
        )
    if runtime.world_size > 1 and runtime.device.type == "cuda":
        to_sync_batchnorm(objective)  # in place
    objective.to(runtime.device).train()
    if config.channels_last:
        objective.to(memory_format=torch.channels_last)
    ema = averaged_copy(objective.model) if training.keeps_average else None
    if config.compile:
        objective.compile()
    return State(objective, build_optimizer(objective.model, training.config), ema)


def _open_streams(training: Training, runtime: Runtime, first: int) -> Iterator[list[dict[str, Batch]]]:
    """For each step this process's micro-batches, on the device; each holds a batch of every stream."""
    num_micro_batches = split_batch(training.batch_sizes, runtime)
    workers = _share_workers(runtime.workers, list(training.batch_sizes.values()))
    streams = [
        stream.batches(
            stream.index,
            stream=name,
            seed=training.seed,
            round=training.round,
            batch_size=stream.batch_size,
            first_step=first,
            num_steps=training.num_steps,
            rank=runtime.rank,
            world_size=runtime.world_size,
            micro_batches=num_micro_batches,
            workers=share,
            cache_megabytes=runtime.config.cache_megabytes,
            pin=runtime.device.type == "cuda",
        )
        for (name, stream), share in zip(training.streams.items(), workers, strict=True)
    ]
    for parts in zip(*streams, strict=True):
        yield [
            {name: batch.to(runtime.device) for name, batch in zip(training.streams, micro, strict=True)}
            for micro in zip(*parts, strict=True)
        ]


def _share_workers(workers: int, batch_sizes: Sequence[int]) -> list[int]:
    """Loader processes of each stream, in proportion to its images; later streams (the pool) round up."""
    bounds = [workers * sum(batch_sizes[:number]) // sum(batch_sizes) for number in range(len(batch_sizes) + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]


def _clip_gradient(model: nn.Module, largest: float) -> Tensor:
    """The gradient's global norm before clipping, ()."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if largest > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm, foreach=True)
    return norm


def _validate(
    validate: Callable[[nn.Module, Runtime], Mapping[str, float]], state: State, runtime: Runtime
) -> Mapping[str, float]:
    if state.ema is not None:
        return validate(state.ema, runtime)
    figures = validate(state.objective.model.eval(), runtime)
    state.objective.model.train()
    return figures


def _heed(
    alarms: Sequence[Alarm], training: Training, state: State, meter: Meter, progress: Progress, runtime: Runtime
) -> None:
    """Says what is wrong; a training that is lost ends here if the guard is to stop it, its checkpoint written."""
    for alarm in alarms:
        progress.warn(alarm.text, alarm.cause)
    if training.guard == "stop" and any(alarm.lost for alarm in alarms):
        _save(training, state, meter, runtime)
        runtime.barrier()  # the first process to end takes the others with it
        stop_if_lost(training.name, alarms, training.guard)


def _asked_to_stop(stop: StopSignals, runtime: Runtime) -> bool:
    """Whether any process was asked to stop; all must stop after the same step."""
    if runtime.world_size == 1:
        return stop.asked
    return bool(runtime.all_reduce_sum(torch.tensor(float(stop.asked), device=runtime.device)) > 0)


def _save(training: Training, state: State, meter: Meter, runtime: Runtime) -> None:
    meter.require_finite()
    state.seconds = meter.seconds()
    state.unread, state.unread_steps = meter.unread()
    if runtime.is_main:
        save_checkpoint(training.folder, training.run_hash, state)
    meter.saved()
