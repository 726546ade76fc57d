"""Which box each anchor is trained on (TPU detection code, anchor.py and argmax_matcher.py).

Legend: B images, A anchors, N boxes of an image with padding, n boxes of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.ops.boxes import box_area
from tutelage.types import IGNORE_BOX, IGNORE_REGION

POSITIVE_IOU = 0.5
NEGATIVE, IGNORED = -1, -2
PAIRS_AT_ONCE = {"cpu": 1 << 20}
"""Anchor-box pairs compared at a time: on a CPU what stays near its cache, elsewhere what bounds the memory."""
PAIRS_AT_ONCE_ELSEWHERE = 1 << 22  # 16 MB a temporary


def match_anchors(anchors: Tensor, xyxy: Tensor, normal: Tensor, ignored: Tensor) -> Tensor:
    """For each anchor (B, A) int32: the number of its box, NEGATIVE or IGNORED.

    An anchor is positive for the box that it overlaps most if their IoU is at least 0.5; besides, every box claims its
    one best anchor (of equals the first; of several claims the first box's wins). A box that overlaps no anchor at all
    claims none; the TPU code gives it anchor 0. Left out of the loss, unless positive, are the anchors that an
    IGNORE_BOX would have made positive, and those that lie at least by half of their own area in an IGNORE_REGION.

    Args:
        anchors: (A, 4).
        xyxy: (B, N, 4).
        normal: (B, N) bool: boxes to be found.
        ignored: (B, N) uint8: IGNORE_REGION and IGNORE_BOX where anchors shall be left out, else 0.
    """
    if xyxy.device.type != "cpu" or not normal.numel():
        return _match(anchors, xyxy, normal, ignored)
    # A few images at a time, with no more padding than they need: beside one crowded image most of a batch is padding.
    batch, most = normal.shape
    group = max(1, PAIRS_AT_ONCE["cpu"] // (len(anchors) * most))
    ends = torch.arange(1, most + 1) * (normal | (ignored > 0))
    matched = []
    for images in (slice(start, start + group) for start in range(0, batch, group)):
        count = int(ends[images].max())
        matched.append(_match(anchors, xyxy[images, :count], normal[images, :count], ignored[images, :count]))
    return torch.cat(matched)


def _match(anchors: Tensor, xyxy: Tensor, normal: Tensor, ignored: Tensor) -> Tensor:
    """As `match_anchors`, for all images at once, in chunks of their boxes."""
    batch, count = normal.shape
    best = anchors.new_zeros(batch, len(anchors))
    winner = torch.full_like(best, NEGATIVE, dtype=torch.int64)
    claimed_by = torch.full_like(winner, count)  # the first box that claims the anchor; `count` is nobody
    left_out = torch.zeros_like(winner, dtype=torch.bool)
    pairs = PAIRS_AT_ONCE.get(anchors.device.type, PAIRS_AT_ONCE_ELSEWHERE)
    step = max(1, pairs // max(1, best.numel()))
    some_ignored = ignored.device.type != "cpu" or bool(ignored.any())  # to ask a GPU would be to wait for it
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        overlap = _overlaps(anchors, xyxy[:, chunk], ignored[:, chunk] == IGNORE_REGION)  # (B, n, A)
        _claim(overlap, normal[:, chunk], start, claimed_by)
        if some_ignored:
            _leave_out(overlap, ignored[:, chunk], left_out)
        highest, at = overlap.masked_fill_(~normal[:, chunk, None], 0).max(dim=1)
        better = highest > best
        best = torch.where(better, highest, best)
        winner = torch.where(better, at + start, winner)
    winner = torch.where(best >= POSITIVE_IOU, winner, NEGATIVE)
    matched = torch.where(claimed_by < count, claimed_by, winner)
    return torch.where(left_out & (matched == NEGATIVE), IGNORED, matched).int()


def _overlaps(anchors: Tensor, xyxy: Tensor, region: Tensor) -> Tensor:
    """(B, n, A): IoU of boxes and anchors; for regions (B, n) the share of the anchor that lies inside."""
    box, anchor = xyxy[..., None].unbind(dim=2), anchors.unbind(dim=1)  # 4 x (B, n, 1), 4 x (A,)
    width = torch.minimum(box[2], anchor[2]).sub_(torch.maximum(box[0], anchor[0])).clamp_(min=0)
    height = torch.minimum(box[3], anchor[3]).sub_(torch.maximum(box[1], anchor[1])).clamp_(min=0)
    shared = width.mul_(height)
    rest = box_area(xyxy)[..., None] - shared  # of the box, outside the anchor
    return shared.div_(rest.masked_fill_(region[..., None], 0).add_(box_area(anchors)))


def _claim(overlap: Tensor, normal: Tensor, start: int, claimed_by: Tensor) -> None:
    """Enters for each normal box its best anchor, if they overlap."""
    highest, anchor = overlap.max(dim=2)
    number = torch.arange(start, start + normal.shape[1], device=normal.device)
    claimant = torch.where(normal & (highest > 0), number, claimed_by.new_full((), torch.iinfo(torch.int64).max))
    claimed_by.scatter_reduce_(1, anchor, claimant, "amin")


def _leave_out(overlap: Tensor, ignored: Tensor, left_out: Tensor) -> None:
    """Marks the anchors of ignored boxes and regions."""
    left_out |= ((overlap >= POSITIVE_IOU) & (ignored > 0)[..., None]).any(dim=1)
    highest, anchor = overlap.max(dim=2)
    claims = (ignored == IGNORE_BOX) & (highest > 0)
    marks = torch.zeros_like(left_out, dtype=torch.int8).scatter_reduce_(1, anchor, claims.to(torch.int8), "amax")
    left_out |= marks.bool()
