"""The tables that choose a task, and a finished model opened with the config it carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig
from tutelage.data.index import Index, join
from tutelage.data.pseudo import open_store
from tutelage.data.readers import open_index
from tutelage.data.writers import Record, write_coco, write_voc, write_yolo
from tutelage.files import read_json
from tutelage.models.init import load_model, read_card
from tutelage.models.model import RetinaNet
from tutelage.tasks.detection import DetectionTask
from tutelage.types import InputError
from tutelage.workflows.options import Paths, resolve
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage, given_model, given_store

TASKS = {"detection": DetectionTask}
UNIMPORTANT = ("init", "num_classes", "loss", "drop_path")  # keys of a model whose weights fit all the same
EXPORTS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}


def build_task(config: RunConfig, class_names: tuple[str, ...]) -> DetectionTask:
    """The task that `config.task` names, for the data's classes."""
    return TASKS[config.task](config.model, config.postprocess, class_names)


def open_model(
    model: str | Path, recipe: str | Path, overrides: tuple[str, ...], *, device: str, devices: int, **sources: Paths
) -> tuple[Stage, RunConfig]:
    """A finished detector, and a config: the recipe, what the model's card says laid on it, then the overrides.

    Raises:
        InputError: there is no model, it is a classifier, or an option is unknown.
    """
    stage = given_model("teacher", Path(model))
    card = _detector_card(stage)
    base = resolve(recipe, (), {}, task=card["task"]).model_dump(mode="json") if recipe else {"task": card["task"]}
    data = {**base.get("data", {}), **card.get("data", {})}
    raw = {**base, "data": data, "model": card["model"], "postprocess": card["postprocess"]}
    return stage, resolve(raw, overrides, sources, task=card["task"], device=device, devices=devices)


def open_given(config: RunConfig, prepared: Prepared) -> dict[str, Stage]:
    """The stages that `--teacher` and `--pseudo` put in the place of the run's own, by their names in the graph.

    Raises:
        InputError: they are of other classes or another network, or the store may hold test images.
    """
    given = {}
    if config.sources.teacher:
        given["teacher"] = given_model("teacher", Path(config.sources.teacher))
        _require_same_network(given["teacher"], config, prepared)
    if config.sources.pseudo:
        given["pseudo-1"] = given_store("pseudo-1", Path(config.sources.pseudo))
        _require_fitting_store(given["pseudo-1"], prepared)
    return given


def _require_same_network(teacher: Stage, config: RunConfig, prepared: Prepared) -> None:
    load_detector(teacher)
    card = read_json(teacher.model_folder / "model.json")
    own = config.model.model_dump(mode="json")
    names = list(prepared.sets.labeled.class_names)
    differing = [f"model.{key}" for key in own if key not in UNIMPORTANT and card["model"].get(key) != own[key]]
    if card["class_names"] != names:
        differing.append(f"its classes ({', '.join(card['class_names'])})")
    if differing:
        raise InputError(
            f"--teacher {teacher.folder}: differs from this run in {', '.join(differing)}; the student starts from its "
            f"weights, so network and classes ({', '.join(names)}) must be the same. Set the options to those in its "
            "model.json, or train a teacher here."
        )


def _require_fitting_store(pseudo: Stage, prepared: Prepared) -> None:
    manifest = open_store(pseudo.folder).manifest
    names = prepared.sets.labeled.class_names
    if manifest.class_names != names:
        raise InputError(
            f"--pseudo {pseudo.folder}: its classes are {', '.join(manifest.class_names)}; those of the labeled data "
            f"({', '.join(names)}) are needed, in this order. Label the pool again."
        )
    if not {index.fingerprint for index in prepared.held_out} <= set(manifest.held_out):
        raise InputError(
            f"--pseudo {pseudo.folder}: was made without keeping this run's test images and selection split out, so "
            "that the student might train on them. Label the pool again with the same --test (and --val)."
        )


def open_all(sources: tuple[str, ...], config: RunConfig, *, unlabeled: bool = False) -> Index | None:
    """The data sets of one option as one; None where none was given. A pool (`unlabeled`) may be plain images."""
    if not sources:
        return None
    images = config.sources.images
    return join([open_index(source, config.data, images=images, unlabeled=unlabeled) for source in sources])


def load_detector(stage: Stage) -> RetinaNet:
    """The network of a stage that trained a detector.

    Raises:
        InputError: there is none, or it is a classifier.
    """
    _detector_card(stage)
    model, _ = load_model(stage.model_folder)
    assert isinstance(model, RetinaNet), type(model)
    return model


def export_boxes(
    format: str, folder: Path, records: Iterable[Record], class_names: Sequence[str], *, with_scores: bool
) -> Path:
    """Writes boxes in a format of `EXPORTS`; returns the file (COCO json) or folder that was written."""
    target = folder / "boxes.json" if format == "coco" else folder
    EXPORTS[format](target, records, class_names, with_scores=with_scores)
    return target


def _detector_card(stage: Stage) -> dict[str, Any]:
    card = read_card(stage.model_folder)
    if card["kind"] != "detector":
        raise InputError(
            f"{stage.model_folder}: holds a {card['kind']}, which finds no boxes. Give the model of a fit or train; "
            "a pre-trained backbone is what model.init takes."
        )
    return card
