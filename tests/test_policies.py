"""What the policies draw: tables, frequencies, ranges, and places."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from timm.data.auto_augment import auto_augment_policy_v0

from tutelage.augment.autoaugment import IMAGENET_V0, POLICIES
from tutelage.augment.ops import AMOUNTS
from tutelage.augment.plan import ColorOperation, Hole, Plan
from tutelage.augment.policies import (
    RAND_AUGMENT_BOXES,
    RAND_AUGMENT_CLASSIFICATION,
    classification_evaluation_plan,
    classification_plan,
    draw_plan,
    evaluation_plan,
)
from tutelage.config import AugmentConfig, JointConfig, PretrainConfig
from tutelage.ops import affine
from tutelage.types import IGNORE_REGION, Boxes

SIZE, CANVAS = (480, 640), (640, 640)
BOXES = Boxes.build([[100, 100, 200, 180], [300, 50, 620, 460]], [0, 1])


def plans(count: int, size: tuple[int, int] = SIZE, boxes: Boxes | None = BOXES, **options: Any) -> list[Plan]:
    config = AugmentConfig(**options)
    return [draw_plan(config, np.random.default_rng((7, k)), size, CANVAS, boxes) for k in range(count)]


def names(plan: Plan) -> list[str]:
    return [operation.name for operation in plan.canvas_ops if isinstance(operation, ColorOperation)]


# Sub-policies, operations, and sums of probabilities and levels, added up by hand from the published tables.
@pytest.mark.parametrize(
    ("policy", "count", "operations", "probability", "level"),
    [("v0", 5, 10, 6.0, 56), ("v1", 20, 40, 21.8, 250), ("v2", 15, 44, 21.8, 272), ("v3", 15, 30, 18.6, 198)],
)
def test_tables(policy: str, count: int, operations: int, probability: float, level: int) -> None:
    table = POLICIES[policy]
    entries = [entry for sub_policy in table for entry in sub_policy]
    assert (len(table), len(entries)) == (count, operations)
    assert sum(chance for _, chance, _ in entries) == pytest.approx(probability)
    assert sum(height for *_, height in entries) == level
    assert all(name.removesuffix("_Only_BBoxes").removesuffix("_BBox") in AMOUNTS for name, *_ in entries)


def test_v1_begins_with_v0() -> None:
    assert POLICIES["v1"][:5] == POLICIES["v0"]


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_come_as_often_as_the_table_says(policy: str) -> None:
    drawn = 2000
    found = Counter(name for plan in plans(drawn, level="s2", policy=policy) for name in names(plan))
    table = POLICIES[policy]
    for name in ("Color", "Equalize", "AutoContrast", "Brightness", "Sharpness", "SolarizeAdd", "Posterize"):
        chances = [chance for sub_policy in table for entry, chance, _ in sub_policy if entry == name]
        expected = sum(chances) / len(table)
        spread = (sum(chance / len(table) for chance in chances) / drawn) ** 0.5
        assert found[name] / drawn == pytest.approx(expected, abs=5 * spread + 1e-9), name


def test_a_level_that_no_probability_reaches_is_never_drawn() -> None:
    # v0 holds "Sharpness 0.0": an operation with probability 0
    assert all("Sharpness" not in names(plan) for plan in plans(300, level="s2", policy="v0"))


def test_inside_boxes_the_probability_is_a_third_and_each_box_has_its_own_coin() -> None:
    drawn = plans(6000, level="s2", policy="v0")
    levels = {amount: [plan for plan in drawn if _moves_inside(plan, amount)] for amount in (24.0, 72.0)}
    each = {amount: sum(len(plan.source_ops) for plan in chosen) for amount, chosen in levels.items()}
    # one of five sub-policies, two boxes: 0.2 / 3 at level 2 (24 px), 0.6 / 3 at level 6 (72 px)
    assert each[24.0] / 6000 == pytest.approx(2 / 5 * 0.2 / 3, abs=0.009)
    assert each[72.0] / 6000 == pytest.approx(2 / 5 * 0.6 / 3, abs=0.014)
    both = [plan for plan in levels[72.0] if len(plan.source_ops) == 2]
    assert 0 < len(both) < len(levels[72.0]) / 2
    assert all(len({operation.amount for operation in plan.source_ops}) == 1 for plan in both)  # one sign an image
    assert len({plan.source_ops[0].box for plan in both}) == 2  # boxes come in random order
    assert {np.sign(plan.source_ops[0].amount) for plan in levels[72.0]} == {-1, 1}


def _moves_inside(plan: Plan, amount: float) -> bool:
    return any(operation.name == "TranslateY" and abs(operation.amount) == amount for operation in plan.source_ops)


def test_ignored_regions_are_left_alone_inside_and_missing_boxes_are_no_error() -> None:
    crowd = Boxes.build([[10, 10, 50, 50]], [0], ignore=[IGNORE_REGION])
    for boxes in (crowd, Boxes.empty(), None):
        drawn = plans(100, level="s2", policy="v1", boxes=boxes) + plans(100, level="s2", policy="v3", boxes=boxes)
        assert all(not plan.source_ops for plan in drawn)


def test_rand_augment_draws_its_ten_operations_equally_often() -> None:
    count = 3000
    drawn = plans(count, level="s4", flip=0.0, jitter=(1.0, 1.0))
    colors = Counter(name for plan in drawn for name in names(plan))
    holes = sum(isinstance(operation, Hole) for plan in drawn for operation in plan.canvas_ops)
    assert set(colors) == {"Equalize", "Solarize", "Color", "SolarizeAdd"}
    for found in (*colors.values(), holes):
        assert found / (2 * count) == pytest.approx(0.1, abs=0.02)
    still = sum(np.array_equal(plan.matrix, evaluation_plan(SIZE, CANVAS).matrix) for plan in drawn)
    assert still / count == pytest.approx(0.25, abs=0.04)  # five of ten move nothing, in two layers
    assert len(RAND_AUGMENT_BOXES) == 10 and len(RAND_AUGMENT_CLASSIFICATION) == 16


def test_rand_augment_takes_layers_and_magnitude() -> None:
    assert all(not plan.canvas_ops for plan in plans(20, level="s4", layers=0))
    drawn = plans(200, level="s4", layers=1, magnitude=15, flip=0.0, jitter=(1.0, 1.0))
    amounts = {
        operation.name: operation.amount
        for plan in drawn
        for operation in plan.canvas_ops
        if isinstance(operation, ColorOperation)
    }
    assert amounts["SolarizeAdd"] == 165 and amounts["Color"] == pytest.approx(2.8)
    turned = {round(np.degrees(np.arctan2(plan.matrix[0, 1], plan.matrix[0, 0]))) for plan in drawn}
    assert {45, -45} <= turned


@pytest.mark.parametrize(("level", "low", "high"), [("s1", 0.8, 1.2), ("s2", 0.8, 1.2), ("s3", 0.5, 2.0)])
def test_jitter_covers_its_range(level: str, low: float, high: float) -> None:
    drawn = [plan for plan in plans(600, size=(640, 640), level=level, policy="v0", boxes=None)]
    scales = np.array([abs(np.linalg.det(plan.matrix)) ** 0.5 for plan in drawn])  # turns and shears keep areas
    assert low - 0.001 <= scales.min() < low + 0.03 * high
    assert high * 0.97 < scales.max() <= high + 0.001
    assert np.mean(scales) == pytest.approx((low + high) / 2, abs=0.06 * high)


def test_s4_jitters_from_half_to_double() -> None:
    scales = [abs(np.linalg.det(plan.matrix)) ** 0.5 for plan in plans(400, size=(640, 640), level="s4", layers=0)]
    assert 0.5 <= min(scales) < 0.53 and 1.95 < max(scales) <= 2.0


def test_crop_rule_by_hand() -> None:
    # 480 x 640 at factor 1.5: the virtual target is 960 x 960, the scale 1.5, the resized image 720 x 960.
    drawn = plans(300, level="s1", jitter=(1.5, 1.5), flip=0.0)
    matrices = np.stack([plan.matrix for plan in drawn])
    np.testing.assert_allclose(matrices[:, [0, 1], [0, 1]], 1.5)
    left, top = -matrices[:, 0, 2], -matrices[:, 1, 2]
    assert {plan.valid for plan in drawn} == {(640, 640)}
    assert 0 <= left.min() < 12 and 308 < left.max() < 320 and (left == left.astype(int)).all()
    assert 0 <= top.min() < 4 and 76 < top.max() < 80 and len(set(top)) > 60


def test_small_factors_leave_padding_and_sizes_are_rounded() -> None:
    (plan,) = plans(1, size=(333, 500), level="s1", jitter=(0.5, 0.5), flip=0.0)
    assert plan.valid == (213, 320)  # 333 x 0.64 = 213.12
    np.testing.assert_allclose(plan.matrix, np.diag([320 / 500, 213 / 333, 1]))


def test_half_of_the_images_are_mirrored() -> None:
    mirrored = [np.linalg.det(plan.matrix) < 0 for plan in plans(600, level="s1")]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.08)
    assert not any(np.linalg.det(plan.matrix) < 0 for plan in plans(50, level="s1", flip=0.0))


def test_no_augmentation_is_evaluation() -> None:
    expected = evaluation_plan(SIZE, CANVAS)
    for plan in plans(10, level="none"):
        np.testing.assert_array_equal(plan.matrix, expected.matrix)
        assert plan.valid == expected.valid == (480, 640) and not plan.canvas_ops


@pytest.mark.parametrize(
    ("size", "canvas", "valid"),
    [((480, 640), (128, 256), (128, 171)), ((1, 3000), (640, 640), (1, 640)), ((30, 30), (64, 96), (64, 64))],
)
def test_evaluation_fits_the_image_to_the_canvas(
    size: tuple[int, int], canvas: tuple[int, int], valid: tuple[int, int]
) -> None:
    plan = evaluation_plan(size, canvas)
    assert (plan.valid, plan.canvas) == (valid, canvas)
    corner = affine.transform_points(plan.matrix, np.array([[size[1], size[0]]]))
    np.testing.assert_allclose(corner, [valid[::-1]])


def test_pixel_distances_are_those_of_the_original_times_pixel_scale() -> None:
    shifts: dict[tuple[int, float], set[float]] = {}
    for size, scale in [((480, 640), 1.0), ((960, 1280), 1.0), ((480, 640), 0.2)]:
        drawn = plans(80, size=size, level="s4", layers=1, flip=0.0, jitter=(1.0, 1.0), pixel_scale=scale)
        resize = evaluation_plan(size, CANVAS).matrix
        moved = [affine.inverse(resize) @ plan.matrix for plan in drawn]
        only_moved = [matrix for matrix in moved if np.allclose(matrix[:2, :2], np.eye(2))]
        shifts[size[0], scale] = {round(abs(float(value)), 3) for matrix in only_moved for value in matrix[:2, 2]}
    assert shifts == {(480, 1.0): {0, 250}, (960, 1.0): {0, 250}, (480, 0.2): {0, 50}}


def test_cutout_is_a_square_of_the_original_moved_by_what_follows() -> None:
    for plan in plans(400, level="s4", flip=0.0, pixel_scale=0.3):
        for hole in (operation for operation in plan.canvas_ops if isinstance(operation, Hole)):
            sides = np.linalg.norm(np.diff(hole.corners, axis=0, append=hole.corners[:1]), axis=1)
            diagonals = np.stack([hole.corners[2] - hole.corners[0], hole.corners[3] - hole.corners[1]])
            area = 0.5 * abs(np.linalg.det(diagonals))
            assert area <= 60**2 * abs(np.linalg.det(plan.matrix)) * (1 + 1e-9)
            assert sides.min() > 0


def test_cutout_in_a_box_follows_the_box() -> None:
    drawn = plans(1500, level="s2", policy="v3", flip=0.0, jitter=(1.0, 1.0))
    holes = [
        plan.canvas_ops[0].corners
        for plan in drawn
        if len(plan.canvas_ops) == 2 and isinstance(plan.canvas_ops[0], Hole) and "Sharpness" in names(plan)
    ]  # the sub-policy "BBox_Cutout 0.2 L10; Sharpness 1.0 L8": three quarters of a box's sides
    assert len(holes) > 5
    for corners in holes:
        center = (corners[0] + corners[2]) / 2
        width, height = corners[2] - corners[0]
        sides = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in BOXES.xyxy.tolist()]
        assert any(width <= 0.75 * w + 1e-6 and height <= 0.75 * h + 1e-6 for w, h in sides)
        assert (center >= 50).all()


@pytest.mark.parametrize("level", ["s1", "s2", "s3", "s4"])
def test_the_same_generator_draws_the_same_plan_and_another_draws_another(level: str) -> None:
    first, again = (plans(40, level=level, policy="v1") for _ in range(2))
    assert all(_same(one, other) for one, other in zip(first, again, strict=True))
    assert not any(_same(one, other) for one, other in pairwise(first))


def _same(one: Plan, other: Plan) -> bool:
    return np.array_equal(one.matrix, other.matrix) and str(one) == str(other)


def test_a_reduced_decode_is_safe_down_to_the_largest_enlargement() -> None:
    assert evaluation_plan((1000, 2000), (640, 640)).min_scale == pytest.approx(0.32)
    assert evaluation_plan((100, 100), (640, 640)).min_scale == 1.0
    sheared = Plan(affine.shear(0.3, 0) @ affine.scaling(0.4, 0.4), CANVAS, CANVAS)
    assert 0.4 < sheared.min_scale < 0.4 * 1.3


def test_classification_crops_lie_in_the_image_with_area_and_aspect_in_range() -> None:
    config = PretrainConfig(size=224, layers=0)
    areas, aspects = [], []
    for seed in range(500):
        plan = classification_plan(config, np.random.default_rng(seed), SIZE)
        region = affine.transform_points(affine.inverse(plan.matrix), np.array([[0.0, 0], [224, 224]]))
        (x1, y1), (x2, y2) = region.min(0), region.max(0)
        assert min(x1, y1) >= -1e-9 and x2 <= 640 + 1e-9 and y2 <= 480 + 1e-9
        areas.append((x2 - x1) * (y2 - y1) / (480 * 640))
        aspects.append((x2 - x1) / (y2 - y1))
    assert 0.075 < min(areas) < 0.12 and 0.9 < max(areas) <= 1.0
    assert 0.74 < min(aspects) < 0.78 and 1.28 < max(aspects) < 1.35


def test_classification_falls_back_to_the_center_and_evaluates_there() -> None:
    config = PretrainConfig(size=64, layers=0)
    thin = (20, 2000)  # no region of 8 % of it has an aspect of at most 4/3
    center = classification_evaluation_plan(config, thin)
    region = affine.transform_points(affine.inverse(center.matrix), np.array([[0.0, 0], [64, 64]]))
    np.testing.assert_allclose(region[1] - region[0], [18, 18])  # 0.875 x 20 = 17.5, rounded
    np.testing.assert_allclose(region.mean(0), [1000, 10], atol=0.6)
    drawn = [classification_plan(config, np.random.default_rng(seed), thin).matrix for seed in range(6)]
    flipped = affine.horizontal_flip(64) @ center.matrix
    assert all(np.allclose(matrix, center.matrix) or np.allclose(matrix, flipped) for matrix in drawn)


@pytest.mark.parametrize(("size", "pixels"), [(600, 270), (224, 270), (112, 135)])
def test_distances_of_classified_images_are_fixed_from_224_pixels_up(size: int, pixels: float) -> None:
    config = PretrainConfig(size=size, magnitude=27)
    plans = [classification_plan(config, np.random.default_rng(seed), (size, size)) for seed in range(200)]
    shifts = {abs(amount) for plan in plans for name, amount in plan.drawn if name in ("TranslateX", "TranslateY")}
    assert list(shifts) == [pytest.approx(pixels)]


def test_classification_draws_from_its_sixteen_operations() -> None:
    config = PretrainConfig(size=112, layers=2, magnitude=9)
    drawn = [classification_plan(config, np.random.default_rng(seed), SIZE) for seed in range(800)]
    found = Counter(name for plan in drawn for name in names(plan))
    assert set(found) == set(RAND_AUGMENT_CLASSIFICATION) & set(found) and len(found) == 10
    assert all(count / 1600 == pytest.approx(1 / 16, abs=0.025) for count in found.values())
    holes = [op.corners for plan in drawn for op in plan.canvas_ops if isinstance(op, Hole)]
    widest = max(float(np.linalg.norm(corners[0] - corners[2])) for corners in holes)
    # int(40 x 112 / 224 x 0.9) = 18 is half the side on a canvas of 112; a shear or turn after it stretches a diagonal
    assert 36 * 2**0.5 * 0.9 <= widest <= 36 * 2**0.5 * 1.35


def test_the_imagenet_policy_is_the_published_one() -> None:
    """timm copied the table of the TPU code too; its one translation is told in parts of the image instead."""
    theirs = auto_augment_policy_v0({})  # type: ignore[no-untyped-call]
    ours = [[(name.replace("TranslateY", "TranslateYRel"), *rest) for name, *rest in pair] for pair in IMAGENET_V0]
    assert ours == [[(step.name, step.prob, step.magnitude) for step in pair] for pair in theirs]
    assert len(IMAGENET_V0) == 25 and IMAGENET_V0[15] == (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9))


def test_imagenet_operations_come_as_often_as_the_table_says() -> None:
    config, count = PretrainConfig(size=224, policy="autoaugment"), 4000
    drawn = [classification_plan(config, np.random.default_rng(seed), SIZE).drawn for seed in range(count)]
    found = Counter(name for plan in drawn for name, _ in plan)
    for name in {name for sub_policy in IMAGENET_V0 for name, *_ in sub_policy}:
        expected = sum(chance for sub_policy in IMAGENET_V0 for entry, chance, _ in sub_policy if entry == name) / 25
        assert found[name] / count == pytest.approx(expected, abs=4.5 * (expected / count) ** 0.5), name
    amounts = {name: {abs(amount) for plan in drawn for entry, amount in plan if entry == name} for name in found}
    # level 9 of 250 pixels, 3 and 7 of 110 gray values, 0, 2, 5, 7, 8 and 9 of 30 degrees
    assert amounts["TranslateY"] == {225.0} and amounts["SolarizeAdd"] == {33.0, 77.0}
    assert sorted(amounts["Rotate"]) == pytest.approx([0, 6, 15, 21, 24, 27])
    assert amounts["Solarize"] == {51.0, 76.0, 102.0, 204.0, 256.0}


def test_classification_without_a_policy_crops_and_flips_alone() -> None:
    for config in (PretrainConfig(size=64, policy="none"), JointConfig(size=64)):
        drawn = [classification_plan(config, np.random.default_rng(seed), SIZE) for seed in range(40)]
        assert all(plan.canvas_ops == () and plan.drawn == () for plan in drawn)
        assert {bool(plan.matrix[0, 0] < 0) for plan in drawn} == {True, False}
        assert all(plan.matrix[0, 1] == plan.matrix[1, 0] == 0 for plan in drawn)


def test_the_crop_and_the_draws_of_rand_augment_stay_as_they_were() -> None:
    """What is published of a seed can be had again: crop, flip and operations are drawn in this order."""
    plan = classification_plan(PretrainConfig(), np.random.default_rng(0), (300, 400))
    assert dict(plan.drawn) == pytest.approx({"Brightness": 1.72, "Sharpness": 1.72})
    expected = [[1.24271845, 0.0, -64.62135922], [0.0, 0.93430657, -124.26277372], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(plan.matrix, expected, atol=1e-6)
