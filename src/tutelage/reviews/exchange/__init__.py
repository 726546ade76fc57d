"""Pseudo-labels out to annotation tools, and what people made of them back, as verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.pseudo.verdicts import FORMAT, Verdicts, parse_verdicts, read_verdicts, write_verdicts
from tutelage.files import make_folder, read_json
from tutelage.reviews.exchange import coco, cvat, fiftyone, label_studio
from tutelage.reviews.exchange.comparing import verdicts_of
from tutelage.reviews.exchange.handing import Returned, Sheet
from tutelage.types import Annotation, InputError

SHOWN = "shown.json"


@dataclass(frozen=True, slots=True)
class Format:
    """How a tool's files are written into a folder, and one of them is read back."""

    write: Callable[[Path, Sheet], None]
    read: Callable[[Path, Sheet], Returned]
    name: str  # of the file, or folder, that is read back


_LABEL_STUDIO = Format(label_studio.write, label_studio.read, label_studio.FILE)
_CVAT = Format(cvat.write, cvat.read, cvat.FILE)
_COCO = Format(coco.write, coco.read, coco.FILE)
FORMATS: Mapping[Annotation, Mapping[str, Format]] = {
    "boxes": {
        "label-studio": _LABEL_STUDIO,
        "cvat": _CVAT,
        "coco": _COCO,
        "fiftyone": Format(fiftyone.write_boxes, fiftyone.read_boxes, fiftyone.BOXES_FILE),
    },
    "masks": {
        "label-studio": _LABEL_STUDIO,
        "cvat": _CVAT,
        "coco": _COCO,
        "fiftyone": Format(fiftyone.write_masks, fiftyone.read_masks, fiftyone.MASKS_FOLDER),
    },
}


def require_format(format: str) -> None:
    """Refuses what nothing can be exported as (`InputError`)."""
    if format not in FORMATS["boxes"]:
        raise InputError(f"--export: unknown format {format!r}; choose one of {', '.join(FORMATS['boxes'])}.")


def export_labels(folder: Path, format: str, shown: Verdicts) -> Path:
    """Writes what is handed out into `folder/FORMAT`; returns the file, or folder, that a tool takes."""
    require_format(format)
    chosen, place = FORMATS[shown.annotation][format], folder / format
    make_folder(place)
    chosen.write(place, Sheet(shown))
    write_verdicts(place / SHOWN, shown)
    return place / chosen.name


def import_labels(path: Path, folder: Path) -> Verdicts:
    """What people said, from a tool's file, or from a file of verdicts; `folder` is where labels were handed out.

    Raises:
        InputError: of no known format, malformed, nothing was handed out in this format, or nobody looked at anything.
    """
    format = detect_format(path)
    if format == FORMAT:
        return read_verdicts(path)
    beside = folder / format / SHOWN
    if not beside.is_file():
        raise InputError(
            f"--import {path}: is a file of {format}, but nothing was exported as such to {folder}. Give the --out "
            "that it was exported with."
        )
    sheet = Sheet(parse_verdicts(read_json(beside), str(beside)))
    verdicts = verdicts_of(sheet, FORMATS[sheet.shown.annotation][format].read(_readable(path), sheet), str(path))
    if not verdicts.images:
        raise InputError(f"--import {path}: no image in it was annotated. Submit at least one in the tool.")
    return verdicts


def detect_format(path: Path) -> str:
    """The format of a file or folder that a tool wrote, by its content; FORMAT for verdicts.

    Raises:
        InputError: it is missing, or of no known format.
    """
    if not path.exists():
        raise InputError(f"--import {path}: does not exist. Give the file that the tool wrote.")
    if path.is_dir():
        return "fiftyone"
    if path.suffix.lower() == ".xml":
        return "cvat"
    plain = read_json(path)
    keys = set(plain) if isinstance(plain, dict) else set()
    known = {FORMAT: plain.get("format") == FORMAT if keys else False, "label-studio": isinstance(plain, list)}
    known |= {"coco": {"images", "annotations"} <= keys, "fiftyone": "labels" in keys}
    if not any(known.values()):
        raise InputError(
            f"--import {path}: is of no known format; exports of {', '.join(FORMATS['boxes'])} and verdicts are taken. "
            "Export from the tool again."
        )
    return next(name for name, found in known.items() if found)


def _readable(path: Path) -> Path:
    """The file itself, or in a folder of FiftyOne's the one that is read."""
    names = (fiftyone.BOXES_FILE, fiftyone.MASKS_FOLDER)
    return next((path / name for name in names if path.is_dir() and (path / name).exists()), path)
