"""What every training starts with: data opened, looked through, leaks taken out, said out loud."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig, RunConfig
from tutelage.data.check import CheckReport, check_sets
from tutelage.data.duplicates import near_duplicate_groups
from tutelage.data.index import Index
from tutelage.data.pseudo import score_limits
from tutelage.data.sources import DataSets, open_sources
from tutelage.data.splits import group_ids, merge_groups
from tutelage.tasks.table import TASKS
from tutelage.types import InputError
from tutelage.workflows.joint import open_classified


@dataclass(frozen=True)
class Prepared:
    """The sets of a run after the check."""

    sets: DataSets
    groups: NDArray[np.int64]  # (test images,) numbers of images resampled together
    val_groups: NDArray[np.int64]  # the same of the selection split
    check: CheckReport
    classified: Index | None = None  # images of a joint training

    @property
    def held_out(self) -> tuple[Index, ...]:
        """Test images and selection split: what nothing may be trained on."""
        return tuple(index for index in (self.sets.test, self.sets.val) if index is not None)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Content of each set, by the name of its option."""
        named = {
            "labeled": self.sets.labeled,
            "unlabeled": self.sets.pool,
            "val": self.sets.val,
            "test": self.sets.test,
            "classification": self.classified,
        }
        return {name: index.fingerprint for name, index in named.items() if index is not None}


def prepare(config: RunConfig) -> Prepared:
    """Opens and checks the data; labeled images that are also in test or val are taken out.

    Raises:
        InputError: from readers and check; no labeled image is left; or thresholds that are not of the classes.
    """
    classified = open_classified(config)
    groups = partial(near_duplicate_groups, data=config.data)
    annotation = TASKS[config.task].annotation
    sets = open_sources(config.sources, config.data, seed=config.seed, groups=groups, annotation=annotation)
    if sets.pool is not None:
        score_limits(config.pseudo, sets.labeled.class_names)  # refused here, not once the pool is labeled
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
    return Prepared(sets, test_groups, val_groups, report, classified)


def resampling_groups(index: Index, data: DataConfig) -> NDArray[np.int64]:
    """(n,) numbers of images that count as one: near-duplicates, and what `data.group` keeps together."""
    return merge_groups(group_ids(index, data.group), near_duplicate_groups(index, data))
