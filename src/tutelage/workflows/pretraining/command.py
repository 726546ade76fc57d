"""The verb `pretrain`: a backbone trained to tell the classes of a folder of class folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tutelage.data.readers import open_index
from tutelage.engine.runtime import launch
from tutelage.files import read_json, write_json
from tutelage.types import InputError
from tutelage.workflows.options import resolve
from tutelage.workflows.pretraining.supervised import held_out_rows, pretrain_supervised
from tutelage.workflows.stages import Place, console, open_run, pin_data


def pretrain(
    folder: str | Path,
    *,
    out: str | Path,
    recipe: str | Path = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains a backbone on a folder of class folders into `out/model`; `model.init=OUT` then starts from it.

    The `train` and `pretrain` parts of the config are used; a seeded part of each class is held out to measure the
    accuracy of the last weights.

    Args:
        folder: one folder of images a class.
        out: the run folder; the same call on an unfinished run continues it.
        recipe: name or YAML file.
        seed: of everything drawn.
        device: auto, cpu, cuda or mps.
        devices: how many.
        resume: continue with the folder's own config.
        overwrite: replace a run that is there.
        overrides: `key=value` options.

    Returns:
        The record, as in `out/run.json`.

    Raises:
        InputError: fewer than two classes, and what else a user can mend.
    """
    out = Path(out)
    config = resolve(recipe, overrides, {"labeled": folder}, seed=seed, device=device, devices=devices)
    config = open_run(out, config, overrides, overwrite=overwrite, resume=resume)
    if (out / "run.json").is_file():
        record: dict[str, Any] = read_json(out / "run.json")
        console.print(f"{out}: finished earlier, accuracy {_percent(record['accuracy'])}.")
        return record
    index = open_index(config.sources.labeled[0], config.data)
    classes = index.image_classes()
    if len(index.class_names) < 2 or (classes < 0).any():
        raise InputError(
            f"{folder}: {len(index.class_names)} classes were found; pre-training needs at least two folders of "
            "images, one a class. Give the folder that holds them."
        )
    console.print(index.description)
    pin_data(out, {"labeled": index.fingerprint})
    held_out = held_out_rows(classes, config)
    stage = launch(config.runtime, pretrain_supervised, config, Place(out / "stages"), index, held_out)
    shutil.copytree(stage.folder / "model", out / "model", dirs_exist_ok=True)
    write_json(out / "run.json", stage.record)
    console.print(f"Accuracy {_percent(stage.record['accuracy'])}. Model: {out / 'model'}")
    return stage.record


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"
