"""The verb `pretrain`: supervised and Noisy Student, from folders to a start that `model.init` takes."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import TINY, annotation
from tutelage.config import load_config
from tutelage.data.pseudo import open_store
from tutelage.data.readers import open_index
from tutelage.engine import loop
from tutelage.engine.runtime import Interrupted
from tutelage.models.init import initialize, load_model, save_model
from tutelage.models.model import build_classifier, build_detector
from tutelage.stats.intervals import binomial_interval
from tutelage.types import InputError
from tutelage.workflows.pretraining import pretrain
from tutelage.workflows.pretraining.conclusion import compare, paired_differences
from tutelage.workflows.pretraining.data import held_out_rows

OPTIONS = (
    *TINY,
    "train.min_steps=3",
    "model.norm.momentum=0.3",
    "pretrain.size=32",
    "pretrain.test_fraction=0.25",
)
NOISY = (
    *OPTIONS,
    "pretrain.method=noisy-student",
    "pretrain.noisy_student.floor=0.2",
    "pretrain.noisy_student.per_class=6",
    "pretrain.noisy_student.ratio=2",
    "pretrain.dropout=0.2",
    "pretrain.least_area=0.5",
    "model.drop_path=0.1",
)
ROUNDS = "pretrain.noisy_student.rounds=2"
CLASSES = ("blue", "green", "red")


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    """Noise in a color for each of three classes, which differ too much to be copies."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([seed, label, number])
            cells = rng.integers(0, 100, (4, 4, 3), dtype=np.uint8)
            cells[..., 2 - label] += 150
            Image.fromarray(cells).resize((48, 48), Image.Resampling.NEAREST).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classes` of 8 pictures; a `pool` of 24, a broken one, and a copy of each picture of a class."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_pictures(folder / "classes", 8, seed=0)
    draw_pictures(folder / "pool", 8, seed=1)
    (folder / "pool" / "broken.png").write_bytes(b"no picture")
    shutil.copytree(folder / "classes" / "red", folder / "pool" / "copies")
    return folder


@pytest.fixture(scope="module")
def noisy(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished Noisy Student of two rounds."""
    out = tmp_path_factory.mktemp("noisy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        run_noisy(pictures, out, ROUNDS)
        yield out


def run_noisy(pictures: Path, out: Path, *overrides: str, **given: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"unlabeled": pictures / "pool", "recipe": "pretrain-small"} | given
    return pretrain(pictures / "classes", out=out, overrides=(*NOISY, *overrides), **options)


def first_student(noisy: Path) -> Path:
    return noisy / json.loads((noisy / "run.json").read_text())["stages"]["student-1"]


def test_a_supervised_run_is_recorded_and_is_a_start(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    record = pretrain(pictures / "classes", out=out, recipe="pretrain-small", overrides=OPTIONS)
    assert json.loads((out / "run.json").read_text()) == record
    assert (record["method"], record["held_out"], record["num_images"]) == ("supervised", 6, {"labeled": 18})
    assert record["accuracy"] * 6 == pytest.approx(round(record["accuracy"] * 6))
    assert record["accuracy_interval"]["low"] <= record["accuracy"] <= record["accuracy_interval"]["high"]
    assert record["load_report"]["source"] == "random" and record["config_hash"]
    assert (out / record["stages"]["pretrain"] / "run.json").is_file()
    card = (out / "model" / "README.md").read_text()
    for words in (
        "supervised classification, 32 px",
        "of 6 images",
        "blue, green, red",
        "License: not stated",
        "123.68",
    ):
        assert words in card
    model = load_config("detection-demo", TINY).model
    report = initialize(build_detector(model, 2), str(out), backbone_name=model.backbone)
    assert len(report.matched) > 10 and all(name.startswith(("backbone.", "normalize.")) for name in report.matched)
    before = (out / "run.json").stat().st_mtime_ns
    assert pretrain(pictures / "classes", out=out, recipe="pretrain-small", overrides=OPTIONS) == record
    assert (out / "run.json").stat().st_mtime_ns == before


def test_a_noisy_student_has_its_stages_and_its_control(noisy: Path) -> None:
    record = json.loads((noisy / "run.json").read_text())
    names = ["teacher", "pseudo-1", "student-1", "pseudo-2", "student-2", "control-2"]
    assert list(record["stages"]) == names
    stages = {name: json.loads((noisy / folder / "run.json").read_text()) for name, folder in record["stages"].items()}
    assert not list(noisy.rglob("checkpoint"))
    # the control differs from the student in its second stream alone
    student, control = stages["student-2"]["key"], stages["control-2"]["key"]
    assert {key for key in student if student[key] != control[key]} == {"second"}
    assert stages["control-2"]["num_images"] == {"labeled": 18, "second": 18}
    assert stages["control-2"]["steps"] == stages["student-2"]["steps"] == 3
    assert stages["pseudo-2"]["key"]["teacher"] == stages["student-1"]["hash"]
    for arm, stage in (("teacher", "teacher"), ("control", "control-2"), ("student", "student-2")):
        assert record["arms"][arm] == {"stage": stage, "accuracy": stages[stage]["accuracy"]}
    assert record["accuracy"] == record["arms"]["student"]["accuracy"]
    assert record["verdict"] in (noisy / "model" / "README.md").read_text()
    taken = noisy / record["stages"]["student-2"] / "model" / "model.safetensors"
    assert (noisy / "model" / "model.safetensors").read_bytes() == taken.read_bytes()


def test_the_pool_is_labeled_without_held_out_images_and_balanced(noisy: Path) -> None:
    record = json.loads((noisy / "run.json").read_text())
    labeled = json.loads((noisy / record["stages"]["pseudo-1"] / "run.json").read_text())
    counts = labeled["counts"]
    assert (counts["images"], counts["skipped"], counts["leaks"]) == (24 + 1 + 8, 1, 2), "a quarter of eight held out"
    store = open_store(noisy / record["stages"]["pseudo-1"])
    leaks = [path for images, _ in store.parts() for path in images["path"][images["status"] == "leak"]]
    assert all(path.startswith("copies/") for path in leaks)
    assert record["leaks"] == 2
    balanced = record["balance"]
    used = sum(row["used"] for row in balanced["classes"].values())
    assert record["num_images"] == {"labeled": 18, "second": used}
    assert balanced["per_class"] == 6 and set(balanced["classes"]) == set(CLASSES)
    assert sum(row["found"] for row in balanced["classes"].values()) == 33 - 3


def test_the_pool_is_seen_without_noise_as_held_out_images_are(noisy: Path, pictures: Path) -> None:
    record = json.loads((noisy / "run.json").read_text())
    model, _ = load_model(noisy / record["stages"]["teacher"] / "model")
    store = open_store(noisy / record["stages"]["pseudo-1"])
    images, found = next(iter(store.parts()))
    path = images["path"][images["image_id"] == found["image_id"][0]].item()
    pixels = np.asarray(Image.open(pictures / "pool" / path))[3:45, 3:45]  # 0.875 of 48 px
    resized = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX)
    tensor = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model.eval()(tensor, torch.tensor([[32, 32]])).softmax(dim=1)[0]
    assert int(expected.argmax()) == found["label"][0]
    assert float(expected.max()) == pytest.approx(found["score"][0], abs=0.02)


def test_a_stopped_student_continues_as_if_never_stopped(
    noisy: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    rate_of = loop.lr_at

    def stopping(step: int, *rest: Any) -> float:
        calls.append(step)
        if len(calls) == 5:  # the student's second of three steps
            signal.raise_signal(signal.SIGTERM)
        return rate_of(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "lr_at", stopping)
        with pytest.raises(Interrupted, match="student-1: stopped after step 2 of 3"):
            run_noisy(pictures, tmp_path / "run", ROUNDS)
    assert not (tmp_path / "run" / "run.json").exists()
    run_noisy(pictures, tmp_path / "run", ROUNDS)
    one, other = ((out / "model" / "model.safetensors").read_bytes() for out in (tmp_path / "run", noisy))
    assert one == other


def test_a_given_teacher_labels_and_a_student_may_be_larger(noisy: Path, pictures: Path, tmp_path: Path) -> None:
    teacher = first_student(noisy)
    larger = ("pretrain.noisy_student.backbone=test_efficientnet", "pretrain.noisy_student.soft=false")
    with pytest.raises(InputError, match="cannot start from"):
        run_noisy(pictures, tmp_path / "run", *larger, f"model.init={teacher}")
    record = run_noisy(pictures, tmp_path / "given", *larger, teacher=teacher)
    assert "teacher-" not in " ".join(path.name for path in (tmp_path / "given" / "stages").iterdir())
    assert record["stages"]["teacher"] == str(teacher.resolve())
    known = json.loads((teacher / "run.json").read_text())["accuracy"]
    assert record["arms"]["teacher"]["accuracy"] == known, "the same images are held out"
    assert load_model(tmp_path / "given" / "model")[0].config.backbone == "test_efficientnet"
    assert "note" not in record["arms"]["teacher"], "its model.json shows that they were kept from it"


def test_a_teacher_that_may_know_what_is_held_out_is_said_to_and_not_recommended(
    noisy: Path, pictures: Path, tmp_path: Path
) -> None:
    record = run_noisy(pictures, tmp_path / "run", teacher=first_student(noisy), seed=5)
    note = record["arms"]["teacher"]["note"]
    assert "may have been trained on the held-out images" in note and "note" not in record["arms"]["student"]
    assert f"- Teacher: {note}." in (tmp_path / "run" / "model" / "README.md").read_text()
    assert record["recommended"] in ("student", "control")
    assert record["recommended_reason"].endswith(f"The teacher was not considered: {note}.")


@pytest.mark.parametrize(("better", "named"), [(60, "student"), (0, "control")])
def test_with_a_caveat_student_and_control_are_compared_alone(better: int, named: str) -> None:
    config = load_config("pretrain-small", ("eval.resamples=200",))
    control = np.arange(400) < 200
    arms = {"teacher": np.ones(400, bool), "control": control, "student": np.arange(400) < 200 + better}
    assert compare(arms, config, "")["recommended"] == "teacher"
    found = compare(arms, config, "it was there")
    assert found["recommended"] == named
    assert found["recommended_reason"].endswith("The teacher was not considered: it was there.")


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("supervised", ("unlabeled",), "--unlabeled: pretrain.method=supervised has no use for it"),
        ("supervised", ("teacher",), "--teacher: pretrain.method=supervised has no use for it"),
        ("noisy-student", (), "--unlabeled: was not given"),
        ("noisy-student", ("unlabeled", "teacher"), r"--teacher .*: its 2 classes \(blue, green, ...\) are not the 3"),
    ],
)
def test_what_does_not_fit_the_method_is_refused(
    pictures: Path, tmp_path: Path, method: str, given: tuple[str, ...], words: str
) -> None:
    config = load_config("pretrain-small", OPTIONS).model
    card = {"task": "classification", "class_names": CLASSES[:2]}
    save_model(tmp_path / "teacher", build_classifier(config, 2), card)
    places = {"unlabeled": pictures / "pool", "teacher": tmp_path / "teacher"}
    overrides = (*OPTIONS, f"pretrain.method={method}")
    with pytest.raises(InputError, match=words):
        pretrain(
            pictures / "classes", out=tmp_path / "run", overrides=overrides, **{name: places[name] for name in given}
        )


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("supervised", "pretrain.test_fraction", 1.0),
        ("noisy-student", "pretrain.test_fraction", 0.94),  # of eight pictures a class
        ("simclr", "pretrain.simclr.probe_fraction", 1.0),
    ],
)
def test_a_class_held_out_whole_is_refused(
    pictures: Path, tmp_path: Path, method: str, option: str, value: float
) -> None:
    given = {"unlabeled": pictures / "pool"} if method == "noisy-student" else {}
    overrides = (*OPTIONS, f"pretrain.method={method}", f"{option}={value}")
    with pytest.raises(InputError, match=rf"^{option}={value}: holds out all 8 images of class 'blue'"):
        pretrain(pictures / "classes", out=tmp_path / "run", recipe="pretrain-small", overrides=overrides, **given)


def test_labels_of_objects_are_no_classes_of_images(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4 classes were found, and \d+ images without one; .*class for every image"):
        pretrain(annotation(scenes, "labeled"), out=tmp_path / "run", recipe="pretrain-small", overrides=OPTIONS)


@pytest.mark.parametrize("given", ["[]", "[a, b]"])
def test_one_source_is_taken(pictures: Path, tmp_path: Path, given: str) -> None:
    overrides = (*OPTIONS, f"sources.labeled={given}")
    with pytest.raises(InputError, match=r"sources\.labeled: holds \d sources; pre-training takes one"):
        pretrain(pictures / "classes", out=tmp_path / "run", recipe="pretrain-small", overrides=overrides)


def test_a_held_out_image_that_cannot_be_read_ends_it_before_the_training(pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "classes"
    shutil.copytree(pictures / "classes", source)
    index = open_index(source, load_config("pretrain-small").data)
    held_out = index.path(int(held_out_rows(index.image_classes(), 0.25, 0)[0]))
    held_out.write_bytes(b"no picture")
    with pytest.raises(InputError, match=rf"{held_out.name}: is not an image"):
        pretrain(source, out=tmp_path / "run", recipe="pretrain-small", overrides=OPTIONS)
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("option", ["train.batch_size=1", "runtime.device_batch_size=1"])
def test_a_pass_that_batch_norm_cannot_normalize_is_refused(pictures: Path, tmp_path: Path, option: str) -> None:
    overrides = (*OPTIONS, option)
    with pytest.raises(InputError, match=r"one image of 32 x 32 px .* one value a channel; .*pretrain\.size"):
        pretrain(pictures / "classes", out=tmp_path / "run", recipe="pretrain-small", overrides=overrides)


@pytest.mark.parametrize(("backbone", "found"), [("nonsense", "knows no model"), ("spinenet49s", "reaches stride 128")])
def test_a_students_network_that_cannot_be_ends_it_before_the_teacher(
    pictures: Path, tmp_path: Path, backbone: str, found: str
) -> None:
    with pytest.raises(InputError, match=found):
        run_noisy(pictures, tmp_path / "run", f"pretrain.noisy_student.backbone={backbone}")
    assert not (tmp_path / "run" / "stages").exists()


def test_repeated_rows_are_in_the_record(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{name}/{number}.png,{name}" for name in CLASSES for number in range(8)]
    shutil.copytree(pictures / "classes", tmp_path / "images")
    (tmp_path / "all.csv").write_text("\n".join(["image,label", *rows, *rows[:3]]))
    record = pretrain(tmp_path / "all.csv", out=tmp_path / "run", recipe="pretrain-small", overrides=OPTIONS)
    assert record["data"]["labeled"]["counts"] == {"rows listed twice": 3}
    assert "3 classes; images in images; 3 rows listed twice" in capsys.readouterr().err


def test_a_floor_that_nothing_reaches_is_named(noisy: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"floor=1.0: none of 33 images has a first class that probable \(the highest"):
        run_noisy(pictures, tmp_path / "run", "pretrain.noisy_student.floor=1.0", teacher=first_student(noisy))
    assert list(tmp_path.glob("run/stages/pseudo-1-*/manifest.json")), "what was labeled is kept"


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.random(400) < 0.5
    control = teacher.copy()
    control[:20] = True
    config = load_config("pretrain-small", ("eval.resamples=500",))
    differences = paired_differences({"teacher": teacher, "control": control, "student": ~teacher}, config)
    gain = differences["control_minus_teacher"]
    assert gain is not None and gain.mean == pytest.approx((control.sum() - teacher.sum()) / 400)
    # deviation of the mean of 400 differences of which about ten are 1: sqrt(0.025 * 0.975 / 400) = 0.008
    assert gain.half_width == pytest.approx(1.96 * np.std(control.astype(int) - teacher) / 20, rel=0.2)
    wide = differences["student_minus_teacher"]
    assert wide is not None and wide.half_width > 5 * gain.half_width


def test_wilsons_interval_by_hand() -> None:
    interval = binomial_interval(8, 10, 0.95)
    assert (interval.mean, round(interval.low, 4), round(interval.high, 4)) == (0.8, 0.4902, 0.9433)
    assert binomial_interval(0, 10, 0.95).low == pytest.approx(0, abs=1e-12)
    assert binomial_interval(10, 10, 0.95).high == pytest.approx(1, abs=1e-12)
