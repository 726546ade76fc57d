"""Where weights start: files of ours and of others, and what is refused."""

import io
import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from tutelage.config import ModelConfig, NormConfig
from tutelage.models import init
from tutelage.models.backbones import Normalization, TrainedWeights
from tutelage.models.foreign import LoadReport, read_state
from tutelage.models.init import initialize, load_model, save_model
from tutelage.models.model import (
    Classifier,
    Network,
    RetinaNet,
    Segmenter,
    build_classifier,
    build_detector,
    build_segmenter,
)
from tutelage.types import InputError

SMALL = ModelConfig(backbone="resnet10t", max_level=5, pyramid_width=16, head_width=16, head_depth=1, canvas=(64, 64))


def detector(classes: int = 3, **changes: object) -> RetinaNet:
    return build_detector(SMALL.model_copy(update=changes), classes)


def segmenter(classes: int = 3, **changes: object) -> Segmenter:
    return build_segmenter(SMALL.model_copy(update=changes), classes)


def parts(names: tuple[str, ...]) -> set[str]:
    return {name.split(".")[0] for name in names}


def timm_state(name: str = "resnet10t") -> dict[str, torch.Tensor]:
    return timm.create_model(name, pretrained=False).state_dict()


def start(model: Network | Classifier, path: Path | str) -> LoadReport:
    return initialize(model, str(path), backbone_name=model.config.backbone)


def test_random_loads_nothing() -> None:
    model = detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = start(model, "random")
    assert report.matched == () and len(report.missing) == len(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.model.backbone.body."])
@pytest.mark.parametrize("nested", ["", "state_dict", "model"])
def test_a_foreign_state_dict_is_found_under_prefix_and_key(tmp_path: Path, prefix: str, nested: str) -> None:
    state = timm_state()
    renamed = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({nested: renamed, "epoch": 3} if nested else renamed, tmp_path / "weights.pth")
    model = detector()
    report = start(model, tmp_path / "weights.pth")
    assert len(report.matched) == len(model.backbone.state_dict())
    assert report.unexpected == (f"{prefix}fc.bias", f"{prefix}fc.weight")
    assert all(not name.startswith("backbone.") for name in report.missing) and report.missing
    assert report.left_over == report.unexpected and f"a head was left over ({prefix}fc.bias, {prefix}fc" in str(report)
    torch.testing.assert_close(model.backbone.body.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    assert f"{len(report.matched)} matched" in str(report)
    assert report.as_dict()["num_matched"] == len(report.matched)


def test_safetensors_and_half_precision_files(tmp_path: Path) -> None:
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in timm_state().items()}
    save_file(state, tmp_path / "weights.safetensors")
    model = detector()
    start(model, tmp_path / "weights.safetensors")
    assert model.backbone.body.conv1[0].weight.dtype == torch.float32
    torch.testing.assert_close(model.backbone.body.conv1[0].weight.data, state["conv1.0.weight"].float())


def test_names_that_timm_joins_are_found(tmp_path: Path) -> None:
    state = timm_state("convnext_atto")
    torch.save(state, tmp_path / "weights.pth")
    model = detector(backbone="convnext_atto")
    report = start(model, tmp_path / "weights.pth")
    assert len(report.matched) == len(model.backbone.body.state_dict())
    assert {"backbone.norms.0.weight", "backbone.norms.2.bias"} <= set(report.missing)
    torch.testing.assert_close(
        model.backbone.body.stages_3.blocks[1].mlp.fc2.weight.data, state["stages.3.blocks.1.mlp.fc2.weight"]
    )


def test_starts_of_the_student_are_refused_for_the_model() -> None:
    with pytest.raises(InputError, match=r"model\.init: teacher is a start of the student.*Set student\.init=teacher"):
        start(detector(), "teacher")


def test_a_detectors_head_is_left_over_for_a_segmenter(tmp_path: Path) -> None:
    save_model(tmp_path, detector(), {})
    report = start(segmenter(), tmp_path)
    assert len(report.left_over) > 6 and all(name.startswith("head.") for name in report.left_over)
    assert f"and {len(report.left_over) - 6} more)" in str(report)


def test_torchvisions_resnet_fits_timms(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    report = start(detector(backbone="resnet18"), tmp_path / "resnet18.pth")
    assert report.unexpected == ("fc.bias", "fc.weight")


def test_a_detector_without_the_last_stage_takes_the_rest(tmp_path: Path) -> None:
    torch.save(timm_state(), tmp_path / "weights.pth")
    report = start(detector(max_level=4), tmp_path / "weights.pth")
    assert any(name.startswith("layer4.") for name in report.unexpected)


@pytest.mark.parametrize(
    ("file_of", "backbone", "message"),
    [
        ("efficientnet_b0", "resnet10t", r"shares \d of \d+ tensors with this backbone \(first that it lacks: 'conv1"),
        ("resnet18", "resnet34", r"shares 120 of 216 tensors"),
        ("resnet34", "resnet18", r"holds \d+ tensors of blocks that this backbone lacks \(first: 'layer1\.2"),
        ("tf_efficientnet_b1", "tf_efficientnet_b0", "blocks that this backbone lacks"),
        ("resnet26t", "resnet10t", "other shapes|shares|blocks that this backbone lacks"),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path: Path, file_of: str, backbone: str, message: str) -> None:
    torch.save(timm_state(file_of), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        start(detector(backbone=backbone), tmp_path / "weights.pth")


def test_other_shapes_are_named(tmp_path: Path) -> None:
    state = timm_state()
    state["layer2.0.conv1.weight"] = torch.zeros(7, 7, 3, 3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"'layer2\.0\.conv1\.weight' is \(7, 7, 3, 3\), must be \(128, 64, 3, 3\)"):
        start(detector(), tmp_path / "weights.pth")


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


@pytest.mark.parametrize(
    "content", [Malicious(), {"state_dict": timm.create_model("resnet10t")}], ids=["code", "module"]
)
def test_more_than_tensors_is_refused_unread(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="more than tensors and plain containers"):
        start(detector(), tmp_path / "weights.pth")


def broken_files(folder: Path) -> dict[str, Path]:
    files = {
        name: folder / name for name in ("empty.pth", "text.pth", "cut.pth", "none.pth", "plain.pth", "a.safetensors")
    }
    files["empty.pth"].write_bytes(b"")
    files["text.pth"].write_text("not weights")
    whole = io.BytesIO()
    torch.save(timm_state(), whole)
    files["cut.pth"].write_bytes(whole.getvalue()[:100_000])
    torch.save({"epoch": 3}, files["none.pth"])
    files["plain.pth"].write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    files["a.safetensors"].write_bytes(b"\x00" * 40)
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme", "no tensors")
    return {**files, "other.zip": folder / "other.zip"}


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_state(path)
    with pytest.raises(InputError, match=r"nowhere\.pth does not exist; random, imagenet, imagenet\+\+"):
        start(detector(), tmp_path / "nowhere.pth")


def test_a_file_that_is_no_checkpoint_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_bytes(b"root:x:0:0")
    with pytest.raises(InputError) as caught:
        start(detector(), tmp_path / "notes.pt")
    assert (
        str(caught.value) == f"{tmp_path / 'notes.pt'}: is no checkpoint. Give a safetensors file, or what "
        "torch.save wrote."
    )


def test_an_array_without_a_name_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"one\.npz: cannot be read as arrays \(a lone array without a name\)"):
        start(detector(), tmp_path / "one.npz")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tensor: (100 * tensor).to(torch.int8), "is torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "is torch.complex64"),
        (lambda tensor: tensor * torch.nan, "holds infinite values or no numbers"),
    ],
)
def test_values_that_are_no_weights_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    state = {name: change(value) if value.is_floating_point() else value for name, value in timm_state().items()}
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=rf"odd\.pt: '.*' {found}; finite floating-point weights are allowed"):
        start(detector(), tmp_path / "odd.pt")


