"""The main job: labeled and unlabeled images in; teacher, control and student, an honest comparison and a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.config import RunConfig
from tutelage.data.pseudo import require_kept, with_class_shares
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic_folder, copy_files, read_json, write_json, write_text
from tutelage.models.init import read_card
from tutelage.reporting.card import model_card
from tutelage.reporting.page import write_report
from tutelage.tasks.table import build_task
from tutelage.types import InputError
from tutelage.workflows.anchors import with_fitted_anchors
from tutelage.workflows.assembly import open_given
from tutelage.workflows.certifying.rounds import (
    certificate_record,
    certify_round,
    require_certifiable,
    with_certificate,
)
from tutelage.workflows.comparison import compare
from tutelage.workflows.evaluation import evaluate_stage
from tutelage.workflows.joint import teachers
from tutelage.workflows.labeling import label_stage
from tutelage.workflows.modes import MODES, pool_of, pseudo_labels, sample_of_pool, with_shares
from tutelage.workflows.options import Paths, require_sources, resolve
from tutelage.workflows.plan import make_plan, plan_lines
from tutelage.workflows.prepare import Prepared, prepare
from tutelage.workflows.stages import Place, Stage, console, open_run, pin_data, provenance
from tutelage.workflows.training import train_student, train_teacher
from tutelage.workflows.watching import heed_store, run_warnings

Graph = dict[str, Stage]


def fit(
    *,
    labeled: Paths = (),
    unlabeled: Paths = (),
    out: str | Path,
    test: Paths = (),
    val: Paths = (),
    task: str = "",
    classification: Paths = (),
    labeled_list: str | Path = "",
    images: str | Path = "",
    recipe: str | Path = "",
    teacher: str | Path = "",
    pseudo: str | Path = "",
    verdicts: str | Path = "",
    stages: str | Path = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    plan: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains teacher, control and student, compares them, writes the better model and a report to `out`.

    Args:
        labeled: labeled data, in any known format; several are joined by class name.
        unlabeled: the pool.
        out: the run folder; the same call on an unfinished run continues it.
        test: what is measured on; a part of the labels when not given.
        val: selection split, on which the recommendation is decided when given.
        task: detection or segmentation; the recipe's when empty.
        classification: classified images to train on beside the task (joint training), in every stage.
        labeled_list: text file of the images that keep their labels.
        images: folder that image paths in annotations are relative to.
        recipe: name or YAML file.
        teacher: a finished model to label with, in place of training one.
        pseudo: a finished store, in place of labeling the pool.
        verdicts: what people said of the pool's pseudo-labels (a file of `review`), in every round.
        stages: folder of stages shared between runs; `out/stages` when empty.
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: continue with the folder's own config.
        overwrite: replace a run that is there.
        plan: print stages and estimated hours, start nothing.
        overrides: `key=value` options.

    Returns:
        The run's record, as in `out/run.json`; empty with `plan`.

    Raises:
        InputError: what a user can mend.
        Interrupted: the run was stopped and can be continued.
    """
    out = Path(out)
    given = {"labeled": labeled, "unlabeled": unlabeled, "val": val, "test": test, "classification": classification}
    entering: dict[str, Paths] = {"teacher": teacher, "pseudo": pseudo, "verdicts": verdicts, "stages": stages}
    sources: dict[str, Paths] = {**given, **entering, "labeled_list": labeled_list, "images": images}
    config = resolve(recipe, overrides, sources, task=task, seed=seed, device=device, devices=devices)
    if not plan:
        config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    require_sources(config, "labeled")
    _require_no_control(config)
    MODES[config.student.mode].check(config)
    prepared = prepare(config)
    config = with_fitted_anchors(config, prepared.sets.labeled)
    _require_pool(prepared, config)
    build_task(config, prepared.sets.labeled.class_names).check_label(config.label)
    require_certifiable(config, prepared)
    given_stages = open_given(config, prepared)
    if not plan:
        pin_data(out, prepared.fingerprints | {name: stage.hash for name, stage in given_stages.items()})
        if (out / "run.json").is_file():
            return _finished_earlier(out)
    console.print("\n".join(prepared.lines()))
    planned = launch(config.runtime, make_plan, config, prepared, given_stages, out)
    console.print("\n".join(plan_lines(planned, config.runtime.device)))
    if plan:
        return {}
    place = Place(Path(config.sources.stages or out / "stages"))
    graph = launch(config.runtime, run_graph, config, prepared, place, given_stages)
    return _conclude(out, config, prepared, graph, given_stages)


