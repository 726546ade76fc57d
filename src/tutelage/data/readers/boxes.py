"""Bad boxes: found, named, and by `data.bad_boxes` refused, clipped or dropped, always counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.readers.source import Columns
from tutelage.types import InputError

SLACK = 1.0  # pixels that a box may reach beyond its image: rounding of the tools
RELATIVE_SLACK = 0.005  # the same in fractions, where no size is known


def check_boxes(columns: Columns, data: DataConfig) -> NDArray[np.bool_]:
    """Which boxes stay; with `clip`, those that reach outside are cut in place.

    Raises:
        InputError: a bad box and data.bad_boxes=error.
    """
    xyxy, slack = columns.xyxy, RELATIVE_SLACK if columns.relative else SLACK
    sizes = np.ones((len(columns.paths), 2)) if columns.relative else columns.sizes
    extent = np.full((len(xyxy), 2), np.inf) if sizes is None else sizes[columns.image_of].astype(np.float64)
    extent = np.where(extent > 0, extent, np.inf)[:, ::-1]  # (m, 2) width, height
    infinite = ~np.isfinite(xyxy).all(axis=1)
    empty = ~infinite & (xyxy[:, 2:] <= xyxy[:, :2]).any(axis=1)
    outside = ~infinite & ~empty & ((xyxy[:, :2] >= extent) | (xyxy[:, 2:] <= 0)).any(axis=1)
    hopeless: NDArray[np.bool_] = np.asarray(infinite | empty | outside)
    reaching = ((xyxy[:, :2] < -slack) | (xyxy[:, 2:] > extent + slack)).any(axis=1)
    beyond: NDArray[np.bool_] = np.asarray(~hopeless & reaching)
    bad = np.asarray(hopeless | beyond)
    if data.bad_boxes == "error" and bad.any():
        raise _bad_box(columns, int(np.flatnonzero(bad)[0]), int(bad.sum()), extent)
    dropped: NDArray[np.bool_] = bad if data.bad_boxes == "drop" else hopeless
    if data.bad_boxes == "clip":
        _clip(columns, beyond, extent)
        columns.counts += Counter({"boxes clipped": int(beyond.sum())})
    for name, which in (("infinite", infinite), ("empty", empty), ("outside", outside), ("reaching outside", beyond)):
        columns.counts += Counter({f"boxes dropped ({name})": int((which & dropped).sum())})
    return np.logical_not(dropped)


def _clip(columns: Columns, beyond: NDArray[np.bool_], extent: NDArray[np.float64]) -> None:
    limits = np.concatenate([extent, extent], axis=1)[beyond]
    before, after = columns.xyxy[beyond], np.clip(columns.xyxy[beyond], 0, limits)
    columns.xyxy[beyond] = after
    if columns.area is not None:
        share = np.prod(after[:, 2:] - after[:, :2], axis=1) / np.prod(before[:, 2:] - before[:, :2], axis=1)
        columns.area[beyond] *= share


def _bad_box(columns: Columns, box: int, count: int, extent: NDArray[np.float64]) -> InputError:
    x1, y1, x2, y2 = (float(value) for value in columns.xyxy[box])
    width, height = extent[box]
    if not np.isfinite(columns.xyxy[box]).all():
        found = f"the box is [{x1}, {y1}, {x2}, {y2}]; it must be finite"
    elif x2 <= x1:
        found = f"box width is {x2 - x1:g}; it must be > 0"
    elif y2 <= y1:
        found = f"box height is {y2 - y1:g}; it must be > 0"
    else:
        unit = "" if columns.relative else " pixels"
        found = f"the box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] leaves its image of {width:g} x {height:g}{unit}"
    name = columns.paths[columns.image_of[box]]
    more = f" ({count} boxes of this source are bad)" if count > 1 else ""
    return InputError(
        f"{columns.where}: {columns.place(box)}, {name}: {found}{more}. Mend or remove it, or set data.bad_boxes=clip "
        "(what can be cut is cut, the rest dropped) or data.bad_boxes=drop."
    )
