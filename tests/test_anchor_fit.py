"""Anchors are fitted to the labeled boxes: against boxes placed at random, and in a whole run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import tutelage
from tests.tiny import arguments
from tutelage.config import AnchorConfig, ModelConfig, load_config
from tutelage.data.index import Index
from tutelage.files import read_json
from tutelage.ops.anchors import make_anchors, mean_best_overlap
from tutelage.workflows.anchors import box_sides, fitting_size, with_fitted_anchors


@pytest.mark.parametrize("size", [1.5, 4.0])
def test_the_overlap_is_that_of_boxes_at_random_places(size: float) -> None:
    shape, levels = AnchorConfig(size=size), (3, 4)
    sides = np.array([[12.0, 20.0], [33.0, 30.0]])
    anchors = make_anchors((128, 128), levels, shape)
    rng = np.random.default_rng(0)
    centers = rng.uniform(48, 80, (1500, 1, 2))
    boxes = torch.from_numpy(np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1).reshape(-1, 4))
    drawn = torch.cat([box_iou(part, anchors.double()).max(dim=1).values for part in boxes.split(500)])
    assert mean_best_overlap(sides, levels, shape) == pytest.approx(float(drawn.mean()), abs=0.008)


def test_small_objects_get_small_anchors_and_large_ones_the_originals() -> None:
    model = ModelConfig(max_level=6)
    rng = np.random.default_rng(0)
    assert fitting_size(rng.uniform(8, 20, (500, 2)), model) <= 2.0
    assert fitting_size(rng.uniform(45, 60, (500, 2)), model) >= 3.0
    assert fitting_size(np.zeros((0, 2)), model) == 4.0


def test_sides_are_those_on_the_canvas(tmp_path: Path) -> None:
    index = Index.build(
        folder=tmp_path / "index",
        roots=[tmp_path],
        paths=["a.png", "b.png"],
        class_names=["x"],
        sizes=[[100, 200], [400, 400]],
        offsets=[0, 2, 3],
        xyxy=[[0, 0, 20, 10], [5, 5, 6, 6], [0, 0, 40, 80]],
        labels=[0, 0, 0],
        ignore=[0, 1, 0],
        description="two",
    )
    assert box_sides(index, (100, 100)).tolist() == [[10, 5], [10, 20]]


def test_a_run_is_trained_with_the_fitted_size_and_its_student_keeps_it(scenes: Path, tmp_path: Path) -> None:
    given = arguments(scenes, tmp_path / "run")
    given["overrides"] = (*given["overrides"], "model.anchors.size=fit")
    record = tutelage.fit(**given)
    card = read_json(tmp_path / "run" / "model" / "model.json")
    config = load_config("detection-demo", given["overrides"])
    labeled = tutelage.data.readers.open_index(given["labeled"], config.data)
    assert card["model"]["anchors"]["size"] == fitting_size(box_sides(labeled, config.model.canvas), config.model)
    teacher = tmp_path / "run" / record["stages"]["teacher"] / "model"
    other = load_config("detection-demo", ["model.anchors.size=fit", f"sources.teacher={teacher}"])
    assert with_fitted_anchors(other, labeled).model.anchors == AnchorConfig(**card["model"]["anchors"])
