"""Which pixels two models get right on the same test images: gained, lost, right in both, wrong in both.

Only for pictures and counts beside them; the figures of the tables come from `tasks.metrics`.
Legend: N images; h x w pixels that were measured, of truth and predictions alike, not always those of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tutelage.data.masks import decode_png
from tutelage.reporting.read import Columns, Evaluation
from tutelage.types import IGNORE

RIGHT, GAINED, LOST, WRONG = range(4)
"""What became of a pixel: right in both models, in the student alone, in the teacher alone, in neither. Pixels
without truth stay IGNORE."""

BECAME = np.array([WRONG, LOST, GAINED, RIGHT], np.uint8)
"""The same by the sum of 1 where the teacher is right and 2 where the student is."""

Mask = NDArray[np.uint8]


def masks_by_image(ids: NDArray[np.int64], rows: Columns) -> list[bytes]:
    """The mask of each image id as packed in a table; they are decoded one at a time, when they are looked at."""
    packed = dict(zip(rows["image_id"].tolist(), rows["mask"].tolist(), strict=True))
    return [packed[image_id] for image_id in ids.tolist()]


def changes(truth: Mask, before: Mask, after: Mask) -> Mask:
    """(h, w) what became of each pixel of `truth` from one model to the other, IGNORE where there is no truth."""
    which = (before == truth).view(np.uint8) + 2 * (after == truth).view(np.uint8)
    became: Mask = BECAME[which]
    became[truth == IGNORE] = IGNORE
    return became


def masks_of(row: int, teacher: Evaluation[bytes], student: Evaluation[bytes]) -> tuple[Mask, Mask, Mask]:
    """Truth, teacher and student (h, w) of one image."""
    return decode_png(teacher.truth[row]), decode_png(teacher.predictions[row]), decode_png(student.predictions[row])


def count_changes(teacher: Evaluation[bytes], student: Evaluation[bytes]) -> NDArray[np.int64]:
    """(N, 4) pixels of each image that are RIGHT, GAINED, LOST and WRONG."""
    return np.array(list(_counts(teacher, student)), np.int64).reshape(-1, 4)


def _counts(teacher: Evaluation[bytes], student: Evaluation[bytes]) -> Iterator[NDArray[np.int64]]:
    for row in range(len(teacher.paths)):
        became = changes(*masks_of(row, teacher, student))
        yield np.bincount(became.ravel(), minlength=IGNORE + 1)[:4]
