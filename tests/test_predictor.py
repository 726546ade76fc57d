"""`tutelage.load_model(path).predict(images)`: what it takes, what it finds beside the verb, how that is handed on."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco_masks

import tutelage
from tutelage.data.rle import decode_counts
from tutelage.deployment.found import Found
from tutelage.deployment.predictor import Predictor
from tutelage.files import read_json
from tutelage.types import Boxes, InputError


@pytest.fixture(scope="module")
def detector(finished: Path) -> Predictor:
    return tutelage.load_model(finished, device="cpu", score=0.001)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def segmenter(finished_masks: Path) -> Predictor:
    return tutelage.load_model(finished_masks / "model", device="cpu")  # type: ignore[no-any-return]


@pytest.fixture
def pictures(scenes: Path, tmp_path: Path) -> list[Path]:
    """Pool images of several sizes, one of them turned by its EXIF orientation, one with transparency."""
    paths = []
    for number, path in enumerate(sorted((scenes / "pool" / "images").iterdir())[:5]):
        image = Image.open(path).convert("RGB").resize((50 + 20 * number, 70))
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths[1]).save(paths[1].with_suffix(".jpg"), exif=exif, quality=95)
    paths[1] = paths[1].with_suffix(".jpg")
    Image.open(paths[2]).convert("RGBA").resize((40, 90)).save(paths[2])
    return paths


def assert_same(one: Found, other: Found) -> None:
    assert one.size == other.size and one.class_names == other.class_names
    if one.boxes is not None and other.boxes is not None:
        np.testing.assert_allclose(one.boxes.xyxy, other.boxes.xyxy, atol=1e-2)
        np.testing.assert_allclose(one.boxes.scores, other.boxes.scores, atol=1e-4)
    else:
        assert one.mask is not None and other.mask is not None
        assert (one.mask == other.mask).mean() > 0.999


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_paths_pillow_images_and_arrays_are_one(
    kind: str, pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    model: Predictor = request.getfixturevalue(kind)
    from_paths = model.predict(pictures)
    opened = [Image.open(path) for path in pictures]
    arrays = [np.asarray(image.convert("RGB")) for number, image in enumerate(opened) if number not in (1, 2)]
    assert [one.image_id for one in from_paths] == list(range(5))
    assert from_paths[1].size == (70, 70)[::-1] and from_paths[0].size == (70, 50)
    for one, other in zip(from_paths, model.predict(iter(opened), batch_size=2), strict=True):
        assert_same(one, other)
    for number, other in zip((0, 3, 4), model.predict(arrays), strict=True):
        assert_same(from_paths[number], other)
    (alone,) = model.predict(str(pictures[0]))
    assert_same(alone, from_paths[0])
    assert model.predict([]) == []


def test_boxes_are_those_of_the_verb(finished: Path, pictures: list[Path], tmp_path: Path) -> None:
    tutelage.predict(finished, [str(path) for path in pictures], out=tmp_path / "out", score=0.001, device="cpu")
    told = read_json(tmp_path / "out" / "boxes.json")
    model = tutelage.load_model(finished, device="cpu", score=0.001)
    found = {path.name: one for path, one in zip(pictures, model.predict(pictures), strict=True)}
    for image in told["images"]:
        theirs = [one for one in told["annotations"] if one["image_id"] == image["id"]]
        ours = found[Path(image["file_name"]).name].to_coco(image["id"])
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert (one["category_id"], one["image_id"]) == (other["category_id"], image["id"])
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_masks_are_those_of_the_verb(
    segmenter: Predictor, finished_masks: Path, pictures: list[Path], tmp_path: Path
) -> None:
    tutelage.predict(finished_masks, [str(path) for path in pictures], out=tmp_path / "out", device="cpu")
    for path, found in zip(pictures, segmenter.predict(pictures), strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{path.stem}.png"))
        assert found.mask is not None and found.mask.shape == found.size == mask.shape
        assert (mask == found.mask).mean() > 0.999


def test_scores_below_the_asked_one_are_left_out(finished: Path, detector: Predictor, pictures: list[Path]) -> None:
    everything = [one.boxes for one in detector.predict(pictures)]
    scores = np.sort(np.concatenate([boxes.scores for boxes in everything if boxes is not None]))
    least = float(scores[len(scores) // 2])
    fewer = tutelage.load_model(finished, device="cpu", score=round(least, 5)).predict(pictures)
    kept = np.concatenate([one.boxes.scores for one in fewer])
    assert 0 < len(kept) < len(scores) and kept.min() >= round(least, 5) - 1e-6


def test_coco_masks_are_read_by_pycocotools(segmenter: Predictor, pictures: list[Path]) -> None:
    found = segmenter.predict(pictures)[3]
    assert found.mask is not None and found.levels is not None
    entries = found.to_coco()
    assert {entry["category_id"] - 1 for entry in entries} == set(np.unique(found.mask).tolist())
    for entry in entries:
        inside = coco_masks.decode(entry["segmentation"]).astype(bool)
        assert (inside == (found.mask == entry["category_id"] - 1)).all()
        assert entry["area"] == inside.sum() == decode_counts(entry["segmentation"]["counts"])[1::2].sum()
        assert entry["bbox"] == coco_masks.toBbox(entry["segmentation"]).tolist()
        assert abs(entry["score"] - found.levels[inside].mean() / 256) < 0.003 and entry["image_id"] == 3


def test_supervision_takes_boxes_and_masks(segmenter: Predictor, pictures: list[Path]) -> None:
    boxes = Boxes.build([[1, 2, 30, 40], [5, 6, 7, 9]], [2, 0], [0.9, 0.4])
    given = Found(0, (50, 60), boxes, class_names=("a", "b", "c")).to_supervision()
    assert isinstance(given, supervision.Detections)
    np.testing.assert_array_equal(given.xyxy, boxes.xyxy)
    assert given.class_id is not None and given.class_id.tolist() == [2, 0]
    assert given.data["class_name"].tolist() == ["c", "a"]
    assert given[given.confidence > 0.5].class_id.tolist() == [2]  # type: ignore[index, operator, union-attr]
    none = Found(0, (50, 60), Boxes.empty(), class_names=("a",)).to_supervision()
    assert len(none) == 0 and none.is_empty()

    found = segmenter.predict(pictures[0])[0]
    regions = found.to_supervision()
    assert regions.mask is not None and found.mask is not None
    assert regions.mask.shape[1:] == found.size and regions.mask.sum() == found.mask.size
    for label, mask, corners in zip(regions.class_id, regions.mask, regions.xyxy, strict=True):  # type: ignore[arg-type]
        assert (mask == (found.mask == label)).all()
        y, x = np.nonzero(mask)
        assert corners.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_without_supervision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"supervision is not installed.*pip install supervision"):
        Found(0, (5, 5), Boxes.empty()).to_supervision()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"images\[0\]: found an array of uint8 \(4, 4\); .*height, width, 3"),
        (np.zeros((4, 4, 3)), r"images\[0\]: found an array of float64"),
        (np.zeros((0, 4, 3), np.uint8), r"images\[0\]: found an array"),
        ("absent.jpg", r"absent\.jpg: cannot be read|absent\.jpg"),
    ],
)
def test_what_is_no_picture_is_refused(detector: Predictor, picture: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector.predict(picture)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        tutelage.load_model(tmp_path)


def test_the_python_of_the_docs_runs(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "photos").symlink_to(scenes / "pool" / "images")
    (tmp_path / "run").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "deployment.md", "exec"), {})
    assert "Boxes(" in capsys.readouterr().out
