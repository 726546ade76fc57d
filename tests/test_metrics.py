"""Point figures and our own matching against pycocotools; resampling against pycocotools on copied images."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tutelage.tasks.metrics import (
    Matches,
    average_precision,
    bootstrap_metrics,
    bootstrap_size_metrics,
    detection_metrics,
    match_detections,
    precision_recall,
)
from tutelage.tasks.metrics.matching import AREAS
from tutelage.types import IGNORE_BOX, IGNORE_REGION, Boxes

FIGURES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES = ("cat", "dog", "owl", "rare", "absent")


def pycocotools_precision(truth: Sequence[Boxes], predictions: Sequence[Boxes], num_classes: int) -> np.ndarray:
    """(T, 101, K, A) precision for at most 100 detections. `IGNORE_BOX` is given an area outside every range."""
    annotations: list[dict[str, Any]] = []
    for image, boxes in enumerate(truth):
        for (x1, y1, x2, y2), label, area, ignore in zip(
            boxes.xyxy.astype(float), boxes.labels, boxes.area, boxes.ignore, strict=True
        ):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            area = 3e10 if ignore == IGNORE_BOX else float(area)
            entry = {"image_id": image, "category_id": int(label), "bbox": bbox, "area": area}
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": int(ignore == IGNORE_REGION)})
    results = [
        {"image_id": image, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        for image, boxes in enumerate(predictions)
        for (x1, y1, x2, y2), label, score in zip(boxes.xyxy.astype(float), boxes.labels, boxes.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
            "annotations": annotations,
        }
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1]


def mean_or_none(values: np.ndarray) -> float | None:
    return float(values[values > -1].mean()) if (values > -1).any() else None


def reference_figures(precision: np.ndarray) -> dict[str, float | None]:
    parts = [
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        *(precision[..., area] for area in (1, 2, 3)),
    ]
    return dict(zip(FIGURES, map(mean_or_none, parts), strict=True))


def scene(
    rng: np.random.Generator, num_images: int, *, per_image: int = 6, extra: int = 8, distinct_scores: bool = False
) -> tuple[list[Boxes], list[Boxes]]:
    """Truth with crowds and difficult boxes, annotated areas of its own; predictions jittered, doubled, missed."""
    truth, predictions = [], []
    for _ in range(num_images):
        count = int(rng.integers(0, per_image + 1))
        labels = rng.choice(4, count, p=[0.5, 0.3, 0.18, 0.02])
        corner, side = rng.uniform(0, 300, (count, 2)), np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
        xyxy = np.hstack([corner, corner + side])
        area = side.prod(axis=1) * rng.uniform(0.4, 1.0, count)
        ignore = rng.choice([0, IGNORE_REGION, IGNORE_BOX], count, p=[0.76, 0.12, 0.12])
        truth.append(Boxes.build(xyxy, labels, area=area, ignore=ignore))
        again = np.repeat(np.arange(count), rng.integers(0, 4, count))
        jitter = rng.normal(0, 0.09, (len(again), 4)) * np.tile(side[again], 2)
        noise_corner = rng.uniform(0, 300, (extra, 2))
        noise = np.hstack([noise_corner, noise_corner + rng.uniform(5, 120, (extra, 2))])
        found = np.vstack([np.sort((xyxy[again] + jitter).reshape(-1, 2, 2), axis=1).reshape(-1, 4), noise])
        scores = rng.uniform(0, 1, len(found)) if distinct_scores else rng.integers(0, 20, len(found)) / 20
        predictions.append(Boxes.build(found, np.concatenate([labels[again], rng.integers(0, 4, extra)]), scores))
    return truth, predictions


def assert_equal_figures(truth: Sequence[Boxes], predictions: Sequence[Boxes], names: Sequence[str]) -> None:
    reference = pycocotools_precision(truth, predictions, len(names))
    figures = detection_metrics(truth, predictions, names)
    expected = reference_figures(reference)
    assert {name: figures[name] for name in FIGURES} == pytest.approx(expected, abs=1e-9)
    for label, name in enumerate(names):
        assert figures["per_class"][name]["ap"] == pytest.approx(mean_or_none(reference[:, :, label, 0]), abs=1e-9)
        assert figures["per_class"][name]["ap50"] == pytest.approx(mean_or_none(reference[0, :, label, 0]), abs=1e-9)
    matches = match_detections(truth, predictions, len(names))
    once = np.ones((1, len(truth)), np.int16)
    for column, area in enumerate(AREAS):
        ours = average_precision(matches, once, area)[0].T  # (T, K)
        theirs = reference[..., column].mean(axis=1)
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1.0), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_figures_and_matches_equal_pycocotools(seed: int) -> None:
    truth, predictions = scene(np.random.default_rng(seed), 40)
    assert_equal_figures(truth, predictions, NAMES)


@pytest.mark.parametrize(("misses", "expected"), [(99, 1 / 100), (100, 0.0)])
def test_only_the_surest_hundred_of_a_class_count(misses: int, expected: float) -> None:
    box, other = [0, 0, 10, 10], [50, 50, 60, 60]
    scores = np.linspace(1, 0.1, misses + 1)
    truth, found = [Boxes.build([box], [0])], [Boxes.build([*[other] * misses, box], [0] * (misses + 1), scores)]
    assert detection_metrics(truth, found, ("a",))["ap"] == pytest.approx(expected)
    assert_equal_figures(truth, found, ("a",))


@pytest.mark.parametrize(("second", "expected"), [([6, 0, 16, 10], 51 / 101), ([-2, 0, 8, 10], 1.0)])
def test_of_equal_overlaps_the_later_box_is_taken(second: list[int], expected: float) -> None:
    # The first detection lies between both boxes (IoU 2/3 each); the second reaches the later box, or the earlier one.
    truth = [Boxes.build([[0, 0, 10, 10], [4, 0, 14, 10]], [0, 0])]
    found = [Boxes.build([[2, 0, 12, 10], second], [0, 0], [0.9, 0.8])]
    assert detection_metrics(truth, found, ("a",))["ap50"] == pytest.approx(expected)
    assert_equal_figures(truth, found, ("a",))


def test_boxes_on_the_edge_of_a_threshold_and_of_a_size_match_alike() -> None:
    grid = np.array([[0, 0, 32, 32], [0, 0, 32, 16], [0, 0, 32, 24], [8, 0, 40, 32], [0, 0, 96, 96], [0, 0, 96, 48]])
    rng = np.random.default_rng(8)
    truth = [Boxes.build(grid[rng.integers(0, 6, 5)], rng.integers(0, 2, 5)) for _ in range(30)]
    predictions = [
        Boxes.build(grid[rng.integers(0, 6, 8)], rng.integers(0, 2, 8), rng.integers(1, 4, 8) / 4) for _ in range(30)
    ]
    assert_equal_figures(truth, predictions, ("a", "b"))


def results_with_made_truth(path: Path, seed: int) -> tuple[list[Boxes], list[Boxes], int]:
    """Detections as others wrote them, and truth made of them: jittered, some dropped, some crowds or difficult."""
    rows = json.loads(path.read_text())
    categories = {category: label for label, category in enumerate(sorted({row["category_id"] for row in rows}))}
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for image in sorted({row["image_id"] for row in rows}):
        own = [row for row in rows if row["image_id"] == image]
        x, y, width, height = np.array([row["bbox"] for row in own], float).T
        labels = [categories[row["category_id"]] for row in own]
        boxes = Boxes.build(np.stack([x, y, x + width, y + height], 1), labels, [row["score"] for row in own])
        predictions.append(boxes)
        kept = boxes.select(rng.uniform(size=len(own)) < 0.8)
        shift = rng.normal(0, 0.06, (len(kept), 4)) * np.tile(kept.xyxy[:, 2:] - kept.xyxy[:, :2], 2)
        moved = np.sort((kept.xyxy + shift).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        ignore = rng.choice([0, IGNORE_REGION, IGNORE_BOX], len(kept), p=[0.8, 0.1, 0.1])
        truth.append(Boxes.build(moved, kept.labels, area=kept.area * 0.7, ignore=ignore))
    return truth, predictions, len(categories)


def test_figures_equal_pycocotools_on_published_detections(real_data: Path) -> None:
    path = real_data / "annotation_zoo" / "cocoapi_results" / "results" / "instances_val2014_fakebbox100_results.json"
    truth, predictions, num_classes = results_with_made_truth(path, seed=0)
    assert sum(map(len, predictions)) > 500
    assert_equal_figures(truth, predictions, [f"class {label}" for label in range(num_classes)])


def test_a_region_excuses_many_detections_and_a_difficult_box_one() -> None:
    big, small = [0, 0, 100, 100], [10, 10, 30, 30]  # small lies inside big: IoA 1, IoU 0.04
    counted = [200, 200, 240, 240]
    found = Boxes.build([small, small, counted], [0, 0, 0], [0.9, 0.8, 0.7])
    region = Boxes.build([big, counted], [0, 0], ignore=[IGNORE_REGION, 0])
    assert detection_metrics([region], [found], ("a",))["ap"] == pytest.approx(1.0)
    difficult_by_overlap = Boxes.build([big, counted], [0, 0], ignore=[IGNORE_BOX, 0])
    # Two false positives stand before the hit: precision 1/3 at every recall level.
    assert detection_metrics([difficult_by_overlap], [found], ("a",))["ap"] == pytest.approx(1 / 3)
    difficult = Boxes.build([small, counted], [0, 0], ignore=[IGNORE_BOX, 0])
    # It excuses the first, the second is a false positive: 1/2.
    assert detection_metrics([difficult], [found], ("a",))["ap"] == pytest.approx(1 / 2)


def test_undefined_figures_are_none() -> None:
    large = Boxes.build([[0, 0, 200, 200]], [0])
    figures = detection_metrics([large], [large], ("a", "b"))
    assert figures["ap"] == pytest.approx(1.0)
    assert figures["ap_small"] is None and figures["ap_medium"] is None
    assert figures["ap_large"] == pytest.approx(1.0)
    assert figures["per_class"]["b"] == {"ap": None, "ap50": None, "boxes": 0}
    assert figures["per_class"]["a"]["boxes"] == 1


@pytest.mark.parametrize("num_images", [0, 2])
def test_no_truth_gives_no_figure_and_no_predictions_give_zero(num_images: int) -> None:
    nothing = [Boxes.empty()] * num_images
    assert detection_metrics(nothing, nothing, ("a",))["ap"] is None
    box = Boxes.build([[0, 0, 9, 9]], [0])
    assert detection_metrics([*nothing, box], [*nothing, Boxes.empty()], ("a",))["ap"] == 0.0
    matches = match_detections(nothing, nothing, 1)
    assert np.isnan(bootstrap_metrics(matches, np.ones((2, num_images), int))["ap"]).all()


def test_the_evaluator_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    detection_metrics(*scene(np.random.default_rng(0), 3), NAMES)
    assert capfd.readouterr() == ("", "")


def copied(images: Sequence[Boxes], weights: np.ndarray) -> list[Boxes]:
    return [boxes for boxes, copies in zip(images, weights, strict=True) for _ in range(copies)]


def assert_resamples_equal_copies(truth: Sequence[Boxes], predictions: Sequence[Boxes], weights: np.ndarray) -> None:
    figures = bootstrap_metrics(match_detections(truth, predictions, len(NAMES)), weights)
    for row, copies in enumerate(weights):
        reference = pycocotools_precision(copied(truth, copies), copied(predictions, copies), len(NAMES))[..., 0]
        expected = [mean_or_none(reference), mean_or_none(reference[0]), mean_or_none(reference[5])]
        assert [figures[name][row] for name in ("ap", "ap50", "ap75")] == pytest.approx(expected, abs=1e-9)
        for label in range(len(NAMES)):
            per_class = mean_or_none(reference[:, :, label])
            assert figures["class_ap"][row, label] == pytest.approx(
                np.nan if per_class is None else per_class, abs=1e-9, nan_ok=True
            )


def test_a_resample_equals_pycocotools_on_copied_images() -> None:
    rng = np.random.default_rng(3)
    truth, predictions = scene(rng, 25, distinct_scores=True)
    # Scores in steps tie between images; within an image they stay distinct.
    predictions = [
        replace(boxes, scores=(np.argsort(np.argsort(boxes.scores)) / 40).astype(np.float32)) for boxes in predictions
    ]
    assert_resamples_equal_copies(truth, predictions, rng.multinomial(25, [1 / 25] * 25, size=6))


def test_resampled_sizes_equal_pycocotools_on_copied_images() -> None:
    rng = np.random.default_rng(6)
    truth, predictions = scene(rng, 25, distinct_scores=True)
    weights = rng.multinomial(25, [1 / 25] * 25, size=4)
    matches = match_detections(truth, predictions, len(NAMES))
    figures = bootstrap_size_metrics(matches, weights, threads=2)
    assert list(figures) == FIGURES[3:]
    for row, copies in enumerate(weights):
        reference = pycocotools_precision(copied(truth, copies), copied(predictions, copies), len(NAMES))
        expected = [mean_or_none(reference[..., area]) for area in (1, 2, 3)]
        assert None not in expected
        assert [figures[name][row] for name in FIGURES[3:]] == pytest.approx(expected, abs=1e-9)


def test_groups_that_hold_a_size_are_counted_over_all_classes() -> None:
    small, large = (
        Boxes.build([[0, 0, 9, 9]], [0]),
        Boxes.build([[0, 0, 200, 200], [0, 0, 9, 9]], [1, 1], ignore=[0, 1]),
    )
    matches = match_detections([small, large, large, small], [Boxes.empty()] * 4, 2)
    groups = np.array([0, 0, 1, 2])
    assert [matches.groups_with_size(groups, area) for area in ("small", "medium", "large")] == [2, 0, 2]


def test_ties_within_an_image_keep_their_order_whatever_the_weights() -> None:
    rng = np.random.default_rng(4)
    truth, predictions = scene(rng, 20)
    matches = match_detections(truth, predictions, len(NAMES))
    # The stated order, written out as scores without ties: score, then image, then place in the image.
    image = np.repeat(np.arange(20), [len(boxes) for boxes in predictions])
    scores = np.concatenate([boxes.scores for boxes in predictions])
    place = np.empty(len(scores))
    place[np.lexsort((image, -scores))] = np.linspace(1, 0.1, len(scores))
    untied = [replace(boxes, scores=place[image == row].astype(np.float32)) for row, boxes in enumerate(predictions)]
    weights = rng.multinomial(20, [1 / 20] * 20, size=5)
    assert_resamples_equal_copies(truth, untied, weights)
    tied = average_precision(matches, weights)
    np.testing.assert_array_equal(tied, average_precision(match_detections(truth, untied, len(NAMES)), weights))


def test_threads_and_blocks_do_not_change_a_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    truth, predictions = scene(rng, 15)
    weights = rng.integers(0, 3, (40, 15))
    whole = average_precision(match_detections(truth, predictions, 5), weights)
    monkeypatch.setattr("tutelage.tasks.metrics.matching.PAIRS_AT_ONCE", 7)
    monkeypatch.setattr("tutelage.tasks.metrics.resampling.ELEMENTS_AT_ONCE", 100)
    np.testing.assert_array_equal(whole, average_precision(match_detections(truth, predictions, 5), weights, threads=3))


def test_matches_survive_the_file(tmp_path: Path) -> None:
    truth, predictions = scene(np.random.default_rng(6), 10)
    matches = match_detections(truth, predictions, 5)
    matches.save(tmp_path / "matches.npz")
    again = Matches.load(tmp_path / "matches.npz")
    assert again.num_images == 10
    weights = np.random.default_rng(0).integers(0, 3, (4, 10))
    np.testing.assert_array_equal(average_precision(matches, weights), average_precision(again, weights))
    np.testing.assert_array_equal(matches.score, again.score)


def test_groups_with_truth_counts_groups_not_boxes() -> None:
    box = [0, 0, 9, 9]
    truth = [Boxes.build([box, box], [0, 0]), Boxes.build([box], [0]), Boxes.build([box], [1], ignore=[IGNORE_REGION])]
    matches = match_detections(truth, [Boxes.empty()] * 3, 2)
    assert matches.groups_with_truth(np.array([0, 1, 2])).tolist() == [2, 0]
    assert matches.groups_with_truth(np.array([5, 5, 2])).tolist() == [1, 0]


def test_precision_and_recall_by_hand() -> None:
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    truth = [Boxes.build(boxes, [0, 0, 0], ignore=[0, 0, IGNORE_BOX])]
    found = [Boxes.build([boxes[0], [90, 90, 99, 99], boxes[2], boxes[1]], [0] * 4, [0.9, 0.8, 0.7, 0.6])]
    recall, precision = precision_recall(match_detections(truth, found, 2), 0)
    assert recall == pytest.approx([1 / 2, 1 / 2, 1])  # the third detection is ignored
    assert precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert [len(values) for values in precision_recall(match_detections(truth, found, 2), 1)] == [0, 0]
