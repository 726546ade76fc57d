"""Which mask belongs to which image: by stem, without the suffixes that tools add."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.data.readers.source import Source, first_five, image_names, images_by_stem, read_text
from tutelage.types import InputError

MASK_SUFFIXES = (
    "",
    "_gtFine_labelTrainIds",
    "_gtFine_labelIds",
    "_gtCoarse_labelTrainIds",
    "_gtCoarse_labelIds",
    "_labelTrainIds",
    "_labelIds",
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_seg",
    "_segmentation",
    "_gt",
    "_annotation",
    "_annot",
    "_L",
)
"""What tools add to the stem of the image, the preferred first."""

IMAGE_SUFFIXES = ("", "_leftImg8bit", "_image", "_img", "_sat", "_rgb")
BESIDE = MASK_SUFFIXES[1:]  # where images and masks lie in one folder
NO_CLASSES = re.compile(r"_(colou?r|instanceIds|instanceTrainIds|instances?|parts_\d+|overlay)$")


@dataclass(frozen=True)
class Pairs:
    """Images with their masks, and images without."""

    images: list[str]  # (n,) below the folder of images
    masks: list[str]  # (n,) below the folder of masks
    bare: list[str] = field(default_factory=list)


def mask_base(stem: str, images: Container[str], suffixes: Sequence[str] = MASK_SUFFIXES) -> str | None:
    """The image of these stems that a mask's stem belongs to."""
    for suffix in suffixes:
        if stem.endswith(suffix) and (base := stem[: len(stem) - len(suffix)]) in images:
            return base
    return None


def pairs_of_folders(source: Source, images: Path | None) -> Pairs:
    """Pairs of a folder of images and a folder of masks, which may be one; without images masks are paired alone.

    Raises:
        InputError: no mask belongs to an image, or one to none.
    """
    assert source.masks is not None
    masks = {stem: name for stem, name in _by_stem(source.masks).items() if not NO_CLASSES.search(stem)}
    if images is None:
        return Pairs([_without(MASK_SUFFIXES, stem) + ".jpg" for stem in masks], list(masks.values()))
    pictures = _by_stem(images)
    if images == source.masks:
        masks = {stem: name for stem, name in masks.items() if mask_base(stem, pictures, BESIDE)}
        pictures = {s: name for s, name in pictures.items() if s not in masks and not NO_CLASSES.search(s)}
    stems = {_without(IMAGE_SUFFIXES, stem): stem for stem in pictures} | {stem: stem for stem in pictures}
    found, lone = _matched(masks, stems)
    if not found and len(names := {os.path.basename(key): stem for key, stem in stems.items()}) == len(stems):
        # one of both trees is flat
        found, lone = _matched({os.path.basename(stem): name for stem, name in masks.items()}, names)
    if lone:
        raise _lone_masks(source, images, lone, len(masks))
    rows = sorted((pictures[stem], name) for stem, (_, name) in found.items())
    bare = sorted(name for stem, name in pictures.items() if stem not in found)
    return Pairs([image for image, _ in rows], [mask for _, mask in rows], bare)


def pairs_of_list(source: Source, images: Path) -> Pairs:
    """Pairs that a list of VOC names.

    Raises:
        InputError: an entry has no image, or no entry has a mask.
    """
    assert source.listed is not None and source.masks is not None
    lines = [line.split("#")[0].split() for line in read_text(source.listed).splitlines()]
    stems = [os.path.splitext(os.path.basename(words[0]))[0] for words in lines if words]
    pictures, masks = images_by_stem(images), images_by_stem(source.masks)
    if absent := [stem for stem in stems if stem not in pictures]:
        raise InputError(
            f"{source.listed}: {len(absent)} of {len(stems)} entries have no image in {images} (first: "
            f"{first_five(absent)}). Add the images, or remove the entries."
        )
    paired = [stem for stem in stems if stem in masks]
    if not paired:
        raise InputError(f"{source.listed}: none of {len(stems)} entries has a mask in {source.masks}. Add the masks.")
    bare = [pictures[stem] for stem in stems if stem not in masks]
    return Pairs([pictures[stem] for stem in paired], [masks[stem] for stem in paired], bare)


def pairs_of_ade20k(source: Source, images: Path) -> Pairs:
    """Pairs of the full ADE20K; its masks of parts and instances are left out."""
    files = images_by_stem(images)
    stems = [stem for stem, name in files.items() if name.endswith(".jpg")]
    paired = [stem for stem in stems if f"{stem}_seg" in files]
    bare = [files[stem] for stem in stems if f"{stem}_seg" not in files]
    return Pairs([files[stem] for stem in paired], [files[f"{stem}_seg"] for stem in paired], bare)


def _by_stem(folder: Path) -> dict[str, str]:
    """Relative paths of the pictures in a tree by their stems, which must differ."""
    found: dict[str, str] = {}
    for name in image_names(folder):
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise InputError(
                f"{folder}: {found[stem]!r} and {name!r} have one stem, by which images and masks are matched. Rename "
                "or remove one."
            )
        found[stem] = name
    return found


def _without(suffixes: Sequence[str], stem: str) -> str:
    return next((stem[: -len(suffix)] for suffix in suffixes if suffix and stem.endswith(suffix)), stem)


def _matched(masks: dict[str, str], images: dict[str, str]) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """For each image's stem its mask, with the preferred suffix, and that suffix' place; and masks without image."""
    found: dict[str, tuple[int, str]] = {}
    lone = []
    for stem, name in masks.items():
        base = mask_base(stem, images)
        if base is None:
            lone.append(name)
            continue
        rank = MASK_SUFFIXES.index(stem[len(base) :])
        found[images[base]] = min(found.get(images[base], (rank, name)), (rank, name))
    return found, lone


def _lone_masks(source: Source, images: Path, lone: list[str], count: int) -> InputError:
    remedy = "Add the images, or remove these masks."
    if len(lone) == count:
        remedy = "Name the folder of images with --images."
    return InputError(
        f"{source.path}: {len(lone)} of {count} masks in {source.masks} have no image in {images} (first: "
        f"{first_five(lone)}); they are matched by stem. {remedy}"
    )
