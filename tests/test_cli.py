"""The command line: help with examples, exit codes, and the verbs after a fit."""

import inspect
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import tutelage
from tests.tiny import TINY, annotation
from tutelage import cli
from tutelage.cli import main
from tutelage.config import DataConfig, load_config, recipe_names
from tutelage.data.readers import open_index
from tutelage.models.init import save_model
from tutelage.models.model import build_classifier
from tutelage.workflows.assembly import open_model
from tutelage.workflows.showing import PUBLISHED


def test_help_does_not_wait_for_torch() -> None:
    loaded = "import sys, tutelage.cli; print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("verb", sorted(tutelage.VERBS))
def test_help_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"tutelage {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", sorted(tutelage.VERBS))
def test_each_verb_is_a_function_with_the_same_arguments(verb: str) -> None:
    command = set(inspect.signature(getattr(cli, verb)).parameters)
    assert set(inspect.signature(getattr(tutelage, verb)).parameters) == command


def test_each_recipe_says_in_a_whole_sentence_what_it_is_for() -> None:
    found = tutelage.recipes()
    assert set(found) == set(recipe_names())
    for name, purpose in found.items():
        assert purpose.count("(") == purpose.count(")") and purpose.endswith("."), f"{name}: {purpose}"
    assert found["detection-paper-r50"].endswith("from random weights (arXiv:2006.06882, app. H).")


@pytest.mark.parametrize("verb", ["predict", "label", "export", "review"])
def test_a_file_in_the_place_of_a_folder_is_said(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "file").touch()
    given = {"predict": [str(scenes / "test" / "images")], "label": ["--unlabeled", str(scenes / "pool" / "images")]}
    assert main([verb, str(finished), *given.get(verb, []), "--out", str(tmp_path / "file" / "inside")]) == 2
    assert capsys.readouterr().err.endswith("file/inside: a file is in the way; choose another folder.\n")


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "detection-paper-b7" in capsys.readouterr().out
    assert main(["fit", "--out", str(tmp_path / "run"), "--labeled", str(tmp_path / "absent.json"), *TINY]) == 2
    assert "absent.json" in capsys.readouterr().err
    assert main(["fit"]) == 2, "a missing option"
    assert main(["show", "detection-smal"]) == 2


def test_show_prints_a_whole_recipe_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "detection-paper-r50"]) == 0
    shown = capsys.readouterr().out
    assert "min_steps: 200000" in shown
    assert "34.1 million parameters with 91 classes" in shown  # TPU model zoo, R50-FPN
    assert "96.9 billion multiply-adds an image of 640 x 640" in shown
    assert "published: 34.0 million parameters, 97.0 billion" in shown
    assert set(PUBLISHED) <= set(recipe_names())


def test_check_says_what_is_there(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--labeled", str(annotation(scenes, "labeled")), "--unlabeled", str(scenes / "pool" / "images")]
    options += ["--test", str(annotation(scenes, "test"))]
    sheets = ["--sheet", str(tmp_path / "sheet.png"), "--augment-sheet", str(tmp_path / "augment.png")]
    assert main(["check", *options, *sheets]) == 0
    shown = capsys.readouterr().out
    assert "8 images, 33 boxes, 4 classes" in shown and "no labeled image is in the test set" in shown
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and (tmp_path / "augment.png").stat().st_size > 1000


def test_report_again(finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(finished)]) == 0
    assert page.read_text() == before
    assert main(["report", str(finished / "stages")]) == 2


def test_predict_writes_coco_and_pictures(finished: Path, scenes: Path, tmp_path: Path) -> None:
    pool = scenes / "pool" / "images"
    options = ["--out", str(tmp_path / "found"), "--pictures", "--score", "0.0", "--device", "cpu"]
    assert main(["predict", str(finished / "model"), str(pool), *options]) == 0
    written = json.loads(next((tmp_path / "found").glob("*.json")).read_text())
    assert len(written["images"]) == 20
    assert all("score" in box for box in written["annotations"]) and written["annotations"]
    assert len(list((tmp_path / "found" / "pictures").rglob("*.jpg"))) == 20


