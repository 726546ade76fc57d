"""Training stages: the teacher, and the student or its control, which differ in one key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tutelage.config import RunConfig, StudentConfig, TrainConfig
from tutelage.data.index import Index
from tutelage.data.pseudo import open_store, store_index
from tutelage.data.sources import DataSets
from tutelage.engine.loop import Training, train
from tutelage.engine.objectives import Student, Supervised
from tutelage.engine.optim import num_steps_for
from tutelage.engine.runtime import Runtime
from tutelage.models.init import initialize, load_model, save_model
from tutelage.tasks.detection import DetectionTask
from tutelage.workflows.assembly import build_task
from tutelage.workflows.evaluation import measure
from tutelage.workflows.stages import Place, Stage, run_stage


def train_teacher(place: Place, config: RunConfig, data: DataSets, runtime: Runtime) -> Stage:
    """The stage `teacher`: supervised training on the labeled images."""
    key = {**_base_key(config, config.teacher, data), "init": config.model.init}

    def work(stage: Stage) -> dict[str, Any]:
        runtime.seed_everything(config.seed)
        task = build_task(config, data.labeled.class_names)
        model = task.build_model()
        report = initialize(model, config.model.init, backbone_name=config.model.backbone)
        objective = Supervised(task, model, config.teacher.ignored)
        training = _training(stage, config, config.teacher, data, objective, {"labeled": data.labeled}, round_=0)
        return {**_train_and_save(stage, training, runtime, config), "load_report": report.as_dict()}

    return run_stage(place, "teacher", key, runtime, work)


def train_student(
    place: Place,
    name: str,
    config: RunConfig,
    data: DataSets,
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
        data: the run's sets.
        runtime: devices.
        second_stream: where the second half of each batch comes from.
        init: the stage whose weights are started from.
        pseudo: the store's stage, for `pool`.
        round_: counts from 1.
        repeat: counts from 0; added to the seed.
    """
    student = config.student.model_copy(update={"second_stream": second_stream})
    second = {
        "pool": lambda: {"store": pseudo.hash if pseudo else "", "pseudo": config.pseudo.model_dump(mode="json")},
        "labeled": lambda: {"ratio": config.pseudo.ratio},
        "hidden": lambda: {"ratio": config.pseudo.ratio, "hidden": data.pool.fingerprint if data.pool else ""},
    }[second_stream]()
    key = {
        **_base_key(config, student, data),
        "seed": config.seed + repeat,
        "round": round_,
        "second": second,
        "init": init.hash if student.init == "teacher" else config.model.init,
    }

    def work(stage: Stage) -> dict[str, Any]:
        runtime.seed_everything(config.seed + repeat)
        task = build_task(config, data.labeled.class_names)
        model = _initial_weights(task, config, student, init)
        streams = {"labeled": data.labeled, "second": _second_stream(config, data, student, pseudo)}
        objective = Student(task, model, student)
        training = _training(stage, config, student, data, objective, streams, round_=round_, repeat=repeat)
        return _train_and_save(stage, training, runtime, config)

    return run_stage(place, name, key, runtime, work)


def _initial_weights(task: DetectionTask, config: RunConfig, student: StudentConfig, init: Stage) -> nn.Module:
    if student.init == "teacher":
        return load_model(init.model_folder)[0]
    model = task.build_model()
    initialize(model, config.model.init, backbone_name=config.model.backbone)
    return model


def _second_stream(config: RunConfig, data: DataSets, student: StudentConfig, pseudo: Stage | None) -> Index:
    if student.second_stream == "labeled":
        return data.labeled
    assert data.pool is not None, "the graph asks for a pool only where there is one"
    if student.second_stream == "hidden":
        return data.pool
    assert pseudo is not None, "the graph labels the pool before a student trains on it"
    return store_index(open_store(pseudo.folder), data.pool, config.pseudo)


def _base_key(config: RunConfig, part: TrainConfig, data: DataSets) -> dict[str, Any]:
    return {
        "kind": "train",
        "task": config.task,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "train": part.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "labeled": data.labeled.fingerprint,
    }


def _training(
    stage: Stage,
    config: RunConfig,
    part: TrainConfig,
    data: DataSets,
    objective: nn.Module,
    streams: dict[str, Index],
    *,
    round_: int,
    repeat: int = 0,
) -> Training:
    num_steps = num_steps_for(part, len(data.labeled))
    return Training(
        name=stage.name,
        run_hash=stage.hash,
        folder=stage.folder,
        objective=objective,
        streams=streams,
        batch_sizes={"labeled": part.batch_size, "second": part.batch_size * config.pseudo.ratio},
        config=part,
        canvas=config.model.canvas,
        data=config.data,
        runtime_config=config.runtime,
        num_steps=num_steps,
        seed=config.seed + repeat,
        round=round_,
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
        metrics = measure(model, task, val, config, runtime).metrics
        return {f"val_{name}": metrics[name] for name in ("ap", "ap50", "ap75") if metrics[name] is not None}

    return validate


def _train_and_save(stage: Stage, training: Training, runtime: Runtime, config: RunConfig) -> dict[str, Any]:
    result = train(training, runtime)
    class_names = training.streams["labeled"].class_names
    if runtime.is_main:
        card = {
            "task": config.task,
            "class_names": list(class_names),
            "model": config.model.model_dump(mode="json"),
            "postprocess": config.postprocess.model_dump(mode="json"),
            "trained_as": stage.name,
            "hash": stage.hash,
        }
        save_model(stage.folder / "model", result.model, card)
    return {
        "kind": "train",
        "seed": training.seed,
        "config": training.config.model_dump(mode="json"),
        "steps": training.num_steps,
        "num_images": {name: len(index) for name, index in training.streams.items()},
        "batch_size": training.config.batch_size,
        **result.as_dict(),
    }
