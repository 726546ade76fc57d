"""How weights move: parameter groups, the choice of optimizer, the learning rate of each step, weight averaging."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tutelage.config import TrainConfig
from tutelage.engine.optimizers import LARS, RMSpropTF

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
LARGEST_WARMUP = 0.1  # of the training, so that short trainings reach their peak rate
LARS_TRUST = 1e-3  # arXiv:1708.03888, sec. 5; SimCLR code, lars_optimizer.py

Groups = list[dict[str, Any]]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a training, with weight decay on kernels alone (norms too with `decay_norms`)."""
    return OPTIMIZERS[config.optimizer](parameter_groups(model, config), lr_at(0, config, 1), config.momentum)


def _sgd(groups: Groups, lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr, momentum=momentum, fused=_have_memory(groups))


def _adamw(groups: Groups, lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr, betas=(momentum, 0.999), fused=_have_memory(groups))


def _have_memory(groups: Groups) -> bool:
    """Whether the weights are real ones; those of a dry run are not, and fused steps refuse them."""
    return not any(weight.is_meta for group in groups for weight in group["params"])


def _rmsprop(groups: Groups, lr: float, momentum: float) -> torch.optim.Optimizer:
    return RMSpropTF(groups, lr, momentum=momentum)


def _lars(groups: Groups, lr: float, momentum: float) -> torch.optim.Optimizer:
    """What is not decayed is not adapted either (SimCLR code, lars_optimizer.py)."""
    decayed, others = groups
    return LARS([{**decayed, "trust": LARS_TRUST}, others], lr, momentum=momentum)


OPTIMIZERS: dict[str, Callable[[Groups, float, float], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "lars": _lars,
}


def parameter_groups(model: nn.Module, config: TrainConfig) -> Groups:
    """Decayed parameters (kernels) and the others (biases, norms, embeddings of positions), in the model's order.

    A kernel is a matrix or filter named `weight`; position embeddings and class tokens have names of their own.
    """
    norms = {id(weight) for module in model.modules() if isinstance(module, NORMS) for weight in module.parameters()}
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = [
        config.decay_norms if id(weight) in norms else weight.ndim > 1 and name.endswith("weight")
        for name, weight in trained
    ]
    return [
        {
            "params": [weight for (_, weight), decays in zip(trained, decayed, strict=True) if decays is kind],
            "weight_decay": config.weight_decay if kind else 0.0,
        }
        for kind in (True, False)
    ]


def peak_lr(config: TrainConfig) -> float:
    """The learning rate after warm-up, which follows the labeled batch size by `lr_rule`."""
    share = config.batch_size / config.lr_batch_size
    return config.lr * {"linear": share, "sqrt": math.sqrt(share), "fixed": 1.0}[config.lr_rule]


def lr_at(step: int, config: TrainConfig, num_steps: int) -> float:
    """The learning rate of `step` (from 0): linear warm-up, then the schedule over what remains."""
    peak = peak_lr(config)
    warmup = min(config.warmup_steps, int(LARGEST_WARMUP * num_steps))
    if step < warmup:
        return peak * (config.warmup_start + (1 - config.warmup_start) * step / warmup)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
    if config.schedule == "step":
        return peak * 0.1 ** sum(step >= share * num_steps for share in config.decay_at)
    if config.schedule == "exponential":
        return peak * config.decay_rate ** math.floor(step / (config.decay_every * num_steps))
    return peak


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def num_steps_for(config: TrainConfig, num_images: int) -> int:
    """Steps of `config.passes` over the labeled images, but at least `config.min_steps`."""
    return max(config.min_steps, math.ceil(config.passes * num_images / config.batch_size))


def averaged_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that `update_average` moves towards the model."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def ramped_decay(largest: float, step: int) -> float:
    """The decay of averaged weights after `step` (from 0): min(largest, (1 + n) / (10 + n)).

    It starts low, so that the first weights do not weigh on the average for 1 / (1 - largest) steps.
    """
    return min(largest, (1 + step) / (10 + step))


def update_average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the averaged weights, and batch-norm statistics likewise, towards the model's."""
    own, new = ema.state_dict(), model.state_dict()
    moving = [name for name, tensor in own.items() if tensor.is_floating_point()]
    get_ema_multi_avg_fn(decay)([own[name] for name in moving], [new[name] for name in moving], 0)  # type: ignore[no-untyped-call]
    for name in own.keys() - set(moving):
        own[name].copy_(new[name])
