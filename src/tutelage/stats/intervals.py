"""Intervals of measured figures, and what may be said of them: arrays in, numbers and sentences out.

Two things make a measured difference uncertain, and each has its interval: which images were in the test set (from
figures of redrawn test sets, see `draws`), and which seed the models were trained with (a t-interval over repeated
trainings). `covers` says in words which of the two an interval holds.

Figures of redrawn test sets become intervals by the kind of the draws: percentiles of a bootstrap, or, where each group
was left out once, the cluster t-interval: measured figure +- Student's quantile times the jackknife's standard error.

Legend: R draws, G groups, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.draws import Floats, Kind

FEW_WITH_TRUTH = 5
"""A class with truth in fewer images (or groups) gets no interval: redrawing them shows too little of its spread."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval; differences of figures too."""

    mean: float  # the figure as measured
    low: float
    high: float
    resamples: int  # of the bootstrap; 0: a t-interval
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


def figure_interval(values: Floats, point: float, kind: Kind, confidence: float, covers: str = "") -> Interval | None:
    """Interval of a figure in [0, 1], from its values (R,) in redrawn test sets.

    None where they say nothing of its spread: with a single group, where it is undefined (NaN) without one of few
    groups, or in all resamples of many.
    """
    freedom = len(values) - 1
    return _within_bounds(_interval(values, point, kind, freedom, confidence, covers))


def separate_intervals(
    values: Floats,
    points: Sequence[float | None],
    groups_with_truth: NDArray[np.integer],
    kind: Kind,
    confidence: float,
    covers: str = "",
) -> list[Interval | None]:
    """Intervals of K figures in [0, 1] from values (R, K), each for itself.

    A t-interval has a degree of freedom less than there are groups with truth: the others tell next to nothing of a
    class's spread. None as in `figure_interval`, and where the figure is undefined or fewer than `FEW_WITH_TRUTH`
    groups hold truth.
    """
    return [
        _within_bounds(_interval(column, point, kind, with_truth - 1, confidence, covers))
        if point is not None and with_truth >= FEW_WITH_TRUTH
        else None
        for column, point, with_truth in zip(values.T, points, groups_with_truth.tolist(), strict=True)
    ]


def paired_difference(
    values_a: Floats,
    values_b: Floats,
    point_a: float,
    point_b: float,
    kind: Kind,
    confidence: float,
    covers: str = "",
) -> Interval | None:
    """Interval of a - b from figures (R,) of both on the same redrawn test sets; None as in `figure_interval`."""
    freedom = len(values_a) - 1
    return _interval(values_a - values_b, point_a - point_b, kind, freedom, confidence, covers)


def simultaneous_differences(
    values_a: Floats,
    values_b: Floats,
    points_a: Sequence[float | None],
    points_b: Sequence[float | None],
    groups_with_truth: NDArray[np.integer],
    kind: Kind,
    confidence: float,
    covers: str = "",
) -> list[Interval | None]:
    """Intervals of a - b for K classes, from figures (R, K), that hold all at once with `confidence`.

    Each is the measured difference +- q standard errors. In a bootstrap q is the quantile, over resamples, of the
    largest standardized deviation among the classes ("max-t"): unlike Bonferroni's or Holm's correction it makes use
    of the classes' dependence and needs no p-values finer than 1/R. Few groups left out in turn show no such maximum;
    there q is Student's quantile with Bonferroni's correction. None where a figure is undefined or the class has truth
    in fewer than `FEW_WITH_TRUTH` groups.
    """
    points = np.array(points_a, np.float64) - np.array(points_b, np.float64)  # None becomes NaN
    measured = np.flatnonzero((groups_with_truth >= FEW_WITH_TRUTH) & ~np.isnan(points))
    intervals: list[Interval | None] = [None] * len(points)
    if not len(measured):
        return intervals
    differences = (values_a - values_b)[:, measured]
    if kind == "bootstrap":
        reach = _max_t_reach(differences, points[measured], confidence)
    else:
        reach = _bonferroni_reach(differences, points[measured], groups_with_truth[measured] - 1, confidence)
    resamples = len(differences) if kind == "bootstrap" else 0
    for label, width in zip(measured.tolist(), reach.tolist(), strict=True):
        point = float(points[label])
        intervals[label] = Interval(point, point - width, point + width, resamples, covers)
    return intervals


