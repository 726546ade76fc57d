"""FiftyOne: its image detection data set (`labels.json`) or image segmentation data set (`labels/`) out and back.

Pictures stay where they are: FiftyOne takes their folder as `data_path`. Labels are named by the path of the image
without its ending. Boxes are shares of the image. A mask holds 0 without a label, k + 1 for class k, 255 ignored; it
has no room for names, so what comes back is compared pixel by pixel.

Legend: h, w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from tutelage.data.masks import encode_png, read_codes
from tutelage.data.pseudo.verdicts import JudgedImage, Label, Region
from tutelage.files import atomic, make_folder, read_json, write_json
from tutelage.reviews.exchange.handing import ID, IGNORED, Drawn, Returned, Sheet, about, corners, region, validated
from tutelage.types import IGNORE, InputError

TOOL = "FiftyOne"
BOXES_FILE, MASKS_FOLDER = "labels.json", "labels"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Detection(BaseModel):
    label: int | str
    bounding_box: tuple[Finite, Finite, Finite, Finite]  # x, y, width, height over those of the image
    attributes: dict[str, Any] = {}


class _Listing(BaseModel):
    classes: list[str] | None = None
    labels: dict[str, list[_Detection] | None]


def write_boxes(folder: Path, sheet: Sheet) -> None:
    """Writes `labels.json`.

    Raises:
        InputError: two images differ in their ending alone.
    """
    names = sheet.shown.class_names
    labels = {
        stem: [_detection(id, label, image, names) for id, label in sheet.labels(number)]
        for number, (stem, image) in enumerate(_by_stem(sheet).items())
    }
    write_json(folder / BOXES_FILE, {"classes": list(names), "labels": labels})


def _by_stem(sheet: Sheet) -> dict[str, JudgedImage]:
    """The images by their path without its ending, in order."""
    stems: dict[str, JudgedImage] = {}
    for image in sheet.shown.images:
        path = PurePosixPath(image.path)
        stem = str(path.with_suffix(""))
        if stem in stems or ".." in path.parts or path.is_absolute():
            other = f"shares its name with {stems[stem].path}" if stem in stems else "lies outside of the pool's folder"
            raise InputError(f"--export fiftyone: {image.path} {other}, which it cannot tell apart. Export as coco.")
        stems[stem] = image
    return stems


def _detection(id: str, label: Label, image: JudgedImage, names: tuple[str, ...]) -> dict[str, Any]:
    (x1, y1, x2, y2), (height, width) = corners(label), image.size
    place = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    told = {ID: id, **about(label), IGNORED: label.verdict == "ignore"}
    score = {"confidence": label.score} if label.score is not None else {}
    return {"label": names.index(label.name), "bounding_box": place, **score, "attributes": told}


def read_boxes(path: Path, sheet: Sheet) -> Returned:
    """The images of a `labels.json`.

    Raises:
        InputError: it is none, or labels are numbers without a class.
    """
    if path.is_dir():
        raise InputError(f"{path}: holds no {BOXES_FILE}; it is needed for boxes. Give the folder that has it.")
    listing: _Listing = validated(_Listing, read_json(path), str(path), TOOL)
    stems = _by_stem(sheet)
    for stem, detections in listing.labels.items():
        image = _image(stem, stems, path)
        yield image.path, [_drawn(one, image, listing.classes or [], path) for one in detections or []]


def _image(stem: str, stems: dict[str, JudgedImage], path: Path) -> JudgedImage:
    if stem not in stems:
        raise InputError(
            f"{path}: the image {stem!r} is none of the {len(stems)} that were exported last. Import what came of that "
            "export, or remove the image."
        )
    return stems[stem]


def _drawn(one: _Detection, image: JudgedImage, classes: list[str], path: Path) -> Drawn:
    if isinstance(one.label, int) and not 0 <= one.label < len(classes):
        raise InputError(f"{path}: {image.path}: the label {one.label}; `classes` has {len(classes)}. Mend either.")
    name = classes[one.label] if isinstance(one.label, int) else one.label
    x, y, wide, high = one.bounding_box
    height, width = image.size
    place = (x * width, y * height, (x + wide) * width, (y + high) * height)
    return Drawn(name, place, str(one.attributes.get(ID, "")), str(one.attributes.get(IGNORED)).lower() == "true")


def write_masks(folder: Path, sheet: Sheet) -> None:
    """Writes a PNG an image into `labels/`, and `classes.json`, the mask targets.

    Raises:
        InputError: more classes than a PNG has values, or two images differ in their ending alone.
    """
    names = sheet.shown.class_names
    if len(names) >= IGNORE - 1:
        raise InputError(f"--export fiftyone: {len(names)} classes; its masks have room for 253. Export as coco.")
    for stem, image in _by_stem(sheet).items():
        mask = np.zeros(image.size, np.uint8)
        for label in image.labels:
            mask[region(label).mask()] = IGNORE if label.verdict == "ignore" else names.index(label.name) + 1
        path = folder / MASKS_FOLDER / f"{stem}.png"
        make_folder(path.parent)
        with atomic(path) as temporary:
            temporary.write_bytes(encode_png(mask))
    write_json(folder / "classes.json", {str(at + 1): name for at, name in enumerate(names)})


def read_masks(path: Path, sheet: Sheet) -> Returned:
    """The images that have a PNG in the folder `labels/`.

    Raises:
        InputError: a mask is unreadable, of another size, of an image that was not handed out, or has unknown values.
    """
    if not path.is_dir():
        raise InputError(f"{path}: is a file; masks come back as a folder of PNGs. Give the folder.")
    stems = _by_stem(sheet)
    for file in sorted(path.rglob("*.png")):
        stem = file.relative_to(path).with_suffix("").as_posix()
        image = _image(stem, stems, path)
        mask = read_codes(file, "values")
        known = [*range(len(sheet.shown.class_names) + 1), IGNORE]
        unknown = np.setdiff1d(mask, known)
        if mask.shape != image.size or len(unknown):
            found = f"{mask.shape} pixels" if mask.shape != image.size else f"the value {unknown[0]}"
            raise InputError(
                f"{file}: found {found}; {image.size} pixels of 0 to {known[-2]} and {IGNORE} are allowed. Mend it."
            )
        yield image.path, list(_pieces(mask, sheet, sheet.places[image.path]))


def _pieces(mask: NDArray[Any], sheet: Sheet, number: int) -> Iterator[Drawn]:
    """What is left of each label that was handed out, then what is new."""
    names = sheet.shown.class_names
    free = np.ones(mask.shape, bool)
    for id, label in sheet.labels(number):
        own = region(label).mask()
        ignored = bool((mask[own] == IGNORE).all())
        left = own & (mask == (IGNORE if ignored else names.index(label.name) + 1))
        free &= ~left
        if left.any():
            yield Drawn(label.name, Region.of(left), id, ignored)
    for value in np.unique(mask[free & (mask != 0)]).tolist():
        name = names[0] if value == IGNORE else names[value - 1]  # what is ignored is so for every class
        yield Drawn(name, Region.of(free & (mask == value)), "", value == IGNORE)
