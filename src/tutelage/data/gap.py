"""How far the pool lies from the labeled images, in simple statistics of color, size and sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.data.index import Index
from tutelage.data.survey import TRAITS, Survey

SAMPLE = 200  # images of the pool that are looked at
SMALL, LARGE = 0.5, 1.5  # gaps that matter little, and much, in standard deviations
PARTS = {
    "color": ("brightness", "contrast", "saturation", "red to green", "blue to yellow"),
    "size": ("size", "aspect"),
    "sharpness": ("sharpness",),
}
LEAST_SPREAD = np.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.1, 0.05, 0.1])  # deviations below say nothing; as TRAITS
WORDS = (  # what pool images are where a trait is lower, and higher, than in labeled ones; as TRAITS
    ("darker", "brighter"),
    ("flatter in contrast", "harder in contrast"),
    ("paler", "more colorful"),
    ("greener", "redder"),
    ("yellower", "bluer"),
    ("smaller", "larger"),
    ("narrower", "wider"),
    ("blurrier", "sharper"),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Distance of the pool from the labeled images in standard deviations of single images."""

    parts: dict[str, float]  # of color, size and sharpness
    most: str  # how pool images differ most
    images: tuple[int, int]  # labeled and pool images compared

    @property
    def value(self) -> float:
        """The largest part."""
        return max(self.parts.values())

    def sentence(self) -> str:
        """The figure and what it means."""
        shown = ", ".join(f"{name} {part:.1f}" for name, part in self.parts.items())
        start = f"Domain gap {self.value:.1f} standard deviations ({shown}; {self.images[1]} pool images)"
        if self.value < SMALL:
            return f"{start}: the pool looks like the labeled images."
        if self.value < LARGE:
            return (
                f"{start}: pool images are {self.most} than labeled ones; look at pseudo-labels before you trust them."
            )
        return (
            f"{start}: pool images are much {self.most} than labeled ones; the teacher will know them worse than its "
            "test figures say. Label some of them, or choose a pool nearer to the task."
        )


def pool_sample(pool: Index, seed: int) -> Index:
    """A seeded choice of at most SAMPLE images, in the pool's order."""
    return pool.select(np.sort(np.random.default_rng([seed, len(pool)]).permutation(len(pool))[:SAMPLE]))


def gap_between(labeled: Survey, pool: Survey) -> Gap | None:
    """The gap between two looks; None where there are fewer than two images to compare."""
    ours, theirs = labeled.traits[labeled.usable], pool.traits[pool.usable]
    if min(len(ours), len(theirs)) < 2:
        return None
    distance = _distance(ours.astype(np.float64), theirs.astype(np.float64))
    # by chance alone, means of n and m images lie 1/n + 1/m apart in squared standard deviations
    squared = distance**2 - (1 / len(ours) + 1 / len(theirs))
    place = {name: number for number, name in enumerate(TRAITS)}
    parts = {
        part: float(np.sqrt(max(np.mean([squared[place[name]] for name in names]), 0))) for part, names in PARTS.items()
    }
    widest = max(parts, key=lambda part: parts[part])
    trait = max((place[name] for name in PARTS[widest]), key=lambda number: abs(distance[number]))
    return Gap(parts, WORDS[trait][int(distance[trait] > 0)], (len(ours), len(theirs)))


def _distance(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(traits,) difference of means over the pooled standard deviation."""
    spread = np.sqrt((ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 2)
    return np.asarray((theirs.mean(axis=0) - ours.mean(axis=0)) / np.maximum(spread, LEAST_SPREAD))
