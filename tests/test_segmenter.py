"""The segmentation network: sizes of the paper's, fusion against a literal one, shapes, starts, recomputation."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.config import ModelConfig
from tutelage.engine.recompute import blocks, recomputed_activations
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.models.model import Segmenter, build_segmenter
from tutelage.models.pyramids import fuse

SMALL = ModelConfig(backbone="resnet10t", max_level=5, pyramid_width=16, head_width=16, head_depth=2, canvas=(64, 96))
NAS = {"pyramid": "nas-fpn", "pyramid_repeats": 1, "max_level": 7, "canvas": (128, 128)}
PAPER = ModelConfig(
    pyramid="nas-fpn", pyramid_separable=True, head_depth=3, drop_path=0.2, backbone_norm="own", canvas=(512, 512)
)


def segmenter(classes: int = 5, **changes: object) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(SMALL.model_copy(update=changes), classes)


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "last", "head", "millions", "with_classifier", "billions"),
    [
        ("tf_efficientnet_b7", 640, 2560, 67.5, 71.7, 60),
        ("tf_efficientnet_l2", 1376, 5504, 472.9, 486.0, 229),
    ],
)
def test_the_papers_segmenters(
    backbone: str, last: int, head: int, millions: float, with_classifier: float, billions: float
) -> None:
    with torch.device("meta"):
        model = build_segmenter(PAPER.model_copy(update={"backbone": backbone}), 21)
    classifier = last * head + 2 * head + head * 1000 + 1000  # convolution, batch-norm and linear layer of ImageNet's
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert round((count_parameters(model) + classifier) / 1e6, 1) == with_classifier
    assert count_multiply_adds(model, (512, 512)) / 1e9 == pytest.approx(billions, rel=0.015)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (64, 96)),
        ({"max_level": 7}, (96, 160)),  # levels 6 and 7 reach beyond this canvas
        ({"min_level": 2}, (64, 96)),
        ({"min_level": 4, "head_depth": 0}, (64, 64)),
        (NAS, (128, 256)),
        ({"backbone": "mobilenetv3_small_050"}, (64, 96)),
    ],
)
def test_logits_are_at_stride_4(changes: dict[str, object], size: tuple[int, int]) -> None:
    model = segmenter(**changes).eval()
    with torch.no_grad():
        logits = model(pictures(2, 3, *size), torch.tensor([size, (40, 50)]))
    assert logits.shape == (2, 5, size[0] // 4, size[1] // 4)


def literal_fusion(levels: list[NDArray[np.float64]], min_level: int) -> NDArray[np.float64]:
    """Sum at stride 4, pixel by pixel: centers at (i + 0.5) x stride, the nearest four centers, edges repeated."""
    height, width = (side * 2 ** (min_level - 2) for side in levels[0].shape)
    fused = np.zeros((height, width))
    for level, values in enumerate(levels, min_level):
        for y in range(height):
            for x in range(width):
                places = [
                    min(max((at + 0.5) / 2 ** (level - 2) - 0.5, 0), side - 1)
                    for at, side in zip((y, x), values.shape, strict=True)
                ]
                (top, left), (down, right) = [int(p) for p in places], [p % 1 for p in places]
                bottom, far = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
                upper = values[top, left] * (1 - right) + values[top, far] * right
                lower = values[bottom, left] * (1 - right) + values[bottom, far] * right
                fused[y, x] += upper * (1 - down) + lower * down
    return fused


@pytest.mark.parametrize("sides", [[(4, 8), (2, 4), (1, 2)], [(3, 5), (2, 3), (1, 2)]])  # the latter rounded up
@pytest.mark.parametrize("min_level", [2, 3])
def test_levels_are_summed_where_they_lie(sides: list[tuple[int, int]], min_level: int) -> None:
    levels = [np.random.default_rng(number).random(side) for number, side in enumerate(sides)]
    given = [torch.from_numpy(level)[None, None] for level in levels]
    before = [level.clone() for level in given]
    np.testing.assert_allclose(fuse(given, min_level)[0, 0].numpy(), literal_fusion(levels, min_level), atol=1e-12)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_fusion_is_one_step_not_a_chain_of_doublings() -> None:
    level = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    chain = level
    for _ in range(2):
        chain = nn.functional.interpolate(chain, scale_factor=2, mode="bilinear", align_corners=False)
    assert (fuse([level], 4) - chain).abs().max() > 0.01


@pytest.mark.parametrize(("width", "deviation"), [(256, 0.01), (64, 0.02)])
def test_how_the_head_starts(width: int, deviation: float) -> None:
    head = segmenter(head_depth=3, pyramid_width=width, head_width=width).head
    assert [conv.kernel_size for conv in head.tower.convs] == [(3, 3)] * 3
    assert head.class_predictor.kernel_size == (1, 1)
    for conv in (*head.tower.convs, head.class_predictor):
        assert float(conv.weight.detach().std()) == pytest.approx(deviation, rel=0.2) and (conv.bias == 0).all()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in head.modules()) == 3


def test_padding_content_changes_nothing() -> None:
    model = segmenter().eval()
    images, valid = pictures(1, 3, 64, 96), torch.tensor([[40, 50]])
    other = images.clone()
    other[:, :, 40:], other[:, :, :, 50:] = 7, 200
    with torch.no_grad():
        assert torch.equal(model(images, valid), model(other, valid))


def test_channels_last_and_contiguous_agree() -> None:
    model = segmenter().eval()
    nn.init.normal_(model.head.class_predictor.weight, generator=torch.Generator().manual_seed(0))
    images, valid = pictures(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)
    with torch.no_grad():
        plain = model(images, valid)
        model.to(memory_format=torch.channels_last)
        last = model(images.contiguous(memory_format=torch.channels_last), valid)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, NAS, {**NAS, "pyramid_separable": True, "activation": "silu"}])
def test_recomputed_activations_change_no_gradient_and_no_statistic(changes: dict[str, object]) -> None:
    results = []
    for enabled in (False, True):
        model = segmenter(drop_path=0.5, **changes).train()
        images = pictures(2, 3, *model.config.canvas)
        with recomputed_activations(model, enabled), torch.random.fork_rng(devices=[]):
            model(images, torch.tensor([model.config.canvas] * 2)).square().sum().backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        results.append({**gradients, **{f"{name} (buffer)": each for name, each in model.named_buffers()}})
    assert results[0].keys() == results[1].keys() and len(results[0]) > 100
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, msg=name)


@pytest.mark.parametrize(
    ("separable", "blocks_of_a_pyramid"),
    [(False, ["Cell"] * 2), (True, ["Sequential"] * (3 + 2 * 7))],  # cells whole, or their merges and the inputs
)
def test_pyramid_and_head_are_found_to_be_recomputed(separable: bool, blocks_of_a_pyramid: list[str]) -> None:
    model = segmenter(**{**NAS, "pyramid_repeats": 2, "pyramid_separable": separable})
    assert [type(block).__name__ for block in blocks(model.pyramid)] == blocks_of_a_pyramid
    assert model.head in list(blocks(model))
