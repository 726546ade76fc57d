"""What may be wrong with a data set: each finding with its count and first examples.

Errors that stop a run are raised by the readers; what stands here is allowed, but worth a look.

Legend: n images, m boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.duplicates import groups_of
from tutelage.data.images import UPRIGHT
from tutelage.data.index import BoxColumns, Index
from tutelage.data.survey import Survey
from tutelage.types import NOT_IGNORED

FEW_BOXES = 10  # a class with fewer can hardly be learned or measured
TINY_SIDE = 4  # pixels
LONG_BOX, LONG_IMAGE = 12, 4  # longer side over shorter side
SMALL_IMAGE = 32  # pixels of the shorter side
SAME_BOX = 0.95  # IoU above which two boxes of one class are one
EXAMPLES = 3

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a set that deserves a look."""

    where: str  # labeled, pool, val or test
    text: str
    count: int
    examples: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The finding as one line."""
        first = f" First: {', '.join(self.examples)}." if self.examples else ""
        return f"{self.where}: {self.text}.{first}"


def grouped(number: int) -> str:
    """A number with thin groups of three digits: 12 345."""
    return f"{number:_}".replace("_", " ")


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 box`, `12 boxes`."""
    return f"{grouped(number)} {thing if number == 1 else things or thing + 's'}"


def pixel_boxes(
    index: Index, columns: BoxColumns, look: Survey | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(m, 4) boxes in pixels, and (m,) whether that could be known: fractions need the size of their image."""
    sizes = index.sizes() if look is None else np.where(index.sizes() > 0, index.sizes(), look.sizes)
    extent = sizes[columns.images][:, ::-1].astype(np.float64)
    scale = np.where(columns.relative[:, None], np.tile(extent, 2), 1.0)
    return columns.xyxy * scale, np.asarray((scale > 0).all(axis=1))


def box_findings(name: str, index: Index, look: Survey | None) -> Iterator[Finding]:
    """Findings about boxes and classes; pixel sizes of relative boxes need a look at the images."""
    yield from (Finding(name, f"{grouped(count)} {what}", count) for what, count in index.counts.items() if count)
    columns = index.box_columns()
    yield from _empty_images(name, index, columns)
    yield from _rare_classes(name, index, columns)
    boxes, known = pixel_boxes(index, columns, look)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9)
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    plain = known & (columns.ignore == NOT_IGNORED)
    checks = (
        (shorter < TINY_SIDE, f"less than {TINY_SIDE} pixels high or wide; detectors rarely find such"),
        (longer > LONG_BOX * shorter, f"more than {LONG_BOX} times as long as wide; anchors fit them badly"),
        (_repeated(columns, boxes), "almost equal to another box of the same class and image"),
    )
    for flawed, text in checks:
        rows = columns.images[flawed & plain]
        if len(rows):
            yield Finding(name, f"{counted(len(rows), 'box', 'boxes')} {text}", len(rows), named(index, rows))


def _empty_images(name: str, index: Index, columns: BoxColumns) -> Iterator[Finding]:
    empty = np.flatnonzero(np.bincount(columns.images, minlength=len(index)) == 0)
    if len(empty):
        text = f"{counted(len(empty), 'image')} without a box; whatever is seen there counts as background"
        yield Finding(name, text, len(empty), named(index, empty))


def _rare_classes(name: str, index: Index, columns: BoxColumns) -> Iterator[Finding]:
    counts = np.bincount(columns.labels[columns.ignore == NOT_IGNORED], minlength=len(index.class_names))
    rare = [f"{index.class_names[label]} ({counts[label]})" for label in np.flatnonzero(counts < FEW_BOXES)]
    if rare:
        verb = "class has" if len(rare) == 1 else "classes have"
        shown = ", ".join(rare[:10]) + (", ..." if len(rare) > 10 else "")
        text = f"{len(rare)} {verb} fewer than {FEW_BOXES} boxes, too few to rely on: {shown}"
        yield Finding(name, text, len(rare))


def _repeated(columns: BoxColumns, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(m,) whether a box equals an earlier one of its image and class."""
    order = np.lexsort((columns.labels, columns.images))
    images, labels, sorted_boxes = columns.images[order], columns.labels[order], boxes[order]
    repeated = np.zeros(len(boxes), np.bool_)
    for lag in range(1, len(boxes)):  # pairs lag apart; done once no image has so many boxes of a class
        same = np.flatnonzero((images[lag:] == images[:-lag]) & (labels[lag:] == labels[:-lag]))
        if not len(same):
            break
        one, other = sorted_boxes[same], sorted_boxes[same + lag]
        repeated[order[same[_overlap(one, other) > SAME_BOX] + lag]] = True
    return repeated


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) IoU of boxes row by row."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    inside = np.clip(sides, 0, None).prod(axis=1)
    total = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - inside
    return np.asarray(inside / np.maximum(total, 1e-12))


