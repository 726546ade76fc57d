"""Which format a file or folder has, and which splits it offers. Said out loud by whoever opens it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from tutelage.data.images import is_image
from tutelage.data.members import SUFFIX
from tutelage.data.readers import openimages, voc, yolo
from tutelage.data.readers.classified import csv_sources
from tutelage.data.readers.coco import foreign_json
from tutelage.data.readers.masks.layouts import mask_sources, paired_folder, sources_of_mask_yaml, voc_list
from tutelage.data.readers.source import (
    SPLITS,
    Source,
    files_below,
    images_by_stem,
    is_image_name,
    read_text,
    refuse,
    split_named,
)
from tutelage.data.readers.webdataset import tar_sources
from tutelage.types import Annotation, InputError

HEAD = 1 << 20  # bytes of a json that tell what it is
IMAGES_ONLY = {"folder", "list", "class-folders", "csv", "webdataset"}
FORMATS_OF: dict[Annotation, set[str]] = {
    "boxes": {"coco", "voc", "yolo", "openimages"} | IMAGES_ONLY,
    "masks": {"mask-folder", "voc-masks", "ade20k-full", "coco", "panoptic", "yolo"} | IMAGES_ONLY,
}


def detect_format(source: str | Path, unlabeled: bool = False, annotation: Annotation = "boxes") -> str:
    """The format of a file or folder: a key of `READERS`.

    Raises:
        InputError: it does not exist, or is in no supported format; the message names what it is.
    """
    return next(iter(locate(source, unlabeled, annotation).values())).format


def locate(source: str | Path, unlabeled: bool = False, annotation: Annotation = "boxes") -> dict[str, Source]:
    """The readable data sets at a path by split (train, val, test), or one under "" where there are no splits.

    Args:
        source: file or folder.
        unlabeled: a pool, for which images alone will do.
        annotation: what is wanted of it; a folder may hold both.

    Raises:
        InputError: see `detect_format`.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"{path}: does not exist. Check the path; supported are files and folders of any known format."
        )
    path = path.resolve()
    if path.is_file():
        found = _locate_file(path, unlabeled) if annotation == "boxes" else _locate_mask_file(path, unlabeled)
    else:
        found = _locate_folder(path) if annotation == "boxes" else _locate_masks(path)
    if found and all(source.format in FORMATS_OF[annotation] for source in found.values()):
        return found
    return _without_annotations(path, unlabeled, annotation)


def _locate_masks(path: Path) -> dict[str, Source]:
    """A data set of masks in a folder, or one of outlines that can be painted; empty when there is none."""
    return _panoptic_in(path) or mask_sources(path) or _locate_folder(path)


def _panoptic_in(path: Path) -> dict[str, Source]:
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob("panoptic_*.json"))]
    return {split_named(file.stem): Source("panoptic", file, split_named(file.stem)) for file in files}


def _locate_mask_file(path: Path, unlabeled: bool) -> dict[str, Source]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml") and (found := sources_of_mask_yaml(path)):
        return found
    if suffix == ".txt" and path.parent.parent.name == "ImageSets":
        return {"": voc_list(path)}
    found = _locate_file(path, unlabeled)
    return {split: replace(one, format="panoptic") if _is_panoptic(one) else one for split, one in found.items()}


def _is_panoptic(source: Source) -> bool:
    if source.format != "coco":
        return False
    return "panoptic" in source.path.stem.lower() or b'"segments_info"' in _head(source.path)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of what cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _locate_file(path: Path, unlabeled: bool) -> dict[str, Source]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return {"": _json_source(path)}
    if suffix in (".yaml", ".yml"):
        if found := yolo.sources_of_yaml(path):
            return found
        raise refuse(path, "YAML without names and train, val or test")
    if suffix == SUFFIX:
        return tar_sources(path)
    if suffix == ".csv":
        if found := csv_sources(path):
            return found
        if told := openimages.foreign_csv(path):
            raise refuse(path, told)
        return {"": Source("openimages", path, split_named(path.stem))}
    if suffix == ".xml":
        if told := voc.foreign_xml(voc.parse_xml(path)):
            raise refuse(path, told)
        return {"": Source("voc", path)}
    if suffix == ".data":
        return yolo.sources_of_folder(path.parent)
    if suffix in (".tfrecord", ".tfrecords", ".record"):
        raise refuse(path, "a TFRecord")
    if suffix == ".txt" or yolo.is_path_list(path):
        return {"": _text_source(path, unlabeled)}
    if unlabeled and (is_image_name(path.name) or is_image(path)):
        return {"": Source("list", path)}
    what = "a single image" if is_image_name(path.name) else f"a file with the suffix {suffix or 'none'}"
    raise refuse(path, what, "Give the annotation file, or the folder.")


