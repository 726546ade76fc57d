"""The certify stage: teachers label images that they did not train on, and what they claim is held against people.

Legend: K classes, n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import CertifyConfig, RunConfig
from tutelage.data.index import Index
from tutelage.data.pseudo.kinds import KINDS
from tutelage.engine.runtime import Runtime
from tutelage.reporting.certificate import certificate_lines
from tutelage.stats.certificate import Sums, certify_class
from tutelage.tasks.claims import joined_sums
from tutelage.tasks.task import Task
from tutelage.workflows.assembly import load_trained
from tutelage.workflows.evaluation import predictions_of
from tutelage.workflows.stages import Place, Stage, console, run_stage

UNKNOWN = 0.5
"""Threshold of a class of which nothing right was claimed, as `pseudo.score_threshold` has it where nobody chose."""


@dataclass(frozen=True)
class Labeler:
    """A finished model, and images with human labels that it did not train on."""

    trained: Stage
    images: Index
    groups: NDArray[np.int64]  # (images,) numbers of images that count as one


def certify_stage(
    place: Place,
    name: str,
    config: RunConfig,
    task: Task,
    labelers: Sequence[Labeler],
    runtime: Runtime,
    *,
    certified: bool,
    told: dict[str, Any],
) -> Stage:
    """The stage that says what precision and recall pseudo-labels have at every threshold.

    Args:
        place: where the stage is made.
        name: the stage's name.
        config: the run.
        task: labels as it does in labeling, and counts what is right.
        labelers: one teacher, or one a fold.
        runtime: devices.
        certified: whether the one labeler is the teacher itself; else the result is an estimate.
        told: what else the record says; part of the stage's key.
    """
    key = {
        "kind": "certify",
        "task": config.task,
        "labelers": [[one.trained.hash, one.images.fingerprint] for one in labelers],
        "certified": certified,
        "label": config.label.model_dump(mode="json", exclude={"part_size"}),
        "model": config.model.model_dump(mode="json", exclude={"num_classes", "init"}),
        "data": config.data.model_dump(mode="json"),
        "postprocess": config.postprocess.model_dump(mode="json"),
        "certify": config.certify.model_dump(mode="json", include={"precision", "confidence", "iou"}),
        **told,
    }

    def work(stage: Stage) -> dict[str, Any]:
        shares = [claimed(one, config, task, runtime) for one in labelers]
        if not runtime.is_main:
            return {}
        groups = np.concatenate([one.groups for one in labelers])
        sums = [joined_sums(parts, np.arange(len(groups))) for parts in zip(*shares, strict=True)]
        record = {
            "kind": "certify",
            "certified": certified,
            "folds": 0 if certified else len(labelers),
            "unit": KINDS[task.annotation].unit,
            "num_images": len(groups),
            "num_groups": len(np.unique(groups)),
            **told,
            **certificate(sums, task.class_names, groups, config.certify),
        }
        console.print("\n".join(certificate_lines(record)))
        return record

    return run_stage(place, name, key, runtime, work)


def claimed(labeler: Labeler, config: RunConfig, task: Task, runtime: Runtime) -> list[Sums]:
    """By class, what the labeler claims in its images with the views of labeling; processes share the work."""
    model, images = load_trained(labeler.trained, config.task), labeler.images
    rows = np.arange(runtime.rank, len(images), runtime.world_size)
    predictions = predictions_of("certify", model, task, images, rows, config.label, config, runtime)
    found = task.claims(predictions, images, config.data, config.certify.iou)
    shares = runtime.gather((rows, found))
    order = np.argsort(np.concatenate([each for each, _ in shares]))
    return [joined_sums(parts, order) for parts in zip(*(sums for _, sums in shares), strict=True)]


def certificate(
    sums: Sequence[Sums], class_names: tuple[str, ...], groups: NDArray[np.int64], certify: CertifyConfig
) -> dict[str, Any]:
    """Of every class the curve, the threshold that is taken, and what was counted; plain values.

    A class that cannot be shown to reach the precision takes the threshold that balances precision and recall: that of
    its best lower bound may keep next to nothing, and what is not kept would be trained on as background. One of which
    nothing right was claimed takes `UNKNOWN`.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    classes = {}
    for name, one in zip(class_names, sums, strict=True):
        found = certify_class(one, certify.precision, certify.confidence, numbers).as_dict()
        totals = {part: getattr(one, part).sum(axis=1).tolist() for part in ("claims", "hits")}
        truths = {"truths": int(one.truths.sum()), "images": int((one.truths > 0).sum())}
        classes[name] = {**found, **totals, **truths}
    return {
        "precision": certify.precision,
        "confidence": certify.confidence,
        "iou": certify.iou,
        "thresholds": {name: _threshold(one) for name, one in classes.items()},
        "classes": classes,
    }


def _threshold(found: dict[str, Any]) -> float:
    for name in ("chosen", "balanced"):
        if found[name] is not None:
            return float(found[name])
    return float(min(found["thresholds"], key=lambda threshold: abs(threshold - UNKNOWN)))
