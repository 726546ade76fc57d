"""LARS and RMSprop as the TensorFlow code of SimCLR and EfficientNet has them; torch has neither.

Both keep the learning rate inside the momentum: v <- momentum * v + lr * update, w <- w - v. A changed rate then acts
on what is added from now on, where torch's SGD also rescales what was added before. All weights of a group are moved
by a few fused calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Groups = Iterable[dict[str, Any]]


class LARS(torch.optim.Optimizer):
    """Momentum whose rate of each tensor follows that tensor's norm (arXiv:1708.03888; SimCLR code, lars_optimizer.py).

    The update u = gradient + weight_decay * w is scaled by trust * |w| / |u|, or by 1 where one of the norms is 0.

    Args:
        groups: with `params`, `weight_decay`, and `trust`, 0 for tensors that are to move as by plain momentum.
        lr: learning rate.
        momentum: share of the last step that is taken again.
    """

    def __init__(self, groups: Groups, lr: float, *, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "trust": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves all weights that have a gradient."""
        for group in self.param_groups:
            weights, updates = _decayed_gradients(group)
            if weights and group["trust"] > 0:
                torch._foreach_mul_(updates, _trust_ratios(weights, updates, group["trust"]))
            _move(self, group, weights, updates)


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop in TensorFlow's form: epsilon inside of the square root, squares that start at 1.

    decay 0.9 and epsilon 1e-3: EfficientNet (arXiv:1905.11946, sec. 5.2; TPU code, efficientnet/utils.py).
    """

    def __init__(self, groups: Groups, lr: float, *, momentum: float, decay: float = 0.9, eps: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves all weights that have a gradient."""
        for group in self.param_groups:
            weights, updates = _decayed_gradients(group)
            if weights:
                squares = _kept(self, weights, "square", torch.ones_like)
                torch._foreach_mul_(squares, group["decay"])
                torch._foreach_addcmul_(squares, updates, updates, 1 - group["decay"])
                roots = torch._foreach_add(squares, group["eps"])
                torch._foreach_sqrt_(roots)
                torch._foreach_div_(updates, roots)
            _move(self, group, weights, updates)


def _decayed_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """A group's weights that have a gradient, and new tensors gradient + weight_decay * weight."""
    weights = [weight for weight in group["params"] if weight.grad is not None]
    gradients = [weight.grad for weight in weights]
    return weights, list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"])) if weights else []


def _trust_ratios(weights: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    norms, update_norms = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
    both = (norms > 0) & (update_norms > 0)
    return list(torch.where(both, trust * norms / update_norms, 1.0).unbind())


def _move(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], weights: list[Tensor], updates: list[Tensor]
) -> None:
    if weights:
        velocities = _kept(optimizer, weights, "velocity", torch.zeros_like)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


def _kept(
    optimizer: torch.optim.Optimizer, weights: list[Tensor], name: str, start: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What an optimizer keeps of each weight under a name."""
    for weight in weights:
        if name not in optimizer.state[weight]:
            optimizer.state[weight][name] = start(weight)
    return [optimizer.state[weight][name] for weight in weights]
