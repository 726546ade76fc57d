"""What is in the data sets of a run and what is wrong with them, before any training.

Stops what must not be trained on (test and selection images among the labels); counts and names everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.duplicates import Leaks, leaks_between
from tutelage.data.findings import Finding, box_findings, counted, image_findings, size_findings
from tutelage.data.gap import Gap, gap_between, pool_sample
from tutelage.data.index import Index
from tutelage.data.mask_findings import ignored_share, mask_findings
from tutelage.data.sources import DataSets
from tutelage.data.summary import MaskSummary, Summary, summarize, summarize_masks
from tutelage.data.survey import Survey, survey
from tutelage.types import InputError

MAX_LEAKED = 0.05  # share of labeled images in test or val above which something is wrong with the split
EQUAL_POOL = 0.95  # share of sampled pool images in test above which the pool is the test set
HELD_OUT = {"test": "the test set", "val": "the selection split"}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything that the check found."""

    summaries: list[Summary | MaskSummary]
    findings: list[Finding]
    leaks: dict[str, Leaks]  # labeled images that are also in "test" and "val"; absent where that was not looked at
    pool_looked_at: int
    gap: Gap | None

    @property
    def leaked_rows(self) -> NDArray[np.int64]:
        """Rows of the labeled images that must be left out, because the test set or the selection split holds them."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(leaks.rows for leaks in self.leaks.values())]))

    def lines(self) -> list[str]:
        """The report as text, a fact a line."""
        found = [line for summary in self.summaries for line in summary.lines()]
        found += [finding.line for finding in self.findings]
        clean = [HELD_OUT[name] for name, leaks in self.leaks.items() if not len(leaks)]
        if clean:
            found.append(f"leaks: no labeled image is in {' or '.join(clean)}")
        if self.gap is not None:
            found.append(self.gap.sentence())
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for run.json."""
        return {
            "lines": self.lines(),
            "findings": [{"set": one.where, "text": one.text, "count": one.count} for one in self.findings],
            "leaked_images": len(self.leaked_rows),
            "pool_images_looked_at": self.pool_looked_at,
            "gap": self.gap.value if self.gap is not None else None,
            "gap_parts": self.gap.parts if self.gap is not None else {},
        }


def check_sets(sets: DataSets, data: DataConfig, *, seed: int, annotations_only: bool = False) -> CheckReport:
    """Looks at all labeled, selection and test images, and at a seeded sample of the pool.

    Args:
        sets: what is about to be used.
        data: how it is read.
        seed: of the sample.
        annotations_only: leave the images closed; copies and the domain gap are not looked for then.

    Raises:
        InputError: images that cannot be used; more than MAX_LEAKED of the labeled images in test or val; the pool is
            the test set.
    """
    people = {"labeled": sets.labeled, "val": sets.val, "test": sets.test}
    labeled_sets = {name: index for name, index in people.items() if index is not None}
    looks = {} if annotations_only else {name: survey(index, data) for name, index in labeled_sets.items()}
    summaries: list[Summary | MaskSummary] = []
    findings: list[Finding] = []
    for name, index in labeled_sets.items():
        summary, found = (_masks if index.has_masks else _boxes)(name, index, looks.get(name), data)
        summaries.append(summary)
        findings += [*found, *(image_findings(name, index, looks[name]) if name in looks else ())]
    findings += _class_findings(labeled_sets)
    leaks: dict[str, Leaks] = {}
    gap, looked_at = None, 0
    if not annotations_only:
        leaks = _refuse_leaks(sets, looks)
        findings += _shared_findings(sets, looks, leaks)
    if sets.pool is not None:
        sample = pool_sample(sets.pool, seed)
        look = None if annotations_only else survey(sample, data, tolerant=True)
        summaries.insert(1, summarize("pool", sets.pool, look, hidden=True))
        if look is not None:
            findings += [*image_findings("pool", sample, look), *_pool_findings(look, looks)]
            findings += () if sample.has_masks else size_findings("pool", sample, look, data)
            gap, looked_at = gap_between(looks["labeled"], look), len(sample)
    return CheckReport(summaries, findings, leaks, looked_at, gap)


