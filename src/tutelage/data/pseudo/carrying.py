"""What a teacher saw in one view of an image, as targets of another view: for training without a store.

The views stand in a batch as `PoolSamples` makes them: the strong one, which is trained on, first; the weak one, which
the teacher saw, second. Thresholds and options mean what they mean for a store.

Legend: B images, K classes, H x W canvas pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.augment.apply import warped_boxes, warped_mask
from tutelage.augment.plan import Plan
from tutelage.config import PseudoConfig
from tutelage.data.loader.samples import padded_boxes
from tutelage.data.pseudo.masks import least_levels
from tutelage.data.pseudo.tables import Limits
from tutelage.ops import affine
from tutelage.types import IGNORE, IGNORE_BOX, IGNORE_REGION, NOT_IGNORED, Annotation, Batch, Boxes, Prediction

STRONG, WEAK = 0, 1
FAR = 1e6
"""Pixels; a region of this reach holds every anchor."""


class Views(NamedTuple):
    """Where both views of an image lie."""

    strong: Plan
    weak: affine.Matrix  # (3, 3) original -> canvas


def weak_views(batch: Batch) -> Batch:
    """The weak views alone, as the first and only ones, without targets."""
    only = slice(WEAK, WEAK + 1)
    views = {name: getattr(batch, name)[:, only] for name in ("images", "matrix", "valid")}
    return replace(batch, **views, boxes=None, masks=None)


def carried(
    predictions: Sequence[Prediction], batch: Batch, annotation: Annotation, limits: Limits, pseudo: PseudoConfig
) -> Batch:
    """The batch with what was seen in its weak views as the targets of its strong ones.

    Args:
        predictions: of `weak_views(batch)`; masks at the size of the network (`label.size`).
        batch: on any device.
        annotation: boxes or masks.
        limits: (K,) least confidence of a target.
        pseudo: what becomes of the rest.
    """
    pairs = zip(predictions, _views_of(batch), strict=True)
    return CARRIERS[annotation](batch, [(prediction, views) for prediction, views in pairs], limits, pseudo)


Pairs = Sequence[tuple[Prediction, Views]]


def _views_of(batch: Batch) -> list[Views]:
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    matrices, valid = batch.matrix.cpu().numpy(), batch.valid[:, STRONG].tolist()
    return [
        Views(Plan(matrix[STRONG], canvas, (height, width)), matrix[WEAK])
        for matrix, (height, width) in zip(matrices, valid, strict=True)
    ]


def _with_boxes(batch: Batch, pairs: Pairs, limits: Limits, pseudo: PseudoConfig) -> Batch:
    boxes = [_boxes_on(prediction, views.strong, limits, pseudo) for prediction, views in pairs]
    return replace(batch, boxes=padded_boxes(boxes).to(batch.images.device), masks=None)


def _boxes_on(prediction: Prediction, strong: Plan, limits: Limits, pseudo: PseudoConfig) -> Boxes:
    """Boxes in pixels of the strong view; one without end that excuses everything where the image is not used."""
    found = prediction.boxes
    assert found is not None, "a prediction of boxes"
    kept = found.scores >= limits[found.labels]
    if pseudo.empty == "drop" and not kept.any():
        return Boxes.build([[-FAR, -FAR, FAR, FAR]], [0], ignore=[IGNORE_REGION])
    # An unsure box may be one object: it excuses what overlaps it, not everything inside it.
    found = replace(found, ignore=np.where(kept, NOT_IGNORED, IGNORE_BOX).astype(np.uint8))
    return warped_boxes(found.select(kept) if pseudo.unsure == "negative" else found, strong)


def _with_masks(batch: Batch, pairs: Pairs, limits: Limits, pseudo: PseudoConfig) -> Batch:
    least = least_levels(limits)
    masks = np.stack([_mask_on(prediction, views, least) for prediction, views in pairs])
    return replace(batch, masks=torch.from_numpy(masks).to(batch.images.device), boxes=None)


def _mask_on(prediction: Prediction, views: Views, least: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Classes (H, W) of the strong view, IGNORE below the threshold and where the weak view shows nothing."""
    assert prediction.mask is not None and prediction.levels is not None, "a prediction of masks"
    mask = np.where(prediction.levels < least[prediction.mask], IGNORE, prediction.mask).astype(np.uint8)
    return warped_mask(mask, affine.inverse(views.weak), prediction.size, views.strong)


CARRIERS: Mapping[Annotation, Callable[[Batch, Pairs, Limits, PseudoConfig], Batch]] = {
    "boxes": _with_boxes,
    "masks": _with_masks,
}
