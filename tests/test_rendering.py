"""Masks from outlines: polygons and runs equal pycocotools, and the order, background and errors are as stated."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from tutelage.config import DataConfig
from tutelage.data.readers.outlines.rasterizing import polygon_spans, rasterize
from tutelage.data.readers.outlines.reading import Rendered, coco_regions, yolo_regions
from tutelage.data.readers.source import Source
from tutelage.data.rle import (
    Counts,
    box_of,
    class_spans,
    counts_of,
    decode_counts,
    encode_counts,
    num_pixels,
    spans_of,
    union,
)
from tutelage.types import IGNORE, InputError

KEEP = DataConfig()
IGNORED = DataConfig(background="ignore")
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
SMALL = [4, 4, 6, 4, 6, 6, 4, 6]


def reference(polygon: NDArray[np.float64], height: int, width: int) -> dict[str, Any]:
    encoded: dict[str, Any] = coco_mask.frPyObjects([polygon.ravel().tolist()], height, width)[0]
    return encoded


def text_of(spans: NDArray[np.int64], pixels: int) -> bytes:
    return encode_counts(counts_of(spans, pixels)).encode()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 50), st.integers(1, 50), st.integers(3, 12), st.booleans())
def test_polygons_equal_pycocotools(seed: int, height: int, width: int, corners: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-0.4, 1.4, (corners, 2)) * [width, height]  # crosses itself and leaves the image
    polygon = np.round(polygon) if whole else polygon
    polygon[rng.integers(corners)] = polygon[0]  # doubled corners
    expected = reference(polygon, height, width)
    spans = polygon_spans(polygon, (height, width))
    assert text_of(spans, height * width) == expected["counts"]
    assert num_pixels(spans) == coco_mask.area(expected)


def test_real_polygons_equal_pycocotools(real_data: Path) -> None:
    raw = json.loads((real_data / "annotation_zoo/taco/data/annotations.json").read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in raw["images"]}
    several = [annotation for annotation in raw["annotations"] if len(annotation["segmentation"]) > 1]
    assert len(several) == 114
    for annotation in several + raw["annotations"][:300]:
        height, width = sizes[annotation["image_id"]]
        expected = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width))
        points = [np.array(part, np.float64).reshape(-1, 2) for part in annotation["segmentation"]]
        spans = union([polygon_spans(part, (height, width)) for part in points])
        assert text_of(spans, height * width) == expected["counts"]
        assert box_of(spans, height) == coco_mask.toBbox(expected).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=70), st.integers(1, 6))
def test_runs_of_any_mask_equal_pycocotools(pixels: list[int], height: int) -> None:
    width = max(1, len(pixels) // height)
    mask = np.zeros(height * width, np.uint8)
    mask[: len(pixels)] = pixels[: len(mask)]
    mask = mask.reshape(height, width)
    encoded = coco_mask.encode(np.asfortranarray(mask))
    counts = decode_counts(encoded["counts"].decode())
    spans = spans_of(counts)
    assert np.repeat(np.arange(len(counts)) % 2, counts).tolist() == mask.ravel(order="F").tolist()
    assert text_of(spans, mask.size) == encoded["counts"]
    assert spans.tolist() == dict(class_spans(mask)).get(1, np.zeros((0, 2))).tolist()
    assert (rasterize([(1, spans)], mask.shape, uncovered=0) == mask).all()
    assert box_of(spans, height) == coco_mask.toBbox(encoded).tolist()


def test_long_runs_survive_the_compressed_form() -> None:
    counts: Counts = np.array([0, 1, 2**31, 3, 15, 16, 2**33, 2**31, 1])
    assert decode_counts(encode_counts(counts)).tolist() == counts.tolist()
    assert decode_counts("").tolist() == []


@pytest.mark.parametrize("text", ["0\x10", "0P", "o", "P" * 9 + "0", "0\u00e9"])
def test_damaged_counts(text: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode_counts(text)


def test_touching_and_overlapping_runs_become_one() -> None:
    parts = [np.array([[10, 20], [40, 45]]), np.array([[0, 3], [20, 30]]), np.array([[12, 15], [44, 50]])]
    assert union(parts).tolist() == [[0, 3], [10, 30], [40, 50]]
    assert union([]).tolist() == []


def test_painting_goes_from_large_to_small() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 30)) < share for share in (0.1, 0.9, 0.3, 0.5, 0.02)]
    outlines = [(label, dict(class_spans(mask.astype(np.uint8)))[1]) for label, mask in enumerate(masks)]
    expected = np.full((20, 30), IGNORE)
    for label in (1, 3, 2, 0, 4):
        expected[masks[label]] = label
    assert (rasterize(outlines, (20, 30)) == expected).all()
    same = [(label, spans) for label in (5, 6) for spans in [outlines[0][1]]]
    assert set(np.unique(rasterize(same, (20, 30), uncovered=9))) == {6, 9}  # of equal ones the later lies on top


def coco(folder: Path, *annotations: dict[str, Any], size: tuple[int, int] = (10, 12), **changes: Any) -> Source:
    images = [{"id": 5, "file_name": "a.jpg", "height": size[0], "width": size[1]}, {"id": 6, "file_name": "b.jpg"}]
    entries = [{"id": number, "image_id": 5, "category_id": 3, **one} for number, one in enumerate(annotations, 1)]
    raw = {"images": images, "annotations": entries, "categories": CATEGORIES, **changes}
    (folder / "a.json").write_text(json.dumps(raw))
    return Source("coco", folder / "a.json")


def runs(mask: NDArray[Any], compressed: bool) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    text = encoded["counts"].decode()
    return {"size": list(mask.shape), "counts": text if compressed else decode_counts(text).tolist()}


def test_coco_forms_mix_and_the_smaller_lies_on_top(tmp_path: Path) -> None:
    left, corner = np.zeros((10, 12), bool), np.zeros((10, 12), bool)
    left[:, :5] = True
    corner[:1, :2] = True
    source = coco(
        tmp_path,
        {"segmentation": runs(corner, compressed=True)},
        {"segmentation": [SMALL, [9, 0, 11, 0, 11, 1, 9, 1]]},
        {"segmentation": [SQUARE], "category_id": 7},
        {"segmentation": runs(left, compressed=False), "category_id": 7, "iscrowd": 1},
    )
    expected = np.zeros((10, 12))  # background, which comes first
    expected[left] = IGNORE  # 50 pixels of a crowd, below the square of 36
    expected[2:8, 2:8] = 2  # dog: category ids in order are cat, dog
    expected[4:6, 4:6] = expected[0:1, 9:11] = expected[corner] = 1
    rendered = coco_regions(source, KEEP)
    assert rendered.columns.class_names == ["background", "cat", "dog"]
    assert rendered.columns.paths == ["a.jpg", "b.jpg"] and len(rendered.columns.labels) == 0
    assert rendered.columns.sizes is not None and rendered.columns.sizes.tolist() == [[10, 12], [0, 0]]
    assert (rendered.draw(0, (10, 12)) == expected).all()
    assert (rendered.draw(1, (3, 4)) == np.zeros((3, 4))).all()
    other = coco_regions(source, IGNORED)
    assert other.columns.class_names == ["cat", "dog"]
    shown = np.array([IGNORE, 0, 1] + [IGNORE] * 253)
    assert (other.draw(0, (10, 12)) == shown[expected.astype(int)]).all()


def test_a_crowd_takes_part_in_the_order(tmp_path: Path) -> None:
    crowd = np.zeros((10, 12), bool)
    crowd[4:6, 4:6] = True
    source = coco(tmp_path, {"segmentation": runs(crowd, True), "iscrowd": 1}, {"segmentation": [SQUARE]})
    mask = coco_regions(source, KEEP).draw(0, (10, 12))
    assert (mask == IGNORE).sum() == 4 and (mask == 1).sum() == 32


def test_a_category_named_background_is_the_first_class(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "background"}]
    source = coco(
        tmp_path,
        {"segmentation": [SQUARE], "category_id": 1},
        {"segmentation": [SMALL], "category_id": 2},
        categories=names,
    )
    rendered = coco_regions(source, KEEP)
    assert rendered.columns.class_names == ["background", "cat"]
    assert Counter(rendered.draw(0, (10, 12)).ravel().tolist()) == {0: 120 - 32, 1: 32}
    assert coco_regions(source, IGNORED).columns.class_names == ["cat", "background"]


RLE = {"size": [10, 12], "counts": [0, 120]}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "has 4 coordinates"),
        ([[1, 1, 5, 1, 5, 5, 2]], "has 7 coordinates"),
        ([SQUARE, []], "has 0 coordinates"),
        ([[1, 1, 5, 1, 5, "x"]], "no number"),
        (SQUARE, "neither a list of polygons nor"),
        ("text", "neither a list of polygons nor"),
        ([[1, 1, 5, 1, 5, float("inf")]], "infinite"),
        ([[1, 1, 5, 1, 5, float("nan")]], "infinite"),
        ([[1, 1, 15.5, 1, 5, 5]], "3.5 pixels out of its image of 12 x 10"),
        ({**RLE, "size": [12, 10]}, r"of size \[12, 10\] .height, width., the image \[10, 12\]"),
        ({"counts": [0, 120]}, "of size None"),
        ({**RLE, "counts": [0, 119]}, "cover 119 pixels; the image has 120"),
        ({**RLE, "counts": [130, -10]}, "the runs"),
        ({**RLE, "counts": "P"}, "cannot be read"),
        ({**RLE, "counts": [10**30]}, "cannot be read"),
        ({"size": [10, 12]}, "cannot be read"),
    ],
)
def test_broken_outlines_are_named(tmp_path: Path, segmentation: object, message: str) -> None:
    rendered = coco_regions(coco(tmp_path, {"segmentation": [SQUARE]}, {"segmentation": segmentation}), KEEP)
    with pytest.raises(InputError, match=rf"a\.json: annotation 2 \(image 5\), a\.jpg: .*{message}"):
        rendered.draw(0, (10, 12))


def test_polygons_that_leave_the_image_are_cut_on_demand(tmp_path: Path) -> None:
    source = coco(tmp_path, {"segmentation": [[8, -4, 20, -4, 20, 3, 8, 3]]})
    mask = coco_regions(source, DataConfig(bad_boxes="clip")).draw(0, (10, 12))
    assert (mask[:3, 8:] == 1).all() and (mask == 1).sum() == 12
    far = coco(tmp_path, {"segmentation": [[0, 0, 1e9, 0, 1e9, 5]]})
    with pytest.raises(InputError, match="pixels out of its image"):
        coco_regions(far, DataConfig(bad_boxes="clip")).draw(0, (10, 12))


def test_annotations_without_outline(tmp_path: Path) -> None:
    source = coco(tmp_path, {"segmentation": [SQUARE]}, {"bbox": [1, 1, 2, 2]}, {"segmentation": []})
    with pytest.raises(InputError, match=r"a\.json: 2 of 3 annotations have no outline \(first: annotation 2"):
        coco_regions(source, KEEP)
    rendered = coco_regions(source, DataConfig(bad_boxes="drop"))
    assert rendered.columns.counts == {"annotations have no outline (left out)": 2}
    assert (rendered.draw(0, (10, 12)) == 1).sum() == 36


def test_ids_that_the_json_does_not_define(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotation 1 \(image 5\): category_id is 99"):
        coco_regions(coco(tmp_path, {"category_id": 99}), KEEP)
    with pytest.raises(InputError, match=r"annotation 1 \(image 77\): image_id is 77"):
        coco_regions(coco(tmp_path, {"image_id": 77}), KEEP)


def test_more_classes_than_a_mask_holds(tmp_path: Path) -> None:
    names = [{"id": number, "name": f"c{number}"} for number in range(255)]
    source = coco(tmp_path, {"segmentation": [SQUARE]}, categories=names)
    with pytest.raises(InputError, match="256 classes; masks have at most 255"):
        coco_regions(source, KEEP)
    assert len(coco_regions(source, IGNORED).columns.class_names) == 255


def test_captions_hold_no_outlines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="captions"):
        coco_regions(coco(tmp_path, {"caption": "a cat"}), KEEP)


def panoptic(
    folder: Path, pixels: Any, *segments: dict[str, Any], png: str = "a/x.png", entries: int = 1, **changes: Any
) -> Rendered:
    ids = np.asarray(pixels, np.uint32)
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    (folder / png).parent.mkdir(exist_ok=True)
    Image.fromarray(colors).save(folder / png)
    images = [{"id": 5, "file_name": "x.jpg", "height": ids.shape[0], "width": ids.shape[1]}]
    annotation = {"image_id": 5, "file_name": "x.png", "segments_info": list(segments)}
    raw = {"images": images, "annotations": [annotation] * entries, "categories": CATEGORIES, **changes}
    (folder / "a.json").write_text(json.dumps(raw))
    return coco_regions(Source("coco", folder / "a.json"), KEEP)


IDS = [[0, 1, 256, 65536], [0, 1, 256, 16_777_215]]
SEGMENTS = (
    {"id": 1, "category_id": 7},
    {"id": 256, "category_id": 3, "isthing": 0},
    {"id": 65536, "category_id": 7, "iscrowd": 1},
    {"id": 16_777_215, "category_id": 7, "iscrowd": 0},
)


@pytest.mark.parametrize("png", ["a/x.png", "x.png"])
def test_panoptic_segments(tmp_path: Path, png: str) -> None:
    rendered = panoptic(tmp_path, IDS, *SEGMENTS, png=png)
    assert rendered.columns.class_names == ["cat", "dog"]  # nothing is uncovered: no background is added
    expected = [[IGNORE, 1, 0, IGNORE], [IGNORE, 1, 0, 1]]
    assert rendered.draw(0, (2, 4)).tolist() == expected


def test_broken_panoptic_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: image 5, x\.jpg: .*x\.png has segments .* 65536 \(12\.50%"):
        panoptic(tmp_path, IDS, *SEGMENTS[:2], SEGMENTS[3]).draw(0, (2, 4))
    with pytest.raises(InputError, match=r"a\.json: image 5, x\.jpg: segment 1: category_id is 9, which"):
        panoptic(tmp_path, IDS, {"id": 1, "category_id": 9}).draw(0, (2, 4))
    with pytest.raises(InputError, match=r"a\.json: image 5, x\.jpg: segment id is 16777216"):
        panoptic(tmp_path, IDS, {"id": 1 << 24, "category_id": 3}).draw(0, (2, 4))
    with pytest.raises(InputError, match=r"image 5, x\.jpg: its mask .*x\.png is 4 x 2, the image 5 x 3"):
        panoptic(tmp_path, IDS, *SEGMENTS).draw(0, (3, 5))
    with pytest.raises(InputError, match=r"image 5, x\.jpg, has 2 annotations"):
        panoptic(tmp_path, IDS, *SEGMENTS, entries=2)
    rendered = panoptic(tmp_path, IDS, *SEGMENTS)
    (tmp_path / "a/x.png").unlink()
    with pytest.raises(InputError, match=r"image 5, x\.jpg: its mask .*x\.png is missing"):
        rendered.draw(0, (2, 4))


def test_real_panoptic_masks_equal_their_published_semantic_form(real_data: Path) -> None:
    folder = real_data / "annotation_zoo/coco256_labels"
    path = folder / "panoptic_segmentation/annotations/panoptic_val2017.json"
    rendered = coco_regions(Source("coco", path), KEEP)
    raw = json.loads(path.read_bytes())
    ids = np.array(sorted(category["id"] for category in raw["categories"]))
    stems = [Path(name).stem for name in rendered.columns.paths]
    crowds = Counter(
        {
            stems.index(Path(entry["file_name"]).stem): sum(s["area"] for s in entry["segments_info"] if s["iscrowd"])
            for entry in raw["annotations"]
        }
    )
    rows = [row for row, _ in crowds.most_common(4)] + list(range(0, 100, 5))
    assert rendered.columns.sizes is not None and len(stems) == 100 and crowds[rows[3]] > 0
    for row in rows:
        mask = rendered.draw(row, tuple(rendered.columns.sizes[row].tolist()))
        published = np.asarray(Image.open(folder / f"semantic_segmentation/masks/val2017/{stems[row]}.png"))
        known = mask != IGNORE
        assert (ids[mask[known]] == published[known]).all()
        assert np.count_nonzero(published[~known]) == crowds[row]  # void is 0 there, a crowd has its class


def yolo(folder: Path, text: str) -> Source:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    Image.new("RGB", (40, 20)).save(folder / "images/a.png")
    (folder / "labels/a.txt").write_text(text)
    return Source("yolo", folder, images=(folder / "images",), class_names=("cat", "dog"))


def test_yolo_polygons(tmp_path: Path) -> None:
    source = yolo(tmp_path, "1 0.1 0.1 0.5 0.1 0.5 0.9 0.1 0.9\n\n0 0.2 0.3 0.3 0.3 0.3 0.5 0.2 0.5\n")
    rendered = yolo_regions(source, KEEP)
    assert rendered.columns.class_names == ["background", "cat", "dog"] and rendered.columns.paths == ["a.png"]
    expected = np.zeros((20, 40))
    expected[2:18, 4:20] = 2
    expected[6:10, 8:12] = 1
    assert (rendered.draw(0, (20, 40)) == expected).all()
    assert rendered.draw(0, (40, 80))[4:36, 8:40].all()  # whatever size the picture has
    assert (yolo_regions(source, IGNORED).draw(0, (20, 40)) == np.where(expected == 0, IGNORE, expected - 1)).all()


def test_yolo_boxes_are_no_masks(tmp_path: Path) -> None:
    source = yolo(tmp_path, "1 0.1 0.1 0.5 0.1 0.5 0.9\n0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(InputError, match=r"2 of 3 rows are boxes \(first: .*a\.txt: line 2\)"):
        yolo_regions(source, KEEP)
    rendered = yolo_regions(source, DataConfig(bad_boxes="drop"))
    assert rendered.columns.counts == {"rows are boxes (left out)": 2}
    assert set(np.unique(rendered.draw(0, (20, 40)))) == {0, 2}


def test_yolo_polygons_outside_of_the_image(tmp_path: Path) -> None:
    rendered = yolo_regions(yolo(tmp_path, "0 1 1 5 1 5 5\n"), KEEP)  # pixels instead of fractions
    with pytest.raises(InputError, match=r"a\.txt: line 1: a polygon reaches 160\.0 pixels out"):
        rendered.draw(0, (20, 40))


def test_real_yolo_polygons_lie_on_the_panoptic_segments(real_data: Path) -> None:
    folder = real_data / "annotation_zoo/coco256_labels"
    images = folder / "instance_segmentation/images/val2017"
    rendered = yolo_regions(Source("yolo", folder / "instance_segmentation", images=(images,)), KEEP)
    assert len(rendered.columns.paths) == 100 and not rendered.columns.declared
    agree = total = 0
    for row in range(0, 100, 5):
        stem = Path(rendered.columns.paths[row]).stem
        published = np.asarray(Image.open(folder / f"semantic_segmentation/masks/val2017/{stem}.png"))
        mask = rendered.draw(row, published.shape)
        assert rendered.columns.class_names[0] == "background"
        numbers = np.array([-1, *map(int, rendered.columns.class_names[1:])])
        things = (published > 0) & (published <= 90)
        agree += np.count_nonzero(numbers[mask[things]] == published[things])
        total += np.count_nonzero(things)
    assert agree / total > 0.95  # 0.974
