"""Masks under augmentation: they stay on their image through every operation, level, decoded size and mask size."""

from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tutelage.augment.apply import FILL, apply
from tutelage.augment.autoaugment import POLICIES
from tutelage.augment.ops import GEOMETRY, IMAGE_REACH, SIGNED, amount_at
from tutelage.augment.plan import BoxOperation, Hole, Plan
from tutelage.augment.policies import RAND_AUGMENT_BOXES, draw_plan, evaluation_plan
from tutelage.config import AugmentConfig
from tutelage.ops import affine
from tutelage.types import IGNORE, Boxes

SIZE, CANVAS, SQUARE = (480, 640), (192, 256), 40
ODD = (477, 634)  # 1/2, 1/4 and 1/8 of it are no whole numbers


def checkerboard(size: tuple[int, int], square: float) -> np.ndarray:
    """Classes 0 and 1 (h, w) in squares, by pixel centers."""
    rows, columns = (np.arange(0.5, side) // square for side in size)
    return (np.add.outer(rows, columns) % 2).astype(np.uint8)


def painted(mask: np.ndarray) -> np.ndarray:
    """The picture (h, w, 3) of a mask: class 0 black, class 1 white."""
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)


def seen_classes(pixels: np.ndarray) -> np.ndarray:
    """Classes (H, W) that a warped painting shows; gray of one channel only is fill."""
    fill = (pixels == FILL).all(axis=-1)
    return np.where(fill, IGNORE, pixels[..., 0] >= 128).astype(np.uint8)


def assert_registered(plan: Plan, pixels: np.ndarray, size: tuple[int, int], mask: np.ndarray, reach: int = 1) -> None:
    """The painting and its mask agree but for pixels within `reach` of an edge of the mask."""
    warped = apply(Plan(plan.matrix, plan.canvas, plan.valid), pixels, size, mask=mask)
    assert warped.mask is not None
    classes = seen_classes(warped.pixels)
    assert (warped.mask[classes == IGNORE] == IGNORE).all(), "what shows no image has no class"
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    near_an_edge = cv2.dilate(warped.mask, window) != cv2.erode(warped.mask, window)
    wrong = (classes != warped.mask) & ~near_an_edge
    assert not wrong.any(), f"{wrong.sum()} pixels, the first at {np.argwhere(wrong)[0]}"


def plan_of(operation: str, amount: float, size: tuple[int, int], scale: float) -> Plan:
    """One operation on the middle of the canvas, flipped for good measure where it is negative."""
    placement = affine.scaling(scale * CANVAS[1] / size[1], scale * CANVAS[0] / size[0])
    return Plan(placement @ GEOMETRY[operation](amount, size), CANVAS, CANVAS)


@pytest.mark.parametrize("operation", sorted(GEOMETRY))
def test_every_geometric_operation_and_level_keeps_image_and_mask_registered(operation: str) -> None:
    mask = checkerboard(SIZE, SQUARE)
    signs = (1, -1) if operation in SIGNED else (1,)
    for level, sign, scale in product((0, 1, 3, 5, 7, 10, 15, 30), signs, (0.5, 1.0, 2.0)):
        amount = sign * amount_at(operation, level, IMAGE_REACH)
        assert_registered(plan_of(operation, amount, SIZE, scale), painted(mask), SIZE, mask)


def drawn(seed: int, size: tuple[int, int] = SIZE, **options: Any) -> Plan:
    return draw_plan(AugmentConfig(**options), np.random.default_rng(seed), size, CANVAS, None)


LEVELS: list[dict[str, Any]] = [
    {"level": "s1"},
    *({"level": level, "policy": policy} for level in ("s2", "s3") for policy in POLICIES),
    {"level": "s4", "layers": 3, "magnitude": 15},
]


@pytest.mark.parametrize("options", LEVELS, ids=lambda options: "-".join(str(value) for value in options.values()))
def test_draws_of_every_level_keep_image_and_mask_registered(options: dict[str, Any]) -> None:
    mask = checkerboard(SIZE, SQUARE)
    for seed in range(12):
        assert_registered(drawn(seed, **options), painted(mask), SIZE, mask)


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [SIZE, ODD])
def test_a_reduced_decode_keeps_them_registered(size: tuple[int, int], divisor: int) -> None:
    mask = checkerboard(size, SQUARE)
    below, right = (-side % divisor for side in size)  # a JPEG decoder repeats the border up to whole blocks
    whole = cv2.copyMakeBorder(painted(mask), 0, below, 0, right, cv2.BORDER_REPLICATE)
    reduced = cv2.resize(whole, None, fx=1 / divisor, fy=1 / divisor, interpolation=cv2.INTER_AREA)
    for seed in range(10):
        plan = drawn(seed, size, level="s4", jitter=(0.4, 1.0))
        # where the decode is coarser than the canvas, a tie in it may move an edge by half of its pixels
        coarseness = divisor * affine.magnification(plan.matrix)
        assert_registered(plan, reduced, size, mask, reach=max(1, int(np.ceil(coarseness / 2))))


