"""Figures of masks: against plain numpy over copies of the images, hand-computed numbers, and real masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.tasks.metrics import Confusions, boundary_parts, confusion_of, count_mask
from tutelage.types import IGNORE

FIGURES = ("miou", "pixel_accuracy", "boundary_iou", "class_iou", "class_boundary_iou")

Mask = NDArray[np.uint8]


def mask(*rows: str) -> Mask:
    """One character a pixel: its class, or . for IGNORE."""
    return np.array([[IGNORE if pixel == "." else int(pixel) for pixel in row] for row in rows], np.uint8)


def blobs(rng: np.random.Generator, size: tuple[int, int], classes: list[int]) -> Mask:
    """Rectangles of random classes, as real masks have regions rather than noise."""
    drawn = np.full(size, rng.choice(classes), np.uint8)
    for _ in range(6):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in size)
        drawn[top:bottom, left:right] = rng.choice(classes)
    return drawn


def made_pairs(seed: int, images: int = 6, num_classes: int = 5) -> list[tuple[Mask, Mask]]:
    """Truth with IGNORE and predictions; class 3 is never true, class 4 only in the first image."""
    rng = np.random.default_rng(seed)
    pairs = []
    for image in range(images):
        size = (int(rng.integers(15, 40)), int(rng.integers(60, 90)))  # widths of 1 and 2 pixels
        truth = blobs(rng, size, [0, 1, 2, IGNORE])
        if image == 0:
            truth[:5] = 4
        predicted = np.where(rng.random(size) < 0.7, truth, blobs(rng, size, [0, 1, 2, 3]))
        pairs.append((truth, np.where(predicted == IGNORE, 1, predicted).astype(np.uint8)))
    return pairs


def tallied(pairs: list[tuple[Mask, Mask]], num_classes: int = 5) -> Confusions:
    return Confusions.of([count_mask(*pair, num_classes) for pair in pairs], num_classes)


def looped_boundary(member: NDArray[np.bool_], outside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of a class from which a pixel of another class, or the end of the image, is `width` away or less."""
    framed = np.pad(member & ~outside, width)
    found = np.zeros_like(member)
    for row, column in np.argwhere(member & ~outside):
        found[row, column] = not framed[row : row + 2 * width + 1, column : column + 2 * width + 1].all()
    return found


