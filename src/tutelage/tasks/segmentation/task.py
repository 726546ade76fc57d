"""Semantic segmentation as a task: how batches become targets, outputs become losses, and outputs become masks.

Legend: B images, H x W canvas pixels, h x w cells of the logits, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.config import DataConfig, EvalConfig, LabelConfig, ModelConfig, RunConfig
from tutelage.data.index import Index
from tutelage.models.model import MASK_STRIDE, Segmenter, build_segmenter, canvas_stride
from tutelage.stats.certificate import Sums
from tutelage.tasks.claims import ImageClaims, sums_of
from tutelage.tasks.metrics import Confusions
from tutelage.tasks.segmentation.claims import THRESHOLDS, claimed_pixels
from tutelage.tasks.segmentation.measuring import JudgedMask, judge_mask, mask_tables, true_mask
from tutelage.tasks.segmentation.pixels import Grid, classify
from tutelage.tasks.task import Columns
from tutelage.tasks.views import VIEWS, check_passes, map_from, rescaled, view_of
from tutelage.types import IGNORE, Annotation, Batch, Prediction

ONE_PASS = LabelConfig(size="original")


class MaskTargets(NamedTuple):
    """What the cells of a batch are trained on."""

    classes: Tensor  # (B, h, w) int64, IGNORE where there is no label
    num_positives: Tensor  # () int64: cells with a label


@dataclass(frozen=True)
class SegmentationTask:
    """A class of the named ones for every pixel."""

    annotation: ClassVar[Annotation] = "masks"
    class_metric: ClassVar[str] = "iou"

    model: ModelConfig
    eval: EvalConfig
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, config: RunConfig, class_names: tuple[str, ...]) -> Self:
        """The task of a run."""
        return cls(config.model, config.eval, class_names)

    def build_model(self) -> Segmenter:
        """A network for these classes with random weights, from torch's default generator."""
        return build_segmenter(self.model, len(self.class_names))

    @torch.no_grad()
    def assign(self, batch: Batch, ignored: Literal["mask", "drop"] = "mask") -> MaskTargets:
        """The class at the center of each cell; pixels without a label are never trained on.

        Four pixels meet at a cell's center; the lower right one is taken. The original takes the cell's upper left
        pixel (TPU segmentation code, losses.py), which goes with its corner-anchored resizing. Ours puts logits back
        at their cells' centers, so that such targets would move outlines by 1.5 pixels on average; these do by 0.5.
        """
        assert batch.masks is not None, "segmentation is trained on batches with masks"
        classes = batch.masks[:, MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE].long()
        return MaskTargets(classes, (classes != IGNORE).sum())

    def loss_sums(self, outputs: Tensor, batch: Batch, targets: MaskTargets) -> dict[str, Tensor]:
        """`pixel`: cross-entropy of logits (B, K, h, w), summed over the cells with a label, in float32 at least."""
        rows = outputs.permute(0, 2, 3, 1).flatten(0, 2)  # no copy of channels-last logits, and the quicker kernel
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return {"pixel": F.cross_entropy(wide, targets.classes.flatten(), ignore_index=IGNORE, reduction="sum")}

    def normalizer(self, counts: Tensor) -> Tensor:
        """What the sum is divided by: the cells with a label; 1 where there are none and the sum is 0."""
        return counts.clamp(min=1)

    def check_label(self, label: LabelConfig) -> None:
        """Refuses to look not at all (`InputError`); the network takes every view and scale."""
        check_passes(label.views, label.scales)

    @torch.inference_mode()
    def predict(self, model: Segmenter, batch: Batch, label: LabelConfig | None = None) -> list[Prediction]:
        """Class and confidence of every pixel of a batch's first views.

        The probabilities of all views and scales are averaged at the pixels that are returned (the paper does not say
        how it merges scales). Until then the raw outputs of all passes are kept: views x (sum of squared scales) / 16
        canvases of K values an image.

        Args:
            model: in eval mode.
            batch: on the model's device.
            label: views, scales, and the size of the masks: `network` is the covered part of the canvas. None is what
                is measured: one pass, at the original's size or, where `eval.size` says so, with that long side.
        """
        self.check_label(label or ONE_PASS)
        passes = self._passes(model, batch, label or ONE_PASS)
        return [self._prediction([logits[row] for logits in passes], batch, row, label) for row in range(len(batch))]

    def judge(self, prediction: Prediction, index: Index, data: DataConfig) -> JudgedMask:
        """The mask found for an image beside the true one, resized to it where `eval.size` asks for that."""
        return judge_mask(prediction, index, data, len(self.class_names))

    def metrics(self, judged: Sequence[JudgedMask]) -> dict[str, Any]:
        """Figures in [0, 1], and `per_class`; None where undefined."""
        return self.tally(judged).metrics(self.class_names)

    def tally(self, judged: Sequence[JudgedMask]) -> Confusions:
        """The counts of all images, ready to be resampled."""
        return Confusions.of([one.counts for one in judged], len(self.class_names))

    def tables(self, judged: Sequence[JudgedMask]) -> dict[str, Columns]:
        """`truth` and `predictions`: a PNG an image."""
        return mask_tables(judged)

    def claims(self, predictions: Iterable[Prediction], index: Index, data: DataConfig, iou: float) -> list[Sums]:
        """Pixels claimed and right by class, at the size of the predicted masks; `iou` is of boxes alone.

        The human mask is resized to the predicted one by nearest pixel, as when masks are measured.
        """
        images = (self._claims_of(one, index, data) for one in predictions)
        return sums_of(images, THRESHOLDS, len(self.class_names))

    def _claims_of(self, prediction: Prediction, index: Index, data: DataConfig) -> ImageClaims:
        found, levels = prediction.mask, prediction.levels
        assert found is not None and levels is not None, "segmentation predicts masks"
        truth = true_mask(prediction.image_id, (found.shape[0], found.shape[1]), index, data)
        return claimed_pixels(found, levels, truth, len(self.class_names))

    def _passes(self, model: Segmenter, batch: Batch, label: LabelConfig) -> list[Tensor]:
        """Logits (B, K, h, w) of every scale and view, in the frame of the identity, each over the whole canvas."""
        normalized = model.normalize(batch.images[:, 0], batch.valid[:, 0])
        passes = []
        for scale in label.scales:
            scaled = rescaled(normalized, scale, canvas_stride(self.model))
            passes += [map_from(model.raw(view_of(scaled, VIEWS[name])), VIEWS[name]) for name in label.views]
        return passes

    def _prediction(self, passes: Sequence[Tensor], batch: Batch, row: int, label: LabelConfig | None) -> Prediction:
        grid = self._grid(batch, row, label)
        canvas = (batch.images.shape[-2], batch.images.shape[-1])
        taps = [grid.taps(canvas, (logits.shape[-2], logits.shape[-1])) for logits in passes]
        classes, levels = classify(passes, [rows for rows, _ in taps], [columns for _, columns in taps])
        size = (int(batch.sizes[row, 0]), int(batch.sizes[row, 1]))
        return Prediction(int(batch.image_ids[row]), size, mask=classes.cpu().numpy(), levels=levels.cpu().numpy())

    def _grid(self, batch: Batch, row: int, label: LabelConfig | None) -> Grid:
        """The pixels that are asked for."""
        valid = (int(batch.valid[row, 0, 0]), int(batch.valid[row, 0, 1]))
        if label and label.size == "network":
            return Grid.of_canvas(valid)
        size = (int(batch.sizes[row, 0]), int(batch.sizes[row, 1]))
        shown = with_long_side(size, self.eval.size) if label is None and self.eval.size else size
        return Grid.of_original(shown, size, batch.matrix[row, 0].cpu().numpy(), valid)


def with_long_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `side`."""
    height, width = (max(1, round(one * side / max(size))) for one in size)
    return height, width
