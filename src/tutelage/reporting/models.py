"""The measured models of a run side by side: tables of figures, differences, rounds and repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.reporting.figures import Whisker
from tutelage.reporting.read import Run, Stage

ROLES = ("teacher_control", "teacher", "control", "student", "hidden")
TITLES = {
    "teacher_control": "Teacher control",
    "teacher": "Teacher",
    "control": "Control",
    "student": "Student",
    "hidden": "Hidden labels",
}
MEANINGS = {
    "teacher_control": "the teacher's run, labeled images of the same pixels in the place of the classified ones",
    "teacher": "trained on the labeled images alone",
    "control": "the student's run, the second half of each batch taken from the labeled images instead of the pool",
    "student": "started from the teacher, trained on labels and pseudo-labels together",
    "hidden": "the student's run with the pool's human labels: an upper reference",
}
JOINT_TEACHER = "trained on the labeled images and, jointly, on classified ones"
NO_DIFFERENCE = {"metric": "", "mean": None, "low": None, "high": None, "covers": ""}


@dataclass(frozen=True, slots=True)
class Model:
    """One arm of the run as measured on the test images."""

    role: str
    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]
    stage: Stage | None  # its evaluation
    joint: bool = False  # whether it is a teacher that was trained jointly

    @property
    def title(self) -> str:
        """The name readers see."""
        return TITLES[self.role]

    @property
    def meaning(self) -> str:
        """How the model came to be."""
        return JOINT_TEACHER if self.joint else MEANINGS[self.role]

    def figure(self, metric: str) -> dict[str, Any]:
        """A figure with its interval: value, low, high; each may be None."""
        interval = self.intervals.get(metric) or {}
        return {"value": self.metrics.get(metric), "low": interval.get("low"), "high": interval.get("high")}

    def class_figure(self, name: str, metric: str) -> dict[str, Any]:
        """The same for one class."""
        values = self.metrics.get("per_class", {}).get(name, {})
        interval = (self.intervals.get("per_class", {}).get(name) or {}).get(metric) or {}
        return {"value": values.get(metric), "low": interval.get("low"), "high": interval.get("high")}


def models_of(run: Run) -> list[Model]:
    """The models that the run's record knows, in the order of `ROLES`."""
    found = []
    for role in ROLES:
        arm = run.record.get(role)
        if arm:
            stage = evaluation_stage(run, role, arm)
            joint = role == "teacher" and "teacher_control" in run.record
            found.append(Model(role, arm.get("metrics") or {}, arm.get("intervals") or {}, stage, joint))
    return found


def evaluation_stage(run: Run, role: str, arm: Mapping[str, Any]) -> Stage | None:
    """The evaluation that an arm's figures come from."""
    named = str(arm.get("stage", ""))
    last = role if role == "teacher" else f"{role}-{run.record.get('rounds', 1)}"
    candidates = (named, f"evaluate-{named}", f"evaluate-{last}")
    return next((run.stages[name] for name in candidates if is_evaluation(run.stages.get(name))), None)


def is_evaluation(stage: Stage | None) -> bool:
    """Whether a stage measured a model."""
    return stage is not None and stage.record.get("kind") == "evaluate"


def role_of(stage_name: str) -> str:
    """The arm a stage belongs to, by its name; pseudo-labels are the teacher's work, empty when it is no arm's."""
    name = stage_name.removeprefix("evaluate-").removeprefix("val-").replace("teacher-control", "teacher_control")
    return next((role for role in ROLES if name.startswith(role)), "teacher" if name.startswith("pseudo") else "")


def metric_table(run: Run, models: list[Model], metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the main table: metric, one figure a model, the student's difference to the control where measured."""
    difference = run.record.get("differences", {}).get("student_minus_control") or {}
    return [
        {
            "title": title,
            "figures": [model.figure(metric) for model in models],
            "difference": difference if difference.get("metric") == metric else None,
        }
        for metric, title in metrics.items()
    ]


def class_tables(
    run: Run,
    models: list[Model],
    class_names: tuple[str, ...],
    metrics: Mapping[str, str],
    counts: Mapping[str, str],
) -> list[dict[str, Any]]:
    """A table a class metric, the first with the student's differences to the control where measured.

    Args:
        run: the run.
        models: its measured models.
        class_names: of the run.
        metrics: titles of the class metrics, by name.
        counts: titles of what is counted of a class in the test images, by name.
    """
    per_class = run.record.get("differences", {}).get("per_class") or {}
    differences = per_class.get("student_minus_control", per_class)
    return [
        {
            "title": title,
            "counts": list(counts.values()),
            "rows": [_class_row(name, models, metric, counts, {} if place else differences) for name in class_names],
        }
        for place, (metric, title) in enumerate(metrics.items())
        if class_names
    ]


def _class_row(
    name: str, models: list[Model], metric: str, counts: Mapping[str, str], differences: Mapping[str, Any]
) -> dict[str, Any]:
    known = [model.metrics["per_class"][name] for model in models if name in model.metrics.get("per_class", {})]
    return {
        "title": name,
        "counts": [next((one.get(count) for one in known), None) for count in counts],
        "figures": [model.class_figure(name, metric) for model in models],
        "difference": differences.get(name),
    }


def differences(run: Run) -> list[dict[str, Any]]:
    """Every `a_minus_b` of the record with its title, the student's first."""
    found = []
    for key, entry in run.record.get("differences", {}).items():
        one, minus, other = key.partition("_minus_")
        if minus and entry:
            title = f"{TITLES.get(one, one)} \u2212 {TITLES.get(other, other).lower()}"
            found.append({**NO_DIFFERENCE, "title": title, "is_shown": is_shown(entry), **entry})
    return found


def whiskers(entries: list[dict[str, Any]]) -> list[Whisker]:
    """Differences in points (hundredths), for the figure."""
    return [
        Whisker(entry["title"], 100 * entry["mean"], 100 * entry["low"], 100 * entry["high"], entry["is_shown"])
        for entry in entries
        if None not in (entry.get("mean"), entry.get("low"), entry.get("high"))
    ]


def is_shown(entry: Mapping[str, Any]) -> bool:
    """Whether a difference's interval leaves zero out."""
    if "shown" in entry:
        return bool(entry["shown"])
    low, high = entry.get("low"), entry.get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def every_measurement(run: Run, shown: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each evaluation on the test images, for runs of several rounds or repeats."""
    for name, stage in run.stages.items():
        if is_evaluation(stage) and not name.startswith("evaluate-val-"):
            metrics = stage.record.get("metrics") or {}
            intervals = stage.record.get("intervals") or {}
            model = Model(role_of(name) or "teacher", metrics, intervals, stage)
            title = name.removeprefix("evaluate-")
            yield {"title": title, "role": role_of(name), "figures": [model.figure(metric) for metric in shown]}
