"""Curves of the page: trainings by step, and precision by recall of the measured models."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.report.figures import Curve, line_figure
from tutelage.report.models import ROLES, Model, role_of
from tutelage.report.read import Run, Stage, training_log
from tutelage.tasks.metrics import Matches, precision_recall

MOST_CLASS_CURVES = 12
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's


def training_figures(run: Run) -> list[tuple[str, Markup]]:
    """Loss, learning rate and, where it was measured, the selection metric, by step."""
    stages = [stage for stage in run.stages.values() if stage.record.get("kind") == "train"]
    logs = [(stage, training_log(stage)) for stage in stages]
    captions = {
        "loss": "Training loss",
        "lr": "Learning rate",
        "val_ap": "AP on the selection split",
    }
    figures = []
    for key, caption in captions.items():
        curves = [Curve(role_of(stage.name), log[key], _is_faint(run, stage)) for stage, log in logs if key in log]
        curves = [curve for curve in curves if curve.role]
        if curves:
            if key == "val_ap":
                curves = [Curve(curve.role, curve.points * (1, 100), curve.faint) for curve in curves]
            drawn = line_figure(curves, title=f"{caption} by step", xlabel="step", markers=key == "val_ap")
            figures.append((caption, Markup(drawn)))
    return figures


def _is_faint(run: Run, stage: Stage) -> bool:
    """Whether a training is an earlier round or a repeat."""
    last = str(run.record.get("rounds", 1))
    return stage.name != "teacher" and stage.name not in {f"{role}-{last}" for role in ROLES}


def recall_figures(models: list[Model], class_names: tuple[str, ...]) -> dict[str, Any] | None:
    """Precision by recall: means over the classes at two overlaps, and every class at IoU 0.5."""
    matched = [
        (model.role, Matches.load(model.stage.folder / "matches.npz"))
        for model in models
        if model.stage and (model.stage.folder / "matches.npz").is_file()
    ]
    if not matched:
        return None
    by_class: dict[int, list[Curve]] = {}
    means: dict[float, list[Curve]] = {0.5: [], 0.75: []}
    for role, matches in matched:
        for iou, curves in means.items():
            each = [_recall_curve(matches, label, iou) for label in range(len(class_names))]
            defined = [curve for curve in each if curve is not None]
            if defined:
                curves.append(Curve(role, np.mean(defined, axis=0)))
            if iou == 0.5:
                for label, curve in enumerate(each):
                    if curve is not None:
                        by_class.setdefault(label, []).append(Curve(role, curve))
    figures = [
        (f"Mean over classes, IoU {iou}", _recall_figure(curves, f"Precision by recall at IoU {iou}"))
        for iou, curves in means.items()
        if curves
    ]
    shown = sorted(by_class)[:MOST_CLASS_CURVES]
    classes = [
        (class_names[label], _recall_figure(by_class[label], "Precision by recall of one class")) for label in shown
    ]
    return {"means": figures, "classes": classes, "left_out": len(by_class) - len(shown)}


def _recall_curve(matches: Matches, label: int, iou: float) -> NDArray[np.float64] | None:
    """(101, 2) recall and interpolated precision of a class, as COCO averages them; None without test boxes of it."""
    if not len(matches.truth_images(label)):
        return None
    recall, precision = precision_recall(matches, label, iou)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.stack([RECALL_POINTS, envelope[np.searchsorted(recall, RECALL_POINTS, side="left")]], axis=1)


def _recall_figure(curves: list[Curve], title: str) -> Markup:
    return Markup(line_figure(curves, title=title, xlabel="recall", ylabel="precision", square=True))
