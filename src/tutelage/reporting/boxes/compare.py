"""Which objects two models find on the same test images: gained, lost, found by both, missed by both.

Only for pictures and counts beside them; the figures of the tables come from `tasks.metrics`.
Legend: N truth boxes, M predictions of an image, R ranks over the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.ops.boxes import pairwise_ioa, pairwise_iou
from tutelage.types import IGNORE_REGION, NOT_IGNORED, Boxes

MATCH_IOU = 0.5
"""Overlap from which a box counts as found."""

WRONG, CORRECT, EXCUSED = 0, 1, 2
"""Outcomes of a prediction: no such object; a match; inside an ignored region or on an ignored box."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image's boxes."""

    found: NDArray[np.bool_]  # (N,) truth boxes that were found; ignored ones never are
    outcome: NDArray[np.int8]  # (M,) WRONG, CORRECT or EXCUSED
    owner: NDArray[np.int64]  # (M,) the truth box that a correct prediction found, -1 for the others


def match_image(truth: Boxes, predictions: Boxes) -> Outcome:
    """Greedy matching of one image, best score first, a prediction to the free truth box of its class it overlaps most.

    A prediction that finds no free truth box is excused where an ignored box of its class covers it.
    """
    found = np.zeros(len(truth), bool)
    outcome = np.full(len(predictions), WRONG, np.int8)
    owner = np.full(len(predictions), -1, np.int64)
    if not len(truth) or not len(predictions):
        return Outcome(found, outcome, owner)
    ours, theirs = torch.from_numpy(predictions.xyxy), torch.from_numpy(truth.xyxy)
    iou, inside = pairwise_iou(ours, theirs).numpy(), pairwise_ioa(ours, theirs).numpy()
    same = predictions.labels[:, None] == truth.labels[None]
    excuse = np.where(truth.ignore == IGNORE_REGION, inside, iou) * (same & (truth.ignore != NOT_IGNORED))
    overlap = iou * (same & (truth.ignore == NOT_IGNORED))
    for row in np.argsort(-predictions.scores, kind="stable"):
        free = np.where(found, 0.0, overlap[row])
        best = int(free.argmax())
        if free[best] >= MATCH_IOU:
            found[best], outcome[row], owner[row] = True, CORRECT, best
        elif excuse[row].max() >= MATCH_IOU:
            outcome[row] = EXCUSED
    return Outcome(found, outcome, owner)


def best_threshold(truth: Sequence[Boxes], predictions: Sequence[Boxes]) -> float:
    """The score at which precision and recall over all images give the highest F1.

    Both models are shown at their own, because the scores of two trainings are not on one scale.
    """
    outcomes = [match_image(*pair).outcome for pair in zip(truth, predictions, strict=True)]
    outcome = np.concatenate([*outcomes, np.zeros(0, np.int8)])  # (R,)
    scores = np.concatenate([*(boxes.scores for boxes in predictions), np.zeros(0, np.float32)])
    counted = outcome != EXCUSED
    order = np.argsort(-scores[counted], kind="stable")
    correct = np.cumsum(outcome[counted][order] == CORRECT)
    if not len(correct):
        return 0.5
    positives = sum(int((boxes.ignore == NOT_IGNORED).sum()) for boxes in truth)
    f1 = 2 * correct / (np.arange(1, len(correct) + 1) + positives)
    return float(scores[counted][order][int(f1.argmax())])


def above(boxes: Boxes, threshold: float) -> Boxes:
    """The boxes with at least this score."""
    return boxes.select(boxes.scores >= threshold)
