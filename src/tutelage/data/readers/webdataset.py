"""WebDataset tars: an image and its class are members of one key, `a/0001.jpg` and `a/0001.cls`.

The class is the content of `.cls`, a field of `.json`, or else the content of `.txt`; `classes.txt` beside the tars may
name numbers. Images are decoded where they lie. Format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tutelage.data.members import SEPARATOR, SUFFIX, members, read_bytes
from tutelage.data.readers.classified import CLASS_FILE, set_classes
from tutelage.data.readers.source import Columns, Source, is_image_name, split_named
from tutelage.types import InputError

PICTURES = ("jpg", "jpeg", "png", "webp")
CLASSES = ("cls", "json", "txt")
JSON_FIELDS = ("label", "class", "cls")

Sample = dict[str, str]  # member by ending


def tar_sources(path: Path) -> dict[str, Source]:
    """The tars at a path by the split in their names (one under "" without); empty when there is none."""
    folder = path.parent if path.is_file() else path
    tars: dict[str, list[Path]] = {}
    for tar in [path] if path.is_file() else sorted(folder.glob(f"*{SUFFIX}")):
        tars.setdefault(split_named(tar.stem), []).append(tar)
    return {split: Source("webdataset", path, split, tuple(found)) for split, found in tars.items()}


def read_webdataset(source: Source, unlabeled: bool) -> Columns:
    """Images of tars and their classes; of an unlabeled set all images, whatever their names.

    Raises:
        InputError: a damaged tar, an image without a class, a class without an image, a class that is not allowed.
    """
    folder = source.path.parent if source.path.is_file() else source.path
    columns = Columns("WebDataset", source.name, [], [folder], annotated=not unlabeled, unlisted=[])
    labels: list[str] = []
    for tar in source.images:
        found = dict.fromkeys(filter(is_image_name, members(str(tar))), "") if unlabeled else _classified(tar)
        columns.paths += [f"{tar.name}{SEPARATOR}{name}" for name in found]
        labels += found.values()
    if not columns.paths:
        raise InputError(
            f"{source.path}: holds no image ({', '.join(PICTURES)}); at least one is needed. Give tars of images."
        )
    if not unlabeled:
        set_classes(columns, labels, folder / CLASS_FILE, lambda row: f"{folder / columns.paths[row]}")
    return columns


def _classified(tar: Path) -> dict[str, str]:
    """Class, as written, by image."""
    found = {}
    for key, sample in _samples(tar).items():
        pictures = [sample[ending] for ending in PICTURES if ending in sample]
        label = _class_of(tar, sample)
        if not pictures and label is None:
            continue
        if len(pictures) != 1:
            count = " and ".join(pictures) or "none"
            raise InputError(f"{tar}: key {key!r} has a class and as image {count}; one is needed. Mend the archive.")
        if label is None:
            raise InputError(
                f"{tar}: {pictures[0]} has no class; it must be in {key}.cls, in {key}.txt, or in {key}.json as "
                f"{' or '.join(JSON_FIELDS)}. Add it, or give the tars as unlabeled data."
            )
        found[pictures[0]] = label
    return found


def _samples(tar: Path) -> dict[str, Sample]:
    """Members by key and ending, both parted at the first point of the file name; hidden files left out."""
    samples: dict[str, Sample] = {}
    for name in members(str(tar)):
        folder, base = os.path.split(name)
        stem, _, ending = base.partition(".")
        if stem:
            samples.setdefault(os.path.join(folder, stem), {})[ending.lower()] = name
    return samples


def _class_of(tar: Path, sample: Sample) -> str | None:
    for ending in CLASSES:
        if ending not in sample:
            continue
        place = Path(f"{tar}{SEPARATOR}{sample[ending]}")
        text = read_bytes(place).decode("utf-8", "replace").strip()
        label = _json_class(text, place) if ending == "json" else text
        if label:
            return label
    return None


def _json_class(text: str, place: Path) -> str:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error}). Pack the archive again.") from None
    found = [fields[name] for name in JSON_FIELDS if name in fields] if isinstance(fields, dict) else []
    if found and type(found[0]) not in (str, int):
        raise InputError(
            f"{place}: class {json.dumps(found[0])}; it must be a name or a whole number. Mend it, or give the tars as "
            "unlabeled data."
        )
    return str(found[0]).strip() if found else ""
