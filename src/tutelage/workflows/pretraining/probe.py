"""Linear evaluation: what a linear classifier makes of frozen features (arXiv:2002.05709, sec. 2.3 and app. B.8).

Pooled features of center crops, multinomial logistic regression. Its decay is chosen on a part of the training images
alone; the images held out are only measured on.
Legend: N images, C features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.loader import classification_evaluation_batches
from tutelage.engine.guard import device_batch
from tutelage.engine.runtime import Runtime
from tutelage.models.embedder import Embedder
from tutelage.types import Batch

DECAYS = (1.0, 0.1, 1e-2, 1e-3)  # of standardized features, beside the mean cross-entropy; the strongest first
CHOOSING = 5  # one in so many training images chooses the decay
MOST_IMAGES = 100_000  # that a probe trains on, whose features stay in memory
SETTLING_IMAGES = 2048  # that settle the batch-norm statistics of a fresh network
MOST_ITERATIONS = 300


class Features(NamedTuple):
    """Images as a frozen network sees them."""

    values: Tensor  # (N, C) float32
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Probe:
    """Frozen features of the same images, of one network after the other."""

    index: Index  # classified images
    trained: NDArray[np.int64]  # (N,) rows that the linear classifier is trained on
    held_out: NDArray[np.int64]  # (N,) rows that it is measured on
    config: RunConfig
    runtime: Runtime

    def measure(self, model: Embedder) -> dict[str, float]:
        """Accuracy on the held-out images, and the decay that was chosen."""
        model = model.to(self.runtime.device).eval()
        trained, held_out = self._features(model, self.trained), self._features(model, self.held_out)
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, 0x9A0BE]))
        num_classes = len(self.index.class_names)
        found = evaluate(trained, held_out, num_classes, rng) if self.runtime.is_main else {}
        return self.runtime.broadcast(found)

    def settle(self, model: Embedder) -> Embedder:
        """A fresh network with batch-norm statistics of the training images, in the place of 0 and 1.

        Without them an untrained network would be a weaker rival than it is. Batches are whole, since they count alike.
        """
        rows = self.trained[:: -(-len(self.trained) // SETTLING_IMAGES)]
        size = max(2, self._batch_size)  # of one image a last map of one cell has no variance
        rows = rows[: max(size, len(rows) // size * size)]
        settle_norms(model.to(self.runtime.device), map(self._moved, self._batches(rows, size)))
        return model

    @torch.no_grad()  # not inference mode, whose tensors nothing can be fitted to
    def _features(self, model: Embedder, rows: NDArray[np.int64]) -> Features:
        """Features of all rows, on every device; an image's place follows its rank."""
        values, labels = [], []
        own = rows[self.runtime.rank :: self.runtime.world_size]
        for batch in map(self._moved, self._batches(own, self._batch_size)):
            assert batch.labels is not None, "the index is of classified images"
            with self.runtime.autocast():
                values.append(model.features(batch.images[:, 0], batch.valid[:, 0]).float().cpu())
            labels.append(batch.labels.cpu())
        parts = self.runtime.gather((torch.cat(values), torch.cat(labels)))
        whole = [torch.cat(tensors).to(self.runtime.device) for tensors in zip(*parts, strict=True)]
        return Features(*whole)

    @property
    def _batch_size(self) -> int:
        return device_batch(self.config.train.batch_size, self.runtime)

    def _batches(self, rows: NDArray[np.int64], size: int) -> Iterable[Batch]:
        return classification_evaluation_batches(
            self.index,
            pretrain=self.config.pretrain,
            data=self.config.data,
            device_batch_size=size,
            rows=rows,
            workers=self.runtime.workers,
        )

    def _moved(self, batch: Batch) -> Batch:
        return batch.to(self.runtime.device)


def probe_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows a probe trains on: all, or as many evenly spaced ones as are kept in memory."""
    return rows[:: -(-len(rows) // MOST_IMAGES)]


def evaluate(trained: Features, held_out: Features, num_classes: int, rng: np.random.Generator) -> dict[str, float]:
    """A linear classifier's accuracy on features that it was not trained on, and its decay."""
    mean, std = trained.values.mean(0), trained.values.std(0).clamp_min(1e-6)
    trained, held_out = (part._replace(values=(part.values - mean) / std) for part in (trained, held_out))
    decay = choose_decay(trained, num_classes, rng)
    classify = fit_logistic(trained, num_classes, decay)
    return {"accuracy": accuracy(classify, held_out), "decay": decay}


def choose_decay(features: Features, num_classes: int, rng: np.random.Generator) -> float:
    """The decay that is best on a part of the features when trained on the others; of equal ones the strongest."""
    order = torch.from_numpy(rng.permutation(len(features.labels))).to(features.labels.device)
    aside = max(1, len(order) // CHOOSING)
    judges, fitted = (Features(*(tensor[rows] for tensor in features)) for rows in (order[:aside], order[aside:]))
    return max(DECAYS, key=lambda decay: accuracy(fit_logistic(fitted, num_classes, decay), judges))


def fit_logistic(features: Features, num_classes: int, decay: float) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression by L-BFGS: mean cross-entropy + decay / 2 * |weight|^2, the bias free.

    Returns:
        The logits (N, K) of features (N, C).
    """
    values, labels = features
    weight = values.new_zeros((num_classes, values.shape[1]), requires_grad=True)
    bias = values.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(values, weight, bias), labels) + decay / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return lambda others: F.linear(others, weight.detach(), bias.detach())


def accuracy(classify: Callable[[Tensor], Tensor], features: Features) -> float:
    """Share of the images whose class is ranked first."""
    return (classify(features.values).argmax(1) == features.labels).float().mean().item()


@torch.no_grad()
def settle_norms(model: Embedder, batches: Iterable[Batch]) -> None:
    """Batch-norm statistics that are plain averages over these batches."""
    for norm in model.backbone.modules():
        if isinstance(norm, _BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None
    model.train()
    for batch in batches:
        model.features(batch.images[:, 0], batch.valid[:, 0])
    model.eval()
