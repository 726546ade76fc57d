"""What a step minimizes: which streams it draws, where their targets come from, and how their losses add.

A task says what one stream's loss is (`assign`, `loss_sums`); a method, one class here, says how streams meet. The
loop wraps the objective for the devices and calls, in this order: `prepare`, `counts`, `forward`, `total`, `update`.
Losses are sums until `total` divides them by counts over all devices and micro-batches, so that one process, two
processes and two micro-batches give the same gradients.

Legend: B images, S streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tutelage.config import StudentConfig
from tutelage.engine.recompute import still_statistics
from tutelage.tasks.task import Targets, Trainable
from tutelage.types import Batch

Sums = dict[str, dict[str, Tensor]]
"""Loss sums by stream and term."""


class Objective(nn.Module):
    """What is common to the methods: streams of one canvas in one forward pass."""

    streams: tuple[str, ...]
    needs_ema: bool = False  # whether `prepare` asks the averaged network

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
        """Loss sums of all streams."""
        return self.pass_streams(self.streams, batches, targets)

    def pass_streams(self, streams: Sequence[str], batches: Mapping[str, Batch], targets: Mapping[str, Any]) -> Sums:
        """Loss sums of streams that pass the network as one batch and share its batch-norm statistics."""
        images = torch.cat([batches[stream].images[:, 0] for stream in streams])
        valid = torch.cat([batches[stream].valid[:, 0] for stream in streams])
        outputs = self.model(images, valid)
        sums: Sums = {}
        start = 0
        for stream in streams:
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

    def record(self) -> dict[str, Any]:
        """What the training's record says besides, once it has ended."""
        return {}

    def warning(self, figures: Mapping[str, float]) -> str | None:
        """What the user should know of the log's last figures, and what to do; None where all is well."""
        return None


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

    def entering(self, counts: Tensor) -> Tensor:
        """Which losses of a step, (2,), move their averages: 1 or 0.

        A second stream without positives, whose loss is of another kind, stays out of them.
        """
        return torch.stack([torch.ones_like(counts[0]), (counts[1] > 0).to(counts.dtype)])

    @torch.no_grad()
    def update(self, sums: Sums, counts: Tensor) -> None:
        """Moves the averages."""
        keep = 1 - self.entering(counts) * (1 - self.decay)
        self.averages.mul_(keep).add_((1 - keep) * self.stream_losses(sums, counts))
        self.weights.mul_(keep).add_(1 - keep)

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """As `Objective.report`, and the `ratio` in use."""
        return {**super().report(sums, counts), "ratio": self.ratio()}


class Joint(Objective):
    """An objective and image classification in one model: L = L_inner + w * L_cls (arXiv:2006.06882, sec. 5).

    The classified images have a canvas of their own and are a second pass of the network inside the same forward. The
    weight is a plain factor; no loss is normalized by another. Whatever else the inner objective keeps is its own.
    """

    added = "classification"

    def __init__(self, inner: Objective, task: Trainable, weight: float, update_norms: bool = True) -> None:
        nn.Module.__init__(self)  # the model is the inner objective's: twice among the parts, it would be saved twice
        self.inner = inner
        self.task = task
        self.weight = weight
        self.update_norms = update_norms
        self.streams = (*inner.streams, self.added)

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The inner objective's."""
        return self.inner.model

    @property
    def needs_ema(self) -> bool:  # type: ignore[override]
        """Whether the inner objective's teacher labels as training goes."""
        return self.inner.needs_ema

    @torch.no_grad()
    def prepare(self, batches: Mapping[str, Batch], ema: nn.Module | None = None) -> dict[str, Any]:
        """The inner objective's targets and those of the added stream."""
        own = self.task.assign(batches[self.added], self.inner.ignored)
        return {**self.inner.prepare(batches, ema), self.added: own}

    def counts(self, targets: Mapping[str, Targets]) -> Tensor:
        """Positives of each stream, (S,), the added one's last."""
        inner = self.inner.counts(targets)
        return torch.cat([inner, targets[self.added].num_positives.to(inner)[None]])

    def forward(self, batches: Mapping[str, Batch], targets: Mapping[str, Any]) -> Sums:
        """Loss sums: the inner objective's pass, then the classified images'."""
        sums: Sums = self.inner(batches, targets)
        batch = batches[self.added]
        with nullcontext() if self.update_norms else still_statistics(self.model):
            logits = self.model.classify(batch.images[:, 0], batch.valid[:, 0])  # type: ignore[operator]
        return {**sums, self.added: self.task.loss_sums(logits, batch, targets[self.added])}

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """The inner objective's loss and the weighted one of the added stream."""
        added = sum_terms(sums[self.added]) / self.task.normalizer(counts[-1])
        return self.inner.total(sums, counts[:-1]) + self.weight * added

    def update(self, sums: Sums, counts: Tensor) -> None:
        """The inner objective takes in the step."""
        self.inner.update(sums, counts[:-1])

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """The inner objective's figures and the added stream's; `loss` is of both."""
        divisor = self.task.normalizer(counts[-1])
        added = {f"{self.added}_{term}": value / divisor for term, value in sums[self.added].items()}
        return {**self.inner.report(sums, counts[:-1]), **added, "loss": self.total(sums, counts)}

    def warning(self, figures: Mapping[str, float]) -> str | None:
        """The inner objective's."""
        return self.inner.warning(figures)

    def record(self) -> dict[str, Any]:
        """The inner objective's."""
        return self.inner.record()


class JointControl(Joint):
    """The control of joint training: more labeled images in the place of classified ones, with the same weight.

    They have the task's canvas, targets and loss and pass the network together with the inner objective's streams.
    """

    added = "extra"

    def __init__(self, inner: Objective, weight: float) -> None:
        super().__init__(inner, inner.task, weight)

    def forward(self, batches: Mapping[str, Batch], targets: Mapping[str, Any]) -> Sums:
        """Loss sums of all streams in one pass."""
        return self.inner.pass_streams(self.streams, batches, targets)


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
