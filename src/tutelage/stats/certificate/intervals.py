"""Intervals of precision and recall: ratios of sums over images, where the image is the unit, never box or pixel.

What a teacher gets wrong comes in clusters, so that a thousand boxes of a hundred images are worth fewer than a
thousand trials. How many fewer is measured: Korn and Graubard (Survey Methodology 24, 1998) divide the number of claims
by the design effect, the ratio of the cluster variance to that of as many independent claims, and put what is left into
Clopper and Pearson's interval. Theirs fails where few images hold the wrong claims. Here, besides,

- the cluster variance is the delete-one-image jackknife's (CV3: MacKinnon, Nielsen and Webb, Journal of Applied
  Econometrics 38, 2023), so that an image that holds much of the claims does not hide its own residual;
- Student's quantile has the degrees of freedom that the kurtosis of the residuals leaves to their variance;
- Clopper and Pearson's pseudo-trial is as large as the clusters of wrong claims, by the third moment of the residuals
  (for weighted Poisson counts that is Fay and Feuer's interval, Statistics in Medicine 16, 1997);
- no bound is above that of as many images that were all entirely right.

If every image holds one claim all four change nothing, and the bound is Clopper and Pearson's. Coverage is measured in
benchmarks/certificate_coverage.py.

Legend: T thresholds, n images (or groups).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from tutelage.stats.draws import Floats

HALF_CLAIM = 0.5  # two-sided intervals: Clopper and Pearson's are too wide by about that at each end (Jeffreys)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What sums over images show of a ratio, at each of T thresholds."""

    hits: Floats  # (T,) claims that are right
    misses: Floats  # (T,) claims that are wrong
    images: Floats  # (T,) that hold claims
    design: Floats  # (T,) claims that are worth one independent claim
    cluster: Floats  # (T,) claims that go wrong together

    def lower(self, tail: float, continuity: float = 0.0) -> Floats:
        """(T,) bound that the true ratio is above but for a chance of `tail`; NaN without claims.

        `continuity` is in claims: 0 keeps the promise even where single claims decide, 0.5 keeps it on average.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            failed = self.misses + self.cluster
            unit = (self.design * self.misses + self.cluster**2) / failed  # variance of `failed` over `failed`
            low = betaincinv((self.hits + continuity) / unit, (failed - continuity) / unit, tail)
            low = np.minimum(low, tail ** (1 / self.images))
        return np.where(self.images > 0, np.where(self.hits > 0, low, 0.0), np.nan)

    def at(self, which: NDArray[np.bool_]) -> Evidence:
        """That of the thresholds of which (T,) alone."""
        return Evidence(*(getattr(self, field.name)[which] for field in fields(self)))

    def times(self, factor: Floats) -> Evidence:
        """The same with `factor` (T,) times as many images of this kind."""
        return Evidence(self.hits * factor, self.misses * factor, self.images * factor, self.design, self.cluster)


def ratio_interval(hits: NDArray[Any], of: NDArray[Any], confidence: float) -> tuple[Floats, Floats, Floats]:
    """(T,) sums of hits (T, n) over sums of what they are `of` (T, n), and both ends of its two-sided interval.

    NaN where there is nothing to divide by.
    """
    tail = (1 - confidence) / 2
    right = evidence(hits, of, tail)
    with np.errstate(invalid="ignore"):
        point = right.hits / (right.hits + right.misses)
    high = 1 - evidence(of - hits, of, tail).lower(tail, HALF_CLAIM)
    return point, right.lower(tail, HALF_CLAIM), high


def evidence(hits: NDArray[Any], of: NDArray[Any], tail: float) -> Evidence:
    """Evidence for a lower bound of the ratio of hits (T, n) to `of` (T, n) with this `tail`.

    Where the images show no spread (one image, or claims that are all right or all wrong) each is taken as entirely
    right or entirely wrong: then a claim is worth as little as it can be (Kish's effective number of images).
    """
    right, total = hits.sum(axis=1).astype(np.float64), of.sum(axis=1).astype(np.float64)
    images = (of > 0).sum(axis=1).astype(np.float64)
    sizes = of.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        together = np.einsum("tn,tn->t", sizes, sizes) / total  # design effect if images go right or wrong as a whole
        share = right / total
        residuals = (share[:, None] * sizes - hits) / (1 - sizes / total[:, None])
        design, cluster = _clustering(residuals, share, total, images, total / together, tail)
    spread = (images > 1) & (right > 0) & (right < total)
    return Evidence(
        right, total - right, images, np.where(spread, design, together), np.where(spread, cluster, together)
    )


def _clustering(
    residuals: Floats, share: Floats, total: Floats, images: Floats, effective: Floats, tail: float
) -> tuple[Floats, Floats]:
    """(T,) design effect, widened by Student's quantile, and size of the clusters of wrong claims.

    Args:
        residuals: (T, n) wrong claims above the expected ones, each divided by the share of claims in other images.
        share: (T,) of claims that are right.
        total: (T,) claims.
        images: (T,) that hold claims.
        effective: (T,) Kish's effective number of images.
        tail: of the bound.
    """
    residuals = residuals * ((images - 1) / images)[:, None]
    squares = residuals**2
    second, fourth = squares.sum(axis=1), np.einsum("tn,tn->t", squares, squares)
    third = np.einsum("tn,tn->t", squares, residuals)
    one = share * (1 - share)  # variance of one independent claim
    design = second / (total * one) * images / (images - 1) * (total - 1) / total
    design = np.maximum(design * _widened(fourth / second**2 - 1 / images, one, total, effective, tail), 1)
    excess = third / second - second / (total * one) * (2 * share - 1)  # of the skewness, over that of the design
    return design, design + np.fmax(excess, 0)


def _widened(peaked: Floats, one: Floats, total: Floats, effective: Floats, tail: float) -> Floats:
    """(T,) squared ratio of Student's quantiles: with the freedom of the cluster variance, and of independent claims.

    A variance estimate has 2 n / (kurtosis - 1) degrees of freedom where it is independent of the mean. Here a low
    variance comes with a high share of right claims, and half of that is taken (by simulation).
    """
    most = np.maximum(effective - 1, 1)
    freedom = np.clip(np.nan_to_num(1 / peaked, nan=np.inf), 1, most)
    independent = np.minimum(total * one / np.maximum(1 - 4 * one, 0), np.maximum(total - 1, 1))
    ratio: Floats = stdtrit(freedom, 1 - tail) / stdtrit(np.maximum(independent, freedom), 1 - tail)
    return ratio**2
