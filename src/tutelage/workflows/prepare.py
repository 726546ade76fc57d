"""What every training starts with: data opened, looked through, leaks taken out, said out loud."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig, RunConfig
from tutelage.data.apart import Apart, set_apart
from tutelage.data.check import CheckReport, check_sets
from tutelage.data.duplicates import copies_of, near_duplicate_groups
from tutelage.data.index import Index
from tutelage.data.pseudo import Verdicts, read_verdicts, score_limits
from tutelage.data.pseudo.verdicts import require_fitting
from tutelage.data.sources import DataSets, open_sources
from tutelage.data.splits import group_ids, merge_groups
from tutelage.tasks.table import TASKS
from tutelage.types import InputError
from tutelage.workflows.joint import open_classified
from tutelage.workflows.stages import console


@dataclass(frozen=True)
class Prepared:
    """The sets of a run after the check."""

    sets: DataSets
    groups: NDArray[np.int64]  # (test images,) numbers of images resampled together
    val_groups: NDArray[np.int64]  # the same of the selection split
    check: CheckReport
    classified: Index | None = None  # images of a joint training
    verdicts: Verdicts | None = None  # what people said of the pool's pseudo-labels
    apart: Apart | None = None  # images that pseudo-labels are certified on

    @property
    def held_out(self) -> tuple[Index, ...]:
        """Test images, selection split and what is certified on: what nothing may be trained on."""
        return tuple(index for index in (self.sets.test, self.sets.val, self._aside) if index is not None)

    @property
    def _aside(self) -> Index | None:
        return self.apart.images if self.apart is not None and self.apart.certified else None

    def lines(self) -> list[str]:
        """What the check found and what is set aside, as text."""
        return [*self.check.lines(), *([self.apart.note] if self.apart is not None else [])]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Content of each set, by the name of its option."""
        named = {
            "labeled": self.sets.labeled,
            "unlabeled": self.sets.pool,
            "val": self.sets.val,
            "test": self.sets.test,
            "classification": self.classified,
            "certify": self._aside,
        }
        said = {"verdicts": self.verdicts.digest()} if self.verdicts else {}
        return {name: index.fingerprint for name, index in named.items() if index is not None} | said


def prepare(config: RunConfig) -> Prepared:
    """Opens and checks the data; labeled images that are also in test or val are taken out.

    Raises:
        InputError: from readers and check; no labeled image is left; or thresholds that are not of the classes.
    """
    classified = open_classified(config)
    groups = partial(near_duplicate_groups, data=config.data)
    annotation = TASKS[config.task].annotation
    sets = open_sources(config.sources, config.data, seed=config.seed, groups=groups, annotation=annotation)
    if sets.pool is not None and config.pseudo.score_threshold != "certified":
        score_limits(config.pseudo, sets.labeled.class_names)  # refused here, not once the pool is labeled
    verdicts = _open_verdicts(config, sets)
    report = check_sets(sets, config.data, seed=config.seed)
    if len(report.leaked_rows):
        keep = np.setdiff1d(np.arange(len(sets.labeled)), report.leaked_rows)
        sets = replace(sets, labeled=sets.labeled.select(keep))
    if len(sets.labeled) == 0:
        raise InputError(
            "--labeled: no image is left to train on. Give labeled images that are in neither --test nor --val."
        )
    test_groups, val_groups = (
        resampling_groups(index, config.data) if index is not None else np.zeros(0, np.int64)
        for index in (sets.test, sets.val)
    )
    sets, apart = _set_apart(sets, config)
    prepared = Prepared(sets, test_groups, val_groups, report, classified, verdicts, apart)
    return _without_classified_copies(prepared, config)


def _without_classified_copies(prepared: Prepared, config: RunConfig) -> Prepared:
    """The same without classified images that are also held out, which are counted."""
    classified, held_out = prepared.classified, prepared.held_out
    if classified is None or not held_out:
        return prepared
    copies = np.unique(np.concatenate([copies_of(one, classified, config.data) for one in held_out]))
    if not len(copies):
        return prepared
    note = (
        f"--classification: {len(copies)} of {len(classified)} images are also held out (test set, selection split, or "
        "set aside to certify on), and are not used."
    )
    console.print(note)
    kept = classified.select(np.setdiff1d(np.arange(len(classified)), copies))
    sets = replace(prepared.sets, notes=[*prepared.sets.notes, note])
    return replace(prepared, sets=sets, classified=kept)


def _set_apart(sets: DataSets, config: RunConfig) -> tuple[DataSets, Apart | None]:
    """The sets without what is set aside to certify on, where a certificate is asked for."""
    if not config.certifies:
        return sets, None
    groups = resampling_groups(sets.labeled, config.data)
    labeled, apart = set_apart(sets.labeled, groups, config.certify, config.seed)
    return replace(sets, labeled=labeled, notes=[*sets.notes, apart.note]), apart


def _open_verdicts(config: RunConfig, sets: DataSets) -> Verdicts | None:
    """What people said, if it speaks of this pool; None where nothing was given.

    Raises:
        InputError: malformed, or about other images or classes; or there is no pool.
    """
    if not config.sources.verdicts:
        return None
    if sets.pool is None:
        raise InputError("--verdicts: are about the images of a pool, and there is none. Add --unlabeled POOL.")
    verdicts = read_verdicts(Path(config.sources.verdicts))
    names, annotation = sets.labeled.class_names, TASKS[config.task].annotation
    paths = sets.pool.relative_paths().to_pylist()
    require_fitting(verdicts, names, annotation, paths, f"--verdicts {config.sources.verdicts}")
    return verdicts


def resampling_groups(index: Index, data: DataConfig) -> NDArray[np.int64]:
    """(n,) numbers of images that count as one: near-duplicates, and what `data.group` keeps together."""
    return merge_groups(group_ids(index, data.group), near_duplicate_groups(index, data))
