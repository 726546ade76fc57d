"""From a reader's columns to a cached `Index`: image files found, sizes and boxes checked, everything counted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.images import is_image
from tutelage.data.index import (
    FRACTIONS_SHOWN,
    FRACTIONS_STORED,
    PIXELS,
    Index,
    cache_folder,
    cache_key,
    header_size,
)
from tutelage.data.joining import join
from tutelage.data.members import split_path
from tutelage.data.readers.boxes import check_boxes
from tutelage.data.readers.classified import CLASS_FILE, read_classified_csv
from tutelage.data.readers.coco import read_coco
from tutelage.data.readers.folders import read_class_folders, read_folder, read_list
from tutelage.data.readers.locate import locate
from tutelage.data.readers.masks.reading import MASK_FORMATS, class_files, read_masks
from tutelage.data.readers.openimages import read_openimages
from tutelage.data.readers.outlines.drawing import OUTLINES, draw_masks, images_only
from tutelage.data.readers.source import Columns, Source, first_five, is_image_name, walk_files
from tutelage.data.readers.voc import read_voc
from tutelage.data.readers.webdataset import read_webdataset
from tutelage.data.readers.yolo import label_folder, name_files, read_yolo
from tutelage.files import read_json, write_json
from tutelage.types import Annotation, InputError

READERS: dict[str, Callable[[Source, bool], Columns]] = {
    "coco": read_coco,
    "panoptic": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "openimages": read_openimages,
    "class-folders": read_class_folders,
    "folder": read_folder,
    "list": read_list,
    "csv": read_classified_csv,
    "webdataset": read_webdataset,
}


@dataclass(frozen=True)
class Opened:
    """An index and the image files beside it that the source does not mention."""

    index: Index
    unlisted: Index | None


def open_index(
    source: str | Path,
    data: DataConfig,
    *,
    images: str = "",
    unlabeled: bool = False,
    annotations_only: bool = False,
    split: str = "train",
    annotation: Annotation = "boxes",
) -> Index:
    """The index of one source, read or from the cache.

    Args:
        source: annotation file, folder or list, see docs/formats.md.
        data: what to do with bad boxes and unlisted files.
        images: folder that image paths are relative to; found when empty.
        unlabeled: a pool: any folder of images or list of paths will do; its boxes are hidden labels.
        annotations_only: without the images; then no file is looked for, and fractions stay fractions.
        split: which split, where the source has several.
        annotation: what is wanted of it; many formats hold boxes and masks.

    Raises:
        InputError: not readable, missing images, bad boxes, unlisted files.
    """
    opened = open_source(
        choose_split(source, split, unlabeled, annotation),
        data,
        images=images,
        unlabeled=unlabeled,
        annotations_only=annotations_only,
        annotation=annotation,
    )
    if opened.unlisted is None or unlabeled:
        return opened.index
    if data.unlisted == "error" or (data.unlisted == "negative" and opened.index.has_masks):
        raise unlisted_error(opened)
    return join([opened.index, opened.unlisted]) if data.unlisted == "negative" else opened.index


def choose_split(source: str | Path, split: str, unlabeled: bool = False, annotation: Annotation = "boxes") -> Source:
    """The wanted split of a source, or the only one it has.

    Raises:
        InputError: it has several, and not this one.
    """
    found = locate(source, unlabeled, annotation)
    if split in found:
        return found[split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise InputError(
        f"{source}: has no split {split!r}; it has {', '.join(sorted(found))}. Give the file of one split."
    )


def unlisted_error(opened: Opened) -> InputError:
    """The error for image files without an entry."""
    assert opened.unlisted is not None
    names = [opened.unlisted.relative_path(row) for row in range(min(6, len(opened.unlisted)))]
    count, first = len(opened.unlisted), first_five(names[:5])
    if opened.index.has_masks:
        return InputError(
            f"{opened.index.description}: {count} images have no mask (first: {first}); every image must have one. Add "
            "the masks, or set data.unlisted=pool if nobody labeled them."
        )
    return InputError(
        f"{opened.index.description}: {count} image files beside the listed ones have no entry (first: {first}); every "
        "image must be listed. Set data.unlisted=negative if they hold no object, data.unlisted=pool if nobody labeled "
        "them."
    )


def open_source(
    source: Source,
    data: DataConfig,
    *,
    images: str,
    unlabeled: bool,
    annotations_only: bool,
    annotation: Annotation = "boxes",
) -> Opened:
    """A source's index and its unlisted files, from the cache where source and options are unchanged."""
    options = (data.bad_boxes, data.boxes_in, images and Path(images).resolve(), unlabeled, annotations_only)
    meaning = (data.classes, data.ignore_values, data.background) if annotation == "masks" else ()
    record = cache_folder() / f"{cache_key(*_identity(source, data), *options, *meaning)}.json"
    opened = _remembered(record)
    if opened is None:
        opened, folders = _read(source, data, images, unlabeled, annotations_only, annotation, record.with_suffix(""))
        found = {"index": opened.index, "unlisted": opened.unlisted}
        names = {name: index.folder.name for name, index in found.items() if index is not None}
        write_json(record, {**names, "folders": folders})
    return opened