def _boxes(name: str, index: Index, look: Survey | None, data: DataConfig) -> tuple[Summary, list[Finding]]:
    found = list(box_findings(name, index, look))
    if look is not None:
        found += size_findings(name, index, look, data)
    return summarize(name, index, look), found


def _masks(name: str, index: Index, look: Survey | None, data: DataConfig) -> tuple[MaskSummary, list[Finding]]:
    return summarize_masks(name, index, look, ignored_share(index)), list(mask_findings(name, index, look, data))


def _class_findings(labeled_sets: dict[str, Index]) -> Iterator[Finding]:
    """Classes that are measured but never shown to the teacher."""
    shown = np.bincount(labeled_sets["labeled"].box_columns().labels, minlength=1)
    for name, index in labeled_sets.items():
        counts = np.bincount(index.box_columns().labels, minlength=len(shown))
        missing = [label for label in np.flatnonzero(counts) if label >= len(shown) or not shown[label]]
        if missing:
            amounts = [counted(int(count), "image") if index.has_masks else str(count) for count in counts]
            names = ", ".join(f"{index.class_names[label]} ({amounts[label]})" for label in missing)
            things = "pixels" if index.has_masks else "boxes"
            text = f"{things} of classes without a labeled example, which cannot be learned: {names}"
            yield Finding(name, text, len(missing))


def _refuse_leaks(sets: DataSets, looks: dict[str, Survey]) -> dict[str, Leaks]:
    """Labeled images that are in test, and in val.

    Raises:
        InputError: so many that the split is wrong.
    """
    found: dict[str, Leaks] = {}
    for name, other in (("test", sets.test), ("val", sets.val)):
        if other is None:
            continue
        leaks = found[name] = leaks_between(looks["labeled"].prints, looks[name].prints)
        if len(leaks) > MAX_LEAKED * len(sets.labeled):
            instead = {"test": "leave out --test to have a fifth of the labels split off", "val": "leave out --val"}
            raise InputError(
                f"--labeled: {len(leaks)} of {counted(len(sets.labeled), 'image')} are also in {HELD_OUT[name]} "
                f"({_example(leaks, sets.labeled, other)}); at most {MAX_LEAKED:.0%} may be, and are left out. "
                f"Remove them from one of the two, or {instead[name]}."
            )
    return found


def _example(leaks: Leaks, labeled: Index, other: Index) -> str:
    same = "equals" if leaks.exact[0] else "looks like"
    return f"{labeled.relative_path(int(leaks.rows[0]))} {same} {other.relative_path(int(leaks.twins[0]))}"


def _shared_findings(sets: DataSets, looks: dict[str, Survey], leaks: dict[str, Leaks]) -> Iterator[Finding]:
    for name, other in (("test", sets.test), ("val", sets.val)):
        if other is not None and len(leaks[name]):
            text = f"{counted(len(leaks[name]), 'image')} also in {HELD_OUT[name]}, left out of training"
            yield Finding("labeled", text, len(leaks[name]), (_example(leaks[name], sets.labeled, other),))
    if sets.val is not None and sets.test is not None:
        shared = leaks_between(looks["val"].prints, looks["test"].prints)
        if len(shared):
            text = f"{counted(len(shared), 'image')} also in test; what is chosen on them is chosen with hindsight"
            yield Finding("val", text, len(shared), (_example(shared, sets.val, sets.test),))


def _pool_findings(look: Survey, looks: dict[str, Survey]) -> Iterator[Finding]:
    """Pool images that are also labeled, in test or in val.

    Raises:
        InputError: the pool is the test set.
    """
    usable = int(look.usable.sum())
    for name in ("test", "val", "labeled"):
        shared = len(leaks_between(look.prints, looks[name].prints)) if name in looks else 0
        if name == "test" and shared > EQUAL_POOL * max(usable, 1):
            raise InputError(
                f"--unlabeled: {shared} of {usable} sampled images are also in the test set; a pool must hold other "
                "images. Give images that nothing is measured on."
            )
        if shared:
            text = f"{shared} of {usable} sampled images are also in {name}"
            remedy = "such are left out as they are labeled" if name != "labeled" else "they teach nothing new"
            yield Finding("pool", f"{text}; {remedy}", shared)
