"""Anchors: places, shapes and order, against a plain loop."""

import math

import pytest
import torch

from tutelage.config import AnchorConfig
from tutelage.ops.anchors import anchors_on, level_sizes, make_anchors, num_anchors


def looped(canvas: tuple[int, int], levels: range, config: AnchorConfig) -> list[list[float]]:
    found = []
    for level in levels:
        stride = 2**level
        for y in range(math.ceil(canvas[0] / stride)):
            for x in range(math.ceil(canvas[1] / stride)):
                for octave in range(config.octaves):
                    for ratio in config.aspect_ratios:
                        side = config.size * stride * 2 ** (octave / config.octaves)
                        width, height = side * math.sqrt(ratio), side / math.sqrt(ratio)
                        cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                        found.append([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])
    return found


@pytest.mark.parametrize(
    ("canvas", "levels", "config"),
    [
        ((128, 256), range(3, 8), AnchorConfig()),
        ((96, 96), range(3, 6), AnchorConfig(size=3.0, octaves=2, aspect_ratios=(1.0, 0.5))),
        ((96, 160), range(4, 8), AnchorConfig(octaves=1, aspect_ratios=(1.0,))),
    ],
)
def test_anchors_equal_a_plain_loop(canvas: tuple[int, int], levels: range, config: AnchorConfig) -> None:
    torch.testing.assert_close(
        make_anchors(canvas, levels, config), torch.tensor(looped(canvas, levels, config)), atol=1e-3, rtol=0
    )


def test_first_anchor_by_hand() -> None:
    # stride 8, size 4: a 32 px square around (4, 4); then 2:1, of the same area
    anchors = make_anchors((64, 64), range(3, 4), AnchorConfig())
    torch.testing.assert_close(anchors[0], torch.tensor([-12.0, -12, 20, 20]))
    half = 16 * math.sqrt(2)
    torch.testing.assert_close(anchors[1], torch.tensor([4 - half, 4 - half / 2, 4 + half, 4 + half / 2]))


def test_count_at_640() -> None:
    assert len(make_anchors((640, 640), range(3, 8), AnchorConfig())) == 76_725
    assert num_anchors(AnchorConfig()) == 9


def test_tiny_maps_round_up() -> None:
    assert level_sizes((96, 130), range(5, 8)) == [(3, 5), (2, 3), (1, 2)]


def test_anchors_are_made_once_and_serve_training_after_inference() -> None:
    with torch.inference_mode():
        first = anchors_on(torch.device("cpu"), (64, 32), (3, 4), AnchorConfig())
    assert anchors_on(torch.device("cpu"), (64, 32), (3, 4), AnchorConfig()) is first
    assert not first.is_inference()
