"""Annotations that are outlines: COCO polygons and run-length masks, COCO panoptic, YOLO polygons.

Each reader gives the images and classes of a source, and draws the mask of one image when asked: from the largest
annotation to the smallest, so that the smaller lies on top. Crowds take part in that order and become IGNORE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.readers.boxes import SLACK
from tutelage.data.readers.coco import (
    collector_at_rest,
    fill_labels,
    image_columns,
    kind_of,
    parse_coco,
)
from tutelage.data.readers.outlines.panoptic import Mask, Size, read_panoptic, require_few
from tutelage.data.readers.outlines.rasterizing import polygon_spans, rasterize
from tutelage.data.readers.source import Columns, Source, refuse
from tutelage.data.readers.yolo import class_names, labeled_columns, read_outlines
from tutelage.data.rle import Spans, decode_counts, spans_of, union
from tutelage.types import IGNORE, InputError

BACKGROUND = "background"
FAR = 10  # image sides outside of the image that no outline can mean


@dataclass(frozen=True)
class Rendered:
    """Images whose masks are drawn from outlines."""

    columns: Columns  # paths, roots, class names and sizes where known; no boxes
    draw: Callable[[int, Size], Mask]  # (row, (h, w)) -> (h, w) classes; an InputError names the annotation


def coco_regions(source: Source, data: DataConfig) -> Rendered:
    """The masks of a COCO json with polygons, run-length masks (compressed or not), or panoptic segments.

    `data.background` says what pixels are that no polygon covers. Annotations without an outline are an error; unless
    data.bad_boxes=error they are left out and counted.

    Raises:
        InputError: not COCO, captions, unknown ids, an annotation without outline, more than 255 classes.
    """
    with collector_at_rest():
        raw = parse_coco(source)
    annotations = raw.get("annotations", [])
    kind = kind_of(annotations)
    if kind == "panoptic":
        return Rendered(*read_panoptic(raw, source))
    if kind == "captions":
        raise refuse(source.path, "COCO captions, which hold no outlines")
    columns = image_columns(raw["images"], source)
    columns.annotated = bool(kind)
    fill_labels(columns, raw["images"], annotations, raw.get("categories", []), source)
    missing = np.array([not annotation.get("segmentation") for annotation in annotations], bool)
    _leave_out(columns, missing, "annotations have no outline", data)
    labels, uncovered = _with_background(columns, data)
    order = np.argsort(columns.image_of, kind="stable")
    firsts = np.searchsorted(columns.image_of[order], np.arange(len(columns.paths) + 1))

    def draw(row: int, size: Size) -> Mask:
        outlines = []
        for number in order[firsts[row] : firsts[row + 1]]:
            if not missing[number]:
                place = f"{source.path}: {columns.place(number)}, {columns.paths[row]}"
                spans = _spans(annotations[number]["segmentation"], size, place, data)
                outlines.append((IGNORE if annotations[number].get("iscrowd") else int(labels[number]), spans))
        return rasterize(outlines, size, uncovered)

    return Rendered(_without_boxes(columns), draw)


def yolo_regions(source: Source, data: DataConfig) -> Rendered:
    """The masks of YOLO polygons.

    Rows of boxes are an error; unless data.bad_boxes=error they are left out and counted.

    Raises:
        InputError: no label files, a row that is neither box nor polygon, rows of boxes, class lists that disagree.
    """
    columns, files = labeled_columns(source, unlabeled=False)
    found = [[(label, len(points)) for label, points in read_outlines(file)] for file in files]
    rows = np.array([pair for pairs in found for pair in pairs], np.int64).reshape(-1, 2)
    counts = [len(pairs) for pairs in found]
    lines = np.concatenate([np.arange(1, count + 1) for count in counts])
    columns.image_of = np.repeat(np.arange(len(files)), counts)
    columns.labels = rows[:, 0]
    columns.place = lambda number: f"{files[columns.image_of[number]]}: line {lines[number]}"
    columns.class_names = class_names(source, columns, files)
    _leave_out(columns, rows[:, 1] == 2, "rows are boxes", data)
    new_labels, uncovered = _with_background(columns, data)
    label_of = dict(zip(columns.labels.tolist(), new_labels.tolist(), strict=True))

    def draw(row: int, size: Size) -> Mask:
        outlines = [
            (label_of[label], _polygon(points * size[::-1], size, f"{files[row]}: line {line}", data))
            for line, (label, points) in enumerate(read_outlines(files[row]), 1)
            if len(points) > 2
        ]
        return rasterize(outlines, size, uncovered)

    return Rendered(_without_boxes(columns), draw)


def _leave_out(columns: Columns, which: NDArray[np.bool_], what: str, data: DataConfig) -> None:
    """Counts annotations that cannot be drawn, or raises the error for them."""
    if not which.any():
        return
    columns.counts[f"{what} (left out)"] = int(which.sum())
    if data.bad_boxes == "error":
        first = int(np.flatnonzero(which)[0])
        raise InputError(
            f"{columns.where}: {which.sum()} of {len(which)} {what} (first: {columns.place(first)}); segmentation "
            "needs polygons or run-length masks. Add them, or set data.bad_boxes=drop, which leaves them out."
        )


def _with_background(columns: Columns, data: DataConfig) -> tuple[NDArray[np.int64], int]:
    """Labels (m,) of the annotations and of uncovered pixels, once the class of that name is there and is the first."""
    names = columns.class_names
    if data.background == "class":
        columns.class_names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    require_few(columns)
    place = {name: label for label, name in enumerate(columns.class_names)}
    shown = np.array([place[name] for name in names], np.int64)
    return shown[columns.labels], 0 if data.background == "class" else IGNORE


def _without_boxes(columns: Columns) -> Columns:
    none = np.zeros(0, np.int64)
    return replace(columns, image_of=none, labels=none, place=str)


def _spans(segmentation: Any, size: Size, place: str, data: DataConfig) -> Spans:
    """Spans of one annotation's polygons or run-length mask."""
    if isinstance(segmentation, dict):
        return _decoded(segmentation, size, place)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise InputError(
            f"{place}: segmentation is neither a list of polygons nor a run-length mask. Write it as "
            "[[x1, y1, x2, y2, ...], ...]."
        )
    for part in segmentation:
        if len(part) < 6 or len(part) % 2:
            raise InputError(
                f"{place}: a polygon has {len(part)} coordinates; it must be an even number, at least 6. Mend or "
                "remove it."
            )
    try:
        polygons = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: a coordinate of a polygon is no number ({error}). Mend it.") from None
    return union([_polygon(points, size, place, data) for points in polygons])


