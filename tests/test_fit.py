"""The main job end to end, on tiny procedural scenes: stages, continuing, honesty of the control, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tutelage
from tests.tiny import TINY, annotation, arguments
from tutelage.cli import main
from tutelage.reporting.page import typeset
from tutelage.types import InputError


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def test_a_fit_leaves_record_model_report_and_stages(finished: Path) -> None:
    record = record_of(finished)
    assert set(record["stages"]) >= {"teacher", "pseudo-1", "control-1", "student-1", "evaluate-teacher"}
    for relative in record["stages"].values():
        assert (finished / relative / "run.json").is_file()
    assert (finished / "model" / "model.safetensors").is_file()
    assert record["recommended"] in ("teacher", "control", "student")
    assert record["decided_on"] == "selection split"
    page = (finished / "report.html").read_text()
    assert typeset(record["verdict"].split(" (")[0]) in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in ("student_minus_control", "student_minus_teacher", "control_minus_teacher"):
        difference = record["differences"][name]
        assert difference["low"] <= difference["mean"] <= difference["high"]


def test_teacher_control_and_student_differ_as_they_should(finished: Path) -> None:
    stages = {
        name: json.loads((finished / path / "run.json").read_text())
        for name, path in record_of(finished)["stages"].items()
    }
    control, student = stages["control-1"], stages["student-1"]
    differing = {key for key in student["config"] if student["config"][key] != control["config"][key]}
    assert differing == {"second_stream"}
    assert student["key"]["init"] == control["key"]["init"] == stages["teacher"]["hash"]
    assert student["steps"] == control["steps"] and student["batch_size"] == control["batch_size"]
    assert student["seed"] == control["seed"]
    assert control["num_images"] == {"labeled": 8, "second": 8}


def test_figures_of_the_record_are_those_of_the_stored_predictions(finished: Path) -> None:
    import pyarrow.parquet as pq

    from tutelage.tasks.metrics import detection_metrics
    from tutelage.types import Boxes

    record = record_of(finished)
    folder = finished / record["stages"]["evaluate-student-1"]

    def boxes(name: str, scored: bool) -> list[Boxes]:
        table = pq.read_table(folder / name).to_pydict()
        image = np.array(table["image_id"])
        xyxy = np.stack([np.array(table[axis]) for axis in ("x1", "y1", "x2", "y2")], axis=1)
        rows = [np.flatnonzero(image == one) for one in range(24)]
        return [
            Boxes.build(
                xyxy[row],
                np.array(table["label"])[row],
                np.array(table["score"])[row] if scored else None,
                None if scored else np.array(table["area"])[row],
            )
            for row in rows
        ]

    again = detection_metrics(
        boxes("truth.parquet", False), boxes("predictions.parquet", True), tuple(record["class_names"])
    )
    assert again["ap50"] == pytest.approx(record["student"]["metrics"]["ap50"], abs=1e-12)


def test_the_same_command_on_a_finished_run_only_prints(finished: Path, scenes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    again = tutelage.fit(**arguments(scenes, finished, val=annotation(scenes, "val")))
    assert again == record_of(finished)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


def test_another_config_in_the_folder_is_refused_and_names_the_keys(finished: Path, scenes: Path) -> None:
    with pytest.raises(InputError, match=r"student\.alpha: 1\.0 -> 2\.0.*--overwrite"):
        tutelage.fit(**arguments(scenes, finished, overrides=(*TINY, "student.alpha=2")))


def test_a_lost_stage_is_made_again_and_equals_the_first(finished: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    stages = record_of(out)["stages"]
    for lost in ("student-1", "evaluate-student-1"):
        shutil.rmtree(out / stages[lost])
    (out / "run.json").unlink()
    again = tutelage.fit(**arguments(scenes, out, val=annotation(scenes, "val")))
    assert again["student"]["metrics"] == record_of(finished)["student"]["metrics"]
    weights = [
        (folder / stages["student-1"] / "model" / "model.safetensors").read_bytes() for folder in (out, finished)
    ]
    assert weights[0] == weights[1]


def test_other_data_in_the_folder_is_refused(finished: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "run.json").unlink()
    smaller = arguments(scenes, out, val=annotation(scenes, "val"), labeled=annotation(scenes, "test"))
    with pytest.raises(InputError, match="labeled"):
        tutelage.fit(**smaller | {"test": annotation(scenes, "labeled")})


def test_resume_takes_the_config_of_the_folder(finished: Path) -> None:
    assert main(["fit", "--out", str(finished), "--resume"]) == 0


def test_nothing_above_the_threshold_stops_before_the_student(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    overrides = (*(one for one in TINY if not one.startswith("pseudo")), "pseudo.score_threshold=0.999")
    with pytest.raises(InputError, match=r"threshold.*--stages"):
        tutelage.fit(**arguments(scenes, out, overrides=overrides))
    assert list(out.glob("stages/pseudo-1-*/manifest.json")), "the store is kept"
    assert not list(out.glob("stages/student-1-*")) and not list(out.glob("stages/control-1-*"))


def test_rounds_and_repeats_and_the_hidden_arm(scenes: Path, tmp_path: Path) -> None:
    rounds = ("rounds=2", "repeats=2", "hidden_arm=true", "student.min_steps=2", "teacher.min_steps=2")
    hidden = ("data.labeled_fraction=0.5", "data.rest_as_pool=true")
    changed = {"labeled": annotation(scenes, "pool"), "unlabeled": (), "overrides": (*TINY, *rounds, *hidden)}
    record = tutelage.fit(**arguments(scenes, tmp_path / "run", **changed))
    assert {"student-1", "student-2", "student-2-repeat2", "hidden-2", "pseudo-2", "pseudo-2-repeat2"} <= set(
        record["stages"]
    )
    assert "pseudo-1-repeat2" not in record["stages"], "the first round's labels are shared"
    assert record["differences"]["hidden_minus_control"] is not None
    assert len(record["student"]["every_repeat"]) == 2
    assert "seeds" in record["differences"]["student_minus_control"]["covers"]


def test_plan_starts_nothing(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tutelage.fit(**arguments(scenes, tmp_path / "run", plan=True)) == {}
    shown = capsys.readouterr().err
    assert "teacher" in shown and "6 steps" in shown and "evaluate" in shown
    assert not (tmp_path / "run").exists()


def test_teacher_and_store_enter_midway(finished: Path, scenes: Path, tmp_path: Path) -> None:
    stages = record_of(finished)["stages"]
    given = {"teacher": finished / stages["teacher"], "pseudo": finished / stages["pseudo-1"]}
    record = tutelage.fit(**arguments(scenes, tmp_path / "run", **given))
    made = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "stages").iterdir()}
    assert "teacher" not in made and "pseudo-1" not in made and "student-1" in made
    assert record["student"]["metrics"] == record_of(finished)["student"]["metrics"]


def test_a_foreign_folder_is_left_alone(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        tutelage.fit(**arguments(scenes, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_no_pool_and_no_labels_are_said(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--unlabeled"):
        tutelage.fit(**arguments(scenes, tmp_path / "a", unlabeled=()))
    with pytest.raises(InputError, match="--labeled"):
        tutelage.fit(**arguments(scenes, tmp_path / "b", labeled=()))


def test_config_of_the_run_is_whole(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["teacher"]["min_steps"] == 6 and config["student"]["min_steps"] == 4
    assert config["runtime"]["workers"] == 0


def test_a_teacher_of_another_network_is_refused(finished: Path, scenes: Path, tmp_path: Path) -> None:
    overrides = (*TINY, "model.canvas=[128,128]")
    with pytest.raises(InputError, match=r"--teacher .*model\.canvas"):
        tutelage.fit(**arguments(scenes, tmp_path / "run", teacher=finished / "model", overrides=overrides))


def test_a_run_folder_gives_its_model_as_teacher(finished: Path, scenes: Path, tmp_path: Path) -> None:
    record = tutelage.fit(**arguments(scenes, tmp_path / "run", teacher=finished))
    assert "teacher" not in record["seconds"] and "student-1" in record["seconds"]


def test_a_store_that_may_hold_test_images_is_refused(finished: Path, scenes: Path, tmp_path: Path) -> None:
    settings = ("pseudo.score_threshold=0.0", "postprocess.score_floor=0.0", "runtime.workers=0", "runtime.threads=1")
    pool, store = scenes / "pool" / "images", tmp_path / "store"
    tutelage.label(finished / "model", unlabeled=pool, out=store, device="cpu", overrides=settings)
    with pytest.raises(InputError, match="without keeping this run's test images"):
        tutelage.fit(**arguments(scenes, tmp_path / "run", pseudo=store))
    kept_out = {"unlabeled": pool, "test": annotation(scenes, "test")}
    tutelage.label(finished / "model", **kept_out, out=store, device="cpu", overwrite=True, overrides=settings)
    record = tutelage.fit(**arguments(scenes, tmp_path / "other", pseudo=store))
    assert record["pseudo"]["counts"]["images"] == 20


def test_the_hidden_arm_needs_hidden_labels(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hidden_arm"):
        tutelage.fit(**arguments(scenes, tmp_path / "run", overrides=(*TINY, "hidden_arm=true")))


@pytest.mark.parametrize("verb", ["label", "evaluate"])
def test_overwrite_deletes_no_foreign_file(finished: Path, scenes: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    data = {"label": {"unlabeled": scenes / "pool" / "images"}, "evaluate": {"test": annotation(scenes, "test")}}[verb]
    with pytest.raises(InputError, match=r"other files \(letter\.txt\)"):
        getattr(tutelage, verb)(finished / "model", **data, out=tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_a_student_needs_a_pool_which_the_rest_of_the_labels_may_be(scenes: Path, tmp_path: Path) -> None:
    given = {"labeled": annotation(scenes, "labeled"), "out": tmp_path / "run", "recipe": "detection-demo"}
    absent = {"teacher": tmp_path / "teacher", "pseudo": tmp_path / "store"}
    with pytest.raises(InputError, match=r"a student needs its store, the pool .* data.rest_as_pool=true"):
        tutelage.train(**given, **absent, overrides=TINY)
    rest = ("data.labeled_fraction=0.5", "data.rest_as_pool=true")
    with pytest.raises(InputError, match="holds no model"):
        tutelage.train(**given, **absent, overrides=(*TINY, *rest))
