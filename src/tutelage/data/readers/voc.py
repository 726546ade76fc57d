"""Pascal VOC xml: one file an image, in a folder of their own, beside the images, or in the VOCdevkit layout.

VOC counts pixels from 1 and includes the last one (VOC devkit documentation, sec. 3.1.2): xmin..xmax becomes the edges
xmin - 1 .. xmax. Several tools write edges counted from 0 instead; a source in which any xmin or ymin is below 1 is
one of those and is taken as it stands. `difficult` becomes an ignored box.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tutelage.data.readers.source import Columns, Source, files_below, images_by_stem, read_file, read_text, refuse
from tutelage.types import IGNORE_BOX, InputError

ROOTS = {"annotation": "Pascal VOC xml", "annotations": "CVAT xml", "View": "a Label Studio labeling configuration"}


@dataclass
class _Boxes:
    """Objects of all files, growing."""

    image_of: list[int] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def read_voc(source: Source, unlabeled: bool) -> Columns:
    """Columns of a folder of VOC xml files (or of one file), of the listed ones where the source has a list."""
    folder = xml_folder(source.path)
    files = [source.path.name] if source.path.is_file() else files_below(folder, ".xml")
    roots = _image_roots(folder, source)
    pictures = next((found for root in roots if (found := _pictures(root, files))), {})
    columns = Columns("Pascal VOC xml", source.name, [], roots, declared=False)
    if source.listed:
        files, columns.unlisted = _listed(source.listed, files, pictures)
    boxes, sizes = _Boxes(), []
    for row, file in enumerate(files):
        name, size = _read_file(folder / file, row, boxes)
        stem = os.path.splitext(file)[0]
        columns.paths.append(pictures.get(stem, os.path.join(os.path.dirname(file), name or f"{stem}.jpg")))
        sizes.append(size)
    columns.sizes = np.array(sizes, np.int64).reshape(-1, 2)
    _fill(columns, boxes)
    return columns


def xml_folder(path: Path) -> Path:
    """The folder that holds the xml files of a VOC source."""
    if path.is_file():
        return path.parent
    return path / "Annotations" if (path / "Annotations").is_dir() else path


def parse_xml(path: Path) -> ET.Element:
    """The root element; document types and entities are refused, so that no file can grow while it is parsed.

    Raises:
        InputError: not well-formed, or with a document type.
    """
    raw = read_file(path)
    if re.search(rb"<!(DOCTYPE|ENTITY)", raw.replace(b"\0", b""), re.IGNORECASE):
        raise InputError(f"{path}: found a document type or an entity; annotation files have none. Remove it.")
    try:
        return ET.fromstring(raw)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not well-formed XML ({error}). Restore the file, or export it again.") from None


def foreign_xml(root: ET.Element) -> str:
    """What an xml file is when it is not VOC; empty when it is."""
    if root.tag != "annotation":
        return ROOTS.get(root.tag, f"XML with the root element <{root.tag}>")
    first = root.find("object")
    return (
        "LabelMe xml"
        if first is not None and first.find("bndbox") is None and first.find("polygon") is not None
        else ""
    )


def _image_roots(folder: Path, source: Source) -> list[Path]:
    base = folder.parent
    return [
        base / "JPEGImages",
        folder,
        base / "images",
        folder / "images",
        folder / "JPEGImages",
        *([base / "images" / source.split] if source.split else []),
    ]


def _pictures(root: Path, files: list[str]) -> dict[str, str]:
    """Pictures below `root` by stem, if any of the first ten files has one there."""
    if not root.is_dir():
        return {}
    found = images_by_stem(root)
    return found if any(os.path.splitext(file)[0] in found for file in files[:10]) else {}


def _listed(path: Path, files: list[str], pictures: dict[str, str]) -> tuple[list[str], list[str]]:
    """The annotation files that a VOC list names, and its images without one."""
    lines = [line.split("#")[0].split() for line in read_text(path).splitlines()]
    stems = [words[0] for words in lines if words]
    known = {os.path.splitext(file)[0]: file for file in files}
    absent = [stem for stem in stems if stem not in known and stem not in pictures]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} of {len(stems)} entries have neither annotation nor image (first: {absent[0]!r}). "
            "Add the files, or remove the entries."
        )
    return [known[stem] for stem in stems if stem in known], [pictures[stem] for stem in stems if stem not in known]


def _read_file(path: Path, row: int, boxes: _Boxes) -> tuple[str, tuple[int, int]]:
    """Adds the objects of one file; returns the image's name and (height, width)."""
    root = parse_xml(path)
    if foreign := foreign_xml(root):
        raise refuse(path, foreign)
    for number, entry in enumerate(root.iterfind("object"), 1):
        place = f"{path.name}: object {number}"
        box, name = entry.find("bndbox"), (entry.findtext("name") or "").strip()
        if box is None or not name:
            lacks = "no bndbox" if box is None else "no name"
            raise InputError(f"{path}: object {number} has {lacks}; it needs both. Add it, or remove the object.")
        boxes.corners.append([_number(box.findtext(side), path, number, side) for side in SIDES])
        boxes.names.append(name)
        boxes.difficult.append((entry.findtext("difficult") or "0").strip() == "1")
        boxes.places.append(place)
        boxes.image_of.append(row)
    size = [_number(root.findtext(f"size/{side}") or "0", path, 0, side) for side in ("height", "width")]
    return (root.findtext("filename") or "").strip("\r\n\t"), (int(size[0]), int(size[1]))


SIDES = ("xmin", "ymin", "xmax", "ymax")


def _number(text: str | None, path: Path, number: int, side: str) -> float:
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        where = f"object {number}" if number else "size"
        raise InputError(f"{path}: {where}: {side} is {text!r}; it must be a number. Mend or remove it.") from None


def _fill(columns: Columns, boxes: _Boxes) -> None:
    columns.class_names = sorted(set(boxes.names))
    place = {name: label for label, name in enumerate(columns.class_names)}
    columns.labels = np.array([place[name] for name in boxes.names], np.int64)
    columns.image_of = np.array(boxes.image_of, np.int64)
    columns.xyxy = np.array(boxes.corners, np.float64).reshape(-1, 4)
    if len(columns.xyxy) and columns.xyxy[:, :2].min() >= 1:
        columns.xyxy[:, :2] -= 1
    elif len(columns.xyxy):
        columns.counts["VOC boxes counted from 0 (a box begins below 1)"] = len(columns.xyxy)
    difficult = np.array(boxes.difficult, bool)
    columns.ignore = np.where(difficult, IGNORE_BOX, 0).astype(np.uint8)
    columns.counts += Counter({"difficult boxes": int(difficult.sum())})
    columns.place = boxes.places.__getitem__