def _polygon(points: NDArray[np.float64], size: Size, place: str, data: DataConfig) -> Spans:
    """Spans of a polygon that lies where it should."""
    extent = np.array(size[::-1])
    outside = float(np.max([-points, points - extent]))
    if not np.isfinite(outside):
        raise InputError(f"{place}: a polygon has infinite coordinates; they must be finite. Mend or remove it.")
    if outside > SLACK and (data.bad_boxes == "error" or outside > FAR * extent.max()):
        raise InputError(
            f"{place}: a polygon reaches {outside:.1f} pixels out of its image of {extent[0]} x {extent[1]}. Mend it, "
            "or set data.bad_boxes=clip: what is outside is cut off."
        )
    return polygon_spans(points, size)


def _decoded(mask: dict[str, Any], size: Size, place: str) -> Spans:
    if list(mask.get("size", [])) != list(size):
        raise InputError(
            f"{place}: a run-length mask is of size {mask.get('size')} (height, width), the image "
            f"[{size[0]}, {size[1]}]. Give the mask of this image."
        )
    try:
        counts = mask["counts"]
        counts = decode_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: a run-length mask cannot be read ({error}). Write it again.") from None
    if counts.ndim != 1 or counts.sum() != size[0] * size[1] or counts.min() < 0:
        raise InputError(
            f"{place}: the runs of a run-length mask cover {counts.sum()} pixels; the image has {size[0] * size[1]}. "
            "Write it again."
        )
    return spans_of(counts)
