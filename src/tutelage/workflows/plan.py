"""What a fit will do and how long that takes: one step measured on this machine, memory and disk tried too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tutelage.config import RunConfig
from tutelage.engine.guard import rehearse, require_disk
from tutelage.engine.objectives import Student
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.tasks.table import build_task
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage

STATE_COPIES = 6  # weights, averaged weights, two optimizer moments, the finished model, one checkpoint being replaced
VIEW_SHARE = 1 / 3  # of a training step's work that a forward pass takes


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
        InputError: the batch does not fit into memory, or the disk has too little space.
    """
    sets = prepared.sets
    assert sets.pool is not None, "fit refuses to start without a pool"
    task = build_task(config, sets.labeled.class_names)
    objective = Student(task, task.build_model(), config.student)
    student, teacher, ratio = config.student, config.teacher, config.pseudo.ratio
    sizes = {"labeled": student.batch_size, "second": student.batch_size * ratio}
    image_seconds = rehearse(objective, config.model.canvas, sizes, runtime) / runtime.world_size
    parameters = sum(weight.numel() for weight in objective.parameters())
    chains = config.rounds * config.repeats
    require_disk(folder, 4 * parameters * STATE_COPIES * (1 + (2 + config.hidden_arm) * chains))

    views = len(config.label.views) * len(config.label.scales)
    seen = image_seconds * VIEW_SHARE
    teacher_steps, student_steps = (num_steps_for(part, len(sets.labeled)) for part in (teacher, student))
    arms = ("control", "student", "hidden") if config.hidden_arm else ("control", "student")
    stores = 1 + (config.rounds - 1) * config.repeats - ("pseudo-1" in given)
    plan = [PlannedStage("label", stores, f"{len(sets.pool)} images, {views} views", seen * views * len(sets.pool))]
    if "teacher" not in given:
        work = f"{teacher_steps} steps of {teacher.batch_size} images"
        plan.insert(0, PlannedStage("teacher", 1, work, image_seconds * teacher.batch_size * teacher_steps))
    for arm in arms:
        work = f"{student_steps} steps of {student.batch_size} + {student.batch_size * ratio} images"
        plan.append(PlannedStage(arm, chains, work, image_seconds * sum(sizes.values()) * student_steps))
    if sets.test is not None:
        times = 1 + len(arms) * chains
        plan.append(PlannedStage("evaluate", times, f"{len(sets.test)} test images", seen * len(sets.test)))
    return plan


def plan_lines(plan: list[PlannedStage], runtime: str) -> list[str]:
    """The plan as lines of text, with the total."""
    total = sum(stage.times * stage.seconds for stage in plan)
    lines = [
        f"  {stage.name:<9} {stage.times} x {stage.work}: about {_duration(stage.times * stage.seconds)}"
        for stage in plan
        if stage.times
    ]
    return [f"Plan ({runtime}), about {_duration(total)}:", *lines]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
