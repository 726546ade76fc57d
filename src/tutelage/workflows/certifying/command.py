"""The verb `certify`: what precision and recall pseudo-labels of a teacher have on human labels it did not train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig
from tutelage.data.gap import gap_between, pool_sample
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.listed import listed_rows
from tutelage.data.readers import open_index
from tutelage.data.survey import survey
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import read_json, write_json
from tutelage.reporting.certificate import certificate_lines
from tutelage.reporting.page import write_certificate
from tutelage.tasks.table import TASKS, build_task
from tutelage.workflows.assembly import of_the_models_classes, open_all, open_model
from tutelage.workflows.certifying.knowledge import refuse_known, training_of
from tutelage.workflows.certifying.rounds import FIRST, Graph, certify_round
from tutelage.workflows.certifying.stage import Labeler, certify_stage
from tutelage.workflows.options import Paths, require_sources, resolve
from tutelage.workflows.prepare import Prepared, prepare, resampling_groups
from tutelage.workflows.stages import Place, Stage, console, open_run, pin_data, provenance
from tutelage.workflows.training import train_teacher

OWN_FILES = ("run.json", "report.html", ".tmp-*")
ASK = "pseudo.score_threshold=certified"


def certify(
    model: str | Path = "",
    *,
    labeled: Paths = (),
    out: str | Path,
    unlabeled: Paths = (),
    test: Paths = (),
    val: Paths = (),
    precision: float | None = None,
    task: str = "",
    labeled_list: str | Path = "",
    images: str | Path = "",
    recipe: str | Path = "",
    stages: str | Path = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Precision and recall of pseudo-labels by class and threshold, with intervals; record and page go to `out`.

    With a model, that model on labeled images that it did not train on. Without one, teachers are trained as `fit`
    would: one on what `certify.fraction` leaves, or `certify.folds` of them, each without a fold.

    Args:
        model: run, stage or model folder; empty to train.
        labeled: human-labeled images.
        out: folder of the result.
        unlabeled: the pool, to say how far it lies from the labeled images.
        test: without a model: the test images of the fit, which are then not trained on; as in `fit` when empty.
        val: without a model: the selection split of the fit.
        precision: that the chosen thresholds have to be shown to meet (`certify.precision`).
        task: detection or segmentation; the recipe's, or the model's, when empty.
        labeled_list: text file of the labeled images that count.
        images: folder that image paths in annotations are relative to.
        recipe: name or YAML file; with a model its card lies over it.
        stages: without a model: folder of stages shared with fits.
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: without a model: continue with the folder's own config.
        overwrite: replace the result that is there.
        overrides: `key=value` options.

    Returns:
        The record, as in `out/run.json`.

    Raises:
        InputError: what a user can mend; images that the model is known to have been trained on.
    """
    out = Path(out)
    if precision is not None:
        overrides = (*overrides, f"certify.precision={precision}")
    sources: dict[str, Paths] = {
        "labeled": labeled,
        "unlabeled": unlabeled,
        "labeled_list": labeled_list,
        "images": images,
    }
    if model:
        trained, config = open_model(model, recipe, overrides, device=device, devices=devices, **sources)
        require_sources(config, "labeled")
        place = Place(out, own_files=OWN_FILES)
        place.prepare(overwrite=overwrite)
        stage = _of_model(Path(model), trained, config, place)
        console.print(f"Report: {write_certificate(stage.folder)}")
        return stage.record
    sources |= {"test": test, "val": val, "stages": stages}
    config = resolve(recipe, (*overrides, ASK), sources, task=task, seed=seed, device=device, devices=devices)
    config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    require_sources(config, "labeled")
    return _of_recipe(out, config)


def _of_model(model: Path, trained: Stage, config: RunConfig, place: Place) -> Stage:
    index = of_the_models_classes(_open_labeled(config), trained, "--labeled")
    build_task(config, index.class_names).check_label(config.label)
    training = training_of(model)
    known = not isinstance(training, str)
    unseen = "By the records of its run, the model was trained on none of these images."
    if isinstance(training, str):
        unseen = f"Whether the model was trained on them cannot be known ({training}): see to it that it was not."
    else:
        refuse_known(index, training, config.data, "--labeled")
    pool = open_all(config.sources.unlabeled, config, unlabeled=True)
    told = {"about": "", "known": known, "unseen": unseen, "gap": _gap(index, pool, config)}
    labeler = Labeler(trained, index, resampling_groups(index, config.data))
    return launch(config.runtime, _certify_model, config, place, labeler, told)


def _certify_model(runtime: Runtime, config: RunConfig, place: Place, labeler: Labeler, told: dict[str, Any]) -> Stage:
    task = build_task(config, labeler.images.class_names)
    return certify_stage(place, "certify", config, task, [labeler], runtime, certified=True, told=told)


def _open_labeled(config: RunConfig) -> Index:
    annotation, sources = TASKS[config.task].annotation, config.sources
    index = join(
        [
            open_index(one, config.data, images=sources.images, split="train", annotation=annotation)
            for one in sources.labeled
        ]
    )
    return index.select(listed_rows(index, Path(sources.labeled_list))) if sources.labeled_list else index


def _gap(labeled: Index, pool: Index | None, config: RunConfig) -> str:
    """How far the pool lies from the labeled images; empty where there is none, or nothing to compare."""
    if pool is None:
        return ""
    sample = survey(pool_sample(pool, config.seed), config.data, tolerant=True)
    gap = gap_between(survey(labeled, config.data), sample)
    return gap.sentence() if gap is not None else ""


def _of_recipe(out: Path, config: RunConfig) -> dict[str, Any]:
    prepared = prepare(config)
    build_task(config, prepared.sets.labeled.class_names).check_label(config.label)
    pin_data(out, prepared.fingerprints)
    finished = out / "run.json"
    if finished.is_file():
        record: dict[str, Any] = read_json(finished)
        console.print("\n".join([f"{out}: finished earlier.", *certificate_lines(record)]))
        return record
    console.print("\n".join(prepared.lines()))
    place = Place(Path(config.sources.stages or out / "stages"))
    graph = launch(config.runtime, _certify_recipe, config, prepared, place)
    gap = prepared.check.gap
    record = {
        **graph[FIRST].record,
        **provenance(config),
        "notes": prepared.sets.notes,
        "gap": gap.sentence() if gap is not None else "",
        "stages": {name: os.path.relpath(stage.folder, out) for name, stage in graph.items()},
    }
    write_json(finished, record)
    console.print(f"Report: {write_certificate(out)}")
    return record


def _certify_recipe(runtime: Runtime, config: RunConfig, prepared: Prepared, place: Place) -> Graph:
    assert prepared.apart is not None, f"asked for by {ASK}"
    graph: Graph = {}
    if prepared.apart.certified:
        graph["teacher"] = train_teacher(place, "teacher", config, prepared, runtime)
    certify_round(graph, place, config, prepared, graph.get("teacher"), runtime, suffix="-1")
    return graph
