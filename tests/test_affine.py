"""Matrices, and boxes under them, against hand-computed numbers, OpenCV's polygon clipping and plain loops."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.ops import affine

SIZE = (60, 80)  # height, width


def random_matrix(rng: np.random.Generator) -> np.ndarray:
    matrix = affine.identity()
    for _ in range(3):
        step = [
            affine.rotation(rng.uniform(-45, 45), SIZE),
            affine.shear(rng.uniform(-0.5, 0.5), 0),
            affine.shear(0, rng.uniform(-0.5, 0.5)),
            affine.translation(*rng.uniform(-40, 40, 2)),
            affine.scaling(*rng.uniform(0.4, 2.0, 2)),
            affine.horizontal_flip(SIZE[1]),
        ][rng.integers(6)]
        matrix = step @ matrix
    return matrix


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1)


def test_elementary_maps_by_hand() -> None:
    point = np.array([[70.0, 30.0]])  # 30 right of the center of a 60 x 80 image
    moved = {
        "translation": (affine.translation(3, -4), (73, 26)),
        "scaling": (affine.scaling(2, 0.5), (140, 15)),
        "rotation": (affine.rotation(90, SIZE), (40, 0)),  # counter-clockwise: right goes up
        "shear": (affine.shear(0.1, 0.2), (73, 44)),
        "flip": (affine.horizontal_flip(SIZE[1]), (10, 30)),
    }
    for name, (matrix, expected) in moved.items():
        np.testing.assert_allclose(affine.transform_points(matrix, point)[0], expected, atol=1e-12, err_msg=name)


def test_maps_follow_each_other_from_right_to_left() -> None:
    matrix = affine.scaling(2, 2) @ affine.translation(1, 0)
    np.testing.assert_allclose(affine.transform_points(matrix, np.array([[3.0, 5.0]])), [[8, 10]])


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_centers_enlarge_without_a_shift(factor: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    matrix = affine.at_pixel_centers(affine.scaling(factor, factor))[:2]
    enlarged = cv2.warpAffine(pixels, matrix, (7 * factor, 5 * factor), flags=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(enlarged, np.kron(pixels, np.ones((factor, factor), np.uint8)))


def test_magnification_is_the_largest_stretch() -> None:
    assert affine.magnification(affine.rotation(30, SIZE) @ affine.scaling(0.5, 0.25)) == pytest.approx(0.5)
    matrix = random_matrix(np.random.default_rng(1))
    angles = np.linspace(0, np.pi, 10_000)
    lengths = np.linalg.norm(matrix[:2, :2] @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    assert affine.magnification(matrix) == pytest.approx(lengths.max(), rel=1e-6)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_hulls_equal_those_of_polygons_clipped_by_opencv(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, boxes = random_matrix(rng), random_boxes(rng, 5)
    hulls, keep = affine.hull_of_warped(boxes, matrix, SIZE)
    window = affine.corners_of(np.array([0, 0, SIZE[1], SIZE[0]])).astype(np.float32)
    for box, hull, kept in zip(boxes, hulls, keep, strict=True):
        shape = affine.transform_points(matrix, affine.corners_of(box)).astype(np.float32)
        area, polygon = cv2.intersectConvexConvex(shape, window)
        if area > 0.1:
            assert kept
            expected = [*polygon.reshape(-1, 2).min(0), *polygon.reshape(-1, 2).max(0)]
            np.testing.assert_allclose(hull, expected, atol=2e-3)
        elif not kept:
            np.testing.assert_array_equal(hull, 0)


def test_the_hull_of_a_clipped_shape_is_tighter_than_the_clipped_hull() -> None:
    # A square of side 20 standing on a corner at (0, 30): its diagonal is 28.28, so y spans 15.86 .. 44.14 at x = 0.
    matrix = affine.translation(0, 30) @ affine.rotation(45, (0, 0))
    hulls, keep = affine.hull_of_warped(np.array([[-10.0, -10, 10, 10]]), matrix, SIZE)
    assert keep.all()
    np.testing.assert_allclose(hulls[0], [0, 30 - 200**0.5, 200**0.5, 30 + 200**0.5], atol=1e-4)
    shifted = affine.translation(-10, 0) @ matrix  # now the line x = 0 cuts the tip: a triangle 4.14 wide
    hulls, _ = affine.hull_of_warped(np.array([[-10.0, -10, 10, 10]]), shifted, SIZE)
    tip = 200**0.5 - 10
    np.testing.assert_allclose(hulls[0], [0, 30 - tip, tip, 30 + tip], atol=1e-4)


def test_boxes_outside_touching_or_empty_are_dropped_and_whole_areas_are_kept() -> None:
    boxes = np.array([[80.0, 0, 90, 10], [-5, -5, 0, 60], [10, 10, 10, 20], [-100, -100, 200, 200], [79, 59, 99, 99]])
    hulls, keep = affine.hull_of_warped(boxes, affine.identity(), SIZE)
    np.testing.assert_array_equal(keep, [False, False, False, True, True])
    np.testing.assert_array_equal(hulls[3:], [[0, 0, 80, 60], [79, 59, 80, 60]])
    assert affine.hull_of_warped(np.zeros((0, 4)), affine.identity(), SIZE)[0].shape == (0, 4)


def test_rounding_at_the_border_neither_loses_nor_invents_a_side() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(200, 900, 2).tolist())
        scaled = tuple(rng.integers(100, 900, 2).tolist())
        matrix = affine.scaling(scaled[1] / size[1], scaled[0] / size[0])
        hulls, keep = affine.hull_of_warped(np.array([[0, 0, size[1], size[0]]]), matrix, scaled)
        assert keep.all()
        np.testing.assert_allclose(hulls[0], [0, 0, scaled[1], scaled[0]], atol=1e-3)


def test_predictions_return_to_the_original_one_by_one_and_in_batches() -> None:
    rng = np.random.default_rng(3)
    sizes = np.array([[480, 640], [333, 500], [50, 1000]])
    scales = rng.uniform(0.3, 2.0, (3, 2))
    matrices = np.stack([affine.translation(-7, 5) @ affine.scaling(*scale) for scale in scales])
    corner = rng.uniform(0, 1, (3, 6, 2)) * sizes[:, None, ::-1] * 0.5
    boxes = np.concatenate([corner, corner * 1.5 + 1], axis=-1)
    canvas = affine.transform_points(matrices, boxes.reshape(3, -1, 2)).reshape(3, 6, 4)
    together = affine.boxes_to_original(canvas, matrices, sizes)
    np.testing.assert_allclose(together, boxes, rtol=1e-5)
    for row in range(3):
        single = affine.boxes_to_original(canvas[row], matrices[row], tuple(sizes[row].tolist()))
        np.testing.assert_array_equal(single, together[row])


def test_predictions_are_turned_back_from_a_flip_and_clipped_to_the_image() -> None:
    flipped = affine.scaling(0.5, 0.5) @ affine.horizontal_flip(80)
    back = affine.boxes_to_original(np.array([[30.0, 10, 60, 20], [0, 0, 10, 10]]), flipped, SIZE)
    np.testing.assert_allclose(back, [[0, 20, 20, 40], [60, 0, 80, 20]])
    assert affine.boxes_to_original(np.zeros((0, 4)), flipped, SIZE).shape == (0, 4)