def _json_source(path: Path) -> Source:
    head = _head(path).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        raise refuse(path, foreign_json([_first_element(head)]))
    return Source("coco", path, split_named(path.stem) or split_named(path.parent.name))


def _first_element(head: str) -> object:
    """The first element of a JSON list, or nothing if it is longer than the head."""
    try:
        return json.JSONDecoder().raw_decode(head[1:].lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _text_source(path: Path, unlabeled: bool) -> Source:
    if path.parent.parent.name == "ImageSets":
        return Source("voc", path.parents[2], split_named(path.stem), listed=path)
    if unlabeled:
        return Source("list", path)
    if yolo.is_path_list(path):
        return Source("yolo", path, split_named(path.stem), (path,))
    words = read_text(path).split(None, 6)[:6]
    what = "one YOLO label file" if len(words) >= 5 and words[1].replace(".", "").isdigit() else "a text file"
    raise refuse(path, what, "Give the folder of labels, its data.yaml, or a text file of image paths.")


def _locate_folder(path: Path) -> dict[str, Source]:
    """A data set of any format in a folder; empty when there is none."""
    return (
        _yaml_in(path)
        or _voc_in(path)
        or _coco_in(path)
        or _openimages_in(path)
        or yolo.sources_of_folder(path)
        or _splits_below(path)
        or tar_sources(path)
    )


def _yaml_in(path: Path) -> dict[str, Source]:
    found = [sources for file in sorted(path.glob("*.y*ml")) if (sources := yolo.sources_of_yaml(file))]
    if len(found) > 1:
        names = ", ".join(str(next(iter(sources.values())).path.name) for sources in found)
        raise InputError(f"{path}: several data files ({names}). Give the one that is meant.")
    return found[0] if found else {}


def _voc_in(path: Path) -> dict[str, Source]:
    years = sorted(path.glob("VOC[0-9]*/Annotations"))
    if len(years) == 1:
        return _voc_in(years[0].parent)
    if years:
        names = ", ".join(year.parent.name for year in years)
        raise InputError(f"{path}: several years ({names}). Give the one that is meant, or each of them.")
    folder = voc.xml_folder(path)
    files = files_below(folder, ".xml") if folder != path else sorted(file.name for file in path.glob("*.xml"))
    if not files or voc.foreign_xml(voc.parse_xml(folder / files[0])):
        return {}
    lists = {file.stem: file for file in sorted(path.glob("ImageSets/Main/*.txt"))}
    found = {name: lists[name] for name in ("train", "val", "test") if name in lists}
    if "train" not in found and "trainval" in lists:
        found["train"] = lists["trainval"]
    if "train" not in found:
        return {"": Source("voc", path)}
    return {split: Source("voc", path, split, listed=file) for split, file in found.items()}


def _coco_in(path: Path) -> dict[str, Source]:
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob("*.[jJ][sS][oO][nN]"))]
    files = [file for file in files if _is_coco(file)]
    plain = [file for file in files if re.fullmatch(r"instances_[a-z]+\d*", file.stem)]
    files = plain or files
    splits = {split_named(file.stem) or split_named(path.name): file for file in files}
    if len(splits) < len(files):
        names = ", ".join(file.name for file in files)
        raise InputError(f"{path}: several annotation files ({names}). Give the one that is meant.")
    if len(files) == 1:
        return {"": Source("coco", files[0], next(iter(splits)))}
    return {split: Source("coco", file, split) for split, file in splits.items()}


def _is_coco(path: Path) -> bool:
    """Whether the head of a file shows a key of COCO at the top (large files are not parsed for that)."""
    head = _head(path).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    return head.startswith("{") and bool(re.search(r'"(images|annotations|categories)"\s*:\s*\[', head))


