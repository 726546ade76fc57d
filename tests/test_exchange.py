"""Pseudo-labels out to annotation tools and back: nothing is lost, and what people did is told from the difference."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

import tutelage
from tutelage.data.pseudo import open_store, read_verdicts
from tutelage.data.pseudo.verdicts import JudgedImage, Label, Region, Verdicts
from tutelage.reviews.exchange import FORMATS, detect_format, export_labels, import_labels
from tutelage.reviews.exchange.brush import decode_brush, encode_brush
from tutelage.types import InputError

ORIGIN = {"score": 0.25, "teacher": "ab" * 32, "round": 1}
NAMES = ("cat", "gro\u00dfe T\u00fcr & <x>", "\u732b")
PATHS = ("a b.png", "deep er/\u00fc%20'n\".jpg", "deep er/n.tar.png", "empty.png")


def box(name: str, xyxy: Any, **values: Any) -> Label:
    return Label(name=name, xyxy=tuple(xyxy), **{**ORIGIN, **values})


def shown_boxes(*labels: Label, size: tuple[int, int] = (60, 80), path: str = "a.png") -> Verdicts:
    image = JudgedImage(path=path, size=size, labels=labels)
    return Verdicts(annotation="boxes", class_names=NAMES, images=(image,))


corner = st.floats(0, 50, allow_nan=False)
side = st.floats(0.01, 9, allow_nan=False)
boxes_of = st.tuples(corner, corner, side, side).map(lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3]))
origins = st.sampled_from(
    [(None, ORIGIN), ("human", {"score": None, "teacher": None, "round": None}), ("accept", ORIGIN), ("ignore", ORIGIN)]
)
box_labels = st.builds(
    lambda name, xyxy, origin: Label(name=name, xyxy=xyxy, verdict=origin[0], **origin[1]),
    st.sampled_from(NAMES), boxes_of, origins,
)  # fmt: skip


@st.composite
def handed_boxes(draw: st.DrawFn) -> Verdicts:
    images = [
        JudgedImage(path=path, size=(60, 80), labels=tuple(draw(st.lists(box_labels, max_size=3))))
        for path in PATHS[:-1]
    ]
    empty = JudgedImage(path=PATHS[-1], size=(7, 9))
    return Verdicts(annotation="boxes", class_names=NAMES, images=(*images, empty))


@st.composite
def handed_masks(draw: st.DrawFn) -> Verdicts:
    """Regions that do not lie on each other, as they are handed out."""
    images = []
    for path in PATHS[:-1]:
        owner = np.array(draw(st.lists(st.integers(0, 4), min_size=30, max_size=30))).reshape(5, 6)
        labels = []
        for number in range(1, 4):
            verdict, origin = draw(origins)
            if (owner == number).any():
                place = Region.of(owner == number)
                labels.append(Label(name=NAMES[number - 1], region=place, verdict=verdict, **origin))
        images.append(JudgedImage(path=path, size=(5, 6), labels=tuple(labels)))
    return Verdicts(annotation="masks", class_names=NAMES, images=(*images, JudgedImage(path=PATHS[-1], size=(7, 9))))


def unchanged(label: Label) -> Label:
    return label if label.verdict else label.model_copy(update={"verdict": "accept"})


def annotated(path: Path) -> Path:
    """The file as the tool writes it after somebody looked at everything: of Label Studio's, predictions were taken."""
    if path.name == "tasks.json":
        tasks = json.loads(path.read_text())
        for task in tasks:
            task["annotations"] = [{"result": task["predictions"][0]["result"], "was_cancelled": False}]
        path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize("format", FORMATS["boxes"])
@given(handed_boxes())
@settings(max_examples=8, deadline=None)
def test_boxes_that_nobody_changed_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, format: str, shown: Verdicts
) -> None:
    require_nothing_lost(tmp_path_factory.mktemp("out"), format, shown)


@pytest.mark.parametrize("format", FORMATS["masks"])
@given(handed_masks())
@settings(max_examples=8, deadline=None)
def test_regions_that_nobody_changed_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, format: str, shown: Verdicts
) -> None:
    require_nothing_lost(tmp_path_factory.mktemp("out"), format, shown)


