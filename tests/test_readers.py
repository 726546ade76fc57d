"""Readers against hand-written files, pycocotools, and the collection of real annotation files."""

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.readers import detect_format, locate, open_index
from tutelage.types import IGNORE_BOX, IGNORE_REGION, InputError

STRICT, CLIP, DROP = (DataConfig(bad_boxes=policy) for policy in ("error", "clip", "drop"))


def picture(path: Path, width: int = 20, height: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 10, 10)).save(path, "PNG" if path.suffix not in (".jpg", ".JPG") else "JPEG")
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def coco(path: Path, *annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",), **more: Any) -> Path:
    raw = {
        "images": [{"id": 7 * i, "file_name": name, "height": 10, "width": 20} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4], **entry}
            for i, entry in enumerate(annotations)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 0, "name": "dog"}],
        **more,
    }
    return text(path, json.dumps(raw))


def by_name(index: Index) -> dict[str, list[tuple[str, list[float]]]]:
    """Class names and boxes of each image, sorted."""
    found = {}
    for row in range(len(index)):
        columns = index.box_columns(np.array([row]))
        names = [index.class_names[label] for label in columns.labels]
        stem = os.path.splitext(os.path.basename(index.relative_path(row)))[0]
        found[stem] = sorted(zip(names, columns.xyxy.tolist(), strict=True))
    return found


# COCO json ------------------------------------------------------------------------------------------------------------


def test_coco_boxes_and_classes(tmp_path: Path) -> None:
    path = coco(
        tmp_path / "train.json",
        {"area": 5.5},
        {"category_id": 0, "iscrowd": 1, "bbox": [0, 0, 20, 10]},
        {"image_id": 7},
        names=("a.jpg", "sub/b%20 ?.jpg", "c.jpg"),
    )
    index = open_index(path, STRICT, annotations_only=True)
    assert index.class_names == ("dog", "cat")  # by id, which may be 0
    assert index.boxes(0).xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 20, 10]]
    assert index.boxes(0).labels.tolist() == [1, 0] and index.boxes(0).area.tolist() == [5.5, 200]
    assert index.boxes(0).ignore.tolist() == [0, IGNORE_REGION]
    assert len(index.boxes(1)) == 1 and len(index.boxes(2)) == 0  # listed without boxes: a negative
    assert index.counts == {"crowd regions": 1}


def test_duplicate_annotation_ids_are_counted_and_both_kept(tmp_path: Path) -> None:
    index = open_index(coco(tmp_path / "a.json", {"id": 5}, {"id": 5}), STRICT, annotations_only=True)
    assert index.num_boxes == 2 and index.counts["duplicate annotation ids"] == 1


def test_boxes_come_from_segmentations_where_there_is_no_bbox(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8, order="F")
    mask[2:5, 3:9] = 1
    encoded = coco_mask.encode(mask)
    path = coco(
        tmp_path / "a.json",
        {"bbox": [], "segmentation": [[1, 2, 5, 2, 5, 8], [6, 1, 9, 3, 6, 3]]},
        {"bbox": None, "segmentation": {"size": [10, 20], "counts": encoded["counts"].decode()}},
    )
    index = open_index(path, STRICT, annotations_only=True)
    assert index.boxes(0).xyxy.tolist() == [[1, 1, 9, 8], [3, 2, 9, 5]]
    assert index.counts["boxes taken from segmentations"] == 2


BAD_BOXES = [
    ([1, 2, -3, 4], r"a\.json: annotation 0 \(image 0\), a\.jpg: box width is -3; it must be > 0", None),
    ([1, 2, 3, 0], "box height is 0", None),
    ([float("inf"), 2, 3, 4], "must be finite", None),
    ([30, 2, 3, 4], "leaves its image of 20 x 10 pixels", None),
    ([15, -3, 10, 8], "leaves its image", [15, 0, 20, 5]),
]


@pytest.mark.parametrize(("box", "message", "clipped"), BAD_BOXES)
def test_bad_boxes(tmp_path: Path, box: list[float], message: str, clipped: list[float] | None) -> None:
    path = coco(tmp_path / "a.json", {"bbox": box, "area": 80}, {})
    with pytest.raises(InputError, match=message + r".*data\.bad_boxes=drop"):
        open_index(path, STRICT, annotations_only=True)
    dropped = open_index(path, DROP, annotations_only=True)
    assert dropped.num_boxes == 1 and sum(dropped.counts.values()) == 1
    kept = open_index(path, CLIP, annotations_only=True)
    assert kept.boxes(0).xyxy.tolist() == [*([clipped] if clipped else []), [1, 2, 4, 6]]
    assert kept.counts == ({"boxes clipped": 1} if clipped else dropped.counts)
    if clipped:
        assert kept.boxes(0).area[0] == 80 * (5 * 5) / (10 * 8)


