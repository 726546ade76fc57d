"""What could stop a training midway, found before it starts or answered in order: memory, disk, signals."""

from __future__ import annotations

import copy
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tutelage.engine.memory import available_bytes, step_bytes
from tutelage.engine.objectives import Objective
from tutelage.engine.optim import averaged_copy
from tutelage.engine.recompute import recomputed_activations
from tutelage.engine.runtime import Runtime
from tutelage.types import Batch, InputError, PaddedBoxes

FORWARD_SHARE = 1 / 3  # of a training step's work that a forward pass takes
BOXES_REHEARSED = 8  # an image; memory hardly depends on it
STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While the context lasts, SIGINT and SIGTERM only set `asked`; handlers are the main thread's to set."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def require_disk(folder: Path, num_bytes: int) -> None:
    """Raises `InputError` unless the disk of `folder` has `num_bytes` free."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: {free / 1e6:,.0f} MB are free on this disk; the run needs about {num_bytes / 1e6:,.0f} MB. "
            "Free some space, or choose another --out."
        )


def device_batch(batch_size: int, runtime: Runtime) -> int:
    """The most labeled images that a device passes through the network at once; inference keeps to it as well.

    Args:
        batch_size: labeled images a step of the training, over all devices.
        runtime: devices.
    """
    own = max(1, batch_size // runtime.world_size)
    return min(own, runtime.config.device_batch_size or own)


def split_batch(batch_sizes: Mapping[str, int], runtime: Runtime) -> int:
    """Micro-batches a step: as few equal ones as keep a device's images within `runtime.device_batch_size`.

    The first stream (labeled images) is what is counted; the others are divided by the same number.

    Raises:
        InputError: the images of a step cannot be shared equally by the devices and micro-batches.
    """
    labeled, devices = next(iter(batch_sizes.values())), runtime.world_size
    if labeled % devices:
        raise InputError(
            f"train.batch_size={labeled}: cannot be shared equally by {devices} devices. "
            f"Choose a multiple of {devices}, or other runtime.devices."
        )
    own, largest = labeled // devices, device_batch(labeled, runtime)
    small_enough = [parts for parts in range(1, own + 1) if own % parts == 0 and own // parts <= largest]
    for parts in small_enough:
        if not any(size % (devices * parts) for size in batch_sizes.values()):
            return parts
    name, size = next((name, size) for name, size in batch_sizes.items() if size % (devices * small_enough[0]))
    raise InputError(
        f"stream {name!r}: its {size} images a step cannot be shared equally by {devices} devices x {small_enough[0]} "
        "micro-batches. Choose another runtime.device_batch_size, runtime.devices or, in joint training, "
        "joint.batch_size."
    )


@contextmanager
def memory_limited(name: str, images: int, runtime: Runtime) -> Iterator[None]:
    """A block that passes `images` labeled images through the network at once, whose memory may end.

    The rehearsal has seen them fit; but others use the device too, and its free memory falls into pieces.

    Raises:
        InputError: it did; the message names a smaller device batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_want_of_memory(error):
            raise
        remedy = f"Set runtime.device_batch_size={images // 2}" if images > 1 else "Free memory of the device"
        raise InputError(
            f"{name}: the memory of this {runtime.device.type} device ended with {images} images in a pass; half as "
            f"many take about half of it. {remedy}, then run the same command: it continues from what was saved last."
        ) from None


def _is_want_of_memory(error: Exception) -> bool:
    words = "allocate memory"  # what the CPU's allocator says
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or words in str(error)


class StreamSize(NamedTuple):
    """What a stream puts on the devices at each step."""

    images: int  # over all devices
    canvas: tuple[int, int]  # (height, width)
    views: int = 1  # the first is trained on; a teacher looks at the others

    @property
    def pixels(self) -> float:
        """Of all images; those that are only looked at count by their share of the work."""
        return self.images * math.prod(self.canvas) * (1 + (self.views - 1) * FORWARD_SHARE)


