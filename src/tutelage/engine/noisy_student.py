"""The objective of Noisy Student: labeled images with human labels, and images whose classes a teacher gave.

Legend: K classes, n images of the second stream, u different ones among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.engine.objectives import Objective, Sums, sum_terms
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import Batch


class SoftTargets:
    """A teacher's probabilities by row of the second stream, in which an image may stand several times."""

    def __init__(self, probabilities: Tensor, places: Tensor) -> None:
        """Takes half-precision `probabilities` (u, K) and `places` (n,), the row of `probabilities` of each image."""
        self.probabilities = probabilities
        self.places = places

    def of(self, image_ids: Tensor) -> Tensor:
        """(B, K) float32, summing to one, of images (B,); the table is moved to their device once."""
        if self.places.device != image_ids.device:
            self.probabilities, self.places = self.probabilities.to(image_ids.device), self.places.to(image_ids.device)
        found = self.probabilities[self.places[image_ids]].float()
        return found / found.sum(dim=1, keepdim=True)


class NoisyStudent(Objective):
    """The sum over both streams divided by the labeled images alone (noisystudent, main.py): mean + ratio x mean.

    Pool images are so worth as much as labeled ones, however many a step has of them. Without `soft` the targets of
    the second stream are the classes of its images: a teacher's first ones, or, for the control, people's.
    """

    streams = ("labeled", "second")

    def __init__(self, task: ClassificationTask, model: nn.Module, soft: SoftTargets | None) -> None:
        super().__init__(task, model, "mask")
        self.classification = task
        self.soft = soft

    @torch.no_grad()
    def prepare(self, batches: Mapping[str, Batch], ema: nn.Module | None = None) -> dict[str, Any]:
        """Human labels of the labeled images; of the others what the teacher or people said."""
        if self.soft is None:
            return super().prepare(batches, ema)
        second = self.soft.of(batches["second"].image_ids)
        return {
            "labeled": self.classification.assign(batches["labeled"]),
            "second": self.classification.assign_probabilities(second),
        }

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """Both sums over the count of the first."""
        both = sum_terms(sums["labeled"]) + sum_terms(sums["second"])
        return both / self.task.normalizer(counts)[0]
