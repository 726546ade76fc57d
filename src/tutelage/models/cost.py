"""What a network costs: parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: nn.Module, canvas: tuple[int, int]) -> int:
    """Multiply-adds of one image (height, width) through a model on torch's meta device (nothing is computed)."""
    images = torch.zeros(1, 3, *canvas, dtype=torch.uint8, device="meta")
    valid = torch.tensor([canvas], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images, valid)
    return int(counter.get_total_flops()) // 2
