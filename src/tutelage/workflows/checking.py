"""The verb `check`: what is in a data set and what is wrong with it, before any training."""

from __future__ import annotations

from pathlib import Path

from tutelage.data.check import CheckReport, check_sets
from tutelage.data.sheets import augmentation_sheet, contact_sheet
from tutelage.data.sources import open_sources
from tutelage.tasks.table import TASKS
from tutelage.types import InputError
from tutelage.workflows.options import Paths, require_sources, resolve


def check(
    *,
    labeled: Paths = (),
    unlabeled: Paths = (),
    val: Paths = (),
    test: Paths = (),
    task: str = "",
    labeled_list: str | Path = "",
    images: str | Path = "",
    annotations_only: bool = False,
    sheet: str | Path = "",
    augment_sheet: str | Path = "",
    seed: int | None = None,
    overrides: tuple[str, ...] = (),
) -> CheckReport:
    """Looks through the data and prints what it found.

    Args:
        labeled: labeled data.
        unlabeled: the pool, of which a seeded sample is looked at.
        val: selection split.
        test: test split.
        task: detection (unless named) or segmentation.
        labeled_list: text file of the images that keep their labels.
        images: folder that image paths in annotations are relative to.
        annotations_only: leave the images closed.
        sheet: PNG file for a contact sheet of labeled images.
        augment_sheet: PNG file for one labeled image under S1 to S4.
        seed: of the samples.
        overrides: `key=value` options.

    Raises:
        InputError: the data cannot be read, or must not be trained on as it is.
    """
    given = {"labeled": labeled, "unlabeled": unlabeled, "val": val, "test": test}
    sources: dict[str, Paths] = {**given, "labeled_list": labeled_list, "images": images}
    config = resolve("", overrides, sources, task=task, seed=seed)
    require_sources(config, "labeled")
    for option, target in (("--sheet", sheet), ("--augment-sheet", augment_sheet)):
        if target:
            _require_picture_place(option, Path(target), annotations_only)
    sets = open_sources(
        config.sources,
        config.data,
        seed=config.seed,
        annotations_only=annotations_only,
        annotation=TASKS[config.task].annotation,
    )
    report = check_sets(sets, config.data, seed=config.seed, annotations_only=annotations_only)
    print("\n".join(report.lines()))
    if sheet:
        contact_sheet(sets.labeled, config.data, seed=config.seed).save(sheet)
        print(f"Contact sheet: {sheet}")
    if augment_sheet:
        augmentation_sheet(sets.labeled, config.data, seed=config.seed).save(augment_sheet)
        print(f"One image under S1 to S4: {augment_sheet}")
    return report


def _require_picture_place(option: str, target: Path, annotations_only: bool) -> None:
    """Refuses, before any work, what a picture cannot be written to or made from (`InputError`)."""
    if annotations_only:
        raise InputError(f"{option}: shows images, which --annotations-only leaves closed. Leave one of the two out.")
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg") or not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{option}: {target} must be a .png or .jpg file in a folder that exists. Change it.")
