"""The model card of a fit: front matter that hubs parse, and the figures of the run beside it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.files import read_json
from tutelage.reporting.card import license_of_start, model_card


def card_of(run: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    text = (run / "model" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body, read_json(run / "run.json")


@pytest.mark.parametrize(
    ("fixture", "pipeline", "title"),
    [("finished", "object-detection", "AP"), ("finished_masks", "image-segmentation", "mIoU")],
)
def test_a_card_tells_what_the_run_found(
    fixture: str, pipeline: str, title: str, request: pytest.FixtureRequest
) -> None:
    front, body, record = card_of(request.getfixturevalue(fixture))
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("unknown", "tutelage", pipeline)
    assert record["task"] in front["tags"]
    arm, metric = record["recommended"], record["differences"]["student_minus_control"]["metric"]
    interval = record[arm]["intervals"][metric]
    value = f"{100 * record[arm]['metrics'][metric]:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    assert f"| {title} | {value} |" in body
    assert f"{arm} (this model)" in body and "control" in body
    difference = record["differences"]["student_minus_control"]
    assert f"- student minus control: {100 * difference['mean']:+.1f} {title} [" in body
    assert record["verdict"] in body and record["recommended_reason"] in body
    for one in record["data"].values():
        assert f"| {one['images']} | {one['description']} |" in body
    assert "License: not stated" in body and "All weights started at random." in body
    assert f"torch {record['versions']['torch']}" in body and record["command"] in body
    assert "not certified: what precision it gives is not known" in body
    assert all(one["text"] in body for one in record["warnings"])


def test_thresholds_that_a_certificate_chose_are_said(finished: Path) -> None:
    record, model = read_json(finished / "run.json"), read_json(finished / "model" / "model.json")
    record["pseudo"]["threshold"] = {"star": 0.31, "moon": 0.5}
    record["certificate"] = {
        "certified": True, "about": "teacher", "precision": 0.9, "confidence": 0.95, "used": "This run went by them."
    }  # fmt: skip
    text = model_card(record, model)
    assert "- Threshold: star 0.31, moon 0.5\n" in text
    assert "- Certified, for teacher: precision 0.9 at 95 % confidence. This run went by them.\n" in text
    record["certificate"]["certified"] = False
    assert "- Estimated with folds, not certified" in model_card(record, model)


def test_a_run_without_test_images_has_a_card(finished: Path) -> None:
    record, model = read_json(finished / "run.json"), read_json(finished / "model" / "model.json")
    record[record["recommended"]].update(metrics=None, intervals={})
    record["differences"] = {}
    text = model_card(record, model)
    assert "None: there were no test images." in text and "Not measured." in text


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("imagenet", r"resnet18\.tv_in1k \(arXiv:1512\.03385\), which is under bsd-3-clause"),
        ("random", "All weights started at random"),
        ("/data/weights/mine.pth", r"started from \(mine\.pth\) is not known"),
    ],
)
def test_the_license_of_the_start_is_said_where_it_is_known(init: str, told: str) -> None:
    assert re.search(told, license_of_start({"model": {"backbone": "resnet18", "init": init}}))
