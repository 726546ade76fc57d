"""What a pre-training works on: opened once, checked against what its method needs, a part of each class held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig, PretrainConfig, RunConfig
from tutelage.data.duplicates import copies_of
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.readers import open_index
from tutelage.models.init import read_card
from tutelage.models.model import Classifier
from tutelage.types import InputError
from tutelage.workflows.stages import Stage, console, given_model


@dataclass(frozen=True)
class Needs:
    """What a method asks of its data."""

    classes: bool  # whether every image must be in one of at least two classes
    pool: bool  # whether unlabeled images are used
    teacher: bool = False  # whether a finished classifier is used
    held_out: str = "test_fraction"  # option of `pretrain`: the share of each class that is held out to measure
    clean_pool: bool = False  # whether the pool is trained on as it is, so that copies of held-out images must go first

    def share_held_out(self, config: PretrainConfig) -> float:
        """Of the images of each class."""
        share: float = attrgetter(self.held_out)(config)
        return share


@dataclass(frozen=True)
class PretrainData:
    """The images of a pre-training; rows of `held_out` are measured on and never trained on."""

    source: Index  # all images given
    labeled: Index | None  # the same where all of them are classified; None for plain images
    held_out: NDArray[np.int64]  # (h,) rows of `labeled`, sorted
    pool: Index | None  # --unlabeled
    teacher: Stage | None  # --teacher: a finished classifier of these classes
    leaks: int = 0  # images that were left out of the pool as copies of held-out ones

    @cached_property
    def images(self) -> Index:
        """All of the source to train on: what is not held out."""
        return self.source.select(np.setdiff1d(np.arange(len(self.source)), self.held_out))

    @property
    def split(self) -> dict[str, str]:
        """Which images a model was kept from, for its card."""
        return {"labeled": self.source.fingerprint, "held_out": self.source.select(self.held_out).fingerprint}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What was given, for `pin_data`."""
        pool = {} if self.pool is None else {"unlabeled": self.pool.fingerprint}
        teacher = {} if self.teacher is None else {"teacher": self.teacher.hash}
        return {"labeled": self.source.fingerprint, **pool, **teacher}


def open_data(config: RunConfig, needs: Needs) -> PretrainData:
    """The sources of a config as a method needs them, a share of each class held out.

    Raises:
        InputError: not one source, fewer than two classes where they are needed, a pool or teacher that
            would not be used or does not fit, a class that would be held out whole.
    """
    source = _open_source(config, needs)
    classes = source.image_classes()
    classified = len(source.class_names) >= 2 and bool((classes >= 0).all())
    if needs.classes and not classified:
        raise InputError(
            f"{config.sources.labeled[0]}: {len(source.class_names)} classes were found, and "
            f"{int((classes < 0).sum())} images without one; pre-training needs at least two classes and a class for "
            "every image. Give a folder of class folders, a csv of images and labels, or tars."
        )
    _refuse_unused(config, needs)
    pools = [open_index(pool, config.data, unlabeled=True) for pool in config.sources.unlabeled]
    return PretrainData(
        source=source,
        labeled=source if classified else None,
        held_out=_held_out(source, config, needs) if classified else np.zeros(0, np.int64),
        pool=join(pools) if pools else None,
        teacher=_given_teacher(config.sources.teacher, source.class_names) if config.sources.teacher else None,
    )


def without_leaks(data: PretrainData, config: DataConfig) -> PretrainData:
    """The same with a pool that holds no copies of held-out images, which are counted; decodes every image once."""
    if data.pool is None or not len(data.held_out):
        return data
    leaks = copies_of(data.source.select(data.held_out), data.pool, config)
    if len(leaks):
        console.print(f"--unlabeled: {len(leaks)} of {len(data.pool)} images are also held out, and are not used.")
    kept = np.setdiff1d(np.arange(len(data.pool)), leaks)
    return replace(data, pool=data.pool.select(kept), leaks=len(leaks))


def _held_out(source: Index, config: RunConfig, needs: Needs) -> NDArray[np.int64]:
    """Rows (h,) that are held out; a class of which nothing would be left to train on is an `InputError`."""
    fraction, classes = needs.share_held_out(config.pretrain), source.image_classes()
    rows = held_out_rows(classes, fraction, config.seed)
    whole = np.setdiff1d(classes[rows], np.delete(classes, rows))
    if len(whole):
        raise InputError(
            f"pretrain.{needs.held_out}={fraction}: holds out all {(classes == whole[0]).sum()} images of class "
            f"{source.class_names[whole[0]]!r}; each class needs one to train on. Lower it, or give more images."
        )
    return rows


def held_out_rows(classes: NDArray[np.int32], fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows (h,) of a seeded part of each class, sorted."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC1A55]))
    parts = []
    for label in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == label))
        parts.append(rows[: round(len(rows) * fraction)])
    return np.sort(np.concatenate(parts))


def _open_source(config: RunConfig, needs: Needs) -> Index:
    """The images, with their classes where there are some or they are needed."""
    if len(config.sources.labeled) != 1:
        raise InputError(
            f"sources.labeled: holds {len(config.sources.labeled)} sources; pre-training takes one. Give it as SOURCE."
        )
    source = config.sources.labeled[0]
    try:
        return open_index(source, config.data)
    except InputError as error:
        if needs.classes:
            raise
        plain = open_index(source, config.data, unlabeled=True)
        console.print(f"No classes to probe with: {error}")
        return plain


def _refuse_unused(config: RunConfig, needs: Needs) -> None:
    for option, given, used in (
        ("--unlabeled", config.sources.unlabeled, needs.pool),
        ("--teacher", config.sources.teacher, needs.teacher),
    ):
        if given and not used:
            raise InputError(
                f"{option}: pretrain.method={config.pretrain.method} has no use for it. Leave it out, or set "
                "pretrain.method=noisy-student."
            )


def _given_teacher(path: str, class_names: tuple[str, ...]) -> Stage:
    """The classifier of a folder, in the place of a trained teacher."""
    teacher = given_model("teacher", Path(path))
    card = read_card(teacher.model_folder)
    if card["kind"] != Classifier.kind:
        raise InputError(f"--teacher {path}: holds a {card['kind']}; a classifier is needed, as `pretrain` makes one.")
    if tuple(card["class_names"]) != class_names:
        raise InputError(
            f"--teacher {path}: its {len(card['class_names'])} classes ({', '.join(card['class_names'][:5])}, ...) are "
            f"not the {len(class_names)} of the labeled images ({', '.join(class_names[:5])}, ...), in this order. "
            "Give a teacher of the same classes, or leave it out to train one."
        )
    return teacher
