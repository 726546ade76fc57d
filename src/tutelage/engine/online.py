"""A teacher that learns on: the student's running average labels the second stream at every step.

The second stream comes in two views of each image. The teacher, in evaluation mode and outside the wrapper, looks at
the weak ones of all micro-batches before the first forward pass; what it sees there is carried over to the strong
ones, which the student learns from (arXiv:2102.09480, sec. 3.2; arXiv:2001.07685 for the two views).

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.config import LabelConfig, PseudoConfig, StudentConfig
from tutelage.data.pseudo import score_limits
from tutelage.data.pseudo.carrying import carried, weak_views
from tutelage.engine.objectives import Student, Sums
from tutelage.tasks.task import Targets, Task
from tutelage.types import Batch

ONE_PASS = LabelConfig()  # one look, pixels at the size of the network
STEPS_KNOWN = 20  # after which, where the burn-in is no longer, it is known what the teacher finds at first
LEAST_LABELED = 5.0  # positives a step of the labeled stream, below which they say nothing of the pool
MEMORY = 0.9  # decay of the average of what it finds: about the last ten steps


class Labeled(NamedTuple):
    """A batch with the targets that it is trained on, and how many images with human labels the step has."""

    batch: Batch
    targets: Targets
    num_labeled: int

    @property
    def num_positives(self) -> Tensor:
        """As the targets have it, ()."""
        return self.targets.num_positives


class OnlineStudent(Student):
    """A student whose second stream is labeled as training goes; its loss is that of `Student`.

    In the control (`second_stream` labeled) and in the upper reference (hidden) the teacher looks at the same number of
    images, and people's labels of the strong views are the targets. During the burn-in the second stream passes the
    network, so that batch-norm sees what it will see, but neither its loss nor the running averages count.
    """

    needs_ema = True
    task: Task
    steps: Tensor  # () finished ones
    drawn: Tensor  # (3,) images of the second stream so far; unreadable ones and copies of held-out ones passed over
    found: Tensor  # (3,) average positives: of the second stream when the burn-in ended, and now; of the labeled one

    def __init__(self, task: Task, model: nn.Module, config: StudentConfig, pseudo: PseudoConfig) -> None:
        super().__init__(task, model, config)
        self.uses_teacher = config.second_stream == "pool"
        background = (pseudo.unsure, pseudo.empty) == ("negative", "background")
        self.unlearns = task.annotation == "boxes" and background  # what the teacher misses
        self.burn_in = config.online.burn_in
        self.pseudo = pseudo
        self.limits = score_limits(pseudo, task.class_names)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("drawn", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("found", torch.zeros(3, dtype=next(model.parameters()).dtype))

    @torch.no_grad()
    def prepare(self, batches: Mapping[str, Batch], ema: nn.Module | None = None) -> dict[str, Any]:
        """Human targets of the labeled stream; of the second one its batch, labeled by the teacher or by people."""
        second = batches["second"]
        predictions = self.task.predict(ema, weak_views(second), ONE_PASS)
        if self.uses_teacher:
            second = carried(predictions, second, self.task.annotation, self.limits, self.pseudo)
        return {
            "labeled": self.task.assign(batches["labeled"], self.ignored),
            "second": Labeled(second, self.task.assign(second, self.ignored), len(batches["labeled"])),
        }

    def counts(self, targets: Mapping[str, Any]) -> Tensor:
        """Positives of both streams, images of the second one and those passed over, those of the labeled one, (6,)."""
        positives = super().counts(targets)
        batch, _, num_labeled = targets["second"]
        passed_over = batch.passed_over.sum(0) if batch.passed_over is not None else positives.new_zeros(2)
        second, labeled = positives.new_tensor([[len(batch)], [num_labeled]])
        return torch.cat([positives, second, passed_over.to(positives), labeled])

    def pass_streams(self, streams: Sequence[str], batches: Mapping[str, Batch], targets: Mapping[str, Any]) -> Sums:
        """As `Student`, the second stream with the labels of `prepare`."""
        second: Labeled = targets["second"]
        return super().pass_streams(streams, {**batches, "second": second.batch}, {**targets, "second": second.targets})

    def stream_losses(self, sums: Sums, counts: Tensor) -> Tensor:
        """Both streams' losses, (2,)."""
        return super().stream_losses(sums, counts[:2])

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """Both losses joined; during the burn-in the labeled one alone."""
        human = self.stream_losses(sums, counts)[0]
        return torch.where(self.steps < self.burn_in, human, super().total(sums, counts))

    def entering(self, counts: Tensor) -> Tensor:
        """As `Student`; none during the burn-in."""
        return super().entering(counts) * (self.steps >= self.burn_in)

    @torch.no_grad()
    def update(self, sums: Sums, counts: Tensor) -> None:
        """Moves the averages, and counts steps and images."""
        super().update(sums, counts)
        keep = (1 - 1 / (self.steps + 1)).clamp(max=MEMORY)  # a plain mean at first
        human, pseudo = counts[:2].unbind()
        now = keep * self.found[1:] + (1 - keep) * torch.stack([pseudo, human])
        at_first = torch.where(self._starting(), now[:1], self.found[:1])
        self.found.copy_(torch.cat([at_first, now]))
        self.steps += 1
        self.drawn += counts[2:5].to(self.drawn)

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """As `Student`, and the second stream's positives of the step.

        With a teacher also what is `left` of them: their average in the last steps over that at the end of the burn-in.
        Where what it misses is background, their `share` too: those of an image over those of one that people labeled.
        """
        figures = {**super().report(sums, counts[:2]), "second_positives": counts[1]}
        if not self.uses_teacher:
            return figures
        at_first, now, human = self.found.unbind()
        figures["second_left"] = self._once_known(now / at_first.clamp(min=1))
        if self.unlearns:
            share = now / human.clamp(min=LEAST_LABELED) * counts[5] / counts[2]
            figures["second_share"] = torch.where(human < LEAST_LABELED, 1.0, share)
        return figures

    def record(self) -> dict[str, Any]:
        """How many images the second stream drew, and in whose places others were taken."""
        images, unreadable, copies = self.drawn.tolist()
        return {"second_stream": {"images": images, "skipped": unreadable, "leaks": copies}}

    def _once_known(self, figure: Tensor) -> Tensor:
        return torch.where(self._starting(), 1.0, figure)

    def _starting(self) -> Tensor:
        """Whether it is not yet known what the teacher finds at first, ()."""
        return self.steps < max(self.burn_in, STEPS_KNOWN)


def teacher_decay(largest: float, before: int, step: int) -> float:
    """The teacher's decay after `step` (from 0): min(largest, 1 - 10 / steps), over the last tenth of the steps so far.

    Those that the weights were trained for `before` count too: a trained teacher is not given up for what the student
    becomes in its first steps. Without any, the teacher of the first ten steps is the student itself.
    """
    return max(0.0, min(largest, 1 - 10 / (before + step + 1)))
