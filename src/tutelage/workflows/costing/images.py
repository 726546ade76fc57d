"""How many images a run has: counted in its sources as the run would, given as numbers, or those of the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tutelage.config import RunConfig
from tutelage.data.sources import open_sources
from tutelage.tasks.table import TASKS
from tutelage.types import InputError
from tutelage.workflows.pretraining.command import METHODS
from tutelage.workflows.pretraining.data import open_data

PAPER: dict[str, tuple[int, int]] = {
    "detection": (118_287, 1_281_167),  # COCO train2017 and ImageNet: arXiv:2006.06882, sec. 3.2
    "segmentation": (1_464, 9_118),  # PASCAL VOC 2012 train, and what the augmented set adds to it
    "supervised": (1_281_167, 0),  # ImageNet
    "simclr": (1_281_167, 0),
    "noisy-student": (1_281_167, 300_000_000),  # and JFT: arXiv:1911.04252
}
"""Labeled images and pool where nothing else is said, by task or method of pre-training."""


@dataclass(frozen=True)
class Images:
    """How many images a run works on."""

    labeled: int  # trained on with labels
    pool: int
    test: int  # measured on
    num_classes: int  # 0 where no data says so
    origin: str  # counted, given, or the paper's, in words


def pretrains(config: RunConfig) -> bool:
    """Whether a config is for `tutelage pretrain`: it sets `pretrain` and no task, which the others do."""
    return "pretrain" in config.model_fields_set and "task" not in config.model_fields_set


def count_images(config: RunConfig, labeled: int = 0, pool: int = 0) -> Images:
    """The images of a config: those of its sources, without decoding one; or numbers, the paper's where they are 0.

    Numbers are those before `data.labeled_fraction` takes labels away.

    Raises:
        InputError: sources that cannot be read, a pool without labeled data, or negative numbers.
    """
    for option, number in (("--labeled-images", labeled), ("--pool-images", pool)):
        if number < 0:
            raise InputError(f"{option}: found {number}; 0 (not said) or more is allowed. Change it.")
    if config.sources.unlabeled and (not config.sources.labeled or (labeled and not pool)):
        raise InputError("--unlabeled: is counted with the labeled data only. Add --labeled, or give --pool-images.")
    if config.sources.labeled and not labeled:
        counted = _counted_classes(config) if pretrains(config) else _counted(config)
        return replace(counted, pool=pool or counted.pool)
    usual = PAPER[config.pretrain.method if pretrains(config) else config.task]
    origin = _origin(bool(labeled), bool(pool or not usual[1]))
    total, pool = labeled or usual[0], pool or usual[1]
    if pretrains(config):
        test = round(total * METHODS[config.pretrain.method].needs.share_held_out(config.pretrain))
        return Images(total - test, pool, test, 0, origin)
    kept = max(1, round(total * config.data.labeled_fraction))
    return Images(kept, pool + (total - kept) * config.data.rest_as_pool, 0, 0, origin)


def _origin(labeled: bool, pool: bool) -> str:
    if labeled and pool:
        return "given"
    return "labeled given, pool the paper's" if labeled else "the paper's"


def _counted(config: RunConfig) -> Images:
    sets = open_sources(
        config.sources, config.data, seed=config.seed, annotations_only=True, annotation=TASKS[config.task].annotation
    )
    pool, test = (len(index) if index is not None else 0 for index in (sets.pool, sets.test))
    return Images(len(sets.labeled), pool, test, len(sets.labeled.class_names), "counted")


def _counted_classes(config: RunConfig) -> Images:
    method = METHODS[config.pretrain.method]
    data = open_data(config, method.needs)
    pool = 0 if data.pool is None else len(data.pool)
    return Images(len(data.images), pool, len(data.held_out), len(data.source.class_names), "counted")
