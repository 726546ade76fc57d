"""Image classification as a task: what pre-training trains a backbone on.

Legend: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.config import ModelConfig
from tutelage.models.model import Classifier, build_classifier
from tutelage.types import Batch, Prediction


class ClassTargets(NamedTuple):
    """The classes of a batch, and the count that its loss is divided by."""

    labels: Tensor  # (B,) int64, or (B, K) probabilities
    num_positives: Tensor  # () int64: every image counts
    smoothing: float  # share of the target spread over all classes


@dataclass(frozen=True)
class ClassificationTask:
    """Softmax classification into the named classes, with label smoothing."""

    model: ModelConfig
    label_smoothing: float
    class_names: tuple[str, ...]
    dropout: float = 0.0  # before the linear layer

    def build_model(self) -> Classifier:
        """A classifier for these classes with random weights, from torch's default generator."""
        return build_classifier(self.model, len(self.class_names), self.dropout)

    def assign(self, batch: Batch, ignored: Literal["mask", "drop"] = "mask") -> ClassTargets:
        """Targets of a batch with labels; nothing is ignored here."""
        assert batch.labels is not None, "classification is trained on batches with labels"
        return ClassTargets(batch.labels, _count(batch.labels), self.label_smoothing)

    def assign_probabilities(self, probabilities: Tensor) -> ClassTargets:
        """Targets (B, K) that a teacher gave; they are soft as they are."""
        return ClassTargets(probabilities, _count(probabilities), 0.0)

    def loss_sums(self, outputs: Tensor, batch: Batch, targets: ClassTargets) -> dict[str, Tensor]:
        """Cross-entropy of logits (B, K), summed over the batch, in float32 at least."""
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss = F.cross_entropy(wide, targets.labels, reduction="sum", label_smoothing=targets.smoothing)
        return {"class": loss}

    def normalizer(self, counts: Tensor) -> Tensor:
        """What the sum is divided by: the images + 1, as detection counts."""
        return counts + 1

    def correct(self, outputs: Tensor, targets: ClassTargets) -> Tensor:
        """(B,) bool: whether each image's class is ranked first."""
        return outputs.argmax(dim=1) == targets.labels

    @torch.inference_mode()
    def predict(self, model: Classifier, batch: Batch) -> list[Prediction]:
        """Class probabilities of a batch's first views, by a model in eval mode."""
        probabilities = model(batch.images[:, 0], batch.valid[:, 0]).float().softmax(dim=1).cpu().numpy()
        return [
            Prediction(int(image_id), (int(height), int(width)), probabilities=row)
            for image_id, (height, width), row in zip(batch.image_ids, batch.sizes, probabilities, strict=True)
        ]


def _count(labels: Tensor) -> Tensor:
    return torch.tensor(len(labels), device=labels.device)