@pytest.mark.parametrize("mask_size", [(96, 128), (192, 256), (120, 160), (960, 1280)])
def test_masks_of_another_size_than_the_image_stay_registered(mask_size: tuple[int, int]) -> None:
    mask = checkerboard(mask_size, SQUARE * mask_size[0] / SIZE[0])
    pixels = painted(checkerboard(SIZE, SQUARE))
    for seed in range(15):
        assert_registered(drawn(seed, level="s4"), pixels, SIZE, mask)


def test_a_mask_of_another_size_is_the_enlarged_one() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 7, (60, 80), dtype=np.uint8)
    large = small.repeat(8, 0).repeat(8, 1)
    for seed in range(10):
        plan, pixels = drawn(seed, level="s4"), painted(large)
        one, other = (apply(plan, pixels, SIZE, mask=mask).mask for mask in (small, large))
        assert one is not None and other is not None
        assert (one != other).mean() < 0.03  # both are nearest: alike but for ties


def test_a_warped_mask_equals_pillows_nearest_transform() -> None:
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 150, (96, 128), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    for _ in range(15):
        turned = affine.rotation(rng.uniform(-30, 30), SIZE) @ affine.shear(*rng.uniform(-0.2, 0.2, 2))
        matrix = affine.scaling(*rng.uniform(0.3, 0.9, 2)) @ turned  # without ties
        back = affine.inverse(matrix)[:2].ravel().tolist()  # Pillow counts from pixel edges, as we do
        reference = Image.fromarray(mask).transform(
            CANVAS[::-1], Image.Transform.AFFINE, back, Image.Resampling.NEAREST, fillcolor=IGNORE
        )
        warped = apply(Plan(matrix, CANVAS, CANVAS), painted(mask), SIZE, mask=mask).mask
        assert warped is not None
        assert (warped != np.asarray(reference)).mean() < 0.004  # the rim, drawn to a sixteenth of a pixel


def test_uncovered_pixels_and_padding_are_ignored_and_kept_values_are_those_of_the_mask() -> None:
    mask = np.full(SIZE, 7, np.uint8)
    mask[:, 320:] = IGNORE
    plan = Plan(affine.scaling(0.25, 0.25) @ affine.translation(80, 0), CANVAS, (120, 160))
    warped = apply(plan, painted(mask), SIZE, mask=mask).mask
    assert warped is not None
    expected = np.full(CANVAS, IGNORE, np.uint8)  # padding, what the shift uncovered, and what was IGNORE before
    expected[:120, 20:100] = 7
    np.testing.assert_array_equal(warped, expected)


def test_the_mask_is_left_as_it_is_by_colors_and_holes_and_is_not_written_to() -> None:
    mask = checkerboard(SIZE, SQUARE)
    before = mask.copy()
    holes = 0
    for seed in range(60):
        plan = drawn(seed, level="s4", layers=3)
        plain = Plan(plan.matrix, plan.canvas, plan.valid)
        one, other = (apply(p, painted(mask), SIZE, mask=mask).mask for p in (plan, plain))
        assert one is not None and other is not None
        np.testing.assert_array_equal(one, other)
        holes += sum(isinstance(operation, Hole) for operation in plan.canvas_ops)
    assert holes > 5
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_boxes_box_operations_do_nothing_and_the_rest_is_drawn_as_ever(policy: str) -> None:
    options = {"level": "s2", "policy": policy}
    for seed in range(80):
        plan = drawn(seed, **options)
        assert plan.source_ops == ()
        names = [name for name, _ in plan.drawn]
        assert sum(isinstance(operation, Hole) for operation in plan.canvas_ops) <= names.count("Cutout")
        none = draw_plan(AugmentConfig(**options), np.random.default_rng(seed), SIZE, CANVAS, Boxes.empty())
        assert repr(none) == repr(plan), "no boxes and boxes of none are the same"


def test_rand_augment_draws_the_same_with_and_without_boxes() -> None:
    """None of its operations needs a box: masks and boxes of one image move alike."""
    assert not any(name.endswith("_Only_BBoxes") or name == "BBox_Cutout" for name in RAND_AUGMENT_BOXES)
    boxes = Boxes.build([[100, 100, 300, 400]], [0])
    for seed in range(20):
        with_boxes = draw_plan(AugmentConfig(level="s4"), np.random.default_rng(seed), SIZE, CANVAS, boxes)
        assert repr(with_boxes) == repr(drawn(seed, level="s4"))


def test_boxes_and_masks_are_warped_by_one_matrix() -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[120:360, 160:480] = 1
    boxes = Boxes.build([[160, 120, 480, 360]], [0])
    operation = BoxOperation("Flip", 0.0, (160.0, 120.0, 480.0, 360.0), (0.5, 0.5))
    plan = evaluation_plan(SIZE, CANVAS)
    warped = apply(Plan(plan.matrix, CANVAS, plan.valid, (operation,)), painted(mask), SIZE, boxes, mask)
    assert warped.mask is not None and warped.boxes is not None
    rows, columns = np.nonzero(warped.mask == 1)
    hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(warped.boxes.xyxy, [hull], atol=1)
