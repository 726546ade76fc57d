"""COCO json: the parsed lists become columns with as little Python work an annotation as possible.

Boxes are [x, y, width, height] from the top left corner. `iscrowd` becomes an ignored region. An annotation without
`bbox` takes the box of its polygons or of its run-length mask.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.readers.source import Columns, Source, read_file, refuse, shortened, split_named
from tutelage.data.rle import box_of, decode_counts, spans_of
from tutelage.types import IGNORE_REGION, InputError


def read_coco(source: Source, unlabeled: bool) -> Columns:
    """Columns of a COCO json; with `unlabeled` annotations may be missing (image_info, captions)."""
    with collector_at_rest():
        return _read(source, unlabeled)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """The cyclic garbage collector would walk millions of parsed containers again and again: a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _read(source: Source, unlabeled: bool) -> Columns:
    raw = parse_coco(source)
    images, annotations = raw["images"], raw.get("annotations", [])
    kind = kind_of(annotations)
    columns = image_columns(images, source)
    if kind in ("", "captions", "panoptic"):
        if not unlabeled and kind:
            raise refuse(source.path, f"COCO {kind} annotations, which hold no object boxes")
        columns.annotated = False
        return columns
    _fill_boxes(columns, images, annotations, raw.get("categories", []), source)
    return columns


def parse_coco(source: Source) -> dict[str, Any]:
    """A parsed COCO json, with `images` and maybe `annotations` and `categories`.

    Raises:
        InputError: not valid JSON, or another format.
    """
    raw = parse_json(source.path)
    if foreign := foreign_json(raw):
        raise refuse(source.path, foreign)
    for key in ("images", "annotations", "categories"):
        _require_entries(raw.get(key, []), f"{source.path}: {key}")
    return dict(raw)


def _require_entries(entries: Any, place: str) -> None:
    """Refuses what is no list of objects."""
    if not isinstance(entries, list):
        raise InputError(f"{place} is {shortened(entries)}; a list is needed. Mend the file, or export it again.")
    bad = next((number for number, entry in enumerate(entries) if not isinstance(entry, dict)), None)
    if bad is not None:
        raise InputError(
            f"{place}[{bad}] is {shortened(entries[bad])}; an object with keys is needed. Mend it, or remove it."
        )


def image_columns(images: Sequence[dict[str, Any]], source: Source) -> Columns:
    """Columns of the images alone: paths, roots and sizes."""
    columns = Columns("COCO json", source.name, _file_names(images, source), image_roots(source.path))
    columns.sizes = _sizes(images, source)
    return columns


