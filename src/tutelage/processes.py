"""Processes that end with the one that started them, however it ended: not even SIGKILL leaves workers behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY = 1.0  # seconds, where the system does not tell


def end_with(parent: int) -> None:
    """From now on this process is killed when the process `parent`, which started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _require(parent)  # it may have ended before


def _watch(parent: int) -> None:
    while True:
        time.sleep(LOOK_EVERY)
        _require(parent)


def _require(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)
