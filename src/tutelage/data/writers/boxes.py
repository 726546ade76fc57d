"""Boxes of many images out to files: COCO json, YOLO txt, Pascal VOC xml."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tutelage.data.writers.listing import write_coco_json
from tutelage.files import make_folder, write_text
from tutelage.types import IGNORE_BOX, IGNORE_REGION, Boxes, InputError

Record = tuple[str, tuple[int, int], Boxes]  # relative path, (height, width), boxes in pixels


def write_coco(path: Path, records: Iterable[Record], class_names: Sequence[str], with_scores: bool) -> None:
    """One json: boxes as x, y, width, height; category ids from 1; ignored regions as crowds.

    Args:
        path: the file to write.
        records: image paths and boxes.
        class_names: names by label.
        with_scores: adds `score` to the annotations.
    """
    entries = (
        (name, size, [_coco_annotation(boxes, box, with_scores) for box in range(len(boxes))])
        for name, size, boxes in records
    )
    write_coco_json(path, entries, class_names)


def _coco_annotation(boxes: Boxes, box: int, with_scores: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = boxes.xyxy[box].astype(float).tolist()
    annotation = {
        "category_id": int(boxes.labels[box]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(boxes.area[box]),
        "iscrowd": int(boxes.ignore[box] == IGNORE_REGION),
    }
    return {**annotation, "score": float(boxes.scores[box])} if with_scores else annotation


def write_yolo(folder: Path, records: Iterable[Record], class_names: Sequence[str], with_scores: bool) -> None:
    """A tree of label files under `folder/labels`, with data.yaml and classes.txt; ignored boxes are left out.

    Args:
        folder: where to write.
        records: image paths and boxes; label files take the paths with the suffix .txt.
        class_names: names by label.
        with_scores: a sixth value on each line. Such files are predictions, which no reader takes for labels.

    Raises:
        InputError: two images would share a label file.
    """
    names = {number: name for number, name in enumerate(class_names)}
    listing = {"path": ".", "train": "images", "nc": len(class_names), "names": names}

    def text(record: Record) -> str:
        _, (height, width), boxes = record
        shown = boxes.select(boxes.ignore == 0)
        center = (shown.xyxy[:, :2].astype(float) + shown.xyxy[:, 2:]) / 2 / (width, height)
        extent = (shown.xyxy[:, 2:].astype(float) - shown.xyxy[:, :2]) / (width, height)
        values = np.concatenate([center, extent, shown.scores[:, None]], axis=1)[:, : 5 if with_scores else 4]
        rows = zip(shown.labels.tolist(), values.tolist(), strict=True)
        return "".join(f"{label} {' '.join(f'{value:.9g}' for value in row)}\n" for label, row in rows)

    _write_tree(folder / "labels", records, ".txt", text)
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    write_text(folder / "data.yaml", yaml.safe_dump(listing, sort_keys=False, allow_unicode=True))


def write_voc(folder: Path, records: Iterable[Record], class_names: Sequence[str], with_scores: bool) -> None:
    """A tree of xml files under `folder/Annotations`, pixels counted from 1; ignored boxes are `difficult`.

    Args:
        folder: where to write.
        records: image paths and boxes.
        class_names: names by label.
        with_scores: adds `score` to the objects.

    Raises:
        InputError: two images would share an xml file.
    """

    def text(record: Record) -> str:
        name, (height, width), boxes = record
        root = ET.Element("annotation")
        _add(root, filename=os.path.basename(name))
        _add(ET.SubElement(root, "size"), width=int(width), height=int(height), depth=3)
        for box in range(len(boxes)):
            _add_object(root, boxes, box, class_names, with_scores)
        ET.indent(root)
        return ET.tostring(root, encoding="unicode") + "\n"

    _write_tree(folder / "Annotations", records, ".xml", text)


def _add_object(root: ET.Element, boxes: Boxes, box: int, class_names: Sequence[str], with_scores: bool) -> None:
    entry = ET.SubElement(root, "object")
    x1, y1, x2, y2 = boxes.xyxy[box].astype(float).tolist()
    difficult = int(boxes.ignore[box] in (IGNORE_BOX, IGNORE_REGION))
    _add(entry, name=class_names[int(boxes.labels[box])], difficult=difficult)
    if with_scores:
        _add(entry, score=float(boxes.scores[box]))
    _add(ET.SubElement(entry, "bndbox"), xmin=max(x1, 0.0) + 1, ymin=max(y1, 0.0) + 1, xmax=x2, ymax=y2)


def _add(parent: ET.Element, **children: object) -> None:
    for name, value in children.items():
        ET.SubElement(parent, name).text = f"{value:.9g}" if isinstance(value, float) else str(value)


def _write_tree(folder: Path, records: Iterable[Record], suffix: str, text: Callable[[Record], str]) -> None:
    for stem, record in _by_stem(records):
        path = folder / f"{stem}{suffix}"
        make_folder(path.parent)
        write_text(path, text(record))


def _by_stem(records: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    seen: dict[str, str] = {}
    for record in records:
        stem = os.path.splitext(record[0])[0].lstrip("/")
        if stem in seen:
            raise InputError(
                f"{record[0]}: would share its file with {seen[stem]}; these formats have one file for each stem. "
                "Export as COCO json."
            )
        seen[stem] = record[0]
        yield stem, record
