"""Training stages: the teacher, and the student or its control, which differ in one key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from tutelage.config import METRICS_OF_TASK, RunConfig, TrainConfig
from tutelage.data.index import Index
from tutelage.data.loader import train_batches
from tutelage.data.pseudo import require_kept, write_provenance
from tutelage.data.sources import DataSets
from tutelage.engine import loop
from tutelage.engine.loop import Stream, Training
from tutelage.engine.objectives import Objective, Supervised
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic_folder, copy_files, read_json, write_json
from tutelage.models.foreign import LoadReport
from tutelage.models.init import init_digest, initialize, read_card, save_model
from tutelage.models.model import Network
from tutelage.tasks.table import build_task
from tutelage.tasks.task import Task
from tutelage.types import InputError
from tutelage.workflows.anchors import with_fitted_anchors
from tutelage.workflows.assembly import load_trained, open_given
from tutelage.workflows.evaluation import evaluate_stage, judge_all
from tutelage.workflows.joint import JointTraining, joint_training
from tutelage.workflows.modes import MODES, pseudo_labels, reading, with_shares
from tutelage.workflows.options import Paths, require_sources, resolve
from tutelage.workflows.prepare import Prepared, prepare
from tutelage.workflows.stages import (
    Place,
    Stage,
    console,
    figure_lines,
    open_run,
    pin_data,
    run_stage,
)


def train(
    *,
    labeled: Paths,
    out: str | Path,
    unlabeled: Paths = (),
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
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains one model into `out/model`: a teacher on labeled images, or with `teacher` a student.

    Args:
        labeled: labeled data.
        out: the run folder; the same call on an unfinished run continues it.
        unlabeled: with `teacher`, the pool, of which the store was made.
        test: measured on at the end; a part of the labels when not given.
        val: selection split, measured on along the training.
        task: detection or segmentation; the recipe's when empty.
        classification: classified images to train on beside the task (joint training).
        labeled_list: text file of the images that keep their labels.
        images: folder that image paths in annotations are relative to.
        recipe: name or YAML file.
        teacher: the model that a student starts from.
        pseudo: the student's pseudo-label store; none where its teacher learns on (`student.mode=online`).
        verdicts: with `pseudo`, what people said of it (a file of `review`).
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: continue with the folder's own config.
        overwrite: replace a run that is there.
        overrides: `key=value` options.

    Returns:
        The record of the training, as in `out/run.json`.
    """
    out = Path(out)
    given = {"labeled": labeled, "unlabeled": unlabeled, "val": val, "test": test, "classification": classification}
    sources: dict[str, Paths] = {
        **given,
        "teacher": teacher,
        "pseudo": pseudo,
        "verdicts": verdicts,
        "labeled_list": labeled_list,
        "images": images,
    }
    config = resolve(recipe, overrides, sources, task=task, seed=seed, device=device, devices=devices)
    _require_all_of_a_student(config)
    config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    require_sources(config, "labeled")
    prepared = prepare(config)
    config = with_fitted_anchors(config, prepared.sets.labeled)
    entering = open_given(config, prepared)
    pin_data(out, prepared.fingerprints | {name: stage.hash for name, stage in entering.items()})
    if (out / "run.json").is_file():
        console.print(f"{out}: finished earlier.")
        return dict(read_json(out / "run.json"))
    console.print("\n".join(prepared.lines()))
    trained, measured = launch(config.runtime, _train_graph, config, prepared, Place(out / "stages"), entering)
    record = {**trained.record, **({"measured": measured.record["metrics"]} if measured else {})}
    with atomic_folder(out / "model", replace=True) as model:
        copy_files(trained.model_folder, model)
    write_json(out / "run.json", record)
    console.print(f"Model: {out / 'model'}")
    if measured:
        console.print(figure_lines(measured.record["metrics"], measured.record["intervals"]))
    return record


def _require_all_of_a_student(config: RunConfig) -> None:
    """Refuses a student without its store, its pool or its start."""
    sources, mode = config.sources, MODES[config.student.mode]
    has_pool = bool(sources.unlabeled) or config.data.rest_as_pool
    has_store = bool(sources.pseudo) or not mode.needs_store
    if not (sources.teacher or sources.pseudo or sources.verdicts):
        return
    if not (sources.teacher and has_pool and has_store):
        raise InputError(
            "--pseudo, --teacher: a student needs its store, the pool it was made of and the model it starts from. "
            "Give --pseudo STORE, --unlabeled POOL (or data.rest_as_pool=true) and --teacher MODEL together; with "
            "student.mode=online all but the store."
        )
    mode.check(config)