def require_nothing_lost(folder: Path, format: str, shown: Verdicts) -> None:
    back = import_labels(annotated(export_labels(folder, format, shown)), folder)
    assert sorted(image.path for image in back.images) == sorted(PATHS)
    for image in back.images:
        before = next(one for one in shown.images if one.path == image.path)
        assert image.reviewed and image.size == before.size
        assert image.labels == tuple(map(unchanged, before.labels))


Edit = Callable[[Path, str], None]
MOVED = (11.123456789, 12.5, 30.25, 33.0)


def edit_label_studio(path: Path, ids: dict[str, str]) -> None:
    tasks = json.loads(path.read_text())
    result = tasks[0]["predictions"][0]["result"]
    of = {one["id"]: one for one in result}
    width, height = 80, 60
    x1, y1, x2, y2 = MOVED
    moved = {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
    }
    of[ids["moved"]]["value"] |= moved
    of[ids["renamed"]]["value"]["rectanglelabels"] = [NAMES[2]]
    del of[ids["gone"]]
    new = {"id": "xyz", "type": "rectanglelabels", "value": {**moved, "rectanglelabels": [NAMES[1]]}}
    marked = {"id": ids["marked"], "type": "choices", "value": {"choices": ["ignore"]}}
    cancelled = {"result": [], "was_cancelled": True}
    tasks[0]["annotations"] = [{"result": [*of.values(), new, marked]}, cancelled]
    path.write_text(json.dumps(tasks))


def edit_cvat(path: Path, ids: dict[str, str]) -> None:
    tree = ET.parse(path)
    image = tree.getroot().find("image")
    assert image is not None
    of = {str(one.findtext("attribute[@name='label_id']")): one for one in image}
    place = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(repr, MOVED), strict=True))
    of[ids["moved"]].attrib.update(place)
    of[ids["renamed"]].set("label", NAMES[2])
    image.remove(of[ids["gone"]])
    ET.SubElement(image, "box", {"label": NAMES[1], **place})
    flag = of[ids["marked"]].find("attribute[@name='ignore']")
    assert flag is not None
    flag.text = "true"
    tree.write(path, encoding="utf-8")


def edit_coco(path: Path, ids: dict[str, str]) -> None:
    listing = json.loads(path.read_text())
    of = {one["attributes"]["label_id"]: one for one in listing["annotations"]}
    x1, y1, x2, y2 = MOVED
    of[ids["moved"]]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    of[ids["renamed"]]["category_id"] = 3
    del of[ids["gone"]]
    of[ids["marked"]]["attributes"]["ignore"] = True
    listing["annotations"] = [*of.values(), {"image_id": 1, "category_id": 2, "bbox": [x1, y1, x2 - x1, y2 - y1]}]
    path.write_text(json.dumps(listing))


def edit_fiftyone(path: Path, ids: dict[str, str]) -> None:
    listing = json.loads(path.read_text())
    of = {one["attributes"]["label_id"]: one for one in listing["labels"]["a"]}
    x1, y1, x2, y2 = MOVED
    place = [x1 / 80, y1 / 60, (x2 - x1) / 80, (y2 - y1) / 60]
    of[ids["moved"]]["bounding_box"] = place
    of[ids["renamed"]]["label"] = NAMES[2]
    del of[ids["gone"]]
    of[ids["marked"]]["attributes"]["ignore"] = True
    listing["labels"]["a"] = [*of.values(), {"label": 1, "bounding_box": place}]
    path.write_text(json.dumps(listing))


EDITS = {"label-studio": edit_label_studio, "cvat": edit_cvat, "coco": edit_coco, "fiftyone": edit_fiftyone}


