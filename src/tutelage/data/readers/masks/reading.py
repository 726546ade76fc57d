"""Folders of images and masks: pairs found, classes named, labeled masks read once and checked.

The values of a mask mean what `data.classes` says, else a file of classes beside the masks, else the publication of a
known layout. Nothing is guessed: what nobody names is an error that lists what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.images import probe
from tutelage.data.masks import MAX_CLASSES, NOT_SHOWN, Kind, MaskCoding
from tutelage.data.readers.masks.classes import (
    MaskClasses,
    class_file,
    classes_of,
    given_entries,
    read_class_file,
)
from tutelage.data.readers.masks.errors import (
    binary_error,
    colors_error,
    palette_error,
    size_error,
    unknown_error,
    unnamed_error,
)
from tutelage.data.readers.masks.pairs import Pairs, pairs_of_ade20k, pairs_of_folders, pairs_of_list
from tutelage.data.readers.masks.published import published_entries
from tutelage.data.readers.masks.scan import GRAY, Scan, in_threads, merged, scan_file, scan_files, through_palette
from tutelage.data.readers.source import SPLITS, Columns, MaskColumns, Source
from tutelage.types import InputError

MASK_FORMATS: dict[str, tuple[str, Callable[[Source, Path], Pairs]]] = {
    "mask-folder": ("mask folder", pairs_of_folders),
    "voc-masks": ("Pascal VOC masks", pairs_of_list),
    "ade20k-full": ("ADE20K masks", pairs_of_ade20k),
}
SAMPLE = 16  # masks of a pool that are read, to see whether they hold values or colors
ADE20K_CODES = 26 * 256  # R // 10 is at most 25


def read_masks(source: Source, data: DataConfig, *, images: str, unlabeled: bool, annotations_only: bool) -> Columns:
    """Columns of a source of masks, its regions found by reading all masks; a pool's are taken unread.

    Args:
        source: of a format in `MASK_FORMATS`.
        data: `classes` and `ignore_values` are used.
        images: folder of the images; the source's when empty.
        unlabeled: a pool; images without masks are then part of it.
        annotations_only: without the images; then sizes are not compared.

    Raises:
        InputError: no pairs, a mask without image, unreadable, of another size than its image, or with codes that
            nothing names.
    """
    what, pairs_of = MASK_FORMATS[source.format]
    assert source.masks is not None
    root = _image_root(source, images, annotations_only)
    pairs = pairs_of(source, root) if root is not None else pairs_of_folders(source, None)
    columns = Columns(what, source.name, pairs.images, [root or source.path], unlisted=pairs.bare)
    if not pairs.images:
        raise InputError(f"{source.path}: holds no image with a mask. Give a folder that holds images and masks.")
    files = [source.masks / name for name in pairs.masks]
    classes = mask_classes(source, data, files[0])
    if unlabeled:
        return _pool_columns(columns, source, pairs, classes, data)
    scans = scan_files(files, _forced(source)) if annotations_only else _scanned(source, root or source.path, pairs)
    coding, scans = coding_of(source, files, scans, classes, data)
    assert classes is not None
    _fill(columns, pairs.masks, coding, scans, classes)
    return columns


def class_files(source: Source) -> list[Path]:
    """The file that names the classes of a source, if there is one."""
    found = class_file(_class_folders(source))
    return [] if found is None else [found]


def mask_classes(source: Source, data: DataConfig, first: Path) -> MaskClasses | None:
    """What the codes of a source mean; None where nothing says so (`InputError`: it cannot be understood)."""
    ignored: list[int | str] = list(data.ignore_values)
    if source.format == "ade20k-full" or first.name.startswith("ADE_"):
        ignored.append(0)  # ADE20K: 0 is "other objects", https://github.com/CSAILVision/sceneparsing
    if data.classes:
        entries, more, where = given_entries(data.classes)
    elif found := class_file(_class_folders(source)):
        entries, more = read_class_file(found)
        where = str(found)
    else:
        entries, more = published_entries(source.format, first.name)
        where = str(source.path)
    return classes_of(entries, ignored + more, where) if entries else None


def coding_of(
    source: Source, files: Sequence[Path], scans: list[Scan], classes: MaskClasses | None, data: DataConfig
) -> tuple[MaskCoding, list[Scan]]:
    """What the codes of these masks mean, and the masks in those codes.

    Raises:
        InputError: nothing says so, colors without a table, palettes that disagree, or a code of no class.
    """
    assert source.masks is not None
    kind = _forced(source) or _kind_of(files, scans, classes)
    if kind == "values":
        scans = [_gray(scan) for scan in scans]
    if kind == "colors":
        scans = [through_palette(scan) for scan in scans]
    if classes is None:
        raise unnamed_error(source, kind, scans, data.ignore_values)
    table = dict(classes.colors if kind == "colors" else classes.values)
    if kind == "ade20k":  # the objects that nobody chose are without a label
        table = dict.fromkeys(range(ADE20K_CODES), NOT_SHOWN) | table
    coding = MaskCoding(kind, source.masks, table)
    known = np.array(sorted(table))
    if not all(np.isin(scan.codes, known).all() for scan in scans):
        raise unknown_error(source, files, scans, coding, classes)
    if kind == "values" and not classes.stated and {code for scan in scans for code in scan.codes} == {0, 255}:
        raise binary_error(source, classes)
    return coding, scans


def _image_root(source: Source, images: str, annotations_only: bool) -> Path | None:
    if annotations_only:
        return source.images[0] if source.images and source.images[0].is_dir() else None
    if images:
        return Path(images).expanduser().resolve()
    if not source.images:
        raise InputError(
            f"{source.path}: found images alone; labeled data for segmentation are images and masks. Name the folder "
            "that holds both; or, if these are the masks, the folder of their images with --images."
        )
    if not source.images[0].is_dir():
        raise InputError(f"{source.path}: its images should be in {source.images[0]}. Name their folder with --images.")
    return source.images[0]


def _class_folders(source: Source) -> list[Path]:
    """Where a file of classes may lie: the source, the masks, and the folders above them up to the data set's."""
    assert source.masks is not None
    above = [source.masks.parent]
    if {source.masks.name.lower(), source.masks.parent.name.lower()} & set(SPLITS):
        above.append(source.masks.parent.parent)
    return list(dict.fromkeys([source.path, source.masks, *above]))


