"""Noisy Student (arXiv:1911.04252): a teacher gives a pool classes, a noised student learns from these and the labels.

Stages are named as in `fit`: teacher, pseudo-1, student-1, pseudo-2, ..., and control-N, which is the last student's
training with labeled images and their human labels in the place of the pool's. It tells what the pool was worth from
what longer training with more noise is worth by itself.

Legend: K classes, m pool images that could be read, n rows of the second stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.config import NoisyStudentConfig, PseudoConfig, RunConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.loader import classification_evaluation_batches, classification_pool_batches
from tutelage.data.pseudo import Manifest, Outcome, PseudoStore, open_store, store_index
from tutelage.data.pseudo.balancing import balance
from tutelage.data.pseudo.classes import stored_probabilities
from tutelage.engine.guard import device_batch
from tutelage.engine.noisy_student import NoisyStudent, SoftTargets
from tutelage.engine.objectives import Objective
from tutelage.engine.runtime import Runtime
from tutelage.models.init import load_model
from tutelage.models.model import Classifier
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import InputError
from tutelage.workflows.labeling import batch_in_part, outcomes_of, write_store
from tutelage.workflows.pretraining.conclusion import conclude
from tutelage.workflows.pretraining.data import PretrainData
from tutelage.workflows.pretraining.supervised import (
    base_key,
    stream_of,
    supervised_stage,
    task_of,
    train_classifier,
)
from tutelage.workflows.stages import Place, Stage, run_stage


@dataclass(frozen=True)
class Second:
    """The second stream of a student or control."""

    index: Index  # (n) with classes
    soft: SoftTargets | None  # instead of the classes
    record: dict[str, Any]  # what was balanced


def pretrain_noisy_student(runtime: Runtime, config: RunConfig, place: Place, data: PretrainData) -> Stage:
    """The stage `noisy-student`: the last student's model, compared with its control and the teacher.

    Raises:
        InputError: no pool, no prediction at the floor, or a backbone of the students that cannot be built or does not
            fit the images or the weights.
    """
    if data.pool is None:
        raise InputError(
            "--unlabeled: was not given; pretrain.method=noisy-student needs a pool. Add --unlabeled POOL."
        )
    larger = _with_students_backbone(config)
    _refuse_unusable(larger, data)
    graph = {"teacher": data.teacher or supervised_stage(place, "teacher", config, data, runtime)}
    teacher, rounds = graph["teacher"], config.pretrain.noisy_student.rounds
    for round_ in range(1, rounds + 1):
        pseudo = label_pool(place, f"pseudo-{round_}", config, data, teacher, runtime, round_=round_)
        teacher = train_student(place, f"student-{round_}", larger, data, pseudo, runtime, round_=round_)
        graph |= {pseudo.name: pseudo, teacher.name: teacher}
    control = train_student(place, f"control-{rounds}", larger, data, None, runtime, round_=rounds)
    return conclude(place, config, data, graph | {control.name: control}, runtime)


def _with_students_backbone(config: RunConfig) -> RunConfig:
    backbone = config.pretrain.noisy_student.backbone or config.model.backbone
    if backbone != config.model.backbone and Path(config.model.init).exists():
        raise InputError(
            f"pretrain.noisy_student.backbone={backbone}: model.init={config.model.init} holds weights of "
            f"{config.model.backbone}, which the student cannot start from. Set model.init=random (as in the paper) or "
            "imagenet, or leave the student's backbone out."
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})


def _refuse_unusable(config: RunConfig, data: PretrainData) -> None:
    """Has the students' network look at a picture, so that one that cannot ends before the teacher is trained."""
    size = config.pretrain.size
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        model = task_of(config, data).build_model().eval()
        model(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.tensor([[size, size]]))


def label_pool(
    place: Place, name: str, config: RunConfig, data: PretrainData, teacher: Stage, runtime: Runtime, *, round_: int
) -> Stage:
    """The stage that gives the pool classes, without noise; copies of held-out images are kept out and counted."""
    assert data.pool is not None, "pretrain_noisy_student refuses to start without"
    pool, held_out = data.pool, data.source.select(data.held_out)
    key = {
        "kind": "label",
        "task": "classification",
        "teacher": teacher.hash,
        "size": config.pretrain.size,
        "data": config.data.model_dump(mode="json"),
        "pool": pool.fingerprint,
        "held_out": [held_out.fingerprint],
    }

    def work(stage: Stage) -> dict[str, Any]:
        manifest = Manifest(
            annotation="classes",
            teacher=teacher.hash,
            round=round_,
            class_names=data.source.class_names,
            score_floor=0.0,
            label={"size": config.pretrain.size},
            pool=pool.fingerprint,
            held_out=(held_out.fingerprint,),
            key=stage.hash,
            num_images=len(pool),
            part_size=config.label.part_size,
        )
        label_rows = partial(_label_rows, config, data, teacher, runtime)
        write_store(stage.folder, manifest, pool, runtime, label_rows)
        counts = open_store(stage.folder).counts(pseudo_config(config.pretrain.noisy_student))
        return {"kind": "label", "counts": counts, "pool": pool.description}

    return run_stage(place, name, key, runtime, work)


