"""Operations against Pillow, hand-computed parameters, and merged tables against one operation at a time."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tutelage.augment.ops import (
    AMOUNTS,
    BOX_REACH,
    CLASSIFICATION_REACH,
    COLOR_OPERATIONS,
    FILL,
    IMAGE_REACH,
    amount_at,
    run_canvas_ops,
)
from tutelage.augment.plan import ColorOperation, Hole
from tutelage.ops import affine


def photograph(seed: int = 0, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """Smooth shades, some noise, and a limited range, so that histogram operations have work."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    channels = [40 + k * 15 + 60 * np.sin(x / (9 + k)) * np.cos(y / (7 + k)) + 60 for k in range(3)]
    return np.clip(np.stack(channels, -1) + rng.normal(0, 6, (*size, 3)), 20, 230).astype(np.uint8)


def run(pixels: np.ndarray, *operations: ColorOperation | Hole, covered: np.ndarray | None = None) -> np.ndarray:
    return run_canvas_ops(pixels.copy(), operations, covered)


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - np.asarray(other, np.uint8).astype(int)).max())


FACTORS = [0.1, 0.46, 0.82, 1.0, 1.18, 1.54, 1.9]  # levels 0, 2, 4, 5, 6, 8, 10
EXACT = {
    "AutoContrast": (0.0, ImageOps.autocontrast),
    "Equalize": (0.0, ImageOps.equalize),
    "Invert": (0.0, ImageOps.invert),
    "Posterize": (3.0, lambda image: ImageOps.posterize(image, 3)),
    "Solarize": (102.0, lambda image: ImageOps.solarize(image, 102)),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", [0, 1])
def test_table_operations_equal_pillow(name: str, seed: int) -> None:
    pixels = photograph(seed)
    amount, reference = EXACT[name]
    expected = reference(Image.fromarray(pixels))
    assert largest_difference(run(pixels, ColorOperation(name, amount)), expected) == 0
    assert largest_difference(pixels, expected) > 20  # the picture does change


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("name", "enhancer", "tolerance"),
    [
        ("Brightness", ImageEnhance.Brightness, 0),
        ("Contrast", ImageEnhance.Contrast, 1),
        ("Color", ImageEnhance.Color, 1),
        ("Sharpness", ImageEnhance.Sharpness, 1),
    ],
)
def test_blends_equal_pillow(name: str, enhancer: type, tolerance: int, factor: float) -> None:
    pixels = photograph()
    expected = enhancer(Image.fromarray(pixels)).enhance(factor)
    result = run(pixels, ColorOperation(name, factor))
    assert largest_difference(result, expected) <= tolerance
    if factor == 1.0:
        np.testing.assert_array_equal(result, pixels)


def test_sharpness_leaves_the_outermost_pixels() -> None:
    pixels = photograph()
    result = run(pixels, ColorOperation("Sharpness", 1.9))
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(result[edge], pixels[edge])


def test_solarize_add_adds_below_128_only() -> None:
    pixels = np.array([0, 100, 127, 128, 255], np.uint8).reshape(1, 5, 1).repeat(3, 2)
    result = run(pixels, ColorOperation("SolarizeAdd", 110.0))
    assert result[0, :, 0].tolist() == [110, 210, 237, 128, 255]
    assert run(pixels, ColorOperation("SolarizeAdd", 200.0))[0, 1, 0] == 255


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
def test_histograms_look_at_covered_pixels_only(name: str) -> None:
    pixels = photograph()
    covered = np.zeros(pixels.shape[:2], np.uint8)
    covered[20:70, 10:90] = 1
    spoiled = np.where(covered[..., None] == 1, pixels, np.random.default_rng(1).integers(0, 256, pixels.shape))
    result = run(spoiled.astype(np.uint8), ColorOperation(name, 1.9), covered=covered)
    alone = run(np.ascontiguousarray(pixels[20:70, 10:90]), ColorOperation(name, 1.9))
    np.testing.assert_array_equal(result[20:70, 10:90], alone)


def test_nothing_covered_is_no_error() -> None:
    pixels = photograph()
    nothing = np.zeros(pixels.shape[:2], np.uint8)
    operations = [ColorOperation(name, 1.0) for name in ("AutoContrast", "Equalize", "Contrast")]
    assert run(pixels, *operations, covered=nothing).shape == pixels.shape


