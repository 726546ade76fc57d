"""What a step minimizes: which streams it draws, where their targets come from, and how their losses add.

A task says what one stream's loss is (`assign`, `loss_sums`); a method, one class here, says how streams meet. The
loop wraps the objective for the devices and calls, in this order: `prepare`, `counts`, `forward`, `total`, `update`.
Losses are sums until `total` divides them by counts over all devices and micro-batches, so that one process, two
processes and two micro-batches give the same gradients.

Legend: B images, S streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tutelage.config import StudentConfig
from tutelage.tasks.task import Targets, Trainable
from tutelage.types import Batch

Sums = dict[str, dict[str, Tensor]]
"""Loss sums by stream and term."""


class Objective(nn.Module):
    """Streams of one canvas in one forward pass; what is common to the methods."""

    streams: tuple[str, ...]

    def __init__(self, task: Trainable, model: nn.Module, ignored: Literal["mask", "drop"]) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.ignored = ignored

    @torch.no_grad()
    def prepare(self, batches: Mapping[str, Batch], ema: nn.Module | None = None) -> dict[str, Any]:
        """Targets of each stream. `ema` is for methods whose teacher labels online."""
        return {stream: self.task.assign(batches[stream], self.ignored) for stream in self.streams}

    def counts(self, targets: Mapping[str, Targets]) -> Tensor:
        """Positives of each stream, (S,), in the weights' type."""
        dtype = next(self.model.parameters()).dtype
        return torch.stack([targets[stream].num_positives for stream in self.streams]).to(dtype)

    def forward(self, batches: Mapping[str, Batch], targets: Mapping[str, Any]) -> Sums:
        """Loss sums; all streams pass the network as one batch and share its batch-norm statistics."""
        images = torch.cat([batches[stream].images[:, 0] for stream in self.streams])
        valid = torch.cat([batches[stream].valid[:, 0] for stream in self.streams])
        outputs = self.model(images, valid)
        sums: Sums = {}
        start = 0
        for stream in self.streams:
            end = start + len(batches[stream])
            sums[stream] = self.task.loss_sums(_rows(outputs, start, end), batches[stream], targets[stream])
            start = end
        return sums

    def stream_losses(self, sums: Sums, counts: Tensor) -> Tensor:
        """Each stream's loss, (S,): its terms over what the task divides by."""
        return torch.stack([sum_terms(sums[stream]) for stream in self.streams]) / self.task.normalizer(counts)

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """The loss to minimize, ()."""
        raise NotImplementedError

    def update(self, sums: Sums, counts: Tensor) -> None:
        """Takes in a finished step; `sums` and `counts` are over all devices and micro-batches."""

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """Figures of a step for the log, on the device: `loss` and `stream_term`, normalized."""
        figures = {"loss": self.total(sums, counts)}
        for stream, divisor in zip(self.streams, self.task.normalizer(counts), strict=True):
            figures |= {f"{stream}_{term}": value / divisor for term, value in sums[stream].items()}
        return figures


class Supervised(Objective):
    """Labeled images alone."""

    streams = ("labeled",)

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """The labeled loss."""
        return self.stream_losses(sums, counts)[0]


class Student(Objective):
    """Labeled images with human labels L_h and a second stream L_p, joined as in arXiv:2006.06882, app. B.

    normalized: (L_h + alpha * avg(L_h) / avg(L_p) * L_p) / (1 + alpha); sum: L_h + alpha * L_p. The running averages
    are bias-corrected and enter as constants; a step uses those up to the step before (the paper leaves that open), so
    that one reduction after the step suffices and micro-batches add up exactly. The control trains with this class.
    """

    streams = ("labeled", "second")
    averages: Tensor  # (2,) running sums of weighted losses
    weights: Tensor  # (2,) running sums of the weights: averages / weights is bias-corrected

    def __init__(self, task: Trainable, model: nn.Module, config: StudentConfig) -> None:
        super().__init__(task, model, config.ignored)
        self.alpha = config.alpha
        self.decay = config.average_decay
        self.normalized = config.loss == "normalized"
        dtype = next(model.parameters()).dtype
        self.register_buffer("averages", torch.zeros(2, dtype=dtype))
        self.register_buffer("weights", torch.zeros(2, dtype=dtype))

    def ratio(self) -> Tensor:
        """avg(L_h) / avg(L_p), (); 1 until both are known."""
        human, pseudo = self.averages.unbind()
        human_weight, pseudo_weight = self.weights.unbind()
        known = (human_weight > 0) & (pseudo > 0)
        ratio = human * pseudo_weight / torch.where(known, human_weight * pseudo, 1)
        return torch.where(known, ratio, torch.ones_like(ratio))

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """Both losses joined."""
        human, pseudo = self.stream_losses(sums, counts).unbind()
        if not self.normalized:
            return human + self.alpha * pseudo
        return (human + self.alpha * self.ratio() * pseudo) / (1 + self.alpha)

    @torch.no_grad()
    def update(self, sums: Sums, counts: Tensor) -> None:
        """Moves the averages; a second stream without positives, whose loss is of another kind, stays out of them."""
        enters = torch.stack([torch.ones_like(counts[0]), (counts[1] > 0).to(counts.dtype)])
        keep = 1 - enters * (1 - self.decay)
        self.averages.mul_(keep).add_((1 - keep) * self.stream_losses(sums, counts))
        self.weights.mul_(keep).add_(1 - keep)

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """As `Objective.report`, and the `ratio` in use."""
        return {**super().report(sums, counts), "ratio": self.ratio()}


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of a stream's loss terms, ()."""
    return torch.stack(list(terms.values())).sum()


def pack(sums: Sums) -> Tensor:
    """All sums in one detached vector, to be added up and reduced together."""
    return torch.stack([value.detach() for terms in sums.values() for value in terms.values()])


def unpack(vector: Tensor, like: Sums) -> Sums:
    """A packed vector in the shape of `like`."""
    values = iter(vector.unbind())
    return cast(Sums, {stream: {term: next(values) for term in terms} for stream, terms in like.items()})


def _rows(outputs: Any, start: int, end: int) -> Any:
    """Images `start` to `end` of a network's outputs: a tensor, or a named tuple of tensors."""
    if isinstance(outputs, Tensor):
        return outputs[start:end]
    return type(outputs)(*(output[start:end] for output in outputs))