@pytest.mark.parametrize("format", EDITS)
def test_what_people_changed_is_told_from_what_they_left(tmp_path: Path, format: str) -> None:
    labels = [box("cat", [5 * at, at, 5 * at + 20.123, 30.75], score=at / 8) for at in range(5)]
    shown = shown_boxes(*labels)
    path = export_labels(tmp_path, format, shown)
    ids = dict(zip(("kept", "moved", "renamed", "gone", "marked"), names_in(shown), strict=True))
    EDITS[format](path, ids)
    (image,) = import_labels(path, tmp_path).images
    kept, moved, left, renamed, wrong, gone, marked, new = image.labels
    assert kept == unchanged(labels[0])
    assert (moved.verdict, moved.score, moved.teacher, moved.round) == ("human", 1 / 8, "ab" * 32, 1)
    assert moved.xyxy == pytest.approx(MOVED, abs=1e-9), "to the last digits"
    assert left == labels[1].model_copy(update={"verdict": "reject"}), "nothing is where it was"
    assert (renamed.name, renamed.verdict, renamed.score) == (NAMES[2], "human", 2 / 8)
    assert renamed.xyxy == pytest.approx(labels[2].xyxy, abs=1e-9)
    assert wrong == labels[2].model_copy(update={"verdict": "reject"}), "it is no cat"
    assert gone == labels[3].model_copy(update={"verdict": "reject"})
    assert marked == labels[4].model_copy(update={"verdict": "ignore"})
    assert (new.name, new.verdict, new.score, new.teacher, new.round) == (NAMES[1], "human", None, None, None)


def names_in(shown: Verdicts) -> list[str]:
    return [f"{shown.digest()[:8]}-0-{at}" for at in range(len(shown.images[0].labels))]


@pytest.mark.parametrize("format", FORMATS["masks"])
def test_strokes_that_were_erased_are_rejected_and_new_ones_human(tmp_path: Path, format: str) -> None:
    before, after = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    before[1:4, 1:5], after[2:4, 1:7] = True, True
    label = Label(name="cat", region=Region.of(before), **ORIGIN)
    image = JudgedImage(path="a.png", size=(6, 8), labels=(label,))
    shown = Verdicts(annotation="masks", class_names=NAMES, images=(image,))
    path = annotated(export_labels(tmp_path, format, shown))
    redrawn = Verdicts(
        annotation="masks",
        class_names=NAMES,
        images=(image.model_copy(update={"labels": (label.model_copy(update={"region": Region.of(after)}),)}),),
    )
    other = annotated(export_labels(tmp_path / "other", format, redrawn))
    if path.is_dir():
        (path / "a.png").write_bytes((other / "a.png").read_bytes())
    else:
        path.write_text(other.read_text().replace(names_in(redrawn)[0], names_in(shown)[0]))
    (back,) = import_labels(path, tmp_path).images
    drawn = np.zeros((6, 8), bool)
    rejected = np.zeros((6, 8), bool)
    for one in back.labels:
        target = {"human": drawn, "reject": rejected}[str(one.verdict)]
        assert one.region is not None
        target |= one.region.mask()
    assert np.array_equal(drawn, after) and np.array_equal(rejected, before & ~after)
    assert back.labels[0].score == 0.25 and back.labels[0].teacher == "ab" * 32


def test_what_cvat_rounds_to_two_decimals_is_not_moved(tmp_path: Path) -> None:
    shown = shown_boxes(box("cat", [1.23456, 2.34567, 10.98765, 20.12345]))
    path = export_labels(tmp_path, "cvat", shown)
    text = path.read_text()
    for value in ("1.23456", "2.34567", "10.98765", "20.12345"):
        text = text.replace(value, f"{float(value):.2f}")
    path.write_text(text)
    (image,) = import_labels(path, tmp_path).images
    assert image.labels == (unchanged(shown.images[0].labels[0]),), "the box as it was, with all its digits"


def test_a_label_without_its_name_is_found_by_its_place_and_a_copy_is_new(tmp_path: Path) -> None:
    first, second = box("cat", [1, 1, 9, 9]), box("cat", [20, 20, 30, 30])
    path = export_labels(tmp_path, "coco", shown_boxes(first, second))
    listing = json.loads(path.read_text())
    listing["annotations"][1].pop("attributes")
    copy = listing["annotations"][0] | {"bbox": [40, 40, 5, 5]}
    listing["annotations"] = [copy, *listing["annotations"]]
    path.write_text(json.dumps(listing))
    (image,) = import_labels(path, tmp_path).images
    assert image.labels[:2] == (unchanged(first), unchanged(second))
    assert image.labels[2].verdict == "human" and image.labels[2].xyxy == (40, 40, 45, 45)


