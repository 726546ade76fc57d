"""SimCLR's published weights: names of both conversions, and the normalization that belongs to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models import backbones, init
from tutelage.models.backbones import published_simclr
from tutelage.models.foreign import LoadReport, read_arrays
from tutelage.models.init import init_digest, initialize, load_model, save_model
from tutelage.models.model import RetinaNet, build_classifier, build_detector
from tutelage.types import InputError

CONFIG = ModelConfig(backbone="resnet18", max_level=5, pyramid_width=8, head_width=8, head_depth=0, canvas=(64, 64))
WHITE = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
VALID = torch.tensor([[64, 64]])


def detector(**changes: object) -> RetinaNet:
    return build_detector(CONFIG.model_copy(update=changes), 3)


def start(model: RetinaNet, what: str) -> tuple[RetinaNet, LoadReport]:
    return model, initialize(model, what, backbone_name=model.config.backbone)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """As github.com/tonylins/simclr-converter saves it: torchvision's names, its classifier included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18().state_dict()


class Bottleneck(nn.Module):
    """Modules of github.com/Separius/SimCLRv2-Pytorch by their names, made from the original's description."""

    def __init__(self, before: int, width: int, first: bool) -> None:
        super().__init__()
        if first:
            self.projection = nn.Module()
            self.projection.shortcut = nn.Conv2d(before, 4 * width, 1, bias=False)
            self.projection.bn = nn.Sequential(nn.BatchNorm2d(4 * width), nn.Identity())
        self.net = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, bias=False),
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.Sequential(nn.BatchNorm2d(4 * width), nn.Identity()),
        )


def second_version() -> nn.Module:
    """A ResNet-26: blocks as a ResNet-50's, two a stage."""
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()), nn.MaxPool2d(3))
    ]
    channels = 64
    for depth, width in zip((2, 2, 2, 2), (64, 128, 256, 512), strict=True):
        stage = nn.Module()
        stage.blocks = nn.ModuleList(
            Bottleneck(channels if number == 0 else 4 * width, width, number == 0) for number in range(depth)
        )
        stages.append(stage)
        channels = 4 * width
    model = nn.Module()
    model.net, model.fc = nn.Sequential(*stages), nn.Linear(2048, 10)
    return model


