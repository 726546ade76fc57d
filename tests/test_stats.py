"""Intervals against known numbers and by simulation; verdicts word by word."""

import math

import numpy as np
import pytest

from tutelage.stats import (
    Interval,
    convergence_sentence,
    covers,
    paired_difference,
    percentile_interval,
    recommend,
    resample_weights,
    seeds_and_images,
    separate_intervals,
    shown,
    simultaneous_differences,
    still_rising,
    t_interval,
    t_quantile,
    verdict,
)
from tutelage.tasks.metrics import bootstrap_metrics, match_detections
from tutelage.types import Boxes, InputError


def interval(low: float, high: float, mean: float | None = None) -> Interval:
    return Interval((low + high) / 2 if mean is None else mean, low, high, 1000, "")


# Resamples


def test_a_resample_draws_whole_groups_and_keeps_their_number() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = resample_weights(groups, 500, np.random.default_rng(0))
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # Three draws of three: a group is absent with probability (2/3)^3 = 0.296.
    assert (weights[:, 3] == 0).mean() == pytest.approx(0.296, abs=0.06)


def test_resamples_follow_the_generator_alone() -> None:
    one, same, other = (resample_weights(np.arange(50), 10, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


# Intervals


def test_percentiles_leave_undefined_resamples_out() -> None:
    values = np.concatenate([np.arange(101) / 100, [np.nan] * 7])
    found = percentile_interval(values, 0.4, 0.9, "images")
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.05, 0.95))
    assert found.resamples == 101 and found.covers == "images"
    assert found.as_dict() == {
        "mean": 0.4,
        "low": found.low,
        "high": found.high,
        "resamples": 101,
        "covers": "images",
        "shown": True,
    }


def test_an_undefined_figure_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"undefined in all 3 resamples.*Raise eval\.resamples"):
        percentile_interval(np.full(3, np.nan), 0.5, 0.95)


def test_a_pair_is_compared_resample_by_resample() -> None:
    common = np.random.default_rng(0).normal(0, 10, 1000)
    found = paired_difference(common + 1, common, 5.0, 4.0, 0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.2, False), (0.0, 0.2, False)]
)
def test_shown_means_that_zero_lies_outside(low: float, high: float, expected: bool) -> None:
    assert shown(interval(low, high)) is expected


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),  # tables of Student's distribution
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 3, 3.1824),
        (0.95, 4, 2.7764),
        (0.99, 7, 3.4995),
        (0.90, 10, 1.8125),
        (0.95, 30, 2.0423),
        (0.95, 1000, 1.9623),
    ],
)
def test_t_quantiles_are_those_of_the_tables(confidence: float, freedom: int, expected: float) -> None:
    assert t_quantile(confidence, freedom) == pytest.approx(expected, abs=1e-4)


def test_t_interval_by_hand() -> None:
    found = t_interval([1.0, 2.0, 3.0], 0.95)  # standard error 1 / sqrt(3), quantile 4.3027
    assert (found.mean, found.high) == pytest.approx((2.0, 2.0 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_seeds_and_images_add_in_quadrature_end_by_end() -> None:
    found = seeds_and_images(interval(-3, 3), interval(-4, 8, mean=0.0), "both")
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, -5.0, math.hypot(3, 8)))
    assert found.covers == "both"


# Coverage by simulation: how often an interval of 95 % holds the truth.


def boxes_of_images(rng: np.random.Generator, num_images: int, found: float) -> tuple[list[Boxes], list[list[Boxes]]]:
    """Truth, and detections of two models that find boxes with chance `found` and 0.6; images are hard or easy."""
    place = np.arange(4) * 20.0
    xyxy = np.stack([place, place * 0, place + 10, place * 0 + 10], axis=1)
    truth, models = [], ([], [])
    for _ in range(num_images):
        count = int(rng.integers(1, 4))
        truth.append(Boxes.build(xyxy[:count], np.zeros(count)))
        ease = rng.uniform(-0.3, 0.3)
        for model, chance in zip(models, (found, 0.6), strict=True):
            hit = rng.uniform(size=count) < chance + ease
            where = np.vstack([xyxy[:count][hit], xyxy[3:]])  # the last is a false positive
            scores = np.append(rng.uniform(0.3, 1, hit.sum()), rng.uniform(0, 0.9))
            model.append(Boxes.build(where, np.zeros(len(where)), scores))
    return truth, list(models)


