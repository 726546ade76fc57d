"""Measured figures with their intervals, kept once and read by the comparison."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folder import predicted
from tutelage import stats
from tutelage.config import RunConfig, load_config, parse_config
from tutelage.tasks.detection.measuring import DetectionTally
from tutelage.tasks.metrics import detection_metrics, match_detections
from tutelage.types import Boxes
from tutelage.workflows import evaluation
from tutelage.workflows.comparison import compare
from tutelage.workflows.evaluation import evaluate_stage, intervals_of, read_resampled, resample
from tutelage.workflows.prepare import prepare
from tutelage.workflows.stages import Place, Stage

NAMES = ("common", "rare", "absent")


def config_of(**raw: Any) -> RunConfig:
    return parse_config({"eval": {"resamples": 60}, **raw}, "test")


def made_set(num_images: int = 30) -> tuple[list[Boxes], list[Boxes]]:
    """Boxes of 20 to 50 pixels: every image has the common class, four have the rare one."""
    rng = np.random.default_rng(0)
    truth = []
    for image in range(num_images):
        labels = np.array([0, 0, 0, *([1] if image < 4 else [])])
        corner = rng.uniform(0, 120, (len(labels), 2))
        truth.append(Boxes.build(np.hstack([corner, corner + rng.uniform(20, 50, corner.shape)]), labels))
    return truth, [predicted(boxes, 0.7, 2, rng) for boxes in truth]


def test_intervals_of_classes_and_sizes_hold_the_figure_or_are_left_out() -> None:
    truth, seen = made_set()
    config, groups = config_of(), np.arange(30)
    tally, metrics = DetectionTally(match_detections(truth, seen, 3)), detection_metrics(truth, seen, NAMES)
    found = intervals_of(resample(tally, groups, config), metrics, tally.groups_with_truth(groups), 0.95)
    assert list(found) == ["ap", "ap50", "ap75", "ap_small", "ap_medium", "per_class"], "no large truth"
    for name in ("ap", "ap50", "ap_small", "ap_medium"):
        assert found[name]["low"] < metrics[name] < found[name]["high"]
    common = found["per_class"]["common"]
    for name in ("ap", "ap50"):
        assert common[name]["low"] < metrics["per_class"]["common"][name] < common[name]["high"]
    assert metrics["per_class"]["rare"]["ap"] is not None, "measured, but in four images only"
    assert found["per_class"]["rare"] == found["per_class"]["absent"] == {"ap": None, "ap50": None}
    assert json.loads(json.dumps(found)) == found


def test_a_class_whose_images_are_few_groups_has_no_interval() -> None:
    truth, seen = made_set()
    tally, metrics = DetectionTally(match_detections(truth, seen, 3)), detection_metrics(truth, seen, NAMES)
    groups = np.arange(30) % (stats.FEW_WITH_TRUTH - 1)
    found = intervals_of(resample(tally, groups, config_of()), metrics, tally.groups_with_truth(groups), 0.95)
    assert found["per_class"]["common"] == {"ap": None, "ap50": None} and "ap_small" not in found


def stages_of(finished: Path) -> dict[str, Stage]:
    record = json.loads((finished / "run.json").read_text())
    return {name: Stage(name, "", finished / path) for name, path in record["stages"].items()}


def test_a_fit_keeps_resampled_figures_and_intervals_of_classes_and_sizes(finished: Path) -> None:
    stage = stages_of(finished)["evaluate-student-1"]
    kept = read_resampled(stage.folder)
    metrics, intervals = stage.record["metrics"], stage.record["intervals"]
    assert set(intervals["per_class"]) == set(metrics["per_class"])
    assert kept.kind == "leave-one-out" and len(kept.figures["ap"]) == 24, "few test images"
    assert kept.figures["class_ap"].shape == (24, len(metrics["per_class"]))
    point = metrics["ap_small"]
    reach = stats.t_quantile(0.95, 23) * np.sqrt(23 / 24 * np.sum((kept.figures["ap_small"] - point) ** 2))
    assert (
        intervals["ap_small"]["low"] == pytest.approx(max(0, point - reach)) and intervals["ap_small"]["mean"] == point
    )


def test_the_comparison_resamples_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(finished / "config.yaml")
    prepared, before = prepare(config), json.loads((finished / "run.json").read_text())
    monkeypatch.setattr(evaluation, "resample", lambda *_: pytest.fail("resampled again"))
    again = json.loads(json.dumps(compare(config, prepared, stages_of(finished))))
    for name in ("verdict", "recommended_reason", "differences", "decided_on", "convergence", "student"):
        assert again[name] == before[name]


def test_without_test_and_selection_images_nothing_is_claimed(finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    stages = {name: stage for name, stage in stages_of(finished).items() if not name.startswith("evaluate-")}
    record = compare(config, prepare(config), stages)
    assert record["decided_on"] == "nothing" and record["recommended"] == "teacher"
    assert "test images, so" not in record["recommended_reason"] and record["verdict"].startswith("Not measured")


def test_the_key_of_an_evaluation_holds_what_its_figures_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Index:
        fingerprint = "test"

    keys: list[dict[str, Any]] = []
    monkeypatch.setattr(evaluation, "run_stage", lambda place, name, key, runtime, work: keys.append(key))
    config = config_of()
    others: list[RunConfig] = [
        config,
        config.model_copy(update={"seed": 1}),
        config.model_copy(update={"model": config.model.model_copy(update={"canvas": (128, 128)})}),
        config.model_copy(update={"model": config.model.model_copy(update={"init": "imagenet"})}),
    ]
    for one in others:
        evaluate_stage(Place(tmp_path), "x", one, None, Stage("t", "h", tmp_path), Index(), np.arange(2), None)  # type: ignore[arg-type]
    assert keys[0] == keys[3] and keys[0] != keys[1] and keys[0] != keys[2]
