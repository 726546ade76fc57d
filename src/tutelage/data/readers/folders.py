"""Sources without boxes: class folders, plain folders of images, text files of image paths.

A pool is only paths until it is decoded: files with the suffix of a picture are taken as they are; the others are
recognized by content, as long as they are few. What turns out unreadable is skipped when it is decoded.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tutelage.data.images import is_image
from tutelage.data.readers.source import Columns, Source, is_image_name, read_text, walk_files
from tutelage.types import InputError

SNIFFED = 10_000  # files without a picture's suffix that are opened; beyond, those with an unknown suffix are taken
OTHER_SUFFIXES = frozenset(
    ".txt .json .xml .csv .yaml .yml .md .html .zip .tar .gz .py .npy .db .ini .log .pdf".split()
)


def read_folder(source: Source, unlabeled: bool) -> Columns:
    """All images of a tree.

    Raises:
        InputError: there is none.
    """
    columns = Columns("image folder", source.name, [], [source.path], annotated=False, unlisted=[])
    sniffed = 0
    for below, entries in walk_files(source.path):
        for entry in entries:
            name = os.path.join(below, entry.name)
            if is_image_name(entry.name):
                columns.paths.append(name)
                continue
            sniffed += 1
            unknown = os.path.splitext(entry.name)[1].lower() not in OTHER_SUFFIXES
            if is_image(Path(entry.path)) if sniffed <= SNIFFED else unknown:
                columns.paths.append(name)
    if not columns.paths:
        raise InputError(f"{source.path}: holds no image; at least one is needed. Give a folder of images.")
    return columns


def read_class_folders(source: Source, unlabeled: bool) -> Columns:
    """Images of a folder whose sub-folders are classes."""
    columns = read_folder(source, unlabeled)
    columns.paths = [name for name in columns.paths if os.sep in name]
    folders = [os.path.dirname(name) for name in columns.paths]
    columns.what, columns.annotated = "class folders", True
    columns.class_names = sorted(set(folders))
    place = {name: label for label, name in enumerate(columns.class_names)}
    columns.image_class = np.array([place[folder] for folder in folders], np.int64)
    beside = [entry for entry in source.path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    columns.counts["folders without an image, which are no classes"] = sum(entry.name not in place for entry in beside)
    return columns


def read_list(source: Source, unlabeled: bool) -> Columns:
    """Images named by a text file, relative to it or absolute; empty lines are left out. Or a single image."""
    base = source.path.parent
    if is_image_name(source.path.name) or is_image(source.path):
        return Columns("image", source.name, [source.path.name], [base], annotated=False, unlisted=[])
    lines = [line.strip() for line in read_text(source.path).splitlines()]
    paths = [os.path.normpath(base / line) for line in lines if line]
    if not paths:
        raise InputError(f"{source.path}: the list is empty; it must name one image a line. Fill it.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    relative = list(dict.fromkeys(os.path.relpath(path, root) for path in paths))
    columns = Columns("list of images", source.name, relative, [Path(root)], annotated=False, unlisted=[])
    columns.counts["paths listed twice"] = len(paths) - len(relative)
    return columns
