"""From what the user names to the data sets of a run: labeled, pool, selection split and test split.

Several sources are joined by class name; images are split, hidden and excluded here and nowhere else, always seeded,
and every decision that nobody asked for is said in `DataSets.notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig, SourcesConfig
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.listed import listed_rows, rows_at
from tutelage.data.readers import Opened, Source, choose_split, locate, open_source, unlisted_error
from tutelage.data.readers.source import first_five
from tutelage.data.readers.yolo import label_folder
from tutelage.data.splits import draw_split, group_ids, merge_groups, stratified_order
from tutelage.types import Annotation, InputError

MIN_TEST, MIN_VAL, MAX_SHARE = 20, 10, 0.4  # images; images; share of the labels
TEST_STREAM, VAL_STREAM, FRACTION_STREAM = 1, 2, 3  # independent random numbers for each decision

Groups = Callable[[Index], NDArray[np.int64]]


@dataclass(frozen=True)
class DataSets:
    """What a run works on; all share one class list."""

    labeled: Index
    pool: Index | None
    hidden_labels: bool  # whether every pool image has human labels, which training does not see
    val: Index | None
    test: Index | None
    notes: list[str]  # decisions and limits, one sentence each


@dataclass
class _Parts:
    """Opened sources by role."""

    labeled: list[Opened]
    pool: list[Opened]
    val: list[Opened]
    test: list[Opened]
    notes: list[str] = field(default_factory=list)

    def all(self) -> list[Opened]:
        return [*self.labeled, *self.pool, *self.val, *self.test]


def open_sources(
    sources: SourcesConfig,
    data: DataConfig,
    *,
    seed: int,
    annotations_only: bool = False,
    groups: Groups | None = None,
    annotation: Annotation = "boxes",
) -> DataSets:
    """Opens, joins and splits everything that a run reads.

    Args:
        sources: files and folders by role; splits that a labeled source offers fill empty `val` and `test`.
        data: how to read and to split.
        seed: of every split.
        annotations_only: without the images.
        groups: near-duplicate groups of images, asked only when something is split off.
        annotation: what is wanted of the sources.

    Raises:
        InputError: nothing labeled, an empty pool, class lists that disagree, list entries that are not found.
    """
    if not sources.labeled:
        raise InputError("--labeled: nothing given; training needs labels. Name an annotation file or a folder.")
    parts = _open_parts(sources, data, annotations_only, annotation)
    extra = _settle_unlisted(parts, data)
    labeled = _joined(parts.labeled, "labeled")
    val, test = (_joined(part, role) if part else None for part, role in ((parts.val, "val"), (parts.test, "test")))
    labeled, val, test = _one_class_list(labeled, val, test, parts.notes)
    keep = listed_rows(labeled, Path(sources.labeled_list)) if sources.labeled_list else np.arange(len(labeled))
    rest = np.setdiff1d(np.arange(len(labeled)), keep)
    if test is None or (val is None and data.val_fraction > 0):
        ids = _together(labeled, np.union1d(keep, rest) if data.rest_as_pool else keep, data, groups)
        before = keep
        keep, val, test = _split_off(labeled, keep, val, test, ids, data, seed, parts.notes)
        rest = _without_groups(rest, ids, np.setdiff1d(before, keep), parts.notes)
    keep, unused = _labeled_share(labeled, keep, data, seed)
    hidden = labeled.select(np.sort(np.concatenate([rest, unused]))) if data.rest_as_pool else None
    labeled = labeled.select(keep)
    _require_labels(labeled, "labeled")
    pool = _pool(parts, [*extra, *([hidden] if hidden is not None and len(hidden) else [])], labeled, val, test)
    return DataSets(labeled, pool, pool is not None and pool.annotated, val, test, parts.notes)


def _open_parts(sources: SourcesConfig, data: DataConfig, annotations_only: bool, annotation: Annotation) -> _Parts:
    def opened(source: Source, unlabeled: bool = False) -> Opened:
        return open_source(
            source,
            data,
            images=sources.images,
            unlabeled=unlabeled,
            annotations_only=annotations_only,
            annotation=annotation,
        )

    def of_split(name: str, split: str, unlabeled: bool = False) -> Source:
        return choose_split(name, split, unlabeled, annotation)

    offered = [locate(name, annotation=annotation) for name in sources.labeled]
    notes: list[str] = []
    chosen = {
        role: [of_split(name, split_for(name, role, annotation)) for name in given]
        if given
        else _offered(offered, role, notes)
        for role, given in (("val", sources.val), ("test", sources.test))
    }
    return _Parts(
        labeled=[opened(of_split(name, "train")) for name in sources.labeled],
        pool=[opened(of_split(name, "train", unlabeled=True), unlabeled=True) for name in sources.unlabeled],
        val=[opened(source) for source in chosen["val"]],
        test=[opened(source) for source in chosen["test"]],
        notes=notes,
    )


def split_for(source: str, role: str, annotation: Annotation) -> str:
    """The split of a source that was named for a role: the role's, else the other held-out one."""
    found = locate(source, annotation=annotation)
    return next((split for split in (role, "test", "val") if split in found), "train")