def test_only_what_was_annotated_in_label_studio_was_reviewed(tmp_path: Path) -> None:
    path = export_labels(tmp_path, "label-studio", shown_boxes(box("cat", [1, 1, 9, 9])))
    with pytest.raises(InputError, match="no image in it was annotated"):
        import_labels(path, tmp_path)


def test_a_turned_rectangle_becomes_the_upright_one_around_it(tmp_path: Path) -> None:
    shown = shown_boxes(box("cat", [40, 20, 60, 30]))
    path = export_labels(tmp_path, "label-studio", shown)
    tasks = json.loads(annotated(path).read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["rotation"] = 90  # around the upper left corner
    path.write_text(json.dumps(tasks))
    (image,) = import_labels(path, tmp_path).images
    assert image.labels[0].xyxy == pytest.approx((30, 20, 40, 40))
    path = export_labels(tmp_path, "cvat", shown)
    path.write_text(path.read_text().replace("<box ", '<box rotation="90.00" '))  # around the middle
    (image,) = import_labels(path, tmp_path).images
    assert image.labels[0].xyxy == pytest.approx((45, 15, 55, 35))
    assert [label.verdict for label in image.labels] == ["human", "reject"]


def test_polygons_of_coco_become_regions_as_pycocotools_draws_them(tmp_path: Path) -> None:
    square = np.zeros((20, 30), bool)
    square[2:9, 3:9] = True
    label = Label(name="cat", region=Region.of(square), **ORIGIN)
    shown = Verdicts(
        annotation="masks", class_names=NAMES, images=(JudgedImage(path="a.png", size=(20, 30), labels=(label,)),)
    )
    path = export_labels(tmp_path, "coco", shown)
    listing = json.loads(path.read_text())
    polygon = [2.5, 3.0, 20.0, 4.5, 11.0, 18.0]
    listing["annotations"][0]["segmentation"] = [polygon]
    path.write_text(json.dumps(listing))
    (image,) = import_labels(path, tmp_path).images
    expected = coco_masks.decode(coco_masks.frPyObjects([polygon], 20, 30))[..., 0].astype(bool)
    assert image.labels[0].region is not None
    assert np.array_equal(image.labels[0].region.mask(), expected)


def reference_brush(mask: NDArray[np.bool_]) -> list[int]:
    """thi.ng's rle-pack, bit by bit, with runs of every length and with values that differ."""
    values = [255 * int(value) for value in mask.ravel() for _ in range(4)]
    lengths = (3, 4, 8, 16)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    at = 0
    while at < len(values):
        run = 1
        while at + run < len(values) and values[at + run] == values[at] and run < 2**16:
            run += 1
        chosen = next(number for number, length in enumerate(lengths) if run <= 2**length)
        if run == 4:  # as unequal values
            bits += f"0{chosen:02b}{run - 1:0{lengths[chosen]}b}" + "".join(f"{values[at]:08b}" for _ in range(run))
        else:
            bits += f"1{chosen:02b}{run - 1:0{lengths[chosen]}b}{values[at]:08b}"
        at += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_brush_strokes_are_read_as_label_studio_writes_them(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    assert np.array_equal(decode_brush(reference_brush(mask), mask.shape), mask)
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


def test_long_runs_of_strokes_are_cut() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:, :] = True
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)
    with pytest.raises(ValueError, match="not on a picture"):
        decode_brush(encode_brush(mask), (300, 401))
    with pytest.raises(ValueError, match="damaged"):
        decode_brush(encode_brush(mask)[:12], (300, 400))


PLAIN: list[Any] = [None, 3, "a", [], {}, [[]], [{}], {"images": 1, "annotations": {}}, {"labels": [1]}, [{"data": 1}]]


