"""The networks as a whole: sizes of the paper's, shapes, starts, normalization."""

import math

import pytest
import torch
from torch import nn

from tutelage.config import AnchorConfig, ModelConfig
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.models.model import RetinaNet, build_classifier, build_detector
from tutelage.ops.anchors import make_anchors
from tutelage.types import InputError

SMALL = ModelConfig(backbone="resnet10t", max_level=5, pyramid_width=16, head_width=16, head_depth=1, canvas=(64, 96))


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (ModelConfig(backbone="resnet50"), 34.1),
        (ModelConfig(backbone="tf_efficientnet_b7", backbone_norm="own", drop_path=0.2), 72.1),
    ],
)
def test_parameters_of_the_papers_detectors(config: ModelConfig, millions: float) -> None:
    with torch.device("meta"):
        assert round(count_parameters(build_detector(config, 91)) / 1e6, 1) == millions


def test_largest_detector_can_be_described() -> None:
    with torch.device("meta"):
        assert count_parameters(build_detector(ModelConfig(backbone="tf_efficientnet_l2"), 91)) > 470e6


def test_multiply_adds_of_the_model_zoo() -> None:
    with torch.device("meta"):
        detector = build_detector(ModelConfig(backbone="resnet50"), 91)
    assert count_multiply_adds(detector, (640, 640)) / 1e9 == pytest.approx(97.0, rel=0.005)


@pytest.mark.parametrize("levels", [(3, 5), (3, 7), (4, 6), (3, 4), (2, 8)])
@pytest.mark.parametrize("anchors", [AnchorConfig(), AnchorConfig(octaves=1, aspect_ratios=(1.0, 0.5))])
def test_outputs_follow_the_anchors(levels: tuple[int, int], anchors: AnchorConfig) -> None:
    config = SMALL.model_copy(update={"min_level": levels[0], "max_level": levels[1], "anchors": anchors})
    model = build_detector(config, 5).eval()
    with torch.no_grad():
        outputs = model(pictures(2, 3, 64, 96), torch.tensor([[64, 96], [30, 96]]))
    count = len(make_anchors((64, 96), model.levels, anchors))
    assert outputs.logits.shape == (2, count, 5)
    assert outputs.deltas.shape == (2, count, 4)


def test_order_of_the_outputs_is_level_y_x_anchor() -> None:
    model = build_detector(SMALL, 3).eval()
    features = [torch.zeros(1, 16, 8, 12), torch.zeros(1, 16, 4, 6), torch.zeros(1, 16, 2, 3)]
    features[1][0, 5, 2, 4] = 1.0  # one cell of level 4: it moves this cell and its neighbors alone
    with torch.no_grad():
        model.head.class_predictor.weight.normal_()
        model.head.box_predictor.weight.normal_()
        base = model.head([torch.zeros_like(each) for each in features])
        changed = model.head(features)
    for before, after in zip(base, changed, strict=True):
        moved = (before != after).any(dim=2)[0].nonzero()[:, 0]
        anchors = make_anchors((64, 96), model.levels, SMALL.anchors)[moved]
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert moved.min() >= 8 * 12 * 9 and moved.max() < (8 * 12 + 4 * 6) * 9
        cells = (centers / 16 - 0.5).round()  # x 4, y 2, and two 3 x 3 convolutions around them
        assert cells.min(dim=0).values.tolist() == [4 - 2, 2 - 2]
        assert cells.max(dim=0).values.tolist() == [5, 3]


def test_foreground_starts_at_the_prior() -> None:
    model = build_detector(SMALL, 3)
    outputs = model(pictures(2, 3, 64, 96), torch.tensor([[64, 96]] * 2))
    torch.testing.assert_close(outputs.logits.sigmoid(), torch.full_like(outputs.logits, 0.01), atol=1e-4, rtol=0)
    assert outputs.deltas.abs().max() < 0.01
    assert model.head.class_predictor.bias[0].item() == pytest.approx(-math.log(99))


