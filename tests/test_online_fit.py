"""Fits with a teacher that learns on: the arms differ in one key, and what the mode cannot do is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.tiny import TINY, arguments, mask_arguments
from tests.toy_online import spoiled_pool
from tutelage.files import read_json
from tutelage.types import InputError

ONLINE = ("student.mode=online", "student.online.burn_in=1", "student.online.sample=9", "teacher.min_steps=2")


def stages_of(out: Path) -> dict[str, dict[str, Any]]:
    paths = read_json(out / "run.json")["stages"]
    return {name: read_json(out / path / "run.json") for name, path in paths.items()}


def check_arms(out: Path) -> None:
    """Student, control and upper reference differ in one key; the store is one of a sample."""
    stages = stages_of(out)
    student = stages["student-1"]
    for name in ("control-1", "hidden-1") if "hidden-1" in stages else ("control-1",):
        arm = stages[name]
        assert {key for key in student["config"] if student["config"][key] != arm["config"][key]} == {"second_stream"}
        assert arm["key"]["init"] == student["key"]["init"] == stages["teacher"]["hash"]
        assert (arm["steps"], arm["seed"], arm["batch_size"]) == (student["steps"], student["seed"], 4)
        assert arm["second_stream"]["images"] == student["second_stream"]["images"] == 4 * student["steps"]
    assert student["key"]["steps_before"] == stages["teacher"]["steps"], "its average goes on from the teacher's"
    assert stages["pseudo-1"]["key"]["teacher"] == student["hash"]
    record = json.loads((out / "run.json").read_text())
    assert record["pseudo"]["counts"]["images"] == 9
    assert any("running average labeled the pool" in note for note in record["notes"])
    assert "running average labeled the pool" in (out / "report.html").read_text()


def test_a_fit_online_of_boxes(scenes: Path, tmp_path: Path) -> None:
    pool = spoiled_pool(scenes, tmp_path / "pool")
    out = tmp_path / "run"
    tutelage.fit(**arguments(scenes, out, unlabeled=pool, overrides=(*TINY, *ONLINE)))
    check_arms(out)
    stages = stages_of(out)
    drawn = stages["student-1"]["second_stream"]
    assert drawn["skipped"] > 0 and drawn["leaks"] > 0
    assert stages["control-1"]["second_stream"] | {"images": 0} == {"images": 0, "skipped": 0, "leaks": 0}
    counts = stages["pseudo-1"]["counts"]
    assert (counts["skipped"], counts["leaks"]) != (0, 0) and counts["boxes_kept"] > 0


def test_a_fit_online_of_masks_with_the_upper_reference(scenes: Path, tmp_path: Path) -> None:
    hidden = ("hidden_arm=true", "data.labeled_fraction=0.5", "data.rest_as_pool=true", "student.min_steps=2")
    pool = {"labeled": scenes / "pool" / "masks", "unlabeled": ()}
    out = tmp_path / "run"
    tutelage.fit(**mask_arguments(scenes, out, **pool, overrides=(*TINY, *ONLINE, *hidden)))
    check_arms(out)


def test_train_takes_a_teacher_that_learns_on(finished: Path, scenes: Path, tmp_path: Path) -> None:
    given = arguments(scenes, tmp_path / "run", test=(), teacher=finished, overrides=(*TINY, *ONLINE))
    record = tutelage.train(**given)
    assert record["name"] == "student" and record["second_stream"]["images"] == 16
    with pytest.raises(InputError, match=r"with student\.mode=online all but the store"):
        tutelage.train(**given | {"out": tmp_path / "other", "unlabeled": ()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"overrides": (*TINY, *ONLINE, "rounds=2")}, r"rounds=2: .*1 is allowed"),
        ({"overrides": (*TINY, *ONLINE, "pseudo.class_share=0.5")}, r"pseudo\.class_share=0\.5: .*1 is allowed"),
        ({"pseudo": "store"}, r"--pseudo store: .*no store is allowed"),
        ({"overrides": (*TINY, *ONLINE, "pseudo.empty=drop", "student.ignored=drop")}, r"student\.ignored=mask"),
    ],
)
def test_what_the_mode_cannot_do_is_said(changed: dict[str, Any], message: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        tutelage.fit(**arguments(scenes, tmp_path / "run", **{"overrides": (*TINY, *ONLINE), **changed}))


def test_plan_and_cost_of_a_teacher_that_learns_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tutelage.config import load_config
    from tutelage.workflows.costing.images import Images
    from tutelage.workflows.costing.stages import stages_of as costs

    tutelage.fit(**arguments(scenes, tmp_path / "run", plan=True, overrides=(*TINY, *ONLINE)))
    assert "label    1 x 9 images" in capsys.readouterr().err
    images = Images(labeled=8, pool=20, test=0, num_classes=4, origin="given")
    offline, online = ({stage.name: stage for stage in costs(load_config("detection-demo", (*TINY, *mode)), images)}
                       for mode in ((), ONLINE))  # fmt: skip
    added = online["student"].flops - offline["student"].flops
    assert added == 2 * offline["student"].multiply_adds * 4 * 4, "a forward pass of four images in each of four steps"
    weights = 4 * online["student"].parameters
    assert online["student"].memory_bytes - offline["student"].memory_bytes == weights, "the averaged ones"
    assert online["control"] == replace(online["student"], name="control")
    assert (offline["label"].images_seen, online["label"].images_seen) == (20, 9)
