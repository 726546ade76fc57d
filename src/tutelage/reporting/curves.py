"""Curves of the trainings by step."""

from __future__ import annotations

from markupsafe import Markup

from tutelage.reporting.figures import Curve, line_figure
from tutelage.reporting.models import ROLES, role_of
from tutelage.reporting.read import Run, Stage, training_log

LOGGED = (("loss", "Training loss", 1), ("lr", "Learning rate", 1))
"""What is drawn of every log: key, caption, factor."""


def training_figures(run: Run, metric: str, title: str) -> list[tuple[str, Markup]]:
    """Loss, learning rate and, where it was measured, a metric by its title, by step; each with its caption."""
    stages = [stage for stage in run.stages.values() if stage.record.get("kind") == "train" and role_of(stage.name)]
    logs = [(stage, training_log(stage.folder)) for stage in stages]
    figures = []
    for key, caption, unit in (*LOGGED, (f"val_{metric}", f"{title} on the selection split", 100)):
        curves = [
            Curve(role_of(stage.name), log[key] * (1, unit), _is_faint(run, stage)) for stage, log in logs if key in log
        ]
        if curves:
            sparse = key.startswith("val_")
            figures.append((caption, Markup(line_figure(curves, title=caption, xlabel="step", markers=sparse))))
    return figures


def _is_faint(run: Run, stage: Stage) -> bool:
    """Whether a training is an earlier round or a repeat."""
    last = str(run.record.get("rounds", 1))
    return not stage.name.startswith("teacher") and stage.name not in {f"{role}-{last}" for role in ROLES}