@pytest.mark.parametrize("plain", PLAIN, ids=str)
@pytest.mark.parametrize("annotation", ["boxes", "masks"])
def test_json_of_any_shape_is_refused_in_words(tmp_path: Path, plain: Any, annotation: Any) -> None:
    image = JudgedImage(path="a.png", size=(6, 8))
    for format in FORMATS[annotation]:
        export_labels(tmp_path, format, Verdicts(annotation=annotation, class_names=NAMES, images=(image,)))
    (tmp_path / "back.json").write_text(json.dumps(plain))
    with pytest.raises(InputError):
        import_labels(tmp_path / "back.json", tmp_path)


def with_value(plain: Any, path: list[Any], value: Any) -> Any:
    part = plain
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return plain


BROKEN_BOXES: list[tuple[str, list[Any], Any, str]] = [
    ("coco", ["annotations", 0, "bbox"], [1, 2, 3], "bbox"),
    ("coco", ["annotations", 0, "bbox"], [1, 2, -3, 4], "no area"),
    ("coco", ["annotations", 0, "bbox"], None, "without bbox"),
    ("coco", ["annotations", 0, "category_id"], 9, "unknown category"),
    ("coco", ["annotations", 0, "image_id"], 9, "unknown image"),
    ("coco", ["categories", 0, "name"], "cow", "unknown class 'cow'"),
    ("coco", ["images", 0, "file_name"], "b.png", "none of the 1"),
    ("coco", ["images"], [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}], "twice"),
    ("label-studio", [0, "annotations", 0, "result", 0, "value", "x"], "left", "x"),
    ("label-studio", [0, "annotations", 0, "result", 0, "value", "x"], float("nan"), "x"),
    ("label-studio", [0, "annotations", 0, "result", 0, "value", "x"], 500, "no area"),
    ("label-studio", [0, "annotations", 0, "result", 0, "value", "rectanglelabels"], [], "0 classes"),
    ("label-studio", [0, "data", "path"], "b.png", "none of the 1"),
    ("fiftyone", ["labels", "a", 0, "label"], 7, "has 3"),
    ("fiftyone", ["labels", "a", 0, "bounding_box"], [0, 0, 1], "bounding_box"),
    ("fiftyone", ["labels", "b"], [], "none of the 1"),
]


@pytest.mark.parametrize(("format", "path", "value", "message"), BROKEN_BOXES)
def test_malformed_values_are_named(tmp_path: Path, format: str, path: list[Any], value: Any, message: str) -> None:
    file = annotated(export_labels(tmp_path, format, shown_boxes(box("cat", [1, 1, 9, 9]))))
    file.write_text(json.dumps(with_value(json.loads(file.read_text()), path, value)))
    with pytest.raises(InputError, match=message):
        import_labels(file, tmp_path)


BROKEN_XML = [
    ("<box", "<cuboid", "boxes and masks are taken"),
    ('xtl="1.0"', 'xtl="left"', "xtl is 'left'"),
    ('xtl="1.0"', 'xtl="nan"', "xtl is 'nan'"),
    ('label="cat"', 'label="cow"', "unknown class 'cow'"),
    ('name="a.png"', 'name="b.png"', "none of the 1"),
    ("<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>", "document type"),
    ("</annotations>", "", "not well-formed"),
    ("annotations>", "annotation>", "not what CVAT writes"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN_XML)
def test_malformed_xml_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = export_labels(tmp_path, "cvat", shown_boxes(box("cat", [1, 1, 9, 9])))
    text = file.read_text().replace("</box", "</cuboid") if new == "<cuboid" else file.read_text()
    file.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        import_labels(file, tmp_path)


@pytest.mark.parametrize(
    ("format", "old", "new"),
    [
        ("cvat", 'left="1"', 'left="-1"'),
        ("cvat", 'rle="0', 'rle="x'),
        ("cvat", 'rle="0', 'rle="99999999999999999999'),
        ("cvat", 'rle="0', 'rle="5'),
        ("coco", '"counts": "', '"counts": "~'),
        ("coco", '"counts": "', '"counts": "1'),
        ("label-studio", '"rle": [', '"rle": [9, '),
        ("label-studio", '"rle": [', '"rle": [999, '),
    ],
)
def test_malformed_masks_are_refused_in_words(tmp_path: Path, format: str, old: str, new: str) -> None:
    square = np.zeros((6, 8), bool)
    square[1:3, 1:4] = True
    label = Label(name="cat", region=Region.of(square), **ORIGIN)
    image = JudgedImage(path="a.png", size=(6, 8), labels=(label,))
    shown = Verdicts(annotation="masks", class_names=NAMES, images=(image,))
    file = annotated(export_labels(tmp_path, format, shown))
    text = json.dumps(json.loads(file.read_text())) if file.suffix == ".json" else file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"a\.png|annotations"):
        import_labels(file, tmp_path)


