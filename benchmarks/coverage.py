"""How often intervals of 95 % hold the truth, by simulation: the bootstrap over groups beside the cluster t-interval.

Made test sets have known true figures; their intervals are those that `tutelage.stats` makes of the two kinds of draws.
A test set holds a number of groups (scenes, videos) of 1 to 9 images each. The figures:

- a mean of values that are correlated within a group (0, 0.3, 0.6);
- the difference of two models' mIoU over five classes, the rarest of which occurs in a third of the groups;
- the difference of two models' AP of one class, groups of one image;

and the difference of the rarest class's IoU, by the number of groups that hold it.

Coverage below 0.95 means intervals that are too narrow. With 2 000 test sets its standard error is 0.005.

    python -m benchmarks.coverage [--sets 2000] [--seed 0]

Legend: G groups, D test sets, R draws, K classes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.stats import Draws, bootstrap, leave_one_out, paired_difference, simultaneous_differences
from tutelage.tasks.metrics import bootstrap_metrics, match_detections
from tutelage.types import Boxes

Floats = NDArray[np.float64]
Figures = Callable[[NDArray[np.int16]], Floats]
"""Figures (R, D) of D made test sets, from weights (R, G) of their groups."""

Made = Callable[[int, int, np.random.Generator], Figures]
"""Makes test sets: (number of groups, number of sets, generator) -> their figures."""

GROUPS = (4, 8, 12, 16, 24, 30, 40, 60)
CORRELATIONS = (0.0, 0.3, 0.6)
LARGEST = 9  # images of a group
CONFIDENCE, RESAMPLES, AT_ONCE = 0.95, 1000, 100
AP_RESAMPLES, AP_SHARE = 300, 2  # AP is the slow one: fewer resamples, and half of the test sets

WITH_TRUTH = ((5, 7), (8, 14), (15, 60))  # groups that hold the rarest class: from, to
CLASS_GROUPS = (16, 30, 60)

NUM_CLASSES = 5
SHARES = np.array([0.5, 0.25, 0.15, 0.07, 0.03])  # of the pixels, where the class occurs
OCCURS = np.array([1.0, 0.9, 0.7, 0.5, 0.33])  # chance that it occurs in a group
EASE = np.array([2.5, 2.0, 1.5, 1.0, 0.5])  # log odds that a pixel is found


def coverage(
    made: Made,
    truth: float,
    num_groups: int,
    num_sets: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Share of test sets whose bootstrap interval, and whose t-interval, hold the true figure.

    Args:
        made: makes the test sets.
        truth: the figure of endlessly many groups.
        num_groups: of a test set.
        num_sets: how many test sets; draws are made anew for every `AT_ONCE` of them.
        rng: draws sets and resamples.
        resamples: of the bootstrap.
    """
    held = []
    for first in range(0, num_sets, AT_ONCE):
        figures = made(num_groups, min(AT_ONCE, num_sets - first), rng)
        groups = np.arange(num_groups)
        held.append(
            [_held(figures, draws, truth) for draws in (bootstrap(groups, resamples, rng), leave_one_out(groups))]
        )
    by_bootstrap, by_t = np.concatenate(held, axis=1).mean(axis=1).tolist()
    return by_bootstrap, by_t


def _held(figures: Figures, draws: Draws, truth: float) -> list[bool]:
    measured = figures(np.ones((1, draws.weights.shape[1]), np.int16))[0].tolist()
    intervals = [
        paired_difference(values, 0 * values, point, 0.0, draws.kind, CONFIDENCE)
        for values, point in zip(figures(draws.weights).T, measured, strict=True)
    ]
    return [interval is not None and interval.low <= truth <= interval.high for interval in intervals]


def made_means(correlation: float) -> Made:
    """Means of values with expectation zero, variance one and a correlation within groups."""

    def made(num_groups: int, num_sets: int, rng: np.random.Generator) -> Figures:
        sizes = rng.integers(1, LARGEST + 1, (num_groups, num_sets))
        shared, own = rng.normal(size=(2, num_groups, num_sets))
        sums = sizes * np.sqrt(correlation) * shared + np.sqrt(sizes * (1 - correlation)) * own
        return lambda weights: (weights @ sums) / (weights @ sizes)

    return made


