"""Intervals and choices of the certificate; `benchmarks/certificate_coverage.py` has the large simulation."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.certificate_coverage import CHOICES, Condition, choice, coverage, pixel_coverage
from tutelage.stats import Sums, certify_class, evidence, ratio_interval


def one_claim_each(right: int, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([[1] * right + [0] * (images - right)]), np.ones((1, images), np.int64)


def falling(images: int, seed: int, sure: float = 0.99, unsure: float = 0.7) -> Sums:
    """Twenty thresholds, three claims an image at each; wrong more often at low ones."""
    rng = np.random.default_rng(seed)
    claims = rng.poisson(0.3, (20, images))
    hits = rng.binomial(claims, np.linspace(unsure, sure, 20)[:, None])
    claims, hits = (one[::-1].cumsum(axis=0)[::-1] for one in (claims, hits))
    return Sums(np.linspace(0.05, 1, 20), claims, hits, claims[0] + 2)


@pytest.mark.parametrize("right", [0, 1, 20, 37, 40])
def test_one_claim_an_image_is_the_exact_binomial_bound(right: int) -> None:
    hits, of = one_claim_each(right, 40)
    exact = binomtest(right, 40).proportion_ci(0.95, "exact")
    assert evidence(hits, of, 0.025).lower(0.025)[0] == pytest.approx(exact.low, abs=1e-9)
    assert 1 - evidence(of - hits, of, 0.025).lower(0.025)[0] == pytest.approx(exact.high, abs=1e-9)
    point, low, high = ratio_interval(hits, of, 0.95)  # half a claim narrower at each end, but where nothing spreads
    assert exact.low <= low[0] <= point[0] == right / 40 <= high[0] <= exact.high


def test_jackknife_design_effect_by_hand() -> None:
    hits, of = np.tile([[10, 5, 1, 7]], 100), np.tile([[10, 5, 5, 10]], 100)
    right, total = hits.sum(), of.sum()
    left_out = (right - hits) / (total - of)
    variance = 399 / 400 * ((left_out - right / total) ** 2).sum()
    design = variance / (right / total * (1 - right / total) / (total - 1))
    found = evidence(hits, of, 0.025)  # with so many images Student's quantiles add next to nothing
    assert 1 < design < found.design[0] < 1.02 * design
    assert (found.hits[0], found.misses[0], found.images[0]) == (2300, 700, 400)


def test_copies_of_claims_are_no_evidence() -> None:
    """Each image entirely right or wrong: a thousand pixels are worth one box, less what estimating that costs."""
    hits, of = one_claim_each(360, 400)
    once, many = (evidence(hits * copies, of * copies, 0.05).lower(0.05)[0] for copies in (1, 1000))
    assert once - 0.01 < many <= once


def test_more_hits_raise_and_more_images_narrow_it() -> None:
    rng = np.random.default_rng(0)
    claims = np.broadcast_to(rng.integers(1, 6, 60), (5, 60))
    shares = np.array([0.5, 0.7, 0.85, 0.95, 1.0])[:, None]
    point, low, high = ratio_interval(np.floor(shares * claims + rng.uniform(size=60)).clip(max=claims), claims, 0.95)
    for figure in (point, low, high):
        assert (np.diff(figure) >= 0).all()
    assert (low <= point).all() and (point <= high).all() and low[-1] < 1 == high[-1]
    _, more_low, more_high = ratio_interval(np.tile(claims * shares, 4), np.tile(claims, 4), 0.95)
    _, low, high = ratio_interval(claims * shares, claims, 0.95)
    assert (more_high - more_low < high - low).all()


def test_all_right_shows_no_more_than_as_many_images() -> None:
    claims = np.full((1, 20), 10_000)
    low = ratio_interval(claims, claims, 0.95)[1][0]
    assert low == pytest.approx(0.025 ** (1 / 20))
    nearly = claims.copy()
    nearly[0, 0] -= 1
    assert ratio_interval(nearly, claims, 0.95)[1][0] <= low


def test_without_images_or_claims_nothing_is_said() -> None:
    empty = Sums(np.array([0.1, 0.5]), np.zeros((2, 0), int), np.zeros((2, 0), int), np.zeros(0, int))
    found = certify_class(empty, 0.9, 0.95)
    assert np.isnan(found.precision).all() and np.isnan(found.recall_high).all()
    assert (found.chosen, found.best, found.more_images) == (None, None, None)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["low"] == [None, None]


def test_thresholds_without_claims_do_not_stop_the_choice() -> None:
    sums = falling(300, 1)
    claims, hits = sums.claims.copy(), sums.hits.copy()
    claims[-4:] = hits[-4:] = 0
    found = certify_class(Sums(sums.thresholds, claims, hits, sums.truths), 0.8, 0.95)
    assert np.isnan(found.precision[-4:]).all() and (found.recall[-4:] == 0).all()
    assert found.chosen is not None and found.chosen < 0.5 and found.more_images == 0
    assert found.best is not None and found.best[1] == np.nanmax(found.low)


def test_the_balanced_threshold_has_the_highest_f1() -> None:
    sums = falling(60, 6)
    f1 = []
    for claims, hits in zip(sums.claims, sums.hits, strict=True):
        precision, recall = hits.sum() / max(claims.sum(), 1), hits.sum() / sums.truths.sum()
        f1.append(2 * precision * recall / max(precision + recall, 1e-9))
    assert certify_class(sums, 0.9, 0.95).balanced == sums.thresholds[int(np.argmax(f1))]
    wrong = Sums(sums.thresholds, sums.claims, 0 * sums.hits, sums.truths)
    assert certify_class(wrong, 0.9, 0.95).balanced is None


def test_a_group_is_one_unit() -> None:
    sums = falling(60, 2)
    groups = np.repeat(np.arange(20), 3)[::-1]
    grouped = certify_class(sums, 0.8, 0.95, groups)
    claims, hits = (one.reshape(20, 20, 3).sum(axis=2) for one in (sums.claims, sums.hits))
    summed = certify_class(Sums(sums.thresholds, claims, hits, sums.truths.reshape(20, 3).sum(axis=1)), 0.8, 0.95)
    for name in ("precision", "low", "high", "recall_low"):
        np.testing.assert_allclose(getattr(grouped, name), getattr(summed, name))
    copies = Sums(sums.thresholds, *(np.repeat(one, 4, axis=1) for one in (sums.claims, sums.hits)), sums.truths)
    copies = Sums(copies.thresholds, copies.claims, copies.hits, np.repeat(sums.truths, 4))
    apart, together = certify_class(copies, 0.8, 0.95), certify_class(copies, 0.8, 0.95, np.repeat(np.arange(60), 4))
    assert (apart.low[:15] > together.low[:15]).all()


def test_more_images_would_show_what_few_do_not() -> None:
    few = certify_class(falling(40, 3), 0.9, 0.95)
    assert few.chosen is None and few.more_images is not None and 1 <= few.more_images < 400
    assert certify_class(falling(40 + 3 * few.more_images, 4), 0.9, 0.95).chosen is not None
    assert certify_class(falling(200, 5, sure=0.6, unsure=0.4), 0.9, 0.95).more_images is None


@pytest.mark.parametrize(
    "condition",
    [
        Condition(10, 20, 0.8, 0.3, 0.5),
        Condition(100, 1, 0.9, 0.3, 0.0),
        Condition(100, 5, 0.95, 0.8, 0.0),
        Condition(100, 20, 0.5, 0.0, 0.5),
    ],
)
def test_intervals_hold_the_truth(condition: Condition) -> None:
    held, width = coverage(condition, 800, np.random.default_rng(0))
    assert held >= 0.92 and 0 < width < 1
    assert held <= 0.98 or condition.images < 100


def test_pixels_taken_for_independent_fail() -> None:
    naive, ours = pixel_coverage(100, 0.9, 0.1, 400, np.random.default_rng(0)).split(" (")[0].split(" / ")
    assert float(naive) < 20 and 92 <= float(ours) <= 98.5


def test_the_promise_holds_after_the_choice() -> None:
    broken, chosen = map(float, choice(100, 5, 0.3, CHOICES["just misses everywhere"], 40, 0).split(" / "))
    assert broken <= 10 and chosen <= 10
    broken, chosen = map(float, choice(100, 5, 0.0, CHOICES["meets everywhere"], 20, 0).split(" / "))
    assert broken == 0 and chosen >= 75