def test_masks_of_fiftyone_of_another_size_or_value_are_refused(tmp_path: Path) -> None:
    shown = Verdicts(annotation="masks", class_names=NAMES, images=(JudgedImage(path="a.png", size=(6, 8)),))
    folder = export_labels(tmp_path, "fiftyone", shown)
    for broken, message in ((np.zeros((5, 8), np.uint8), "5, 8"), (np.full((6, 8), 9, np.uint8), "the value 9")):
        cv2.imwrite(str(folder / "a.png"), broken)
        with pytest.raises(InputError, match=message):
            import_labels(folder.parent, tmp_path)
    cv2.imwrite(str(folder / "a.png"), np.full((6, 8), 255, np.uint8))
    (image,) = import_labels(folder, tmp_path).images
    assert [label.verdict for label in image.labels] == ["ignore"]


def test_names_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what XML cannot"):
        export_labels(tmp_path, "cvat", shown_boxes(path="a\x01.png"))
    two = [JudgedImage(path=path, size=(6, 8)) for path in ("a.png", "a.jpg")]
    with pytest.raises(InputError, match=r"shares its name with a\.png"):
        export_labels(tmp_path, "fiftyone", Verdicts(annotation="boxes", class_names=NAMES, images=tuple(two)))
    with pytest.raises(InputError, match="outside of the pool's folder"):
        export_labels(tmp_path, "fiftyone", shown_boxes(path="../a.png"))
    with pytest.raises(InputError, match="unknown format 'voc'"):
        export_labels(tmp_path, "voc", shown_boxes())


def test_real_files_of_tools_are_known_or_refused_in_words(real_data: Path, tmp_path: Path) -> None:
    zoo = real_data / "annotation_zoo"
    export_labels(tmp_path, "label-studio", shown_boxes())
    export_labels(tmp_path, "cvat", shown_boxes())
    files = [*zoo.glob("label_studio/**/data*.json"), *zoo.glob("**/*cvat*/**/*.xml")]
    assert len(files) > 3
    for file in files:
        assert detect_format(file) in ("label-studio", "cvat")
        with pytest.raises(InputError, match=r"none of the 1|is not what|no image in it|document type"):
            import_labels(file, tmp_path)


@pytest.mark.parametrize("fixture", ["finished", "finished_masks"])
def test_a_run_is_handed_out_and_taken_back_by_the_command(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str
) -> None:
    run: Path = request.getfixturevalue(fixture)
    for format in ("coco", "fiftyone"):
        written = tutelage.review(run, out=tmp_path, export=format, limit=5)
        assert written["images"] == 5
        found = tutelage.review(run, out=tmp_path, import_=written["export"])
        assert found["images"] == 5 and found["rejected"] == 0 and found["accepted"] > 0
    verdicts = read_verdicts(tmp_path / "verdicts.json")
    assert len(verdicts.images) == 10, "those that people are done with come last"
    store = open_store(next(run.glob("stages/pseudo-1-*")))
    origins = {(label.teacher, label.round) for image in verdicts.images for label in image.labels}
    assert origins == {(store.manifest.teacher, 1)}
    again = tutelage.review(run, out=tmp_path, export="cvat", limit=0)
    back = tutelage.review(run, out=tmp_path, import_=again["export"])
    assert back["images"] == 20 and back["accepted"] >= found["accepted"]
    with pytest.raises(InputError, match="only one of them"):
        tutelage.review(run, out=tmp_path, export="coco", import_="x")
    with pytest.raises(InputError, match="does not exist"):
        tutelage.review(run, out=tmp_path, import_=tmp_path / "nothing.json")