def made_miou(num_groups: int, num_sets: int, rng: np.random.Generator) -> Figures:
    """Differences of mIoU."""
    models = made_confusions(num_groups, num_sets, rng)
    return lambda weights: np.subtract(
        *(np.nanmean(class_iou(np.tensordot(weights.astype(float), model, 1)), axis=-1) for model in models)
    )


def made_confusions(num_groups: int, num_sets: int, rng: np.random.Generator) -> list[Floats]:
    """Confusion matrices (G, D, K, K) of two models, summed over each group's images; rows are the truth.

    How easily pixels of a class are found differs by group and image, for both models alike and for each by itself.
    """
    sets = (num_groups, num_sets)
    amounts = rng.gamma(0.8, SHARES, (LARGEST, *sets, NUM_CLASSES)) * (rng.uniform(size=(*sets, NUM_CLASSES)) < OCCURS)
    amounts *= (np.arange(LARGEST)[:, None, None] < rng.integers(1, LARGEST + 1, sets))[..., None]

    def ease(by_group: float, by_image: float) -> Floats:
        return rng.normal(0, by_group, amounts.shape[1:]) + rng.normal(0, by_image, amounts.shape)

    common, matrices = EASE + ease(0.8, 0.4), []
    for better in (0.3, 0.0):
        found = amounts / (1 + np.exp(-(common + better + ease(0.3, 0.3))))
        matrices.append(_matrix(found.sum(axis=0), (amounts - found).sum(axis=0)))
    return matrices


def _matrix(right: Floats, wrong: Floats) -> Floats:
    """(..., K, K) from pixels (..., K); wrong ones go to the other classes by their shares."""
    same = np.eye(NUM_CLASSES)
    others = (1 - same) * SHARES
    matrix: Floats = right[..., None] * same + wrong[..., None] * others / others.sum(axis=1, keepdims=True)
    return matrix


