"""The watch over a training: what tells early that it goes wrong, from the figures of its log.

It looks when a line of the log is written, at figures that are read then anyway; a step costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, Self

import torch
from torch import Tensor

from tutelage.config import TrainConfig
from tutelage.types import InputError

Guard = Literal["warn", "stop"]

DIVERGED = 10.0  # times its start that a loss reaches only when the weights have left every sensible place
LEAST_DIVERGED = 1.0  # about what an untrained network has: below it, nothing is lost
RATIO = (0.05, 100.0)
"""Of the losses' averages, human over pseudo-labels. Healthy runs stay between 0.2 and 3, and below 25 where only the
surest fifth of the pixels is kept, whose loss is small."""
STEEP = 10.0  # times the median of the lines before that a gradient's norm is out of hand
LINES_KNOWN = 5  # lines of the log that make a median, or a habit
LINES_KEPT = 50
FADING, GONE = 1 / 2, 1 / 50  # of what a teacher that learns on found in the pool at first
SWOLLEN = 1.5  # times that
FEW = 0.25  # of what people label in an image
MANY_FOUND = 10  # positives a step: more than so many do not grow by half by chance
CLIPPED = 2.0  # times train.clip_norm: on average half of each step is cut away


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that is going wrong: said once for each cause."""

    cause: str
    text: str  # what was found, with the numbers, and what to do
    lost: bool = False  # nothing good can come of the run

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return {"cause": self.cause, "text": self.text, "lost": self.lost}


def stop_if_lost(name: str, alarms: Iterable[Alarm], guard: Guard) -> None:
    """Ends what is lost, where the guard is to.

    Raises:
        InputError: one of the alarms says that the run is lost, and `guard` is `stop`.
    """
    lost = [alarm.text for alarm in alarms if alarm.lost]
    if lost and guard == "stop":
        raise InputError(
            f"{name}: {' '.join(lost)} guard=stop ends the run here; what was made is kept. "
            "The same command with guard=warn goes on."
        )


