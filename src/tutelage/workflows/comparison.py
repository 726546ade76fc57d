"""What a fit found: figures of every model, paired differences with intervals, verdict and recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage import stats
from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.reporting.kinds import KINDS
from tutelage.reporting.read import training_log
from tutelage.stats import Interval
from tutelage.stats.conclusions import DecidedOn
from tutelage.tasks.table import TASKS
from tutelage.workflows.evaluation import read_resampled
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage

Floats = NDArray[np.float64]
PAIRS = (
    ("student", "control"),
    ("student", "teacher"),
    ("control", "teacher"),
    ("teacher", "teacher_control"),  # what joint training gave
    ("hidden", "control"),
)


@dataclass(frozen=True)
class Measurements:
    """Every model of a run on one set of images: its record and its figures on the same resamples."""

    records: dict[str, dict[str, Any]]  # of the evaluate stages, by the model's stage name
    resampled: dict[str, stats.Resampled]  # by the model's stage name
    groups: NDArray[np.int64]  # (images,)

    @classmethod
    def read(
        cls, prefix: str, graph: dict[str, Stage], names: Sequence[str], groups: NDArray[np.int64]
    ) -> Measurements | None:
        """What the stages `prefix + name` hold; None where the set was not measured on."""
        stages = {name: graph[prefix + name] for name in names if prefix + name in graph}
        if not stages:
            return None
        return cls(
            records={name: stage.record for name, stage in stages.items()},
            resampled={name: read_resampled(stage.folder) for name, stage in stages.items()},
            groups=groups,
        )

    def difference(self, ones: Sequence[str], others: Sequence[str], config: RunConfig) -> Interval | None:
        """Interval of the mean difference of pairs of models, over test images and, with several pairs, over seeds."""
        metric, confidence = config.eval.metric, config.eval.confidence
        points = [self._point(name, metric) for name in (*ones, *others)]
        if any(point is None for point in points):
            return None
        values = np.array(points, np.float64).reshape(2, len(ones))
        covers = self._covers(len(ones))
        one, other = (
            np.mean([self.resampled[name].figures[metric] for name in names], axis=0) for names in (ones, others)
        )
        point_one, point_other = values.mean(axis=1).tolist()
        images = stats.paired_difference(one, other, point_one, point_other, self._kind, confidence, covers)
        if images is None or len(ones) == 1:
            return images
        seeds = stats.t_interval((values[0] - values[1]).tolist(), confidence)
        return stats.seeds_and_images(seeds, images, covers)

    def class_differences(self, one: str, other: str, config: RunConfig) -> dict[str, Any]:
        """Differences of two models by class, with intervals that hold all at once; None where undefined."""
        metric = TASKS[config.task].class_metric
        names = list(self.records[one]["metrics"]["per_class"])
        points_one, points_other = (
            [self.records[model]["metrics"]["per_class"][name][metric] for name in names] for model in (one, other)
        )
        intervals = stats.simultaneous_differences(
            self.resampled[one].figures[f"class_{metric}"],
            self.resampled[other].figures[f"class_{metric}"],
            points_one,
            points_other,
            np.array(self.records[one]["groups_with_truth"]["per_class"]),
            self._kind,
            config.eval.confidence,
            self._covers(),
        )
        return {name: interval and interval.as_dict() for name, interval in zip(names, intervals, strict=True)}

    @property
    def _kind(self) -> stats.Kind:
        """How the images were redrawn: alike for all models."""
        return next(iter(self.resampled.values())).kind

    def _covers(self, num_seeds: int = 1) -> str:
        return stats.covers(len(self.groups), len(np.unique(self.groups)), self._kind, num_seeds)

    def _point(self, name: str, metric: str) -> float | None:
        point: float | None = self.records[name]["metrics"][metric]
        return point


def compare(config: RunConfig, prepared: Prepared, graph: dict[str, Stage]) -> dict[str, Any]:
    """The part of a fit's record that says what was found; figures are in [0, 1]."""
    arms = trained_arms(config, graph)
    names = [name for arm in arms.values() for name in arm]
    test = Measurements.read("evaluate-", graph, names, prepared.groups)
    val = Measurements.read("evaluate-val-", graph, names, prepared.val_groups)
    differences = _differences(test, arms, config)
    decided_on = _decided_on(test, val)
    deciding = _differences(val, arms, config) if val is not None else differences
    recommended = stats.recommend(deciding, decided_on)
    return {
        "task": config.task,
        "class_names": list(prepared.sets.labeled.class_names),
        "verdict": _verdict(test, differences, config),
        "joint_verdict": _joint_verdict(differences, config),
        "recommended": recommended.model,
        "recommended_stage": arms[recommended.model][0],
        "recommended_reason": recommended.reason,
        "decided_on": decided_on,
        **{arm: _arm_record(stages, test) for arm, stages in arms.items()},
        "differences": _difference_records(differences, test, arms, config),
        "rounds": config.rounds,
        "repeats": config.repeats,
        "data": data_record(prepared),
        "check": prepared.check.as_dict(),
        "notes": list(prepared.sets.notes),
        **_convergence(config, graph),
    }


