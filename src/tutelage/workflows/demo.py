"""The verb `demo`: procedural scenes, a small pre-trained start, and the whole of `fit` on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.data.demo import draw_class_crops, draw_scenes
from tutelage.types import InputError
from tutelage.workflows.fit import fit
from tutelage.workflows.pretraining import pretrain
from tutelage.workflows.stages import console

LABELED, POOL, TEST = 20, 1500, 400
CROPS_PER_CLASS = 200
PRETRAIN_OPTIONS = (
    "train.batch_size=32",
    "train.min_steps=1000",
    "train.lr=0.003",
    "train.weight_decay=0.02",
)


def demo(
    task: str = "detection",
    *,
    out: str | Path = "demo-run",
    seed: int = 0,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Draws scenes into `out/data`, pre-trains a small backbone on other shapes, runs `fit`; continues when stopped.

    Args:
        task: detection.
        out: folder of data, backbone and run.
        seed: of the scenes and of all that is drawn.
        overwrite: replace the run that is there.
        overrides: `key=value` options of the fit.

    Returns:
        The record of the fit.
    """
    if task != "detection":
        raise InputError(f"demo {task}: there is no such demo; choose detection.")
    data = Path(out) / "data"
    console.print(f"Drawing {LABELED} labeled, {POOL} pool and {TEST} test scenes into {data}")
    sets = {"labeled": LABELED, "pool": POOL, "test": TEST}
    files = {
        name: draw_scenes(data / name, images=count, seed=seed * len(sets) + number)
        for number, (name, count) in enumerate(sets.items())
    }
    crops = draw_class_crops(data / "crops", images_per_class=CROPS_PER_CLASS, seed=seed)
    backbone = Path(out) / "backbone"
    pretrain(crops, out=backbone, recipe="detection-demo", seed=seed, overwrite=overwrite, overrides=PRETRAIN_OPTIONS)
    return fit(
        labeled=files["labeled"],
        unlabeled=files["pool"].parent / "images",
        test=files["test"],
        out=Path(out) / "run",
        recipe="detection-demo",
        seed=seed,
        overwrite=overwrite,
        overrides=(f"model.init={backbone}", *overrides),
    )