@dataclass
class TrainingWatch:
    """What is remembered of a training between lines of its log; in its checkpoints too."""

    start: Tensor | None = None  # loss of the first step, (), on the device
    norms: list[float] = field(default_factory=list)  # of the gradient, in the last lines
    clipped: int = 0  # lines in a row, up to the last one
    alarms: dict[str, Alarm] = field(default_factory=dict)  # the first one of each cause

    def begin(self, loss: Tensor) -> None:
        """Takes in the loss of a step, of which only the first counts."""
        if self.start is None:
            self.start = loss.detach()

    def began_at(self) -> float | None:
        """The loss of the first step, if it had one; waits for the device."""
        start = 0.0 if self.start is None else self.start.item()
        return start if 0 < start < math.inf else None

    def look(self, figures: Mapping[str, float], config: TrainConfig) -> list[Alarm]:
        """What is wrong by a line of the log."""
        found = [*self._divergence(figures), *self._balance(figures), *self._gradient(figures, config)]
        found += self._drift(figures.get("second_left", 1.0), figures.get("second_positives", 0.0))
        found += self._amount(figures.get("second_share", 1.0))
        self.alarms = {**{alarm.cause: alarm for alarm in found}, **self.alarms}
        self.norms = [*self.norms, figures["gradient_norm"]][-LINES_KEPT:]
        return found

    def as_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        alarms = [alarm.as_dict() for alarm in self.alarms.values()]
        return {"start": self.began_at(), "norms": self.norms, "clipped": self.clipped, "alarms": alarms}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Of a checkpoint."""
        alarms = {one["cause"]: Alarm(**one) for one in plain["alarms"]}
        start = None if plain["start"] is None else torch.tensor(plain["start"])
        return cls(start, list(plain["norms"]), plain["clipped"], alarms)

    def _divergence(self, figures: Mapping[str, float]) -> Iterator[Alarm]:
        start, loss, rate = self.began_at(), figures["loss"], figures["lr"]
        if start is None:
            self.start = None  # a batch without labels: the next step's counts
        elif loss > max(DIVERGED * start, LEAST_DIVERGED):
            yield Alarm(
                "divergence",
                f"the loss is {loss:.3g} and began at {start:.3g}: the training diverges. Lower train.lr (now "
                f"{rate:.3g}), raise train.warmup_steps, or set train.clip_norm.",
                lost=True,
            )

    def _balance(self, figures: Mapping[str, float]) -> Iterator[Alarm]:
        ratio = figures.get("ratio", 1.0)
        if ratio > RATIO[1]:
            yield Alarm(
                "contradiction",
                f"human labels cost {ratio:.3g} times the loss of the pseudo-labels: the teacher says something else "
                "than people do. Compare its class names with those of the labels, and look at some pseudo-labels "
                "before trusting them.",
            )
        elif ratio < RATIO[0]:
            yield Alarm(
                "misfit",
                f"pseudo-labels cost {1 / ratio:.3g} times the loss of the human labels: they do not fit together. "
                "Raise pseudo.score_threshold, train the teacher longer, or see whether the pool shows what the "
                "labeled images show.",
            )

    def _drift(self, left: float, found: float) -> Iterator[Alarm]:
        """A teacher that learns on and finds less and less in the pool, or more and more."""
        remedy = (
            "Lower student.lr or pseudo.score_threshold, leave boxes that it is unsure of out of the loss "
            "(pseudo.unsure=ignore pseudo.empty=drop), or start from a better teacher."
        )
        if left < GONE:
            yield Alarm(
                "collapse",
                "nothing that the teacher sees in the pool reaches pseudo.score_threshold any more: the pool teaches "
                f"the student background at most. {remedy}",
                lost=True,
            )
        elif left < FADING:
            yield Alarm(
                "fading",
                f"the teacher takes {left:.0%} as much from the pool as when the burn-in ended: where what it misses "
                f"is background, the student unlearns it, and the teacher misses more. {remedy}",
            )
        elif left > SWOLLEN and found > MANY_FOUND:
            yield Alarm(
                "swelling",
                f"the teacher takes {left:.1f} times as much from the pool as when the burn-in ended: what it finds "
                "wrongly the student learns, and the teacher finds more. Lower student.lr, raise "
                "pseudo.score_threshold, or make background of boxes that it is unsure of (pseudo.unsure=negative "
                "pseudo.empty=background).",
            )

    def _amount(self, share: float) -> Iterator[Alarm]:
        """A teacher that learns on, knows little of the pool, and whose student unlearns the rest."""
        if share < FEW:
            yield Alarm(
                "few",
                f"the teacher takes {share:.2g} times as much from a pool image as people label in one; the rest "
                "is background, and the student unlearns it. Leave boxes that it is unsure of out of the loss "
                "(pseudo.unsure=ignore pseudo.empty=drop), train the teacher longer, or label once "
                "(student.mode=offline); if the pool shows little that people label, this is as it should be.",
            )

    def _gradient(self, figures: Mapping[str, float], config: TrainConfig) -> Iterator[Alarm]:
        norm = figures["gradient_norm"]
        self.clipped = self.clipped + 1 if 0 < CLIPPED * config.clip_norm < norm else 0
        usual = median(self.norms) if len(self.norms) >= LINES_KNOWN else norm
        if norm > STEEP * usual > 0:
            yield Alarm(
                "gradient",
                f"the gradient's norm is {norm:.3g} and was {usual:.3g} until now: the training is about to diverge. "
                f"Lower train.lr (now {figures['lr']:.3g}) or set train.clip_norm={2 * usual:.2g}.",
            )
        if self.clipped >= LINES_KNOWN:
            yield Alarm(
                "clipping",
                f"the gradient's norm is {norm:.3g} and is cut to train.clip_norm={config.clip_norm:g} at nearly every "
                f"step: the steps no longer follow the rate {figures['lr']:.3g}. Lower train.lr, or raise "
                "train.clip_norm.",
            )
