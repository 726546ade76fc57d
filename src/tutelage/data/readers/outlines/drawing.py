"""Masks of outlines, drawn once when a source is opened as PNG files in the cache; the index holds their paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.masks import NOT_SHOWN, MaskCoding, encode_png
from tutelage.data.readers.masks.reading import fill_regions
from tutelage.data.readers.masks.scan import in_threads, merged, scan_files
from tutelage.data.readers.outlines.reading import Rendered, coco_regions, yolo_regions
from tutelage.data.readers.source import Columns, Source
from tutelage.files import atomic_folder
from tutelage.types import IGNORE

OUTLINES: dict[str, Callable[[Source, DataConfig], Rendered]] = {
    "coco": coco_regions,
    "panoptic": coco_regions,
    "yolo": yolo_regions,
}


def draw_masks(rendered: Rendered, folder: Path, size_of: Callable[[int], tuple[int, int]]) -> Columns:
    """The columns with masks and regions, all masks drawn into `folder` unless it is there.

    Args:
        rendered: images, and how their masks are drawn.
        folder: of the PNG files, named by row.
        size_of: (height, width) of the image of a row whose size the source does not tell.

    Raises:
        InputError: an outline that cannot be drawn, or an image without a readable header.
    """
    columns, sizes = rendered.columns, rendered.columns.sizes
    names = [f"{row}.png" for row in range(len(columns.paths))]

    def draw(row: int) -> None:
        known = sizes is not None and sizes[row].all()
        size = (int(sizes[row, 0]), int(sizes[row, 1])) if sizes is not None and known else size_of(row)
        (own / names[row]).write_bytes(encode_png(rendered.draw(row, size)))

    if not folder.is_dir():
        with atomic_folder(folder) as own:
            in_threads(draw, range(len(names)))
    table = {label: label for label in range(len(columns.class_names))} | {IGNORE: NOT_SHOWN}
    scans = scan_files([folder / name for name in names], "values")
    regions = [merged(scan, np.where(scan.codes == IGNORE, NOT_SHOWN, scan.codes)) for scan in scans]
    fill_regions(columns, names, MaskCoding("values", folder, table), regions, columns.class_names)
    return columns


def images_only(columns: Columns) -> Columns:
    """A pool whose outlines stay undrawn: its images, without labels."""
    none = np.zeros(0, np.int64)
    return Columns(
        columns.what,
        columns.where,
        columns.paths,
        columns.roots,
        sizes=columns.sizes,
        image_of=none,
        annotated=False,
        unlisted=columns.unlisted,
    )
