"""Seeded, stratified splits: which images are test, which keep their labels. Arrays in, rows out.

Legend: n items (images, or groups of images), K classes. Labels come as CSR: those of item i are
`labels[offsets[i] : offsets[i + 1]]`.
"""

from __future__ import annotations

import os
import re

import numpy as np
from numpy.typing import NDArray

from tutelage.data.index import Index
from tutelage.types import InputError

IntArray = NDArray[np.int64]
COVER_CANDIDATES = 1000  # items looked at to cover a class


def group_ids(index: Index, group: str) -> IntArray:
    """(n,) group of each image: images of one group belong together in splits and in resampling.

    Args:
        index: the images.
        group: "none" (each its own), "parent" (folder), or a pattern with one group, searched in the relative path;
            images that it does not find are groups of their own.

    Raises:
        InputError: the pattern is not valid, or has not exactly one group.
    """
    if group == "none":
        return np.arange(len(index))
    paths = index.relative_paths().to_pylist()
    if group == "parent":
        names = [os.path.dirname(path) for path in paths]
    else:
        found = [_pattern(group).search(path) for path in paths]
        names = [f"1{match[1]}" if match else f"0{path}" for match, path in zip(found, paths, strict=True)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _pattern(group: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise InputError(
            f"data.group: {group!r} is no valid pattern ({error}). Mend it, or use none or parent."
        ) from None
    if pattern.groups != 1:
        raise InputError(
            f"data.group: {group!r} has {pattern.groups} groups; it must have one, for example '(.*)_frame'. Mend it."
        )
    return pattern


def merge_groups(one: IntArray, other: IntArray) -> IntArray:
    """(n,) the finest groups that keep together what either keeps together."""
    parents = list(range(int(one.max(initial=-1)) + 1))

    def find(item: int) -> int:
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    first: dict[int, int] = {}
    for left, right in zip(one.tolist(), other.tolist(), strict=True):
        parents[find(left)] = find(first.setdefault(right, left))
    return np.unique([find(group) for group in one.tolist()], return_inverse=True)[1].astype(np.int64)


def stratified_order(offsets: IntArray, labels: IntArray, rng: np.random.Generator) -> IntArray:
    """A permutation (n,) whose every prefix holds the classes in proportion, and whose first items hold every class.

    Each item belongs to the stratum of its rarest class and stands at an even distance from the others of it, so
    that the first 10 % lie inside the first 20 %, and both have a tenth and a fifth of each stratum.
    """
    count = len(offsets) - 1
    items, classes = _pairs(offsets, labels)
    frequency = np.bincount(classes, minlength=int(labels.max(initial=-1)) + 1)
    stratum = _strata(count, items, classes, frequency)
    shuffled = rng.permutation(count)
    by_stratum = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    sizes = np.bincount(stratum, minlength=len(frequency) + 1)
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shift = rng.random(len(sizes))
    key = np.empty(count)
    key[by_stratum] = (rank + shift[stratum[by_stratum]]) / sizes[stratum[by_stratum]]
    order = shuffled[np.argsort(key[shuffled], kind="stable")]
    first = _cover(items, classes, frequency, order)
    return np.concatenate([first, order[~np.isin(order, first)]])


def _strata(count: int, items: IntArray, classes: IntArray, frequency: IntArray) -> IntArray:
    """(count,) rank of each item's rarest class; items without labels are a stratum too."""
    stratum = np.full(count, len(frequency))
    rarity = np.empty(len(frequency), np.int64)
    rarity[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
    np.minimum.at(stratum, items, rarity[classes])
    return stratum


def _pairs(offsets: IntArray, labels: IntArray) -> tuple[IntArray, IntArray]:
    """Items and their distinct classes, sorted by item."""
    items = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    span = int(labels.max(initial=0)) + 1
    codes = np.unique(items * span + labels)
    return codes // span, codes % span


def _cover(items: IntArray, classes: IntArray, frequency: IntArray, order: IntArray) -> IntArray:
    """Few items that together hold every class: rarest class first, the item with most uncovered classes."""
    position = np.argsort(order)
    starts = np.searchsorted(items, np.arange(len(order) + 1))
    by_class = np.lexsort((position[items], classes))
    ends = np.cumsum(frequency)
    uncovered = frequency > 0
    chosen: list[int] = []
    for label in np.argsort(frequency, kind="stable"):
        if not uncovered[label]:
            continue
        holders = items[by_class[ends[label] - frequency[label] : ends[label]]][:COVER_CANDIDATES]
        gains = [int(uncovered[classes[starts[item] : starts[item + 1]]].sum()) for item in holders]
        item = int(holders[int(np.argmax(gains))])
        uncovered[classes[starts[item] : starts[item + 1]]] = False
        chosen.append(item)
    return np.array(chosen, np.int64)


def draw_split(
    offsets: IntArray, labels: IntArray, groups: IntArray, target: int, limit: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) which images are set aside: whole groups, stratified by class, until `target` and never beyond `limit`.

    The last group that holds a class stays, so that everything that is measured can be learned.
    """
    members = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    group_offsets, group_labels = _by_group(offsets, labels, groups)
    items, classes = _pairs(group_offsets, group_labels)
    left = np.bincount(classes, minlength=int(labels.max(initial=-1)) + 1)
    starts, ends = np.searchsorted(items, np.arange(len(sizes) + 1)), np.cumsum(sizes)
    aside = np.zeros(len(groups), bool)
    total = 0
    for group in stratified_order(group_offsets, group_labels, rng):
        if total >= target:
            break
        held = classes[starts[group] : starts[group + 1]]
        if total + sizes[group] > limit or (left[held] <= 1).any():
            continue
        left[held] -= 1
        aside[members[ends[group] - sizes[group] : ends[group]]] = True
        total += int(sizes[group])
    return aside


def even_draw(
    offsets: IntArray, labels: IntArray, groups: IntArray, fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) which images are set aside: whole groups, each with the same chance, and that share of every stratum.

    Unlike `draw_split`, whose first choices are images that hold many classes, so that what is measured on this part
    is about images like all the others. The last group that holds a class stays here too.
    """
    order, alone = _even_order(offsets, labels, groups, rng)
    places = np.floor(np.arange(len(order) + 1) * fraction + rng.random()).astype(np.int64)
    drawn = np.zeros(len(order), bool)
    drawn[order] = np.diff(places) > 0
    return np.asarray((drawn & ~alone)[groups])


def draw_folds(offsets: IntArray, labels: IntArray, groups: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """(n,) fold, from 0 to count - 1, of each image: whole groups, dealt out one by one, stratum after stratum."""
    order, _ = _even_order(offsets, labels, groups, rng)
    folds = np.empty(len(order), np.int64)
    folds[order] = np.arange(len(order)) % count
    return folds[groups]


def _even_order(
    offsets: IntArray, labels: IntArray, groups: IntArray, rng: np.random.Generator
) -> tuple[IntArray, NDArray[np.bool_]]:
    """Groups (m,) stratum after stratum, in random order within each; and (m,) whether one alone holds some class."""
    group_offsets, group_labels = _by_group(offsets, labels, groups)
    count = len(group_offsets) - 1
    items, classes = _pairs(group_offsets, group_labels)
    frequency = np.bincount(classes, minlength=int(labels.max(initial=-1)) + 1)
    shuffled = rng.permutation(count)
    strata = _strata(count, items, classes, frequency)
    alone = np.zeros(count, bool)
    alone[items[frequency[classes] == 1]] = True
    return shuffled[np.argsort(strata[shuffled], kind="stable")], alone


def _by_group(offsets: IntArray, labels: IntArray, groups: IntArray) -> tuple[IntArray, IntArray]:
    """Offsets (m + 1,) and labels of groups, from those of their images."""
    owner = np.repeat(groups, np.diff(offsets))
    counts = np.bincount(owner, minlength=int(groups.max(initial=-1)) + 1)
    return np.concatenate([[0], np.cumsum(counts)]), labels[np.argsort(owner, kind="stable")]
