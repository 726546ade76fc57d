"""A network on torch's meta device, where nothing is computed: what it and one of its images cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from tutelage.config import RunConfig, TrainConfig
from tutelage.engine.memory import (
    StepMemory,
    inference_activations,
    training_activations,
    training_memory,
    weight_bytes,
)
from tutelage.engine.runtime import resolve
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.models.model import build_classifier
from tutelage.tasks.table import build_task
from tutelage.workflows.costing.images import pretrains

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DryNetwork:
    """What a network costs; each figure is found when it is first asked for."""

    def __init__(self, build: Callable[[], nn.Module], canvas: tuple[int, int], config: RunConfig) -> None:
        """Builds it on the meta device, in the precision that `config.runtime` has on the device it chooses."""
        with torch.device("meta"):
            self._model = build().to(TYPES[precision_of(config)])
        self.canvas = canvas
        self._recompute = config.runtime.activation_checkpointing

    @cached_property
    def parameters(self) -> int:
        """Number of trained values."""
        return count_parameters(self._model)

    @cached_property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return count_multiply_adds(self._model, self.canvas)

    @cached_property
    def activations(self) -> int:
        """Bytes of an image in a training step, as `runtime.activation_checkpointing` says."""
        return self.activations_with(self._recompute)

    def activations_with(self, recompute: bool) -> int:
        """Bytes of an image in a training step, with or without activation checkpointing."""
        return training_activations(self._model, self.canvas, recompute=recompute)

    @cached_property
    def inference(self) -> int:
        """Bytes of an image that is labeled or measured on."""
        return inference_activations(self._model, self.canvas)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights alone, with their copy in the network's precision."""
        return weight_bytes(self._model)

    def step_memory(self, part: TrainConfig, activations: int) -> StepMemory:
        """Bytes of a training step on one device, beside the given activations of its images."""
        return training_memory(self._model, part, activations)


def main_network(config: RunConfig, num_classes: int = 0, backbone: str = "") -> DryNetwork:
    """What a recipe trains: its task's network, or a classifier where it is for pre-training.

    Args:
        config: the recipe.
        num_classes: of the data; `model.num_classes` when 0.
        backbone: in the place of `model.backbone`.
    """
    changed = {"backbone": backbone or config.model.backbone, "num_classes": num_classes or config.model.num_classes}
    config = config.model_copy(update={"model": config.model.model_copy(update=changed)})
    if pretrains(config):
        return classifier_network(config, config.pretrain.size)
    names = tuple(f"class {number}" for number in range(config.model.num_classes))
    return DryNetwork(build_task(config, names).build_model, config.model.canvas, config)


def classifier_network(config: RunConfig, side: int) -> DryNetwork:
    """What square classified images pass, in a pre-training or beside a task."""
    return DryNetwork(lambda: build_classifier(config.model, config.model.num_classes), (side, side), config)


def precision_of(config: RunConfig) -> str:
    """float32 or bfloat16, for `auto` as this machine's device would have it."""
    device = config.runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve(config.runtime, device).precision
