"""How often intervals of 95 % hold the truth, by simulation; `benchmarks/coverage.py` has the large version."""

import numpy as np
import pytest

from benchmarks.coverage import GROUPS, coverage, made_ap, made_means, made_miou, true_figure
from tutelage.stats import (
    FEW_GROUPS,
    Interval,
    draw,
    paired_difference,
    seeds_and_images,
    shown,
    simultaneous_differences,
    t_interval,
)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_sixteen_groups_undercover_in_a_bootstrap_and_not_in_a_t_interval(correlation: float) -> None:
    by_bootstrap, by_t = coverage(made_means(correlation), 0.0, 16, 1000, np.random.default_rng(0))
    assert by_bootstrap <= 0.93 and by_bootstrap + 0.015 <= by_t
    assert 0.93 <= by_t <= 0.97


def test_few_groups_cover_a_difference_of_miou_by_a_t_interval() -> None:
    rng = np.random.default_rng(0)
    truth = true_figure(made_miou, rng)
    by_bootstrap, by_t = coverage(made_miou, truth, 8, 600, rng)
    assert truth > 0.04 and by_bootstrap <= 0.9 and 0.92 <= by_t <= 0.97


def test_few_images_cover_a_difference_of_ap_by_a_t_interval() -> None:
    rng = np.random.default_rng(0)
    truth = true_figure(made_ap, rng, 3000)
    by_bootstrap, by_t = coverage(made_ap, truth, 12, 400, rng, resamples=100)
    assert truth > 0.08 and by_bootstrap + 0.015 <= by_t and 0.92 <= by_t <= 0.985


def test_from_the_stated_number_of_groups_on_the_bootstrap_covers() -> None:
    rng = np.random.default_rng(0)
    for made in (made_means(0.3), made_miou):
        assert coverage(made, true_figure(made, rng), FEW_GROUPS, 400, rng)[0] >= 0.915


@pytest.mark.slow
def test_the_table_of_the_documentation() -> None:
    rng = np.random.default_rng(1)
    for made in (*map(made_means, (0.0, 0.3, 0.6)), made_miou):
        truth = true_figure(made, rng)
        for num_groups in GROUPS:
            by_bootstrap, by_t = coverage(made, truth, num_groups, 2000, rng)
            assert 0.92 <= by_t <= 0.97, (num_groups, by_t)
            assert by_bootstrap >= 0.92 or num_groups < FEW_GROUPS, (num_groups, by_bootstrap)
    by_bootstrap, _ = coverage(made_ap, true_figure(made_ap, rng), 60, 400, rng, resamples=300)
    assert 0.915 <= by_bootstrap <= 0.98


def test_groups_are_resampled_whole_or_the_interval_is_too_narrow() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 10)
    held = {"groups": 0, "images": 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=60), 10) + 0.3 * rng.normal(size=600)
        for name, ids in (("groups", groups), ("images", np.arange(600))):
            draws = draw(ids, 200, rng)
            means = draws.weights @ values / 600
            found = paired_difference(means, 0 * means, values.mean(), 0.0, draws.kind, 0.95)
            held[name] += found is not None and found.low <= 0 <= found.high
    assert held["groups"] / 200 >= 0.9
    assert held["images"] / 200 <= 0.6


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_and_few_groups_together_cover_what_neither_covers_alone(num_seeds: int) -> None:
    rng = np.random.default_rng(num_seeds)
    held, images_alone, trials = 0, 0, 600
    for _ in range(trials):
        values = rng.normal(0, 3, 9)  # what the choice of test images does to every seed alike: 1 in the mean of nine
        draws = draw(np.arange(9), 200, rng)
        differences = values.mean() + rng.normal(0, num_seeds**0.5, num_seeds)
        seeds, seed_error = t_interval(differences.tolist(), 0.95), differences.mean() - values.mean()
        means = draws.weights @ values / draws.weights.sum(axis=1) + seed_error
        images = paired_difference(means, 0 * means, seeds.mean, 0.0, draws.kind, 0.95)
        assert images is not None
        held += _holds_zero(seeds_and_images(seeds, images))
        images_alone += _holds_zero(images)
    assert held / trials >= 0.935
    assert images_alone / trials <= 0.9


def _holds_zero(interval: Interval) -> bool:
    return interval.low <= 0 <= interval.high


@pytest.mark.parametrize("num_groups", [10, 60])
def test_simultaneous_intervals_rarely_show_what_is_not_there(num_groups: int) -> None:
    rng = np.random.default_rng(2)
    false_alarms, alone, trials, num_classes = 0, 0, 150, 20
    for _ in range(trials):
        values = rng.normal(size=(num_groups, num_classes))  # a difference of zero in every class
        draws = draw(np.arange(num_groups), 300, rng)
        means = draws.weights @ values / draws.weights.sum(axis=1, keepdims=True)
        points, zeros, everywhere = values.mean(axis=0), np.zeros(num_classes), np.full(num_classes, num_groups)
        found = simultaneous_differences(
            means, 0 * means, points.tolist(), zeros.tolist(), everywhere, draws.kind, 0.95
        )
        false_alarms += any(one is not None and shown(one) for one in found)
        each = [paired_difference(means[:, k], zeros[0], points[k], 0.0, draws.kind, 0.95) for k in range(num_classes)]
        alone += any(one is not None and shown(one) for one in each)
    assert false_alarms / trials <= 0.15
    assert alone / trials >= 0.5
