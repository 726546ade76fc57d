"""How much memory a training step takes on a CPU, and how much there is.

A GPU says when it is full; on a CPU the system kills the process, so the need is reckoned from passes of one and two
images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

TEMPORARIES = 1.25  # what lives beside the saved activations, as a factor
WEIGHT_COPIES = 4  # gradients, two moments, averaged weights

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def step_bytes(forward: Callable[[int], object], model: nn.Module, num_images: int) -> int:
    """Bytes that a step of `num_images` labeled images takes beyond the weights.

    Args:
        forward: runs the forward pass of a number of labeled images and keeps its graph in what it returns.
        model: whose gradients and optimizer state are counted.
        num_images: of the step.
    """
    one, two = _saved_bytes(forward, 1), _saved_bytes(forward, 2)
    activations = one + (num_images - 1) * max(0, two - one)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(TEMPORARIES * activations) + WEIGHT_COPIES * weights


def available_bytes() -> int | None:
    """Free memory of this machine or container; None where the system does not say."""
    if not MEMINFO.is_file():
        return None
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return free
    statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    used = int((CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])
    return min(free, int(limit.read_text()) - used)


def _saved_bytes(forward: Callable[[int], object], num_images: int) -> int:
    """Bytes of the tensors that the backward pass of a forward pass would need."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = forward(num_images)
    del graph
    return sum(storages.values())
