"""OpenImages csv: one line a box, corners in fractions; groups (IsGroupOf) become ignored regions.

Read as columns of text, so that decimal commas can be mended: https://storage.googleapis.com/openimages/web/download.html
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from tutelage.data.readers.coco import image_roots
from tutelage.data.readers.source import Columns, Source, images_by_stem, read_text, refuse
from tutelage.types import IGNORE_REGION, InputError

CORNERS = ("XMin", "YMin", "XMax", "YMax")
REQUIRED = {"ImageID", "LabelName", *CORNERS}
CSV_SIGNS = (
    ({"MaskPath"}, "OpenImages masks"),
    ({"ImageID", "LabelName", "Confidence"}, "OpenImages image labels without boxes"),
    ({"ImageID", "OriginalURL"}, "an OpenImages list of images"),
    ({"LabelName", "DisplayName"}, "OpenImages class descriptions"),
    ({"image", "xmin", "ymin", "xmax", "ymax", "label"}, "a VoTT csv"),
    ({"filename", "width", "height", "class"}, "a TensorFlow csv"),
    ({"image_name", "x_min", "y_min"}, "a csv with one box a line (image_name, x_min, ...)"),
    ({"filename"}, "a csv of image classes"),
)


def read_openimages(source: Source, unlabeled: bool) -> Columns:
    """Columns of an OpenImages box csv."""
    table = _read_table(source.path)
    ids = table["ImageID"].combine_chunks().dictionary_encode()
    labels = table["LabelName"].combine_chunks().dictionary_encode()
    codes, order = (
        labels.dictionary.to_pylist(),
        sorted(range(len(labels.dictionary)), key=labels.dictionary.to_pylist().__getitem__),
    )
    titles = _descriptions(source.path.parent)
    columns = Columns(
        "OpenImages csv", source.name, ids.dictionary.to_pylist(), image_roots(source.path), declared=False
    )
    columns.class_names = [titles.get(codes[code], codes[code]) for code in order]
    columns.labels = np.argsort(order)[labels.indices.to_numpy()].astype(np.int64)
    columns.image_of = ids.indices.to_numpy().astype(np.int64)
    columns.xyxy = np.stack([_fractions(table[name], name, source.path) for name in CORNERS], axis=1)
    columns.relative = True
    columns.place = lambda box: f"line {box + 2} (image {columns.paths[columns.image_of[box]]})"
    if "IsGroupOf" in table.column_names:
        groups = pc.equal(table["IsGroupOf"], "1").to_numpy()
        columns.ignore = np.where(groups, IGNORE_REGION, 0).astype(np.uint8)
        columns.counts["group regions"] = int(groups.sum())
    _resolve_names(columns)
    return columns


def foreign_csv(path: Path) -> str:
    """What a csv is when it is no OpenImages box file; empty when it is."""
    header = {name.strip().strip('"') for name in next(csv.reader(read_text(path)[:4096].splitlines()), [])}
    if header >= REQUIRED:
        return ""
    shown = ", ".join(sorted(header)[:8])
    return next((name for signs, name in CSV_SIGNS if signs <= header), f"a csv with the columns {shown}")


def _read_table(path: Path) -> pa.Table:
    if foreign := foreign_csv(path):
        raise refuse(path, foreign)
    kinds = dict.fromkeys([*REQUIRED, "IsGroupOf"], pa.string())
    try:
        table = pyarrow.csv.read_csv(
            path, convert_options=pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a regular csv ({error}). Export it again.") from None
    return table


def _fractions(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.float64]:
    text = pc.replace_substring(column, ",", ".")
    try:
        values: NDArray[np.float64] = pc.cast(text, pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: column {name}: a value is no number ({error}). Mend the file.") from None
    return values


def _descriptions(folder: Path) -> dict[str, str]:
    """Names by label id, from class-descriptions.csv beside the boxes."""
    for path in sorted(folder.glob("*class-descriptions*.csv")):
        return {row[0]: row[1].strip() for row in csv.reader(read_text(path).splitlines()) if len(row) > 1}
    return {}


def _resolve_names(columns: Columns) -> None:
    """Image ids become file names, by the first folder that holds one of the first ten."""
    stems = [os.path.splitext(name)[0] for name in columns.paths[:10]]
    for root in columns.roots[:-1]:
        pictures = images_by_stem(root) if root.is_dir() else {}
        if any(stem in pictures for stem in stems):
            columns.roots = [root]
            columns.paths = [pictures.get(os.path.splitext(name)[0], name) for name in columns.paths]
            return
