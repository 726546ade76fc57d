"""How often the certificate's intervals hold the truth, and how often its chosen thresholds do, by simulation.

Made data sets have known true precision. Right claims are beta-binomial: an image's own precision is drawn from a beta
distribution with an intra-image correlation of 0, 0.3 or 0.8. In "crowded" sets the odds of a wrong claim grow with the
square root of the claims of the image. An image holds

- about 1 claim: none (15 %), one (70 %) or two;
- about 5: a geometric number, 17 % hold none;
- about 20: a lognormal number (sigma 1), at most 100.

Recall is the same ratio with truths in place of claims, so that its intervals are these. Masks: 10 000 pixels an image.
For the choice, images hold claims whose true precision falls with their threshold from the best to the worst of a row.

    python -m benchmarks.certificate_coverage [--sets 2000] [--seed 0]

Legend: D data sets, n images, T thresholds.
"""

from __future__ import annotations

import argparse
import time
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tutelage.stats import Sums, certify_class, ratio_interval

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

IMAGES = (10, 20, 50, 100, 400)
CLAIMS = (1, 5, 20)  # about so many an image
PRECISIONS = (0.5, 0.8, 0.9, 0.95, 0.99)
CORRELATIONS = (0.0, 0.3, 0.8)
CROWDED = (0.0, 0.5)  # exponent of the number of claims in the odds of a wrong one
CONFIDENCE, TARGET, NUM_THRESHOLDS, PIXELS = 0.95, 0.9, 100, 10_000
CHOICES = {  # true precision of all claims above the highest, and the lowest threshold
    "just misses everywhere": (0.898, 0.898),
    "misses nearly everywhere": (0.901, 0.85),
    "just misses at the lower half": (0.91, 0.89),
    "meets down to a third": (0.97, 0.83),
    "meets everywhere": (0.98, 0.95),
}


class Condition(NamedTuple):
    """What made data sets are like."""

    images: int
    claims: int  # about so many an image
    precision: float
    correlation: float
    crowded: float


def made_claims(about: int, shape: tuple[int, ...], rng: np.random.Generator) -> Counts:
    """Claims of images, of the given shape."""
    if about == 1:
        return np.searchsorted(np.array([0.15, 0.85]), rng.uniform(size=shape)).astype(np.int64)
    if about == 5:
        return rng.geometric(1 / 6, shape) - 1
    return np.minimum(np.rint(about * np.exp(rng.normal(-0.5, 1, shape))), 100).astype(np.int64)


def made_hits(claims: Counts, condition: Condition, rng: np.random.Generator) -> Counts:
    """How many of the claims of each image are right."""
    log_odds = _log_odds(condition.claims, condition.precision, condition.crowded)
    expected = expit(log_odds - condition.crowded * np.log1p(claims))
    if condition.correlation:
        count = 1 / condition.correlation - 1  # of the beta distribution
        expected = rng.beta(expected * count, (1 - expected) * count)
    return rng.binomial(claims, expected)


@lru_cache
def _log_odds(about: int, precision: float, crowded: float) -> float:
    """Of a right claim, before crowding, so that the ratio of sums over endlessly many images is as wanted."""
    claims = made_claims(about, (200_000,), np.random.default_rng(1))
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        found = (claims * expit(middle - crowded * np.log1p(claims))).sum() / claims.sum()
        low, high = (middle, high) if found < precision else (low, middle)
    return low


