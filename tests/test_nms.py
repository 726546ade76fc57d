"""Suppression, against torchvision and against loops."""

import math

import pytest
import torch
import torchvision

from tutelage.ops.boxes import pairwise_iou
from tutelage.ops.nms import best_of_each_class, hard_nms, soft_nms


def crowded(seed: int, count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, scores, torch.randint(classes, (count,), generator=generator)


def looped_soft_nms(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, sigma: float, floor: float, most: int
) -> list[tuple[int, float]]:
    """One class after the other, one box after the other (arXiv:1704.04503, fig. 3)."""
    found = []
    for label in labels.unique().tolist():
        live = {row: scores[row].item() for row in range(len(boxes)) if labels[row] == label}
        while live:
            row = max(live, key=lambda each: live[each])
            score = live.pop(row)
            if score < floor:
                break
            found.append((row, score))
            for other in live:
                live[other] *= math.exp(-(pairwise_iou(boxes[[row]], boxes[[other]]).item() ** 2) / sigma)
    return sorted(found, key=lambda each: -each[1])[:most]


@pytest.mark.parametrize("seed", range(3))
def test_hard_nms_equals_torchvision_class_by_class(seed: int) -> None:
    boxes, scores, labels = crowded(seed, 200, 4)
    keep, kept_scores = hard_nms(boxes, scores, labels, iou=0.5, max_detections=1000)
    expected = set()
    for label in range(4):
        rows = (labels == label).nonzero()[:, 0]
        expected |= set(rows[torchvision.ops.nms(boxes[rows], scores[rows], 0.5)].tolist())
    assert set(keep.tolist()) == expected
    assert 0 < len(expected) < 200
    assert torch.equal(kept_scores, scores[keep])
    assert torch.equal(kept_scores, kept_scores.sort(descending=True).values)


def test_hard_nms_keeps_the_best_of_all_classes() -> None:
    boxes, scores, labels = crowded(5, 100, 3)
    every = hard_nms(boxes, scores, labels, iou=0.5, max_detections=100)[0]
    assert torch.equal(hard_nms(boxes, scores, labels, iou=0.5, max_detections=5)[0], every[:5])


@pytest.mark.parametrize(
    ("seed", "sigma", "floor", "most"), [(0, 0.3, 0.05, 100), (1, 0.5, 0.0, 500), (2, 0.3, 0.2, 7)]
)
def test_soft_nms_equals_a_loop(seed: int, sigma: float, floor: float, most: int) -> None:
    boxes, scores, labels = crowded(seed, 60, 3)
    rows, decayed = soft_nms(boxes, scores, labels, sigma=sigma, floor=floor, max_detections=most)
    expected = looped_soft_nms(boxes, scores, labels, sigma, floor, most)
    assert rows.tolist() == [row for row, _ in expected]
    torch.testing.assert_close(decayed, torch.tensor([score for _, score in expected]))


def test_soft_nms_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    rows, decayed = soft_nms(boxes, scores, labels, sigma=0.3, floor=0.05, max_detections=10)
    assert rows.tolist() == [0, 2, 1]  # IoU 0.5 with the first: 0.8 * exp(-0.25 / 0.3); class 1 is left alone
    torch.testing.assert_close(decayed, torch.tensor([0.9, 0.7, 0.8 * math.exp(-0.25 / 0.3)]))


def test_nothing_to_suppress() -> None:
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert len(soft_nms(boxes, scores, labels, sigma=0.3, floor=0.05, max_detections=10)[0]) == 0
    assert len(hard_nms(boxes, scores, labels, iou=0.5, max_detections=10)[0]) == 0


def test_best_of_each_class() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    labels = torch.tensor([0, 0, 1, 0, 1])
    assert sorted(best_of_each_class(scores, labels, 2).tolist()) == [1, 2, 3, 4]
    assert sorted(best_of_each_class(scores, labels, 1).tolist()) == [1, 2]
    assert sorted(best_of_each_class(scores, labels, 9).tolist()) == [0, 1, 2, 3, 4]
