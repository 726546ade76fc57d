"""Anchors that fit the data: small objects on a small canvas have no anchor of the original's size to match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.config import ModelConfig, RunConfig
from tutelage.data.index import Index
from tutelage.models.init import model_folder, read_card
from tutelage.ops.anchors import mean_best_overlap
from tutelage.types import NOT_IGNORED

SIZES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # the original has 4, or 3 in SpineNets
MOST_BOXES = 5000  # that are looked at


def with_fitted_anchors(config: RunConfig, labeled: Index) -> RunConfig:
    """The config with `model.anchors.size=fit` replaced by the size that overlaps the labeled boxes most.

    A given teacher's is taken over, since the student starts from its weights.
    """
    if config.model.anchors.size != "fit":
        return config
    if config.sources.teacher:
        card = read_card(model_folder(Path(config.sources.teacher)))
        size = ModelConfig.model_validate(card["model"]).anchors.side
    else:
        size = fitting_size(box_sides(labeled, config.model.canvas), config.model)
    anchors = config.model.anchors.model_copy(update={"size": size})
    return config.model_copy(update={"model": config.model.model_copy(update={"anchors": anchors})})


def fitting_size(sides: NDArray[np.float64], model: ModelConfig) -> float:
    """The one of `SIZES` whose anchors overlap boxes of these widths and heights (N, 2) most; the largest without any.

    Sizes are of the canvas, in pixels. Of equal ones the largest, whose anchors are the fewest to tell apart.
    """
    levels = range(model.min_level, model.max_level + 1)
    shapes = [model.anchors.model_copy(update={"size": size}) for size in reversed(SIZES)]
    return max(shapes, key=lambda shape: mean_best_overlap(sides, levels, shape)).side if len(sides) else max(SIZES)


def box_sides(labeled: Index, canvas: tuple[int, int]) -> NDArray[np.float64]:
    """(N, 2) widths and heights that labeled boxes have on the canvas (height, width); a spread of at most 5 000.

    Boxes of images whose size is not known before they are decoded count as if the image filled the canvas, if they are
    fractions of it, and else do not count.
    """
    columns = labeled.box_columns()
    sizes = labeled.sizes()[columns.images].astype(np.float64)
    known = np.all(sizes > 0, axis=1)
    used = np.flatnonzero((columns.ignore == NOT_IGNORED) & (known | columns.relative))
    used = used[:: -(-len(used) // MOST_BOXES) or 1]
    sizes = np.where(known[used][:, None], sizes[used], canvas)
    scale = (np.array(canvas) / sizes).min(axis=1)
    sides = columns.xyxy[used, 2:] - columns.xyxy[used, :2]
    sides[columns.relative[used]] *= sizes[columns.relative[used], ::-1]
    on_canvas: NDArray[np.float64] = sides * scale[:, None]
    return on_canvas