def image_findings(name: str, index: Index, look: Survey) -> Iterator[Finding]:
    """Findings about the image files themselves."""
    broken = np.flatnonzero(~look.usable)
    if len(broken):
        text = f"{counted(len(broken), 'image')} that cannot be used; skipped"
        yield Finding(name, text, len(broken), tuple(str(reason) for reason in look.reasons[broken[:EXAMPLES]]))
    longer, shorter = look.sizes.max(axis=1), look.sizes.min(axis=1)
    copies = _later_copies(look)
    checks = (
        (look.truncated, "ending early; the rest was filled in"),
        (
            longer > LONG_IMAGE * shorter,
            f"more than {LONG_IMAGE} times as long as wide; much of the canvas stays empty",
        ),
        (shorter < SMALL_IMAGE, f"with a side below {SMALL_IMAGE} pixels"),
        (copies, "repeating another image of this set"),
    )
    for flawed, text in checks:
        rows = np.flatnonzero(flawed & look.usable)
        if len(rows):
            yield Finding(name, f"{counted(len(rows), 'image')} {text}", len(rows), named(index, rows))


def _later_copies(look: Survey) -> NDArray[np.bool_]:
    groups = groups_of(look.prints)
    _, first = np.unique(groups, return_index=True)
    later = np.ones(len(groups), np.bool_)
    later[first] = False
    return later & look.usable


def size_findings(name: str, index: Index, look: Survey, data: DataConfig) -> Iterator[Finding]:
    """Whether the sizes that boxes were annotated for are those of the images, as shown or as stored."""
    annotated = index.sizes()
    disagree = (
        (annotated > 0).all(axis=1) & (annotated != look.sizes).any(axis=1) & (annotated != look.stored).any(axis=1)
    )
    rows = np.flatnonzero(disagree & look.usable)
    if len(rows):
        text = "of another size than annotated; are these the images that the boxes were drawn on?"
        yield Finding(name, f"{counted(len(rows), 'image')} {text}", len(rows), named(index, rows))
    yield from turned_findings(name, index, look, data, "boxes")


def turned_findings(name: str, index: Index, look: Survey, data: DataConfig, things: str) -> Iterator[Finding]:
    """How the `things` (boxes or masks) of images with an EXIF orientation are understood."""
    if not index.annotated or index.shown:
        return
    annotated = index.sizes()
    offsets, _ = index.labels_per_image()
    turned = look.usable & (look.orientation != UPRIGHT) & (offsets[1:] > offsets[:-1])
    square = (look.stored == look.sizes).all(axis=1)
    stored = (annotated == look.stored).all(axis=1) & ~square
    shown = (annotated == look.sizes).all(axis=1) & ~square
    size = "the annotated size says" if things == "boxes" else "their size says"
    cases = (
        (stored, f"{things} taken as drawn on the stored pixels, as {size}"),
        (shown, f"{things} taken as drawn on the shown pixels, as {size}"),
        (~stored & ~shown, f"{things} taken as drawn on the {data.boxes_in} pixels; if wrong, change data.boxes_in"),
    )
    for case, text in cases:
        rows = np.flatnonzero(turned & case)
        if len(rows):
            yield Finding(name, f"{counted(len(rows), 'image')} turned by EXIF: {text}", len(rows), named(index, rows))


def named(index: Index, rows: Rows) -> tuple[str, ...]:
    """Paths of the first few different images."""
    return tuple(index.relative_path(int(row)) for row in dict.fromkeys(rows[: 10 * EXAMPLES].tolist()))[:EXAMPLES]