def ap_difference(truth: list[Boxes], models: list[list[Boxes]], weights: np.ndarray) -> list[np.ndarray]:
    return [bootstrap_metrics(match_detections(truth, model, 1), weights)["ap"] for model in models]


def test_the_paired_bootstrap_of_ap_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    truth, models = boxes_of_images(rng, 20_000, 0.7)
    one, other = ap_difference(truth, models, np.ones((1, len(truth)), int))
    true_difference = float(one[0] - other[0])
    trials, held = 160, 0
    for _ in range(trials):
        truth, models = boxes_of_images(rng, 80, 0.7)
        weights = resample_weights(np.arange(80), 200, rng)
        weights[0] = 1  # the measured figures
        one, other = ap_difference(truth, models, weights)
        found = paired_difference(one[1:], other[1:], one[0], other[0], 0.95)
        held += found.low <= true_difference <= found.high
    assert true_difference > 0.03
    assert 0.905 <= held / trials <= 0.99


def test_groups_are_resampled_whole_or_the_interval_is_too_narrow() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 10)
    held = {"groups": 0, "images": 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=40), 10) + 0.3 * rng.normal(size=400)
        for name, ids in (("groups", groups), ("images", np.arange(400))):
            means = resample_weights(ids, 200, rng) @ values / 400
            found = percentile_interval(means, float(values.mean()), 0.95)
            held[name] += found.low <= 0 <= found.high
    assert held["groups"] / 200 >= 0.9
    assert held["images"] / 200 <= 0.6


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_and_images_together_cover_what_neither_covers_alone(num_seeds: int) -> None:
    rng = np.random.default_rng(num_seeds)
    held, images_alone, trials = 0, 0, 600
    for _ in range(trials):
        common = rng.normal(0, 1)  # what the choice of test images does to every seed alike
        seeds = t_interval(common + rng.normal(0, 1, num_seeds), 0.95)
        images = interval(seeds.mean - 1.96, seeds.mean + 1.96)
        both = seeds_and_images(seeds, images)
        held += both.low <= 0 <= both.high
        images_alone += images.low <= 0 <= images.high
    assert held / trials >= 0.94
    assert images_alone / trials <= 0.925


def test_simultaneous_intervals_rarely_show_what_is_not_there() -> None:
    rng = np.random.default_rng(2)
    false_alarms, alone, trials, num_classes = 0, 0, 150, 20
    for _ in range(trials):
        values = rng.normal(size=(60, num_classes))  # a difference of zero in every class
        means = resample_weights(np.arange(60), 300, rng) @ values / 60
        points = values.mean(axis=0)
        found = simultaneous_differences(means, 0 * means, points, 0 * points, np.full(num_classes, 60), 0.95)
        false_alarms += any(one is not None and shown(one) for one in found)
        alone += any(shown(percentile_interval(means[:, k], points[k], 0.95)) for k in range(num_classes))
    assert false_alarms / trials <= 0.15
    assert alone / trials >= 0.5


def test_classes_too_rare_or_undefined_get_no_interval() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(1, 0.1, (100, 3)), rng.normal(0, 0.1, (100, 3))
    found = simultaneous_differences(one, other, [1.0, 1.0, None], [0.0, 0.0, 0.0], np.array([9, 4, 9]), 0.95, "x")
    assert found[1:] == [None, None]
    assert found[0] is not None and shown(found[0]) and found[0].covers == "x"
    assert simultaneous_differences(one, other, [None] * 3, [None] * 3, np.full(3, 9), 0.95) == [None] * 3


def test_separate_intervals_are_the_percentiles_of_each_figure() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0.5, 0.1, (200, 5))
    values[:60, 1], values[:, 4] = np.nan, np.nan
    found = separate_intervals(values, [0.5, 0.4, 0.5, None, 0.5], np.array([9, 5, 4, 9, 9]), 0.9)
    assert found == [percentile_interval(values[:, k], (0.5, 0.4)[k], 0.9) for k in (0, 1)] + [None] * 3


# Words


def test_one_training_each_never_speaks_of_self_training_helping() -> None:
    sentence = verdict(interval(0.004, 0.048), metric="ap", num_seeds=1)
    assert sentence.startswith("These two trained models differ by +2.6 AP")
    assert "interval +0.4 to +4.8" in sentence and "helped" not in sentence


def test_an_interval_that_holds_zero_is_not_shown() -> None:
    sentence = verdict(interval(-0.012, 0.021, mean=0.004), metric="ap50", num_seeds=1)
    assert sentence.startswith("Not shown: these two trained models differ by +0.4 AP50")
    assert verdict(interval(-0.012, 0.021), metric="ap50", num_seeds=3).startswith("Not shown: student minus control")


