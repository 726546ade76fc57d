"""What the layers above ask of a task: the seam between "what a label means" and everything else.

A task is one frozen object that knows the classes. Training uses `assign`, `loss_sums` and `normalizer`; labeling uses
`predict`; evaluation goes `predict` -> `judge` (one image) -> `metrics`, `tally` and `tables` (all images).

Legend: B images, K classes, R resamples, n test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tutelage.config import DataConfig, LabelConfig
from tutelage.data.index import Index
from tutelage.models.model import Network
from tutelage.stats.certificate import Sums
from tutelage.types import Annotation, Batch, Prediction

Columns = dict[str, Any]
"""A table to be written: values by column."""


class Targets(Protocol):
    """What the outputs for one batch are trained on."""

    @property
    def num_positives(self) -> Tensor:
        """What the loss sum is divided by, () int64: positive anchors, valid pixels or images."""
        ...


class Trainable(Protocol):
    """The part of a task that training needs."""

    def assign(self, batch: Batch, ignored: Literal["mask", "drop"]) -> Any:
        """The batch's `Targets`."""
        ...

    def loss_sums(self, outputs: Any, batch: Batch, targets: Any) -> dict[str, Tensor]:
        """Loss sums by term, whose sum over `normalizer` is the loss."""
        ...

    def normalizer(self, counts: Tensor) -> Tensor:
        """What loss sums are divided by, from positives over all devices and micro-batches; the same shape, > 0."""
        ...


class Judged(Protocol):
    """One prediction beside the truth: all that measuring needs of an image, small enough to be sent and kept."""

    @property
    def image_id(self) -> int:
        """Row of the index."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original."""
        ...


class Tally(Protocol):
    """What became of every test image: enough to measure any resample of them."""

    def resample(self, weights: NDArray[np.integer], *, threads: int = 1) -> dict[str, NDArray[np.float64]]:
        """Figures of resamples with weights (R, n): (R,) by metric, (R, K) as `class_METRIC`; NaN where undefined."""
        ...

    def groups_with_truth(self, groups: NDArray[np.integer]) -> dict[str, Any]:
        """How many groups (n,) hold truth: a list (K,) as `per_class`, and a number for each metric of a part."""
        ...

    def save(self, path: Path) -> None:
        """Writes a compressed npz file."""
        ...


class Task(Trainable, Protocol):
    """What a label means: how a network is built for it, trained, used and measured."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        ...

    @property
    def annotation(self) -> Annotation:
        """What the data is annotated with, and pseudo-labels are: boxes or masks."""
        ...

    @property
    def class_metric(self) -> str:
        """The figure that classes are compared by."""
        ...

    def build_model(self) -> Network:
        """A network for these classes with random weights, from torch's default generator."""
        ...

    def check_label(self, label: LabelConfig) -> None:
        """Refuses views and scales that the network cannot take, before anything is computed (`InputError`)."""
        ...

    def predict(self, model: Any, batch: Batch, label: LabelConfig | None = None) -> list[Prediction]:
        """Predictions for a batch's first views by a model in eval mode; `label` None is what is measured."""
        ...

    def judge(self, prediction: Prediction, index: Index, data: DataConfig) -> Any:
        """The `Judged` of a prediction and the truth of its image."""
        ...

    def metrics(self, judged: Sequence[Any]) -> dict[str, Any]:
        """Figures by name, and `per_class` by class name; None where undefined."""
        ...

    def tally(self, judged: Sequence[Any]) -> Tally:
        """The same images, ready to be resampled."""
        ...

    def claims(self, predictions: Iterable[Prediction], index: Index, data: DataConfig, iou: float) -> list[Sums]:
        """By class: pseudo-labels at or above every threshold, those of them that are right, and what there is to find.

        Predictions are as labeling makes them; images stay in their order. `iou` is the least overlap of a right box.
        """
        ...

    def tables(self, judged: Sequence[Any]) -> dict[str, Columns]:
        """Truth and predictions for the report, by table name; `image_id` counts from 0 in the order of `judged`."""
        ...
