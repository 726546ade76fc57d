"""The procedural pictures: their labels agree with what is drawn, and a seed says it all."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tutelage.data.demo import MIN_VISIBLE, class_mask, draw_class_crops, draw_crop, draw_scene, draw_scenes
from tutelage.data.shapes import CROP_SHAPES, DISTRACTOR_SHAPES, SCENE_SHAPES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("demo"), images=60, seed=3)


@pytest.fixture(scope="module")
def coco(drawn: Path) -> COCO:
    return COCO(str(drawn))


def test_counts_and_classes(coco: COCO) -> None:
    assert len(coco.imgs) == 60
    assert [category["name"] for category in coco.dataset["categories"]] == list(SCENE_SHAPES)
    per_image = Counter(annotation["image_id"] for annotation in coco.anns.values())
    assert set(per_image) == set(coco.imgs), "every scene holds an object"
    assert min(per_image.values()) == 1 and 4 <= max(per_image.values()) <= 6
    per_class = Counter(annotation["category_id"] for annotation in coco.anns.values())
    assert min(per_class.values()) > 0.15 * len(coco.anns)


def test_labels_agree_with_masks_and_outlines(drawn: Path, coco: COCO) -> None:
    """Boxes, areas and outlines are those of pixels of the class mask."""
    overlaps = []
    for image_id, image in coco.imgs.items():
        classes = np.asarray(Image.open(drawn.parent / "masks" / Path(image["file_name"]).name))
        pixels = np.asarray(Image.open(drawn.parent / image["file_name"]))
        assert pixels.shape == (96, 96, 3) and classes.shape == (96, 96)
        left = classes.copy()
        for annotation in coco.loadAnns(coco.getAnnIds([image_id])):
            inside = coco.annToMask(annotation).astype(bool)
            of_class = classes == annotation["category_id"]
            overlaps.append((inside & of_class).sum() / inside.sum())
            assert annotation["area"] == pytest.approx(inside.sum(), rel=0.15, abs=12)
            outline = coco_mask.toBbox(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 96, 96)))
            assert np.abs(outline - annotation["bbox"]).max() <= 1.5
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 96 and 0 <= y < y + height <= 96
            left[y : y + height, x : x + width] = 0
        assert not left.any(), "every labeled pixel lies in a box"
    assert np.mean(overlaps) > 0.97


def test_masks_hold_the_classes_that_are_named_beside_them(drawn: Path, coco: COCO) -> None:
    named = json.loads((drawn.parent / "classes.json").read_text())
    assert named["ignore_index"] == 255
    assert [(entry["index"], entry["name"]) for entry in named["classes"]] == [*enumerate(("ground", *SCENE_SHAPES))]
    stems = {path.stem for path in (drawn.parent / "masks").iterdir()}
    assert stems == {path.stem for path in (drawn.parent / "images").iterdir()}
    share = np.zeros(5)
    for stem in stems:
        mask = np.asarray(Image.open(drawn.parent / "masks" / f"{stem}.png"))
        share += np.bincount(mask.ravel(), minlength=5) / (mask.size * len(stems))
    assert len(share) == 5 and 0.6 < share[0] < 0.95 and min(share[1:]) > 0.01


def test_area_of_the_masks_is_exact() -> None:
    scene = draw_scene(96, np.random.default_rng(5))
    mask = class_mask(scene)
    for label in set(scene.labels):
        of_class = [visible for own, visible in zip(scene.labels, scene.masks, strict=True) if own == label]
        assert (mask == label + 1).sum() == sum(visible.sum() for visible in of_class)
    assert np.stack(scene.masks).sum(axis=0).max() == 1, "visible pixels belong to one object"


def test_objects_occlude_each_other_but_not_wholly() -> None:
    scenes = [draw_scene(96, np.random.default_rng(seed)) for seed in range(40)]
    sizes = [visible.sum() for scene in scenes for visible in scene.masks]
    assert min(sizes) > 20
    assert 0 < MIN_VISIBLE < 1


def test_a_seed_says_it_all(tmp_path: Path) -> None:
    few, many = (draw_scenes(tmp_path / str(count), images=count, size=64, seed=7) for count in (3, 6))
    other = draw_scenes(tmp_path / "other", images=3, size=64, seed=8)
    for name in ("00000.png", "00002.png"):
        one = (few.parent / "images" / name).read_bytes()
        assert one == (many.parent / "images" / name).read_bytes()
        assert one != (other.parent / "images" / name).read_bytes()
    first, second = json.loads(few.read_text()), json.loads(many.read_text())
    assert first["annotations"] == second["annotations"][: len(first["annotations"])]


def test_shapes_of_crops_distractors_and_scenes_are_apart() -> None:
    assert len(CROP_SHAPES) >= 12
    assert not {*SCENE_SHAPES} & {*CROP_SHAPES} and not {*DISTRACTOR_SHAPES} & {*SCENE_SHAPES, *CROP_SHAPES}
    for outline in (*SCENE_SHAPES.values(), *CROP_SHAPES.values()):
        assert outline.shape[1] == 2 and 0.6 < np.abs(outline).max() <= 1.05


def test_class_crops(tmp_path: Path) -> None:
    folder = draw_class_crops(tmp_path / "crops", images_per_class=2, size=48, seed=1)
    files = sorted(folder.rglob("*.png"))
    assert {path.parent.name for path in files} == set(CROP_SHAPES) and len(files) == 2 * len(CROP_SHAPES)
    assert {Image.open(path).size for path in files} == {(48, 48)}
    assert len({path.read_bytes() for path in files}) == len(files)


def test_pictures_use_the_range_without_being_washed_out() -> None:
    rng = np.random.default_rng(0)
    pictures = [draw_scene(96, rng).pixels for _ in range(20)] + [draw_crop(CROP_SHAPES["gear"], 96, rng)] * 2
    means = [picture.mean() for picture in pictures]
    assert 60 < min(means) and max(means) < 200
    assert all(picture.std() > 12 for picture in pictures)