def looped_figures(pairs: list[tuple[Mask, Mask]], num_classes: int) -> dict[str, NDArray[np.float64]]:
    """Everything from a list of images (copies included), written down plainly."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    parts = np.zeros((2, num_classes), np.int64)
    for truth, predicted in pairs:
        scored = truth != IGNORE
        np.add.at(confusion, (truth[scored], predicted[scored]), 1)
        width = max(1, round(0.02 * np.hypot(*truth.shape)))
        for label in range(num_classes):
            one = looped_boundary(truth == label, ~scored, width)
            other = looped_boundary(predicted == label, ~scored, width)
            parts[:, label] += (one & other).sum(), (one | other).sum()
    present = confusion.sum(axis=1) > 0
    iou, boundary = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for label in np.flatnonzero(present):
        right = confusion[label, label]
        iou[label] = right / (confusion[label].sum() + confusion[:, label].sum() - right)
        boundary[label] = parts[0, label] / parts[1, label]
    some = present.any()
    return {
        "miou": np.array(np.nanmean(iou) if some else np.nan),
        "pixel_accuracy": np.array(np.trace(confusion) / confusion.sum() if some else np.nan),
        "boundary_iou": np.array(np.nanmean(boundary) if some else np.nan),
        "class_iou": iou,
        "class_boundary_iou": boundary,
    }


@pytest.mark.parametrize("seed", range(2))
def test_a_resample_is_measured_as_the_copies_it_holds(seed: int) -> None:
    pairs = made_pairs(seed)
    weights = np.random.default_rng(seed).multinomial(6, np.full(6, 1 / 6), size=6).astype(np.int16)
    found = tallied(pairs).resample(weights, threads=2)
    for row, copies in enumerate(weights):
        expected = looped_figures([pair for pair, count in zip(pairs, copies, strict=True) for _ in range(count)], 5)
        for name in FIGURES:
            np.testing.assert_allclose(found[name][row], expected[name], rtol=1e-12, err_msg=name)
    assert np.isnan(found["class_iou"][weights[:, 0] == 0, 4]).all() and (weights[:, 0] == 0).any()


def test_many_resamples_are_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = tallied(made_pairs(0))
    weights = np.random.default_rng(0).integers(0, 4, (23, 6))
    whole = tally.resample(weights)
    monkeypatch.setattr("tutelage.tasks.metrics.masks.WEIGHTS_AT_ONCE", 25)
    for name, values in tally.resample(weights, threads=3).items():
        np.testing.assert_array_equal(values, whole[name])


def test_figures_by_hand() -> None:
    truth, predicted = mask("0001", "0001", "..22"), mask("0011", "0001", "2012")
    figures = tallied([(truth, predicted)], 4).metrics(["sky", "road", "tree", "never"])
    # 0: 5 of 6 right, none taken for it; 1: 2 right, 2 taken for it; 2: 1 of 2 right
    assert figures["pixel_accuracy"] == pytest.approx(8 / 10)
    assert figures["per_class"]["sky"]["iou"] == pytest.approx(5 / 6)
    assert figures["per_class"]["road"]["iou"] == pytest.approx(2 / 4)
    assert figures["per_class"]["tree"] == {
        "iou": pytest.approx(1 / 2),
        "boundary_iou": pytest.approx(1 / 2),
        "pixels": 2,
        "images": 1,
    }
    assert figures["per_class"]["never"] == {"iou": None, "boundary_iou": None, "pixels": 0, "images": 0}
    assert figures["miou"] == pytest.approx((5 / 6 + 2 / 4 + 1 / 2) / 3)


def test_what_is_taken_for_an_absent_class_costs_the_class_it_is_of() -> None:
    figures = tallied([(mask("0000"), mask("0333"))]).metrics(list("abcde"))
    assert figures["miou"] == figures["per_class"]["a"]["iou"] == pytest.approx(1 / 4)
    assert figures["per_class"]["d"]["iou"] is None


def test_nothing_labeled_is_undefined_not_zero() -> None:
    tally = tallied([(mask("...", "..."), mask("012", "210"))])
    figures = tally.metrics(list("abcde"))
    assert [figures[name] for name in FIGURES[:3]] == [None] * 3
    assert np.isnan(tally.resample(np.array([[1], [0]]))["miou"]).all()
    assert tally.groups_with_truth(np.array([7])) == {"per_class": [0] * 5}
    assert tallied([]).metrics(list("abcde"))["miou"] is None


def test_confusion_counts_truth_by_rows_and_knows_255_classes() -> None:
    assert confusion_of(mask("0012"), mask("0111"), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    truth, predicted = np.array([[254, 254, IGNORE]], np.uint8), np.array([[254, 3, 200]], np.uint8)
    counts = confusion_of(truth, predicted, 255)
    assert counts.sum() == 2 and counts[254, 254] == counts[254, 3] == 1


def square(top: int, left: int, side: int, size: int = 100) -> Mask:
    drawn = np.zeros((size, size), np.uint8)
    drawn[top : top + side, left : left + side] = 1
    return drawn


def test_boundary_of_a_square_by_hand() -> None:
    # diagonal 141.4: 3 pixels wide. Truth: 40 x 40 less 34 x 34; the prediction is one pixel to the right
    common, union = boundary_parts(square(30, 30, 40), square(30, 31, 40), 2)[:, 1]
    ring = 40**2 - 34**2
    # both rings: top and bottom bars share 39 of 40 columns in 3 rows each; left and right bars 2 of 3 columns in 34
    assert common == 2 * 3 * 39 + 2 * 2 * 34 and union == 2 * ring - common


def test_boundary_at_the_end_of_the_image_and_of_thin_things() -> None:
    whole = np.ones((100, 100), np.uint8)
    assert boundary_parts(whole, whole, 2)[:, 1].tolist() == [100**2 - 94**2] * 2
    line = np.zeros((100, 100), np.uint8)
    line[50] = 1
    assert boundary_parts(line, line, 2)[:, 1].tolist() == [100, 100]
    one = np.ones((1, 1), np.uint8)
    assert boundary_parts(one, one, 2)[:, 1].tolist() == [1, 1]
    assert boundary_parts(one, 0 * one, 2).tolist() == [[0, 0], [1, 1]]


def test_boundary_equals_the_authors_erosion() -> None:
    """mask_to_boundary of the authors' boundary_utils.py: a border of zeros, then a 3 x 3 erosion for every pixel."""

    def ring(member: NDArray[np.bool_]) -> NDArray[np.bool_]:
        width = max(1, round(0.02 * np.hypot(*member.shape)))
        framed = cv2.copyMakeBorder(member.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        return member & (eroded == 0)

    rng = np.random.default_rng(5)
    truth, predicted = (blobs(rng, (211, 160), [0, 1, 2]) for _ in range(2))
    common, union = boundary_parts(truth, predicted, 3)
    for label in range(3):
        one, other = ring(truth == label), ring(predicted == label)
        assert common[label] == (one & other).sum() and union[label] == (one | other).sum() > 0


def test_an_unlabeled_border_excuses_what_lies_inside_it() -> None:
    truth, predicted = square(30, 30, 40), square(29, 29, 42)
    truth[27:73, 27:73][square(3, 3, 40, 46) == 0] = IGNORE  # three pixels around the object, as in VOC
    common, union = boundary_parts(truth, predicted, 2)
    assert common.tolist() == union.tolist() and common[1] == 40**2 - 34**2


def test_groups_with_truth_counts_groups() -> None:
    pairs = [(mask("00"), mask("00")), (mask("01"), mask("11")), (mask("11"), mask("00")), (mask(".."), mask("00"))]
    assert tallied(pairs, 3).groups_with_truth(np.array([5, 5, 8, 9])) == {"per_class": [1, 2, 0]}


def test_saved_counts_come_back(tmp_path: Path) -> None:
    tally = tallied(made_pairs(1))
    tally.save(tmp_path / "tally.npz")
    loaded = Confusions.load(tmp_path / "tally.npz")
    weights = np.random.default_rng(0).integers(0, 3, (4, 6))
    for name, values in tally.resample(weights).items():
        np.testing.assert_array_equal(loaded.resample(weights)[name], values)
    assert (loaded.num_images, loaded.num_classes) == (6, 5)


def test_real_masks_against_a_whole_confusion_matrix(real_data: Path) -> None:
    names = sorted((real_data / "dubai_aerial" / "masks" / "test").glob("*.png"))[:12]
    truth = [np.asarray(Image.open(name)) for name in names]  # palette PNGs: Pillow gives the indices
    assert len(truth) == 12 and any((one == IGNORE).any() for one in truth)
    pairs = [(one, np.where(np.roll(one, 7, axis=1) == IGNORE, 0, np.roll(one, 7, axis=1))) for one in truth]
    weights = np.random.default_rng(2).multinomial(12, np.full(12, 1 / 12), size=5)
    found = tallied(pairs).resample(weights)
    for row, copies in enumerate(weights):
        confusion = np.zeros((6, 6), np.int64)
        for pair, count in zip(pairs, copies, strict=True):
            for _ in range(count):
                np.add.at(confusion, (np.minimum(pair[0], 5), pair[1]), 1)
        confusion = confusion[:5, :5]
        iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
        assert found["miou"][row] == pytest.approx(np.mean(iou[confusion.sum(1) > 0]), rel=1e-12)
        assert found["pixel_accuracy"][row] == pytest.approx(np.trace(confusion) / confusion.sum(), rel=1e-12)
