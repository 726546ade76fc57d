"""How much memory a training step takes, and how much there is.

A GPU says when it is full; on a CPU the system kills the process, so the need is reckoned from passes of one and two
images (`step_bytes`). Before a device is at hand, a dry run on torch's meta device, where tensors have a size and no
content, gives it for any network (`training_memory`, `inference_memory`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tutelage.config import TrainConfig
from tutelage.engine.optim import build_optimizer
from tutelage.engine.recompute import blocks, recomputed_activations

TEMPORARIES = 1.25  # what lives beside the saved activations, as a factor
WEIGHT_COPIES = 4  # gradients, two moments, averaged weights
FLOAT32 = 4  # bytes: weights, gradients and losses, whatever the precision of the network
DRY_IMAGES = 2  # of a dry run: batch-norm refuses one whose coarsest map is a single pixel
LOSS_COPIES = 2  # the outputs in float32, and the gradient of the loss by them

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one device, without what allocator and libraries take for themselves."""

    weights: int  # and their copy in the network's precision
    gradients: int
    optimizer: int
    averaged: int  # weights
    activations: int  # of all images of a pass

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.averaged + self.activations


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the mode lasts, counts the bytes of tensors that are made and not freed yet; also on the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation; what it returns counts, unless it is (part of) what the operation was given."""
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._take(storage)
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, address: int) -> None:
        self.now -= self._sizes.pop(address)


def step_bytes(forward: Callable[[int], object], model: nn.Module, num_images: int) -> int:
    """Bytes that a step of `num_images` labeled images takes beyond the weights.

    Args:
        forward: runs the forward pass of a number of labeled images and keeps its graph in what it returns.
        model: whose gradients and optimizer state are counted.
        num_images: of the step.
    """
    one, two = _kept_bytes(forward, 1), _kept_bytes(forward, 2)
    activations = one + (num_images - 1) * max(0, two - one)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(TEMPORARIES * activations) + WEIGHT_COPIES * weights


def training_memory(model: nn.Module, config: TrainConfig, activations: int) -> StepMemory:
    """What a training step of a network on the meta device takes, beside the given activations of its images."""
    trained = FLOAT32 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return StepMemory(
        weights=weight_bytes(model),
        gradients=trained,
        optimizer=trained * optimizer_copies(config),
        averaged=trained if config.ema_decay else 0,
        activations=activations,
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of weights that are kept in float32, and of their copy where the network's type is a smaller one."""
    weights = list(model.parameters())
    copies = sum(weight.numel() * weight.element_size() for weight in weights if weight.element_size() < FLOAT32)
    return FLOAT32 * sum(weight.numel() for weight in weights) + copies


def optimizer_copies(config: TrainConfig) -> int:
    """Numbers that the optimizer keeps for each weight, found by letting it step once."""
    layer = nn.Linear(2, 3, bias=False, device="meta")  # draws no random numbers
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = build_optimizer(layer, config)
    optimizer.step()
    return sum(tensor.shape == layer.weight.shape for tensor in _tensors(dict(optimizer.state)))


def training_activations(model: nn.Module, canvas: tuple[int, int], *, recompute: bool) -> int:
    """Bytes an image of (height, width) takes in a training step of a network, mostly one on the meta device.

    When the backward pass begins, that is all it will need, in the network's own type, and the outputs twice in
    float32 for the loss. Where blocks recompute, each needs room for its activations beside what blocks before it keep.
    """
    model.train()
    kept, before, after = _forward_bytes(model, canvas)
    if recompute:
        own = [end - start for start, end in zip(before, after, strict=True)]
        with recomputed_activations(model):
            kept, before, _ = _forward_bytes(model, canvas)
        kept = max(kept, *(start + block for start, block in zip(before, own, strict=True)))
    return kept // DRY_IMAGES


@torch.no_grad()
def inference_activations(model: nn.Module, canvas: tuple[int, int]) -> int:
    """Most bytes an image of (height, width) that live at once while it passes a network without a backward pass."""
    live = LiveBytes()
    with live:
        _blank_pass(model.eval(), canvas)
    return live.peak // DRY_IMAGES


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


def _kept_bytes(forward: Callable[[int], object], num_images: int) -> int:
    """Bytes that a forward pass leaves behind: its outputs and what the backward pass would need."""
    live = LiveBytes()
    with live:
        graph = forward(num_images)
    kept = live.now
    del graph
    return kept


def _blank_pass(model: nn.Module, canvas: tuple[int, int]) -> Any:
    device = next(model.parameters()).device
    images = torch.zeros(DRY_IMAGES, 3, *canvas, dtype=torch.uint8, device=device)
    return model(images, torch.tensor([canvas] * DRY_IMAGES, device=device))


def _forward_bytes(model: nn.Module, canvas: tuple[int, int]) -> tuple[int, list[int], list[int]]:
    """Live bytes once images have passed, their loss included; and those before and after each call of a block."""
    before: list[int] = []
    after: list[int] = []
    live = LiveBytes()
    handles = [block.register_forward_pre_hook(lambda *_: before.append(live.now)) for block in blocks(model)]
    handles += [block.register_forward_hook(lambda *_: after.append(live.now)) for block in blocks(model)]
    with live:
        outputs = _blank_pass(model, canvas)
        kept = live.now + LOSS_COPIES * FLOAT32 * sum(tensor.numel() for tensor in _tensors(outputs))
    for handle in handles:
        handle.remove()
    return kept, before, after


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))
