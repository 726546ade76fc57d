"""SimCLR pre-training from its verb to a detector's start, and the linear probe against references."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tutelage
from tests.tiny import TINY
from tutelage.config import ModelConfig, load_config
from tutelage.data.readers import open_index
from tutelage.engine.runtime import launch
from tutelage.files import read_json
from tutelage.models.embedder import Embedder
from tutelage.models.init import initialize, load_model, save_model
from tutelage.models.model import build_detector
from tutelage.types import InputError
from tutelage.workflows.pretraining.probe import Features, Probe, accuracy, choose_decay, evaluate, fit_logistic

OPTIONS = (*TINY, "pretrain.method=simclr", "pretrain.size=32", "pretrain.simclr.probe_fraction=0.25")
SHORT = ("train.min_steps=4", "train.batch_size=8", "train.optimizer=lars", "runtime.log_every=2")
MODEL = ModelConfig(backbone="test_resnet", canvas=(64, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classes`: 8 bright and 12 dark pictures; `plain`: 6 without classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count, level in (("classes/bright", 8, 180), ("classes/dark", 12, 20), ("plain", 6, 90)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(level, level + 60, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        record = tutelage.pretrain(folders / "classes", out=out, unlabeled=folders / "plain", overrides=OPTIONS + SHORT)
    return out, record


def test_a_run_says_what_its_features_are_worth_beside_its_start(pretrained: tuple[Path, dict[str, Any]]) -> None:
    out, record = pretrained
    assert record == read_json(out / "run.json")
    assert record["method"] == "simclr" and record["classes"] == ["bright", "dark"]
    assert (record["held_out"], record["num_images"]) == (2 + 3, {"images": 6 + 9 + 6}), "the pool is trained on too"
    assert record["accuracy"] == record["accuracy_of_start"] == 1.0, "light and dark are told apart by any features"
    assert record["leaks"] == 0, "none of the pool is a copy"
    assert record["probe"]["images"] == 15 and record["probe"]["decay"] in (1.0, 0.1, 1e-2, 1e-3)
    assert "right on 100.0 % of 5 held-out images" in record["verdict"]
    assert record["verdict"] in (out / "model" / "README.md").read_text()
    assert record["steps"] == 4 and record["losses_last"]["images_uniformity"] < 0


def test_a_run_is_the_start_of_a_detector(pretrained: tuple[Path, dict[str, Any]]) -> None:
    out, _ = pretrained
    embedder, card = load_model(out / "model")
    assert isinstance(embedder, Embedder) and card["kind"] == "embedder-2"
    detector = build_detector(load_config("detection-demo", TINY).model, 3)
    report = initialize(detector, str(out), backbone_name="test_resnet")
    theirs = embedder.backbone.state_dict()
    assert theirs.keys() == {name.removeprefix("backbone.") for name in report.matched if "backbone" in name}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in detector.backbone.state_dict().items())


def test_images_without_classes_are_trained_on_and_not_probed(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("train.min_steps=1", "train.batch_size=4")
    record = tutelage.pretrain(folders / "plain", out=tmp_path / "run", overrides=OPTIONS + short)
    assert (record["accuracy"], record["held_out"], record["num_images"]) == (None, 0, {"images": 6})
    assert f"No classes to probe with: {folders / 'plain'}: found no annotations" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_held_out_images_are_kept_out_of_the_pool(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (*OPTIONS, "train.min_steps=1", "train.batch_size=4")
    classes = folders / "classes"
    record = tutelage.pretrain(classes, out=tmp_path / "run", unlabeled=classes, overrides=short)
    assert (record["held_out"], record["leaks"]) == (2 + 3, 2 + 3)
    assert record["num_images"] == {"images": 15 + 15}
    assert "5 of 20 images are also held out, and are not used" in capsys.readouterr().err
    record = tutelage.pretrain(
        classes, out=tmp_path / "none", unlabeled=classes, overrides=(*short, "pretrain.simclr.probe_fraction=0")
    )
    assert (record["held_out"], record["leaks"], record["num_images"]) == (0, 0, {"images": 20 + 20})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.batch_size=64",), r"train\.batch_size=64: .* of these 15 images 2 to 15 a step"),
        (("train.batch_size=1",), r"train\.batch_size=1: "),
        (("train.batch_size=8", "runtime.device_batch_size=4"), r"device_batch_size=4: .* a device's 8 images cannot"),
    ],
)
def test_a_batch_that_cannot_be_contrasted_is_refused(
    folders: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tutelage.pretrain(folders / "classes", out=tmp_path / "run", overrides=OPTIONS + options)


@pytest.mark.parametrize("layers", [2, 3])
def test_projections_of_both_depths_are_saved_and_read(layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Embedder(MODEL, 16, layers)
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    valid = torch.full((4, 2), 64)
    model(images, valid)  # moves the batch-norm statistics
    width = model.backbone.channels[-1]
    linears = [module for module in model.projection if isinstance(module, nn.Linear)]
    assert [linear.weight.shape for linear in linears] == [(width, width)] * (layers - 1) + [(16, width)]
    fixed = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert fixed == [f"projection.{len(model.projection) - 1}.bias"], "the last batch-norm has no shift"
    save_model(tmp_path, model.eval(), {"task": "embedding"})
    again, card = load_model(tmp_path)
    assert card["kind"] == again.kind == f"embedder-{layers}"
    torch.testing.assert_close(again.eval()(images, valid), model(images, valid))
    assert model.features(images, valid).shape == (4, width)


def blobs(per_class: int, spread: float, seed: int = 0) -> Features:
    """Three classes around (0, 3), (3, 0) and (-3, -3)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(per_class)
    centers = torch.tensor([[0.0, 3.0], [3.0, 0.0], [-3.0, -3.0]])
    return Features(centers[labels] + spread * torch.randn((len(labels), 2), generator=generator), labels)


