"""Precision by recall of the measured detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.reporting.figures import Curve, line_figure
from tutelage.reporting.models import Model
from tutelage.tasks.metrics import Matches, precision_recall

MOST_CLASS_CURVES = 12
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's


@dataclass(frozen=True, slots=True)
class RecallFigures:
    """Precision by recall, each figure with its caption."""

    means: list[tuple[str, Markup]]  # over the classes
    classes: list[tuple[str, Markup]]  # at IoU 0.5
    left_out: int  # classes that are not drawn


def recall_figures(models: list[Model], class_names: tuple[str, ...]) -> RecallFigures | None:
    """Precision by recall: means over the classes at two overlaps, and every class at IoU 0.5."""
    matched = [
        (model.role, Matches.load(model.stage.folder / "tally.npz"))
        for model in models
        if model.stage and (model.stage.folder / "tally.npz").is_file()
    ]
    at = {iou: [_class_curves(role, matches, class_names, iou) for role, matches in matched] for iou in (0.5, 0.75)}
    defined = [name for name in class_names if any(name in curves for curves in at[0.5])]
    if not defined:
        return None
    return RecallFigures(
        [
            (f"Mean over classes, IoU {iou}", _recall_figure([_mean(curves) for curves in at[iou] if curves]))
            for iou in at
        ],
        [
            (name, _recall_figure([curves[name] for curves in at[0.5] if name in curves]))
            for name in defined[:MOST_CLASS_CURVES]
        ],
        max(len(defined) - MOST_CLASS_CURVES, 0),
    )


def _class_curves(role: str, matches: Matches, class_names: tuple[str, ...], iou: float) -> dict[str, Curve]:
    """The curves of one model, by the classes that have test boxes."""
    curves = {name: recall_curve(matches, label, iou) for label, name in enumerate(class_names)}
    return {name: Curve(role, curve) for name, curve in curves.items() if curve is not None}


def _mean(curves: Mapping[str, Curve]) -> Curve:
    role = next(iter(curves.values())).role
    return Curve(role, np.mean([curve.points for curve in curves.values()], axis=0))


def recall_curve(matches: Matches, label: int, iou: float) -> NDArray[np.float64] | None:
    """(101, 2) recall and interpolated precision of a class, as COCO averages them; None without test boxes of it."""
    if not len(matches.truth_images(label)):
        return None
    recall, precision = precision_recall(matches, label, iou)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.stack([RECALL_POINTS, envelope[np.searchsorted(recall, RECALL_POINTS, side="left")]], axis=1)


def _recall_figure(curves: list[Curve]) -> Markup:
    return Markup(line_figure(curves, title="Precision by recall", xlabel="recall", ylabel="precision", square=True))
