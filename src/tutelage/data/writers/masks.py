"""Masks of many images out to files: a folder of class-index PNG, or COCO json with run-length masks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.data.colors import IGNORE_COLOR, class_colors
from tutelage.data.rle import Spans, box_of, class_spans, counts_of, encode_counts, num_pixels
from tutelage.data.writers.listing import write_coco_json
from tutelage.files import atomic, make_folder, write_json
from tutelage.types import IGNORE, InputError

MaskRecord = tuple[str, tuple[int, int], NDArray[np.uint8]]
"""Relative path, (height, width) of the image, and its classes (h, w), IGNORE where it has none. A mask of another size
than its image is enlarged or shrunk to it."""


def write_mask_folder(folder: Path, records: Iterable[MaskRecord], class_names: Sequence[str]) -> None:
    """A tree of 8-bit palette PNG under `folder/masks`, values being class indices, and `folder/classes.json`.

    Masks take the paths of their images with the suffix .png. Of images that differ in their suffix alone (a.jpg,
    a.png), the first does so; the others keep their suffix too (a.png.png).

    Args:
        folder: where to write.
        records: image paths, sizes and masks.
        class_names: names by label.

    Raises:
        InputError: two records have the same path.
    """
    colors = class_colors(len(class_names))
    palette = np.full((256, 3), IGNORE_COLOR, np.uint8)
    palette[: len(colors)] = colors
    taken: set[str] = set()
    for name, size, mask in records:
        path = folder / "masks" / _free_name(name.lstrip("/"), taken)
        make_folder(path.parent)
        image = Image.fromarray(_fitted(mask, size))
        image.putpalette(palette.tobytes())
        with atomic(path) as temporary:
            image.save(temporary, "PNG")
    write_json(folder / "classes.json", _class_table(class_names, colors))


def write_coco_masks(path: Path, records: Iterable[MaskRecord], class_names: Sequence[str]) -> None:
    """One json: for each image and class that occurs in it one compressed run-length mask; IGNORE is left out.

    Args:
        path: the file to write.
        records: image paths, sizes and masks.
        class_names: names by label; category ids are from 1.
    """
    entries = ((name, size, _annotations(_fitted(mask, size))) for name, size, mask in records)
    write_coco_json(path, entries, class_names)


def _fitted(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if mask.shape == tuple(size):
        return mask
    height, width = map(int, size)
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _free_name(name: str, taken: set[str]) -> str:
    """A name for an image's mask that no other image's mask has."""
    for mask in (f"{os.path.splitext(name)[0]}.png", f"{name}.png"):
        if mask not in taken:
            taken.add(mask)
            return mask
    raise InputError(
        f"{name}: several images of this path are to be exported; each needs a path of its own. Rename one."
    )


def _class_table(class_names: Sequence[str], colors: NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "classes": [{"index": label, "name": name} for label, name in enumerate(class_names)],
        "ignore_index": IGNORE,
        "palette": {name: f"#{bytes(color).hex().upper()}" for name, color in zip(class_names, colors, strict=True)},
    }


def _annotations(mask: NDArray[np.uint8]) -> list[dict[str, Any]]:
    return [_annotation(label, spans, mask.shape) for label, spans in class_spans(mask) if label != IGNORE]


def _annotation(label: int, spans: Spans, shape: tuple[int, ...]) -> dict[str, Any]:
    height, width = shape
    return {
        "category_id": label + 1,
        "segmentation": {"size": [height, width], "counts": encode_counts(counts_of(spans, height * width))},
        "bbox": box_of(spans, height),
        "area": num_pixels(spans),
        "iscrowd": 0,
    }