def coverage(condition: Condition, num_sets: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of data sets whose interval holds the true precision, and the mean width."""
    claims = made_claims(condition.claims, (num_sets, condition.images), rng)
    return _held(made_hits(claims, condition, rng), claims, condition.precision)


def _held(hits: NDArray[np.int64], claims: NDArray[np.int64], truth: float) -> tuple[float, float]:
    _, low, high = ratio_interval(hits, claims, CONFIDENCE)
    low, high = np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)  # not defined: nothing is shown
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean())


def pixel_coverage(images: int, precision: float, correlation: float, num_sets: int, rng: np.random.Generator) -> str:
    """Coverage of ours, and of the interval that takes pixels for independent."""
    count = 1 / correlation - 1
    own = rng.beta(precision * count, (1 - precision) * count, (num_sets, images))
    claims = rng.integers(PIXELS // 2, 3 * PIXELS // 2, own.shape)
    hits = rng.binomial(claims, own)
    point, total = hits.sum(axis=1) / claims.sum(axis=1), claims.sum(axis=1)
    naive = np.abs(point - precision) <= 1.96 * np.sqrt(point * (1 - point) / total)
    held, width = _held(hits, claims, precision)
    return f"{100 * naive.mean():.1f} / {100 * held:.1f} ({width:.3f})"


def choice(images: int, about: int, correlation: float, ends: tuple[float, float], sets: int, seed: int) -> str:
    """Violations of the promise, and how often a threshold was chosen, in percent."""
    rng = np.random.default_rng(seed)
    violated = chosen = 0
    for _ in range(sets):
        sums, truth = _scored(images, about, correlation, ends, rng)
        found = certify_class(sums, TARGET, CONFIDENCE).chosen
        chosen += found is not None
        violated += found is not None and truth[int(np.searchsorted(sums.thresholds, found))] < TARGET
    return f"{100 * violated / sets:.1f} / {100 * chosen / sets:.0f}"


def _scored(
    images: int, about: int, correlation: float, ends: tuple[float, float], rng: np.random.Generator
) -> tuple[Sums, Floats]:
    """A data set of claims with evenly spread scores, and the true precision at each threshold."""
    thresholds = np.linspace(0, 1, NUM_THRESHOLDS, endpoint=False)
    truth = np.linspace(ends[1], ends[0], NUM_THRESHOLDS)
    above = truth * (1 - thresholds)  # right claims above each threshold, as a share of all claims
    of_bin = np.clip((above - np.append(above[1:], 0)) * NUM_THRESHOLDS, 0, 1)
    image = np.repeat(np.arange(images), made_claims(about, (images,), rng))
    score = rng.integers(NUM_THRESHOLDS, size=len(image))
    right = _right(of_bin[score], image, images, correlation, rng)
    counts = [np.bincount(score * images + image, one, NUM_THRESHOLDS * images) for one in (None, right)]
    claims, hits = (one.reshape(NUM_THRESHOLDS, images)[::-1].cumsum(axis=0)[::-1] for one in counts)
    return Sums(thresholds, claims, hits, claims[0] + 1), truth


def _right(chance: Floats, image: Counts, images: int, correlation: float, rng: np.random.Generator) -> Counts:
    """Whether claims are right: with their chance each, and in a share of the cases by one draw for all of an image."""
    common = rng.uniform(size=images)[image]
    together = rng.uniform(size=len(image)) < np.sqrt(correlation)
    return (np.where(together, common, rng.uniform(size=len(image))) < chance).astype(np.int64)


def print_coverage(num_sets: int, seed: int) -> None:
    """Least to greatest coverage and mean width over claims an image and both kinds of crowding."""
    worst: list[tuple[float, Condition]] = []
    _print_row("images", "correlation", *(f"precision {one}" for one in PRECISIONS))
    _print_row(*["---"] * (len(PRECISIONS) + 2))
    for images, (row, correlation) in product(IMAGES, enumerate(CORRELATIONS)):
        rng, cells = np.random.default_rng((seed, images, row)), []
        for precision in PRECISIONS:
            kinds = [Condition(images, *kind) for kind in product(CLAIMS, [precision], [correlation], CROWDED)]
            held = [coverage(kind, num_sets, rng) for kind in kinds]
            shares = [share for share, _ in held]
            worst += zip(shares, kinds, strict=True)
            cells.append(
                f"{100 * min(shares):.1f} to {100 * max(shares):.1f} ({np.mean([width for _, width in held]):.2f})"
            )
        _print_row(str(images), str(correlation), *cells)
    print("Lowest:", *(f"{100 * share:.1f} {tuple(kind)};" for share, kind in sorted(worst)[:6]))
    many = [one for one in worst if one[1].images >= 100 and one[1].precision <= 0.95]
    print("Highest from 100 images on:", *(f"{100 * share:.1f} {tuple(kind)};" for share, kind in sorted(many)[-6:]))


def print_pixels(num_sets: int, seed: int) -> None:
    """Naive / our coverage of pixels."""
    rng = np.random.default_rng(seed)
    _print_row("images", "correlation", *(f"precision {one}" for one in PRECISIONS))
    _print_row(*["---"] * (len(PRECISIONS) + 2))
    for images, correlation in product((20, 100, 400), (0.1, 0.5)):
        cells = (pixel_coverage(images, one, correlation, num_sets, rng) for one in PRECISIONS)
        _print_row(str(images), str(correlation), *cells)


def print_choices(num_sets: int, seed: int) -> None:
    """Violations / choices in percent, wanted precision `TARGET`."""
    kinds = [(100, 1, 0.0), (100, 5, 0.3), (100, 5, 0.8), (400, 1, 0.3), (100, 20, 0.3), (400, 5, 0.3)]
    _print_row("true precision", *(f"{n} images, {about} claims, {rho}" for n, about, rho in kinds))
    _print_row(*["---"] * (len(kinds) + 1))
    for name, ends in CHOICES.items():
        _print_row(name, *(choice(*kind, ends, num_sets, seed) for kind in kinds))


def main(num_sets: int, seed: int) -> None:
    start = time.perf_counter()
    print("Coverage of 95 % intervals, least to greatest of 6 kinds of data sets (mean width).")
    print_coverage(num_sets, seed)
    print("Pixels: coverage if they are taken for independent / ours (mean width of ours).")
    print_pixels(num_sets, seed)
    print(f"Promise of {TARGET}: broken / a threshold was chosen, percent.")
    print_choices(num_sets // 4, seed)
    print(f"{num_sets} data sets a condition (choices: a quarter), seed {seed}, {time.perf_counter() - start:.0f} s")


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000, help="data sets of a condition")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.sets, arguments.seed)
