"""How fast this machine trains a recipe's network: real steps that grow until ten seconds are used up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from tutelage.config import RunConfig
from tutelage.engine.guard import StreamSize, rehearse
from tutelage.engine.memory import FLOAT32, available_bytes
from tutelage.engine.objectives import Student
from tutelage.engine.runtime import Runtime, launch
from tutelage.models.model import canvas_stride
from tutelage.tasks.classification import ClassificationTask
from tutelage.tasks.table import build_task
from tutelage.types import InputError
from tutelage.workflows.costing.images import pretrains
from tutelage.workflows.costing.network import main_network
from tutelage.workflows.costing.stages import flops_an_image, largest_pass

PROBE_SECONDS = 10.0
SHARES = (8, 4, 2)  # sides of the smaller canvases tried are these parts of the recipe's
GROWTH = 4  # in work, from one try to the next
WEIGHT_COPIES = 4  # of a rehearsal: the network, its copy, gradients, and room


def measured_speed(config: RunConfig) -> float | None:
    """FLOP/s of one device in training steps of the recipe's network; None where it cannot run on this machine."""
    network, available = main_network(config), available_bytes()
    if available is not None and WEIGHT_COPIES * FLOAT32 * network.parameters > available:
        return None
    alone = config.runtime.model_copy(update={"devices": 1})
    seconds = launch(alone, _seconds_per_pixel, config)
    return None if seconds is None else flops_an_image(config, network) / math.prod(network.canvas) / seconds


def _seconds_per_pixel(runtime: Runtime, config: RunConfig) -> float | None:
    """Of the largest step that could be tried in time."""
    runtime.seed_everything(config.seed)
    objective = _objective(config)
    started, found = time.perf_counter(), None
    for size in _sizes(config):
        before = time.perf_counter()
        try:
            found = rehearse(objective, {"labeled": size, "second": size}, runtime)
        except InputError:  # this many do not fit into memory
            return found
        now = time.perf_counter()
        if now - started + GROWTH * (now - before) > PROBE_SECONDS:
            return found
    return found


def _objective(config: RunConfig) -> Student:
    """A student's, so that batch-norm sees two images even of the smallest canvas."""
    names = tuple(f"class {number}" for number in range(config.model.num_classes))
    task = ClassificationTask(config.model, 0.0, names) if pretrains(config) else build_task(config, names)
    return Student(task, task.build_model(), config.student)


def _sizes(config: RunConfig) -> Iterator[StreamSize]:
    """One image a stream of a growing canvas, then a growing number of whole ones, up to what a device passes."""
    canvas = (config.pretrain.size, config.pretrain.size) if pretrains(config) else config.model.canvas
    stride = canvas_stride(config.model)
    for share in SHARES:
        height, width = (-(-side // (share * stride)) * stride for side in canvas)
        if height < canvas[0] and width < canvas[1]:
            yield StreamSize(1, (height, width))
    images, (_, largest) = 1, largest_pass(config)
    while images == 1 or 2 * images <= largest:
        yield StreamSize(images, canvas)
        images *= GROWTH
