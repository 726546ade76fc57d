"""CVAT for images 1.1: one XML file out and back; masks are runs along the rows of their box.

`labels.json` is what CVAT's constructor takes: without it the attributes, by which labels are recognized, are lost.
Ignored labels have the attribute `ignore`.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.pseudo.verdicts import Corners, JudgedImage, Label, Region
from tutelage.data.readers.voc import parse_xml
from tutelage.files import write_text
from tutelage.reviews.exchange.handing import ID, IGNORED, Drawn, Returned, Sheet, about, corners, region, upright
from tutelage.types import InputError

TOOL = "CVAT"
FILE = "annotations.xml"
SIDES = ("xtl", "ytl", "xbr", "ybr")
TEXTS = (ID, "score", "teacher", "round")  # attributes
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, sec. 2.2


def write(folder: Path, sheet: Sheet) -> None:
    """Writes `annotations.xml` and `labels.json`.

    Raises:
        InputError: a name holds characters that XML has not.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for name in (*sheet.shown.class_names, *sheet.places):
        if UNWRITABLE.search(name):
            raise InputError(f"--export cvat: the name {name!r} holds what XML cannot. Rename it, or export as coco.")
    for number, image in enumerate(sheet.shown.images):
        height, width = image.size
        sized = {"id": str(number), "name": image.path, "width": str(width), "height": str(height)}
        entry = ET.SubElement(root, "image", sized)
        for id, label in sheet.labels(number):
            _add(entry, id, label)
    ET.indent(root)
    write_text(folder / FILE, ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n")
    write_text(folder / "labels.json", json.dumps(_constructor(sheet.shown.class_names), indent=1) + "\n")


def _add(entry: ET.Element, id: str, label: Label) -> None:
    common = {"label": label.name, "source": "auto", "occluded": "0", "z_order": "0"}
    if label.xyxy:
        place = {side: repr(value) for side, value in zip(SIDES, corners(label), strict=True)}
        shape = ET.SubElement(entry, "box", common | place)
    else:
        shape = ET.SubElement(entry, "mask", common | _runs(region(label).mask()))
    for name, value in {ID: id, **about(label), IGNORED: json.dumps(label.verdict == "ignore")}.items():
        ET.SubElement(shape, "attribute", name=name).text = value


def _runs(mask: NDArray[np.bool_]) -> dict[str, str]:
    """The box of a mask with pixels, and inside of it runs along the rows, the first of pixels outside of it."""
    rows, columns = mask.nonzero()
    top, left = int(rows.min()), int(columns.min())
    inside = mask[top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    edges = np.flatnonzero(np.diff(inside.ravel(), prepend=False))
    runs = np.diff(np.concatenate([[0], edges, [inside.size]])).tolist()
    box = {"left": left, "top": top, "width": inside.shape[1], "height": inside.shape[0]}
    return {"rle": ", ".join(map(str, runs))} | {name: str(value) for name, value in box.items()}


def _constructor(class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    texts = [
        {"name": name, "mutable": False, "input_type": "text", "default_value": "", "values": []} for name in TEXTS
    ]
    ignore = {
        "name": IGNORED,
        "mutable": False,
        "input_type": "checkbox",
        "default_value": "false",
        "values": ["false"],
    }
    return [{"name": name, "attributes": [*texts, ignore]} for name in class_names]


def read(path: Path, sheet: Sheet) -> Returned:
    """The images of an export "CVAT for images 1.1".

    Raises:
        InputError: it is none, or a value is malformed.
    """
    root = parse_xml(path)
    if root.tag != "annotations":
        raise InputError(f"{path}: is not what {TOOL} writes (root element <{root.tag}>). Export CVAT for images 1.1.")
    for entry in root.iterfind("image"):
        image = sheet.image(entry.get("name", ""), str(path))
        yield image.path, list(_drawn(entry, image, path))


def _drawn(entry: ET.Element, image: JudgedImage, path: Path) -> Iterator[Drawn]:
    for shape in entry:
        told = {str(one.get("name")): (one.text or "").strip() for one in shape.iterfind("attribute")}
        ignored = told.get(IGNORED, "").lower() == "true"
        name, where = shape.get("label", ""), f"{path}: {image.path}: a {shape.tag} of {shape.get('label')}"
        if shape.tag == "box":
            yield Drawn(name, _box(shape, where), told.get(ID, ""), ignored)
        elif shape.tag == "mask":
            yield Drawn(name, Region.of(_mask(shape, image.size, where)), told.get(ID, ""), ignored)
        elif shape.tag != "tag":
            raise InputError(f"{where}: boxes and masks are taken. Draw it as one of them.")


def _box(shape: ET.Element, where: str) -> Corners:
    """Pixels of a box; of one that is turned around its middle, the upright box around it."""
    x1, y1, x2, y2 = (_number(shape, side, where) for side in SIDES)
    degrees = _number(shape, "rotation", where) if "rotation" in shape.attrib else 0.0
    return upright((x1, y1, x2, y2), degrees, ((x1 + x2) / 2, (y1 + y2) / 2))


def _mask(shape: ET.Element, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """(h, w) of the image."""
    left, top, wide, high = (int(_number(shape, side, where)) for side in ("left", "top", "width", "height"))
    try:
        runs = np.array([int(run) for run in shape.get("rle", "").split(",")], np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{where}: its rle is {shape.get('rle', '')[:40]!r}; numbers are needed. Mend it.") from None
    fits = 0 <= left and 0 <= top and 0 < wide <= size[1] - left and 0 < high <= size[0] - top
    if not fits or (runs < 0).any() or runs.sum() != wide * high:
        raise InputError(f"{where}: its runs do not fill its box, or it lies outside of the image. Mend it.")
    mask = np.zeros(size, bool)
    mask[top : top + high, left : left + wide] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(high, wide)
    return mask


def _number(shape: ET.Element, side: str, where: str) -> float:
    try:
        value = float(shape.get(side, ""))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{where}: {side} is {shape.get(side)!r}; a number is needed. Mend it.")
    return value
