"""timm networks behind one interface."""

import pytest
import timm
import torch
from torch import nn

from tutelage.config import NormConfig
from tutelage.models.backbones import build_backbone, is_plain, to_sync_batchnorm
from tutelage.types import InputError


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "convnext_atto", "mobilenetv3_small_050"])
def test_features_at_the_strides_that_were_asked_for(name: str) -> None:
    backbone = build_backbone(name, levels=(3, 4, 5)).eval()
    assert backbone.strides == [8, 16, 32]
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape) for each in features] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", [512, 1024, 2048]),
        ("resnet101", [512, 1024, 2048]),
        ("tf_efficientnet_b7", [80, 224, 640]),  # level 4 is the end of stage 5
        ("tf_efficientnet_l2", [176, 480, 1376]),
    ],
)
def test_channels_of_the_papers_networks(name: str, channels: list[int]) -> None:
    with torch.device("meta"):
        assert build_backbone(name).channels == channels


def test_stages_above_the_coarsest_level_are_not_built() -> None:
    with torch.device("meta"):
        whole, cut = build_backbone("resnet10t"), build_backbone("resnet10t", levels=(3, 4))
    assert set(cut.state_dict()) < set(whole.state_dict())
    assert not any("layer4" in name for name in cut.state_dict())


def test_batchnorm_constants_are_ours_or_the_networks_own() -> None:
    with torch.device("meta"):
        shared = build_backbone("tf_efficientnet_b0", norm=NormConfig(momentum=0.02, eps=1e-4))
        own = build_backbone("tf_efficientnet_b0")
    norms = [module for module in shared.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {(norm.momentum, norm.eps) for norm in norms} == {(0.02, 1e-4)}
    norms = [module for module in own.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}  # EfficientNet's, 0.99 in TF terms


def test_other_networks_keep_timms_batchnorm_constants() -> None:
    with torch.device("meta"):
        ours, timms = build_backbone("mobilenetv3_small_050"), timm.create_model("mobilenetv3_small_050")
    constants = [
        {(norm.momentum, norm.eps) for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)}
        for model in (ours, timms)
    ]
    assert constants[0] == constants[1] == {(0.1, 1e-5)}


def test_every_batchnorm_starts_at_one() -> None:
    norms = [module for module in build_backbone("resnet10t").modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 10 and all((norm.weight == 1).all() for norm in norms)


def test_drop_path_grows_linearly() -> None:
    with torch.device("meta"):
        backbone = build_backbone("tf_efficientnet_b0", drop_path=0.2)
    rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
    torch.testing.assert_close(rates, [0.2 * block / 16 for block in range(1, 16)])


def test_stages_of_convnext_are_normalized_and_those_of_others_left_alone() -> None:
    backbone = build_backbone("convnext_atto").eval()
    with torch.no_grad():
        outputs = backbone(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    for output in outputs:
        torch.testing.assert_close(output.mean(1), torch.zeros_like(output[:, 0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(output.std(1, correction=0), torch.ones_like(output[:, 0]), rtol=0, atol=1e-2)
    assert not build_backbone("resnet10t").norms.state_dict()


def test_synchronized_batchnorm_keeps_the_fused_activation() -> None:
    with torch.device("meta"):
        converted = to_sync_batchnorm(build_backbone("efficientnet_b0"))
    norms = [module for module in converted.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert norms and not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert any(isinstance(getattr(norm, "act", None), nn.SiLU) for norm in norms)


def test_an_unknown_network_is_answered_with_near_names() -> None:
    with pytest.raises(InputError, match=r"knows no model 'resnet5o'.*Did you mean .*'resnet50'"):
        build_backbone("resnet5o")


@pytest.mark.parametrize(
    ("name", "found"),
    [("swin_tiny_patch4_window7_224", "takes images of one size alone"), ("mambaout_femto", "with the channels last")],
)
def test_a_network_of_one_size_or_with_channels_last_is_refused(name: str, found: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=rf"^model\.backbone: {name} .*{found}; .*Choose"):
        build_backbone(name)


def test_a_network_without_stages_is_refused() -> None:
    assert not is_plain("mixer_b16_224")
    with pytest.raises(InputError, match=r"mixer_b16_224 has features at strides \[16, 16, 16\]"):
        build_backbone("mixer_b16_224")
    with pytest.raises(InputError, match=r"convnext_atto has features at strides .*Choose"):
        build_backbone("convnext_atto", levels=(1, 2, 3))
