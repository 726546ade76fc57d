"""From raw outputs to detections (TPU detection code, postprocess_ops.py; arXiv:2006.06882, sec. 3.2).

Legend: A anchors, K classes, M candidates, D detections, all of one image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.config import PostprocessConfig
from tutelage.ops.boxes import clip_boxes, decode
from tutelage.ops.nms import best_of_each_class, hard_nms, soft_nms


class Detections(NamedTuple):
    """Boxes of one image with class and score."""

    xyxy: Tensor  # (M, 4) float32
    labels: Tensor  # (M,) int64
    scores: Tensor  # (M,) float32


def candidates(logits: Tensor, deltas: Tensor, anchors: Tensor, valid: Tensor, config: PostprocessConfig) -> Detections:
    """All boxes at or above the score floor, `top_k` a class at most, clipped to the covered image.

    Args:
        logits: (A, K).
        deltas: (A, 4).
        anchors: (A, 4).
        valid: (2,) covered (height, width) of the canvas.
        config: constants.
    """
    floor = torch.tensor(config.score_floor).logit()
    anchor, label = (logits >= floor.to(logits)).nonzero().unbind(dim=1)
    scores = logits[anchor, label].float().sigmoid()
    if len(scores) > config.top_k:
        best = best_of_each_class(scores, label, config.top_k)
        anchor, label, scores = anchor[best], label[best], scores[best]
    boxes = clip_boxes(decode(deltas[anchor].float(), anchors[anchor]), valid)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Detections(boxes[seen], label[seen], scores[seen])


def suppress(found: Detections, config: PostprocessConfig) -> Detections:
    """The best `max_detections` that hard or Gaussian Soft-NMS leaves, best first."""
    xyxy, labels, scores = found
    if config.nms == "hard":
        keep, kept_scores = hard_nms(xyxy, scores, labels, iou=config.nms_iou, max_detections=config.max_detections)
    else:
        keep, kept_scores = soft_nms(
            xyxy,
            scores,
            labels,
            sigma=config.nms_sigma,
            floor=config.score_floor,
            max_detections=config.max_detections,
        )
    return Detections(xyxy[keep], labels[keep], kept_scores)


def join(parts: list[Detections]) -> Detections:
    """Candidates of several passes as one set."""
    return Detections(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
