"""COCO json with scores out and back; masks as compressed runs, polygons are taken too.

Where a label came from, and whether it is ignored, stands in `attributes`, where CVAT and others keep it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from tutelage.data.pseudo.verdicts import JudgedImage, Label, Region
from tutelage.data.readers.outlines.rasterizing import polygon_spans
from tutelage.data.rle import box_of, counts_of, decode_counts, encode_counts, num_pixels, spans_of, union
from tutelage.files import read_json, write_json
from tutelage.reviews.exchange.handing import ID, IGNORED, Drawn, Returned, Sheet, about, corners, region, validated
from tutelage.types import InputError

TOOL = "a tool as COCO json"
FILE = "annotations.json"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Image(BaseModel):
    id: int
    file_name: str


class _Category(BaseModel):
    id: int
    name: str


class _Runs(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


class _Annotation(BaseModel):
    image_id: int
    category_id: int
    bbox: tuple[Finite, Finite, Finite, Finite] | None = None
    segmentation: _Runs | list[list[Finite]] = []
    attributes: dict[str, Any] = {}


class _Listing(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def write(folder: Path, sheet: Sheet) -> None:
    """Writes one json; ids count from 1."""
    names = sheet.shown.class_names
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(sheet.shown.images):
        height, width = image.size
        images.append({"id": number + 1, "file_name": image.path, "height": height, "width": width})
        for id, label in sheet.labels(number):
            head = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": names.index(label.name) + 1}
            annotations.append({**head, **_annotation(id, label)})
    categories = [{"id": at + 1, "name": name} for at, name in enumerate(names)]
    write_json(folder / FILE, {"categories": categories, "annotations": annotations, "images": images})


def _annotation(id: str, label: Label) -> dict[str, Any]:
    if label.xyxy:
        x1, y1, x2, y2 = corners(label)
        place: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    else:
        drawn = region(label)
        spans = spans_of(decode_counts(drawn.counts))
        place = {"bbox": box_of(spans, drawn.size[0]), "area": num_pixels(spans)}
        place["segmentation"] = {"size": list(drawn.size), "counts": drawn.counts}
    told = {ID: id, **about(label), IGNORED: label.verdict == "ignore"}
    score = {"score": label.score} if label.score is not None else {}
    return {**place, "iscrowd": 0, "attributes": told, **score}


def read(path: Path, sheet: Sheet) -> Returned:
    """The images of a COCO json.

    Raises:
        InputError: it is none, or annotations name images, categories or runs that cannot be.
    """
    listing: _Listing = validated(_Listing, read_json(path), str(path), TOOL)
    names = {category.id: category.name for category in listing.categories}
    of_image = defaultdict(list)
    for annotation in listing.annotations:
        if annotation.category_id not in names:
            raise InputError(f"{path}: an annotation of the unknown category {annotation.category_id}. Add it there.")
        of_image[annotation.image_id].append(annotation)
    if unknown := set(of_image) - {image.id for image in listing.images}:
        raise InputError(f"{path}: annotations of the unknown image {min(unknown)}. Add it to `images`.")
    for entry in listing.images:
        image = sheet.image(entry.file_name, str(path))
        drawn = [_drawn(one, names[one.category_id], image, sheet, str(path)) for one in of_image[entry.id]]
        yield image.path, drawn


def _drawn(one: _Annotation, name: str, image: JudgedImage, sheet: Sheet, source: str) -> Drawn:
    ignored = str(one.attributes.get(IGNORED, False)).lower() == "true"
    id = str(one.attributes.get(ID, ""))
    if sheet.shown.annotation == "masks":
        return Drawn(name, _region(one, image, source), id, ignored)
    if one.bbox is None:
        raise InputError(f"{source}: {image.path}: an annotation of {name} without bbox. Add it, or remove it.")
    x, y, width, height = one.bbox
    return Drawn(name, (x, y, x + width, y + height), id, ignored)


def _region(one: _Annotation, image: JudgedImage, source: str) -> Region:
    height, width = image.size
    try:
        if isinstance(one.segmentation, list):
            corners = [np.array(line).reshape(-1, 2) for line in one.segmentation]
            spans = union([polygon_spans(points, image.size) for points in corners if len(points) > 2])
            return Region(size=image.size, counts=encode_counts(counts_of(spans, height * width)))
        counts = one.segmentation.counts
        text = counts if isinstance(counts, str) else encode_counts(np.array(counts, np.int64))
        return Region(size=one.segmentation.size, counts=text)
    except (ValueError, OverflowError) as error:
        reason = str(error).splitlines()[-1]
        raise InputError(f"{source}: {image.path}: a malformed segmentation ({reason}). Draw it again.") from None
