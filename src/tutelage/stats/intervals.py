"""Intervals of measured figures, and what may be said of them: arrays in, numbers and sentences out.

Two things make a measured difference uncertain, and each has its interval: which images were in the test set (the
bootstrap over images, or over groups of images that belong together), and which seed the models were trained with (a
t-interval over repeated trainings). `covers` says in words which of the two an interval holds.

Legend: R resamples, n images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.types import InputError

FEW_GROUPS = 30
"""Below this many images (or groups) bootstrap intervals come out too narrow; `covers` says so."""
FEW_WITH_TRUTH = 5
"""A class with truth in fewer images (or groups) gets no interval: resampling them shows too little of its spread."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval; differences of figures too."""

    mean: float  # the figure as measured
    low: float
    high: float
    resamples: int  # 0: not resampled
    covers: str  # what the interval holds: the end of a sentence "The interval covers ..."

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, and whether the figure is shown to differ from zero."""
        return {**asdict(self), "shown": shown(self)}


def shown(interval: Interval) -> bool:
    """Whether zero lies outside the interval."""
    return interval.low > 0 or interval.high < 0


def resample_weights(groups: NDArray[Any], resamples: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """(R, n) how many copies of each image every resample holds: groups (n,) are drawn whole, with replacement."""
    names, group = np.unique(groups, return_inverse=True)
    if not len(names):
        return np.zeros((resamples, 0), np.int16)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn.astype(np.int16)[:, group]


def percentile_interval(values: Floats, point: float, confidence: float, covers: str = "") -> Interval:
    """The middle `confidence` of resampled values (R,), around the measured figure.

    Resamples in which the figure is undefined (NaN) are left out.

    Raises:
        InputError: it is undefined in all of them.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        raise InputError(
            f"eval.resamples: the figure is undefined in all {len(values)} resamples; it must be defined in some. "
            "Raise eval.resamples, or take more test images."
        )
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(point, float(low), float(high), len(defined), covers)


def separate_intervals(
    values: Floats,
    points: Sequence[float | None],
    groups_with_truth: NDArray[np.integer],
    confidence: float,
    covers: str = "",
) -> list[Interval | None]:
    """Percentile intervals of K figures from resampled values (R, K), each for itself.

    None where the figure is undefined, as measured or in all resamples, or where fewer than `FEW_WITH_TRUTH` groups
    hold truth.
    """
    defined = ~np.isnan(values).all(axis=0) & (groups_with_truth >= FEW_WITH_TRUTH)
    return [
        percentile_interval(values[:, row], point, confidence, covers) if point is not None and defined[row] else None
        for row, point in enumerate(points)
    ]


def paired_difference(
    values_a: Floats, values_b: Floats, point_a: float, point_b: float, confidence: float, covers: str = ""
) -> Interval:
    """Interval of a - b from figures (R,) of both on the same resamples."""
    return percentile_interval(values_a - values_b, point_a - point_b, confidence, covers)


def simultaneous_differences(
    values_a: Floats,
    values_b: Floats,
    points_a: Sequence[float | None],
    points_b: Sequence[float | None],
    groups_with_truth: NDArray[np.integer],
    confidence: float,
    covers: str = "",
) -> list[Interval | None]:
    """Intervals of a - b for K classes, from figures (R, K), that hold all at once with `confidence`.

    Each is the measured difference +- q standard errors; q is the quantile, over resamples, of the largest
    standardized deviation among the classes (the "max-t" bootstrap). Unlike Bonferroni's or Holm's correction it makes
    use of the classes' dependence and needs no p-values finer than 1/R. None where a figure is undefined or the class
    has truth in fewer than `FEW_WITH_TRUTH` groups.
    """
    enough = groups_with_truth >= FEW_WITH_TRUTH
    points = np.array(points_a, np.float64) - np.array(points_b, np.float64)  # None becomes NaN
    measured = np.flatnonzero(enough & ~np.isnan(points))
    if not len(measured):
        return [None] * len(points)
    differences = (values_a - values_b)[:, measured]
    error = np.nanstd(differences, axis=0, ddof=1)
    deviation = np.abs(differences - points[measured]) / np.where(error > 0, error, np.inf)
    reach = np.quantile(np.nan_to_num(deviation).max(axis=1), confidence) * error
    intervals: list[Interval | None] = [None] * len(points)
    for label, width in zip(measured.tolist(), reach.tolist(), strict=True):
        point = float(points[label])
        intervals[label] = Interval(point, point - width, point + width, len(differences), covers)
    return intervals


def t_interval(values: Sequence[float], confidence: float, covers: str = "") -> Interval:
    """Student's interval of the mean of independent values, such as one difference for each seed; two at least."""
    assert len(values) >= 2, f"{len(values)} value has no spread"
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = t_quantile(confidence, len(values) - 1) * error
    return Interval(mean, mean - reach, mean + reach, 0, covers)


def seeds_and_images(seeds: Interval, images: Interval, covers: str = "") -> Interval:
    """Interval over seeds and test images together: the distances to either end add in quadrature.

    Args:
        seeds: t-interval over one difference a seed, all on the same test images, which it therefore does not cover.
        images: bootstrap of the mean of these differences, the same resample for all seeds.
        covers: what the result holds.

    The errors are independent, so that their variances add; adding squared distances instead of variances keeps each
    part's own quantile and skew (MOVER: Zou and Donner, Statistics in Medicine 27, 2008).
    """
    low = math.hypot(seeds.mean - seeds.low, images.mean - images.low)
    high = math.hypot(seeds.high - seeds.mean, images.high - images.mean)
    return Interval(seeds.mean, seeds.mean - low, seeds.mean + high, images.resamples, covers)


def t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| < t) = confidence, by bisection."""
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