def t_interval(values: Sequence[float], confidence: float, covers: str = "") -> Interval:
    """Student's interval of the mean of independent values, such as one difference for each seed; two at least."""
    assert len(values) >= 2, f"{len(values)} value has no spread"
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = t_quantile(confidence, len(values) - 1) * error
    return Interval(mean, mean - reach, mean + reach, 0, covers)


def binomial_interval(successes: int, trials: int, confidence: float, covers: str = "") -> Interval:
    """Wilson's interval of a share, successes over trials (one at least); it stays in [0, 1]."""
    quantile, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    shrunk = 1 + quantile**2 / trials
    middle = (share + quantile**2 / (2 * trials)) / shrunk
    reach = quantile * math.sqrt(share * (1 - share) / trials + quantile**2 / (4 * trials**2)) / shrunk
    return Interval(share, max(middle - reach, 0.0), min(middle + reach, 1.0), 0, covers)


def seeds_and_images(seeds: Interval, images: Interval, covers: str = "") -> Interval:
    """Interval over seeds and test images together: the distances to either end add in quadrature.

    Args:
        seeds: t-interval over one difference a seed, all on the same test images, which it therefore does not cover.
        images: interval over test images of the mean of these differences, on the same draws for all seeds.
        covers: what the result holds.

    The errors are independent, so that their variances add; adding squared distances instead of variances keeps each
    part's own quantile and skew (MOVER: Zou and Donner, Statistics in Medicine 27, 2008).
    """
    low = math.hypot(seeds.mean - seeds.low, images.mean - images.low)
    high = math.hypot(seeds.high - seeds.mean, images.high - images.mean)
    return Interval(seeds.mean, seeds.mean - low, seeds.mean + high, images.resamples, covers)


def _interval(
    values: Floats, point: float, kind: Kind, freedom: int, confidence: float, covers: str
) -> Interval | None:
    if kind == "bootstrap":
        defined = values[~np.isnan(values)]
        if not len(defined):
            return None
        low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(point, float(low), float(high), len(defined), covers)
    if len(values) < 2 or np.isnan(values).any():
        return None
    reach = t_quantile(confidence, freedom) * float(_jackknife_error(values, point))
    return Interval(point, point - reach, point + reach, 0, covers)


def _within_bounds(interval: Interval | None) -> Interval | None:
    """Percentiles of a figure stay in [0, 1] by themselves, a t-interval does not."""
    return interval and replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def _jackknife_error(values: Floats, points: float | Floats) -> Floats:
    """Standard errors of figures from their values (G,) or (G, K) without each group in turn.

    Squares are taken about the measured figures; about the mean of the values they would be smaller (the estimator CV3
    of MacKinnon, Nielsen and Webb, Journal of Applied Econometrics 38, 2023). The figures are not corrected for bias:
    they stay those that were measured.
    """
    error: Floats = np.sqrt((len(values) - 1) / len(values) * ((values - points) ** 2).sum(axis=0))
    return error


def _max_t_reach(differences: Floats, points: Floats, confidence: float) -> Floats:
    """Distances (K,) from the measured differences that, at once, no class exceeds in `confidence` of the resamples."""
    error = np.nanstd(differences, axis=0, ddof=1)
    deviation = np.abs(differences - points) / np.where(error > 0, error, np.inf)
    reach: Floats = np.quantile(np.nan_to_num(deviation).max(axis=1), confidence) * error
    return reach


def _bonferroni_reach(differences: Floats, points: Floats, freedom: NDArray[np.integer], confidence: float) -> Floats:
    """Distances (K,) from the measured differences with Bonferroni's share of the error for each class."""
    each = 1 - (1 - confidence) / len(points)
    quantiles = np.array([t_quantile(each, count) for count in freedom.tolist()])
    return quantiles * _jackknife_error(differences, points)


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
