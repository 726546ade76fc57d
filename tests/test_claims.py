"""What pseudo-labels claim and what of it is right, against counting by hand and by brute force."""

from itertools import product

import numpy as np
import pytest

from tutelage.config import load_config
from tutelage.data.splits import draw_folds, even_draw
from tutelage.tasks.claims import joined_sums, sums_of
from tutelage.tasks.detection.claims import EXCUSED, HIT, MISS, claimed_boxes, outcomes, thresholds_from
from tutelage.tasks.segmentation.claims import THRESHOLDS, claimed_pixels
from tutelage.types import IGNORE, IGNORE_BOX, IGNORE_REGION, Boxes


def random_boxes(rng: np.random.Generator, count: int, scored: bool) -> Boxes:
    corner, side = rng.integers(0, 12, (count, 2)), rng.integers(2, 9, (count, 2))
    scores = rng.integers(5, 100, count) / 100 if scored else None
    ignore = np.zeros(count) if scored else rng.choice(3, count, p=[0.7, 0.15, 0.15])
    return Boxes.build(np.hstack([corner, corner + side]), rng.integers(0, 2, count), scores, ignore=ignore)


def shared(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.prod(np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None)))


def area(box: np.ndarray) -> float:
    return float(np.prod(box[2:] - box[:2]))


def counted_anew(found: Boxes, truth: Boxes, label: int, threshold: float, iou: float) -> tuple[int, int]:
    """Claims and hits of one class at one threshold, matched from scratch among the boxes above it alone."""
    ours = [row for row in range(len(found)) if found.labels[row] == label and found.scores[row] >= threshold]
    free = [row for row in range(len(truth)) if truth.labels[row] == label]
    claims = hits = 0
    for row in sorted(ours, key=lambda one: -found.scores[one]):
        box = found.xyxy[row].astype(float)
        scored = []
        for other in free:
            theirs = truth.xyxy[other].astype(float)
            common = shared(box, theirs)
            region = truth.ignore[other] == IGNORE_REGION
            overlap = common / area(box) if region else common / (area(box) + area(theirs) - common)
            if overlap >= iou:
                scored.append((truth.ignore[other] == 0, overlap, -other))
        if not scored:
            claims += 1
            continue
        counts, _, taken = max(scored)
        if truth.ignore[-taken] != IGNORE_REGION:
            free.remove(-taken)
        claims, hits = claims + bool(counts), hits + bool(counts)
    return claims, hits


@pytest.mark.parametrize("iou", [0.3, 0.5])
def test_boxes_are_counted_as_from_scratch_at_every_threshold(iou: float) -> None:
    rng = np.random.default_rng(0)
    thresholds = thresholds_from(0.05)
    total = 0
    for _ in range(30):
        found, truth = random_boxes(rng, 14, True), random_boxes(rng, 8, False)
        counted = claimed_boxes(found, truth, thresholds, 3, iou)
        for label, place in product(range(2), range(0, len(thresholds), 7)):
            limit = float(np.float32(thresholds[place]))
            expected = counted_anew(found, truth, label, limit, iou)
            assert (counted.claims[label, place], counted.hits[label, place]) == expected
            total += expected[1]
        for label in range(2):
            assert counted.truths[label] == ((truth.labels == label) & (truth.ignore == 0)).sum()
        assert not counted.claims[2].any() and not counted.truths[2]
    assert total > 50, "boxes that hit are among them"


def test_one_box_is_hit_once_and_the_surest_takes_it() -> None:
    truth = Boxes.build([[0, 0, 10, 10]], [0])
    found = Boxes.build([[0, 0, 10, 9], [0, 0, 10, 10]], [0, 0], [0.9, 0.8])
    assert outcomes(found, truth, 0.5).tolist() == [HIT, MISS]


def test_ignored_boxes_excuse_one_and_regions_all() -> None:
    difficult = Boxes.build([[0, 0, 10, 10]], [0], ignore=[IGNORE_BOX])
    crowd = Boxes.build([[0, 0, 40, 40]], [0], ignore=[IGNORE_REGION])
    twice = Boxes.build([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], [0.9, 0.8])
    assert outcomes(twice, difficult, 0.5).tolist() == [EXCUSED, MISS]
    assert outcomes(twice, crowd, 0.5).tolist() == [EXCUSED, EXCUSED]
    counted = claimed_boxes(twice, crowd, thresholds_from(0.05), 1, 0.5)
    assert not counted.claims.any() and not counted.truths.any()


