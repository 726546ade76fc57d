"""Predicted masks beside the truth, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.loader import shown_mask
from tutelage.data.masks import encode_png
from tutelage.tasks.metrics import MaskCounts, count_mask
from tutelage.tasks.task import Columns
from tutelage.types import InputError, Prediction

Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedMask:
    """The classes of one image's pixels, there and found, of one size."""

    image_id: int
    size: tuple[int, int]  # (height, width) of the original
    truth: bytes  # PNG
    found: bytes  # PNG
    counts: MaskCounts


def judge_mask(prediction: Prediction, index: Index, data: DataConfig, num_classes: int) -> JudgedMask:
    """A prediction beside the truth of its image (`InputError`: see `true_mask`)."""
    found = prediction.mask
    assert found is not None, "segmentation predicts masks"
    truth = true_mask(prediction.image_id, (found.shape[0], found.shape[1]), index, data)
    counts = count_mask(truth, found, num_classes)
    return JudgedMask(prediction.image_id, prediction.size, encode_png(truth), encode_png(found), counts)


def true_mask(row: int, size: tuple[int, int], index: Index, data: DataConfig) -> Mask:
    """The human mask of an image at the size (height, width) of a predicted one.

    Raises:
        InputError: the image has no mask, or one that cannot be read.
    """
    truth = shown_mask(index, row, data)
    if truth is None:
        raise InputError(
            f"{index.path(row)}: has no mask; images that are measured on need one. "
            "Add it, or take the image out of the set."
        )
    return resized_mask(truth, size)


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask (h, w) at another size (height, width): of each pixel the one that its center lies in."""
    if mask.shape == size:
        return mask
    return np.asarray(cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def mask_tables(judged: Sequence[JudgedMask]) -> dict[str, Columns]:
    """`truth` and `predictions`: one row an image, its mask as PNG."""
    return {"truth": _table([one.truth for one in judged]), "predictions": _table([one.found for one in judged])}


def _table(masks: Sequence[bytes]) -> dict[str, Any]:
    return {"image_id": np.arange(len(masks)), "mask": list(masks)}