def test_several_seeds_may_speak_of_the_method() -> None:
    sentence = verdict(interval(0.01, 0.03), metric="ap", num_seeds=3)
    assert sentence == (
        "Self-training helped: student minus control is +2.0 AP, the mean of 3 seeds (interval +1.0 to +3.0)."
    )
    assert verdict(interval(-0.03, -0.01), metric="ap", num_seeds=2).startswith("Self-training hurt: ")


def test_an_undefined_difference_is_not_measured() -> None:
    assert verdict(None, metric="ap75", num_seeds=1).startswith("Not measured: AP75")


def test_an_end_near_zero_does_not_read_as_zero() -> None:
    assert "interval +0.02 to +4.0" in verdict(interval(0.0002, 0.04), metric="ap", num_seeds=1)


def test_what_an_interval_covers_is_said() -> None:
    assert covers(400, 400) == (
        "the choice of the 400 test images only, not the training: two trainings that differ in nothing but the seed "
        "can differ by more"
    )
    assert "in 12 groups" in covers(400, 12) and "too narrow" in covers(400, 12)
    assert "too narrow" not in covers(400, 40)
    assert covers(400, 400, 3) == (
        "the choice of the 400 test images, and the 3 seeds that control and student were trained with; their teacher "
        "was trained once"
    )


UP, DOWN, UNCLEAR = interval(0.01, 0.02), interval(-0.02, -0.01), interval(-0.01, 0.02)


@pytest.mark.parametrize(
    ("student_control", "student_teacher", "control_teacher", "expected"),
    [
        (UP, UP, UP, "student"),
        (UP, UP, DOWN, "student"),
        (UP, UNCLEAR, UP, "control"),
        (UNCLEAR, UP, UP, "control"),
        (UNCLEAR, UP, UNCLEAR, "teacher"),
        (UP, DOWN, DOWN, "teacher"),
        (None, None, None, "teacher"),
    ],
)
def test_the_recommendation_needs_both_intervals(
    student_control: Interval | None,
    student_teacher: Interval | None,
    control_teacher: Interval | None,
    expected: str,
) -> None:
    differences = {
        "student_minus_control": student_control,
        "student_minus_teacher": student_teacher,
        "control_minus_teacher": control_teacher,
    }
    found = recommend(differences, "selection split")
    assert found.model == expected
    assert "selection split" in found.reason and "optimistic" not in found.reason
    assert "optimistic" in recommend(differences, "test images").reason


def test_where_nothing_was_measured_the_teacher_is_recommended_without_a_claim() -> None:
    found = recommend({}, "nothing")
    assert found.model == "teacher" and found.reason.startswith("nothing was measured")
    assert "decided on" not in found.reason and "optimistic" not in found.reason


def test_a_metric_that_rises_late_has_not_converged() -> None:
    steps, reach = [100, 200, 300, 400, 500], interval(0.28, 0.32)  # half width 0.02
    assert still_rising(steps, [0.1, 0.15, 0.2, 0.25, 0.30], reach) is True
    assert still_rising(steps, [0.1, 0.2, 0.28, 0.29, 0.30], reach) is False
    assert still_rising(steps, [0.1, 0.2, 0.35, 0.34, 0.30], reach) is False
    assert "had not converged" in convergence_sentence(steps, [0.1, 0.15, 0.2, 0.25, 0.30], reach)
    assert "+1.0 over the last fifth" in convergence_sentence(steps, [0.1, 0.2, 0.28, 0.29, 0.30], reach)


def test_the_last_fifth_is_interpolated_between_measurements() -> None:
    # At 80 % of 300 the line from 0.1 (at 100) to 0.5 (at 300) is at 0.38.
    assert still_rising([100, 300], [0.1, 0.5], interval(0.389, 0.611)) is True  # half width 0.111 < 0.12
    assert still_rising([100, 300], [0.1, 0.5], interval(0.37, 0.63)) is False  # half width 0.13


@pytest.mark.parametrize(("steps", "values"), [([], []), ([100], [0.3]), ([90, 100], [0.2, 0.3])])
def test_convergence_is_unknown_without_early_measurements(steps: list[float], values: list[float]) -> None:
    assert still_rising(steps, values, UP) is None
    assert "not measured" in convergence_sentence(steps, values, UP)