def _remembered(record: Path) -> Opened | None:
    """What was opened before, if the folders of images are as they were: nothing added, nothing removed."""
    if not record.is_file():
        return None
    known = read_json(record)
    places = [record.with_name(known[name]) for name in ("index", "unlisted") if name in known]
    unchanged = all(_time(place) == time for place, time in known["folders"].items())
    if not (unchanged and all(map(Index.cached, places))):
        return None
    return Opened(Index(places[0]), Index(places[1]) if len(places) > 1 else None)


def _time(folder: str) -> int:
    return os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0


def _identity(source: Source, data: DataConfig) -> list[object]:
    """What the content of a source depends on: its files with sizes and times (folders of images: their names)."""
    digest = hashlib.sha256()
    for path in _inputs(source, data):
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}): a link to nowhere? Restore it, or remove it."
            ) from None
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    for place in _listed_trees(source):
        for below, entries in walk_files(place):
            listing = "\n".join([below, *(entry.name for entry in entries)])
            digest.update(listing.encode("utf-8", "surrogateescape"))
    return [
        source.format,
        source.path,
        source.split,
        source.images,
        source.listed,
        source.class_names,
        digest.hexdigest(),
    ]


def _listed_trees(source: Source) -> list[Path]:
    """Trees of which the names of all files matter."""
    if source.format in MASK_FORMATS:
        return [place for place in source.images if place.is_dir()]
    return [source.path] if source.format in ("folder", "class-folders") else []


def _inputs(source: Source, data: DataConfig) -> list[Path]:
    """Files whose content matters."""
    folder = source.path.parent if source.path.is_file() else source.path
    files = [path for path in (source.path, source.listed, *source.images) if path and path.is_file()]
    if isinstance(data.classes, str) and Path(data.classes).is_file():
        files.append(Path(data.classes))
    if source.format == "openimages":
        files += sorted(folder.glob("*class-descriptions*.csv"))
    if source.format in ("csv", "webdataset"):
        files += [file for file in (folder / CLASS_FILE,) if file.is_file()]
    trees = [source.path] if source.format == "voc" and source.path.is_dir() else []
    if source.format == "panoptic":
        pictures = source.masks or source.path.with_suffix("")
        trees += [pictures] if pictures.is_dir() else []
    elif source.masks is not None:
        files += class_files(source)
        trees.append(source.masks)
    if source.format == "yolo":
        places = [place.parent if place.is_file() else place for place in source.images]
        trees = [tree for tree in map(label_folder, places) if tree.is_dir()]
        files += [file for tree in trees for above in tree.parents[:2] for file in name_files(above)]
    for tree in trees:
        for _, entries in walk_files(tree):
            files += [Path(entry.path) for entry in entries]
    return files


def _read(
    source: Source,
    data: DataConfig,
    images: str,
    unlabeled: bool,
    annotations_only: bool,
    annotation: Annotation,
    drawn: Path,
) -> tuple[Opened, dict[str, int]]:
    """A source's index and its unlisted files, and the folders it stands on with the times of their last change.

    Masks of outlines are drawn into `drawn`.
    """
    if source.format in MASK_FORMATS:
        return _read_masks(source, data, images, unlabeled, annotations_only)
    rendered = OUTLINES[source.format](source, data) if _is_drawn(source, annotation, unlabeled) else None
    columns = READERS[source.format](source, unlabeled) if rendered is None else rendered.columns
    if annotation == "masks" and rendered is None:
        columns = images_only(columns)
    if images and source.format in ("coco", "panoptic", "voc", "openimages", "csv"):
        columns.roots = [Path(images).expanduser().resolve()]
    root, unlisted = _assumed_root(columns, source), list[str]()
    if not annotations_only:
        root, unlisted = _find_images(columns, source)
    if unlabeled and not columns.annotated and not annotations_only:
        _require_a_picture(root, columns)
    if columns.relative and not annotations_only and not unlabeled:
        _scale(columns, root, _unit(data))
    keep = check_boxes(columns, data)
    if rendered is not None:
        columns = draw_masks(rendered, drawn, lambda row: header_size(root / columns.paths[row], _unit(data)))
        keep = np.ones(len(columns.labels), bool)
    place = "without images" if annotations_only else f"images in {_shown(root, source)}"
    unit = _unit(data) if columns.relative else PIXELS
    index = _index(columns, keep, root, unit, f"{columns.what} {columns.where}; {place}")
    beside = _unlisted_index(columns, root, unlisted, place) if unlisted else None
    listed = set() if annotations_only else {str(root / os.path.dirname(name)) for name in columns.paths}
    listed |= {str(drawn)} if rendered is not None else set()
    return Opened(index, beside), {place: _time(place) for place in sorted(listed)}


def _is_drawn(source: Source, annotation: Annotation, unlabeled: bool) -> bool:
    return annotation == "masks" and not unlabeled and source.format in OUTLINES