def run_graph(runtime: Runtime, config: RunConfig, prepared: Prepared, place: Place, given: Graph) -> Graph:
    """Every stage of a fit, made or taken, by name; runs in each process."""
    sets = prepared.sets
    task = build_task(config, sets.labeled.class_names)
    mode = MODES[config.student.mode]
    graph: Graph = dict(given)

    def evaluated(name: str, trained: Stage) -> None:
        for split, index, groups in (("", sets.test, prepared.groups), ("val-", sets.val, prepared.val_groups)):
            if index is not None:
                stage = f"evaluate-{split}{name}"
                graph[stage] = evaluate_stage(place, stage, config, task, trained, index, groups, runtime)

    if "teacher" not in given:
        for name, own in teachers(config, prepared.classified).items():
            graph[name] = train_teacher(place, name, own, prepared, runtime)
    for name in ("teacher", "teacher-control"):
        if name in graph:
            evaluated(name, graph[name])
    for repeat in range(config.repeats):
        previous = {arm: graph["teacher"] for arm in arms(config)}
        for round_ in range(1, config.rounds + 1):
            shared = suffix(round_, repeat if round_ > 1 else 0)
            certified = certify_round(graph, place, config, prepared, previous["student"], runtime, suffix=shared)
            store, read = None, certified
            if mode.needs_store:
                labeler = previous["student"]
                store = _store(graph, place, certified, prepared, labeler, runtime, round_=round_, repeat=repeat)
                read = with_shares(certified, pseudo_labels(store, prepared))
            for arm, second_stream in arms(config).items():
                name = arm + suffix(round_, repeat)
                graph[name] = train_student(
                    place, name, read, prepared, runtime,
                    second_stream=second_stream, init=previous[arm], pseudo=store, round_=round_, repeat=repeat,
                )  # fmt: skip
                evaluated(name, graph[name])
                previous[arm] = graph[name]
    if not mode.needs_store:
        graph["pseudo-1"] = _sampled_store(
            place, with_certificate(config, graph, suffix(1, 0)), prepared, graph["student-1"], runtime
        )
    return graph


def arms(config: RunConfig) -> dict[str, str]:
    """Where each arm's second stream comes from."""
    return {"control": "labeled", "student": "pool"} | ({"hidden": "hidden"} if config.hidden_arm else {})


def suffix(round_: int, repeat: int) -> str:
    """How a stage of a round (from 1) and repeat (from 0) is told apart."""
    return f"-{round_}" + (f"-repeat{repeat + 1}" if repeat else "")


def _store(
    graph: Graph,
    place: Place,
    config: RunConfig,
    prepared: Prepared,
    labeler: Stage,
    runtime: Runtime,
    *,
    round_: int,
    repeat: int,
) -> Stage:
    """The pseudo-labels of this round: the first round's are shared by all repeats."""
    name = "pseudo" + suffix(round_, repeat if round_ > 1 else 0)
    if name not in graph:
        sets = prepared.sets
        assert sets.pool is not None, "fit refuses to start without a pool"
        task = build_task(config, sets.labeled.class_names)
        held_out = prepared.held_out
        graph[name] = label_stage(
            place, name, config, task, labeler, sets.pool, held_out, runtime, round_=round_, labeled=sets.labeled
        )
    try:
        require_kept(pseudo_labels(graph[name], prepared), config.pseudo)
    except InputError as error:
        raise InputError(
            f"{error} With another --out and --stages {place.folder}, teacher and store are taken from this run."
        ) from None
    heed_store(graph[name], pseudo_labels(graph[name], prepared), config, prepared.sets.labeled, runtime)
    return graph[name]


