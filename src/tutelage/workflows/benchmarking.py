"""The verb `benchmark`: latency and throughput of a finished model, and of its ONNX file where there is one."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from tutelage.data.loader import collate
from tutelage.deployment.onnx_files import OnnxModel
from tutelage.deployment.pictures import sample_of
from tutelage.deployment.predictor import Predictor
from tutelage.deployment.timing import timed
from tutelage.files import write_json
from tutelage.types import Batch, InputError
from tutelage.workflows.exporting import ONNX_FILE, load_model
from tutelage.workflows.stages import console, given_model, provenance

SEED = 0  # of the noise that is looked at


def benchmark(
    model: str | Path,
    *,
    batch_sizes: str | Iterable[int] = "1,8",
    onnx: str | Path = "",
    runs: int = 30,
    warmup: int = 3,
    json: bool = False,
    out: str | Path = "",
    device: str = "",
) -> dict[str, Any]:
    """Times passes of a model, from pictures on its canvas in memory to boxes or masks, and prints a table.

    Args:
        model: run, stage, model or export folder.
        batch_sizes: pictures a pass, several with commas between.
        onnx: an exported file to time too, on the CPU; the model.onnx in `model` when empty.
        runs: timed passes for each batch size.
        warmup: passes before them.
        json: print JSON and nothing else.
        out: write the same to this JSON file.
        device: auto, cpu, cuda or mps.

    Returns:
        Machine, versions, canvas, and `rows`: one for each runtime and batch size.

    Raises:
        InputError: no model, a batch size or number of runs below 1, or onnxruntime is missing.
    """
    sizes = _sizes(batch_sizes)
    if runs < 1 or warmup < 0:
        raise InputError(f"--runs {runs}, --warmup {warmup}: at least 1 and 0 are needed. Change them.")
    predictor = load_model(model, device=device)
    file = Path(onnx) if onnx else given_model("model", Path(model)).model_folder / ONNX_FILE
    exported = OnnxModel(file, predictor.runtime.threads) if onnx or file.is_file() else None
    rows: list[dict[str, Any]] = []
    for size in sizes:
        batch = _noise(predictor, size)
        rows.append(_torch_row(predictor, batch, warmup, runs))
        if exported is not None:
            rows.append(_onnx_row(exported, batch, warmup, runs))
    found = _record(predictor, rows)
    if out:
        write_json(Path(out), found)
    if json:
        print(json_text.dumps(found, indent=1))
    else:
        console.print(_table(found))
    return found


def _sizes(given: str | Iterable[int]) -> list[int]:
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(f"--batch-sizes: found {given!r}; whole numbers from 1, with commas between, are allowed.")
    return sizes


def _noise(predictor: Predictor, batch_size: int) -> Batch:
    """A batch of noise that fills the canvas."""
    rng, canvas = np.random.default_rng(SEED), predictor.config.model.canvas
    pictures = [rng.integers(0, 256, (*canvas, 3), dtype=np.uint8) for _ in range(batch_size)]
    return collate(
        [sample_of(picture, number, canvas, predictor.config.data) for number, picture in enumerate(pictures)]
    )


def _torch_row(predictor: Predictor, batch: Batch, warmup: int, runs: int) -> dict[str, Any]:
    runtime = predictor.runtime
    head = {"runtime": "torch", "device": runtime.device.type, "precision": runtime.precision}
    return head | timed(lambda: predictor.predict_batch(batch), len(batch), warmup=warmup, runs=runs)


def _onnx_row(exported: OnnxModel, batch: Batch, warmup: int, runs: int) -> dict[str, Any]:
    images = np.ascontiguousarray(batch.images[:, 0].permute(0, 2, 3, 1).numpy())
    valid = batch.valid[:, 0].numpy()
    head = {"runtime": "onnxruntime", "device": "cpu", "precision": "float32"}
    return head | timed(lambda: exported(images, valid), len(batch), warmup=warmup, runs=runs)


def _record(predictor: Predictor, rows: list[dict[str, Any]]) -> dict[str, Any]:
    made = provenance(predictor.config)
    return {
        "task": predictor.config.task,
        "canvas": list(predictor.config.model.canvas),
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "threads": torch.get_num_threads(),
        **{name: made[name] for name in ("machine", "version", "versions")},
        "rows": rows,
    }


def _table(found: dict[str, Any]) -> Table:
    height, width = found["canvas"]
    table = Table(title=f"{found['task']}, {height} x {width} pixels, {found['threads']} threads")
    for title in ("runtime", "device", "precision", "batch", "median ms", "p95 ms", "images/s"):
        table.add_column(title, justify="left" if title in ("runtime", "device", "precision") else "right")
    for row in found["rows"]:
        figures = [f"{row[name]:.1f}" for name in ("median_ms", "p95_ms", "images_per_second")]
        table.add_row(row["runtime"], row["device"], row["precision"], str(row["batch_size"]), *figures)
    return table
