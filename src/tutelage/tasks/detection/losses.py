"""RetinaNet losses as sums (TPU detection code, losses.py).

Legend: B images, A anchors, K classes, R rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.tasks.detection.matching import IGNORED

VALUES_AT_ONCE = {"cpu": 1 << 17}
"""Logits in work at a time: on a CPU what its cache holds, elsewhere what keeps the temporaries small."""
VALUES_AT_ONCE_ELSEWHERE = 1 << 25


def focal_sum(logits: Tensor, classes: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sum of the sigmoid focal loss (arXiv:1708.02002) over all anchors and classes that are not ignored.

    Args:
        logits: (B, A, K), computed in float32 at least whatever their type.
        classes: (B, A) int64: the class, NEGATIVE or IGNORED.
        alpha: weight of a positive entry; a negative one weighs 1 - alpha.
        gamma: exponent of the modulating factor.
    """
    total: Tensor = _FocalSum.apply(logits, classes, alpha, gamma)
    return total


def huber_sum(deltas: Tensor, targets: Tensor, positive: Tensor, *, delta: float) -> Tensor:
    """Sum of Huber losses of deltas (B, A, 4) to targets (B, A, 4) over the positive anchors (B, A).

    The TPU code leaves out coordinates whose target is exactly 0 instead; there the loss would pull towards 0.
    """
    wide = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
    loss = F.huber_loss(wide, targets.to(wide.dtype), reduction="none", delta=delta)
    return loss.masked_fill(~positive[..., None], 0).sum()


class _FocalSum(torch.autograd.Function):
    """The sum with its gradient found in the same pass: one array of the logits' size is kept, none is made twice.

    Nearly all entries are negatives, so every entry is first taken as one; then the few positive entries, one a
    positive anchor, are put right.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
        rows, targets = logits.reshape(-1, logits.shape[-1]), classes.reshape(-1)
        slopes = torch.empty_like(rows)
        step = _rows_at_once(rows)
        total = sum(
            _chunk(rows[at : at + step], targets[at : at + step], slopes[at : at + step], alpha, gamma)
            for at in range(0, len(rows), step)
        )
        ctx.save_for_backward(slopes.view(logits.shape))
        return total if isinstance(total, Tensor) else logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad_outputs[0].to(slopes.dtype), None, None, None


def _rows_at_once(rows: Tensor) -> int:
    if torch.compiler.is_compiling():  # the compiler fuses; a loop would only be unrolled
        return max(1, len(rows))
    return max(1, VALUES_AT_ONCE.get(rows.device.type, VALUES_AT_ONCE_ELSEWHERE) // max(1, rows.shape[1]))


def _chunk(logits: Tensor, classes: Tensor, slopes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Loss of rows (R, K) for their classes (R,), and its derivative, written to `slopes`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss, slope = _as_negative(wide, gamma)
    kept = (classes != IGNORED)[:, None]
    positive, column = (classes >= 0)[:, None], classes.clamp(min=0)[:, None]
    mirrored, mirrored_slope = _as_negative(-wide.gather(1, column), gamma)  # a positive is a negative of -x
    correction = alpha * mirrored - (1 - alpha) * loss.gather(1, column)
    total = (1 - alpha) * loss.sum(dim=1, keepdim=True).masked_fill_(~kept, 0) + correction.masked_fill_(~positive, 0)
    slope.mul_(1 - alpha).masked_fill_(~kept, 0)
    slope.scatter_(1, column, torch.where(positive, -alpha * mirrored_slope, slope.gather(1, column)))
    slopes.copy_(slope)
    return total.sum()


def _as_negative(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """p^gamma * -ln(1 - p) of p = sigmoid(logits), and its derivative; the power taken in log space."""
    surprise = F.softplus(logits)  # -ln(1 - p)
    log_p = logits - surprise
    p = log_p.exp()
    power = log_p.mul_(gamma).exp_()
    slope = torch.addcmul(surprise, surprise, p, value=-1).mul_(gamma).add_(p).mul_(power)
    return surprise.mul_(power), slope
