"""What a run costs before it is paid: multiply-adds, memory, images, FLOPs, hours."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TINY, annotation
from tutelage.cli import main
from tutelage.config import ModelConfig, RunConfig, TrainConfig, load_config
from tutelage.engine.memory import (
    LiveBytes,
    inference_activations,
    training_activations,
    training_memory,
)
from tutelage.engine.recompute import recomputed_activations
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.models.model import build_classifier, build_detector, build_segmenter
from tutelage.types import InputError
from tutelage.workflows.costing import costs_of
from tutelage.workflows.costing.images import Images, count_images
from tutelage.workflows.costing.speed import measured_speed
from tutelage.workflows.costing.stages import stages_of

SMALL = ModelConfig(backbone="test_resnet", pyramid_width=16, head_width=16, head_depth=2, canvas=(64, 96))
NAS = {"pyramid": "nas-fpn", "pyramid_repeats": 1, "canvas": (128, 128)}
IMAGES = Images(labeled=40, pool=100, test=10, num_classes=3, origin="counted")


def tiny(*overrides: str) -> RunConfig:
    return load_config("detection-demo", (*TINY, *overrides))


def tiny_pretraining(*overrides: str) -> RunConfig:
    return load_config("pretrain-small", (*TINY, *overrides))


def stage_of(config: RunConfig, name: str, images: Images = IMAGES) -> Any:
    return next(stage for stage in stages_of(config, images) if stage.name == name)


@pytest.mark.parametrize(
    ("backbone", "side", "endpoints", "head", "depth", "millions", "billions"),
    [  # TPU model zoo; 49S as released, with endpoints of 256
        ("spinenet49s", 640, 256, 128, 4, 11.9, 33.8),
        ("spinenet49", 640, 256, 256, 4, 28.5, 85.4),
        ("spinenet96", 1024, 256, 256, 4, 43.0, 265.4),
        ("spinenet143", 1280, 256, 256, 4, 67.0, 524),
        ("spinenet190", 1280, 512, 512, 7, 163.6, 1885),
    ],
)
def test_multiply_adds_of_the_spinenets(
    backbone: str, side: int, endpoints: int, head: int, depth: int, millions: float, billions: float
) -> None:
    config = ModelConfig(
        backbone=backbone, pyramid="none", pyramid_width=endpoints, head_width=head, head_depth=depth, activation="silu"
    )
    with torch.device("meta"):
        model = build_detector(config, 91)
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert count_multiply_adds(model, (side, side)) / 1e9 == pytest.approx(billions, rel=0.02)


def test_multiply_adds_of_a_convolution_by_hand() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 5)

        def forward(self, images: Tensor, valid: Tensor) -> Tensor:
            result: Tensor = self.linear(self.conv(images.float()).mean(dim=(2, 3)))
            return result

    with torch.device("meta"):
        network = Network()
    assert count_multiply_adds(network, (10, 12)) == 5 * 6 * 8 * 3 * 9 + 8 * 5
    assert count_parameters(network) == 8 * 3 * 9 + 8 + 8 * 5 + 5


def test_live_bytes_by_hand() -> None:
    kept = torch.ones(100)
    with LiveBytes() as live:
        first = kept + 1  # 400 bytes
        second = first.view(10, 10) * 2  # 400 bytes; the view is not new
        assert live.now == 800
        kept.add_(1)
        del first
        assert (live.now, live.peak) == (400, 800)
        second.mul_(3)
        del second
    assert (live.now, live.peak) == (0, 800)


def peak_of_a_step(model: nn.Module, canvas: tuple[int, int], recompute: bool) -> int:
    """Most live bytes of a real step of two images, each gradient freed as it comes."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]
    images, valid = torch.zeros(2, 3, *canvas, dtype=torch.uint8), torch.tensor([canvas] * 2)
    with LiveBytes() as live, recomputed_activations(model.train(), recompute):
        outputs = model(images, valid)
        parts = [outputs] if isinstance(outputs, Tensor) else outputs
        torch.stack([part.square().sum() for part in parts]).sum().backward()  # type: ignore[no-untyped-call]
    return int(live.peak)


