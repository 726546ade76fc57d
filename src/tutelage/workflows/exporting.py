"""Finished models out of the door: the verb `export`, and `load_model` for predictions in Python."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig
from tutelage.deployment import standalone
from tutelage.deployment.endings import ENDINGS, Ending
from tutelage.deployment.onnx_files import OPSET, require_onnx, save_onnx
from tutelage.deployment.predictor import Predictor
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import atomic, atomic_folder, write_json
from tutelage.models.init import CARD, WEIGHTS, read_card
from tutelage.models.model import Network, check_levels
from tutelage.reporting.card import license_of_start
from tutelage.tasks.table import build_task
from tutelage.types import InputError
from tutelage.workflows.assembly import load_trained, open_model
from tutelage.workflows.stages import Stage, console

FORMATS = ("onnx",)
ONNX_FILE, DESCRIPTION, SCRIPT = "model.onnx", "export.json", "run.py"
EXPORTABLE = ("model.canvas", "postprocess.")  # options that change what is exported


def load_model(path: str | Path, *, device: str = "", score: float = 0.05) -> Predictor:
    """A finished model, ready to predict: `load_model("run").predict("photo.jpg")`.

    Args:
        path: run, stage, model or export folder.
        device: auto, cpu, cuda or mps.
        score: least score of a box that is returned.

    Raises:
        InputError: there is no model, or the device is absent.
    """
    options = (f"postprocess.score_floor={score}", "label.size=original")
    stage, config = open_model(path, "", options, device=device, devices=1)
    task = build_task(config, tuple(read_card(stage.model_folder)["class_names"]))
    runtime: Runtime = launch(config.runtime, lambda runtime: runtime)
    model = load_trained(stage, config.task).to(runtime.device).eval()
    return Predictor(task, model, config, runtime)


def export(
    model: str | Path,
    *,
    out: str | Path,
    format: str = "onnx",
    nms: str = "",
    masks: str = "",
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Writes a model to `out` for other runtimes: pictures in, boxes or masks out, for any number of pictures at once.

    Args:
        model: run, stage or model folder.
        out: folder for model.onnx, what it takes and gives (export.json, written last), a script that runs it, and the
            model itself, which `load_model` reads.
        format: onnx.
        nms: of a detector: suppression inside (taken when empty) or outside.
        masks: of a segmenter: classes with their confidence (taken when empty) or logits.
        overwrite: replace an earlier export.
        overrides: `model.canvas=...` or `postprocess.KEY=VALUE`.

    Returns:
        What export.json says.

    Raises:
        InputError: no model, an unknown option, Soft-NMS inside, or the packages of the extra `onnx` are missing.
    """
    out = Path(out)
    if format not in FORMATS:
        raise InputError(f"--format: unknown format {format!r}; {', '.join(FORMATS)} is allowed.")
    require_onnx("onnx", "onnxscript")
    _require_free(out, overwrite=overwrite)
    stage, config = open_model(model, "", _checked(overrides), device="cpu", devices=1)
    ending = _ending(config.task, {"--nms": nms, "--masks": masks})
    check_levels(config.model)
    network = load_trained(stage, config.task).eval()
    with atomic_folder(out, replace=overwrite) as folder:  # first of all: the graph takes its time
        described = _write(folder, stage, network, config, ending, ending.build(network, config))
    console.print(f"{out / ONNX_FILE}: {', '.join(ending.outputs)}; what they mean says {out / DESCRIPTION}")
    return described


def _write(
    folder: Path, stage: Stage, network: Network, config: RunConfig, ending: Ending, graph: Any
) -> dict[str, Any]:
    """Fills the folder; the description, which proves it whole, comes last."""
    card = read_card(stage.model_folder)
    save_onnx(
        folder / ONNX_FILE, graph, {"tutelage.task": config.task, "tutelage.classes": ",".join(card["class_names"])}
    )
    sources = {WEIGHTS: stage.model_folder / WEIGHTS, SCRIPT: Path(standalone.__file__)}
    readme = stage.model_folder / "README.md"
    for name, source in sources.items() | ({"README.md": readme}.items() if readme.is_file() else set()):
        with atomic(folder / name) as temporary:
            shutil.copyfile(source, temporary)
    parts = {part: getattr(config, part).model_dump(mode="json") for part in ("model", "postprocess")}
    write_json(folder / CARD, {**card, **parts, "canvas": list(config.model.canvas)})
    described = _description(folder, card, config, ending)
    write_json(folder / DESCRIPTION, described)
    return described


def _description(folder: Path, card: Mapping[str, Any], config: RunConfig, ending: Ending) -> dict[str, Any]:
    """What export.json says."""
    height, width = config.model.canvas
    return {
        "format": "tutelage-export-1",
        "task": config.task,
        "class_names": card["class_names"],
        "license": "not stated",
        "license_of_start": license_of_start(card),
        "file": ONNX_FILE,
        "sha256": hashlib.sha256((folder / ONNX_FILE).read_bytes()).hexdigest(),
        "opset": OPSET,
        "canvas": [height, width],
        "inputs": {
            "images": f"(B, {height}, {width}, 3) uint8: RGB pictures, each fitted into the top left of the canvas",
            "valid": "(B, 2) int64: the (height, width) that each picture covers; what lies beyond is not looked at",
        },
        "outputs": dict(ending.outputs),
        "resize": f"outside: as function letterbox of {SCRIPT}, aspect kept; boxes go back by its to_original",
        "normalization": {"inside": True, **card["normalization"]},
        **{part: getattr(config, part).model_dump(mode="json") for part in ENDINGS[config.task].constants},
        "versions": {name: importlib.metadata.version(name) for name in ("tutelage", "torch", "onnx")},
    }


def _require_free(out: Path, *, overwrite: bool) -> None:
    if out.is_file():
        raise InputError(f"{out}: is a file; a folder is needed. Choose another --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / DESCRIPTION).is_file():
        raise InputError(
            f"{out}: holds other files; a new folder or an earlier export is allowed. Choose another --out."
        )
    if not overwrite:
        raise InputError(f"{out}: holds an earlier export. Choose another --out, or replace it with --overwrite.")


def _checked(overrides: tuple[str, ...]) -> tuple[str, ...]:
    for one in overrides:
        if not one.startswith(EXPORTABLE):
            raise InputError(
                f"{one}: has no meaning for an export; model.canvas and postprocess.* are allowed. Leave it out."
            )
    return overrides


def _ending(task: str, given: Mapping[str, str]) -> Ending:
    """The way to end that the options choose; those of other tasks are refused."""
    endings = ENDINGS[task]
    for option, value in given.items():
        if value and option != endings.option:
            raise InputError(f"{option}: has no meaning for {task}; {endings.option} is allowed. Leave it out.")
    return endings.choose(given[endings.option])