def test_the_first_version_sees_pixels_from_0_to_1(tmp_path: Path, published: dict[str, Tensor]) -> None:
    torch.save({"state_dict": published}, tmp_path / "resnet50-1x.pth")
    model, report = start(detector(), f"simclr:{tmp_path / 'resnet50-1x.pth'}")
    assert report.left_over == ("fc.bias", "fc.weight") and report.warnings == ()
    assert torch.equal(model.normalize(WHITE, VALID), torch.ones(1, 3, 64, 64))
    assert torch.equal(model.backbone.body.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    own = {module.eps for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    others = {module.eps for module in model.pyramid.modules() if isinstance(module, nn.BatchNorm2d)}
    assert own == {1e-5} and others == {1e-4}


def test_the_epsilon_stays_with_the_model(tmp_path: Path, published: dict[str, Tensor]) -> None:
    torch.save(published, tmp_path / "r50.pth")
    model, _ = start(detector(), f"simclr:{tmp_path / 'r50.pth'}")
    save_model(tmp_path / "model", model, {})
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card["normalization"] == {"mean": [0.0] * 3, "std": [255.0] * 3, "eps": 1e-5}
    back, _ = load_model(tmp_path / "model")
    again, _ = start(detector(), str(tmp_path / "model"))
    pretrained = build_classifier(CONFIG, 7)
    initialize(pretrained, str(tmp_path / "model"), backbone_name="resnet18")
    with torch.no_grad():
        expected = model.eval()(WHITE, VALID).logits
        assert torch.equal(back.eval()(WHITE, VALID).logits, expected)
        assert torch.equal(again.eval()(WHITE, VALID).logits, expected)
    assert pretrained.normalize.eps == 1e-5 == pretrained.backbone.body.bn1.eps


@pytest.mark.parametrize("word", ["", "simclr:"])
def test_the_second_version_is_known_by_its_names(tmp_path: Path, word: str) -> None:
    state = second_version().state_dict()
    torch.save({"resnet": state, "head": {"layers.0.weight": torch.zeros(2, 2)}}, tmp_path / "r50_1x_sk0.pth")
    model, report = start(detector(backbone="resnet26"), f"{word}{tmp_path / 'r50_1x_sk0.pth'}")
    body = model.backbone.body
    for ours, theirs in {
        "conv1.weight": "net.0.0.weight",
        "bn1.running_var": "net.0.1.0.running_var",
        "layer1.0.downsample.0.weight": "net.1.blocks.0.projection.shortcut.weight",
        "layer1.0.downsample.1.bias": "net.1.blocks.0.projection.bn.0.bias",
        "layer3.1.conv1.weight": "net.3.blocks.1.net.0.weight",
        "layer3.1.conv2.weight": "net.3.blocks.1.net.2.weight",
        "layer4.1.bn3.weight": "net.4.blocks.1.net.5.0.weight",
    }.items():
        assert torch.equal(body.state_dict()[ours], state[theirs]), ours
    assert report.left_over == ("fc.bias", "fc.weight") == report.unexpected
    assert model.normalize.mean.tolist() == [0.0] * 3 and model.normalize.eps == 1e-5


@pytest.mark.parametrize(("factor", "times"), [(17.0, "17"), (1 / 17, "0.059")])
def test_kernels_of_another_length_are_warned_of(
    tmp_path: Path, published: dict[str, Tensor], factor: float, times: str
) -> None:
    scaled = {name: tensor * factor if tensor.ndim == 4 else tensor for name, tensor in published.items()}
    torch.save(scaled, tmp_path / "r50.pth")
    _, report = start(detector(), f"simclr:{tmp_path / 'r50.pth'}")
    (warning,) = report.warnings
    assert f"kernels are {times} times" in warning and "train.lr" in warning and warning in str(report)


def test_the_word_alone_downloads_them(monkeypatch: pytest.MonkeyPatch, published: dict[str, Tensor]) -> None:
    asked: list[str] = []

    def hub(repository: str, file: str, **_: object) -> dict[str, object]:
        asked.append(f"{repository}/{file}")
        return {"state_dict": published}

    monkeypatch.setattr(backbones, "load_state_dict_from_hf", hub)
    weights = published_simclr("resnet50")
    assert asked == ["lightly-ai/simclrv1-imagenet1k-resnet50-1x/resnet50-1x.pth"]
    with pytest.raises(InputError, match="simclr has no weights for resnet18"):
        start(detector(), "simclr")
    monkeypatch.setattr(init, "published_simclr", lambda name: weights)
    model, report = start(detector(), "simclr")
    assert report.license == "apache-2.0" and report.source == "resnet50.simclrv1" and model.normalize.eps == 1e-5


def test_a_missing_file_and_the_digest_of_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth does not exist; after simclr: the file of a conversion"):
        start(detector(), f"simclr:{tmp_path / 'nowhere.pth'}")
    (tmp_path / "r50.pth").write_bytes(b"weights")
    plain, simclr = init_digest(str(tmp_path / "r50.pth")), init_digest(f"simclr:{tmp_path / 'r50.pth'}")
    assert simclr == f"simclr:{plain}" and len(plain) == 64
    assert init_digest("simclr") == "simclr" and init_digest("resnet50.tv_in1k") == "resnet50.tv_in1k"


def test_statistics_come_from_timms_config_beside_a_file(tmp_path: Path, published: dict[str, Tensor]) -> None:
    save_file(published, tmp_path / "model.safetensors")
    model, _ = start(detector(), str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(model.normalize.mean, 255 * torch.tensor([0.485, 0.456, 0.406]))
    config = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "tag": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = start(detector(), str(tmp_path / "model.safetensors"))
    assert model.normalize.mean.tolist() == [127.5] * 3 and model.normalize.std.tolist() == [63.75, 127.5, 127.5]
    assert model.normalize.eps is None


def test_arrays_without_objects_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"scope/conv2d/kernel": np.ones((1, 1, 2, 3), np.float32)})
    assert read_arrays(tmp_path / "a.npz")["scope/conv2d/kernel"].shape == (1, 1, 2, 3)
    np.savez(tmp_path / "objects.npz", thing=np.array([{}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("objects", "cut", "text"):
        with pytest.raises(InputError, match=rf"{name}\.npz: cannot be read as arrays"):
            read_arrays(tmp_path / f"{name}.npz")
