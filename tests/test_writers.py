"""Writers: what they write, the readers (and pycocotools) read back."""

import contextlib
import io
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from tutelage.config import DataConfig
from tutelage.data.colors import IGNORE_COLOR, class_colors
from tutelage.data.index import Index
from tutelage.data.masks import read_mask
from tutelage.data.readers import open_index
from tutelage.data.writers import (
    MaskRecord,
    Record,
    write_coco,
    write_coco_masks,
    write_mask_folder,
    write_voc,
    write_yolo,
)
from tutelage.types import IGNORE, IGNORE_BOX, IGNORE_REGION, Boxes, InputError

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


def random_mask(height: int, width: int, seed: int, values: Sequence[int] = (0, 1, 2, IGNORE)) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).choice(values, (height // 4 + 1, width // 4 + 1))
    return np.kron(coarse, np.ones((4, 4)))[:height, :width].astype(np.uint8)


SMALL = random_mask(25, 15, 1)
MASK_RECORDS: list[MaskRecord] = [
    ("one.jpg", (48, 64), random_mask(48, 64, 0)),
    ("sub/two.png", (50, 30), SMALL),  # of network size
    ("sub/one.jpg", (9, 9), np.full((9, 9), IGNORE, np.uint8)),
]
EXPECTED = {
    "one.jpg": MASK_RECORDS[0][2],
    "sub/two.png": SMALL.repeat(2, 0).repeat(2, 1),
    "sub/one.jpg": MASK_RECORDS[2][2],
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, (height, width), _ in MASK_RECORDS:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(tmp_path / "images" / name)
    return tmp_path


def check_masks(index: Index) -> None:
    assert index.class_names == tuple(CLASSES)
    assert {index.relative_path(row) for row in range(len(index))} == set(EXPECTED)
    for row in range(len(index)):
        file = index.mask_file(row)
        assert file is not None
        assert (read_mask(file) == EXPECTED[index.relative_path(row)]).all()


def test_mask_folder_round_trip(pictures: Path) -> None:
    write_mask_folder(pictures, iter(MASK_RECORDS), CLASSES)
    check_masks(open_index(pictures, DataConfig(), annotation="masks"))
    written = Image.open(pictures / "masks/sub/two.png")
    assert (written.mode, written.size) == ("P", (30, 50))
    colors = np.array(written.convert("RGB"))
    for label, color in enumerate(class_colors(3)):
        assert (colors[EXPECTED["sub/two.png"] == label] == color).all()
    assert (colors[EXPECTED["sub/two.png"] == IGNORE] == IGNORE_COLOR).all()
    assert sorted(path.name for path in pictures.iterdir()) == ["classes.json", "images", "masks"]


def test_the_class_table_has_the_form_of_published_ones(tmp_path: Path, real_data: Path) -> None:
    write_mask_folder(tmp_path, [], CLASSES)
    own = json.loads((tmp_path / "classes.json").read_bytes())
    published = json.loads((real_data / "dubai_aerial/classes.json").read_bytes())
    assert list(own) == list(published) and own["ignore_index"] == published["ignore_index"] == IGNORE
    assert [set(entry) for entry in own["classes"]] == [set(published["classes"][0])] * 3
    assert own["classes"][1] == {"index": 1, "name": "traffic light"}
    assert own["palette"] == {"cat": "#0072B2", "traffic light": "#E69F00", "yes": "#009E73"}


def test_coco_masks_round_trip(pictures: Path) -> None:
    write_coco_masks(pictures / "out.json", iter(MASK_RECORDS), CLASSES)
    check_masks(open_index(pictures / "out.json", DataConfig(background="ignore"), annotation="masks"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(pictures / "out.json"))
    seen = {name: np.full(mask.shape, IGNORE) for name, mask in EXPECTED.items()}
    for annotation in coco.anns.values():
        inside = coco.annToMask(annotation).astype(bool)
        assert annotation["area"] == inside.sum()
        rows, columns = np.nonzero(inside)
        left, top = columns.min(), rows.min()
        assert annotation["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
        seen[coco.imgs[annotation["image_id"]]["file_name"]][inside] = annotation["category_id"] - 1
    assert all((seen[name] == mask).all() for name, mask in EXPECTED.items())
    assert len(coco.anns) == 6 and len(coco.imgs) == 3


def test_masks_of_one_stem_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "sub/a.jpg", "a.bmp", "/b.jpg"]
    records: list[MaskRecord] = [(name, (2, 2), np.full((2, 2), at, np.uint8)) for at, name in enumerate(names)]
    write_mask_folder(tmp_path, records, [str(number) for number in range(5)])
    written = ["a.png", "a.png.png", "sub/a.png", "a.bmp.png", "b.png"]
    for at, name in enumerate(written):
        assert (np.asarray(Image.open(tmp_path / "masks" / name)) == at).all()
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 5
    with pytest.raises(InputError, match=r"a\.jpg: several images of this path"):
        write_mask_folder(tmp_path, [records[0], records[0], records[0]], ["a"])


@pytest.mark.parametrize("write", [write_mask_folder, write_coco_masks])
def test_masks_are_taken_one_by_one(tmp_path: Path, write: Callable[..., None]) -> None:
    alive: list[Any] = []

    def records() -> Iterator[MaskRecord]:
        for number in range(5):
            assert sum(reference() is not None for reference in alive) <= 1
            mask = np.full((4, 4), number, np.uint8)
            alive.append(weakref.ref(mask))
            yield f"{number}.jpg", (4, 4), mask
            del mask

    write(tmp_path / "out", records(), list("abcde"))
    assert len(alive) == 5


def test_colors_are_distinct_and_stable() -> None:
    colors = class_colors(255)
    assert len(np.unique(colors, axis=0)) == 255 and not (colors == IGNORE_COLOR).all(axis=1).any()
    assert (class_colors(7) == colors[:7]).all() and colors[20].tolist() == [172, 172, 96]
    assert class_colors(0).shape == (0, 3)
    with pytest.raises(AssertionError):
        class_colors(256)
