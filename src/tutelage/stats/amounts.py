"""Two sets of images compared by what is in each of their images; the image is the unit, not the box or the pixel.

What is compared are means over images and ratios of such means, so that sums over images are all that is kept of a set
of any size. Chance is allowed for by standard errors (of ratios: linearized, Cochran, Sampling Techniques, sec. 6.3).

Legend: n images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

DEVIATIONS = 3.0  # standard errors that chance is granted
CLASS_DEVIATIONS = 4.0  # where each of many classes is looked at
NONE_FOUND = 7.0  # none in n images: at most 7 / n at 99.9 %

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Amounts:
    """Sums over the images of a set: how much of each class is in them (boxes, or shares of their pixels)."""

    images: int
    present: NDArray[np.int64]  # (K,) images with some of the class
    filled: int  # images with some of any
    sums: Floats  # (K,)
    squares: Floats  # (K,)
    products: Floats  # (K,) of a class's amount and the image's total
    total_squares: float

    @classmethod
    def of(cls, per_image: Floats) -> Self:
        """Of the amounts (n, K) in each image."""
        totals = per_image.sum(1)
        return cls(
            images=len(per_image),
            present=(per_image > 0).sum(0),
            filled=int((totals > 0).sum()),
            sums=per_image.sum(0),
            squares=np.square(per_image).sum(0),
            products=totals @ per_image,
            total_squares=float(np.square(totals).sum()),
        )

    def __add__(self, other: Self) -> Self:
        """Of the images of both."""
        fields = self.__dataclass_fields__
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in fields})

    @property
    def mean(self) -> float:
        """Amount of an image."""
        return float(self.sums.sum()) / max(self.images, 1)

    @property
    def empty(self) -> float:
        """Share of the images with nothing."""
        return 1 - self.filled / max(self.images, 1)

    @property
    def shares(self) -> Floats:
        """(K,) of each class in all there is."""
        total = float(self.sums.sum())
        return self.sums / total if total else np.zeros_like(self.sums)

    def mean_error(self) -> float:
        """Standard error of `mean`, relative to it."""
        spread = self.total_squares / self.images - self.mean**2
        return math.sqrt(max(spread, 0.0) / max(self.images - 1, 1)) / self.mean

    def share_errors(self) -> Floats:
        """(K,) standard errors of `shares`, which are ratios of two sums over images."""
        shares = self.shares
        residuals = self.squares - 2 * shares * self.products + shares**2 * self.total_squares
        scale = self.images / max(self.images - 1, 1) / float(self.sums.sum()) ** 2
        return np.sqrt(np.maximum(residuals, 0) * scale)


class Ratio(NamedTuple):
    """A ratio, and how small or great it may be in truth."""

    value: float
    low: float
    high: float


def mean_ratio(prior: Amounts, found: Amounts) -> Ratio:
    """The amount of an image of `found` over that of `prior`, both with images; `prior` holds something."""
    if not found.filled:
        return Ratio(0.0, 0.0, NONE_FOUND / found.images / prior.mean)
    value = found.mean / prior.mean
    factor = math.exp(DEVIATIONS * math.hypot(prior.mean_error(), found.mean_error()))
    return Ratio(value, value / factor, value * factor)


class Distance(NamedTuple):
    """Total variation distance of two class histograms, in [0, 1], and what chance alone could make it."""

    value: float
    by_chance: float

    @property
    def excess(self) -> float:
        """What chance does not explain."""
        return self.value - self.by_chance


def class_distance(prior: Amounts, found: Amounts, *, in_order: bool = True) -> Distance:
    """Between the class shares of two sets that hold something.

    Args:
        prior: one set.
        found: the other.
        in_order: class by class; else of the best pairing of their classes, that of the sorted shares.

    By chance |d| of a class averages sqrt(2 / pi) of its standard error; how the classes go together is not known, so
    that their deviations are added up, which is never too little.
    """
    a, b = (one.shares if in_order else np.sort(one.shares) for one in (prior, found))
    errors = float(np.hypot(prior.share_errors(), found.share_errors()).sum())
    by_chance = math.sqrt(2 / math.pi) + DEVIATIONS * math.sqrt(1 - 2 / math.pi)
    return Distance(0.5 * float(np.abs(a - b).sum()), min(1.0, 0.5 * by_chance * errors))


def empty_excess(prior: Amounts, found: Amounts) -> float:
    """By how much the share of empty images of `found` exceeds that of `prior`, beyond chance."""
    pooled = 1 - (prior.filled + found.filled) / (prior.images + found.images)
    error = math.sqrt(pooled * (1 - pooled) * (1 / prior.images + 1 / found.images))
    return found.empty - prior.empty - DEVIATIONS * error


def rarer_than(prior: Amounts, found: Amounts, factor: float) -> NDArray[np.bool_]:
    """(K,) whether a class is in fewer of the images than `factor` times its share of `prior`'s, beyond chance."""
    before, now = prior.present / prior.images, found.present / found.images
    with np.errstate(divide="ignore", invalid="ignore"):
        of_found = np.where(found.present > 0, (1 - now) / found.present, 0)
        variance = (1 - before) / prior.present + of_found
        highest = np.where(now > 0, now, NONE_FOUND / found.images) / before
        highest *= np.exp(CLASS_DEVIATIONS * np.sqrt(variance))
    return np.asarray((prior.present > 0) & (highest < factor))
