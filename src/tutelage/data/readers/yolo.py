"""YOLO txt: one label file an image, `class cx cy w h` or `class x1 y1 x2 y2 ...` in fractions of the image.

Label files lie in a parallel tree (images/ and labels/) or beside the images. Class names come from data.yaml, or from
classes.txt or *.names; without either, the class numbers are the names. A polygon becomes the box around it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tutelage.data.readers.source import (
    SPLITS,
    Columns,
    Source,
    files_below,
    images_by_stem,
    is_image_name,
    read_text,
    refuse,
    split_named,
)
from tutelage.types import InputError

TREES = {"images": "labels", "Images": "Annotations", "JPEGImages": "labels", "img": "labels"}  # images -> labels
NAME_FILES = ("classes.txt", "obj.names", "data.names", "labels.txt")
Item = tuple[str, Path | None]  # absolute image path, its label file


def read_yolo(source: Source, unlabeled: bool) -> Columns:
    """Columns of YOLO labels."""
    columns, files = labeled_columns(source, unlabeled)
    columns.relative = True
    tables = [read_labels(file) for file in files]
    counts = [len(table) for table in tables]
    table = np.concatenate([np.zeros((0, 5)), *tables])
    columns.image_of = np.repeat(np.arange(len(tables)), counts)
    columns.labels, columns.xyxy = table[:, 0].astype(np.int64), table[:, 1:]
    firsts = np.cumsum(counts) - counts
    columns.place = lambda box: f"{files[columns.image_of[box]]}: box {box - firsts[columns.image_of[box]] + 1}"
    columns.class_names = class_names(source, columns, files)
    _count_doubles(columns)
    return columns


def labeled_columns(source: Source, unlabeled: bool) -> tuple[Columns, list[Path]]:
    """Columns of the images that have a label file, nothing read yet, and these files.

    Raises:
        InputError: no images; no label files, unless `unlabeled`.
    """
    items = [
        item for place in source.images for item in (_from_list(place) if place.is_file() else _from_folder(place))
    ]
    if not items:
        raise InputError(
            f"{source.path}: no images and no labels in {', '.join(map(str, source.images))}. Check the paths."
        )
    labeled = [(image, label) for image, label in items if label]
    if not labeled and not unlabeled:
        raise InputError(
            f"{source.path}: {len(items)} images and not one label file (looked in {label_folder(source.images[0])}). "
            "Put the labels into labels/ beside images/, or beside each image."
        )
    folders = [place if place.is_dir() else place.parent for place in source.images]
    root = Path(
        os.path.commonpath([os.path.dirname(image) for image, _ in items] + [str(f) for f in folders if f.is_dir()])
    )
    columns = Columns("YOLO txt", source.name, [os.path.relpath(image, root) for image, _ in labeled], [root])
    columns.unlisted = [os.path.relpath(image, root) for image, label in items if label is None]
    return columns, [label for _, label in labeled]


def sources_of_yaml(path: Path) -> dict[str, Source]:
    """Splits of a data.yaml; empty when it is none."""
    try:
        raw = yaml.safe_load(read_text(path))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Mend the file.") from None
    if not isinstance(raw, dict) or not ("names" in raw or "nc" in raw) or not set(raw) & set(SPLITS):
        return {}
    names = _yaml_names(raw.get("names"), path)
    bases = [path.parent / str(raw.get("path") or "."), path.parent]
    found = {}
    for key, split in SPLITS.items():
        entries = raw.get(key)
        if not entries:
            continue
        places = tuple(_resolve(str(entry), bases) for entry in (entries if isinstance(entries, list) else [entries]))
        found[split] = Source("yolo", path, split, places, class_names=names)
    return found


def sources_of_folder(folder: Path) -> dict[str, Source]:
    """Splits of a folder with YOLO labels and no data.yaml; empty when it is none."""
    data = sorted(folder.glob("*.data"))
    names = tuple(_names_beside(folder))
    if data:
        return _sources_of_darknet(folder, data[0], names)
    for name in ("labels", "Labels", "Annotations", "annotations", "obj_train_data", "."):
        labels = folder / name
        if labels.is_dir() and looks_like_yolo(labels):
            break
    else:
        return {}
    splits = {split_named(entry.name): entry for entry in sorted(labels.iterdir()) if entry.is_dir()}
    splits.pop("", None)
    if not splits:
        return {"": Source("yolo", folder, "", (_image_folder(labels),), class_names=names)}
    return {
        split: Source("yolo", folder, split, (_image_folder(place),), class_names=names)
        for split, place in splits.items()
    }


def looks_like_yolo(folder: Path) -> bool:
    """Whether the first label file of a tree that is not empty has lines of five or more numbers."""
    names = label_files(folder)[:200]
    for name in names:
        words = next((line.split() for line in read_text(folder / name).splitlines() if line.strip()), [])
        if len(words) >= 5 and all(_is_number(word) for word in words):
            return True
        if words and os.path.dirname(name):
            return False
    return bool(names) and all(os.path.getsize(folder / name) == 0 for name in names)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _holds_numbers(path: Path) -> bool:
    """Whether a text file begins with a number or is empty: what is no label file (README.txt) does neither."""
    words = read_text(path).split(None, 1)
    return not words or _is_number(words[0])


def read_labels(path: Path) -> NDArray[np.float64]:
    """(m, 5) class, x1, y1, x2, y2 of one label file.

    Raises:
        InputError: naming the line, for anything that is no box and no polygon.
    """
    rows = _split_rows(path)
    if all(len(row) == 5 for row in rows):
        table = _numbers(rows, path).reshape(-1, 5)
        center, half = table[:, 1:3], table[:, 3:5] / 2
        table = np.concatenate([table[:, :1], center - half, center + half], axis=1)
    else:
        outlines = _outlines(rows, path)
        table = np.array([[values[0], *_hull(values[1:])] for values in outlines]).reshape(-1, 5)
    _require_whole(table[:, 0], rows, path)
    return table


def read_outlines(path: Path) -> list[tuple[int, NDArray[np.float64]]]:
    """Class and points (n, 2) of each line of one label file; a box has two: its center and its extent.

    Raises:
        InputError: see `read_labels`.
    """
    rows = _split_rows(path)
    outlines = _outlines(rows, path)
    _require_whole(np.array([values[0] for values in outlines]), rows, path)
    return [(int(values[0]), values[1:].reshape(-1, 2)) for values in outlines]


def _split_rows(path: Path) -> list[list[str]]:
    return [words for line in read_text(path).splitlines() if (words := line.split())]


def _numbers(rows: Sequence[Sequence[str]], path: Path) -> NDArray[np.float64]:
    try:
        return np.array(list(chain.from_iterable(rows)), np.float64)
    except ValueError as error:
        raise InputError(f"{path}: a value is no number ({error}); lines are 'class cx cy w h'. Mend it.") from None


def _outlines(rows: Sequence[Sequence[str]], path: Path) -> list[NDArray[np.float64]]:
    """The values of each row, whose number must fit a box or a polygon."""
    lengths = [len(row) for row in rows]
    for number, length in enumerate(lengths, 1):
        if length == 6:
            raise refuse(path, f"six values in line {number}: predictions with a score, not ground truth")
        if length < 5 or length % 2 == 0:
            raise InputError(
                f"{path}: line {number} has {length} values; a box has 5, a polygon 1 + 2 for each point. Mend it."
            )
    return np.split(_numbers(rows, path), np.cumsum(lengths)[:-1]) if rows else []


def _hull(values: NDArray[np.float64]) -> list[float]:
    """Corners x1, y1, x2, y2 around a polygon x, y, x, y ..., or of a box cx, cy, width, height."""
    points = values.reshape(-1, 2)
    if len(points) == 2:
        return [*(points[0] - points[1] / 2), *(points[0] + points[1] / 2)]
    return [*points.min(axis=0), *points.max(axis=0)]


def _require_whole(classes: NDArray[np.float64], rows: Sequence[Sequence[str]], path: Path) -> None:
    bad = np.flatnonzero((classes < 0) | (classes != np.floor(classes)))
    if len(bad):
        raise InputError(
            f"{path}: line {bad[0] + 1}: class is {rows[bad[0]][0]}; it must be a whole number from 0. Mend it."
        )


def label_files(folder: Path) -> list[str]:
    """Relative paths of the label files in a tree."""
    return [name for name in files_below(folder, ".txt") if os.path.basename(name) not in NAME_FILES]


def label_folder(images: Path) -> Path:
    """The folder of labels that belongs to a folder of images: the parallel tree, or the same folder."""
    return _swapped(images, TREES)


def _image_folder(labels: Path) -> Path:
    back = {labels_name: images_name for images_name, labels_name in reversed(TREES.items())}
    return _swapped(labels, {**back, "Labels": "Images"})


def _swapped(folder: Path, names: dict[str, str]) -> Path:
    parts = list(folder.parts)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in names:
            other = Path(*parts[:at], names[parts[at]], *parts[at + 1 :])
            return other if other.is_dir() or not folder.is_dir() else folder
    return folder


def _from_folder(images: Path) -> list[Item]:
    labels = label_folder(images)
    pictures = images_by_stem(images)
    if not labels.is_dir():
        labels = images
    if not labels.is_dir():
        raise InputError(f"{images}: neither images nor labels are there. Check the path in data.yaml.")
    stems = {os.path.splitext(name)[0]: labels / name for name in label_files(labels)}
    stems = {stem: file for stem, file in stems.items() if stem in pictures or _holds_numbers(file)}
    items: list[Item] = [
        (os.path.join(images, pictures.get(stem, f"{stem}.jpg")), label) for stem, label in stems.items()
    ]
    return items + [(os.path.join(images, name), None) for stem, name in pictures.items() if stem not in stems]


def _from_list(path: Path) -> list[Item]:
    base = path.parent
    items: list[Item] = []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        image = _resolve(line, [base])
        stem = os.path.splitext(image)[0]
        trees = [_swapped(Path(stem), TREES), Path(stem)]
        label = next((tree.with_name(f"{tree.name}.txt") for tree in trees if Path(f"{tree}.txt").is_file()), None)
        items.append((str(image), label))
    return items


def _resolve(entry: str, bases: Sequence[Path]) -> Path:
    """A path of data.yaml or a list; tools write prefixes (`data/`, `../`) that are not there."""
    entry = entry.replace("\\", "/")
    shorter = [entry, *([entry.split("/", 1)[1]] if "/" in entry and not entry.startswith("/") else [])]
    renamed = [name.replace("valid/", "val/") for name in shorter if "valid/" in name]
    tries = [base / name for base in bases for name in (*shorter, *renamed)]
    existing = [Path(os.path.normpath(path)) for path in tries if os.path.exists(path)]
    labels = [Path(os.path.normpath(path)) for path in tries if _swapped(Path(os.path.normpath(path)), TREES).is_dir()]
    beside = [Path(os.path.normpath(path)) for path in tries if os.path.isfile(os.path.splitext(path)[0] + ".txt")]
    return (existing or labels or beside or [Path(os.path.normpath(tries[0]))])[0]


def _sources_of_darknet(folder: Path, path: Path, names: tuple[str, ...]) -> dict[str, Source]:
    lines = [line.partition("=") for line in read_text(path).splitlines() if "=" in line]
    entries = {key.strip(): value.strip() for key, _, value in lines}
    found = {}
    for key, split in SPLITS.items():
        if key in entries:
            found[split] = Source("yolo", folder, split, (_resolve(entries[key], [folder]),), class_names=names)
    return found


def _yaml_names(raw: Any, path: Path) -> tuple[str, ...]:
    if isinstance(raw, dict):
        numbers = {int(number): str(name) for number, name in raw.items()}
        return tuple(numbers.get(number, str(number)) for number in range(max(numbers, default=-1) + 1))
    if raw is None or isinstance(raw, list):
        return tuple(str(name).strip() for name in raw or ())
    raise InputError(f"{path}: names is {raw!r}; it must be a list or a mapping from number to name. Mend it.")


def name_files(folder: Path) -> list[Path]:
    """Files of a folder that may tell class names, the plain ones first."""
    plain = [folder / name for name in NAME_FILES] + sorted(folder.glob("*.names"))
    return [file for file in [*dict.fromkeys(plain), *sorted(folder.glob("*.y*ml"))] if file.is_file()]


def _names_beside(folder: Path) -> list[str]:
    """Class names that stand in a file of this folder."""
    for file in name_files(folder):
        if file.suffix not in (".yaml", ".yml"):
            return [line.strip() for line in read_text(file).splitlines() if line.strip()]
        for source in sources_of_yaml(file).values():
            return list(source.class_names)
    return []


def class_names(source: Source, columns: Columns, files: Sequence[Path]) -> list[str]:
    """The names of the classes, the same in every file that tells them; the numbers of the labels where none does."""
    told: dict[Path, list[str]] = {source.path: list(source.class_names)} if source.class_names else {}
    for folder in dict.fromkeys(parent for file in files for parent in list(file.parents)[:3]):
        if names := _names_beside(folder):
            told[folder] = names
    needed = int(columns.labels.max()) + 1 if len(columns.labels) else 0
    if not told:
        columns.counts["classes without a name (numbers are used)"] = needed
        columns.declared = False
        return [str(number) for number in range(needed)]
    (first, names), *others = told.items()
    for place, other in others:
        if other != names:
            raise InputError(
                f"{source.path}: class lists disagree: {first} says {names}, {place} says {other}. Make them equal, or "
                "remove the wrong one."
            )
    if needed > len(names):
        bad = int(columns.labels.argmax())
        raise InputError(
            f"{columns.place(bad)}: class is {needed - 1}; {first} names {len(names)} classes (0 to {len(names) - 1}). "
            "Add the missing names, or mend the label."
        )
    return names


def _count_doubles(columns: Columns) -> None:
    rows = np.column_stack([columns.image_of, columns.labels, columns.xyxy])
    if doubles := len(rows) - len(np.unique(rows, axis=0)):
        columns.counts["boxes that stand twice in their file"] = doubles


def with_names(source: Source, folder: Path) -> Source:
    """The source with the class names of a folder above its own, where it has none."""
    return source if source.class_names else replace(source, class_names=tuple(_names_beside(folder)))


def is_path_list(path: Path) -> bool:
    """Whether a text file's first lines are image paths."""
    lines = [line.strip() for line in read_text(path).splitlines()[:20] if line.strip()]
    return bool(lines) and all(
        is_image_name(line) or os.path.isfile(line) or os.path.isfile(path.parent / line) for line in lines
    )