def _offered(offered: Sequence[dict[str, Source]], role: str, notes: list[str]) -> list[Source]:
    """Splits of labeled sources that fill a role nobody filled."""
    found = []
    for splits in offered:
        if role not in splits or len(splits) < 2:
            continue
        source = splits[role]
        if all(place.exists() or label_folder(place).is_dir() for place in source.images):
            found.append(source)
            notes.append(f"{role} is the {role} split of {source.path}.")
        else:
            notes.append(f"{source.path} names a {role} split that is not there; it is not used.")
    return found


def _settle_unlisted(parts: _Parts, data: DataConfig) -> list[Index]:
    """Applies data.unlisted; files that another source lists are not unlisted. Returns those that join the pool."""
    extra: list[Index] = []
    for role in (parts.labeled, parts.val, parts.test):
        for number, opened in enumerate(role):
            unlisted = _truly_unlisted(opened, parts)
            if unlisted is None:
                continue
            if data.unlisted == "error" or (data.unlisted == "negative" and opened.index.has_masks):
                raise unlisted_error(Opened(opened.index, unlisted))
            if data.unlisted == "negative":
                role[number] = Opened(join([opened.index, unlisted]), None)
                parts.notes.append(f"{len(unlisted)} unlisted images count as negatives.")
            elif role is parts.labeled:
                extra.append(unlisted)
                parts.notes.append(f"{len(unlisted)} unlisted images join the pool.")
            else:
                parts.notes.append(f"{len(unlisted)} unlisted images beside val or test are not used.")
    return extra


def _truly_unlisted(opened: Opened, parts: _Parts) -> Index | None:
    if opened.unlisted is None:
        return None
    paths = [str(opened.unlisted.path(row)) for row in range(len(opened.unlisted))]
    known: set[str] = set()
    for other in parts.all():
        if other is not opened:
            rows = np.flatnonzero(rows_at(other.index, paths))
            known.update(str(other.index.path(int(row))) for row in rows)
    left = np.array([path not in known for path in paths])
    return opened.unlisted.select(left) if left.any() else None


def _joined(parts: Sequence[Opened], role: str) -> Index:
    indexes = [part.index for part in parts]
    for one in indexes:
        for other in indexes:
            _require_known(one, other, role)
    index = join(indexes)
    _require_labels(index, role)
    return index


def _require_known(one: Index, other: Index, role: str) -> None:
    """A class that one source has boxes of must stand in the class list of the other, if that has one."""
    extra = [name for name in one.class_names if name not in other.class_names]
    if not extra or not other.declared:
        return
    used = [one.class_names[label] for label in np.unique(one.box_columns().labels)]
    if lacking := [name for name in extra if name in used]:
        near = get_close_matches(lacking[0], other.class_names, 1, 0.5)
        hint = f" Is {lacking[0]!r} the same as {near[0]!r}?" if near else ""
        raise InputError(
            f"--{role}: class lists disagree: {one.description} has {_labels_of(one)} of {first_five(lacking)}, which "
            f"{other.description} does not list (it lists {first_five(other.class_names)}). Make the names equal, or "
            f"add the class to both.{hint}"
        )


def _require_labels(index: Index, role: str) -> None:
    if not index.annotated or index.num_boxes == 0:
        one, wanted = ("labeled pixel", "masks") if index.has_masks else ("box", "annotations with boxes")
        raise InputError(
            f"--{role}: no labels: {index.description} has no {one}. Give {wanted}, or use it as --unlabeled."
        )


def _labels_of(index: Index) -> str:
    return "pixels" if index.has_masks else "boxes"


def _one_class_list(
    labeled: Index, val: Index | None, test: Index | None, notes: list[str]
) -> tuple[Index, Index | None, Index | None]:
    """All with the labeled data's classes; classes of other sources are new only where no source declares a list."""
    names = list(labeled.class_names)
    for role, index in (("val", val), ("test", test)):
        if index is None:
            continue
        _require_known(index, labeled, role)
        if not labeled.declared:
            used = [index.class_names[label] for label in np.unique(index.box_columns().labels)]
            new = [name for name in used if name not in names]
            names += new
            if new:
                notes.append(f"Only {role} holds {first_five(new)}: what is not labeled cannot be learned.")
    return (
        labeled.with_classes(names),
        None if val is None else val.with_classes(names),
        None if test is None else test.with_classes(names),
    )


