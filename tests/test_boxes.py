"""Overlap and coding of boxes: torchvision, hand-computed numbers, round trips."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.ops.boxes import box_area, clip_boxes, decode, encode, pairwise_ioa, pairwise_iou


def random_boxes(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 100
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 60], dim=-1)


def test_iou_equals_torchvision() -> None:
    a, b = random_boxes(0, 40), random_boxes(1, 30)
    torch.testing.assert_close(pairwise_iou(a, b), torchvision.ops.box_iou(a, b))


def test_iou_is_batched_and_broadcasts() -> None:
    a, b = random_boxes(0, 3, 5), random_boxes(1, 7)
    batched = pairwise_iou(a, b)
    assert batched.shape == (3, 5, 7)
    torch.testing.assert_close(batched[2], pairwise_iou(a[2], b))


def test_overlaps_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[5.0, 0, 15, 20], [20, 20, 30, 30], [2, 2, 4, 4]])
    # intersections 50, 0, 4; unions 100 + 200 - 50, 200, 100
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[0.2, 0.0, 0.04]]))
    torch.testing.assert_close(pairwise_ioa(a, b), torch.tensor([[0.5, 0.0, 0.04]]))
    torch.testing.assert_close(pairwise_ioa(b, a), torch.tensor([[0.25], [0.0], [1.0]]))


def test_empty_boxes_overlap_nothing() -> None:
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_iou(point, torch.tensor([[0.0, 0, 10, 10]])).item() == 0
    assert box_area(torch.tensor([[5.0, 5, 2, 9]])).item() == 0


def test_encode_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 20]])  # center (5, 10)
    box = torch.tensor([[5.0, 10, 25, 20]])  # center (15, 15), 20 x 10
    expected = torch.tensor([[1.0, 0.25, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode(box, anchor), expected)


def test_decode_inverts_encode() -> None:
    boxes, anchors = random_boxes(2, 4, 50), random_boxes(3, 50)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-5)


def test_decode_of_nothing_is_the_anchor_and_growth_is_capped() -> None:
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    torch.testing.assert_close(decode(torch.zeros(1, 4), anchor), anchor)
    grown = decode(torch.tensor([[0.0, 0, 50, 50]]), anchor)
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0))


@pytest.mark.parametrize("size", [(50, 80), (80, 50)])
def test_clip_equals_torchvision(size: tuple[int, int]) -> None:
    boxes = random_boxes(4, 30) - 20
    clipped = clip_boxes(boxes, torch.tensor(size))
    torch.testing.assert_close(clipped, torchvision.ops.clip_boxes_to_image(boxes, size))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 200, width=32), min_size=8, max_size=8))
def test_iou_is_symmetric_and_bounded(values: list[float]) -> None:
    corners = torch.tensor(values).reshape(2, 2, 2).sort(dim=1).values.reshape(2, 4)
    overlap = pairwise_iou(corners, corners)
    torch.testing.assert_close(overlap, overlap.T)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-6)).all()
