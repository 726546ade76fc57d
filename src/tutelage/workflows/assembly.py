"""A finished model opened with the config it carries, data as a task wants it, and the formats it is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.pseudo import open_store
from tutelage.data.readers import open_index
from tutelage.data.sources import split_for
from tutelage.data.writers import write_coco, write_coco_masks, write_mask_folder, write_voc, write_yolo
from tutelage.files import read_json
from tutelage.models.init import load_model, read_card
from tutelage.models.model import Network
from tutelage.tasks.table import TASKS
from tutelage.types import Annotation, InputError
from tutelage.workflows.options import Paths, resolve
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage, console, given_model, given_store

UNIMPORTANT = ("init", "num_classes", "loss", "drop_path")  # keys of a model whose weights fit all the same
Formats = dict[Annotation, dict[str, tuple[Callable[..., None], str]]]
"""How annotations are written: format -> writer, and the name of its file where it is one."""

SCORED_COCO = {"coco": (partial(write_coco, with_scores=True), "boxes.json")}
MASK_FORMATS = {"png": (write_mask_folder, ""), "coco": (write_coco_masks, "masks.json")}
PSEUDO_LABELS: Formats = {
    "boxes": {
        **SCORED_COCO,
        "yolo": (partial(write_yolo, with_scores=False), ""),
        "voc": (partial(write_voc, with_scores=False), ""),
    },
    "masks": MASK_FORMATS,
}
PREDICTIONS: Formats = {
    "boxes": {**SCORED_COCO, "yolo": (partial(write_yolo, with_scores=True), "")},
    "masks": MASK_FORMATS,
}


def open_model(
    model: str | Path, recipe: str | Path, overrides: tuple[str, ...], *, device: str, devices: int, **sources: Paths
) -> tuple[Stage, RunConfig]:
    """A finished model, and a config: the recipe, what the model's card says laid on it, then the overrides.

    Raises:
        InputError: there is no model, it is a mere backbone, or an option is unknown.
    """
    stage = given_model("teacher", Path(model))
    card = _card_of(stage, TASKS)
    base = resolve(recipe, (), {}, task=card["task"]).model_dump(mode="json") if recipe else {"task": card["task"]}
    data = {**base.get("data", {}), **card.get("data", {})}
    runtime = dict(base.get("runtime", {}))
    if card.get("precision") == "float32" and runtime.get("precision", "auto") == "auto":
        runtime["precision"] = "float32"  # bfloat16 only where the device has it, which `auto` sees to
    raw = {**base, "data": data, "model": card["model"], "postprocess": card["postprocess"], "runtime": runtime}
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
    load_trained(teacher, config.task)
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
    """The data sets of one option as one; None where none was given.

    Args:
        sources: files and folders.
        config: how to read them.
        unlabeled: a pool, which may be plain images; else a test set: of a source with splits that one, as in `fit`.
    """
    if not sources:
        return None
    images, annotation = config.sources.images, TASKS[config.task].annotation

    def opened(source: str) -> Index:
        split = "train" if unlabeled else split_for(source, "test", annotation)
        return open_index(source, config.data, images=images, unlabeled=unlabeled, split=split, annotation=annotation)

    return join([opened(source) for source in sources])


def of_the_models_classes(index: Index, trained: Stage, option: str) -> Index:
    """Labeled images with the classes of a model, matched by name; those left out are printed.

    Raises:
        InputError: no class is one of the model's.
    """
    known: list[str] = read_card(trained.model_folder)["class_names"]
    if not set(index.class_names) & set(known):
        raise InputError(
            f"{option}: no class is one of the model's: it has {', '.join(known[:10])}, the data "
            f"{', '.join(index.class_names[:10])}. Make the names equal, or give other data."
        )
    if others := [name for name in index.class_names if name not in known]:
        console.print(f"[yellow]{option}: left out are {', '.join(others)}, which the model does not know.[/]")
    return index.with_classes(known)


def load_trained(stage: Stage, task: str) -> Network:
    """The network of a stage that trained one for `task`.

    Raises:
        InputError: there is none, or it is of another task.
    """
    _card_of(stage, (task,))
    return cast(Network, load_model(stage.model_folder)[0])  # a classifier's card names no task of ours


def require_format(option: str, format: str, formats: Formats, annotation: Annotation) -> None:
    """Refuses what boxes or masks cannot be written as (`InputError`)."""
    if format not in formats[annotation]:
        allowed = ", ".join(formats[annotation])
        raise InputError(f"{option}: unknown format {format!r} for {annotation}; choose one of {allowed}.")


def _card_of(stage: Stage, tasks: Iterable[str]) -> dict[str, Any]:
    """The card of a model of one of `tasks`."""
    card = read_card(stage.model_folder)
    if card["task"] not in tasks:
        raise InputError(
            f"{stage.model_folder}: holds a model for {card['task']}; one for {' or '.join(tasks)} is needed here. "
            "Give the model of such a fit or train; a pre-trained backbone is what model.init takes."
        )
    if len(card.get("class_names", ())) != card["num_classes"]:
        raise InputError(
            f"{stage.model_folder / 'model.json'}: names {len(card.get('class_names', ()))} of {card['num_classes']} "
            "classes; each needs a name. Restore the file."
        )
    return card
