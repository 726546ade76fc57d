"""Which test images a report shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_SCENES = 8
"""Test images that are shown."""


def choose_images(gained: NDArray[Any], lost: NDArray[Any], num_images: int, seed: int) -> list[int]:
    """Rows to show: 3 parts where most was gained on balance, 3 where most was lost, the rest drawn from the others."""
    balance = gained - lost
    share = 3 * num_images // 8
    up = [int(row) for row in np.argsort(-balance, kind="stable")[:share] if balance[row] > 0]
    down = [int(row) for row in np.argsort(balance, kind="stable")[:share] if balance[row] < 0]
    others = np.setdiff1d(np.arange(len(balance)), [*up, *down])
    rest = min(len(others), num_images - len(up) - len(down))
    drawn = np.random.default_rng(seed).permutation(others)[:rest]
    return [*up, *down, *(int(row) for row in drawn)]
