"""Activation checkpointing: blocks keep their input alone and compute again what the backward pass needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
    return nullcontext(), _untracked_statistics(block)


@contextmanager
def _untracked_statistics(block: nn.Module) -> Iterator[None]:
    """The second computation normalizes by the same batch, but must not enter the running statistics again."""
    with ExitStack() as stack:
        for norm in block.modules():
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                stack.callback(setattr, norm, "track_running_stats", True)
                norm.track_running_stats = False
        yield