def _openimages_in(path: Path) -> dict[str, Source]:
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob("*.csv"))]
    files = [file for file in files if not openimages.foreign_csv(file)]
    if len(files) == 1:
        return {"": Source("openimages", files[0], split_named(files[0].stem))}
    return {split_named(file.stem): Source("openimages", file, split_named(file.stem)) for file in files}


def _splits_below(path: Path) -> dict[str, Source]:
    """Folders train, valid and test that are data sets themselves (Roboflow exports)."""
    found: dict[str, Source] = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in SPLITS):
        sources = _locate_folder(folder)
        if len(sources) == 1:
            source = next(iter(sources.values()))
            source = yolo.with_names(source, path) if source.format == "yolo" else source
            found.setdefault(SPLITS[folder.name.lower()], source)
    return found


def _without_annotations(path: Path, unlabeled: bool, annotation: Annotation) -> dict[str, Source]:
    """What a path is that holds nothing of the wanted kind: images, or an error that says what it holds."""
    if unlabeled and path.is_dir():
        return {"": Source("folder", path)}
    if annotation == "masks":
        return _without_masks(path)
    splits = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name.lower() in SPLITS]
    if any(_holds_class_folders(entry) for entry in splits):
        return {SPLITS[entry.name.lower()]: Source("class-folders", entry, entry.name) for entry in splits}
    foreign = _foreign_in(path)
    masks = {} if foreign else mask_sources(path)
    if any(source.masks not in source.images for source in masks.values()):
        raise refuse(path, "masks, not boxes", "Set task=segmentation, or give annotations with boxes.")
    if not foreign and _holds_class_folders(path):
        return {"": Source("class-folders", path)}
    if not foreign and (name := _only_class(path)):
        raise refuse(path, f"one class ({name})", "Give the folder above two or more folders of classes.")
    raise refuse(path, foreign or "no annotations", "Give the annotation file, or convert it to one of these.")


def _without_masks(path: Path) -> dict[str, Source]:
    """A folder of pictures, which may be masks; anything else is an error."""
    boxes = _locate_file(path, False) if path.is_file() else _locate_folder(path)
    if boxes:
        held = next(iter(boxes.values())).format
        raise refuse(path, f"boxes ({held}), not masks", "Set task=detection, or give the masks.", "masks")
    if not any(images_by_stem(path)):
        raise refuse(path, _foreign_in(path) or "no images", "Give the folder of images and masks.", "masks")
    found = paired_folder(path)
    return {found.split: found}


def _holds_class_folders(path: Path) -> bool:
    """Whether pictures lie in two or more sub-folders, and none beside them."""
    return len(_class_folders(path)) > 1


def _only_class(path: Path) -> str:
    """The name of the only sub-folder that holds pictures, if it is a class's."""
    names = [folder.name for folder in _class_folders(path)]
    return names[0] if len(names) == 1 and names[0].lower() not in ("images", "masks", *SPLITS) else ""


def _class_folders(path: Path) -> list[Path]:
    """Sub-folders that hold pictures; none where pictures lie beside them."""
    entries = sorted(path.iterdir())
    if any(entry.is_file() and is_image_name(entry.name) for entry in entries):
        return []
    folders = [entry for entry in entries if entry.is_dir()]
    return [folder for folder in folders if any(is_image_name(file.name) for file in folder.iterdir())]


def _foreign_in(path: Path) -> str:
    """The format of the first annotation file of a tree that has a name."""
    for suffix, tell in (
        (".xml", lambda file: voc.foreign_xml(voc.parse_xml(file))),
        (".json", _foreign_json_file),
        (".csv", openimages.foreign_csv),
        (".tfrecord", lambda file: "a TFRecord"),
        (".txt", _foreign_text),
    ):
        for name in files_below(path, suffix)[:20]:
            if found := tell(path / name):
                return f"{found} ({name})"
    return ""


def _foreign_json_file(path: Path) -> str:
    head = _head(path).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        return foreign_json([_first_element(head)])
    try:
        return foreign_json(json.loads(head))
    except (ValueError, RecursionError):
        return ""


def _foreign_text(path: Path) -> str:
    words = next((line.split() for line in read_text(path).splitlines() if line.strip()), [])
    if len(words) in (15, 16) and not words[0][0].isdigit():
        return "KITTI labels"
    return "DOTA labels (oriented boxes)" if len(words) == 10 and not words[8][0].isdigit() else ""
