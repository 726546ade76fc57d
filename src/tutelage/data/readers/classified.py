"""Images with one class each, from a csv: a column of paths and a column of classes.

Classes are names, or numbers that `classes.txt` beside the csv gives names to, counted from 0, one a line.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.readers.coco import image_roots
from tutelage.data.readers.source import SPLITS, Columns, Source, first_five, is_image_name, read_text
from tutelage.types import InputError

# Names of columns in any case, the first that is there counts.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "file_path", "filepath")
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "category", "fine_label", "fine_name")
SPLIT_COLUMNS = ("split", "subset")
BOX_COLUMNS = frozenset({"xmin", "x_min", "x1", "bbox"})
CLASS_FILE = "classes.txt"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a csv keeps what is wanted: places of columns."""

    image: int
    label: int
    split: int | None
    width: int  # columns of a row
    has_header: bool


def csv_sources(path: Path) -> dict[str, Source]:
    """The splits of a csv of classified images, one under "" without a split column; empty when it is something else.

    Raises:
        InputError: not a regular csv.
    """
    with path.open("rb") as file:
        head = next(csv.reader(file.read(4096).decode("utf-8-sig", "replace").splitlines()), [])
    layout = _layout(head)
    if layout is None:
        return {}
    if layout.split is None:
        return {"": Source("csv", path)}
    splits = dict.fromkeys(_split_at(path, line, row[layout.split]) for line, row in _rows(path, layout))
    return {split: Source("csv", path, split) for split in splits}


def read_classified_csv(source: Source, unlabeled: bool) -> Columns:
    """Images of a csv and their classes; of an unlabeled set the images alone.

    Raises:
        InputError: rows of another length, an image with two classes, a class that `classes.txt` does not have.
    """
    path = source.path
    layout = _layout(next(csv.reader(read_text(path).splitlines()), []))
    assert layout is not None, "such a csv is not located"
    rows = _rows(path, layout)
    if layout.split is not None:
        rows = [(line, row) for line, row in rows if _split_at(path, line, row[layout.split]) == source.split]
    classes: dict[str, tuple[int, str]] = {}  # line and class by image
    for line, row in rows:
        image, label = os.path.normpath(row[layout.image].strip().replace("\\", "/")), row[layout.label].strip()
        known = classes.setdefault(image, (line, label))
        if known[1] != label and not unlabeled:
            raise InputError(
                f"{path} line {line}: {image} is {label!r} here and {known[1]!r} on line {known[0]}; an image has one "
                "class. Remove one of the lines."
            )
    root, paths = _relative(path, list(classes))
    columns = Columns("csv of classes", source.name, paths, root, annotated=not unlabeled, unlisted=[])
    columns.counts["rows listed twice"] = len(rows) - len(classes)
    if not unlabeled:
        lines, labels = zip(*classes.values(), strict=True) if classes else ((), ())
        set_classes(columns, labels, path.parent / CLASS_FILE, lambda row: f"{path} line {lines[row]}")
    return columns


def set_classes(columns: Columns, labels: Sequence[str], file: Path, place: Callable[[int], str]) -> None:
    """Class names and the class of each image, from labels as written: names, or numbers of names.

    Args:
        columns: get `class_names`, `image_class` and `declared`.
        labels: (n,) of the images.
        file: the list of names, if it is there; otherwise names are collected from the labels.
        place: of an image in the source, for messages.

    Raises:
        InputError: a label is none of the names, nor the number of one; the names are not one a line.
    """
    columns.declared = file.is_file()
    columns.class_names = _declared_names(file) if columns.declared else _in_order(set(labels) - {""})
    number = {name: label for label, name in enumerate(columns.class_names)}
    if columns.declared and number.keys().isdisjoint(labels):
        number = {str(label): label for label in range(len(columns.class_names))}
    foreign = next((row for row, label in enumerate(labels) if label not in number), None)
    if foreign is not None:
        raise InputError(
            f"{place(foreign)}: class {labels[foreign]!r}; it must be one of {len(number)} ({first_five(number)}). "
            f"Mend it, or add it to {file}."
        )
    columns.image_class = np.array([number[label] for label in labels], np.int64)


def _declared_names(file: Path) -> list[str]:
    """One name a line: the number of a line is that of its class, so that none may be empty or repeated."""
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]
    wrong = next((line for line, name in enumerate(names) if not name or name in names[:line]), None)
    if wrong is not None:
        found = f"{names[wrong]!r} again, as on line {names.index(names[wrong]) + 1}" if names[wrong] else "empty"
        raise InputError(f"{file} line {wrong + 1}: {found}; each line must be the name of one class. Mend the line.")
    return names


def _in_order(names: set[str]) -> list[str]:
    """Sorted, by value where all are numbers."""
    return sorted(sorted(names), key=int) if all(map(str.isdecimal, names)) else sorted(names)


def _layout(head: list[str]) -> Layout | None:
    """The columns of a csv by its first row; two columns without names are images and classes."""
    if len(head) == 2 and is_image_name(head[0]):
        return Layout(0, 1, None, 2, has_header=False)
    names = [name.strip().lower() for name in head]
    image, label, split = (_place_of(wanted, names) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS))
    if image is None or label is None or BOX_COLUMNS & set(names):
        return None
    return Layout(image, label, split, len(head), has_header=True)


def _place_of(wanted: tuple[str, ...], names: list[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _rows(path: Path, layout: Layout) -> list[tuple[int, list[str]]]:
    """Line number and cells of each row; empty lines are left out."""
    reader = csv.reader(read_text(path).splitlines())
    rows = [(reader.line_num, row) for row in reader if row][layout.has_header :]
    wrong = next(((line, row) for line, row in rows if len(row) != layout.width), None)
    if wrong:
        raise InputError(
            f"{path} line {wrong[0]}: {len(wrong[1])} columns; there must be {layout.width} as on the first line. "
            "Quote cells that hold commas."
        )
    return rows


def _split_at(path: Path, line: int, written: str) -> str:
    split = SPLITS.get(written.strip().lower())
    if split is None:
        raise InputError(
            f"{path} line {line}: split {written!r}; allowed are {', '.join(SPLITS)}. Mend it, or remove the column."
        )
    return split


def _relative(path: Path, images: list[str]) -> tuple[list[Path], list[str]]:
    """Folders that the images may be relative to, and their paths below; absolute ones lie below a common folder."""
    if not any(map(os.path.isabs, images)):
        return image_roots(path), images
    absolute = [os.path.normpath(path.parent / image) for image in images]
    root = os.path.commonpath([os.path.dirname(image) for image in absolute])
    return [Path(root)], [os.path.relpath(image, root) for image in absolute]