def _label_rows(
    config: RunConfig, data: PretrainData, teacher: Stage, runtime: Runtime, rows: NDArray[np.int64]
) -> Iterator[Outcome]:
    """What became of these rows of the pool, seen as held-out images are."""
    assert data.pool is not None, "pretrain_noisy_student refuses to start without"
    task, model = task_of(config, data), trained_classifier(teacher).to(runtime.device).eval()
    options: dict[str, Any] = {
        "pretrain": config.pretrain,
        "data": config.data,
        "device_batch_size": batch_in_part(device_batch(config.train.batch_size, runtime), config.label.part_size),
        "workers": runtime.workers,
    }
    held_out = classification_evaluation_batches(data.source, rows=data.held_out, **options)
    leaks = HashBook.of_pictures(image.permute(1, 2, 0).numpy() for batch in held_out for image in batch.images[:, 0])
    batches = classification_pool_batches(data.pool, rows=rows, **options)
    return outcomes_of(batches, lambda batch: task.predict(model, batch), leaks, runtime, len(rows))


def train_student(
    place: Place,
    name: str,
    config: RunConfig,
    data: PretrainData,
    pseudo: Stage | None,
    runtime: Runtime,
    *,
    round_: int,
) -> Stage:
    """A student, or with `pseudo` None its control, from `model.init`; `config.model` is the student's."""
    options = config.pretrain.noisy_student
    second_key = {"ratio": options.ratio} if pseudo is None else _pool_key(options, pseudo)
    key = {**base_key(config, data), "kind": "noisy-student", "round": round_, "second": second_key}

    def work(stage: Stage) -> dict[str, Any]:
        second = Second(data.images, None, {}) if pseudo is None else _from_pool(config, data, pseudo, round_)
        batch_size = config.train.batch_size
        streams = {
            "labeled": stream_of(data.images, batch_size, config),
            "second": stream_of(second.index, batch_size * options.ratio, config),
        }

        def build(task: ClassificationTask, model: Classifier) -> Objective:
            return NoisyStudent(task, model, second.soft)

        return {**train_classifier(stage, config, data, runtime, build, streams, round_=round_), **second.record}

    return run_stage(place, name, key, runtime, work)


def _pool_key(options: NoisyStudentConfig, pseudo: Stage) -> dict[str, Any]:
    return {"store": pseudo.hash, **options.model_dump(mode="json", exclude={"rounds", "backbone"})}


def _from_pool(config: RunConfig, data: PretrainData, pseudo: Stage, round_: int) -> Second:
    """The pool's confident images, balanced, with the teacher's classes or probabilities."""
    assert data.pool is not None, "pretrain_noisy_student refuses to start without"
    options, store = config.pretrain.noisy_student, open_store(pseudo.folder)
    labels, scores = _first_classes(store)
    _require_confident(store, scores, options)
    copies, counts = balance(
        labels,
        scores,
        num_classes=len(data.source.class_names),
        floor=options.floor,
        per_class=options.per_class,
        rng=np.random.default_rng(np.random.SeedSequence([config.seed, round_, 0xBA1A])),
    )
    confident = store_index(store, data.pool, pseudo_config(options))
    kept = scores >= np.float32(options.floor)
    assert len(confident) == kept.sum(), "an index and a store of the same images"
    rows = np.repeat(np.arange(len(confident)), copies[kept])
    soft = None
    if options.soft:
        probabilities = stored_probabilities(store.folder, store.manifest.num_parts)[kept]
        soft = SoftTargets(torch.from_numpy(probabilities), torch.from_numpy(rows))
    return Second(confident.select(rows), soft, {"balance": counts.as_dict(data.source.class_names)})


def _first_classes(store: PseudoStore) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(m,) first classes and their probabilities, in the pool's order."""
    found = [store.kind.found(table) for _, table in store.parts()]
    labels = np.concatenate([part.labels for part in found])
    return labels.astype(np.int64), np.concatenate([part.scores for part in found])


def _require_confident(store: PseudoStore, scores: NDArray[np.float32], options: NoisyStudentConfig) -> None:
    if not (scores >= np.float32(options.floor)).any():
        highest = f"the highest is {scores.max():.3g}" if len(scores) else "none could be read"
        raise InputError(
            f"pretrain.noisy_student.floor={options.floor}: none of {store.manifest.num_images} images has a first "
            f"class that probable ({highest}). Lower it, train the teacher longer, or give another pool."
        )


def pseudo_config(options: NoisyStudentConfig) -> PseudoConfig:
    """How a store is read: images below the floor are left out."""
    return PseudoConfig(score_threshold=options.floor, empty="drop")


def trained_classifier(stage: Stage) -> Classifier:
    """The classifier of a finished stage."""
    model, _ = load_model(stage.model_folder)
    assert isinstance(model, Classifier), type(model)
    return model
