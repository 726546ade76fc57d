"""How a test set is redrawn, to see how its figures could have come out: the rows that `intervals` makes intervals of.

Images that belong together form a group and are drawn together. With many groups they are drawn with replacement (the
bootstrap); with few, whose bootstrap intervals would come out too narrow, each group is left out once.

Legend: R draws, n images, G groups, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["bootstrap", "leave-one-out"]

FEW_GROUPS = 40
"""Below this many groups (or images, where none belong together) each is left out once, in place of a bootstrap.

Chosen by simulation (benchmarks/coverage.py): from here on bootstrap intervals of 95 % hold the truth in 93 to 95 %.
"""


@dataclass(frozen=True, slots=True)
class Draws:
    """Redrawn test sets, as weights of the images."""

    kind: Kind
    weights: NDArray[np.int16]  # (R, n) copies of each image in each draw


@dataclass(frozen=True, slots=True)
class Resampled:
    """Figures of every draw. They keep its kind: read as the other kind they would give a wrong interval."""

    kind: Kind
    figures: Mapping[str, Floats]  # (R,) by metric, (R, K) as `class_METRIC`; NaN where undefined

    def save(self, path: Path) -> None:
        """Writes a compressed npz file."""
        columns: dict[str, Any] = {"kind": np.array(self.kind), **self.figures}
        np.savez_compressed(path, **columns)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            figures = dict(stored)
        return cls(cast(Kind, str(figures.pop("kind"))), figures)


def draw(groups: NDArray[Any], resamples: int, rng: np.random.Generator) -> Draws:
    """A bootstrap of the images of groups (n,), or with fewer than `FEW_GROUPS` of them each group left out once."""
    few = len(np.unique(groups)) < FEW_GROUPS
    return leave_one_out(groups) if few else bootstrap(groups, resamples, rng)


def bootstrap(groups: NDArray[Any], resamples: int, rng: np.random.Generator) -> Draws:
    """As many groups as there are, drawn whole and with replacement, `resamples` times."""
    names, group = np.unique(groups, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return Draws("bootstrap", drawn.astype(np.int16)[:, group])


def leave_one_out(groups: NDArray[Any]) -> Draws:
    """All images but those of one group, for each of the G groups in turn."""
    names, group = np.unique(groups, return_inverse=True)
    return Draws("leave-one-out", (np.arange(len(names))[:, None] != group).astype(np.int16))
