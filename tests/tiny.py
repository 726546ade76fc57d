"""Fits small enough for the tests: networks of 0.4 million parameters on 64 px scenes, a few steps."""

from pathlib import Path
from typing import Any

TINY = (
    "model.backbone=test_resnet",
    "model.init=random",
    "model.canvas=[64,64]",
    "model.pyramid_width=16",
    "model.head_width=16",
    "model.head_depth=1",
    "train.batch_size=4",
    "train.passes=0",
    "train.warmup_steps=2",
    "teacher.min_steps=6",
    "teacher.batch_size=4",
    "student.min_steps=4",
    "label.part_size=8",
    "label.views=[identity,hflip]",
    "pseudo.score_threshold=0.0",
    "postprocess.score_floor=0.0",
    "postprocess.max_detections=10",
    "eval.resamples=20",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.workers=0",
    "runtime.threads=1",  # two threads on a busy machine wait for each other
)


def annotation(scenes: Path, name: str) -> Path:
    return scenes / name / "scenes.json"


def masks(scenes: Path, name: str) -> Path:
    return scenes / name / "masks"


def arguments(scenes: Path, out: Path, **changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "labeled": annotation(scenes, "labeled"),
        "unlabeled": scenes / "pool" / "images",
        "test": annotation(scenes, "test"),
        "out": out,
        "recipe": "detection-demo",
        "overrides": TINY,
    }
    return given | changed


def mask_arguments(scenes: Path, out: Path, **changed: Any) -> dict[str, Any]:
    """The same of the segmentation of these scenes."""
    given = {"labeled": masks(scenes, "labeled"), "test": masks(scenes, "test"), "recipe": "segmentation-demo"}
    return arguments(scenes, out, **given | changed)
