"""The pseudo-labels of a run: how many, how sure, of which classes, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import open_store
from tutelage.reporting.figures import histogram_figure
from tutelage.reporting.pictures import Album
from tutelage.reporting.read import PseudoSummary, Run, Stage, summarize_store
from tutelage.reporting.scenes import Crop, crops
from tutelage.types import InputError

NUM_CROPS = 12


@dataclass(frozen=True, slots=True)
class Balance:
    """A class among the human labels and among the pseudo-labels: boxes, and bars in percent of the longest."""

    name: str
    labels: int
    pseudo: int
    labels_bar: float
    pseudo_bar: float


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """All labelings of the pool under the run's threshold, and the last round's drawn."""

    threshold: float | Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]  # what became of images and boxes, by stage
    last: Stage
    histogram: Markup | None = None
    balance: Sequence[Balance] = ()
    surest: Sequence[Crop] = ()
    least_sure: Sequence[Crop] = field(default=())


def pseudo_labels(run: Run, class_names: tuple[str, ...], album: Album) -> PseudoLabels | None:
    """The pseudo-labels of a run; None where the run labeled nothing."""
    stages = [stage for stage in run.stages.values() if stage.record.get("kind") == "label"]
    if not stages:
        return None
    named = f"pseudo-{run.record.get('rounds', 1)}"
    last = next((stage for stage in stages if stage.name == named), stages[-1])
    used = run.record.get("pseudo") or last.record  # a store may have been made under another threshold
    threshold = used.get("threshold", 0.5)
    pseudo = PseudoConfig(score_threshold=threshold)
    counts = {stage.name: _counts(stage, pseudo) for stage in stages}
    counts[last.name] = used.get("counts") or counts[last.name]
    try:
        summary = summarize_store(open_store(last.folder), pseudo, class_names, NUM_CROPS)
    except InputError:  # the store is gone, or not whole: its figures remain
        return PseudoLabels(threshold, counts, last)
    labeled = run.record.get("data", {}).get("labeled") or {}
    return PseudoLabels(
        threshold,
        counts,
        last,
        _histogram(summary, threshold),
        class_balance(class_names, labeled.get("boxes_per_class") or {}, summary.kept_per_class),
        crops(summary.surest, class_names, album),
        crops(summary.least_sure, class_names, album),
    )


def _counts(stage: Stage, pseudo: PseudoConfig) -> Mapping[str, int]:
    try:
        return open_store(stage.folder).counts(pseudo)
    except InputError:
        recorded: Mapping[str, int] = stage.record.get("counts") or {}
        return recorded


def class_balance(class_names: tuple[str, ...], labeled: Mapping[str, int], kept: NDArray[np.int64]) -> list[Balance]:
    """Each class's share of the human labels and of the pseudo-labels, the largest share being a full bar."""
    human = np.array([labeled.get(name, 0) for name in class_names], dtype=np.float64)
    shares = np.stack([human / max(human.sum(), 1), kept / max(kept.sum(), 1)])
    bars = np.round(100 * shares / max(shares.max(initial=0), 1e-9), 1)
    return [
        Balance(name, int(human[row]), int(kept[row]), float(bars[0, row]), float(bars[1, row]))
        for row, name in enumerate(class_names)
    ]


def _histogram(summary: PseudoSummary, threshold: float | Mapping[str, float]) -> Markup:
    marks = sorted(set(threshold.values())) if isinstance(threshold, Mapping) else [float(threshold)]
    title = "Scores of the teacher's detections in the pool"
    return Markup(histogram_figure(summary.histogram, marks, title=title, xlabel="score", ylabel="boxes"))