def test_towers_share_convolutions_and_keep_batchnorm_by_level() -> None:
    model = build_detector(SMALL.model_copy(update={"head_depth": 2, "max_level": 7}), 3)
    for tower in (model.head.class_tower, model.head.box_tower):
        assert len(tower.convs) == 2
        assert [len(norms) for norms in tower.norms] == [2] * 5
        assert 0.005 < tower.convs[0].weight.std() < 0.015
    norms = [module for module in model.head.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len({id(norm) for norm in norms}) == 20


def test_pyramid_is_linear_at_its_end_and_level_7_sees_an_activated_level_6() -> None:
    model = build_detector(SMALL.model_copy(update={"max_level": 7}), 3).eval()
    features = [
        torch.randn(1, c, 8 // 2**n, 12 // 2**n, generator=torch.Generator().manual_seed(1))
        for n, c in enumerate(model.backbone.channels)
    ]
    pyramid = model.pyramid
    p3, p4, p5, p6, p7 = pyramid(features)
    assert all((level < 0).any() for level in (p3, p4, p5, p6))
    scale = 1 / math.sqrt(1 + SMALL.norm.eps)  # batch-norm at its start, in eval mode
    c5 = pyramid.laterals[2](features[2])
    finished = pyramid.outputs[2](c5)
    torch.testing.assert_close(p5, finished * scale)
    torch.testing.assert_close(p6, pyramid.extras[0](finished) * scale)
    torch.testing.assert_close(p7, pyramid.extras[1](pyramid.extras[0](finished).relu()) * scale)
    merged = pyramid.laterals[1](features[1]) + c5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(p4, pyramid.outputs[1](merged) * scale)


def test_normalization_zeroes_the_padding() -> None:
    model = build_detector(SMALL, 3)
    images = pictures(2, 3, 64, 96)
    normalized = model.normalize(images, torch.tensor([[64, 96], [40, 50]]))
    expected = (images[1, :, :40, :50].float() / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    torch.testing.assert_close(normalized[1, :, :40, :50], expected)
    assert (normalized[1, :, 40:] == 0).all() and (normalized[1, :, :, 50:] == 0).all()
    assert (normalized[0] != 0).all()


def test_padding_content_changes_nothing() -> None:
    model = build_detector(SMALL, 3).eval()
    nn.init.normal_(model.head.class_predictor.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    images, valid = pictures(1, 3, 64, 96), torch.tensor([[40, 50]])
    other = images.clone()
    other[:, :, 40:], other[:, :, :, 50:] = 7, 200
    with torch.no_grad():
        assert torch.equal(model(images, valid).logits, model(other, valid).logits)


def test_channels_last_and_contiguous_agree() -> None:
    model = build_detector(SMALL, 3).eval()
    nn.init.normal_(model.head.box_predictor.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    images, valid = pictures(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)
    with torch.no_grad():
        plain = model(images, valid)
        model.to(memory_format=torch.channels_last)
        last = model(images.contiguous(memory_format=torch.channels_last), valid)
    torch.testing.assert_close(plain.deltas, last.deltas, atol=1e-4, rtol=1e-4)


def test_classifier_shares_the_detectors_backbone() -> None:
    detector, classifier = build_detector(SMALL, 3), build_classifier(SMALL, 7)
    assert classifier(pictures(2, 3, 64, 64), torch.tensor([[64, 64]] * 2)).shape == (2, 7)
    assert set(classifier.backbone.state_dict()) == set(detector.backbone.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas": (100, 96)}, r"model\.canvas: 100 x 96; both sides must be multiples of 32.*\[128, 96\]"),
        ({"min_level": 5, "max_level": 4}, r"model\.min_level: 5 is above model\.max_level 4"),
        ({"backbone": "resnet"}, "knows no model"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_detector(SMALL.model_copy(update=changes), 3)


def test_the_network_compiles_whole() -> None:
    model = build_detector(SMALL, 3).eval()
    images, valid = pictures(1, 3, 64, 96), torch.tensor([[64, 96]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, valid).logits, model(images, valid).logits)
    assert isinstance(model, RetinaNet)


def test_a_classifier_drops_features_while_it_trains() -> None:
    images, valid = torch.full((2, 3, 64, 64), 90, dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    model = build_classifier(SMALL, 7, dropout=1.0).train()
    nn.init.ones_(model.linear.bias)
    assert torch.equal(model(images, valid), torch.ones(2, 7))
    assert not torch.equal(model.eval()(images, valid), torch.ones(2, 7))