def _forced(source: Source) -> Kind | None:
    return "ade20k" if source.format == "ade20k-full" else None


def _scanned(source: Source, root: Path, pairs: Pairs) -> list[Scan]:
    """Contents of the masks, each compared with the size of its image (stored sizes of turned photos are right too)."""
    assert source.masks is not None
    masks, kind = source.masks, _forced(source)

    def look(row: int) -> tuple[Scan, tuple[int, int]]:
        scan, info = scan_file(masks / pairs.masks[row], kind), probe(root / pairs.images[row])
        return scan, scan.size if scan.size == info.stored_size else info.shown_size

    looks = in_threads(look, range(len(pairs.masks)))
    if wrong := [row for row, (scan, size) in enumerate(looks) if scan.size != size]:
        scan, size = looks[wrong[0]]
        raise size_error(masks / pairs.masks[wrong[0]], root / pairs.images[wrong[0]], scan.size, size, len(wrong))
    return [scan for scan, _ in looks]


def _kind_of(files: Sequence[Path], scans: Sequence[Scan], classes: MaskClasses | None) -> Kind:
    """Whether classes are told by values or by colors."""
    gray = all((scan.codes % 256 * GRAY == scan.codes).all() for scan in scans if scan.kind == "colors")
    colors = set(classes.colors) if classes is not None else set()
    if any(scan.kind == "colors" for scan in scans):
        if colors and not (gray and classes is not None and classes.stated):
            return "colors"
        if not gray:
            raise colors_error(files, scans)
        return "values"
    if colors and classes is not None and not classes.stated:
        return "colors"
    if conflict := _palette_conflict(scans):
        if colors and all(set(through_palette(scan).codes.tolist()) <= colors for scan in scans):
            return "colors"
        value, one, other = conflict
        raise palette_error(files[one], files[other], value, scans[one], scans[other])
    return "values"


def _palette_conflict(scans: Sequence[Scan]) -> tuple[int, int, int] | None:
    """A value that has different colors in two masks, and the places of these."""
    seen: dict[int, tuple[int, int]] = {}
    for row, scan in enumerate(scans):
        if scan.palette is None:
            continue
        for code, color in zip(scan.codes.tolist(), scan.palette.tolist(), strict=True):
            known, first = seen.setdefault(code, (color, row))
            if known != color:
                return code, first, row
    return None


def _gray(scan: Scan) -> Scan:
    return scan if scan.kind == "values" else replace(scan, kind="values", codes=scan.codes % 256)


def _pool_columns(
    columns: Columns, source: Source, pairs: Pairs, classes: MaskClasses | None, data: DataConfig
) -> Columns:
    """A pool: images without masks belong to it, and masks are its hidden labels where their classes are known."""
    columns.paths = [*pairs.images, *pairs.bare]
    columns.unlisted, columns.annotated = [], not pairs.bare
    if classes is None:
        columns.annotated = False
        return columns
    assert source.masks is not None
    sample = [source.masks / name for name in pairs.masks[:: max(1, len(pairs.masks) // SAMPLE)]]
    coding, _ = coding_of(source, sample, scan_files(sample, _forced(source)), classes, data)
    columns.class_names = list(classes.names)
    masks = [*pairs.masks, *("" for _ in pairs.bare)]
    columns.masks = MaskColumns(masks, coding, np.zeros(len(masks), np.uint64))
    return columns


def _fill(columns: Columns, masks: list[str], coding: MaskCoding, scans: Sequence[Scan], classes: MaskClasses) -> None:
    """Regions of all masks: for each class in an image the hull of its pixels, and their number as area."""
    regions = [merged(scan, np.array([coding.table[code] for code in scan.codes.tolist()])) for scan in scans]
    fill_regions(columns, masks, coding, regions, classes.names)


def fill_regions(
    columns: Columns, masks: list[str], coding: MaskCoding, regions: Sequence[Scan], names: Sequence[str]
) -> None:
    """Columns of masks whose codes are labels already."""
    assert len(names) <= MAX_CLASSES
    shown = [region.codes >= 0 for region in regions]
    columns.class_names = list(names)
    columns.sizes = np.array([region.size for region in regions], np.int64).reshape(-1, 2)
    columns.image_of = np.repeat(np.arange(len(regions)), [int(part.sum()) for part in shown])
    columns.labels = np.concatenate([r.codes[part] for r, part in zip(regions, shown, strict=True)])
    columns.xyxy = np.concatenate([r.hulls[part] for r, part in zip(regions, shown, strict=True)]).astype(np.float64)
    columns.area = np.concatenate([r.pixels[part] for r, part in zip(regions, shown, strict=True)]).astype(np.float64)
    columns.masks = MaskColumns(masks, coding, np.array([region.digest for region in regions], np.uint64))