def test_merged_tables_equal_one_operation_at_a_time() -> None:
    names = sorted(COLOR_OPERATIONS)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pixels = photograph(seed, (40, 50))
        chosen = [names[k] for k in rng.integers(len(names), size=4)]
        operations = [ColorOperation(name, amount_at(name, rng.uniform(0, 10), IMAGE_REACH)) for name in chosen]
        one_by_one = pixels
        for operation in operations:
            one_by_one = run(one_by_one, operation)
        # Contrast takes its mean from channel histograms: exact, so that merging changes nothing
        np.testing.assert_array_equal(run(pixels, *operations), one_by_one, err_msg=str(operations))


def test_a_hole_is_filled_by_pixel_centers_and_hides_what_was_before() -> None:
    pixels = photograph()
    hole = Hole(affine.corners_of(np.array([30.0, 20.0, 70.0, 50.0])))
    result = run(pixels, hole)
    filled = (result == FILL).all(-1)
    assert filled[21:49, 31:69].all()
    assert abs(int(filled.sum()) - 40 * 30) <= 2 * (40 + 30)  # an outline may count to it
    np.testing.assert_array_equal(result[:19], pixels[:19])
    inverted = run(pixels, hole, ColorOperation("Invert", 0.0))
    assert tuple(inverted[35, 50]) == tuple(255 - value for value in FILL)
    assert tuple(run(pixels, ColorOperation("Invert", 0.0), hole)[35, 50]) == FILL


# The table of the TPU code's parameters at levels 2, 4, 6, 8, 10 (None: 0 bits, which become 1).
PARAMETERS = {
    "Rotate": [6, 12, 18, 24, 30],
    "ShearX": [0.06, 0.12, 0.18, 0.24, 0.30],
    "ShearY": [0.06, 0.12, 0.18, 0.24, 0.30],
    "TranslateX": [50, 100, 150, 200, 250],
    "TranslateY": [50, 100, 150, 200, 250],
    "Color": [0.46, 0.82, 1.18, 1.54, 1.90],
    "Contrast": [0.46, 0.82, 1.18, 1.54, 1.90],
    "Brightness": [0.46, 0.82, 1.18, 1.54, 1.90],
    "Sharpness": [0.46, 0.82, 1.18, 1.54, 1.90],
    "Solarize": [51, 102, 153, 204, 256],
    "SolarizeAdd": [22, 44, 66, 88, 110],
    "Posterize": [1, 1, 2, 3, 4],
    "Cutout": [20, 40, 60, 80, 100],
    "BBox_Cutout": [0.15, 0.30, 0.45, 0.60, 0.75],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_levels(name: str) -> None:
    found = [amount_at(name, level, IMAGE_REACH) for level in (2, 4, 6, 8, 10)]
    assert found == pytest.approx(PARAMETERS[name])


def test_parameters_inside_boxes_and_of_classification() -> None:
    assert [amount_at("TranslateX", level, BOX_REACH) for level in (2, 10)] == [24, 120]
    assert [amount_at("Cutout", level, BOX_REACH) for level in (6, 10)] == [30, 50]
    assert [amount_at(name, 10, CLASSIFICATION_REACH) for name in ("TranslateY", "Cutout")] == [100, 40]
    assert amount_at("Rotate", 15, IMAGE_REACH) == 45  # the line goes on beyond level 10
    assert set(PARAMETERS) <= set(AMOUNTS)


def test_corrected_defects() -> None:
    pixels = photograph()
    never_inverts = ColorOperation("Solarize", amount_at("Solarize", 10, IMAGE_REACH))
    np.testing.assert_array_equal(run(pixels, never_inverts), pixels)
    one_bit = run(pixels, ColorOperation("Posterize", amount_at("Posterize", 2, IMAGE_REACH)))
    assert set(np.unique(one_bit)) == {0, 128}
    flat = run(np.full((300, 300, 3), 90, np.uint8), ColorOperation("Contrast", 0.1))
    assert set(np.unique(flat)) == {90}  # the original would blend with white
