"""Suppression of overlapping detections within a class: hard NMS and Gaussian Soft-NMS.

Legend: N detections of one image, C classes among them, M the most detections of one class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tutelage.ops.boxes import pairwise_iou


def hard_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, iou: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Rows (D,) and scores (D,) that survive, best first, D <= max_detections.

    Args:
        boxes: (N, 4).
        scores: (N,).
        labels: (N,) int64; boxes of different labels leave each other alone.
        iou: overlap above which the lesser of two boxes is dropped.
        max_detections: detections kept of all classes together.
    """
    keep = batched_nms(boxes.float(), scores, labels, iou)[:max_detections]
    return keep, scores[keep]


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, sigma: float, floor: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Rows (D,) and decayed scores (D,) of Gaussian Soft-NMS (arXiv:1704.04503), best first, D <= max_detections.

    The best box of a class is taken, all others of that class are multiplied by exp(-IoU^2 / sigma) with it, and so
    on until none is at or above `floor`. All classes take their steps together.
    """
    if not len(boxes):
        return labels, scores
    rows = _rows_by_class(labels)  # (C, M), -1 where a class has fewer
    padded = boxes[rows.clamp(min=0)]  # (C, M, 4)
    live = scores[rows.clamp(min=0)].masked_fill(rows < 0, -torch.inf)
    every = torch.arange(len(rows), device=rows.device)
    kept, kept_scores = [labels[:0]], [scores[:0]]
    for _ in range(min(rows.shape[1], max_detections)):
        best, at = live.max(dim=1)
        found = best >= floor
        if not found.any():
            break
        kept.append(rows[every, at][found])
        kept_scores.append(best[found])
        overlap = pairwise_iou(padded[every, at][:, None], padded)[:, 0]
        live = live * torch.exp(-overlap.square() / sigma)
        live[every, at] = -torch.inf
    taken, decayed = torch.cat(kept), torch.cat(kept_scores)
    order = decayed.argsort(descending=True, stable=True)[:max_detections]
    return taken[order], decayed[order]


def best_of_each_class(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Rows of the `count` highest scores of every class; all rows where no class has more."""
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    return order[_rank_in_class(labels[order]) < count]


def _rank_in_class(sorted_labels: Tensor) -> Tensor:
    """0, 1, 2 ... within each run of equal labels."""
    _, run, counts = torch.unique_consecutive(sorted_labels, return_inverse=True, return_counts=True)
    start: Tensor = (counts.cumsum(0) - counts)[run]
    return torch.arange(len(start), device=start.device) - start


def _rows_by_class(labels: Tensor) -> Tensor:
    order = labels.argsort(stable=True)
    rank = _rank_in_class(labels[order])
    _, run, counts = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    rows = torch.full((len(counts), int(counts.max())), -1, device=labels.device)
    rows[run, rank] = order
    return rows
