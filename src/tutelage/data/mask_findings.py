"""What may be wrong with masks: classes that lack pixels, pixels that lack classes, seams between classes.

Counts by class and the sizes of masks come from the index; only the search for seams reads masks, a sample. (Masks of
another size than their image are refused when they are opened.)

Legend: n images, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.cores import available_cores
from tutelage.data.findings import Finding, counted, grouped, named, turned_findings
from tutelage.data.index import Index
from tutelage.data.masks import NOT_SHOWN, MaskFile, read_codes
from tutelage.data.survey import Survey

FEW_IMAGES = 5  # a class in fewer can hardly be learned or measured
MUCH_IGNORED = 0.5  # share of pixels without a label worth a word
SAMPLE = 64  # masks searched for seams
SEAMS, FEW_BORDERS = 0.05, 200  # share of border pixels that are seams, above which masks were resized; least borders


def mask_findings(name: str, index: Index, look: Survey | None, data: DataConfig) -> Iterator[Finding]:
    """Findings about masks; `look` is None where files stay closed."""
    yield from (Finding(name, f"{grouped(count)} {what}", count) for what, count in index.counts.items() if count)
    yield from _unlabeled_images(name, index)
    yield from _missing_classes(name, index)
    yield from _ignored_pixels(name, index)
    if look is not None:
        yield from turned_findings(name, index, look, data, "masks")
        yield from _seams(name, index)


def _unlabeled_images(name: str, index: Index) -> Iterator[Finding]:
    present = np.bincount(index.box_columns().images, minlength=len(index)) > 0
    masked = _with_mask(index)
    cases = (
        (~masked, "without a mask; nothing is learned from such, and nothing measured"),
        (masked & ~present, "whose mask is all ignored; out of the loss and of the figures"),
    )
    for case, text in cases:
        rows = np.flatnonzero(case)
        if len(rows):
            yield Finding(name, f"{counted(len(rows), 'image')} {text}", len(rows), named(index, rows))


def _missing_classes(name: str, index: Index) -> Iterator[Finding]:
    """Classes that never occur, and those in few images."""
    images = np.bincount(index.box_columns().labels, minlength=len(index.class_names))
    never = [class_name for class_name, count in zip(index.class_names, images, strict=True) if not count]
    if never:
        verb = "class never occurs" if len(never) == 1 else "classes never occur"
        yield Finding(
            name, f"{len(never)} {verb}, and cannot be learned or measured here: {_listed(never)}", len(never)
        )
    few = [f"{index.class_names[k]} ({images[k]})" for k in np.flatnonzero((images > 0) & (images < FEW_IMAGES))]
    if few:
        verb = "class is" if len(few) == 1 else "classes are"
        text = f"{len(few)} {verb} in fewer than {FEW_IMAGES} images, too few to rely on: {_listed(few)}"
        yield Finding(name, text, len(few))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _ignored_pixels(name: str, index: Index) -> Iterator[Finding]:
    share = ignored_share(index)
    if share > MUCH_IGNORED:
        text = (
            f"{share:.0%} of the pixels have no label; look whether data.ignore_values holds values of classes, or "
            "data.background=ignore leaves too much out"
        )
        yield Finding(name, text, 1)


def ignored_share(index: Index) -> float:
    """Share of the masks' pixels that have no class."""
    pixels = int(index.sizes()[_with_mask(index)].astype(np.int64).prod(axis=1).sum())
    return 1 - float(index.box_columns().area.sum()) / pixels if pixels else 0.0


def _with_mask(index: Index) -> NDArray[np.bool_]:
    """(n,) whether each image has a mask."""
    return np.array([index.mask_file(row) is not None for row in range(len(index))], np.bool_)


def _seams(name: str, index: Index) -> Iterator[Finding]:
    """Traces of smooth resizing or JPEG in a sample of masks."""
    masked = np.flatnonzero(_with_mask(index))
    rows = masked[np.unique(np.linspace(0, len(masked) - 1, min(SAMPLE, len(masked))).astype(np.int64))]
    files = [index.mask_file(int(row)) for row in rows]
    with ThreadPoolExecutor(available_cores()) as pool:
        counts = np.array(list(pool.map(_seams_of, files)), np.int64).reshape(-1, 2)
    seams, borders = counts.sum(axis=0)
    if borders < FEW_BORDERS or seams <= SEAMS * borders:
        return
    flawed = counts[:, 0] > SEAMS * counts[:, 1]
    text = (
        f"{int(flawed.sum())} of {len(rows)} masks looked at have seams of other classes along borders between classes "
        f"({seams / borders:.0%} of the border pixels), as smooth resizing or JPEG leaves them; write masks with "
        "nearest neighbor and without loss"
    )
    yield Finding(name, text, int(flawed.sum()), named(index, rows[flawed]))


def _seams_of(file: MaskFile | None) -> tuple[int, int]:
    """Seams and borders in pixels; none where codes are no values, between which there is nothing."""
    if file is None or file.coding.kind != "values":
        return 0, 0
    table = file.coding.table
    return count_seams(read_codes(file.file, "values"), [code for code in table if table[code] != NOT_SHOWN])


def count_seams(codes: NDArray[np.integer], labeled: list[int]) -> tuple[int, int]:
    """Pixels (seams, borders) of a mask (h, w) of values.

    A pixel belongs to a seam where no 2 x 2 block of its value covers it, and its 5 x 5 neighbors have both lower and
    higher ones: so look values blended from two classes. Thin things on one class do not.

    Args:
        codes: values as in the file.
        labeled: those of classes; others are not looked at.
    """
    values = codes.astype(np.uint16)
    known = np.isin(values, labeled)
    wide, cross = np.ones((5, 5), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    higher = cv2.dilate(np.where(known, values, 0).astype(np.uint16), wide) > values
    lower = cv2.erode(np.where(known, values, 65535).astype(np.uint16), wide) < values
    borders = cv2.dilate(values, cross) != cv2.erode(values, cross)
    return int((known & higher & lower & ~_in_a_block(values)).sum()), int(borders.sum())


def _in_a_block(values: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """(h, w) whether a pixel lies in a 2 x 2 block of its value."""
    across = values[:, 1:] == values[:, :-1]
    blocks = across[1:] & across[:-1] & (values[1:, 1:] == values[:-1, 1:])
    return cv2.dilate(np.pad(blocks.astype(np.uint8), ((0, 1), (0, 1))), np.ones((2, 2), np.uint8), anchor=(1, 1)) > 0
