"""The verb `pretrain`: a backbone made from the user's own images, by one of several methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage import stats
from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.survey import survey
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic_folder, copy_files, read_json, write_json, write_text
from tutelage.stats.intervals import binomial_interval
from tutelage.workflows.options import Paths, default_recipe, resolve
from tutelage.workflows.pretraining.card import model_card
from tutelage.workflows.pretraining.data import Needs, PretrainData, open_data, without_leaks
from tutelage.workflows.pretraining.noisy_student import pretrain_noisy_student
from tutelage.workflows.pretraining.simclr import pretrain_simclr
from tutelage.workflows.pretraining.supervised import pretrain_supervised
from tutelage.workflows.stages import Place, Stage, console, open_run, pin_data, provenance


@dataclass(frozen=True)
class Method:
    """A way to pre-train: what it asks of its data, and the work itself."""

    needs: Needs
    work: Callable[[Runtime, RunConfig, Place, PretrainData], Stage]


METHODS: dict[str, Method] = {
    "supervised": Method(Needs(classes=True, pool=False), pretrain_supervised),
    "noisy-student": Method(Needs(classes=True, pool=True, teacher=True), pretrain_noisy_student),
    "simclr": Method(
        Needs(classes=False, pool=True, held_out="simclr.probe_fraction", clean_pool=True), pretrain_simclr
    ),
}


def pretrain(
    source: str | Path,
    *,
    out: str | Path,
    unlabeled: Paths = (),
    teacher: str | Path = "",
    recipe: str | Path = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains a backbone on images, mostly classified ones, into `out/model`; `model.init=OUT` then starts from it.

    The `train` and `pretrain` parts of the config are used; a seeded part of each class is held out to measure the
    accuracy of the last weights.

    Args:
        source: one folder of images a class, a csv of classified images, or tars of them; for simclr any images.
        out: the run folder; the same call on an unfinished run continues it.
        unlabeled: a pool of images for noisy-student, more images for simclr.
        teacher: a finished classifier of the same classes, in the place of the teacher of noisy-student.
        recipe: name or YAML file; pretrain-small when empty, or pretrain-r50 on a GPU.
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: continue with the folder's own config.
        overwrite: replace a run that is there.
        overrides: `key=value` options.

    Returns:
        The record, as in `out/run.json`.

    Raises:
        InputError: fewer than two classes, a held-out image that cannot be read, and what else a user can mend.
    """
    out = Path(out)
    sources: dict[str, Paths] = {"labeled": source, "unlabeled": unlabeled, "teacher": teacher}
    config = resolve(
        recipe or default_recipe("pretrain"), overrides, sources, seed=seed, device=device, devices=devices
    )
    config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    if (out / "run.json").is_file():
        record: dict[str, Any] = read_json(out / "run.json")
        console.print(f"{out}: finished earlier, accuracy {_percent(record['accuracy'])}.")
        return record
    method = METHODS[config.pretrain.method]
    data = open_data(config, method.needs)
    console.print("; ".join([data.source.description, *(f"{n} {what}" for what, n in data.source.counts.items() if n)]))
    if method.needs.clean_pool:
        data = without_leaks(data, config.data)
    pin_data(out, data.fingerprints)
    survey(data.source.select(data.held_out), config.data)  # what cannot be read ends it here, not after the training
    stage = launch(config.runtime, method.work, config, Place(out / "stages"), data)
    record = run_record(out, config, data, stage)
    with atomic_folder(out / "model", replace=True) as model:
        copy_files(stage.model_folder, model)
        write_text(model / "README.md", model_card(record, model))
    write_json(out / "run.json", record)
    console.print(f"Accuracy {_percent(record['accuracy'])}. Model: {out / 'model'}")
    return record


def run_record(out: Path, config: RunConfig, data: PretrainData, stage: Stage) -> dict[str, Any]:
    """What `run.json` says: the data, what the method's stage found, and what it takes to make it again."""
    given = {"labeled": data.source} | ({} if data.pool is None else {"unlabeled": data.pool})
    record = {
        "method": config.pretrain.method,
        "init": config.model.init,
        "size": config.pretrain.size,
        "data": {name: _described(index) for name, index in given.items()},
        "held_out": len(data.held_out),
        "num_images": {"labeled": len(data.images)},
        "classes": list(data.source.class_names),
        "stages": {stage.name: str(stage.folder.relative_to(out))},
        **stage.record,
        **provenance(config),
    }
    return {**record, "accuracy_interval": _interval(record["accuracy"], record["held_out"], config.eval.confidence)}


def _described(index: Index) -> dict[str, Any]:
    return {
        "description": index.description,
        "images": len(index),
        "counts": index.counts,
        "fingerprint": index.fingerprint,
    }


def _interval(accuracy: float | None, held_out: int, confidence: float) -> dict[str, Any] | None:
    """Of the share of held-out images that are right, over their choice."""
    if accuracy is None:
        return None
    covers = stats.covers(held_out, held_out, "bootstrap")
    return binomial_interval(round(accuracy * held_out), held_out, confidence, covers).as_dict()


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"
