"""Plain vision transformers: levels at strides 8, 16, 32, and weights of other patch sizes and grids."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from timm.models import _builder
from torch import Tensor

from tutelage.config import ModelConfig
from tutelage.models.backbones import PlainViT, build_backbone, is_plain, pretrained_weights
from tutelage.models.foreign import load_body
from tutelage.models.init import initialize, load_model, save_model
from tutelage.models.model import RetinaNet, build_detector
from tutelage.models.plain_vit import SimpleFeaturePyramid
from tutelage.types import InputError

TINY = ModelConfig(
    backbone="test_vit", max_level=5, pyramid_width=16, head_width=16, head_depth=1, canvas=(64, 96), num_classes=3
)


def detector() -> RetinaNet:
    return build_detector(TINY, 3)


def body_of(model: RetinaNet) -> torch.nn.Module:
    assert isinstance(model.backbone, PlainViT)
    return model.backbone.body


def parameters_of(level: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in level.state_dict().items()}


def layer_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Written out: each pixel's channels to mean 0 and variance 1."""
    mean, variance = maps.mean(1, keepdim=True), maps.var(1, correction=0, keepdim=True)
    return (maps - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def narrowed(maps: Tensor, state: Mapping[str, Tensor], first: int) -> Tensor:
    maps = F.conv2d(maps, state[f"{first}.weight"])
    maps = layer_norm(maps, state[f"{first + 1}.weight"], state[f"{first + 1}.bias"])
    maps = F.conv2d(maps, state[f"{first + 2}.weight"], padding=1)
    return layer_norm(maps, state[f"{first + 3}.weight"], state[f"{first + 3}.bias"])


def test_the_simple_feature_pyramid_written_out() -> None:
    rng = torch.Generator().manual_seed(0)
    pyramid = SimpleFeaturePyramid(16, (2, 3, 4, 5), 8)
    for parameter in pyramid.parameters():
        parameter.data.normal_(generator=rng)
    patches = torch.randn(2, 16, 4, 6, generator=rng)
    with torch.no_grad():
        fine, eighth, sixteenth, coarse = pyramid(patches)
    states = [parameters_of(level) for level in pyramid.levels]
    twice = F.conv_transpose2d(patches, states[0]["0.weight"], states[0]["0.bias"], stride=2)
    twice = F.gelu(layer_norm(twice, states[0]["1.weight"], states[0]["1.bias"]))
    quarter = F.conv_transpose2d(twice, states[0]["3.weight"], states[0]["3.bias"], stride=2)
    halves = F.conv_transpose2d(patches, states[1]["0.weight"], states[1]["0.bias"], stride=2)
    pooled = patches.reshape(2, 16, 2, 2, 3, 2).amax(dim=(3, 5))
    torch.testing.assert_close(fine, narrowed(quarter, states[0], 4))
    torch.testing.assert_close(eighth, narrowed(halves, states[1], 1))
    torch.testing.assert_close(sixteenth, narrowed(patches, states[2], 0))
    torch.testing.assert_close(coarse, narrowed(pooled, states[3], 1))
    assert [tuple(level.shape) for level in (fine, eighth, sixteenth, coarse)] == [
        (2, 8, 16, 24),
        (2, 8, 8, 12),
        (2, 8, 4, 6),
        (2, 8, 2, 3),
    ]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("vit_small_patch14_reg4_dinov2", 37),
        ("vit_small_patch16_dinov3", None),  # rotary positions: none to store
    ],
)
def test_transformers_of_any_patch_size_work_at_stride_16(name: str, grid: int | None) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, drop_path=0.2, width=32)
        levels = backbone.eval()(torch.zeros(1, 3, 64, 96))
    assert isinstance(backbone, PlainViT) and backbone.channels == [32] * 3 and backbone.strides == [8, 16, 32]
    assert [tuple(level.shape) for level in levels] == [(1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]
    state = backbone.body.state_dict()
    assert state["patch_embed.proj.weight"].shape[-2:] == (16, 16)
    assert not any(name.startswith(("head", "fc_norm", "attn_pool")) for name in state)
    if grid is not None:
        assert state["pos_embed"].shape[1] in (grid**2, grid**2 + 1)  # with or without the class token's


def test_what_is_plain_and_what_is_not() -> None:
    assert is_plain("test_vit") and is_plain("vit_small_patch16_dinov3") and not is_plain("resnet18")
    assert not is_plain("vit_small_r26_s32_224")  # patches of a ResNet's map


def test_levels_must_reach_the_patches() -> None:
    with pytest.raises(InputError, match=r"model\.max_level: 3, but test_vit works on patches of 16 pixels"):
        build_backbone("test_vit", levels=(3,))


def test_a_plain_transformer_detects_trains_and_comes_back(tmp_path: Path) -> None:
    model = detector()
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[64, 96], [48, 96]])
    outputs = model(images, valid)
    (outputs.logits.sum() + outputs.deltas.sum()).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert silent == []
    save_model(tmp_path, model, {})
    back, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(back.eval()(images, valid).logits, model.eval()(images, valid).logits)


