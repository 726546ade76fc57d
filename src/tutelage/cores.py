"""How many cores there are to compute on."""

from __future__ import annotations

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that this process may use: by its affinity and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not CPU_QUOTA.is_file():
        return cores
    quota, period = CPU_QUOTA.read_text().split()
    return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))
