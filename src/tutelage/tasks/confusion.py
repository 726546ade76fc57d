"""What a model calls the things that people labeled, class by class: the table that chooses by annotation.

Legend: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.ops.boxes import pairwise_iou
from tutelage.tasks.detection.measuring import JudgedBoxes
from tutelage.tasks.segmentation.measuring import JudgedMask
from tutelage.types import NOT_IGNORED, Annotation

SAME_PLACE = 0.5  # least IoU of a box that is of the same thing

Floats = NDArray[np.float64]


def box_confusion(judged: Sequence[JudgedBoxes], num_classes: int) -> Floats:
    """(K, K + 1) human boxes by their class and that of the surest detection at the same place; last: none."""
    table = np.zeros((num_classes, num_classes + 1))
    for one in judged:
        truth = one.truth.select(one.truth.ignore == NOT_IGNORED)
        named = np.full(len(truth), num_classes)
        if len(truth) and len(one.found):
            overlap = pairwise_iou(torch.from_numpy(truth.xyxy), torch.from_numpy(one.found.xyxy)).numpy()
            scores = np.where(overlap >= SAME_PLACE, one.found.scores, -1)
            surest = scores.argmax(1)
            named = np.where(scores.max(1) >= 0, one.found.labels[surest], num_classes)
        np.add.at(table, (truth.labels, named), 1)
    return table


def mask_confusion(judged: Sequence[JudgedMask], num_classes: int) -> Floats:
    """(K, K + 1) labeled pixels by true and predicted class, each image counting as one; the last column is 0."""
    table = np.zeros((num_classes, num_classes + 1))
    for one in judged:
        rows, columns, pixels = one.counts.cells
        np.add.at(table, (rows, columns), pixels / max(pixels.sum(), 1))
    return table


CONFUSIONS: Mapping[Annotation, Callable[[Sequence[Any], int], Floats]] = {
    "boxes": box_confusion,
    "masks": mask_confusion,
}