def _together(labeled: Index, rows: NDArray[np.int64], data: DataConfig, groups: Groups | None) -> NDArray[np.int64]:
    """(len(labeled),) group of each image of `rows`; -1 elsewhere."""
    view = labeled.select(rows)
    ids = np.full(len(labeled), -1)
    ids[rows] = group_ids(view, data.group)
    if groups is not None:
        ids[rows] = merge_groups(ids[rows], groups(view))
    return ids


def _without_groups(
    rest: NDArray[np.int64], ids: NDArray[np.int64], aside: NDArray[np.int64], notes: list[str]
) -> NDArray[np.int64]:
    """Unlisted rows without those that belong together with images set aside; rows without a group stay."""
    held = (ids[rest] >= 0) & np.isin(ids[rest], ids[aside])
    if held.any():
        notes.append(f"{int(held.sum())} images that belong together with val or test images are left out of the pool.")
    return rest[~held]


def _split_off(
    labeled: Index,
    keep: NDArray[np.int64],
    val: Index | None,
    test: Index | None,
    ids: NDArray[np.int64],
    data: DataConfig,
    seed: int,
    notes: list[str],
) -> tuple[NDArray[np.int64], Index | None, Index | None]:
    """Sets test and selection images aside where none are given."""
    view, ids = labeled.select(keep), ids[keep]
    used = np.zeros(len(keep), bool)
    if test is None:
        size = max(MIN_TEST, round(data.test_fraction * len(keep)))
        used = _aside(view, ids, used, size, np.random.default_rng([seed, TEST_STREAM]))
        test = view.select(used) if used.any() else None
        notes.append(_test_note(int(used.sum()), len(keep)))
    if val is None and data.val_fraction > 0:
        size = max(MIN_VAL, round(data.val_fraction * len(keep)))
        chosen = _aside(view, ids, used, size, np.random.default_rng([seed, VAL_STREAM]))
        if chosen.sum() >= MIN_VAL:
            val, used = view.select(chosen), used | chosen
            notes.append(f"Selection split: {int(chosen.sum())} of {len(keep)} labeled images, drawn with the seed.")
        else:
            notes.append(
                f"No selection split: fewer than {MIN_VAL} images could be set aside; nothing is chosen on one."
            )
    return keep[~used], val, test


def _aside(
    view: Index, ids: NDArray[np.int64], used: NDArray[np.bool_], size: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) images drawn from those not used yet, at most `MAX_SHARE` of these."""
    free = np.flatnonzero(~used)
    limit = int(MAX_SHARE * len(free))
    offsets, labels = view.select(free).labels_per_image()
    _, codes = np.unique(ids[free], return_inverse=True)
    chosen = draw_split(offsets, labels, codes, min(size, limit), limit, rng)
    aside = np.zeros(len(used), bool)
    aside[free[chosen]] = True
    return aside


def _test_note(count: int, total: int) -> str:
    if not count:
        return f"No test split: of {total} labeled images none can be set aside; nothing can be measured. Give --test."
    doubt = f" That is fewer than {MIN_TEST}: no figure measured on it is reliable." if count < MIN_TEST else ""
    return f"Test split: {count} of {total} labeled images, drawn with the seed, stratified by class.{doubt}"


def _labeled_share(
    labeled: Index, keep: NDArray[np.int64], data: DataConfig, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that keep their labels, and the rest; a smaller share lies inside a larger one."""
    if data.labeled_fraction >= 1:
        return keep, np.zeros(0, np.int64)
    offsets, labels = labeled.select(keep).labels_per_image()
    order = stratified_order(offsets, labels, np.random.default_rng([seed, FRACTION_STREAM]))
    count = max(1, round(data.labeled_fraction * len(keep)))
    return np.sort(keep[order[:count]]), np.sort(keep[order[count:]])


def _pool(parts: _Parts, more: Sequence[Index], labeled: Index, val: Index | None, test: Index | None) -> Index | None:
    """The pool without the images that are labeled, val or test themselves."""
    indexes = [part.index for part in parts.pool] + list(more)
    if not indexes:
        return None
    pool = join([index.with_classes(labeled.class_names) for index in indexes])
    taken = np.zeros(len(pool), bool)
    for used in (labeled, val, test):
        if used is not None:
            taken |= rows_at(pool, (str(used.path(row)) for row in range(len(used))))
    if taken.any():
        parts.notes.append(f"{int(taken.sum())} images of the pool are labeled, val or test images: left out of it.")
        pool = pool.select(~taken)
    if not len(pool):
        raise InputError("--unlabeled: the pool is empty: all its images are labeled, val or test. Give other images.")
    return pool
