"""What a fit certifies: the labeler of every round on a part set aside, or the first one's like with folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig
from tutelage.engine.runtime import Runtime
from tutelage.tasks.table import build_task
from tutelage.types import InputError
from tutelage.workflows.certifying.knowledge import refuse_known, training_of
from tutelage.workflows.certifying.stage import Labeler, certify_stage
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Place, Stage
from tutelage.workflows.training import train_teacher

Graph = dict[str, Stage]
FIRST = "certify-1"


def require_certifiable(config: RunConfig, prepared: Prepared) -> None:
    """Refuses, before anything is trained, what would make a certificate void.

    Raises:
        InputError: a given store, whose labels are nobody's here; a given teacher with folds, or one that was, or may
            have been, trained on the images to certify on.
    """
    apart = prepared.apart
    if apart is None:
        return
    if config.sources.pseudo:
        raise InputError(
            f"--pseudo {config.sources.pseudo}: its labels were made elsewhere, and a certificate is about the teacher "
            "that labels here. Leave out the store (give --teacher, or --stages of the run that made it), or leave "
            "out certify.* and set pseudo.score_threshold to numbers."
        )
    if not config.sources.teacher:
        return
    teacher = Path(config.sources.teacher)
    if not apart.certified:
        raise InputError(
            f"--teacher {teacher}: folds are about teachers that are trained here; with a given teacher "
            "certify.fraction is allowed. Set it, and certify.folds=0; or leave the teacher out."
        )
    training = training_of(teacher)
    if isinstance(training, str):
        raise InputError(
            f"--teacher {teacher}: whether it was trained on the images set aside to certify on cannot be known: "
            f"{training}. Give a teacher in the folder of its run, train one here, or certify it with `tutelage "
            "certify` on images that you know it has not seen."
        )
    refuse_known(apart.images, training, config.data, f"--teacher {teacher}")


def certify_round(
    graph: Graph,
    place: Place,
    config: RunConfig,
    prepared: Prepared,
    labeler: Stage | None,
    runtime: Runtime,
    *,
    suffix: str,
) -> RunConfig:
    """The config of a round of `fit`, with what is certified of its labeler; enters the stages into `graph`.

    On a part set aside every round's own labeler is certified. Folds estimate the first round's teacher alone, as each
    of them would need a chain of students.

    Args:
        graph: the run's stages so far.
        place: where stages are made.
        config: the run.
        prepared: its data; without images to certify on nothing happens.
        labeler: the model that labels the pool in this round; folds do without.
        runtime: devices.
        suffix: of the round's stages, for example `-1`.
    """
    apart = prepared.apart
    if apart is None:
        return config
    name = f"certify{suffix}" if apart.certified else FIRST
    if name not in graph:
        task = build_task(config, prepared.sets.labeled.class_names)
        if apart.certified:
            assert labeler is not None, "a part set aside certifies one model"
            labelers, about = [Labeler(labeler, apart.images, apart.groups)], labeler.name
        else:
            labelers, about = fold_labelers(graph, place, config, prepared, runtime), "teacher"
        told = {"about": about}
        graph[name] = certify_stage(place, name, config, task, labelers, runtime, certified=apart.certified, told=told)
    return with_certificate(config, graph, suffix)


def fold_labelers(graph: Graph, place: Place, config: RunConfig, prepared: Prepared, runtime: Runtime) -> list[Labeler]:
    """Teachers that each leave out a fold, trained as the run's own, with the fold that they left out."""
    apart = prepared.apart
    assert apart is not None and apart.folds is not None, "asked for where there are folds"
    labelers = []
    for fold in range(int(apart.folds.max()) + 1):
        out = apart.folds == fold
        sets = replace(prepared.sets, labeled=apart.images.select(~out))
        name = f"fold-{fold + 1}"
        graph[name] = train_teacher(place, name, config, replace(prepared, sets=sets), runtime)
        labelers.append(Labeler(graph[name], apart.images.select(out), apart.groups[out]))
    return labelers


def certificate_of(graph: Graph, suffix: str) -> Stage | None:
    """The certificate that a round goes by: its own, or the first round's; None where there is none."""
    return graph.get(f"certify{suffix}", graph.get(FIRST))


def with_certificate(config: RunConfig, graph: Graph, suffix: str) -> RunConfig:
    """The config with the round's certified thresholds, where `pseudo.score_threshold` asks for them."""
    stage = certificate_of(graph, suffix)
    if config.pseudo.score_threshold != "certified" or stage is None:
        return config
    pseudo = config.pseudo.model_copy(update={"score_threshold": stage.record["thresholds"]})
    return config.model_copy(update={"pseudo": pseudo})


def certificate_record(config: RunConfig, graph: Graph, suffix: str) -> dict[str, Any] | None:
    """What a fit's record says of the certificate that its last round went by."""
    stage = certificate_of(graph, suffix)
    if stage is None:
        return None
    record = stage.record
    names = ("certified", "about", "precision", "confidence", "iou", "thresholds")
    parts = ("chosen", "best", "balanced", "more_images")
    return {
        "stage": stage.name,
        **{name: record[name] for name in names},
        "classes": {name: {part: one[part] for part in parts} for name, one in record["classes"].items()},
        "used": _used(config, record, own=stage.name == f"certify{suffix}"),
    }


def _used(config: RunConfig, record: dict[str, Any], *, own: bool) -> str:
    """Which thresholds the run went by, and for whose labels they were found."""
    whose = "" if own else " They were found for the first round's teacher; the last round was labeled by a student."
    if config.student.mode == "online":
        whose = " They were found for the teacher that the student starts from, which then learns on."
    if config.pseudo.score_threshold != "certified":
        return (
            f"This run went by pseudo.score_threshold={config.pseudo.score_threshold}, not by these thresholds.{whose}"
        )
    open_ = [name for name, one in record["classes"].items() if one["chosen"] is None]
    word = "certified" if record["certified"] else "shown"
    why = "they balance precision and recall, or are a half where nothing right was found"
    rest = f" Those of {', '.join(open_)} are not {word}: {why}." if open_ else ""
    return f"This run went by these thresholds.{rest}{whose}"