def _train_graph(
    runtime: Runtime, config: RunConfig, prepared: Prepared, place: Place, given: dict[str, Stage]
) -> tuple[Stage, Stage | None]:
    sets = prepared.sets
    if given:
        if "pseudo-1" in given:
            store = pseudo_labels(given["pseudo-1"], prepared)
            require_kept(store, config.pseudo)
            config = with_shares(config, store)
        trained = train_student(
            place,
            "student",
            config,
            prepared,
            runtime,
            second_stream=config.student.second_stream,
            init=given["teacher"],
            pseudo=given.get("pseudo-1"),
            round_=1,
            repeat=0,
        )
    else:
        trained = train_teacher(place, "teacher", config, prepared, runtime)
    if sets.test is None:
        return trained, None
    task = build_task(config, sets.labeled.class_names)
    name = f"evaluate-{trained.name}"
    return trained, evaluate_stage(place, name, config, task, trained, sets.test, prepared.groups, runtime)


def train_teacher(place: Place, name: str, config: RunConfig, prepared: Prepared, runtime: Runtime) -> Stage:
    """The stage `name`: supervised training on the labeled images, joint where there are classified ones."""
    data, init = prepared.sets, config.model.init
    joint = joint_training(config, prepared.classified, config.joint.weight)
    key = {**_base_key(config, config.teacher, data), "init": init_digest(init), **(joint.key if joint else {})}

    def work(stage: Stage) -> dict[str, Any]:
        runtime.seed_everything(config.seed)
        task = build_task(config, data.labeled.class_names)
        model, report = start_from(task, config, init)
        if runtime.is_main and init != "random":
            console.print(str(report))
        objective = Supervised(task, model, config.teacher.ignored)
        training = _training(stage, config, config.teacher, data, objective, round_=0)
        return {**_train_and_save(stage, training, joint, runtime, config), "load_report": report.as_dict()}

    return run_stage(place, name, key, runtime, work)


def train_student(
    place: Place,
    name: str,
    config: RunConfig,
    prepared: Prepared,
    runtime: Runtime,
    *,
    second_stream: str,
    init: Stage,
    pseudo: Stage | None,
    round_: int,
    repeat: int,
) -> Stage:
    """A student (`second_stream` pool), its control (labeled) or the upper reference (hidden).

    Args:
        place: where the stage is made.
        name: the stage's name.
        config: the run; its `student` part is taken with `second_stream` replaced, nothing else.
        prepared: the run's sets; with classified images the training is joint.
        runtime: devices.
        second_stream: where the second half of each batch comes from.
        init: the stage whose weights are started from.
        pseudo: the store's stage, where the mode needs one.
        round_: counts from 1.
        repeat: counts from 0; added to the seed.
    """
    data = prepared.sets
    student = config.student.model_copy(update={"second_stream": second_stream})
    mode = MODES[student.mode]
    joint = joint_training(config, prepared.classified, config.joint.student_weight)
    started = config.model.init if student.init == "model" else student.init
    learns_on = not mode.needs_store  # its teacher averages over the training that it continues, too
    before = _steps_of(init) if learns_on and started == "teacher" else 0
    key = {
        **_base_key(config, student, data),
        "seed": config.seed + repeat,
        "round": round_,
        "second": mode.key(config, prepared, student, pseudo),
        "init": init.hash if started == "teacher" else init_digest(started),
        **({"steps_before": before} if learns_on else {}),
        **(joint.key if joint else {}),
    }

    def work(stage: Stage) -> dict[str, Any]:
        runtime.seed_everything(config.seed + repeat)
        task = build_task(config, data.labeled.class_names)
        if started == "teacher":
            model = _teachers_model(init, config, joint)
        else:
            model = start_from(task, config, started, "student.init")[0]
        objective = mode.objective(task, model, config, student)
        training = _training(stage, config, student, data, objective, round_=round_, repeat=repeat)
        second = mode.second_stream(config, prepared, student, pseudo)
        training = replace(
            training, streams={**training.streams, "second": second}, average=mode.average(student, before)
        )
        if runtime.is_main and pseudo is not None and second_stream == "pool":
            write_provenance(stage.folder / "second-stream.parquet", pseudo_labels(pseudo, prepared), config.pseudo)
        return _train_and_save(stage, training, joint, runtime, config)

    return run_stage(place, name, key, runtime, work)


