"""COCO panoptic: a json of segments, and beside it a folder with one PNG for each image.

The colors of a PNG are segment ids, R + 256 G + 256^2 B; 0 is no segment. Source: panopticapi, rgb2id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.masks import MAX_CLASSES, read_codes
from tutelage.data.readers.coco import image_columns, labels_by_id, looked_up, rows_by_id
from tutelage.data.readers.source import Columns, Source
from tutelage.types import IGNORE, InputError

NUM_IDS = 1 << 24

Mask = NDArray[np.uint8]
Size = tuple[int, int]


def read_panoptic(raw: dict[str, Any], source: Source) -> tuple[Columns, Callable[[int, Size], Mask]]:
    """Columns of a parsed panoptic json, and the function (row, (h, w)) -> (h, w) classes.

    Raises:
        InputError: unknown ids, more than 255 classes, an image without its one annotation. When drawn: a PNG that is
            missing or of another size, a segment that the json does not list, an unknown category.
    """
    images, annotations = raw["images"], raw["annotations"]
    columns = image_columns(images, source)
    columns.what = "COCO panoptic json"
    columns.class_names, label_of = labels_by_id(raw.get("categories", []), source)
    require_few(columns)
    entries = _entries_by_row(images, annotations, source)
    folder = _png_folder(source, entries)

    def draw(row: int, size: Size) -> Mask:
        entry = entries[row]
        path = folder / str(entry.get("file_name"))
        place = f"{source.path}: image {entry['image_id']}, {columns.paths[row]}"
        labels = _segment_labels(entry.get("segments_info") or [], label_of, place)
        if not path.is_file():
            raise InputError(f"{place}: its mask {path} is missing. Put the PNG files into {folder}.")
        return _segments(path, labels, size, place)

    return columns, draw


def require_few(columns: Columns) -> None:
    """Raises the error for more classes than a mask can hold."""
    if len(columns.class_names) > MAX_CLASSES:
        raise InputError(
            f"{columns.where}: {len(columns.class_names)} classes; masks have at most {MAX_CLASSES}. Merge classes."
        )


def _entries_by_row(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], source: Source
) -> list[dict[str, Any]]:
    """The panoptic annotation of each image, of which there must be one."""
    ids = [annotation.get("image_id") for annotation in annotations]
    rows = looked_up(rows_by_id(images, source), ids, annotations, "image_id", source)
    times = np.bincount(rows, minlength=len(images))
    if (times != 1).any():
        bad = int(np.flatnonzero(times != 1)[0])
        raise InputError(
            f"{source.path}: image {images[bad].get('id')}, {images[bad]['file_name']}, has {times[bad]} annotations "
            f"({(times != 1).sum()} images are so); panoptic images have one. Add it, or remove the image."
        )
    return [annotations[at] for at in np.argsort(rows)]


def _png_folder(source: Source, entries: Sequence[dict[str, Any]]) -> Path:
    """The folder given, or the one beside the json that has the first PNG, or the one where it should be."""
    if source.masks:
        return source.masks
    usual = source.path.with_suffix("")
    places = [usual, source.path.parent, source.path.parent.parent / usual.name]
    first = str(entries[0].get("file_name"))
    return next((place for place in places if (place / first).is_file()), usual)


def _segment_labels(segments: Sequence[dict[str, Any]], label_of: dict[Any, int], place: str) -> dict[int, int]:
    """Label of each segment id of an image."""
    labels = {0: IGNORE}
    for segment in segments:
        number, category = segment.get("id"), segment.get("category_id")
        if not isinstance(number, int) or not 0 < number < NUM_IDS:
            raise InputError(
                f"{place}: segment id is {number!r}; it must be from 1 to {NUM_IDS - 1}. Mend the segment."
            )
        if not isinstance(category, int | str) or category not in label_of:
            raise InputError(
                f"{place}: segment {number}: category_id is {category!r}, which the file does not define. Add it to "
                "the file, or mend the segment."
            )
        labels[number] = IGNORE if segment.get("iscrowd") else label_of[category]
    return labels


def _segments(path: Path, labels: dict[int, int], size: Size, place: str) -> Mask:
    """Classes (h, w) of a panoptic PNG."""
    colors = read_codes(path, "colors")
    if colors.shape != size:
        raise InputError(
            f"{place}: its mask {path} is {colors.shape[1]} x {colors.shape[0]}, the image {size[1]} x {size[0]}. Give "
            "the mask of this image."
        )
    table = np.zeros(NUM_IDS, np.uint16)  # untouched pages take no memory
    table[_swapped(np.array(list(labels)))] = np.array(list(labels.values())) + 1
    found = table[colors]
    if not found.all():
        unlisted = _swapped(colors[found == 0])
        ids = np.unique(unlisted)
        shown = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise InputError(
            f"{place}: its mask {path} has segments that the json does not list: {shown} "
            f"({len(unlisted) / colors.size:.2%} of the pixels). Add them to segments_info, or mend the mask."
        )
    return (found - 1).astype(np.uint8)


def _swapped(codes: NDArray[Any]) -> NDArray[Any]:
    """Segment ids from colors 0xRRGGBB, or the colors from the ids: red and blue change places."""
    return np.asarray((codes & 255) << 16 | codes & 0xFF00 | codes >> 16)