def test_a_box_that_leaves_the_image_by_rounding_stays_as_read(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", {"bbox": [-0.5, 0, 21, 10.25]})
    assert open_index(path, STRICT, annotations_only=True).boxes(0).xyxy.tolist() == [[-0.5, 0, 20.5, 10.25]]


BROKEN = [
    (lambda path: coco(path, {"bbox": [1, 2, 3]}), r"annotation 0 \(image 0\): bbox is \[1, 2, 3\]"),
    (lambda path: coco(path, {"bbox": "box"}), "four numbers"),
    (lambda path: coco(path, {"bbox": None}), "neither bbox nor segmentation"),
    (lambda path: coco(path, {"bbox": None, "segmentation": [[1, 2, 3]]}), "unreadable segmentation"),
    (lambda path: coco(path, {"image_id": 99}), "image_id is 99, which the file does not define"),
    (lambda path: coco(path, {"category_id": 99}), "category_id is 99"),
    (lambda path: coco(path, images=[{"id": 0}]), r"images\[0\] has no file_name"),
    (
        lambda path: coco(path, {}, images=[{"id": 0, "file_name": "a"}, {"id": 0, "file_name": "b"}]),
        "image id 0 is used",
    ),
    (lambda path: coco(path, {}, categories=[{"id": 3}]), "no id or no name"),
    (lambda path: text(path, '{"images": [}'), r"not valid JSON.*line 1 column 13"),
    (lambda path: text(path, json.dumps([{"image_id": 1, "category_id": 1, "score": 0.5}])), "COCO results"),
    (lambda path: text(path, json.dumps({"shapes": [], "imagePath": "a"})), "LabelMe json; supported are COCO"),
]


@pytest.mark.parametrize(("write", "message"), BROKEN)
def test_broken_json_names_file_place_and_remedy(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.json.*{message}.*\. \w.*\.$"):
        open_index(write(tmp_path / "a.json"), STRICT, annotations_only=True)


LAYOUTS = [
    ("train.json", "a.jpg", "."),
    ("annotations/train.json", "images/a.jpg", "../images"),
    ("annotations/instances_train2017.json", "images/train2017/a.jpg", "../images/train2017"),
    ("annotations/instances_train2017.json", "train2017/a.jpg", "../train2017"),
    ("annotations/train.json", "annotations/images/a.jpg", "images"),
    ("train/_annotations.coco.json", "train/a.jpg", "."),
]


@pytest.mark.parametrize(("annotation", "image", "shown"), LAYOUTS)
def test_image_roots_are_found_and_said(tmp_path: Path, annotation: str, image: str, shown: str) -> None:
    picture(tmp_path / image)
    index = open_index(coco(tmp_path / annotation, {}), STRICT)
    assert index.path(0) == tmp_path / image
    assert index.description.endswith(f"1 images, 1 boxes, 2 classes; images in {shown}")


def test_the_image_root_can_be_named(tmp_path: Path) -> None:
    picture(tmp_path / "far" / "away" / "a.jpg")
    index = open_index(coco(tmp_path / "train.json", {}), STRICT, images=str(tmp_path / "far" / "away"))
    assert index.path(0).is_file()


def test_missing_images_are_counted_and_five_named(tmp_path: Path) -> None:
    names = tuple(f"{i}.jpg" for i in range(12))
    picture(tmp_path / "11.jpg")
    with pytest.raises(InputError, match=r"none of the first 10 .*'0\.jpg', .*'4\.jpg'.*--images"):
        open_index(coco(tmp_path / "a.json", {}, names=names), STRICT)
    picture(tmp_path / "0.jpg")
    with pytest.raises(InputError, match=r"10 of 12 images are missing in .*'1\.jpg', .*'5\.jpg'\)"):
        open_index(coco(tmp_path / "a.json", {}, names=names), STRICT)


def test_unlisted_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "other/c.jpg"):
        picture(tmp_path / name)
    text(tmp_path / "notes.txt", "no image")
    path = coco(tmp_path / "a.json", {})
    with pytest.raises(InputError, match=r"1 image files .*'b\.png'.*data\.unlisted=negative"):
        open_index(path, STRICT)
    negative = open_index(path, DataConfig(unlisted="negative"))
    assert len(negative) == 2 and len(negative.boxes(1)) == 0
    assert len(open_index(path, DataConfig(unlisted="pool"))) == 1
    assert len(open_index(path, STRICT, unlabeled=True)) == 1


# VOC xml --------------------------------------------------------------------------------------------------------------


def voc(path: Path, *objects: str, filename: str = "", size: str = "<width>20</width><height>10</height>") -> Path:
    name = filename or f"{path.stem}.jpg"
    return text(path, f"<annotation><filename>{name}</filename><size>{size}</size>{''.join(objects)}</annotation>")


def thing(box: tuple[object, ...], name: str = "cat", more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def test_voc_counts_from_one_and_includes_the_last_pixel(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{thing((2, 2, 3, 3))[21:-9]}</part>"
    voc(
        tmp_path / "a.xml",
        thing((1, 1, 20, 10), " dog\t"),
        thing(("3,5", 4, 6.0, 7), more="<difficult>1</difficult>" + part),
    )
    voc(tmp_path / "b c%20?.xml")
    index = open_index(tmp_path, STRICT, annotations_only=True)
    assert index.class_names == ("cat", "dog") and len(index) == 2
    assert index.boxes(0).xyxy.tolist() == [[0, 0, 20, 10], [2.5, 3, 6, 7]]
    assert index.boxes(0).labels.tolist() == [1, 0] and index.boxes(0).ignore.tolist() == [0, IGNORE_BOX]
    assert index.relative_path(1) == "b c%20?.jpg" and index.counts == {"difficult boxes": 1}


def test_voc_counted_from_zero_is_recognized(tmp_path: Path) -> None:
    voc(tmp_path / "a.xml", thing((0, 5, 19, 10)))
    index = open_index(tmp_path, STRICT, annotations_only=True)
    assert index.boxes(0).xyxy.tolist() == [[0, 5, 19, 10]] and sum(index.counts.values()) == 1


def test_vocdevkit_with_lists(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("a", "b", "c"):
        picture(base / "JPEGImages" / f"{name}.jpg")
    for name in ("a", "b"):
        voc(base / "Annotations" / f"{name}.xml", thing((1, 1, 5, 5)))
    text(base / "ImageSets" / "Main" / "train.txt", "a\n")
    text(base / "ImageSets" / "Main" / "cat_train.txt", "a 1\n")
    text(base / "ImageSets" / "Main" / "val.txt", "b  1\n")
    text(base / "ImageSets" / "Main" / "test.txt", "c\n")
    assert set(locate(tmp_path / "VOCdevkit")) == {"train", "val", "test"}
    assert open_index(base, STRICT).path(0) == base / "JPEGImages" / "a.jpg"
    assert open_index(base / "ImageSets" / "Main" / "val.txt", STRICT).relative_path(0) == "b.jpg"
    with pytest.raises(InputError, match=r"c\.jpg"):  # listed, but nobody labeled it
        open_index(base, STRICT, split="test")
    text(base / "ImageSets" / "Main" / "val.txt", "b\nnone\n")
    with pytest.raises(InputError, match=r"val\.txt: 1 of 2 entries .*'none'"):
        open_index(base, STRICT, split="val")


BROKEN_XML = [
    ("<!DOCTYPE a [<!ENTITY b 'bbb'>]><annotation>&b;</annotation>", "document type or an entity"),
    ("<annotation><object>", "not well-formed"),
    (f"<annotation>{thing((1, 2, 'x', 4))}</annotation>", "object 1: xmax is 'x'"),
    ("<annotation><object><name>cat</name></object></annotation>", "object 1 has no bndbox"),
    (f"<annotation>{thing((1, 2, 3, 4), ' ')}</annotation>", "object 1 has no name"),
    ("<annotation><object><name>a</name><polygon/></object></annotation>", "LabelMe xml; supported"),
    ("<annotations><image/></annotations>", "CVAT xml; supported"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN_XML)
def test_broken_xml_names_file_place_and_remedy(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.xml.*{message}.*\. \w.*\.$"):
        open_index(text(tmp_path / "a.xml", content), STRICT, annotations_only=True)


def test_entities_hidden_in_utf16_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(
        "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a><annotation/>".encode("utf-16")
    )
    with pytest.raises(InputError, match="document type"):
        open_index(tmp_path / "a.xml", STRICT, annotations_only=True)


# YOLO txt -------------------------------------------------------------------------------------------------------------


def test_yolo_parallel_trees_with_data_yaml_and_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "sub/n"), ("val", "b")):
        picture(tmp_path / "images" / split / f"{name}.png", 40, 20)
        content = "1 0.5 0.5 0.5 1\n\n0 0.25 0.25 0.5 0.5 0.5 0.25\n" if name != "sub/n" else ""
        text(tmp_path / "labels" / split / f"{name}.txt", content)
    path = text(tmp_path / "data.yaml", "train: ../images/train\nval: images/val\nnc: 2\nnames: {1: dog, 0: cat}\n")
    assert set(locate(path)) == {"train", "val"} and detect_format(tmp_path) == "yolo"
    index = open_index(tmp_path, STRICT)
    assert index.class_names == ("cat", "dog") and len(index) == 2
    assert index.size(0) == (20, 40)
    assert index.boxes(0).xyxy.tolist() == [[10, 0, 30, 20], [10, 5, 20, 10]]  # a box, and the hull of a polygon
    assert len(index.boxes(1)) == 0 and index.relative_path(1) == os.path.join("sub", "n.png")
    assert open_index(path, STRICT, split="val").relative_path(0) == "b.png"


def test_yolo_beside_the_images_with_classes(tmp_path: Path) -> None:
    picture(tmp_path / "a b%.png")
    text(tmp_path / "a b%.txt", "1 0.5 0.5 1 1\n")
    text(tmp_path / "classes.txt", "cat\n dog \n")
    text(tmp_path / "README.txt", "two lines\n")
    index = open_index(tmp_path, STRICT)
    assert index.class_names == ("cat", "dog") and index.boxes(0).xyxy.tolist() == [[0, 0, 20, 10]]


def test_yolo_without_names_uses_the_numbers(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / "a.txt", "2 0.5 0.5 1 1\n")
    index = open_index(tmp_path, STRICT)
    assert index.class_names == ("0", "1", "2") and not index.declared and sum(index.counts.values()) == 3


def test_yolo_without_images_stays_in_fractions(tmp_path: Path) -> None:
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    index = open_index(tmp_path, STRICT, annotations_only=True)
    columns = index.box_columns()
    assert columns.relative.all() and columns.xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75]] and index.size(0) == (0, 0)
    picture(tmp_path / "images" / "a.jpg", 40, 20)
    pool = open_index(tmp_path, STRICT, unlabeled=True)  # a pool's headers are not read when it is opened
    assert pool.box_columns().relative.all() and pool.boxes(0).xyxy.tolist() == [[10, 5, 30, 15]]
    assert pool.boxes(0).area.tolist() == [200]


@pytest.mark.parametrize(("boxes_in", "expected"), [("shown", [0, 0, 5, 10]), ("stored", [0, 0, 10, 5])])
def test_fractions_of_rotated_images(tmp_path: Path, boxes_in: Any, expected: list[float]) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    text(tmp_path / "a.txt", "0 0.25 0.25 0.5 0.5\n")
    for unlabeled in (False, True):
        index = open_index(tmp_path, DataConfig(boxes_in=boxes_in), unlabeled=unlabeled)
        assert index.boxes(0).xyxy.tolist() == [expected]


BROKEN_YOLO = [
    ("0 0.5 0.5 1\n", r"a\.txt: line 1 has 4 values"),
    ("0 0.5 0.5 1 1\n0.5 0.5 0.5 1 1\n", r"a\.txt: line 2: class is 0\.5"),
    ("0 0.5 0.5 1 x\n", r"a\.txt: a value is no number"),
    ("0 0.5 0.5 1 1 0.9\n", "predictions with a score"),
    ("7 0.5 0.5 1 1\n", r"a\.txt: box 1: class is 7; .* names 1 classes"),
    ("0 0.5 0.5 1 1\n0 0.5 0.5 0 1\n", r"a\.txt: box 2.*box width is 0"),
    ("0 1.5 0.5 0.5 1\n", "leaves its image"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN_YOLO)
def test_broken_yolo_names_file_line_and_remedy(tmp_path: Path, content: str, message: str) -> None:
    picture(tmp_path / "images" / "a.png")
    text(tmp_path / "labels" / "a.txt", content)
    path = text(tmp_path / "data.yaml", "train: images\nnames: [cat]\n")
    with pytest.raises(InputError, match=rf"{message}.*\. \w.*\.$"):
        open_index(path, STRICT)


def test_yolo_class_lists_that_disagree(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1\n")
    text(tmp_path / "labels" / "classes.txt", "Platelet\n")
    text(tmp_path / "data.yaml", "train: images\nnames: [Platelets]\n")
    with pytest.raises(InputError, match=r"class lists disagree: .*'Platelets'.*'Platelet'.*Make them equal"):
        open_index(tmp_path, STRICT)


def test_yolo_images_and_labels_must_match(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match="no annotations"):
        open_index(tmp_path, STRICT)
    text(tmp_path / "labels" / "b.txt", "0 0.5 0.5 1 1\n")
    with pytest.raises(InputError, match=r"none of the first 1 images.*'b\.jpg'"):
        open_index(tmp_path, STRICT)
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1\n")
    with pytest.raises(InputError, match=r"1 of 2 images are missing.*'b\.jpg'"):
        open_index(tmp_path, STRICT)
    picture(tmp_path / "images" / "b.png")
    picture(tmp_path / "images" / "c.png")
    with pytest.raises(InputError, match=r"1 image files .*'c\.png'.*data\.unlisted"):
        open_index(tmp_path, STRICT)


def test_changed_labels_are_read_again(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label = text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1\n")
    assert open_index(tmp_path, STRICT).num_boxes == 1
    text(tmp_path / "classes.txt", "cat\n")
    assert open_index(tmp_path, STRICT).class_names == ("cat",)
    text(tmp_path / "classes.txt", "wildcat\n")
    assert open_index(tmp_path, STRICT).class_names == ("wildcat",)
    label.write_text("")
    assert open_index(tmp_path, STRICT).num_boxes == 0
    picture(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match="no entry"):
        open_index(tmp_path, STRICT)


# OpenImages csv -------------------------------------------------------------------------------------------------------

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"


def test_openimages_groups_decimal_commas_and_names(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "a.jpg", 100, 50)
    picture(tmp_path / "images" / "train" / "b.jpg", 100, 50)
    text(tmp_path / "annotations" / "class-descriptions.csv", '/m/2,"Cat, wild"\n/m/1,Dog\n')
    path = text(
        tmp_path / "annotations" / "train-annotations-bbox.csv",
        f'{HEADER}b,x,/m/2,1,"0,1","0,5","0,2","0,8",0,0,1\na,x,/m/1,1,0,1,0,1,0,0,-1\nb,x,/m/1,1,0.5,1,0.5,1,,,\n',
    )
    index = open_index(path, STRICT)
    assert index.class_names == ("Dog", "Cat, wild") and [index.relative_path(row) for row in (0, 1)] == [
        "b.jpg",
        "a.jpg",
    ]
    np.testing.assert_allclose(index.boxes(0).xyxy, [[10, 10, 50, 40], [50, 25, 100, 50]])
    assert index.boxes(0).ignore.tolist() == [IGNORE_REGION, 0] and index.counts["group regions"] == 1
    assert detect_format(tmp_path) == "openimages"


def test_openimages_values_that_are_no_numbers(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", f"{HEADER}b,x,/m/2,1,zero,0.5,0.2,0.8,0,0,1\n")
    with pytest.raises(InputError, match=r"a\.csv: column XMin: .*'zero'"):
        open_index(path, STRICT, annotations_only=True)


# folders and lists ----------------------------------------------------------------------------------------------------


def test_a_pool_folder_is_recursive_and_recognized_by_content(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for name in ("a.JPG", "deep/er/b.png", "c.dat", "without_suffix", "d.txt"):
        picture(pool / name)
    text(pool / "deep" / "notes.txt", "words")
    text(pool / ".hidden" / "e.jpg", "")
    text(pool / "broken.jpg", "not an image")  # by its suffix one: skipped when it is decoded
    index = open_index(pool, STRICT, unlabeled=True)
    found = sorted(index.relative_path(row) for row in range(len(index)))
    assert found == ["a.JPG", "broken.jpg", "c.dat", "d.txt", os.path.join("deep", "er", "b.png"), "without_suffix"]
    assert not index.annotated and index.description == f"image folder {tmp_path.name}/pool: 6 images; images in ."


def test_a_new_file_in_the_pool_is_seen(tmp_path: Path) -> None:
    picture(tmp_path / "pool" / "a.jpg")
    first = open_index(tmp_path / "pool", STRICT, unlabeled=True)
    picture(tmp_path / "pool" / "b.jpg")
    second = open_index(tmp_path / "pool", STRICT, unlabeled=True)
    assert len(second) == 2 and first.fingerprint != second.fingerprint


def test_pools_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_index(tmp_path / "none", STRICT, unlabeled=True)
    text(tmp_path / "pool" / "notes.txt", "words")
    with pytest.raises(InputError, match="holds no image"):
        open_index(tmp_path / "pool", STRICT, unlabeled=True)
    text(tmp_path / "pool" / "a.jpg", "not an image")
    with pytest.raises(InputError, match=r"none of 1 files .* is an image"):
        open_index(tmp_path / "pool", STRICT, unlabeled=True)


def test_a_list_of_paths(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "one" / "a.jpg"), picture(tmp_path / "two" / "b.jpg")
    path = text(tmp_path / "lists" / "pool.txt", f"../one/a.jpg\n\n{two}\n../one/a.jpg\n")
    index = open_index(path, STRICT, unlabeled=True)
    assert [index.path(row) for row in range(len(index))] == [one, two]
    assert index.counts == {"paths listed twice": 1}
    with pytest.raises(InputError, match=r"1 of 2 images are missing"):
        open_index(text(path, "../one/a.jpg\n../one/b.jpg\n"), STRICT, unlabeled=True)
    with pytest.raises(InputError, match="list is empty"):
        open_index(text(path, "\n"), STRICT, unlabeled=True)


def test_a_pool_may_be_any_data_set(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    hidden = open_index(coco(tmp_path / "train.json", {}), STRICT, unlabeled=True)
    assert hidden.annotated and hidden.num_boxes == 1
    empty = open_index(coco(tmp_path / "info.json", annotations=[]), STRICT, unlabeled=True)
    assert not empty.annotated


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/dog/a.jpg", "train/cat/b.jpg", "train/cat/c.jpg", "val/cat/d.jpg"):
        picture(tmp_path / name)
    assert detect_format(tmp_path) == "class-folders" and set(locate(tmp_path)) == {"train", "val"}
    index = open_index(tmp_path / "train", STRICT)
    assert index.class_names == ("cat", "dog") and index.image_classes().tolist() == [0, 0, 1]
    assert index.select(np.array([2, 0])).image_classes().tolist() == [1, 0]
    assert index.image_class(2) == 1 and index.num_boxes == 0


def test_several_files_in_a_folder_are_asked_about(tmp_path: Path) -> None:
    coco(tmp_path / "one.json", {})
    coco(tmp_path / "two.json", {})
    with pytest.raises(InputError, match=r"several annotation files \(one\.json, two\.json\)"):
        detect_format(tmp_path)
    coco(tmp_path / "instances_train.json", {})
    coco(tmp_path / "instances_val2017.json", {})
    assert set(locate(tmp_path)) == {"train", "val"}


# real files -----------------------------------------------------------------------------------------------------------


def counts(index: Index) -> tuple[int, int, int]:
    return len(index), index.num_boxes, len(index.class_names)


COCO_FILES = [
    "taco/data/annotations.json",
    "taco/data/annotations_unofficial.json",
    "odm/data/database/gts/coco_format_v1/instances_default.json",
    "odm/data/database/gts/coco_format_v2/instances_v2.json",
    "odm/toyexample/gts_coco_format/toy_example_coco.JSON",
    "odm/toyexample/dets_coco_format/coco_dets.json",
    *(
        f"datumaro/tests/assets/coco_dataset/{name}"
        for name in (
            "coco/annotations/instances_train.json",
            "coco/annotations/instances_val.json",
            "coco/annotations/person_keypoints_val.json",
            "coco/annotations/stuff_train.json",
            "coco_roboflow/val/_annotations.coco.json",
            "mmdet_coco/annotations/instances_val.json",
        )
    ),
    "datumaro/tests/assets/roboflow_dataset/coco/train/_annotations.coco.json",
]


@pytest.mark.parametrize("name", COCO_FILES)
def test_real_coco_files_equal_pycocotools(real_data: Path, name: str) -> None:
    path = real_data / "annotation_zoo" / name
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
    index = open_index(path, DROP, annotations_only=True)
    dropped = sum(count for name, count in index.counts.items() if "dropped" in name)
    # pycocotools keeps the last of annotations with one id, and boxes of any shape
    annotations = reference.dataset["annotations"]
    assert len(index) == len(reference.imgs) and index.num_boxes + dropped == len(annotations)
    assert len(index.class_names) == len({category["name"] for category in reference.cats.values()})
    assert index.counts.get("duplicate annotation ids", 0) == len(annotations) - len(reference.anns)
    found = {index.relative_path(row): row for row in range(len(index))}
    of_image: dict[int, list[list[float]]] = {}
    for entry in annotations:
        of_image.setdefault(entry["image_id"], []).append(entry["bbox"])
    kept = 0
    for image in reference.imgs.values():
        boxes = index.boxes(found[image["file_name"]])
        wanted = of_image.get(image["id"], [])
        kept += len(boxes)
        if len(boxes) == len(wanted) and wanted:
            x, y, width, height = np.array(wanted, np.float64).T
            np.testing.assert_array_equal(boxes.xyxy, np.float32(np.stack([x, y, x + width, y + height], axis=1)))
    assert kept == index.num_boxes


def test_real_dirt_of_taco(real_data: Path) -> None:
    taco = real_data / "annotation_zoo" / "taco" / "data"
    with pytest.raises(InputError, match=r"annotations_unofficial\.json: annotation 107 .*must be finite"):
        open_index(taco / "annotations_unofficial.json", STRICT, annotations_only=True)
    index = open_index(taco / "annotations_unofficial.json", CLIP, annotations_only=True)
    assert counts(index) == (3831, 8334 - 15 - 8, 60)
    assert index.counts == {"boxes clipped": 9, "boxes dropped (infinite)": 15, "boxes dropped (outside)": 8}
    official = open_index(taco / "annotations.json", CLIP, annotations_only=True)
    assert counts(official) == (1500, 4784, 60) and official.counts["duplicate annotation ids"] == 2


def test_the_forms_of_one_data_set_agree(real_data: Path) -> None:
    """The same 100 VOC images in six forms that we support; edges of VOC xml lie one pixel left and above."""
    gts = real_data / "annotation_zoo" / "odm" / "data" / "database" / "gts"
    names = {
        "coco_format_v1/instances_default.json": 0.0,
        "coco_format_v2/instances_v2.json": 0.0,
        "pascalvoc_format": 1.0,
        "imagenet_format": 1.0,
        "openimages_format/all_bounding_boxes.csv": 1e-3,
        "yolo_format": 1e-3,
    }
    forms = {name: open_index(gts / name, STRICT, annotations_only=True) for name in names}
    reference = forms["coco_format_v1/instances_default.json"]
    sizes = {Path(reference.relative_path(row)).stem: reference.size(row) for row in range(len(reference))}
    truth = by_name(reference)
    for name, index in forms.items():
        assert counts(index) == (100, 273, 20), name
        scale = index.box_columns().relative.all()
        for stem, boxes in by_name(index).items():
            height, width = sizes[stem] if scale else (1, 1)
            mine = sorted((label, *(np.array(box) * [width, height, width, height])) for label, box in boxes)
            wanted = sorted((label, *box) for label, box in truth[stem])
            assert [entry[0] for entry in mine] == [entry[0] for entry in wanted], (name, stem)
            for box, other in zip(_paired(mine), _paired(wanted), strict=True):
                np.testing.assert_allclose(box, other, atol=names[name] + 1e-3, err_msg=f"{name} {stem}")


def _paired(boxes: list[tuple[Any, ...]]) -> list[list[float]]:
    """Boxes in an order that a shift of a pixel does not change."""
    return sorted(
        ([round(float(v)) for v in box[1:]] for box in boxes), key=lambda box: (box[2], box[3], box[0], box[1])
    )


# Images, boxes and classes. Images and boxes equal datumaro 1.13.12's where it was compared; the raccoon, PlantDoc,
# Label Studio, COCO256 and VOC toy entries are our own reading, pinned against change, and OpenImages v6 counts
# images otherwise.
PINNED = {
    "raccoon_voc/annotations": (200, 217, 1),
    "plantdoc_voc": (3, 3, 3),
    "odm/toyexample/gts_vocpascal_format": (10, 12, 1),
    "coco256_labels/object_detection/config.yaml": (128, 941, 80),
    "label_studio/tests/data/test_import_yolo_data": (7, 25, 4),
    "label_studio/tests/data/test_import_yolo_data_unif_dims": (5, 19, 4),
    "datumaro/tests/assets/voc_dataset/voc_dataset1/Annotations": (1, 2, 2),
    "datumaro/tests/assets/voc_dataset/voc_dataset2": (5, 4, 4),
    "datumaro/tests/assets/voc_dataset/voc_dataset3": (1, 1, 1),
    "datumaro/tests/assets/roboflow_dataset/voc/train": (2, 2, 2),
    "datumaro/tests/assets/roboflow_dataset/yolo/data.yaml": (2, 2, 2),
    "datumaro/tests/assets/yolo_dataset/strict": (1, 2, 10),
    "datumaro/tests/assets/yolo_dataset/labels": (1, 2, 10),
    "datumaro/tests/assets/yolo_dataset/annotations": (1, 2, 10),
    "datumaro/tests/assets/open_images_dataset/v6/annotations/oidv6-train-annotations-bbox.csv": (1, 1, 1),
    "datumaro/tests/assets/open_images_dataset/v6/annotations/test-annotations-bbox.csv": (1, 1, 1),
}


@pytest.mark.parametrize("name", PINNED)
def test_real_files_have_the_known_counts(real_data: Path, name: str) -> None:
    assert counts(open_index(real_data / "annotation_zoo" / name, STRICT, annotations_only=True)) == PINNED[name]


REFUSED = {
    "cocoapi_results/results/instances_val2014_fakebbox100_results.json": "COCO results",
    "cocoapi_results/results/captions_val2014_fakecap_results.json": "caption results",
    "odm/data/database/gts/cvat_format/annotations.xml": "CVAT xml",
    "odm/data/database/gts/labelme_format": "LabelMe json",
    "odm/data/database/gts/tfrecord_format": "TFRecord",
    "odm/toyexample/dets_classid_rel_xcycwh": "predictions with a score",
    "raccoon_voc/data/raccoon_labels.csv": "TensorFlow csv",
    "aquatrash_csv": "csv with one box a line",
    "label_studio/tests/data/test_export_yolo/data.json": "Label Studio",
    "label_studio/tests/data/test_export_json_min/data.json": "Label Studio",
    "coco256_labels/panoptic_segmentation/annotations/panoptic_val2017.json": "COCO panoptic",
    "txlpbc_yolo_labels/TXL_PBC/labels/test": "class lists disagree",
    "datumaro/tests/assets/coco_dataset/coco/annotations/captions_train.json": "COCO captions",
    "datumaro/tests/assets/coco_dataset/coco/annotations/labels_train.json": "neither bbox nor segmentation",
    "datumaro/tests/assets/kitti_dataset/kitti_detection": "KITTI",
    "datumaro/tests/assets/labelme_dataset": "LabelMe xml",
    "datumaro/tests/assets/cvat_dataset/for_video/annotations.xml": "CVAT xml",
    "datumaro/tests/assets/datumaro_dataset/legacy/annotations/train.json": "Datumaro",
    "datumaro/tests/assets/roboflow_dataset/createml/train/_annotations.createml.json": "CreateML",
    "datumaro/tests/assets/roboflow_dataset/multiclass/train/_classes.csv": "csv of image classes",
    "datumaro/tests/assets/roboflow_dataset/tfrecord/train": "TFRecord",
    "datumaro/tests/assets/roboflow_dataset/yolo_obb": "not one label file",
    "datumaro/tests/assets/vott_csv_dataset/dataset/train-export.csv": "VoTT csv",
    "datumaro/tests/assets/vott_json_dataset/dataset/train-export.json": "VoTT",
}


@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_are_refused_say_what_they_are(real_data: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{Path(name).name}.*{REFUSED[name]}.*\. \w.*\.$"):
        open_index(real_data / "annotation_zoo" / name, STRICT, annotations_only=True)


def test_every_real_annotation_file_is_read_or_refused(real_data: Path) -> None:
    """Nothing but `InputError`, whatever file or folder is given, as labels or as a pool."""
    zoo = real_data / "annotation_zoo"
    folders = [zoo, *(path for path in sorted(zoo.rglob("*")) if path.is_dir())]
    sources = list(folders)
    for folder in folders:
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in (".png", ".jpg")]
        for suffix in {path.suffix for path in files}:
            sources += [path for path in files if path.suffix == suffix][:1]
    outcomes = {"read": 0, "refused": 0}
    for path in sources:
        for unlabeled in {False, path.is_dir()}:
            try:
                open_index(path, DROP, annotations_only=not unlabeled, unlabeled=unlabeled)
                outcomes["read"] += 1
            except InputError as error:
                outcomes["refused"] += 1
                assert str(zoo) in str(error) or path.name in str(error)
    assert outcomes["read"] > 60 and outcomes["refused"] > 80
