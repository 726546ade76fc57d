"""The pseudo-labels of a run: how many, how sure, of which classes, and what they look like.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, open_store
from tutelage.data.thumbnails import Album
from tutelage.reporting.read import Run, Stage
from tutelage.types import InputError


@dataclass(frozen=True, slots=True)
class StoreView:
    """A store under a threshold, as its kind of label is shown."""

    histogram: tuple[str, Markup]  # by confidence: caption and figure
    kept_per_class: NDArray[np.int64]  # (K,) boxes or pixels at or above the threshold
    surest: Sequence[Any]  # what the templates of the kind draw
    least_sure: Sequence[Any]
    legend: Sequence[Any] = ()  # of their colors


ViewStore = Callable[[PseudoStore, PseudoConfig, tuple[str, ...], Album], StoreView]


@dataclass(frozen=True, slots=True)
class Balance:
    """A class among the human labels and among the pseudo-labels: amounts, shares, and bars in % of the longest."""

    name: str
    labels: int
    pseudo: int
    labels_share: float
    pseudo_share: float
    labels_bar: float
    pseudo_bar: float


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """All labelings of the pool under the run's threshold, and the last round's drawn."""

    threshold: float | Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]  # what became of images and boxes or pixels, by stage
    last: Stage
    view: StoreView | None = None
    balance: Sequence[Balance] = ()


def pseudo_labels(run: Run, view_store: ViewStore, class_names: tuple[str, ...], album: Album) -> PseudoLabels | None:
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
        view = view_store(open_store(last.folder), pseudo, class_names, album)
    except InputError:  # the store is gone, or not whole: its figures remain
        return PseudoLabels(threshold, counts, last)
    labeled = run.record.get("data", {}).get("labeled") or {}
    balance = class_balance(class_names, labeled.get("amounts_per_class") or {}, view.kept_per_class)
    return PseudoLabels(threshold, counts, last, view, balance)


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
        Balance(name, int(human[row]), int(kept[row]), *shares[:, row].tolist(), *bars[:, row].tolist())
        for row, name in enumerate(class_names)
    ]


def threshold_marks(pseudo: PseudoConfig) -> list[float]:
    """The different thresholds, ascending, to be drawn into a histogram."""
    given = pseudo.score_threshold
    return sorted(set(given.values())) if isinstance(given, Mapping) else [float(given)]
