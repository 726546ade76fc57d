"""A teacher tried on some labeled images before it labels the pool: does it know these classes, by these names?

It tells early what nobody sees in pseudo-labels alone, and later what is at fault where they look wrong: the teacher,
the threshold or the pool.

Legend: K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tutelage.data.pseudo.kinds import KINDS
from tutelage.engine.watch import Alarm
from tutelage.files import read_json, write_text
from tutelage.types import Annotation, Prediction

TRIAL_FILE = "trial.json"
LEVELS = 64  # steps of confidence that claims are summed in
GUESSED: Mapping[Annotation, Callable[[int], float]] = {
    "boxes": lambda classes: 0.0,
    "masks": lambda classes: 1 / classes,
}
"""Share of what people labeled that a model finds without having learned anything."""
BETTER_THAN_GUESSED = 0.1  # of the way from there to all of it
CALLED_SO = 0.5  # share of a class that goes by one other name, where names are permuted
MOST = 0.9  # of what people labeled: a threshold that keeps as much is a fitting one
CLASSES_NAMED = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trial:
    """What a teacher makes of some labeled images, in boxes or in images' worth of pixels."""

    labeled: str  # fingerprint of the labeled set
    images: int
    confusion: Floats  # (K, K + 1) what people labeled, by the class that the teacher gives it; last: none
    claims: Floats  # (K, 65) what the teacher claims, by class and confidence in 64ths

    @classmethod
    def of(cls, labeled: str, confusion: Floats, predictions: Sequence[Prediction], annotation: Annotation) -> Self:
        """Of the teacher's predictions, and of the confusion with what people labeled in the same images."""
        kind, claims = KINDS[annotation], np.zeros((len(confusion), LEVELS + 1))
        for prediction in predictions:
            rows = {name: np.asarray(column) for name, column in kind.rows(prediction)[kind.table].items()}
            found = kind.found(rows)
            steps = np.floor(found.scores.astype(np.float64) * LEVELS).astype(np.int64)
            whole = max(found.amounts.sum(), 1) if annotation == "masks" else 1
            np.add.at(claims, (found.labels, steps), found.amounts / whole)
        return cls(labeled, len(predictions), confusion, claims)

    @property
    def human(self) -> Floats:
        """(K,) what people labeled."""
        return np.asarray(self.confusion.sum(1))

    def of_classes(self, rows: NDArray[np.int64]) -> Trial:
        """The same of some classes alone, if people labeled any of them in these images; else of all."""
        if not self.human[rows].any():
            return self
        confusion, claims = np.zeros_like(self.confusion), np.zeros_like(self.claims)
        confusion[rows], claims[rows] = self.confusion[rows], self.claims[rows]
        return replace(self, confusion=confusion, claims=claims)

    def kept(self, limits: NDArray[np.floating]) -> float:
        """What the teacher claims at or above the thresholds (K,), these rounded up, over what people labeled."""
        least = np.ceil(limits.astype(np.float64) * LEVELS)[:, None]
        return float((self.claims * (np.arange(LEVELS + 1) >= least)).sum() / self.human.sum())

    def right(self) -> float:
        """Share of what people labeled that the teacher finds and calls by its name, classes alike."""
        totals = self.confusion.sum(1)
        known = totals > 0
        return float((np.diagonal(self.confusion)[known] / totals[known]).mean()) if known.any() else 1.0

    def fitting_threshold(self) -> float:
        """The highest threshold, one for all classes, that keeps about as much as people labeled; 0 if none does."""
        above = self.claims.sum(0)[::-1].cumsum()[::-1]
        enough = np.flatnonzero(above >= MOST * self.human.sum())
        return float(enough.max(initial=0)) / LEVELS

    def write(self, folder: Path) -> None:
        """Writes `trial.json`."""
        plain = {"labeled": self.labeled, "images": self.images}
        tables = {"confusion": self.confusion.tolist(), "claims": self.claims.tolist()}
        write_text(folder / TRIAL_FILE, json.dumps({**plain, **tables}))


def read_trial(folder: Path, labeled: str) -> Trial | None:
    """The trial that was made in a labeling's folder, if it was one on these labels (a fingerprint)."""
    plain = read_json(folder / TRIAL_FILE) if (folder / TRIAL_FILE).is_file() else {}
    if plain.get("labeled") != labeled:
        return None
    return Trial(labeled, plain["images"], np.array(plain["confusion"]), np.array(plain["claims"]))


def trial_alarms(trial: Trial, class_names: Sequence[str], annotation: Annotation) -> Iterator[Alarm]:
    """What is wrong with the teacher itself."""
    swapped = _swapped(trial.confusion)
    if swapped:
        named = [
            f"{class_names[row]} is called {class_names[column]} ({share:.0%})"
            for row, (column, share) in list(swapped.items())[:CLASSES_NAMED]
        ]
        yield Alarm(
            "class names",
            f"in {trial.images} labeled images the teacher sees what people do and names it otherwise: "
            f"{', '.join(named)}. The class names of the teacher or of the labels are permuted: compare class_names in "
            "the teacher's model.json with the order of the classes in --labeled.",
            lost=True,
        )
    elif is_untrained(trial, annotation, len(class_names)):
        yield Alarm(
            "teacher",
            f"the teacher finds {trial.right():.1%} of what people labeled in {trial.images} labeled images: it is "
            "untrained, or was trained on something else. Train it longer (teacher.min_steps, teacher.passes), start "
            "it from pre-trained weights (model.init), or give another --teacher.",
            lost=True,
        )


def is_untrained(trial: Trial, annotation: Annotation, num_classes: int) -> bool:
    """Whether a teacher finds hardly more of the labeled images' content than a guess would."""
    guessed = GUESSED[annotation](num_classes)
    return trial.right() < guessed + BETTER_THAN_GUESSED * (1 - guessed)


def is_permuted(trial: Trial) -> bool:
    """Whether the teacher knows the classes by one another's names."""
    return bool(_swapped(trial.confusion))


def _swapped(confusion: Floats) -> dict[int, tuple[int, float]]:
    """Classes that go by another one's name, each by a different one, and how much of them; empty if few do."""
    totals = confusion.sum(1)
    shares = confusion[:, :-1] / np.maximum(totals, 1e-12)[:, None]
    names = shares.argmax(1)
    rows = [row for row in np.flatnonzero(totals > 0) if names[row] != row and shares[row].max() >= CALLED_SO]
    swapped = {int(row): (int(names[row]), float(shares[row].max())) for row in rows}
    distinct = len({column for column, _ in swapped.values()})
    return swapped if distinct == len(swapped) >= max(2, (totals > 0).sum() / 2) else {}