def _sampled_store(place: Place, config: RunConfig, prepared: Prepared, student: Stage, runtime: Runtime) -> Stage:
    """What a teacher that learned on says, at its end, of a seeded sample of the pool: to be looked at."""
    task = build_task(config, prepared.sets.labeled.class_names)
    sample = sample_of_pool(config, pool_of(prepared))
    return label_stage(place, "pseudo-1", config, task, student, sample, prepared.held_out, runtime, round_=1)


def _require_no_control(config: RunConfig) -> None:
    if config.sources.classification and config.joint.stream != "classification":
        raise InputError(
            f"joint.stream={config.joint.stream}: is the control of joint training, which fit trains beside it; "
            "classification is allowed here. Leave it out, or train the control alone with tutelage train."
        )


def _require_pool(prepared: Prepared, config: RunConfig) -> None:
    if prepared.sets.pool is None or len(prepared.sets.pool) == 0:
        raise InputError(
            "--unlabeled: there is no pool of unlabeled images. Add --unlabeled FOLDER, or take the images without "
            "labels with data.rest_as_pool=true and data.labeled_fraction or --labeled-list."
        )
    if config.hidden_arm and not prepared.sets.hidden_labels:
        raise InputError(
            "hidden_arm=true: not every pool image has human labels; that arm trains on them. Leave it out, or take a "
            "labeled data set as the pool (--unlabeled train.json, or data.rest_as_pool=true)."
        )


def _conclude(out: Path, config: RunConfig, prepared: Prepared, graph: Graph, given_stages: Graph) -> dict[str, Any]:
    """Compares, keeps the recommended model, writes the report and, as the last file but it, the record."""
    last = suffix(config.rounds, 0)
    certified = with_certificate(config, graph, last)
    record = {
        **compare(config, prepared, graph),
        **provenance(config),
        "notes": [*prepared.sets.notes, *MODES[config.student.mode].notes(config, prepared, graph)],
        "pseudo": _pseudo_record(certified, prepared, graph),
        "certificate": certificate_record(config, graph, last),
        "warnings": run_warnings(graph, certified, prepared.sets.labeled),
        "stages": {name: str(_relative(stage.folder, out)) for name, stage in graph.items()},
        "seconds": {name: stage.record["seconds"] for name, stage in graph.items() if name not in given_stages},
    }
    with atomic_folder(out / "model", replace=True) as model:
        copy_files(graph[record["recommended_stage"]].model_folder, model)
        write_text(model / "README.md", model_card(record, read_card(model)))
    write_json(out / "run.json", record)
    page = write_report(out)
    console.print("\n" + "\n".join(_verdicts(record)))
    console.print(f"Recommended: {record['recommended']} ({out / 'model'}). Report: {page}")
    return record


def _pseudo_record(config: RunConfig, prepared: Prepared, graph: Graph) -> dict[str, Any]:
    """What the last round's store holds at this run's threshold."""
    store = pseudo_labels(graph["pseudo" + suffix(config.rounds, 0)], prepared)
    pseudo = with_class_shares(config.pseudo, store)
    return {"threshold": pseudo.model_dump(mode="json")["score_threshold"], "counts": store.counts(pseudo)}


def _verdicts(record: dict[str, Any]) -> list[str]:
    """What was found of self-training and, where it was used, of joint training."""
    return [record[name] for name in ("verdict", "joint_verdict") if record.get(name)]


def _finished_earlier(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(out / "run.json")
    if not (out / "report.html").is_file():
        write_report(out)
    console.print("\n".join([f"{out}: finished earlier.", *_verdicts(record)]))
    console.print(f"Recommended: {record['recommended']}.")
    return record


def _relative(folder: Path, out: Path) -> Path:
    """A stage's folder as seen from the run, so that the run can be moved; absolute where it is shared."""
    return folder.relative_to(out) if folder.is_relative_to(out) else folder.resolve()
