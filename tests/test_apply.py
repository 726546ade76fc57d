"""Plans carried out: boxes, masks and pixels stay together; Pillow's resampling as the reference."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.augment.apply import FILL, apply
from tutelage.augment.plan import BoxOperation, ColorOperation, Plan
from tutelage.augment.policies import classification_plan, draw_plan, evaluation_plan
from tutelage.augment.sheet import levels_sheet
from tutelage.config import AugmentConfig, PretrainConfig
from tutelage.ops import affine
from tutelage.types import IGNORE, IGNORE_REGION, Boxes

SIZE, CANVAS = (120, 160), (128, 128)


def photograph(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Smooth shades, so that resamplings may be compared."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    rng = np.random.default_rng(seed)
    waves = [
        128 + 90 * np.sin(rng.uniform(5, 20) * x + rng.uniform(0, 6)) * np.cos(rng.uniform(5, 20) * y) for _ in "rgb"
    ]
    return np.stack(waves, -1).astype(np.uint8)


def drawn(seed: int, boxes: Boxes | None = None, size: tuple[int, int] = SIZE, **options: Any) -> Plan:
    config = AugmentConfig(**{"level": "s4", "pixel_scale": 0.25, **options})
    return draw_plan(config, np.random.default_rng(seed), size, CANVAS, boxes)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.sampled_from(["s1", "s2", "s3", "s4"]))
def test_a_box_is_the_hull_of_its_rasterized_warped_rectangle(seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, 130), rng.integers(0, 90)
    x2, y2 = rng.integers(x1 + 1, 161), rng.integers(y1 + 1, 121)
    mask = np.zeros(SIZE, np.uint8)
    mask[y1:y2, x1:x2] = 1
    boxes = Boxes.build([[x1, y1, x2, y2]], [3])
    plan = drawn(seed, boxes, level=level, policy="v2")
    warped = apply(plan, photograph(), SIZE, boxes).boxes
    assert warped is not None
    rows, columns = np.nonzero(rasterized(plan, mask, fineness=4) == 1)  # fine, since the tips of shapes are sharp
    if len(rows) == 0:  # nothing shown: no box, or a speck
        assert (warped.xyxy[:, 2:] - warped.xyxy[:, :2]).min(initial=0) < 1
    else:
        hull = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 4
        assert len(warped) == 1
        np.testing.assert_allclose(warped.xyxy[0], hull, atol=1.0)


def rasterized(plan: Plan, mask: np.ndarray, fineness: int) -> np.ndarray:
    """The mask on a canvas with `fineness` times the pixels."""
    finer = affine.scaling(fineness, fineness) @ plan.matrix
    canvas, valid = ((fineness * height, fineness * width) for height, width in (plan.canvas, plan.valid))
    result = apply(Plan(finer, canvas, valid), photograph(), SIZE, mask=mask).mask
    assert result is not None
    return result


@pytest.mark.parametrize("seed", range(30))
def test_image_and_mask_stay_registered(seed: int) -> None:
    squares = (np.add.outer(np.arange(12), np.arange(16)) % 2).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    pixels = np.repeat(squares[..., None] * 255, 3, 2)
    plan = geometry_of(drawn(seed, jitter=(0.7, 2.0)))
    warped = apply(plan, pixels, SIZE, mask=squares)
    assert warped.mask is not None
    inner = cv2.erode((warped.mask != IGNORE).astype(np.uint8), np.ones((3, 3), np.uint8)) == 1
    # where more than 3/4 of the weight is of one color, the nearest pixel has that color
    clear = inner & (np.abs(warped.pixels[..., 0].astype(int) - 128) > 70)
    assert clear.sum() >= 0.5 * inner.sum()
    np.testing.assert_array_equal(warped.pixels[clear][:, 0] > 128, warped.mask[clear] == 1)
    height, width = warped.valid
    assert (warped.mask[height:] == IGNORE).all() and (warped.mask[:, width:] == IGNORE).all()


def geometry_of(plan: Plan) -> Plan:
    return Plan(plan.matrix, plan.canvas, plan.valid)


def test_pixels_equal_pillows_affine_transform() -> None:
    compared = 0
    for seed in range(25):
        plan, pixels = geometry_of(drawn(seed, jitter=(1.0, 1.6))), photograph(seed=seed)
        back = affine.inverse(plan.matrix)[:2].ravel().tolist()  # Pillow counts from pixel edges, as we do
        reference = Image.fromarray(pixels).transform(
            CANVAS[::-1], Image.Transform.AFFINE, back, Image.Resampling.BILINEAR
        )
        warped = apply(plan, pixels, SIZE, mask=np.zeros(SIZE, np.uint8))
        assert warped.mask is not None
        inner = cv2.erode((warped.mask == 0).astype(np.uint8), np.ones((5, 5), np.uint8)) == 1
        difference = np.abs(warped.pixels.astype(int) - np.asarray(reference).astype(int)).max(-1)
        assert difference[inner].max(initial=0) <= 2
        compared += int(inner.sum())
    assert compared > 25 * 5000


def test_vacated_pixels_and_padding_are_fill_also_after_color_operations() -> None:
    matrix = affine.translation(30, 0) @ affine.rotation(20, SIZE)
    plan = Plan(matrix, (140, 200), SIZE, canvas_ops=(ColorOperation("Invert", 0), ColorOperation("Sharpness", 1.9)))
    warped = apply(plan, photograph(), SIZE, mask=np.zeros(SIZE, np.uint8))
    assert warped.mask is not None
    outside = cv2.erode((warped.mask == IGNORE).astype(np.uint8), np.ones((3, 3), np.uint8)) == 1
    assert outside[:120, :160].sum() > 1000
    np.testing.assert_array_equal(warped.pixels[outside], np.broadcast_to(FILL, (outside.sum(), 3)))
    np.testing.assert_array_equal(warped.pixels[120:], np.broadcast_to(FILL, (20, 200, 3)))


def test_the_image_fills_what_is_valid_up_to_its_last_pixel() -> None:
    for size in [SIZE, (77, 131), (300, 211)]:
        white = np.full((*size, 3), 255, np.uint8)
        warped = apply(evaluation_plan(size, CANVAS), white, size)
        height, width = warped.valid
        assert (warped.pixels[:height, :width] == 255).all()


@pytest.mark.parametrize("level", ["s1", "s2", "s3", "s4"])
def test_the_same_seed_gives_the_same_bytes_and_leaves_its_input(level: str) -> None:
    boxes = Boxes.build([[20, 20, 60, 80], [80, 10, 150, 110]], [0, 1])
    pixels = photograph()
    before = pixels.copy()
    for seed in range(25):
        plan = drawn(seed, boxes, level=level, policy="v1")
        first = apply(plan, pixels, SIZE, boxes)
        cv2.setNumThreads(2)
        again = apply(drawn(seed, boxes, level=level, policy="v1"), pixels, SIZE, boxes)
        cv2.setNumThreads(1)
        np.testing.assert_array_equal(first.pixels, again.pixels)
        assert first.boxes is not None and again.boxes is not None
        np.testing.assert_array_equal(first.boxes.xyxy, again.boxes.xyxy)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(boxes.xyxy, [[20, 20, 60, 80], [80, 10, 150, 110]])


def test_boxes_carry_their_labels_and_ignored_ones_stay_ignored() -> None:
    boxes = Boxes.build([[0, 0, 10, 10], [100, 80, 140, 110]], [4, 2], scores=[1, 0.5], ignore=[0, IGNORE_REGION])
    plan = Plan(affine.scaling(2, 3) @ affine.translation(-40, -40), (260, 260), (240, 240))
    warped = apply(plan, photograph(), SIZE, boxes).boxes
    assert warped is not None
    np.testing.assert_allclose(warped.xyxy, [[120, 120, 200, 210]])
    assert (warped.labels.tolist(), warped.scores.tolist()) == ([2], [0.5])
    assert warped.ignore.tolist() == [IGNORE_REGION]


def test_area_follows_the_determinant() -> None:
    boxes = Boxes.build([[100, 80, 140, 110]], [2], area=[700])
    plan = Plan(affine.scaling(2, 3), (400, 400), (360, 320))
    warped = apply(plan, photograph(), SIZE, boxes).boxes
    assert warped is not None
    np.testing.assert_allclose(warped.xyxy, [[200, 240, 280, 330]])
    np.testing.assert_allclose(warped.area, [4200])


def test_boxes_pushed_out_leave_no_ghosts() -> None:
    boxes = Boxes.build([[0, 0, 30, 30], [100, 50, 160, 120]], [0, 1])
    plan = Plan(affine.translation(-40, 0), SIZE, SIZE)
    warped = apply(plan, photograph(), SIZE, boxes).boxes
    assert warped is not None
    np.testing.assert_allclose(warped.xyxy, [[60, 50, 120, 120]])
    assert warped.labels.tolist() == [1]


def test_boxes_do_not_reach_into_padding() -> None:
    boxes = Boxes.build([[0, 60, 40, 110]], [0])
    moved_down = Plan(affine.translation(0, 40), (200, 200), SIZE)
    warped = apply(moved_down, photograph(), SIZE, boxes).boxes
    assert warped is not None
    np.testing.assert_allclose(warped.xyxy, [[0, 100, 40, 120]])  # the frame ends at 120: nothing is shown below


@pytest.mark.parametrize("size", [(480, 640), (481, 643)])
@pytest.mark.parametrize("seed", range(8))
def test_a_reduced_jpeg_decode_changes_little(seed: int, size: tuple[int, int]) -> None:
    stream = io.BytesIO()
    Image.fromarray(photograph(size, seed)).save(stream, "JPEG", quality=95)
    full = np.asarray(Image.open(stream).convert("RGB"))
    reduced = Image.open(stream)
    plan = geometry_of(drawn(seed, size=size, jitter=(0.5, 1.0), pixel_scale=1.0))
    assert plan.min_scale < 0.5
    reduced.draft("RGB", (int(size[1] * plan.min_scale), int(size[0] * plan.min_scale)))
    small = np.asarray(reduced)
    assert small.shape[0] < size[0]
    difference = np.abs(apply(plan, full, size).pixels.astype(int) - apply(plan, small, size).pixels.astype(int))
    assert difference.max() <= 6 and difference.mean() < 0.5


def test_strong_reduction_averages_instead_of_skipping() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the canvas can show: all gray, whatever the phase
    warped = apply(evaluation_plan((512, 512), (96, 96)), stripes, (512, 512))
    assert np.abs(warped.pixels.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_two_ways_of_sampling_agree(mirrored: bool) -> None:
    pixels = photograph()
    plan = evaluation_plan(SIZE, (222, 256))
    matrix = affine.horizontal_flip(256) @ plan.matrix if mirrored else plan.matrix
    resized = apply(Plan(matrix, plan.canvas, plan.valid), pixels, SIZE).pixels
    turned_a_hair = affine.rotation(1e-7, plan.valid) @ matrix  # no whole-image resize any more
    warped = apply(Plan(turned_a_hair, plan.canvas, plan.valid), pixels, SIZE).pixels
    assert np.abs(resized.astype(int) - warped.astype(int)).max() <= 2


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Flip", "Cutout"])
@pytest.mark.parametrize("reduced", [False, True])
def test_operations_inside_a_box_change_that_box_alone(name: str, reduced: bool) -> None:
    amount = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(name, 20.0)
    operation = BoxOperation(name, amount, (40.0, 20.0, 100.0, 80.0), (0.5, 0.5))
    plan = Plan(affine.identity(), SIZE, SIZE, source_ops=(operation,))
    pixels = photograph()
    decoded = pixels[::2, ::2].copy() if reduced else pixels
    plain = apply(Plan(affine.identity(), SIZE, SIZE), decoded, SIZE).pixels
    changed = (apply(plan, decoded, SIZE).pixels != plain).any(-1)
    assert changed[20:80, 40:100].mean() > 0.3
    changed[18:84, 38:104] = False  # the last pixel belongs to the box, and sampling reaches one further
    assert not changed.any()


def test_inside_a_box_content_moves_by_original_pixels_and_leaves_fill() -> None:
    operation = BoxOperation("TranslateX", 24.0, (40.0, 20.0, 99.0, 79.0), (0.5, 0.5))
    pixels = photograph()
    warped = apply(Plan(affine.identity(), SIZE, SIZE, (operation,)), pixels, SIZE).pixels
    np.testing.assert_array_equal(warped[20:80, 40:76], pixels[20:80, 64:100])  # positive: to the left
    np.testing.assert_array_equal(warped[20:80, 77:100], np.broadcast_to(FILL, (60, 23, 3)))


def test_a_box_operation_at_the_border_or_on_a_speck_is_no_error() -> None:
    for box in [(0.0, 0.0, 160.0, 120.0), (159.7, 119.6, 160.0, 120.0), (3.0, 3.0, 3.2, 3.2)]:
        for name in ("Rotate", "TranslateY", "Flip", "Equalize", "Solarize", "Cutout"):
            plan = Plan(affine.identity(), SIZE, SIZE, (BoxOperation(name, 20.0, box, (0.1, 0.9)),))
            assert apply(plan, photograph(), SIZE).pixels.shape == (*SIZE, 3)


def test_extreme_shapes_go_through() -> None:
    for size in [(1, 1), (1, 900), (900, 2), (3, 5)]:
        for seed in range(20):
            boxes = Boxes.build([[0, 0, size[1], size[0]]], [0])
            plan = drawn(seed, boxes, size=size, level=["s1", "s2", "s3", "s4"][seed % 4], policy="v2")
            assert apply(plan, photograph(size), size, boxes).pixels.shape == (*CANVAS, 3)


def test_classification_plans_give_square_images() -> None:
    config = PretrainConfig(size=48)
    for seed in range(40):
        plan = classification_plan(config, np.random.default_rng(seed), SIZE)
        assert apply(plan, photograph(), SIZE).pixels.shape == (48, 48, 3)


def test_the_sheet_of_levels_shows_each_and_repeats_itself() -> None:
    boxes = Boxes.build([[20, 20, 60, 80], [80, 10, 150, 110]], [0, 1], ignore=[0, IGNORE_REGION])

    def sheet(seed: int) -> Image.Image:
        return levels_sheet(photograph(), lambda warped: Image.fromarray(warped.pixels), seed, boxes=boxes)

    assert sheet(0).tobytes() == sheet(0).tobytes() != sheet(1).tobytes()
    rows = np.array_split(np.asarray(sheet(0)), 5)
    assert all(row.std() > 20 for row in rows)
