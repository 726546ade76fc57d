"""Label Studio: tasks with predictions out, annotated tasks back (its JSON format, not JSON-MIN).

Boxes are percent of the image; masks are brush strokes in its own coding. Ignored labels have the choice `ignore`.
Images are files of its local storage: `/data/local-files/?d=` and the path below the folder that it serves.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import BaseModel, Field

from tutelage.data.pseudo.verdicts import Corners, JudgedImage, Label, Region
from tutelage.files import read_json, write_json, write_text
from tutelage.reviews.exchange.brush import decode_brush, encode_brush
from tutelage.reviews.exchange.handing import (
    IGNORED,
    Drawn,
    Returned,
    Sheet,
    about,
    corners,
    region,
    upright,
    validated,
)
from tutelage.types import Annotation, InputError

TOOL = "Label Studio"
FILE = "tasks.json"
CONTROLS: dict[Annotation, tuple[str, str]] = {
    "boxes": ("RectangleLabels", "rectanglelabels"),
    "masks": ("BrushLabels", "brushlabels"),
}
"""Element of the labeling configuration, and the type of its results."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Value(BaseModel):
    x: Finite = 0
    y: Finite = 0
    width: Finite = 0
    height: Finite = 0
    rotation: Finite = 0  # degrees, clockwise around the upper left corner
    rle: list[Byte] = []
    rectanglelabels: list[str] = []
    brushlabels: list[str] = []
    choices: list[str] = []


class _Result(BaseModel):
    id: str = ""
    type: str = ""
    image_rotation: Finite = 0
    value: _Value = _Value()


class _Work(BaseModel):
    result: list[_Result] = []
    was_cancelled: bool = False


class _Task(BaseModel):
    data: dict[str, Any]
    annotations: list[_Work] = []


def write(folder: Path, sheet: Sheet) -> None:
    """Writes the tasks, and `labels.xml`, the labeling configuration that they need."""
    shown = sheet.shown
    tasks = [_task(sheet, number, shown.annotation) for number in range(len(shown.images))]
    write_json(folder / FILE, tasks)
    write_text(folder / "labels.xml", _configuration(shown.class_names, shown.annotation))


def _task(sheet: Sheet, number: int, annotation: Annotation) -> dict[str, Any]:
    image = sheet.shown.images[number]
    results = [
        result for id, label in sheet.labels(number) for result in _results(id, label, image, CONTROLS[annotation][1])
    ]
    scores = [label.score for label in image.labels if label.score is not None]
    prediction = {"model_version": "tutelage", "score": min(scores, default=1.0), "result": results}
    url = "/data/local-files/?d=" + quote(image.path)
    return {"data": {"image": url, "path": image.path}, "predictions": [prediction]}


def _results(id: str, label: Label, image: JudgedImage, type: str) -> list[dict[str, Any]]:
    """One region, and its choice where it is ignored."""
    height, width = image.size
    place = _percent(corners(label), image.size) if label.xyxy else _strokes(region(label))
    whole = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0, "id": id}
    drawn = {**whole, "from_name": "label", "type": type, "value": {**place, type: [label.name]}, "meta": about(label)}
    choice = {**whole, "from_name": IGNORED, "type": "choices", "value": {**place, "choices": [IGNORED]}}
    scored = {**drawn, "score": label.score} if label.score is not None else drawn
    return [scored, choice] if label.verdict == "ignore" else [scored]


def _percent(xyxy: Corners, size: tuple[int, int]) -> dict[str, float]:
    (x1, y1, x2, y2), (height, width) = xyxy, size
    box = {"x": 100 * x1 / width, "y": 100 * y1 / height}
    return {**box, "width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height, "rotation": 0}


def _strokes(drawn: Region) -> dict[str, Any]:
    return {"format": "rle", "rle": encode_brush(drawn.mask())}


def _configuration(class_names: tuple[str, ...], annotation: Annotation) -> str:
    root = ET.Element("View")
    ET.SubElement(root, "Image", name="image", value="$image")
    labels = ET.SubElement(root, CONTROLS[annotation][0], name="label", toName="image")
    for name in class_names:
        ET.SubElement(labels, "Label", value=name)
    told = {"name": IGNORED, "toName": "image", "perRegion": "true", "visibleWhen": "region-selected"}
    choices = ET.SubElement(root, "Choices", told)
    ET.SubElement(choices, "Choice", value=IGNORED)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def read(path: Path, sheet: Sheet) -> Returned:
    """The tasks that were annotated; of several annotations the last one that was not cancelled counts.

    Raises:
        InputError: it is no export of Label Studio's, or its strokes are damaged.
    """
    tasks: list[_Task] = validated(list[_Task], read_json(path), str(path), TOOL)
    for task in tasks:
        done = [work for work in task.annotations if not work.was_cancelled]
        if done:
            image = sheet.image(_path(task), str(path))
            yield image.path, _drawn(done[-1].result, image, sheet.shown.annotation, str(path))


def _path(task: _Task) -> str:
    if "path" in task.data:
        return str(task.data["path"])
    return parse_qs(urlsplit(str(task.data.get("image", ""))).query).get("d", [""])[0]


def _drawn(results: list[_Result], image: JudgedImage, annotation: Annotation, source: str) -> list[Drawn]:
    type = CONTROLS[annotation][1]
    ignored = {result.id for result in results if IGNORED in result.value.choices}
    drawn = []
    for result in results:
        if result.type == type:
            names: list[str] = getattr(result.value, type)
            if len(names) != 1 or result.image_rotation:
                what = f"{len(names)} classes" if len(names) != 1 else "turned image"
                raise InputError(f"{source}: {image.path}: a label with {what}; one class on an upright image, please.")
            place = _region(result.value, image, source) if result.value.rle else _corners(result.value, image.size)
            drawn.append(Drawn(names[0], place, result.id, result.id in ignored))
    return drawn


def _region(value: _Value, image: JudgedImage, source: str) -> Region:
    try:
        return Region.of(decode_brush(value.rle, image.size))
    except ValueError as error:
        raise InputError(f"{source}: {image.path}: {error}. Export it from {TOOL} again.") from None


def _corners(value: _Value, size: tuple[int, int]) -> Corners:
    """Pixels of a box; of a turned one the upright box around it."""
    height, width = size
    left, top = value.x * width / 100, value.y * height / 100
    right, bottom = (value.x + value.width) * width / 100, (value.y + value.height) * height / 100
    return upright((left, top, right, bottom), value.rotation, (left, top))