def test_evaluate_gives_the_figures_of_the_fit(finished: Path, scenes: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    model = finished / record["stages"]["student-1"]
    options = ["--test", str(annotation(scenes, "test")), "--out", str(tmp_path / "measured"), "--device", "cpu"]
    assert main(["evaluate", str(model), *options, "runtime.workers=0", "eval.resamples=20"]) == 0
    measured = json.loads((tmp_path / "measured" / "run.json").read_text())
    assert measured["metrics"] == record["student"]["metrics"]


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_label_exports_what_is_above_the_threshold(finished: Path, scenes: Path, tmp_path: Path, format: str) -> None:
    options = ["--unlabeled", str(scenes / "pool" / "images"), "--out", str(tmp_path / "store"), "--export", format]
    settings = ["pseudo.score_threshold=0.0", "postprocess.score_floor=0.0", "runtime.workers=0", "runtime.device=cpu"]
    assert main(["label", str(finished / "model"), *options, *settings]) == 0
    assert (tmp_path / "store" / "manifest.json").is_file()
    suffix = {"coco": "*.json", "yolo": "*.txt", "voc": "*.xml"}[format]
    assert list((tmp_path / "store" / "export").rglob(suffix))


@pytest.mark.parametrize("verb", ["predict", "label", "evaluate", "fit"])
def test_a_pretrained_backbone_is_no_detector(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    config = load_config("detection-demo", TINY)
    card = {"task": "classification", "class_names": ["cat", "dog"]}
    save_model(tmp_path / "backbone" / "model", build_classifier(config.model, 2), card)
    model, pool, test = (
        str(path) for path in (tmp_path / "backbone", scenes / "pool" / "images", annotation(scenes, "test"))
    )
    labeled = ["--labeled", str(annotation(scenes, "labeled")), "--unlabeled", pool, "--test", test]
    options = {
        "predict": [model, pool],
        "label": [model, "--unlabeled", pool],
        "evaluate": [model, "--test", test],
        "fit": ["--teacher", model, *labeled, "--recipe", "detection-demo", *TINY],
    }[verb]
    assert main([verb, *options, "--out", str(tmp_path / "out")]) == 2
    assert "holds a model for classification; one for detection" in " ".join(capsys.readouterr().err.split())


def test_train_one_model(scenes: Path, tmp_path: Path) -> None:
    options = ["--labeled", str(annotation(scenes, "labeled")), "--test", str(annotation(scenes, "test"))]
    command = ["train", *options, "--out", str(tmp_path / "run"), "--recipe", "detection-demo", *TINY]
    assert main([*command, "data.range=[100,4095]"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 6 and record["measured"]["ap"] is not None
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    _, config = open_model(tmp_path / "run", "", (), device="cpu", devices=1)
    assert config.data.range == (100, 4095), "16-bit pictures are read as in training"
    _, config = open_model(tmp_path / "run", "detection-demo", ("data.range=[0,255]",), device="cpu", devices=1)
    assert config.data.range == (0, 255)


def test_pretrain_holds_out_a_part_of_each_class(tmp_path: Path) -> None:
    for name, count in (("bright", 8), ("dark", 12)):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (40, 40), (200 + number if name == "bright" else number,) * 3)
            picture.save(tmp_path / "classes" / name / f"{number}.png")
    options = ["--out", str(tmp_path / "run"), "--recipe", "detection-demo", *TINY, "train.min_steps=2"]
    assert (
        main(["pretrain", str(tmp_path / "classes"), *options, "pretrain.size=32", "pretrain.test_fraction=0.25"]) == 0
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["held_out"], record["num_images"]) == (2 + 3, {"labeled": 6 + 9})
    assert record["classes"] == ["bright", "dark"] and 0 <= record["accuracy"] <= 1


def test_an_interrupted_fit_exits_with_130_and_continues(scenes: Path, tmp_path: Path) -> None:
    options = ["--labeled", str(annotation(scenes, "labeled")), "--unlabeled", str(scenes / "pool" / "images")]
    command = ["fit", *options, "--test", str(annotation(scenes, "test")), "--out", str(tmp_path / "run")]
    command += ["--recipe", "detection-demo", *TINY, "teacher.min_steps=400", "runtime.log_every=1"]
    process = subprocess.Popen([sys.executable, "-m", "tutelage", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(log.stat().st_size for log in tmp_path.glob("run/stages/teacher-*/log.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, "it trains"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "continue" in errors
    assert list(tmp_path.glob("run/stages/teacher-*/checkpoint"))


def test_a_termination_ends_any_verb_like_an_interrupt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(**_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tutelage, "check", terminated)
    assert main(["check", "--labeled", "absent.json"]) == 130
    assert capsys.readouterr().err == "tutelage: interrupted; the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) == before
    codes: list[int] = []
    elsewhere = threading.Thread(target=lambda: codes.append(main(["recipes"])))
    elsewhere.start()
    elsewhere.join()
    assert codes == [0]


def test_predict_writes_over_nothing(finished: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("mine")
    command = ["predict", str(finished / "model"), str(scenes / "pool" / "images"), "--out", str(tmp_path)]
    assert main(command) == 2
    assert (tmp_path / "boxes.json").read_text() == "mine"


def test_exported_pseudo_labels_are_labels_again(finished: Path, scenes: Path, tmp_path: Path) -> None:
    pool, store = str(scenes / "pool" / "images"), tmp_path / "store"
    settings = ["pseudo.score_threshold=0.0", "postprocess.score_floor=0.0", "runtime.workers=0"]
    command = ["label", str(finished / "model"), "--unlabeled", pool, "--out", str(store), "--device", "cpu"]
    for format, place in {"coco": "boxes.json", "yolo": "", "voc": ""}.items():
        assert main([*command, "--export", format, "--overwrite", *settings]) == 0
        if format == "yolo":  # its labels lie beside the images
            shutil.copytree(pool, store / "export" / "images")
        exported = open_index(store / "export" / place, DataConfig(), images="" if format == "yolo" else pool)
        assert (len(exported), exported.num_boxes) == (20, 200)


def test_resume_takes_no_other_options(finished: Path) -> None:
    assert main(["fit", "--out", str(finished), "--resume", "train.lr=0.5"]) == 2
    assert main(["fit", "--out", str(finished), "--resume", "--overwrite"]) == 2
    assert (finished / "run.json").is_file()


def test_a_model_whose_classes_have_no_names_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps({**card, "class_names": card["class_names"][1:]}))
    assert main(["predict", str(tmp_path / "model"), str(tmp_path), "--out", str(tmp_path / "found")]) == 2
    assert "model.json: names 3 of 4 classes" in capsys.readouterr().err
