"""Writers: what they write, the readers (and pycocotools) read back."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.readers import open_index
from tutelage.data.writers import Record, write_coco, write_voc, write_yolo
from tutelage.types import IGNORE_BOX, IGNORE_REGION, Boxes, InputError

CLASSES = ["cat", "traffic light", "yes"]
RECORDS: list[Record] = [
    (
        "one.jpg",
        (480, 640),
        Boxes.build([[0, 0, 20, 10], [5.25, 6.5, 639.5, 480]], [0, 2], [0.5, 0.75], [150, 3000], [0, 0]),
    ),
    ("sub/two.png", (50, 30), Boxes.empty()),
    (
        "sub/three.jpg",
        (100, 200),
        Boxes.build(
            [[1, 2, 3, 4], [10, 20, 30, 40], [0, 0, 200, 100]], [1, 1, 0], ignore=[0, IGNORE_BOX, IGNORE_REGION]
        ),
    ),
]


def check(index: Index, ignored: bool = True, tolerance: float = 1e-4) -> None:
    rows = {index.relative_path(row): row for row in range(len(index))}
    assert set(rows) == {name for name, _, _ in RECORDS}
    for name, size, boxes in RECORDS:
        if not ignored:
            boxes = boxes.select(boxes.ignore == 0)
        read = index.boxes(rows[name])
        assert index.size(rows[name]) == size
        assert [index.class_names[label] for label in read.labels] == [CLASSES[label] for label in boxes.labels]
        np.testing.assert_allclose(read.xyxy, boxes.xyxy, atol=tolerance)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, (height, width), _ in RECORDS:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(tmp_path / "images" / name)
    return tmp_path


def test_coco_round_trip(images: Path) -> None:
    write_coco(images / "out.json", iter(RECORDS), CLASSES, with_scores=True)
    index = open_index(images / "out.json", DataConfig())
    check(index, tolerance=0)
    assert index.boxes(0).area.tolist() == [150, 3000]
    assert index.boxes(2).ignore.tolist() == [0, 0, IGNORE_REGION]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(images / "out.json"))
    assert (len(coco.imgs), len(coco.anns), len(coco.cats)) == (3, 5, 3)
    assert [coco.anns[number]["score"] for number in (1, 2)] == [0.5, 0.75]
    assert sorted(path.name for path in images.iterdir()) == ["images", "out.json"]


def test_coco_without_images_or_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path / "out.json", [], CLASSES, with_scores=False)
    with contextlib.redirect_stdout(io.StringIO()):
        assert COCO(str(tmp_path / "out.json")).imgs == {}


def test_yolo_round_trip(images: Path) -> None:
    write_yolo(images, iter(RECORDS), CLASSES, with_scores=False)
    for source in (images, images / "data.yaml"):
        index = open_index(source, DataConfig())
        assert index.class_names == tuple(CLASSES)
        check(index, ignored=False, tolerance=1e-3)


def test_yolo_with_scores_is_not_taken_for_labels(images: Path) -> None:
    write_yolo(images, iter(RECORDS), CLASSES, with_scores=True)
    with pytest.raises(InputError, match="predictions with a score"):
        open_index(images, DataConfig())


def test_voc_round_trip(images: Path) -> None:
    write_voc(images, iter(RECORDS), CLASSES, with_scores=True)
    index = open_index(images, DataConfig())
    check(index)
    row = [index.relative_path(row) for row in range(3)].index("sub/three.jpg")
    assert index.boxes(row).ignore.tolist() == [0, IGNORE_BOX, IGNORE_BOX]
    assert not any("counted from 0" in name for name in index.counts)


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_images_of_one_stem_are_refused(tmp_path: Path, write: object) -> None:
    records = [("a.jpg", (5, 5), Boxes.empty()), ("a.png", (5, 5), Boxes.empty())]
    with pytest.raises(InputError, match=r"a\.png.*share"):
        write(tmp_path, records, CLASSES, with_scores=False)  # type: ignore[operator]