def _read_masks(
    source: Source, data: DataConfig, images: str, unlabeled: bool, annotations_only: bool
) -> tuple[Opened, dict[str, int]]:
    columns = read_masks(source, data, images=images, unlabeled=unlabeled, annotations_only=annotations_only)
    root = Path(columns.roots[0])
    place = "without images" if annotations_only else f"images in {_shown(root, source)}"
    keep = np.ones(len(columns.labels), bool)
    index = _index(columns, keep, root, PIXELS, f"{columns.what} {columns.where}; {place}")
    unlisted = [] if annotations_only else columns.unlisted or []
    return Opened(index, _unlisted_index(columns, root, unlisted, place) if unlisted else None), {}


def _unlisted_index(columns: Columns, root: Path, paths: list[str], place: str) -> Index:
    return Index.build(
        roots=[root],
        paths=paths,
        class_names=columns.class_names,
        annotated=columns.masks is None,
        description=f"images unlisted by {columns.where}; {place}",
    )


def _index(columns: Columns, keep: NDArray[np.bool_], root: Path, unit: int, description: str) -> Index:
    order = np.flatnonzero(keep)
    order = order[np.argsort(columns.image_of[order], kind="stable")]
    per_image = np.bincount(columns.image_of[order], minlength=len(columns.paths))
    masks = columns.masks
    return Index.build(
        roots=[root],
        paths=columns.paths,
        class_names=columns.class_names,
        sizes=columns.sizes,
        offsets=np.concatenate([[0], np.cumsum(per_image)]),
        xyxy=columns.xyxy[order],
        labels=columns.labels[order],
        area=None if columns.area is None else columns.area[order],
        ignore=None if columns.ignore is None else columns.ignore[order],
        relative=np.full(len(columns.paths), unit),
        image_class=columns.image_class,
        masks=None if masks is None else masks.paths,
        codings=[] if masks is None else [masks.coding],
        digests=None if masks is None else masks.digests,
        description=description,
        counts=+columns.counts,
        declared=columns.declared,
        annotated=columns.annotated,
    )


def _shown(root: Path, source: Source) -> str:
    base = source.path if source.path.is_dir() else source.path.parent
    relative = os.path.relpath(root, base)
    return relative if relative.count("..") < 3 else str(root)


def _assumed_root(columns: Columns, source: Source) -> Path:
    return (columns.roots or [source.path.parent])[0]


def _find_images(columns: Columns, source: Source) -> tuple[Path, list[str]]:
    """The image root and the unlisted files below it; all listed files must exist."""
    folders = list(dict.fromkeys(columns.roots))
    files = list(dict.fromkeys(split_path(name)[0] for name in columns.paths))
    hits = [sum(os.path.isfile(root / name) for name in files[:10]) for root in folders]
    if not columns.paths:
        bare = f"; {len(columns.unlisted)} images have none: {first_five(columns.unlisted)}" if columns.unlisted else ""
        raise InputError(f"{source.path}: lists no images with annotations{bare}. Give a source with annotated images.")
    if not any(hits):
        tried = ", ".join(_shown(root, source) for root in folders)
        raise InputError(
            f"{source.path}: none of the first {min(10, len(columns.paths))} images is where it should be (tried "
            f"{tried}; first: {first_five(columns.paths[:5])}). Name the folder with --images, or give "
            "annotations only (check --annotations-only)."
        )
    root = folders[int(np.argmax(hits))]
    beside = _listings(root, files)
    missing = [name for name in files if os.path.basename(name) not in beside[os.path.dirname(name)]]
    if missing:
        raise InputError(
            f"{source.path}: {len(missing)} of {len(files)} images are missing in {root} (first: "
            f"{first_five(missing[:5])}). Add the files, or remove their entries."
        )
    if columns.unlisted is not None:
        return root, columns.unlisted
    listed = set(columns.paths)
    names = (os.path.join(folder, name) for folder, names in beside.items() for name in names if is_image_name(name))
    return root, sorted(name for name in names if name not in listed)


def _listings(root: Path, paths: list[str]) -> dict[str, set[str]]:
    """Names in each folder that a listed image lies in: one listing is faster than asking for every file."""
    found = {}
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        place = root / folder
        found[folder] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
    return found


def _require_a_picture(root: Path, columns: Columns) -> None:
    """A pool without one readable image is an error; a sample spread over the listing decides."""
    sample = columns.paths[:: max(1, len(columns.paths) // 64)]
    if not any(is_image(root / name) for name in sample):
        raise InputError(
            f"{columns.where}: none of {len(sample)} files looked at (of {len(columns.paths)}) is an image. Give a "
            "folder of images."
        )


def _unit(data: DataConfig) -> int:
    return FRACTIONS_STORED if data.boxes_in == "stored" else FRACTIONS_SHOWN


def _scale(columns: Columns, root: Path, unit: int) -> None:
    """Fractions become pixels, by the sizes in the image headers."""
    columns.sizes = np.array([header_size(root / name, unit) for name in columns.paths], np.int64).reshape(-1, 2)
    height, width = columns.sizes[columns.image_of].T
    columns.xyxy = columns.xyxy * np.stack([width, height, width, height], axis=1)
    columns.relative = False
