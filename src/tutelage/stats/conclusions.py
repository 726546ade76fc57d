"""What the intervals allow to be said: the verdict, the recommendation, and whether the teacher had converged.

Differences are in [0, 1], as metrics are; sentences give them in points of a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tutelage.stats.draws import Kind
from tutelage.stats.intervals import Interval, shown

Model = Literal["teacher", "control", "student"]
DecidedOn = Literal["selection split", "test images", "nothing"]
LAST_PART = 0.2  # of a training: a metric still rising there is one that more training would raise


def covers(num_images: int, num_groups: int, kind: Kind, num_seeds: int = 1) -> str:
    """What an interval over test images, and over seeds where there are several, holds and what it does not.

    `kind` is that of the redrawn test sets: few groups have a cluster t-interval, which is said.
    """
    drawn = f"the choice of the {num_images} test images"
    if num_groups < num_images:
        drawn += f", which belong together in {num_groups} groups"
    over = (
        f"a cluster t-interval over {num_groups} groups"
        if num_groups < num_images
        else f"a t-interval over {num_groups} images"
    )
    few = f"; it is {over}, too few for a bootstrap" if kind == "leave-one-out" else ""
    if num_seeds > 1:
        return (
            f"{drawn}, and the {num_seeds} seeds that control and student were trained with; their teacher was "
            f"trained once{few}"
        )
    return f"{drawn} only, not the training: two trainings that differ in nothing but the seed can differ by more{few}"


def verdict(student_minus_control: Interval | None, *, metric: str, num_seeds: int) -> str:
    """One sentence on what self-training did to `metric` (its name as shown: AP50, mIoU) on the test images.

    A difference whose interval holds zero is "not shown". One training each is evidence about two trained models, not
    about the method: only several seeds let a sentence speak of self-training.
    """
    return _verdict(student_minus_control, "self-training", ("student", "control"), metric, num_seeds)


def joint_verdict(teacher_minus_control: Interval | None, *, metric: str) -> str:
    """The same of joint training, whose teacher and the teacher's control are trained once."""
    return _verdict(teacher_minus_control, "joint training", ("teacher", "teacher control"), metric, num_seeds=1)


def _verdict(found: Interval | None, method: str, models: tuple[str, str], metric: str, num_seeds: int) -> str:
    one, other = models
    if found is None:
        return (
            f"Not measured: {metric} of {one} or {other} is undefined on the test images, or leaves no interval "
            "because all of these, or all with truth, belong together."
        )
    difference = f"{_points(found.mean)} {metric}"
    ends = f"{_points(found.low)} to {_points(found.high)}"
    if num_seeds == 1:
        subject = f"hese two trained models differ by {difference} ({one} minus {other}"
        if shown(found):
            return f"T{subject}, interval {ends}); one training each does not show what {method} does."
        return f"Not shown: t{subject}), and the interval {ends} holds zero."
    subject = f"{one} minus {other} is {difference}, the mean of {num_seeds} seeds"
    if not shown(found):
        return f"Not shown: {subject}, and the interval {ends} holds zero."
    return f"{method.capitalize()} {'helped' if found.mean > 0 else 'hurt'}: {subject} (interval {ends})."


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which model to use, and why: a clause that can follow "because"."""

    model: Model
    reason: str


def recommend(differences: Mapping[str, Interval | None], decided_on: DecidedOn) -> Recommendation:
    """The student if it is above control and teacher with both intervals, else the control if above the teacher so.

    Args:
        differences: `student_minus_control`, `student_minus_teacher`, `control_minus_teacher`, measured on
            `decided_on`; None or absent where not measured, which recommends nothing over the teacher.
        decided_on: the selection split; without one, the test images themselves; without either, nothing.
    """
    if decided_on == "nothing":
        reason = "nothing was measured (there are neither test images nor a selection split), and it is the simplest"
        return Recommendation("teacher", f"{reason}; this says nothing against the other models.")
    over_control, over_teacher, control_over_teacher = (
        _above_zero(differences.get(pair))
        for pair in ("student_minus_control", "student_minus_teacher", "control_minus_teacher")
    )
    place = f"decided on the {decided_on}"
    if decided_on == "test images":
        place += ", so that the recommended model's own figure there is optimistic"
    if over_control and over_teacher:
        reason = "student minus control and student minus teacher are above zero with their intervals"
        return Recommendation("student", f"{reason} ({place}).")
    if control_over_teacher:
        reason = "control minus teacher is above zero with its interval, and the student is not above both"
        return Recommendation("control", f"{reason} ({place}).")
    reason = "neither the student (over control and teacher) nor the control (over the teacher) is shown to be better"
    return Recommendation("teacher", f"{reason} ({place}).")


def still_rising(steps: Sequence[float], values: Sequence[float], interval: Interval) -> bool | None:
    """Whether a selection metric rose over the last fifth of a training by more than its interval reaches.

    Args:
        steps: when it was measured, ascending; the last is the end of the training.
        values: the measurements; between them the metric is taken as linear.
        interval: of the last measurement; half its width is what a rise must exceed.

    Returns:
        None where nothing was measured at or before the last fifth.
    """
    rise = _late_rise(steps, values)
    return None if rise is None else rise > interval.half_width


def convergence_sentence(steps: Sequence[float], values: Sequence[float], interval: Interval) -> str:
    """What `still_rising` found, in a sentence for the report."""
    rise = _late_rise(steps, values)
    if rise is None:
        return (
            "Whether the teacher has converged was not measured: that takes a selection split (--val, or "
            "data.val_fraction) and measurements along the training (eval.points)."
        )
    change = (
        f"{_points(rise)} over the last fifth of the training; its interval reaches {100 * interval.half_width:.1f}"
    )
    if still_rising(steps, values, interval):
        return (
            f"The teacher had not converged: its selection metric rose by {change}. Part of any gain over it is "
            "training that it lacked: compare with the control, or raise teacher.passes."
        )
    return f"The teacher is not seen to rise further: its selection metric changed by {change}."


def _late_rise(steps: Sequence[float], values: Sequence[float]) -> float | None:
    if len(steps) < 2 or steps[0] > (1 - LAST_PART) * steps[-1]:
        return None
    return float(values[-1] - np.interp((1 - LAST_PART) * steps[-1], steps, values))


def _above_zero(interval: Interval | None) -> bool:
    return interval is not None and interval.low > 0


def _points(value: float) -> str:
    """Points of a hundred, with a second decimal where the first would say zero."""
    points = 100 * value
    return f"{points:+.1f}" if abs(points) >= 0.05 or points == 0 else f"{points:+.2f}"
