"""Which precision a CPU trains faster in: measured, since instructions alone do not tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]
PROBE_SECONDS = 2.0
LEAST_GAIN = 1.05  # a bfloat16 that is not clearly faster is not worth its digits


def faster_precision(
    model: nn.Module, canvas: tuple[int, int], *, clock: Callable[[], float] = time.perf_counter
) -> Precision:
    """The precision in which a training pass of `model` takes less time on the CPU, both tried in turn for two seconds.

    Args:
        model: takes uint8 images (B, 3, H, W) and their covered sizes (B, 2), and returns tensors.
        canvas: (height, width) of the two images that are passed.
        clock: seconds.
    """
    model = model.train().to(memory_format=torch.channels_last)
    images = torch.full((2, *canvas, 3), 128, dtype=torch.uint8).permute(0, 3, 1, 2)
    valid = torch.tensor([canvas, canvas])
    best = {False: float("inf"), True: float("inf")}  # by whether bfloat16 is used

    def seconds_of_a_pass(reduced: bool) -> float:
        started = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            outputs = model(images, valid)
        torch.stack([output.float().sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        return clock() - started

    for reduced in best:
        seconds_of_a_pass(reduced)  # kernels are chosen at the first
    began = clock()
    while clock() - began < PROBE_SECONDS or float("inf") in best.values():
        for reduced in best:
            best[reduced] = min(best[reduced], seconds_of_a_pass(reduced))
    return "bfloat16" if best[False] > LEAST_GAIN * best[True] else "float32"