@pytest.mark.parametrize("told", [{"mean": [0.5, 0.5]}, {"std": "x"}, {"std": [0, 0, 0]}, {"mean": None}])
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, told: dict[str, object]) -> None:
    save_file(timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": told}))
    with pytest.raises(InputError, match=r"config\.json: pretrained_cfg has mean .*three numbers each"):
        start(detector(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [[1], {"pretrained_cfg": None}, {"hidden_size": 3}])
def test_a_config_of_another_tool_says_nothing(tmp_path: Path, content: object) -> None:
    save_file(timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = detector()
    start(model, tmp_path / "model.safetensors")
    assert model.normalize.mean.tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_a_model_folder_comes_back_whole(tmp_path: Path) -> None:
    model = detector(norm=NormConfig(momentum=0.1, eps=1e-3)).eval()
    model.normalize.mean.fill_(100.0)
    torch.nn.init.normal_(model.head.class_predictor.weight)
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", model, {"task": "detection", "class_names": ["cat", "dog", "emu"], "round": 2})
    state = torch.random.get_rng_state()
    back, card = load_model(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(back, RetinaNet) and back.config == model.config
    assert card["class_names"] == ["cat", "dog", "emu"] and card["canvas"] == [64, 64] and card["round"] == 2
    assert card["normalization"]["mean"] == [100.0] * 3
    with torch.no_grad():
        valid = torch.tensor([[64, 64]])
        assert torch.equal(back.eval()(images, valid).logits, model(images, valid).logits)


def test_a_folder_without_its_card_is_unfinished(tmp_path: Path) -> None:
    save_model(tmp_path, detector(), {})
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").unlink()
    with pytest.raises(InputError, match=r"holds no model\.json, which is written last"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({**card, "steps": "many"}))
    with pytest.raises(InputError, match=r"model\.json: steps: .*valid integer"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({**card, "num_classes": 4}))
    with pytest.raises(InputError, match=r"class_predictor.*other shapes|other shapes.*class_predictor"):
        load_model(tmp_path)


def test_a_classifier_initializes_a_detectors_backbone_and_statistics(tmp_path: Path) -> None:
    classifier = build_classifier(SMALL, 7)
    classifier.normalize.std.fill_(50.0)
    save_model(tmp_path, classifier, {"task": "classification"})
    model = detector()
    report = start(model, tmp_path)
    assert torch.equal(model.backbone.body.layer1[0].conv1.weight, classifier.backbone.body.layer1[0].conv1.weight)
    assert model.normalize.std.tolist() == [50.0] * 3
    assert set(report.unexpected) == {"linear.weight", "linear.bias"}
    assert {name.split(".")[0] for name in report.missing} == {"pyramid", "head"}


def test_a_detector_of_other_classes_gives_all_but_the_class_predictor(tmp_path: Path) -> None:
    save_model(tmp_path, detector(classes=5), {})
    model = detector(classes=3)
    report = start(model, tmp_path / "model.safetensors")
    assert set(report.missing) == {"head.class_predictor.weight", "head.class_predictor.bias"}
    same = detector(classes=5)
    assert start(same, tmp_path).missing == ()


def test_a_segmenter_comes_back_whole(tmp_path: Path) -> None:
    changes = {"pyramid": "nas-fpn", "pyramid_repeats": 1, "max_level": 7, "canvas": (128, 128)}
    model = segmenter(**changes).eval()
    save_model(tmp_path, model, {"task": "segmentation"})
    back, card = load_model(tmp_path)
    assert card["kind"] == "segmenter" and isinstance(back, Segmenter) and back.config == model.config
    images, valid = torch.full((1, 3, 128, 128), 90, dtype=torch.uint8), torch.tensor([[128, 128]])
    with torch.no_grad():
        assert torch.equal(back.eval()(images, valid), model(images, valid))
    assert start(segmenter(**changes), tmp_path).missing == ()


def test_a_segmenter_of_other_classes_gives_all_but_the_class_predictor(tmp_path: Path) -> None:
    save_model(tmp_path, segmenter(classes=5), {})
    report = start(segmenter(classes=3), tmp_path)
    assert set(report.missing) == {"head.class_predictor.weight", "head.class_predictor.bias"}


@pytest.mark.parametrize("build", [build_detector, build_segmenter])
def test_a_network_of_another_kind_gives_its_backbone_and_a_pyramid_of_the_same_tensors(
    tmp_path: Path, build: Callable[[ModelConfig, int], Network]
) -> None:
    donor = build(SMALL, 3)
    donor.normalize.mean.fill_(100.0)
    save_model(tmp_path, donor, {})
    other = segmenter if isinstance(donor, RetinaNet) else detector
    same, wider = other(), other(pyramid_width=32)
    report = start(same, tmp_path)
    assert parts(report.missing) == parts(report.unexpected) == {"head"}
    assert torch.equal(same.pyramid.outputs[0].weight, donor.pyramid.outputs[0].weight)
    report = start(wider, tmp_path)
    assert parts(report.missing) == {"pyramid", "head"} and parts(report.matched) == {"backbone", "normalize"}
    assert wider.normalize.mean.tolist() == [100.0] * 3


def test_a_classifier_initializes_a_segmenters_backbone(tmp_path: Path) -> None:
    save_model(tmp_path, build_classifier(SMALL, 3), {})  # the same number of classes, yet none of its layers
    report = start(segmenter(), tmp_path)
    assert parts(report.missing) == {"pyramid", "head"} and parts(report.unexpected) == {"linear"}


def test_our_model_of_another_shape_or_backbone_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, detector(), {})
    with pytest.raises(InputError, match="backbone resnet10t; this model's is resnet18"):
        start(detector(backbone="resnet18"), tmp_path)
    with pytest.raises(InputError, match=r"tensors have other shapes.*'head\.box_tower"):
        start(detector(pyramid_width=32), tmp_path)
    with pytest.raises(InputError, match=r"shares \d+ of \d+ tensors with this model .*'pyramid\.extras"):
        start(detector(max_level=6), tmp_path)
    with pytest.raises(InputError, match=r"shares \d+ of \d+ tensors"):
        start(detector(head_depth=0), tmp_path)


def test_imagenet_brings_its_pixel_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    donor = detector()
    normalization = Normalization((127.5,) * 3, (128.0,) * 3)
    weights = TrainedWeights("resnet10t.x", donor.backbone.body.state_dict(), normalization, "apache-2.0")
    monkeypatch.setattr(init, "pretrained_weights", lambda name, which: weights)
    model = detector()
    report = start(model, "imagenet")
    assert report.source == "resnet10t.x" and report.unexpected == () and report.license == "apache-2.0"
    assert model.normalize.mean.tolist() == [127.5] * 3
    assert torch.equal(model.backbone.body.conv1[0].weight, donor.backbone.body.conv1[0].weight)


def test_a_full_disk_is_said_and_leaves_the_model_before(tmp_path: Path) -> None:
    model = detector()
    save_model(tmp_path, model, {})
    before = (tmp_path / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(InputError, match=r"model\.safetensors: the largest allowed file size"):
            save_model(tmp_path, detector(classes=5), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_card_of_another_version_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, detector(), {"class_names": ["a", "b", "c"]})
    card = json.loads((tmp_path / "model.json").read_text())
    card["model"]["retired"] = 1
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"model\.json: .*\(retired\).*version"):
        load_model(tmp_path)
