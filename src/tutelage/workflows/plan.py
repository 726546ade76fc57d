"""What a fit will do and how long that takes: one step measured on this machine, memory and disk tried too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.config import RunConfig, TrainConfig
from tutelage.data.index import Index
from tutelage.engine.guard import FORWARD_SHARE, StreamSize, rehearse, require_disk, split_batch
from tutelage.engine.objectives import Objective
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.tasks.table import build_task
from tutelage.workflows.joint import joint_training, teachers
from tutelage.workflows.modes import MODES, sample_of_pool
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage
from tutelage.workflows.training import start_from

STATE_COPIES = 6  # weights, averaged weights, two optimizer moments, the finished model, one checkpoint being replaced


@dataclass(frozen=True)
class PlannedStage:
    """One kind of stage of a fit: how often it runs, what it does, how long one takes."""

    name: str
    times: int
    work: str
    seconds: float


def make_plan(
    runtime: Runtime, config: RunConfig, prepared: Prepared, given: dict[str, Stage], folder: Path
) -> list[PlannedStage]:
    """The stages of a fit with seconds estimated from one step of the largest, which also tries memory and disk.

    Raises:
        InputError: the batch does not fit into memory, the disk has too little space, or what a training shall start
            from cannot be had.
    """
    sets = prepared.sets
    assert sets.pool is not None, "fit refuses to start without a pool"
    on_labels = teachers(config, prepared.classified) if "teacher" not in given else {}
    arms = ("control", "student", "hidden") if config.hidden_arm else ("control", "student")
    chains = config.rounds * config.repeats
    models = max(1, len(on_labels)) + len(arms) * chains
    apart = prepared.apart
    folds = int(apart.folds.max()) + 1 if apart is not None and apart.folds is not None else 0
    objective = _largest_objective(config, prepared, given)
    parameters = sum(weight.numel() for weight in objective.parameters())
    require_disk(folder, 4 * parameters * STATE_COPIES * (models + folds))
    largest = _streams(config, prepared.classified, config.student.batch_size, config.pseudo.ratio)
    pixel_seconds = rehearse(objective, largest, runtime) / runtime.world_size

    plan = []
    for name, own in on_labels.items():
        streams = _streams(own, prepared.classified, config.teacher.batch_size)
        split_batch({stream: size.images for stream, size in streams.items()}, runtime)  # refused now, not hours later
        plan.append(_training(name, 1, config.teacher, len(sets.labeled), streams, pixel_seconds))
    views = len(config.label.views) * len(config.label.scales)
    seen = pixel_seconds * math.prod(config.model.canvas) * FORWARD_SHARE
    mode, stores = MODES[config.student.mode], 1 + (config.rounds - 1) * config.repeats - ("pseudo-1" in given)
    if apart is not None:
        images, streams = len(apart.images), _streams(config, prepared.classified, config.teacher.batch_size)
        if folds:
            labeled = images - images // folds
            plan.append(_training("fold", folds, config.teacher, labeled, streams, pixel_seconds))
        times = 1 if folds else 1 + (config.rounds - 1) * config.repeats
        plan.append(PlannedStage("certify", times, f"{images} images, {views} views", seen * views * images))
    pool = len(sets.pool if mode.needs_store else sample_of_pool(config, sets.pool))
    plan.append(PlannedStage("label", stores, f"{pool} images, {views} views", seen * views * pool))
    plan += [_training(arm, chains, config.student, len(sets.labeled), largest, pixel_seconds) for arm in arms]
    if sets.test is not None:
        plan.append(PlannedStage("evaluate", models, f"{len(sets.test)} test images", seen * len(sets.test)))
    return plan


def _largest_objective(config: RunConfig, prepared: Prepared, given: Mapping[str, Stage]) -> Objective:
    """The student's, with random weights; what trainings start from is tried too, not found wanting hours later."""
    task = build_task(config, prepared.sets.labeled.class_names)
    if "teacher" not in given or config.student.init == "model":
        start_from(task, config, config.model.init)
    if config.student.init not in ("teacher", "model"):
        start_from(task, config, config.student.init, "student.init")
    most = config.pseudo.model_copy(update={"score_threshold": 0.0})  # the most boxes that there can be
    config = config.model_copy(update={"pseudo": most})
    student = MODES[config.student.mode].objective(task, task.build_model(), config, config.student)
    joint = joint_training(config, prepared.classified, config.joint.student_weight)
    return joint.objective(student) if joint else student


def _streams(config: RunConfig, classified: Index | None, labeled: int, ratio: int = 0) -> dict[str, StreamSize]:
    """The streams of a training with so many labeled images a step, and with `ratio` second ones for each."""
    streams = {"labeled": StreamSize(labeled, config.model.canvas)}
    if ratio:
        streams["second"] = StreamSize(labeled * ratio, config.model.canvas, MODES[config.student.mode].views)
    joint = joint_training(config, classified, 0.0)
    return streams if joint is None else {**streams, joint.stream: StreamSize(joint.batch_size(labeled), joint.canvas)}


def _training(
    name: str,
    times: int,
    part: TrainConfig,
    num_labeled: int,
    streams: Mapping[str, StreamSize],
    pixel_seconds: float,
) -> PlannedStage:
    steps = num_steps_for(part, num_labeled)
    images = " + ".join(str(stream.images) for stream in streams.values())
    seconds = steps * pixel_seconds * sum(stream.pixels for stream in streams.values())
    return PlannedStage(name, times, f"{steps} steps of {images} images", seconds)


def plan_lines(plan: list[PlannedStage], runtime: str) -> list[str]:
    """The plan as lines of text, with the total."""
    total = sum(stage.times * stage.seconds for stage in plan)
    width = max(len(stage.name) for stage in plan)
    lines = [
        f"  {stage.name:<{width}} {stage.times} x {stage.work}: about {_duration(stage.times * stage.seconds)}"
        for stage in plan
        if stage.times
    ]
    return [f"Plan ({runtime}), about {_duration(total)}:", *lines]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
