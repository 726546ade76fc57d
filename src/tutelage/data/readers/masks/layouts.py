"""Folders of images and masks: the layouts that are recognized, and the splits they offer.

Layouts: two parallel folders (`images/` and `masks/`, and the other names below), with or without a folder for each
split in them, or in a folder for each split; `train_images/` and `train_masks/`; Pascal VOC; Cityscapes; ADE20K, both
publications; images and masks side by side. See docs/formats.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tutelage.data.readers.masks.pairs import BESIDE, mask_base
from tutelage.data.readers.source import SPLITS, Source, is_image_name, read_text, split_named, walk_files
from tutelage.types import InputError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb", "photos")
MASK_FOLDERS = (
    "masks mask labels label annotations annotation annots annot gt gtfine gtcoarse ground_truth groundtruth "
    "segmentationclass segmentationclassaug segmentation segmentations targets"
).split()
MASKS_KEPT_BACK = ("gtfine", "gtcoarse")  # Cityscapes publishes empty masks of its test images
LOOKED_AT = 2000  # names that tell whether masks lie beside their images
AUGMENTED = "SegmentationClassAug"  # masks of VOC's 10 582 images, a folder beside VOC's own
AUGMENTED_LISTS = ("train_aug", "trainaug")  # names under which the list of these images goes round


def mask_sources(path: Path) -> dict[str, Source]:
    """Data sets of masks in a folder by split; empty when there is none."""
    return (
        _yaml_in(path)
        or _voc_in(path)
        or _ade20k_in(path)
        or _pair_in(path)
        or _splits_below(path)
        or _named_pairs_in(path)
        or _side_by_side(path)
    )


def sources_of_mask_yaml(path: Path) -> dict[str, Source]:
    """Splits of a YAML file whose train, val and test name `images` and `masks`; empty when it is none."""
    try:
        raw = yaml.safe_load(read_text(path))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Mend the file.") from None
    found = {}
    for key, split in SPLITS.items():
        entry: Any = raw.get(key) if isinstance(raw, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("masks"), str):
            images = ((path.parent / entry["images"]).resolve(),) if "images" in entry else ()
            masks = (path.parent / entry["masks"]).resolve()
            if masks.is_dir() and "annotations" not in entry:
                found[split] = Source("mask-folder", path, split, images, masks=masks)
    return found


def voc_list(path: Path) -> Source:
    """The masks of VOC that a list in ImageSets/Segmentation names."""
    base = path.parents[2]
    folders = [base / AUGMENTED, base / "SegmentationClass"]
    order = folders if "aug" in path.stem.lower() else folders[::-1]
    masks = next((folder for folder in order if folder.is_dir()), order[0])
    return Source("voc-masks", base, split_named(path.stem), (base / "JPEGImages",), listed=path, masks=masks)


def paired_folder(path: Path) -> Source:
    """A folder of images, or of masks, with the other beside it; a folder of masks alone where there is none.

    (Such masks may lie in a folder of their own in it, as `label --export` writes them.)
    """
    for above in (path, path.parent):
        for own, other in ((IMAGE_FOLDERS, MASK_FOLDERS), (MASK_FOLDERS, IMAGE_FOLDERS)):
            if above.name.lower() not in own:
                continue
            beside = _folder_named(above.parent, other)
            twin = None if beside is None else beside / path.relative_to(above)
            if twin is not None and _holds_pictures(twin):
                images, masks = (path, twin) if own is IMAGE_FOLDERS else (twin, path)
                return Source("mask-folder", path, split_named(path.name), (images,), masks=masks)
    return Source("mask-folder", path, split_named(path.name), masks=_folder_named(path, MASK_FOLDERS) or path)


def _yaml_in(path: Path) -> dict[str, Source]:
    return next((found for file in sorted(path.glob("*.y*ml")) if (found := sources_of_mask_yaml(file))), {})


def _voc_in(path: Path) -> dict[str, Source]:
    years = sorted(year.parent for year in path.glob("VOC[0-9]*/SegmentationClass*"))
    if len(set(years)) == 1:
        return _voc_in(years[0])
    if not (path / "JPEGImages").is_dir() or not any(path.glob("SegmentationClass*")):
        return {}
    lists = {file.stem.lower(): file for file in sorted(path.glob("ImageSets/Segmentation/*.txt"))}
    train = next((name for name in (*AUGMENTED_LISTS, "train", "trainval") if _usable(path, lists, name)), "")
    found = {"train": train, **{split: split for split in ("val", "test") if _usable(path, lists, split)}}
    if train:
        return {split: replace(voc_list(lists[name]), split=split) for split, name in found.items()}
    if len(lists) == 1:
        return {"": voc_list(next(iter(lists.values())))}
    masks = next(folder for folder in sorted(path.glob("SegmentationClass*")))
    return {"": Source("mask-folder", path, "", (path / "JPEGImages",), masks=masks)}


def _usable(path: Path, lists: dict[str, Path], name: str) -> bool:
    """Whether a list is there, with masks of its first image (VOC keeps those of its test images back)."""
    if name not in lists or (name in AUGMENTED_LISTS and not (path / AUGMENTED).is_dir()):
        return False
    words = read_text(lists[name]).split(None, 1)
    masks = voc_list(lists[name]).masks
    return bool(words) and masks is not None and any(masks.glob(f"{Path(words[0]).stem}.*"))


def _ade20k_in(path: Path) -> dict[str, Source]:
    """The full ADE20K: `ADE_train_00000001.jpg` with `ADE_train_00000001_seg.png` beside it."""
    for folder in (path, path / "images", path / "images" / "ADE", path / "ADE"):
        below = _split_folders(folder) if folder.is_dir() else {}
        found = {split: place for split, place in below.items() if _is_ade20k(place)}
        if found:
            return {s: Source("ade20k-full", path, s, (place,), masks=place) for s, place in found.items()}
    return {"": Source("ade20k-full", path, "", (path,), masks=path)} if _is_ade20k(path) else {}


def _is_ade20k(folder: Path) -> bool:
    names = _first_names(folder)
    marked = any(name.startswith("ADE_") or name.endswith("_atr.txt") for name in names)
    return marked and any(name.endswith("_seg.png") for name in names)


def _first_names(tree: Path) -> list[str]:
    """Names in the first folder of a tree that holds pictures, a part of them where they are many."""
    for _, entries in walk_files(tree):
        if any(is_image_name(entry.name) for entry in entries):
            return [entry.name for entry in entries[:LOOKED_AT]]
    return []


def _pair_in(path: Path) -> dict[str, Source]:
    images, masks = _folder_named(path, IMAGE_FOLDERS), _folder_named(path, MASK_FOLDERS)
    if images is None or masks is None:
        return {}
    image_splits, mask_splits = _split_folders(images), _split_folders(masks)
    common = [split for split in image_splits if split in mask_splits]
    if masks.name.lower() in MASKS_KEPT_BACK:
        common = [split for split in common if split != "test"]
    if not common:
        return {"": Source("mask-folder", path, "", (images,), masks=masks)}
    return {
        split: Source("mask-folder", path, split, (image_splits[split],), masks=mask_splits[split]) for split in common
    }


def _splits_below(path: Path) -> dict[str, Source]:
    found = {}
    for split, folder in _split_folders(path).items():
        sources = mask_sources(folder)
        if len(sources) == 1:
            found[split] = replace(next(iter(sources.values())), split=split)
    return found


def _named_pairs_in(path: Path) -> dict[str, Source]:
    """Folders like train_images and train_masks, or train and trainannot."""
    roles: dict[tuple[str, bool], Path] = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        name = folder.name.lower()
        for word in sorted(SPLITS, key=len, reverse=True):
            if name.startswith(word) or name.endswith(word):
                rest = (name[len(word) :] if name.startswith(word) else name[: -len(word)]).strip("_- ")
                if rest in ("", *IMAGE_FOLDERS, *MASK_FOLDERS):
                    roles.setdefault((SPLITS[word], rest in MASK_FOLDERS), folder)
                break
    splits = [split for split, is_mask in roles if is_mask and (split, False) in roles]
    return {
        split: Source("mask-folder", path, split, (roles[split, False],), masks=roles[split, True])
        for split in splits
        if _holds_pictures(roles[split, False]) and _holds_pictures(roles[split, True])
    }


def _side_by_side(path: Path) -> dict[str, Source]:
    stems = {os.path.splitext(name)[0] for name in _first_names(path) if is_image_name(name)}
    found = any(mask_base(stem, stems, BESIDE) for stem in stems)
    return {"": Source("mask-folder", path, "", (path,), masks=path)} if found else {}


def _folder_named(path: Path, names: list[str] | tuple[str, ...]) -> Path | None:
    """The first folder of these names, whatever their case, that holds pictures."""
    folders = {entry.name.lower(): entry for entry in sorted(path.iterdir()) if entry.is_dir()}
    found = (folders[name] for name in names if name in folders)
    return next((folder for folder in found if _holds_pictures(folder)), None)


def _split_folders(path: Path) -> dict[str, Path]:
    """Sub-folders named like splits that hold pictures."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in SPLITS)
    return {SPLITS[folder.name.lower()]: folder for folder in folders if _holds_pictures(folder)}


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and next(_pictures(folder), None) is not None


def _pictures(folder: Path) -> Iterator[str]:
    """Names of the pictures of a tree, folder by folder."""
    return (entry.name for _, entries in walk_files(folder) for entry in entries if is_image_name(entry.name))
