"""Activation checkpointing: blocks keep their input alone and compute again what the backward pass needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

KERNELS = (nn.modules.conv._ConvNd, nn.Linear)
ITERATED = (nn.ModuleList, nn.ModuleDict)  # their owners call the members, not them
LARGEST_BLOCK = 10  # kernels: a residual block with squeeze and excitation, one head's tower


@contextmanager
def recomputed_activations(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """While the context lasts, the model's blocks recompute their activations in the backward pass."""
    chosen = list(blocks(model)) if enabled else []
    for block in chosen:
        block.forward = partial(_forward, block, block.forward)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward  # the class's method shows again


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules of 2 to `LARGEST_BLOCK` kernels that are called as a whole."""
    for child in module.children():
        kernels = sum(isinstance(part, KERNELS) for part in child.modules())
        if isinstance(child, ITERATED) or kernels > LARGEST_BLOCK:
            yield from blocks(child)
        elif kernels > 1:
            yield child


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), still_statistics(block)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """While the context lasts, batch-norm layers normalize by the batch but leave their running statistics alone.

    A second computation sees the same batch, which must not enter them again. Not `track_running_stats = False`:
    autograd would then save fewer tensors than the first time, and refuse.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
