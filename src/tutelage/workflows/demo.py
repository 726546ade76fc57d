"""The verb `demo`: procedural scenes, a small pre-trained start, and the whole of `fit` on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.demo import draw_class_crops, draw_scenes
from tutelage.types import InputError
from tutelage.workflows.fit import fit
from tutelage.workflows.pretraining import pretrain
from tutelage.workflows.stages import console

CROPS_PER_CLASS = 200
PRETRAIN_OPTIONS = (
    "train.batch_size=32",
    "train.min_steps=1000",
    "train.lr=0.003",
    "train.weight_decay=0.02",
)


@dataclass(frozen=True)
class Scenes:
    """How many scenes the demo of a task draws, and where in a folder of scenes its annotations lie."""

    labeled: int
    pool: int
    test: int
    annotations: str


DEMOS = {
    "detection": Scenes(labeled=20, pool=1500, test=400, annotations="scenes.json"),
    "segmentation": Scenes(labeled=60, pool=1000, test=300, annotations="masks"),
}


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
        task: detection or segmentation.
        out: folder of data, backbone and run.
        seed: of the scenes and of all that is drawn.
        overwrite: replace the run that is there.
        overrides: `key=value` options of the fit.

    Returns:
        The record of the fit.
    """
    if task not in DEMOS:
        raise InputError(f"demo {task}: there is no such demo; choose {' or '.join(DEMOS)}.")
    data, scenes = Path(out) / "data", DEMOS[task]
    console.print(f"Drawing {scenes.labeled} labeled, {scenes.pool} pool and {scenes.test} test scenes into {data}")
    sets = {"labeled": scenes.labeled, "pool": scenes.pool, "test": scenes.test}
    for number, (name, count) in enumerate(sets.items()):
        draw_scenes(data / name, images=count, seed=seed * len(sets) + number)
    crops = draw_class_crops(data / "crops", images_per_class=CROPS_PER_CLASS, seed=seed)
    backbone = Path(out) / "backbone"
    recipe = f"{task}-demo"
    pretrain(crops, out=backbone, recipe=recipe, seed=seed, overwrite=overwrite, overrides=PRETRAIN_OPTIONS)
    return fit(
        labeled=data / "labeled" / scenes.annotations,
        unlabeled=data / "pool" / "images",
        test=data / "test" / scenes.annotations,
        out=Path(out) / "run",
        recipe=recipe,
        seed=seed,
        overwrite=overwrite,
        overrides=(f"model.init={backbone}", *overrides),
    )