def rehearse(objective: Objective, streams: Mapping[str, StreamSize], runtime: Runtime) -> float:
    """Forward and backward passes of the largest batch, on a copy, so that memory does not end hours later.

    Args:
        objective: of the largest stage (the student); stays as it is. The copy stands for the optimizer's memory.
        streams: sizes by stream.
        runtime: devices.

    Returns:
        Seconds that a pixel of any stream takes on one device, loading left out, to plan with.

    Raises:
        InputError: out of memory; the message names the device batch that fits.
    """
    batch_sizes = {name: stream.images for name, stream in streams.items()}
    passes = split_batch(batch_sizes, runtime) * runtime.world_size
    rehearsal = _Rehearsal(objective, streams, runtime)
    canvas = streams["labeled"].canvas
    wanted = largest = batch_sizes["labeled"] // passes
    while largest and not rehearsal.fits(largest):
        largest //= 2
    device = runtime.device.type
    if largest == 0:
        raise InputError(
            f"model.canvas={list(canvas)}: not even one image a pass fits into the memory of this {device} device. "
            "Set runtime.activation_checkpointing=true, or choose a smaller canvas or network."
        )
    if largest < wanted:
        raise InputError(
            f"runtime.device_batch_size: {wanted} labeled images at {canvas[0]}x{canvas[1]} pixels do not fit into the "
            f"memory of this {device} device; {largest} do. Set runtime.device_batch_size={largest} "
            "(only batch-norm statistics differ), or runtime.activation_checkpointing=true."
        )
    return rehearsal.seconds_per_pixel(wanted)


class _Rehearsal:
    """A copy of the objective that tries steps of gray images."""

    def __init__(self, objective: Objective, streams: Mapping[str, StreamSize], runtime: Runtime) -> None:
        self._objective = copy.deepcopy(objective).to(runtime.device).train()
        if runtime.config.channels_last:
            self._objective.to(memory_format=torch.channels_last)
        self._ema = averaged_copy(self._objective.model) if objective.needs_ema else None
        self._streams, self._runtime = streams, runtime

    def fits(self, num_images: int) -> bool:
        """Whether a pass of `num_images` labeled images and their share of the other streams fits into memory."""
        available = available_bytes() if self._runtime.device.type == "cpu" else None
        try:
            if available is not None and step_bytes(self._forward, self._objective, num_images) > available:
                return False
            self._forward(num_images).backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not _is_want_of_memory(error):
                raise
            return False
        finally:
            self._objective.zero_grad(set_to_none=True)
            if self._runtime.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        return True

    def seconds_per_pixel(self, num_images: int) -> float:
        """Seconds of one pass, after another has warmed up, by its pixels."""
        started = time.perf_counter()
        self._forward(num_images).backward()  # type: ignore[no-untyped-call]
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / sum(stream.pixels for stream in self._share(num_images).values())

    def _share(self, num_images: int) -> dict[str, StreamSize]:
        """What goes with `num_images` labeled images."""
        share = num_images / self._streams["labeled"].images
        return {
            name: stream._replace(images=max(1, round(share * stream.images))) for name, stream in self._streams.items()
        }

    def _forward(self, num_images: int) -> Tensor:
        objective, runtime = self._objective, self._runtime
        batches = {name: _blank_batch(*size).to(runtime.device) for name, size in self._share(num_images).items()}
        with runtime.autocast():
            targets = objective.prepare(batches, self._ema)
        with recomputed_activations(objective.model, runtime.config.activation_checkpointing), runtime.autocast():
            sums = objective(batches, targets)
        return objective.total(sums, objective.counts(targets))


def _blank_batch(size: int, canvas: tuple[int, int], views: int) -> Batch:
    """Gray images with a box, a mask and a class each, so that every task can be rehearsed."""
    height, width = canvas
    box = torch.tensor([0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height])
    boxes = PaddedBoxes(
        xyxy=box.expand(size, BOXES_REHEARSED, 4).contiguous(),
        labels=torch.zeros(size, BOXES_REHEARSED, dtype=torch.int64),
        scores=torch.ones(size, BOXES_REHEARSED),
        ignore=torch.zeros(size, BOXES_REHEARSED, dtype=torch.uint8),
        valid=torch.ones(size, BOXES_REHEARSED, dtype=torch.bool),
    )
    return Batch(
        images=torch.full((size, views, height, width, 3), 128, dtype=torch.uint8).permute(0, 1, 4, 2, 3),
        matrix=torch.eye(3, dtype=torch.float64).expand(size, views, 3, 3).contiguous(),
        valid=torch.tensor(canvas).expand(size, views, 2).contiguous(),
        image_ids=torch.arange(size),
        sizes=torch.tensor(canvas).expand(size, 2).contiguous(),
        boxes=boxes,
        masks=torch.zeros(size, height, width, dtype=torch.uint8),
        labels=torch.zeros(size, dtype=torch.int64),
    )
