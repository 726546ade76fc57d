"""Draws and intervals against known numbers; verdicts word by word. How often intervals hold: test_coverage.py."""

import math
from pathlib import Path

import numpy as np
import pytest

from tutelage.stats import (
    FEW_GROUPS,
    Interval,
    Kind,
    Resampled,
    bootstrap,
    convergence_sentence,
    covers,
    draw,
    figure_interval,
    leave_one_out,
    paired_difference,
    recommend,
    seeds_and_images,
    separate_intervals,
    shown,
    simultaneous_differences,
    still_rising,
    t_interval,
    t_quantile,
    verdict,
)


def interval(low: float, high: float, mean: float | None = None) -> Interval:
    return Interval((low + high) / 2 if mean is None else mean, low, high, 1000, "")


# Draws


def test_a_resample_draws_whole_groups_and_keeps_their_number() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = bootstrap(groups, 500, np.random.default_rng(0)).weights
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # Three draws of three: a group is absent with probability (2/3)^3 = 0.296.
    assert (weights[:, 3] == 0).mean() == pytest.approx(0.296, abs=0.06)


def test_resamples_follow_the_generator_alone() -> None:
    one, same, other = (bootstrap(np.arange(50), 10, np.random.default_rng(seed)).weights for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_few_groups_are_left_out_one_by_one() -> None:
    draws = leave_one_out(np.array(["b", "a", "b", "c"]))
    assert draws.kind == "leave-one-out"
    assert draws.weights.tolist() == [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]  # without a, b and c


def test_the_number_of_groups_decides_not_that_of_images() -> None:
    rng = np.random.default_rng(0)
    few, many = (draw(np.arange(200) % count, 7, rng) for count in (FEW_GROUPS - 1, FEW_GROUPS))
    assert few.kind == "leave-one-out" and few.weights.shape == (FEW_GROUPS - 1, 200)
    assert many.kind == "bootstrap" and many.weights.shape == (7, 200)
    assert draw(np.zeros(0, int), 7, rng).weights.shape == (0, 0), "no images"


def test_kept_figures_keep_the_kind_of_their_draws(tmp_path: Path) -> None:
    figures = {"ap": np.array([0.1, np.nan]), "class_ap": np.arange(6.0).reshape(2, 3)}
    Resampled("leave-one-out", figures).save(tmp_path / "x.npz")
    found = Resampled.load(tmp_path / "x.npz")
    assert found.kind == "leave-one-out" and list(found.figures) == ["ap", "class_ap"]
    for name, values in figures.items():
        np.testing.assert_array_equal(found.figures[name], values)


# Intervals


def test_percentiles_leave_undefined_resamples_out() -> None:
    values = np.concatenate([np.arange(101) / 100, [np.nan] * 7])
    found = figure_interval(values, 0.4, "bootstrap", 0.9, "images")
    assert found is not None
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


def test_the_mean_of_equal_groups_left_out_in_turn_has_its_own_t_interval() -> None:
    values = np.random.default_rng(0).uniform(size=12)
    without = leave_one_out(np.arange(12)).weights @ values / 11
    found = figure_interval(without, values.mean(), "leave-one-out", 0.95, "x")
    known = t_interval(values.tolist(), 0.95, "x")
    assert found is not None and found.resamples == 0
    assert found.as_dict() == pytest.approx(known.as_dict())


def test_a_cluster_t_interval_by_hand() -> None:
    # Groups of 1, 2 and 3 images: total 3 of 6. Without them 3/5, 2/4 and 1/3; squares about 1/2 sum to 0.0377778.
    correct, group = np.array([0.0, 1, 0, 1, 1, 0]), np.array([0, 1, 1, 2, 2, 2])
    weights = leave_one_out(group).weights
    found = paired_difference(weights @ correct / weights.sum(axis=1), np.zeros(3), 0.5, 0.0, "leave-one-out", 0.95)
    assert found is not None and found.high - 0.5 == pytest.approx(4.302653 * math.sqrt(2 / 3 * 0.0377778))
    assert found.mean == 0.5 and found.low == pytest.approx(1 - found.high)


def test_a_figure_stays_in_its_bounds_and_a_difference_has_none() -> None:
    without = np.array([0.9, 1.0, 1.0, 0.8])
    figure = figure_interval(without, 0.95, "leave-one-out", 0.95)
    difference = paired_difference(without, 0 * without, 0.95, 0.0, "leave-one-out", 0.95)
    assert figure is not None and difference is not None
    assert figure.high == 1.0 < difference.high and figure.low == difference.low


@pytest.mark.parametrize("kind", ["bootstrap", "leave-one-out"])
def test_a_figure_without_defined_draws_has_no_interval(kind: Kind) -> None:
    undefined = np.full(3, np.nan)
    assert figure_interval(undefined, 0.5, kind, 0.95) is None
    assert paired_difference(undefined, undefined, 0.5, 0.4, kind, 0.95) is None


def test_one_group_has_no_interval_nor_has_a_figure_that_is_undefined_without_a_group() -> None:
    one = leave_one_out(np.zeros(9, int)).weights
    assert one.tolist() == [[0] * 9], "nothing is left"
    assert figure_interval(np.array([0.5]), 0.5, "leave-one-out", 0.95) is None
    assert figure_interval(np.array([0.5, np.nan, 0.6]), 0.5, "leave-one-out", 0.95) is None
    assert figure_interval(np.array([0.5, np.nan, 0.6]), 0.5, "bootstrap", 0.95) is not None


def test_a_pair_is_compared_draw_by_draw() -> None:
    common = np.random.default_rng(0).normal(0, 10, 1000)
    found = paired_difference(common + 1, common, 5.0, 4.0, "bootstrap", 0.95)
    assert found is not None and (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


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


@pytest.mark.parametrize("kind", ["bootstrap", "leave-one-out"])
def test_classes_too_rare_or_undefined_get_no_interval(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(1, 0.01, (20, 3)), rng.normal(0, 0.01, (20, 3))
    found = simultaneous_differences(one, other, [1, 1, None], [0, 0, 0], np.array([9, 4, 9]), kind, 0.95, "x")
    assert found[1:] == [None, None]
    assert found[0] is not None and shown(found[0]) and found[0].covers == "x"
    assert simultaneous_differences(one, other, [None] * 3, [None] * 3, np.full(3, 9), kind, 0.95) == [None] * 3


def test_separate_intervals_are_the_percentiles_of_each_figure() -> None:
    rng = np.random.default_rng(4)
    values = rng.uniform(0.4, 0.6, (200, 5))
    values[:60, 1], values[:, 4] = np.nan, np.nan
    found = separate_intervals(values, [0.5, 0.4, 0.5, None, 0.5], np.array([9, 5, 4, 9, 9]), "bootstrap", 0.9)
    assert found == [figure_interval(values[:, k], (0.5, 0.4)[k], "bootstrap", 0.9) for k in (0, 1)] + [None] * 3


def test_a_rare_class_has_the_degrees_of_freedom_of_the_groups_with_truth() -> None:
    values = np.random.default_rng(5).uniform(0.49, 0.51, 16)
    both = separate_intervals(np.stack([values] * 2, axis=1), [0.5, 0.5], np.array([16, 6]), "leave-one-out", 0.95)
    assert (
        both[0] is not None and both[1] is not None and both[0] == figure_interval(values, 0.5, "leave-one-out", 0.95)
    )
    assert both[1].half_width / both[0].half_width == pytest.approx(2.5706 / 2.1314, abs=1e-4)  # t of 5, of 15


def test_few_groups_share_the_error_among_the_classes() -> None:
    values, zero = np.random.default_rng(6).normal(0.3, 0.01, (16, 4)), np.zeros((16, 4))
    found = simultaneous_differences(
        values, zero, [0.3, 0.3, None, 0.3], [0.0] * 4, np.array([16, 16, 16, 6]), "leave-one-out", 0.94
    )
    assert found[2] is None and all(one is None or one.resamples == 0 for one in found)
    for label, freedom in ((0, 15), (1, 15), (3, 5)):  # three classes: 0.98 each
        error = math.sqrt(15 / 16 * ((values[:, label] - 0.3) ** 2).sum())
        one = found[label]
        assert one is not None and one.half_width == pytest.approx(t_quantile(0.98, freedom) * error)


# Words


def test_one_training_each_never_speaks_of_self_training_helping() -> None:
    sentence = verdict(interval(0.004, 0.048), metric="AP", num_seeds=1)
    assert sentence.startswith("These two trained models differ by +2.6 AP")
    assert "interval +0.4 to +4.8" in sentence and "helped" not in sentence


def test_an_interval_that_holds_zero_is_not_shown() -> None:
    sentence = verdict(interval(-0.012, 0.021, mean=0.004), metric="AP50", num_seeds=1)
    assert sentence.startswith("Not shown: these two trained models differ by +0.4 AP50")
    assert verdict(interval(-0.012, 0.021), metric="AP50", num_seeds=3).startswith("Not shown: student minus control")


def test_several_seeds_may_speak_of_the_method() -> None:
    sentence = verdict(interval(0.01, 0.03), metric="AP", num_seeds=3)
    assert sentence == (
        "Self-training helped: student minus control is +2.0 AP, the mean of 3 seeds (interval +1.0 to +3.0)."
    )
    assert verdict(interval(-0.03, -0.01), metric="AP", num_seeds=2).startswith("Self-training hurt: ")


def test_a_difference_without_interval_is_not_measured() -> None:
    sentence = verdict(None, metric="AP75", num_seeds=1)
    assert sentence.startswith("Not measured: AP75 of student or control is undefined on the test images, or")


def test_metrics_are_called_as_the_caller_shows_them() -> None:
    assert "differ by +2.0 mIoU (" in verdict(interval(0.01, 0.03), metric="mIoU", num_seeds=1)


def test_an_end_near_zero_does_not_read_as_zero() -> None:
    assert "interval +0.02 to +4.0" in verdict(interval(0.0002, 0.04), metric="AP", num_seeds=1)


def test_what_an_interval_covers_is_said() -> None:
    assert covers(400, 400, "bootstrap") == (
        "the choice of the 400 test images only, not the training: two trainings that differ in nothing but the seed "
        "can differ by more"
    )
    assert covers(400, 400, "bootstrap", 3) == (
        "the choice of the 400 test images, and the 3 seeds that control and student were trained with; their teacher "
        "was trained once"
    )
    assert "belong together in 60 groups" in covers(400, 60, "bootstrap")


def test_few_groups_are_said_to_have_a_t_interval() -> None:
    sentence = covers(64, 16, "leave-one-out", 3)
    assert "64 test images, which belong together in 16 groups, and the 3 seeds" in sentence
    assert sentence.endswith("trained once; it is a cluster t-interval over 16 groups, too few for a bootstrap")
    assert covers(16, 16, "leave-one-out").endswith("; it is a t-interval over 16 images, too few for a bootstrap")


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