def class_iou(confusion: Floats) -> Floats:
    """(..., K) IoU of matrices (..., K, K); NaN without truth."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    truth, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    iou: Floats = np.divide(both, truth + predicted - both, out=np.full(both.shape, np.nan), where=truth > 0)
    return iou


def class_coverage(num_groups: int, num_sets: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(T, 3) counts for the IoU difference of the rarest class by the number of groups that hold it, see `WITH_TRUTH`.

    Columns: how often the bootstrap interval holds the true difference, how often the t-interval does, test sets.
    """
    truth = float(np.subtract(*(class_iou(model.sum(axis=0)) for model in made_confusions(50_000, 1, rng)))[0, -1])
    counts = np.zeros((len(WITH_TRUTH), 3), np.int64)
    for _ in range(num_sets // AT_ONCE):
        models = made_confusions(num_groups, AT_ONCE, rng)
        with_truth = (models[0][:, :, -1].sum(axis=-1) > 0).sum(axis=0)
        held = [
            _class_held(models, draws, with_truth, truth)
            for draws in (bootstrap(np.arange(num_groups), RESAMPLES, rng), leave_one_out(np.arange(num_groups)))
        ]
        for row, (least, most) in enumerate(WITH_TRUTH):
            chosen = (with_truth >= least) & (with_truth <= most)
            counts[row] += [*(one[chosen].sum() for one in held), chosen.sum()]
    return counts


def _class_held(models: list[Floats], draws: Draws, with_truth: NDArray[np.int64], truth: float) -> NDArray[np.bool_]:
    def figures(weights: NDArray[Any]) -> Floats:
        one, other = (class_iou(np.tensordot(weights.astype(float), model, 1))[..., -1] for model in models)
        difference: Floats = one - other
        return difference

    points, values = figures(np.ones((1, len(models[0]))))[0], figures(draws.weights)[..., None]
    intervals = [
        simultaneous_differences(one, 0 * one, [point], [0.0], np.array([count]), draws.kind, CONFIDENCE)[0]
        for one, point, count in zip(values.swapaxes(0, 1), points.tolist(), with_truth.tolist(), strict=True)
    ]
    return np.array([one is not None and one.low <= truth <= one.high for one in intervals])


def made_ap(num_groups: int, num_sets: int, rng: np.random.Generator) -> Figures:
    """Differences of AP; every test set is a class of its own on the same images, so that all are matched at once.

    Boxes found are found exactly, so that AP50 is AP.
    """
    pictures = [_boxes(num_sets, rng) for _ in range(num_groups)]
    truth, *models = ([picture[which] for picture in pictures] for which in range(3))
    matches = [match_detections(truth, model, num_sets) for model in models]
    return lambda weights: np.subtract(*(bootstrap_metrics(match, weights)["class_ap50"] for match in matches))


def _boxes(num_sets: int, rng: np.random.Generator) -> list[Boxes]:
    """One image of every test set: one to three boxes, and what a better and a worse model find, with a false one."""
    left = np.arange(4) * 20.0
    xyxy = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1)
    label, place = np.nonzero(np.arange(4) < rng.integers(1, 4, num_sets)[:, None])
    ease = rng.uniform(-0.3, 0.3, num_sets)[label]
    models = []
    for chance in (0.7, 0.6):
        hit = rng.uniform(size=len(label)) < chance + ease
        labels = np.append(label[hit], np.arange(num_sets))
        places = np.append(place[hit], np.full(num_sets, 3))
        scores = np.append(rng.uniform(0.3, 1, hit.sum()), rng.uniform(0, 0.9, num_sets))
        models.append(Boxes.build(xyxy[places], labels, scores))
    return [Boxes.build(xyxy[place], label), *models]


def true_figure(made: Made, rng: np.random.Generator, num_groups: int = 50_000) -> float:
    """The figure of a very large test set."""
    return float(made(num_groups, 1, rng)(np.ones((1, num_groups), np.int16))[0, 0])


def main(num_sets: int, seed: int) -> None:
    rng, start = np.random.default_rng(seed), time.perf_counter()
    miou_truth, ap_truth = true_figure(made_miou, rng), true_figure(made_ap, rng)
    print(f"Coverage of {CONFIDENCE:.0%} intervals, bootstrap / t-interval.")
    print(f"True differences: mIoU {miou_truth:.4f}, AP {ap_truth:.4f}.")
    names = [*(f"mean, correlation {one}" for one in CORRELATIONS), "mIoU difference", "AP difference"]
    _print_row("groups", *names)
    _print_row(*["---"] * (len(names) + 1))
    for num_groups in GROUPS:
        found = [coverage(made_means(one), 0.0, num_groups, num_sets, rng) for one in CORRELATIONS]
        found.append(coverage(made_miou, miou_truth, num_groups, num_sets, rng))
        found.append(coverage(made_ap, ap_truth, num_groups, num_sets // AP_SHARE, rng, AP_RESAMPLES))
        _print_row(str(num_groups), *(f"{one:.3f} / {other:.3f}" for one, other in found))
    print(f"Difference of the rarest class's IoU, by how many groups hold it; empty: fewer than {AT_ONCE} test sets.")
    _print_row("groups", *(f"in {least} to {most}" for least, most in WITH_TRUTH))
    _print_row(*["---"] * (len(WITH_TRUTH) + 1))
    for num_groups in CLASS_GROUPS:
        counts = class_coverage(num_groups, num_sets, rng)
        cells = [f"{one / of:.3f} / {other / of:.3f}" if of >= AT_ONCE else "" for one, other, of in counts.tolist()]
        _print_row(str(num_groups), *cells)
    print(f"{num_sets} test sets a cell, seed {seed}, {time.perf_counter() - start:.0f} s")


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000, help="test sets of a cell")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.sets, arguments.seed)