def parse_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        InputError: not valid JSON, with line and column.
    """
    try:
        return json.loads(read_file(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # no text, no JSON, endless digits or depth
        raise InputError(f"{path}: not valid JSON ({error}). Restore the file, or export it again.") from None


def image_roots(path: Path) -> list[Path]:
    """Folders where the images of an annotation file may lie, in the order in which they are tried."""
    folder = path.parent
    words = [word for word in [*path.stem.replace("-", "_").split("_"), folder.name] if split_named(word)]
    return [
        folder,
        folder.parent / "images",
        *(folder.parent / "images" / word for word in words),
        folder / "images",
        *(folder / "images" / word for word in words),
        *(folder.parent / word for word in words),
        folder.parent,
    ]


LIST_SIGNS = (
    ({"image_id", "score", "category_id"}, "COCO results (detections with scores), not ground truth"),
    ({"image_id", "caption"}, "COCO caption results, not ground truth"),
    ({"image", "annotations"}, "CreateML json"),
    ({"annotations", "id"}, "a Label Studio export"),
    ({"image", "label"}, "a Label Studio export (JSON-MIN)"),
    ({"id", "image"}, "a Label Studio export (JSON-MIN)"),
    ({"id", "images"}, "a Label Studio export (JSON-MIN)"),
)
DICT_SIGNS = (
    ({"shapes", "imagePath"}, "LabelMe json"),
    ({"asset", "regions"}, "a VoTT asset"),
    ({"assets", "tags"}, "a VoTT export"),
    ({"items", "categories"}, "Datumaro json"),
    ({"imgHeight", "objects"}, "Cityscapes polygons"),
    ({"annotation"}, "ADE20K json"),
    ({"Subcategory"}, "an OpenImages class hierarchy"),
    ({"labels"}, "a list of labels without annotations"),
    ({"label_map"}, "a label map without annotations"),
)


def foreign_json(raw: Any) -> str:
    """What a parsed json is when it is not COCO ground truth; empty when it is."""
    if isinstance(raw, list):
        keys = set(raw[0]) if raw and isinstance(raw[0], dict) else set()
        return next((name for signs, name in LIST_SIGNS if signs <= keys), "a JSON list")
    if not isinstance(raw, dict):
        return f"JSON that holds a {type(raw).__name__}"
    if isinstance(raw.get("images"), list) and isinstance(raw.get("annotations", []), list):
        return ""
    shown = ", ".join(list(raw)[:6])
    return next((name for signs, name in DICT_SIGNS if signs <= set(raw)), f"JSON with the keys {shown or 'none'}")


def kind_of(annotations: Sequence[Any]) -> str:
    """What the annotations are: boxes (and outlines), panoptic, captions, malformed, or "" where there are none."""
    if not annotations:
        return ""
    first = annotations[0]
    if not isinstance(first, dict):
        return "malformed"
    if "segments_info" in first:
        return "panoptic"
    return "captions" if "caption" in first else "boxes"


def _file_names(images: Sequence[dict[str, Any]], source: Source) -> list[str]:
    try:
        names = [image["file_name"] for image in images]
    except (KeyError, TypeError):
        bad = next(number for number, image in enumerate(images) if "file_name" not in image)
        raise InputError(f"{source.path}: images[{bad}] has no file_name; every image needs one. Add it.") from None
    if bad_names := [name for name in names if not isinstance(name, str) or not name or "\0" in name]:
        raise InputError(f"{source.path}: file_name is {shortened(bad_names[0])}; a path is needed. Mend the file.")
    if any("\\" in name for name in names):
        names = [name.replace("\\", "/") for name in names]
    return names


def _sizes(images: Sequence[dict[str, Any]], source: Source) -> NDArray[np.int64]:
    try:
        return np.array([(image.get("height") or 0, image.get("width") or 0) for image in images], np.int64).reshape(
            -1, 2
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{source.path}: an image's height or width is no number ({error}). Mend the file.") from None


def _fill_boxes(
    columns: Columns,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    source: Source,
) -> None:
    fill_labels(columns, images, annotations, categories, source)
    corners = _corners(annotations, columns, source)
    with np.errstate(invalid="ignore"):  # infinity - infinity: found as a bad box later
        corners[:, 2:] += corners[:, :2]
        extent = corners[:, 2:] - corners[:, :2]
    columns.xyxy = corners
    area = np.array([annotation.get("area") for annotation in annotations], np.float64)  # None becomes nan
    columns.area = np.where(np.isnan(area), extent[:, 0] * extent[:, 1], area)
    crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    columns.ignore = np.where(crowd, IGNORE_REGION, 0).astype(np.uint8)
    ids = Counter(
        {"duplicate annotation ids": len(annotations) - len({a.get("id", i) for i, a in enumerate(annotations)})}
    )
    columns.counts += ids + Counter({"crowd regions": int(crowd.sum())})


def fill_labels(
    columns: Columns,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    source: Source,
) -> None:
    """Gives the columns class names and the image, the label and the place of each annotation.

    Raises:
        InputError: an annotation without image or category, or with one that the file does not define.
    """
    columns.class_names, label_of = labels_by_id(categories, source)
    try:
        image_ids = [annotation["image_id"] for annotation in annotations]
        category_ids = [annotation["category_id"] for annotation in annotations]
    except KeyError as error:
        bad = next(i for i, annotation in enumerate(annotations) if error.args[0] not in annotation)
        raise InputError(f"{source.path}: annotations[{bad}] has no {error.args[0]}. Add it, or remove it.") from None
    columns.place = lambda box: _place(annotations, box)
    columns.image_of = looked_up(rows_by_id(images, source), image_ids, annotations, "image_id", source)
    columns.labels = looked_up(label_of, category_ids, annotations, "category_id", source)


def _place(annotations: Sequence[dict[str, Any]], box: int) -> str:
    annotation = annotations[box]
    return f"annotation {annotation.get('id', f'number {box}')} (image {annotation['image_id']})"


def labels_by_id(categories: Sequence[dict[str, Any]], source: Source) -> tuple[list[str], dict[Any, int]]:
    """Class names in the order of their ids, and the label of each id; equal names are one class."""
    try:
        ordered = sorted(categories, key=lambda category: category["id"])
        names = list(dict.fromkeys(str(category["name"]).strip() for category in ordered))
        place = {name: label for label, name in enumerate(names)}
        return names, {category["id"]: place[str(category["name"]).strip()] for category in ordered}
    except (KeyError, TypeError):
        raise InputError(f"{source.path}: a category has no id or no name. Every category needs both.") from None


def rows_by_id(images: Sequence[dict[str, Any]], source: Source) -> dict[Any, int]:
    """Row of each image id; ids must differ."""
    row_of = {image.get("id"): row for row, image in enumerate(images)}
    if len(row_of) < len(images):
        twice = next(key for key, count in Counter(image.get("id") for image in images).items() if count > 1)
        raise InputError(f"{source.path}: image id {twice} is used by several images; ids are unique. Renumber them.")
    return row_of


def looked_up(
    table: dict[Any, int], ids: Sequence[Any], annotations: Sequence[dict[str, Any]], key: str, source: Source
) -> NDArray[np.int64]:
    """What a table says of the ids (m,) that the annotations have under `key`."""
    try:
        return np.fromiter(map(table.__getitem__, ids), np.int64, len(ids))
    except (KeyError, TypeError):
        bad = next(i for i, value in enumerate(ids) if not isinstance(value, int | str) or value not in table)
        raise InputError(
            f"{source.path}: {_place(annotations, bad)}: {key} is {ids[bad]!r}, which the file does not define. "
            "Add it to the file, or remove the annotation."
        ) from None


def _corners(annotations: Sequence[dict[str, Any]], columns: Columns, source: Source) -> NDArray[np.float64]:
    """(m, 4) x, y, width, height."""
    boxes = [annotation.get("bbox") for annotation in annotations]
    for number, box in enumerate(boxes):
        if not box:
            boxes[number] = _from_segmentation(annotations, number, columns, source)
    try:
        if set(map(len, boxes)) - {4}:  # type: ignore[arg-type]
            raise ValueError("not four numbers")
        return np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        bad = next(i for i, box in enumerate(boxes) if not _is_box(box))
        raise InputError(
            f"{source.path}: {columns.place(bad)}: bbox is {boxes[bad]!r}; it must be four numbers x, y, width, "
            "height. Mend or remove it."
        ) from None


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)


def _from_segmentation(
    annotations: Sequence[dict[str, Any]], number: int, columns: Columns, source: Source
) -> list[float]:
    segmentation = annotations[number].get("segmentation")
    columns.counts["boxes taken from segmentations"] += 1
    try:
        if isinstance(segmentation, list) and any(segmentation):
            points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in segmentation if part])
            low, high = points.min(axis=0), points.max(axis=0)
            return [*low.tolist(), *(high - low).tolist()]
        if isinstance(segmentation, dict) and {"counts", "size"} <= set(segmentation):
            counts = segmentation["counts"]
            runs = decode_counts(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
            return box_of(spans_of(runs), segmentation["size"][0])
    except (ValueError, TypeError, IndexError):
        pass  # reported below, like a missing one
    found = "an unreadable segmentation" if segmentation else "neither bbox nor segmentation"
    raise InputError(
        f"{source.path}: {columns.place(number)}: {found}; a box needs a bbox, or polygons or a mask to take it from. "
        "Add it, or remove the annotation."
    )
