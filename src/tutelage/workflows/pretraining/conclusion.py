"""What Noisy Student found: teacher, control and student on the same held-out images, and the differences of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage import stats
from tutelage.config import RunConfig
from tutelage.engine.runtime import Runtime
from tutelage.files import atomic_folder, copy_files
from tutelage.models.init import load_model, read_card
from tutelage.models.model import Classifier
from tutelage.stats import Interval, Recommendation
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.pretraining.supervised import accuracy_of, correct_on_held_out, stored_correct, task_of
from tutelage.workflows.stages import Place, Stage, console, run_stage

PAIRS = (("student", "control"), ("student", "teacher"), ("control", "teacher"))
NOT_MEASURED = "Not measured: no image was held out (pretrain.test_fraction)."

TEACHER_MAY_KNOW = (
    "the given teacher may have been trained on the held-out images: its model.json does not show the same labeled "
    "images with the same held out (seed and test_fraction), so that its accuracy may flatter"
)


def conclude(place: Place, config: RunConfig, data: PretrainData, graph: dict[str, Stage], runtime: Runtime) -> Stage:
    """The stage `noisy-student`: the last student's model, whatever came out, and what may be said of it."""
    rounds = config.pretrain.noisy_student.rounds
    arms = {"teacher": graph["teacher"]} | {arm: graph[f"{arm}-{rounds}"] for arm in ("control", "student")}
    caveat = teacher_caveat(data)
    key = {
        "kind": "noisy-student",
        "caveat": caveat,
        "models": {arm: stage.hash for arm, stage in arms.items()},
        "held_out": data.source.select(data.held_out).fingerprint,
        "eval": config.eval.model_dump(mode="json", include={"resamples", "confidence"}),
        "seed": config.seed,
    }

    def work(stage: Stage) -> dict[str, Any]:
        correct = {arm: _correct(trained, config, data, runtime) for arm, trained in arms.items()}
        if runtime.is_main:
            with atomic_folder(stage.folder / "model", replace=True) as model:
                copy_files(arms["student"].model_folder, model)
        return {
            "kind": "pretrain",
            "accuracy": accuracy_of(correct["student"]),
            "held_out": len(data.held_out),
            "num_images": arms["student"].record["num_images"],
            "classes": list(data.source.class_names),
            "arms": {
                arm: {"stage": trained.name, "accuracy": accuracy_of(correct[arm])}
                | ({"note": caveat} if caveat and arm == "teacher" else {})
                for arm, trained in arms.items()
            },
            **compare(correct, config, caveat),
            "leaks": graph["pseudo-1"].record["counts"]["leaks"],
            "balance": arms["student"].record["balance"],
            "stages": {name: _seen_from(place, made) for name, made in graph.items()},
        }

    stage = run_stage(place, "noisy-student", key, runtime, work)
    if runtime.is_main:
        console.print(stage.record["verdict"])
    return stage


def teacher_caveat(data: PretrainData) -> str:
    """What is to be said of a given teacher's figures; nothing where it was kept from the same images."""
    if data.teacher is None or not len(data.held_out):
        return ""
    return "" if read_card(data.teacher.model_folder).get("split") == data.split else TEACHER_MAY_KNOW


def _seen_from(place: Place, stage: Stage) -> str:
    """A stage's folder as seen from the run, so that the run can be moved; absolute where it was given."""
    run = place.folder.parent
    return str(stage.folder.relative_to(run) if stage.folder.is_relative_to(run) else stage.folder.resolve())


def _correct(stage: Stage, config: RunConfig, data: PretrainData, runtime: Runtime) -> NDArray[np.bool_]:
    """(h,) which held-out images a model gets right: as its training noted, or, of one that was given, measured."""
    if stage is not data.teacher:
        return stored_correct(stage.folder)
    model, _ = load_model(stage.model_folder)
    assert isinstance(model, Classifier), "open_data refuses other teachers"
    return correct_on_held_out(task_of(config, data), model, data, config, runtime)


def compare(correct: dict[str, NDArray[np.bool_]], config: RunConfig, caveat: str) -> dict[str, Any]:
    """Paired differences of accuracy over the held-out images (h,), the verdict, and which model to prefer.

    With a caveat against the teacher's figures student and control are compared alone.
    """
    count = len(correct["student"])
    if not count:
        return {"differences": {}, "verdict": NOT_MEASURED}
    differences = paired_differences(correct, config)
    recommended = _between_trained(differences, caveat) if caveat else stats.recommend(differences, "test images")
    return {
        "differences": {name: interval and interval.as_dict() for name, interval in differences.items()},
        "verdict": stats.verdict(differences["student_minus_control"], metric="accuracy", num_seeds=1),
        "recommended": recommended.model,
        "recommended_reason": recommended.reason,
    }


def _between_trained(differences: dict[str, Interval | None], caveat: str) -> Recommendation:
    """Student or control, whatever the teacher's figures: the control unless the student is shown to be better."""
    rest = (
        "(decided on the test images, so that the recommended model's own figure there is optimistic). The teacher was "
        f"not considered: {caveat}."
    )
    over_control = differences["student_minus_control"]
    if over_control is not None and over_control.low > 0:
        return Recommendation("student", f"student minus control is above zero with its interval {rest}")
    return Recommendation("control", f"the student is not shown to be better than the control, the simpler {rest}")


def paired_differences(correct: dict[str, NDArray[np.bool_]], config: RunConfig) -> dict[str, Interval | None]:
    """Differences of accuracy with intervals over the choice of the held-out images."""
    count = len(correct["student"])
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xD1FF]))
    draws = stats.draw(np.arange(count), config.eval.resamples, rng)
    totals = draws.weights.sum(axis=1, dtype=np.float64)
    redrawn = {arm: draws.weights @ hits.astype(np.float64) / totals for arm, hits in correct.items()}
    points = {arm: float(hits.mean()) for arm, hits in correct.items()}
    covers = stats.covers(count, count, draws.kind)
    return {
        f"{one}_minus_{other}": stats.paired_difference(
            redrawn[one], redrawn[other], points[one], points[other], draws.kind, config.eval.confidence, covers
        )
        for one, other in PAIRS
    }
