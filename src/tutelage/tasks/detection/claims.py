"""Pseudo-boxes of an image against the boxes that people drew.

Legend: D pseudo-boxes and G human boxes of one class, T thresholds, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.ops.boxes import pairwise_ioa, pairwise_iou
from tutelage.tasks.claims import ImageClaims, counted_from
from tutelage.types import IGNORE_REGION, NOT_IGNORED, Boxes

MISS, HIT, EXCUSED = 0, 1, 2


def thresholds_from(floor: float) -> NDArray[np.float64]:
    """(T,) what scores are held against: hundredths from the lowest score that is stored, or that alone."""
    hundredths = np.arange(1, 100) / 100
    return hundredths[hundredths >= floor] if floor <= hundredths[-1] else np.array([floor])


def claimed_boxes(
    found: Boxes, truth: Boxes, thresholds: NDArray[np.float64], num_classes: int, iou: float
) -> ImageClaims:
    """What the boxes of one image claim; those that match an ignored box or region neither claim nor hit."""
    claims, hits = np.zeros((2, num_classes, len(thresholds)), np.int32)
    for label in np.unique(found.labels).tolist():
        ours, theirs = found.select(found.labels == label), truth.select(truth.labels == label)
        outcome = outcomes(ours, theirs, iou)
        claims[label] = counted_from(ours.scores[outcome != EXCUSED], thresholds)
        hits[label] = counted_from(ours.scores[outcome == HIT], thresholds)
    counted = truth.labels[truth.ignore == NOT_IGNORED]
    return ImageClaims(claims, hits, np.bincount(counted, minlength=num_classes).astype(np.int32))


def outcomes(found: Boxes, truth: Boxes, iou: float) -> NDArray[np.uint8]:
    """(D,) MISS, HIT or EXCUSED of boxes of one class, matched one to one, the best score first.

    Each takes the human box that it overlaps most, by at least `iou`, of those still free; an ignored one only where no
    other is left. A region is never used up and overlaps by the share of the pseudo-box inside it. As the better box
    always chooses first, the outcome at a threshold is that of the boxes above it: one pass serves all thresholds.
    """
    overlap = _overlaps(found, truth)
    counts, region = truth.ignore == NOT_IGNORED, truth.ignore == IGNORE_REGION
    free = np.ones(len(truth), bool)
    outcome = np.full(len(found), MISS, np.uint8)
    for row in np.argsort(-found.scores, kind="stable").tolist():
        near = (overlap[row] >= iou) & (free | region)
        if not near.any():
            continue
        best = int(np.argmax(np.where(near, overlap[row] + counts, -1)))  # any that counts is above all that do not
        free[best] = False
        outcome[row] = HIT if counts[best] else EXCUSED
    return outcome


def _overlaps(found: Boxes, truth: Boxes) -> NDArray[np.float64]:
    """(D, G) IoU; with a region the share of the pseudo-box that lies in it."""
    ours, theirs = (torch.from_numpy(boxes.xyxy.astype(np.float64)) for boxes in (found, truth))
    region = torch.from_numpy(truth.ignore == IGNORE_REGION)
    return np.asarray(torch.where(region, pairwise_ioa(ours, theirs), pairwise_iou(ours, theirs)).numpy())