@pytest.mark.parametrize(("build", "changes"), [(build_detector, {}), (build_segmenter, NAS)])
def test_a_dry_run_finds_the_memory_of_a_real_step(build: Any, changes: dict[str, Any]) -> None:
    config = SMALL.model_copy(update=changes)
    with torch.device("meta"):
        dry = build(config, 5)
    torch.manual_seed(0)
    real = build(config, 5)
    found = {}
    for recompute in (False, True):
        found[recompute] = training_activations(dry, config.canvas, recompute=recompute)
        assert found[recompute] == training_activations(real, config.canvas, recompute=recompute)
        gradients = sum(weight.numel() for weight in real.parameters()) * 4
        assert 2 * found[recompute] < peak_of_a_step(real, config.canvas, recompute) < 2 * found[recompute] + gradients
    assert found[True] < 0.7 * found[False]
    assert inference_activations(dry, config.canvas) == pytest.approx(
        inference_activations(real, config.canvas), rel=0.01
    )
    assert inference_activations(dry, config.canvas) < 0.6 * found[True]


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("adamw", 2), ("rmsprop", 2), ("lars", 1)])
def test_memory_of_a_step_beside_its_activations(optimizer: str, copies: int) -> None:
    with torch.device("meta"):
        model = build_classifier(SMALL, 5)
    number = count_parameters(model)
    config = TrainConfig(optimizer=optimizer, ema_decay=0.99)
    memory = training_memory(model, config, activations=1000)
    assert (memory.weights, memory.gradients, memory.averaged) == (4 * number, 4 * number, 4 * number)
    assert memory.optimizer == 4 * copies * number
    assert memory.total == (12 + 4 * copies) * number + 1000
    half = training_memory(model.bfloat16(), config.model_copy(update={"ema_decay": 0.0}), activations=0)
    assert (half.weights, half.gradients, half.averaged) == (6 * number, 4 * number, 0)


def test_images_and_flops_of_a_fit() -> None:
    config = tiny("rounds=2", "repeats=3", "hidden_arm=true", "pseudo.ratio=2", "student.batch_size=4")
    stages = {stage.name: stage for stage in stages_of(config, IMAGES)}
    one = stages["teacher"].multiply_adds
    with torch.device("meta"):
        assert one == count_multiply_adds(build_detector(config.model, 3), (64, 64))
    teacher, student = 6 * 4, 4 * 4 * (1 + 2)  # steps x images
    assert {name: (stage.times, stage.images_seen) for name, stage in stages.items()} == {
        "teacher": (1, teacher),
        "label": (4, 4 * 100),  # the first round's is shared by the repeats
        "control": (6, 6 * student),
        "student": (6, 6 * student),
        "hidden": (6, 6 * student),
        "evaluate": (19, 19 * 10),
    }
    assert stages["teacher"].flops == 6 * one * teacher
    assert stages["student"].flops == 6 * one * 6 * student
    assert stages["label"].multiply_adds == 2 * one and stages["label"].flops == 2 * 2 * one * 400  # two views
    assert stages["evaluate"].flops == 2 * one * 190