def _decided_on(test: Measurements | None, val: Measurements | None) -> DecidedOn:
    if val is not None:
        return "selection split"
    return "test images" if test is not None else "nothing"


def trained_arms(config: RunConfig, graph: dict[str, Stage]) -> dict[str, list[str]]:
    """Stage names of each arm's last round, one a repeat; the teacher's and its control's alone."""
    arms = {"teacher": ["teacher"]}
    if "teacher-control" in graph:
        arms["teacher_control"] = ["teacher-control"]
    for arm in ("control", "student", "hidden"):
        names = [name for name in graph if name.startswith(f"{arm}-{config.rounds}")]
        if names:
            arms[arm] = names
    return arms


def _differences(
    measured: Measurements | None, arms: dict[str, list[str]], config: RunConfig
) -> dict[str, Interval | None]:
    if measured is None:
        return {}
    return {
        f"{one}_minus_{other}": measured.difference(arms[one], _paired(arms[other], len(arms[one])), config)
        for one, other in PAIRS
        if one in arms and other in arms
    }


def _paired(names: list[str], count: int) -> list[str]:
    """One partner a repeat: the teacher is the partner of all."""
    return names if len(names) == count else names * count


def _verdict(test: Measurements | None, differences: dict[str, Interval | None], config: RunConfig) -> str:
    if test is None:
        return "Not measured: there are no test images, and too few labels to set some aside. Add --test."
    title = KINDS[config.task].metrics[config.eval.metric]
    return stats.verdict(differences["student_minus_control"], metric=title, num_seeds=config.repeats)


def _joint_verdict(differences: dict[str, Interval | None], config: RunConfig) -> str | None:
    """None where there was no joint teacher beside its control, or nothing was measured."""
    if "teacher_minus_teacher_control" not in differences:
        return None
    title = KINDS[config.task].metrics[config.eval.metric]
    return stats.joint_verdict(differences["teacher_minus_teacher_control"], metric=title)


def _arm_record(stages: list[str], test: Measurements | None) -> dict[str, Any]:
    if test is None:
        return {"stage": stages[0], "metrics": None, "intervals": {}}
    record = test.records[stages[0]]
    return {
        "stage": stages[0],
        "metrics": record["metrics"],
        "intervals": record["intervals"],
        "every_repeat": [{"stage": name, "metrics": test.records[name]["metrics"]} for name in stages],
    }


def _difference_records(
    differences: dict[str, Interval | None], test: Measurements | None, arms: dict[str, list[str]], config: RunConfig
) -> dict[str, Any]:
    records: dict[str, Any] = {
        name: {"metric": config.eval.metric, **interval.as_dict()} if interval else None
        for name, interval in differences.items()
    }
    if test is not None:
        pair = (arms["student"][0], arms["control"][0])
        records["per_class"] = {"student_minus_control": test.class_differences(*pair, config)}
    return records


def _convergence(config: RunConfig, graph: dict[str, Stage]) -> dict[str, Any]:
    """Whether the teacher was still rising, from its measurements on the selection split."""
    measured = training_log(graph["teacher"].folder).get(f"val_{config.eval.metric}")
    val = graph.get("evaluate-val-teacher")
    found = val.record["intervals"].get(config.eval.metric) if val is not None else None
    if found is None or measured is None:
        return {"teacher_converged": None, "convergence": stats.convergence_sentence([], [], Interval(0, 0, 0, 0, ""))}
    interval = Interval(**{name: found[name] for name in Interval.__slots__})
    steps, values = measured.T.tolist()
    rising = stats.still_rising(steps, values, interval)
    return {
        "teacher_converged": None if rising is None else not rising,
        "convergence": stats.convergence_sentence(steps, values, interval),
    }


def data_record(prepared: Prepared) -> dict[str, Any]:
    """What was used, by the name of its option: description, counts and fingerprint."""
    sets = prepared.sets
    aside = prepared.apart.images if prepared.apart is not None and prepared.apart.certified else None
    annotated = {"labeled": sets.labeled, "val": sets.val, "test": sets.test, "certify": aside}
    others = {"pool": sets.pool, "classification": prepared.classified}
    record = {name: _set_record(index) for name, index in annotated.items() if index is not None}
    return record | {name: _images_record(index) for name, index in others.items() if index is not None}


def _set_record(index: Index) -> dict[str, Any]:
    columns = index.box_columns()
    weights = columns.area if index.has_masks else None  # a region's area is its number of pixels
    amounts = np.bincount(columns.labels, weights, minlength=len(index.class_names)).astype(np.int64)
    return {
        **_images_record(index),
        "annotation": index.annotation,
        "amounts_per_class": dict(zip(index.class_names, amounts.tolist(), strict=False)),  # boxes or pixels
        "counts": index.counts,
    }


def _images_record(index: Index) -> dict[str, Any]:
    return {
        "description": index.description,
        "images": len(index),
        "fingerprint": index.fingerprint,
        "roots": [str(root.resolve()) for root in index.roots],
    }
