"""How long a model takes for a batch: warm-up, then single runs, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def timed(
    run: Callable[[], Any],
    batch_size: int,
    *,
    warmup: int,
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Latency and throughput of a pass.

    Args:
        run: one pass of a batch, finished when it returns.
        batch_size: pictures in it.
        warmup: passes before, not timed: kernels are chosen and memory is taken in them.
        runs: passes that are timed.
        clock: seconds.

    Returns:
        `batch_size`, `warmup`, `runs`; `median_ms` and `p95_ms` of a pass; `images_per_second` over all timed passes.
    """
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(runs):
        started = clock()
        run()
        seconds.append(clock() - started)
    median, late = np.quantile(seconds, [0.5, 0.95]) * 1000
    return {
        "batch_size": batch_size,
        "warmup": warmup,
        "runs": runs,
        "median_ms": float(median),
        "p95_ms": float(late),
        "images_per_second": batch_size * runs / sum(seconds),
    }