def test_a_score_equal_to_a_threshold_reaches_it_as_in_a_store() -> None:
    found = Boxes.build([[0, 0, 4, 4]], [0], [0.7])
    thresholds = thresholds_from(0.5)
    counted = claimed_boxes(found, Boxes.empty(), thresholds, 1, 0.5)
    assert thresholds[0] == 0.5 and counted.claims[0].sum() == (thresholds <= 0.7).sum()


def test_pixels_are_counted_as_from_scratch_at_every_threshold() -> None:
    rng = np.random.default_rng(1)
    found, truth = rng.integers(0, 3, (2, 9, 11)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    levels = rng.integers(0, 256, found.shape).astype(np.uint8)
    counted = claimed_pixels(found, levels, truth, 4)
    stored = (levels - levels % 4) / 256  # what a store keeps
    for label, (place, threshold) in product(range(4), enumerate(THRESHOLDS)):
        claimed = (found == label) & (stored >= threshold) & (truth != IGNORE)
        assert counted.claims[label, place] == claimed.sum()
        assert counted.hits[label, place] == (claimed & (truth == label)).sum()
    assert counted.truths.tolist() == [(truth == label).sum() for label in range(4)]


def test_sums_of_shares_are_the_sums_of_all_in_order() -> None:
    rng = np.random.default_rng(2)
    thresholds = thresholds_from(0.05)
    images = [
        claimed_boxes(random_boxes(rng, 9, True), random_boxes(rng, 5, False), thresholds, 2, 0.5) for _ in range(7)
    ]
    whole = sums_of(images, thresholds, 2)
    shares = [sums_of(images[start::2], thresholds, 2) for start in (0, 1)]
    rows = np.concatenate([np.arange(0, 7, 2), np.arange(1, 7, 2)])
    for label in range(2):
        joined = joined_sums([share[label] for share in shares], np.argsort(rows))
        assert np.array_equal(joined.claims, whole[label].claims) and np.array_equal(joined.truths, whole[label].truths)
        assert whole[label].claims[:, 3].tolist() == images[3].claims[label].tolist()
    assert sums_of([], thresholds, 2)[1].hits.shape == (len(thresholds), 0)


def labels_of(images: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, images)]), np.array([label for one in images for label in one], np.int64)


def test_every_group_has_the_same_chance_of_being_set_aside() -> None:
    images = [[0, 0], [0], [1], [0, 1], [], [1, 2], [2], [0, 1, 2], [], [0]]
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    drawn = np.mean(
        [even_draw(*labels_of(images), groups, 0.3, np.random.default_rng(seed)) for seed in range(4000)], axis=0
    )
    assert np.abs(drawn - 0.3).max() < 0.03, "four standard errors"
    assert drawn[0] == drawn[1], "one group"


def test_the_last_group_of_a_class_is_never_set_aside() -> None:
    images = [[0], [0], [0], [0, 1]]
    for seed in range(20):
        assert not even_draw(*labels_of(images), np.arange(4), 0.9, np.random.default_rng(seed))[3]


def test_folds_are_even_and_keep_groups_and_classes_apart_evenly() -> None:
    images = [[0]] * 12 + [[1]] * 9 + [[]] * 3
    folds = draw_folds(*labels_of(images), np.arange(24), 3, np.random.default_rng(0))
    assert np.bincount(folds).tolist() == [8, 8, 8]
    assert np.bincount(folds[:12]).tolist() == [4, 4, 4] and np.bincount(folds[12:21]).tolist() == [3, 3, 3]
    together = np.repeat(np.arange(8), 3)
    folds = draw_folds(*labels_of(images), together, 4, np.random.default_rng(1))
    assert all(len(set(folds[together == group])) == 1 for group in range(8))


def test_thresholds_begin_at_the_floor_of_the_store() -> None:
    floor = load_config("detection-demo").postprocess.score_floor
    assert thresholds_from(floor)[0] >= floor and thresholds_from(0.0)[0] == 0.01
    assert thresholds_from(0.99).tolist() == [0.99] and thresholds_from(0.995).tolist() == [0.995]