def newton(values: Tensor, labels: Tensor, num_classes: int, decay: float) -> Tensor:
    """The logits of the same problem by Newton's method on all parameters at once."""
    inputs = torch.cat([values, torch.ones(len(values), 1)], dim=1).double()
    penalty = torch.ones(num_classes, inputs.shape[1]).double() * decay
    penalty[:, -1] = 0

    def loss(flat: Tensor) -> Tensor:
        weight = flat.view(num_classes, -1)
        return nn.functional.cross_entropy(inputs @ weight.T, labels) + (penalty * weight**2).sum() / 2

    flat = torch.zeros(penalty.numel(), dtype=torch.float64)
    for _ in range(20):
        gradient, hessian = torch.func.grad(loss)(flat), torch.func.hessian(loss)(flat)
        flat = flat - torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]  # shifts are free
    assert float(torch.func.grad(loss)(flat).abs().max()) < 1e-12
    return (inputs @ flat.view(num_classes, -1).T).float()


@pytest.mark.parametrize("decay", [0.1, 0.01])
def test_logistic_regression_is_newtons(decay: float) -> None:
    features = blobs(20, 2.0)
    found, expected = fit_logistic(features, 3, decay)(features.values), newton(*features, 3, decay)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=2e-3, rtol=0)
    assert 0.6 < accuracy(fit_logistic(features, 3, decay), features) < 1


def test_two_points_by_hand() -> None:
    # weights w and -w, loss log(1 + e^(-2 w)) + d w^2: 1 / (1 + e^(2 w)) = d w, which d = 2 / (1 + e) solves at w = 1/2
    features = Features(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    decay = 2 / (1 + np.e)
    torch.testing.assert_close(
        fit_logistic(features, 2, decay)(torch.tensor([[1.0]])), torch.tensor([[0.5, -0.5]]), atol=1e-4, rtol=0
    )


def test_separable_classes_are_told_apart_and_held_out_images_choose_nothing() -> None:
    trained, held_out = blobs(20, 0.3), blobs(10, 0.3, seed=1)
    found = evaluate(trained, held_out, 3, np.random.default_rng(0))
    assert found["accuracy"] == 1.0
    wrong = held_out._replace(labels=(held_out.labels + 1) % 3)
    assert evaluate(trained, wrong, 3, np.random.default_rng(0)) == {"accuracy": 0.0, "decay": found["decay"]}


def test_noise_is_answered_by_the_strongest_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((60, 200), generator=generator)
    values[:, 0] += 4 * torch.arange(60).remainder(2)  # one feature of 200 tells
    chosen = choose_decay(Features(values, torch.arange(60).remainder(2)), 2, np.random.default_rng(0))
    assert chosen == 1.0


def test_a_fresh_network_gets_statistics_of_the_images(folders: Path) -> None:
    index = open_index(str(folders / "classes"), load_config("detection-demo").data)
    config = load_config("detection-demo", (*OPTIONS, "train.batch_size=20"))
    torch.manual_seed(0)
    model = Embedder(config.model, 8, 2)
    inputs: list[Tensor] = []
    first = next(module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    first.register_forward_hook(lambda _module, given, _output: inputs.append(given[0].detach().clone()))
    rows = np.arange(20)
    launch(config.runtime, lambda runtime: Probe(index, rows, rows[:4], config, runtime).settle(model))
    torch.testing.assert_close(first.running_mean, inputs[0].mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, inputs[0].var((0, 2, 3)))
    assert not model.training and len(inputs) == 1 and len(inputs[0]) == 20


def test_a_last_batch_of_one_small_picture_settles_nothing(folders: Path) -> None:
    index = open_index(str(folders / "classes"), load_config("detection-demo").data)
    config = load_config("detection-demo", (*OPTIONS, "pretrain.size=32", "train.batch_size=4"))
    model = Embedder(config.model, 8, 2)
    sizes: list[int] = []
    model.backbone.register_forward_hook(lambda _module, given, _output: sizes.append(len(given[0])))
    for count in (13, 3):
        rows = np.arange(count)
        launch(config.runtime, lambda runtime, rows=rows: Probe(index, rows, rows[:1], config, runtime).settle(model))
    assert sizes == [4, 4, 4, 3]
