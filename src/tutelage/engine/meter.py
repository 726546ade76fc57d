"""Figures of a training between two lines of its log, its clock, and the watch over what is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.engine.checkpoint import State
from tutelage.types import InputError


class Meter:
    """Figures of the steps since the last line of the log, kept on the device until they are read.

    A figure that is not finite stops the training: on a CPU at once, on a GPU, where looking means waiting, when the
    figures are read or a checkpoint is due.

    Args:
        name: of the training, for messages.
        state: of the training; its step and learning rate are read.
        images: of all streams and devices in a step.
    """

    def __init__(self, name: str, state: State, images: int) -> None:
        self.figures: dict[str, float] = {}  # of the last line
        self._name, self._state, self._images = name, state, images
        self._names = list(state.unread)
        self._sum: Tensor | None = None
        if state.unread_steps:
            self._sum = torch.tensor(list(state.unread.values()), dtype=torch.float64)
        self._steps = self._continued = state.unread_steps
        self._started = self._read_at = self._saved_at = time.monotonic()
        self._first, self._seconds_before = state.step, state.seconds

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Takes in a finished step."""
        self._names = list(figures)
        values = torch.stack([value.detach() for value in figures.values()])
        self._sum = values if self._sum is None else self._sum.to(values) + values
        self._steps += 1
        if values.device.type == "cpu":
            self.require_finite()

    def read(self) -> dict[str, float]:
        """Means since the last line; starts the next.

        Raises:
            InputError: one of them is not finite.
        """
        self.require_finite()
        now = time.monotonic()
        self.figures = {
            "lr": self._state.optimizer.param_groups[0]["lr"],
            **self._means(),
            "images_per_second": (self._steps - self._continued) * self._images / max(now - self._read_at, 1e-9),
        }
        self._sum, self._steps, self._continued, self._read_at = None, 0, 0, now
        return self.figures

    def require_finite(self) -> None:
        """Raises `InputError` if a figure since the last line is not finite."""
        if self._sum is None or bool(torch.isfinite(self._sum).all()):
            return
        means = self._means()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        streams = sorted({name.split("_")[0] for name in bad} - {"loss", "gradient", "ratio"})
        what = f"the loss of the {' and the '.join(streams)} stream" if streams else f"the {bad[0].replace('_', ' ')}"
        at = f"step {self._state.step}" if self._steps == 1 else f"the {self._steps} steps to {self._state.step}"
        start = self._state.watch.began_at()
        diverged = "" if start is None else f"; it began with a loss of {start:.4g} and diverges"
        raise InputError(
            f"{self._name}, {at}: {what} is not finite "
            f"({', '.join(f'{name} {value:.4g}' for name, value in means.items())}){diverged}. Lower train.lr (this "
            f"step's rate: {self._state.optimizer.param_groups[0]['lr']:.4g}), set train.clip_norm, or "
            "runtime.precision=float32."
        )

    def unread(self) -> tuple[dict[str, float], int]:
        """Sums since the last line, and of how many steps: what a continued training goes on from."""
        sums = [] if self._sum is None else self._sum.tolist()
        return dict(zip(self._names if sums else [], sums, strict=True)), self._steps

    def seconds(self) -> float:
        """Time spent on the training, over all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def images_per_second(self) -> float:
        """Images of all streams in this session by its time."""
        return (self._state.step - self._first) * self._images / max(time.monotonic() - self._started, 1e-9)

    def seconds_unsaved(self) -> float:
        """Time since the last checkpoint."""
        return time.monotonic() - self._saved_at

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved_at = time.monotonic()

    def _means(self) -> dict[str, float]:
        assert self._sum is not None, "figures are read after a step"
        return dict(zip(self._names, (self._sum / self._steps).tolist(), strict=True))


def describe(figures: Mapping[str, float]) -> str:
    """A line of figures in a few words."""
    hidden = {"lr", "gradient_norm", "images_per_second"}
    terms = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items() if name not in hidden]
    return ", ".join([*terms, f"{figures['images_per_second']:.1f} images/s"])