def start_from(task: Task, config: RunConfig, init: str, option: str = "model.init") -> tuple[Network, LoadReport]:
    """A network with the weights that `init` says, and what was loaded; `option` is named in errors.

    Raises:
        InputError: the weights cannot be had, or belong to another network.
    """
    model = task.build_model()
    try:
        return model, initialize(model, init, backbone_name=config.model.backbone)
    except InputError as error:
        raise InputError(str(error).replace("model.init", option)) from None


def _teachers_model(teacher: Stage, config: RunConfig, joint: JointTraining | None) -> Network:
    """The teacher's network, its classifier of whole images included where this training is of the same ones."""
    model = load_trained(teacher, config.task)
    known = tuple(read_card(teacher.model_folder).get("image_classes", ()))
    if joint is None or known != joint.image_classes:
        model.classifier = None
    return model


def _steps_of(trained: Stage) -> int:
    """Steps of the training that made a model, by its card; 0 where the card does not say."""
    steps: int = read_card(trained.model_folder).get("steps", 0)
    return steps


def _base_key(config: RunConfig, part: TrainConfig, data: DataSets) -> dict[str, Any]:
    return {
        "kind": "train",
        "task": config.task,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "train": part.model_dump(mode="json", exclude={"init", "online"}),
        "data": config.data.model_dump(mode="json"),
        "labeled": data.labeled.fingerprint,
    }


def _training(
    stage: Stage,
    config: RunConfig,
    part: TrainConfig,
    data: DataSets,
    objective: Objective,
    *,
    round_: int,
    repeat: int = 0,
) -> Training:
    """A training on the labeled images alone, as far as streams go."""
    num_steps = num_steps_for(part, len(data.labeled))
    batches = partial(train_batches, **reading(config, part))
    return Training(
        name=stage.name,
        run_hash=stage.hash,
        folder=stage.folder,
        objective=objective,
        streams={"labeled": Stream(data.labeled, part.batch_size, batches)},
        config=part,
        num_steps=num_steps,
        seed=config.seed + repeat,
        round=round_,
        guard=config.guard,
        validate=_validation(config, data.val),
        validate_steps=validation_steps(num_steps, config.eval.points) if data.val is not None else (),
    )


def validation_steps(num_steps: int, points: int) -> tuple[int, ...]:
    """`points` steps, evenly spread, the last of them the last step."""
    return tuple(sorted({round(num_steps * (point + 1) / points) for point in range(points)} - {0}))


def _validation(config: RunConfig, val: Index | None) -> Callable[..., dict[str, float]] | None:
    if val is None:
        return None

    def validate(model: nn.Module, runtime: Runtime) -> dict[str, float]:
        task = build_task(config, val.class_names)
        metrics = task.metrics(judge_all(model, task, val, config, runtime))
        return {f"val_{name}": metrics[name] for name in METRICS_OF_TASK[config.task] if metrics[name] is not None}

    return validate


def _train_and_save(
    stage: Stage, training: Training, joint: JointTraining | None, runtime: Runtime, config: RunConfig
) -> dict[str, Any]:
    if joint is not None:
        training = joint.added_to(training)
    result = loop.train(training, runtime)
    class_names = training.streams["labeled"].index.class_names
    if runtime.is_main:
        card = {
            "task": config.task,
            "class_names": list(class_names),
            "image_classes": list(joint.image_classes if joint else ()),
            "model": config.model.model_dump(mode="json"),
            "postprocess": config.postprocess.model_dump(mode="json"),
            "data": config.data.model_dump(mode="json", include={"range"}),  # 16-bit pictures are read the same later
            "precision": runtime.precision,
            "trained_as": stage.name,
            "steps": training.num_steps,
            "hash": stage.hash,
        }
        save_model(stage.folder / "model", cast(Network, result.model), card)
    return {
        "kind": "train",
        "seed": training.seed,
        "config": training.config.model_dump(mode="json"),
        "joint": config.joint.model_dump(mode="json") if joint else None,
        "steps": training.num_steps,
        "num_images": {name: len(stream.index) for name, stream in training.streams.items()},
        "batch_size": training.config.batch_size,
        **result.as_dict(),
        **training.objective.record(),
    }
