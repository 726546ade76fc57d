"""What a reader is given and what it returns; readers parse, `opening` checks boxes and files and writes the index."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.masks import MaskCoding
from tutelage.types import Annotation, InputError

SUPPORTED: dict[Annotation, str] = {
    "boxes": "COCO json, Pascal VOC xml, YOLO txt (with or without data.yaml), OpenImages csv; of classified images "
    "class folders, csv with the columns image and label, WebDataset tars; for unlabeled data also folders of images "
    "and text files of image paths",
    "masks": "images and masks in parallel folders (images/ and masks/, Pascal VOC, Cityscapes, ADE20K) or side by "
    "side, COCO json, COCO panoptic json, YOLO polygons; for unlabeled data also folders of images and text files of "
    "image paths",
}
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .gif .tif .tiff .webp .avif .ppm .pgm .pbm .pnm .jp2 .heic .heif".split()
)
SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Source:
    """One readable data set: an annotation file or folder, and the split of it that is meant."""

    format: str  # key of READERS
    path: Path  # annotation file or folder
    split: str = ""  # train, val or test where the source has splits
    images: tuple[Path, ...] = ()  # folders of images or lists of paths, where the source says so
    listed: Path | None = None  # VOC list file
    class_names: tuple[str, ...] = ()  # as declared outside the annotation files (YOLO)
    masks: Path | None = None  # folder of masks

    @property
    def name(self) -> str:
        """Short name for messages."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path.is_dir() else self.path.name


@dataclass(frozen=True)
class MaskColumns:
    """Masks of n images."""

    paths: list[str]  # (n,) below the root of the coding, "" for none
    coding: MaskCoding
    digests: NDArray[np.uint64]  # (n,) hashes of their content; 0 where they were not read


@dataclass
class Columns:
    """What a reader found: n images, m boxes in any order (with masks: regions, one for each class of an image)."""

    what: str  # name of the format
    where: str  # name of the source in messages
    paths: list[str]  # (n,) below the image root
    roots: Sequence[Path] = ()  # folders where the images may lie, most likely first
    class_names: list[str] = field(default_factory=list)
    sizes: NDArray[np.int64] | None = None  # (n, 2) height, width; 0 unknown
    image_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,)
    xyxy: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))  # (m, 4)
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,)
    area: NDArray[np.float64] | None = None  # (m,)
    ignore: NDArray[np.uint8] | None = None  # (m,)
    place: Callable[[int], str] = str  # names a box for messages
    relative: bool = False  # xyxy and area are fractions of the image
    declared: bool = True  # the source lists its classes
    annotated: bool = True  # a person said what is in the images
    image_class: NDArray[np.int64] | None = None  # (n,)
    unlisted: list[str] | None = None  # images without an entry; None: to be found beside the listed ones
    masks: MaskColumns | None = None
    counts: Counter[str] = field(default_factory=Counter)


def refuse(path: Path, found: str, remedy: str = "", annotation: Annotation = "boxes") -> InputError:
    """The error for something that is no supported data set."""
    remedy = remedy or "Convert it to one of these."
    return InputError(f"{path}: found {found}; supported are {SUPPORTED[annotation]}. {remedy}")


def split_named(name: str) -> str:
    """The split that a file or folder name tells: train, val, test, or nothing."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk_files(folder: Path) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """(folder below `folder`, sorted file entries) of the whole tree, hidden ones left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}). Check the path and its permissions."
        ) from None
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    yield "", [entry for entry in entries if not _is_folder(entry)]
    for entry in entries:
        if _is_folder(entry):
            for below, files in walk_files(Path(entry.path)):
                yield os.path.join(entry.name, below) if below else entry.name, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def files_below(folder: Path, suffix: str) -> list[str]:
    """Sorted relative paths of the files with this (lower-case) suffix in a tree."""
    found = []
    for below, entries in walk_files(folder):
        found += [os.path.join(below, entry.name) for entry in entries if entry.name.lower().endswith(suffix)]
    return found


def image_names(folder: Path) -> list[str]:
    """Relative paths of the pictures in a tree."""
    walked = walk_files(folder) if folder.is_dir() else ()
    return [
        os.path.join(below, entry.name) for below, entries in walked for entry in entries if is_image_name(entry.name)
    ]


def images_by_stem(folder: Path) -> dict[str, str]:
    """Relative paths of the pictures in a tree, by their path without suffix."""
    return {os.path.splitext(name)[0]: name for name in image_names(folder)}


def shortened(value: object) -> str:
    """A value in at most 80 letters, for messages."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def first_five(names: Iterable[str]) -> str:
    """The first five names and how many more."""
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(repr(name) for name in listed[:5]) + more


def read_text(path: Path) -> str:
    """A text file, UTF-8 or Latin-1.

    Raises:
        InputError: it cannot be read.
    """
    raw = read_file(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_file(path: Path) -> bytes:
    """The content of an annotation file.

    Raises:
        InputError: it cannot be read: a folder, a link to nowhere, or without rights.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); a file is needed. Restore it, or remove it."
        ) from None