def test_what_certifies_costs_teachers_of_folds_and_looks() -> None:
    plain = {stage.name: stage for stage in stages_of(tiny(), IMAGES)}
    for folds in (tiny("certify.folds=3"), tiny("certify.folds=3", "pseudo.score_threshold=certified")):
        stages = {stage.name: stage for stage in stages_of(folds, IMAGES)}
        assert (stages["fold"].times, stages["fold"].flops) == (3, 3 * plain["teacher"].flops)  # as many steps each
        assert (stages["certify"].times, stages["certify"].images_seen) == (1, IMAGES.labeled)
        assert {name: stages[name] for name in plain} == plain
    lengthy = ("certify.fraction=0.25", "rounds=2", "repeats=3", "train.passes=8", "teacher.min_steps=1")
    apart = {stage.name: stage for stage in stages_of(tiny(*lengthy), IMAGES)}
    whole = {stage.name: stage for stage in stages_of(tiny(*lengthy[1:]), IMAGES)}
    assert (apart["certify"].times, apart["certify"].images_seen) == (4, 4 * IMAGES.labeled // 4)
    assert apart["certify"].multiply_adds == apart["label"].multiply_adds
    assert apart["teacher"].images_seen == whole["teacher"].images_seen * 3 // 4
    assert apart["evaluate"] == whole["evaluate"]


def test_recomputed_activations_cost_a_forward_pass_and_save_memory() -> None:
    plain, recomputed = (
        stage_of(tiny(f"runtime.activation_checkpointing={value}"), "student") for value in ("false", "true")
    )
    assert recomputed.flops == plain.flops * 4 // 3
    assert recomputed.memory_bytes < plain.memory_bytes


def test_memory_follows_the_images_of_a_pass() -> None:
    def memory(*overrides: str) -> int:
        return int(stage_of(tiny("student.batch_size=8", *overrides), "student").memory_bytes)

    eight, four, two = memory(), memory("runtime.devices=2"), memory("runtime.device_batch_size=2")
    assert eight - four == pytest.approx(2 * (four - two), rel=1e-6)


def test_scales_cost_by_their_pixels() -> None:
    plain = stage_of(tiny("label.views=[identity]"), "label").multiply_adds
    scaled = stage_of(tiny("label.views=[identity,hflip]", "label.scales=[0.5,1,1.5]"), "label").multiply_adds
    assert scaled == 2 * plain * (0.25 + 1 + 2.25)


def test_joint_training_and_its_control_are_in_it() -> None:
    joint = ("joint.required=true", "joint.size=32", "joint.batch_size=6", "student.batch_size=4")
    stages = {stage.name: stage for stage in stages_of(tiny(*joint), IMAGES)}
    one = stages["teacher"].multiply_adds
    with torch.device("meta"):
        classified = count_multiply_adds(build_classifier(tiny().model, 5), (32, 32))
    assert stages["teacher"].flops == pytest.approx(6 * 6 * (4 * one + 6 * classified), rel=1e-3)  # 6 steps
    assert stages["teacher-control"].images_seen == 6 * (4 + 2)  # 6 images of 32 x 32 are 1.5 of 64 x 64
    assert stages["student"].images_seen == 4 * (8 + 6)
    assert stages["teacher"].memory_bytes > stage_of(tiny(), "teacher").memory_bytes


@pytest.mark.parametrize(
    ("method", "seen"),
    [
        ("supervised", {"pretrain": 160, "evaluate": 10}),  # 4 passes of 40 images
        ("simclr", {"pretrain": 4 * 140, "probe": 2 * 50}),  # the pool joins
        (
            "noisy-student",
            {"teacher": 160, "label": 100, "label-again": 100, "control": 640, "student": 1280, "evaluate": 40},
        ),
    ],
)
def test_stages_of_pretraining(method: str, seen: dict[str, int]) -> None:
    options = ("train.passes=4", "train.min_steps=1", "pretrain.size=32", "pretrain.noisy_student.rounds=2")
    config = tiny_pretraining(f"pretrain.method={method}", *options)
    stages = {stage.name: stage for stage in stages_of(config, IMAGES)}
    assert {name: stage.images_seen for name, stage in stages.items()} == seen
    with torch.device("meta"):
        one = count_multiply_adds(build_classifier(config.model, 3), (32, 32))
    first = next(iter(stages.values()))
    assert first.multiply_adds == one * (2 if method == "simclr" else 1)
    assert first.flops == 6 * first.multiply_adds * first.images_seen


def test_self_training_over_supervised_alone() -> None:
    """The ResNet-50 recipe by hand: 200k steps of 256, ImageNet labeled once, 120k steps of 512."""
    config = load_config("detection-paper-r50")
    figures = costs_of(config, flops=1e14).as_dict()
    assert figures["images_seen"]["student"] == 120_000 * 512
    assert figures["ratio"] == pytest.approx(
        (200_000 * 256 + 1_281_167 / 3 + 120_000 * 512) / (200_000 * 256), rel=1e-6
    )
    assert figures["training_flops"]["teacher"] == pytest.approx(6 * 96.9e9 * 200_000 * 256, rel=0.001)
    assert figures["hours"]["teacher"] == pytest.approx(figures["training_flops"]["teacher"] / 1e14 / 3600)


def test_repeats_do_not_change_what_self_training_costs() -> None:
    once, thrice = (costs_of(tiny("rounds=2", f"repeats={repeats}"), flops=1.0) for repeats in (1, 3))
    assert once.ratio == pytest.approx(thrice.ratio)
    hours, times_three = (costs.as_dict()["hours"] for costs in (once, thrice))
    assert times_three["student"] == pytest.approx(3 * hours["student"])
    assert times_three["label"] == pytest.approx(2 * hours["label"])  # 4 stores and 2: the first is shared


def test_images_are_counted_given_or_the_papers(scenes: Path) -> None:
    counted = count_images(
        load_config(
            "detection-demo",
            TINY,
            sources={
                "labeled": [str(annotation(scenes, "labeled"))],
                "unlabeled": [str(scenes / "pool" / "images")],
                "test": [str(annotation(scenes, "test"))],
            },
        )
    )
    assert (counted.labeled, counted.pool, counted.num_classes, counted.origin) == (8, 20, 4, "counted")
    given = count_images(tiny("data.labeled_fraction=0.2", "data.rest_as_pool=true"), labeled=100, pool=50)
    assert (given.labeled, given.pool, given.origin) == (20, 130, "given")
    paper = count_images(load_config("detection-paper-b7-20"))
    assert (paper.labeled, paper.pool, paper.origin) == (23_657, 1_281_167, "the paper's")
    assert count_images(tiny(), labeled=40).origin == "labeled given, pool the paper's"
    assert count_images(tiny_pretraining("pretrain.method=simclr"), labeled=40).origin == "given"  # it needs no pool
    with pytest.raises(InputError, match="--pool-images"):
        count_images(tiny(f"sources.unlabeled=[{scenes}]"))


@pytest.mark.parametrize("flops", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_cannot_be_is_refused(flops: float) -> None:
    with pytest.raises(InputError, match=r"--flops: found .*3e14"):
        costs_of(tiny(), flops=flops)


def test_numbers_of_images_that_cannot_be_are_refused(scenes: Path) -> None:
    for numbers, option in ({"labeled": -5}, "--labeled-images"), ({"pool": -1}, "--pool-images"):
        with pytest.raises(InputError, match=f"{option}: found -"):
            count_images(tiny(), **numbers)
    given = f"sources.labeled=[{scenes}/labeled/scenes.json]", f"sources.unlabeled=[{scenes}/pool/images]"
    with pytest.raises(InputError, match="--unlabeled: is counted with the labeled data only"):
        count_images(tiny(*given), labeled=5)


def test_cost_as_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--labeled-images", "40", "--pool-images", "100", "--flops", "1e9"]
    assert main(["show", "detection-demo", "--cost", "--json", *numbers, *TINY]) == 0
    printed = json.loads(capsys.readouterr().out)
    keys = ("parameters", "multiply_adds", "images_seen", "training_flops", "memory_bytes", "hours")
    for key in keys:
        assert set(printed[key]) == {"teacher", "label", "control", "student", "total"}, key
    assert printed["hours"]["total"] == pytest.approx(printed["training_flops"]["total"] / 1e9 / 3600)
    assert printed["memory_bytes"]["total"] == max(printed["memory_bytes"].values())
    assert printed["ratio"] > 1
    assert main(["show", "detection-demo", "--cost", *numbers, *TINY]) == 0
    shown = capsys.readouterr().out
    assert "student" in shown and f"costs {printed['ratio']:.1f} x supervised" in " ".join(shown.split())
    assert main(["show", "detection-demo", "--json"]) == 2
    assert "Add --cost" in capsys.readouterr().err


def test_show_prints_memory_with_and_without_recomputation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "detection-demo", *TINY]) == 0
    shown = capsys.readouterr().out
    found = re.findall(
        r"([\d.]+ .B) an image, ([\d.]+ .B) the 8 images .* runtime.activation_checkpointing=(\w+)", shown
    )
    (plain, plain_pass, _), (recomputed, recomputed_pass, enabled) = found
    assert enabled == "true"
    assert size(recomputed) < size(plain) and size(recomputed_pass) < size(plain_pass)


def size(printed: str) -> float:
    number, unit = printed.split()
    return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_speed_is_measured_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = measured_speed(tiny("student.batch_size=1"))
    assert speed is not None and 1e6 < speed < 1e15
    monkeypatch.setattr("tutelage.workflows.costing.speed.available_bytes", lambda: 1000)
    costs = costs_of(tiny(), labeled=40, pool=100)
    assert costs.as_dict()["hours"]["total"] is None
    assert "--flops" in costs.lines()[-1]