def test_weights_of_an_equal_transformer_give_its_features(tmp_path: Path) -> None:
    """timm's own features of its own network on an image of the native size, behind its last norm."""
    donor = timm.create_model("test_vit", pretrained=False).eval()
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "vit.pth")
    model = detector()
    report = initialize(model, str(tmp_path / "vit.pth"), backbone_name="test_vit")
    assert report.left_over == ("head.bias", "head.weight") == report.unexpected
    assert {"backbone.pyramid.levels.0.0.weight"} <= set(report.missing)
    assert not any(name.startswith("backbone.body.") for name in report.missing)
    images = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = donor.forward_features(images)[:, 1:]
        (patches,) = body_of(model).eval().forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_patches_of_14_pixels_and_positions_of_another_grid_are_resampled(tmp_path: Path, prefix: str) -> None:
    donor = timm.create_model("test_vit", pretrained=False, patch_size=14, img_size=112)
    state = donor.state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "vit.pth")
    model = detector()
    report = initialize(model, str(tmp_path / "vit.pth"), backbone_name="test_vit")
    assert set(report.unexpected) == {f"{prefix}head.bias", f"{prefix}head.weight"}
    own = body_of(model).state_dict()
    kernel = resample_patch_embed(state["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(own["patch_embed.proj.weight"], kernel)
    grid = state["pos_embed"][:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (10, 10), mode="bicubic", antialias=True)
    torch.testing.assert_close(own["pos_embed"][:, 1:], larger.flatten(2).transpose(1, 2))
    assert torch.equal(own["pos_embed"][:, :1], state["pos_embed"][:, :1])


def test_a_resampled_patch_sees_in_larger_patches_what_it_saw_before() -> None:
    """Kernels of 8 pixels on an image, and of 16 on the same image at twice the size, agree (arXiv:2212.08013)."""
    rng = torch.Generator().manual_seed(0)
    small, kernel = torch.rand(1, 3, 8, 8, generator=rng), torch.randn(4, 3, 8, 8, generator=rng)
    large = F.interpolate(small, scale_factor=2, mode="bicubic", antialias=True)
    wide = resample_patch_embed(kernel, [16, 16])
    torch.testing.assert_close(F.conv2d(large, wide), F.conv2d(small, kernel), rtol=1e-3, atol=1e-3)


def test_transformers_with_rotary_positions_take_patches_of_another_size() -> None:
    donor = timm.create_model("eva02_tiny_patch14_224", pretrained=False).state_dict()
    backbone = build_backbone("eva02_tiny_patch14_224", width=8)
    report = load_body(backbone.body, donor, "donor")
    assert report.missing == () and report.unexpected == ("fc_norm.bias", "fc_norm.weight")
    own = backbone.body.state_dict()
    kernel = resample_patch_embed(donor["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(own["patch_embed.proj.weight"], kernel)
    assert torch.equal(own["blocks.11.attn.proj.weight"], donor["blocks.11.attn.proj.weight"])


def test_a_deeper_transformer_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", pretrained=False, depth=8).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"holds \d+ tensors of blocks that this backbone lacks \(first: 'blocks\.6"):
        initialize(detector(), str(tmp_path / "vit.pth"), backbone_name="test_vit")


def test_timms_download_is_resampled_and_brings_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    donor = timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: dict(donor))
    weights = pretrained_weights("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert weights.normalization.mean == (127.5,) * 3 == weights.normalization.std
    assert weights.license == "apache-2.0"
    assert torch.equal(weights.state["pos_embed"], donor["pos_embed"])
    assert torch.equal(weights.state["blocks.11.mlp.fc2.weight"], donor["blocks.11.mlp.fc2.weight"])
    assert not any(name.startswith("head") for name in weights.state)


@pytest.mark.parametrize("size", [33, 16])
def test_pictures_that_the_strides_do_not_divide_are_refused(size: int) -> None:
    backbone = build_backbone("vit_tiny_patch16_224", width=8)
    with pytest.raises(InputError, match=rf"reaches stride 32 and images are {size} x {size}; both sides must be mult"):
        backbone(torch.zeros(1, 3, size, size))
