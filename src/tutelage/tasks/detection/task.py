"""Object detection as a task: how batches become targets, outputs become losses, and outputs become boxes.

Legend: B images, V views, N boxes with padding, A anchors, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.config import DataConfig, LabelConfig, ModelConfig, PostprocessConfig, RunConfig
from tutelage.data.index import Index
from tutelage.data.loader import shown_boxes
from tutelage.models.model import DetectionOutputs, RetinaNet, build_detector
from tutelage.ops.affine import boxes_to_original
from tutelage.ops.anchors import anchors_on
from tutelage.ops.boxes import encode
from tutelage.stats.certificate import Sums
from tutelage.tasks.claims import sums_of
from tutelage.tasks.detection.claims import claimed_boxes, thresholds_from
from tutelage.tasks.detection.losses import focal_sum, huber_sum
from tutelage.tasks.detection.matching import match_anchors
from tutelage.tasks.detection.measuring import DetectionTally, JudgedBoxes, box_tables, judge_boxes
from tutelage.tasks.detection.postprocess import Detections, candidates, join, suppress
from tutelage.tasks.detection.views import check_views, outputs_from
from tutelage.tasks.metrics import detection_metrics
from tutelage.tasks.task import Columns
from tutelage.tasks.views import VIEWS, rescaled, view_of
from tutelage.types import NOT_IGNORED, Annotation, Batch, Boxes, PaddedBoxes, Prediction

ONE_PASS = LabelConfig()


class Targets(NamedTuple):
    """What the anchors of a batch are trained on."""

    matched: Tensor  # (B, A) int32: number of the box in the batch's padded boxes, -1 negative, -2 ignored
    num_positives: Tensor  # () int64
    anchors: Tensor  # (A, 4), the task's own


@dataclass(frozen=True)
class DetectionTask:
    """RetinaNet detection of the named classes."""

    annotation: ClassVar[Annotation] = "boxes"
    class_metric: ClassVar[str] = "ap"

    model: ModelConfig
    postprocess: PostprocessConfig
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, config: RunConfig, class_names: tuple[str, ...]) -> Self:
        """The task of a run."""
        return cls(config.model, config.postprocess, class_names)

    def build_model(self) -> RetinaNet:
        """A detector for these classes with random weights, from torch's default generator."""
        return build_detector(self.model, len(self.class_names))

    def anchors(self, canvas: tuple[int, int], device: torch.device) -> Tensor:
        """The anchors (A, 4) of a canvas (height, width); shared, not to be written to."""
        return anchors_on(device, canvas, self._levels, self.model.anchors)

    @torch.no_grad()
    def assign(self, batch: Batch, ignored: Literal["mask", "drop"]) -> Targets:
        """Targets of a batch with boxes.

        Args:
            batch: on any device.
            ignored: whether anchors of ignored boxes and regions are left out of the loss (`mask`) or are treated as
                if these were not there (`drop`, as the original does with crowds).
        """
        boxes = _boxes_of(batch)
        normal = boxes.valid & (boxes.ignore == NOT_IGNORED)
        left_out = boxes.ignore * boxes.valid if ignored == "mask" else torch.zeros_like(boxes.ignore)
        anchors = self.anchors(_canvas_of(batch), batch.images.device)
        matched = match_anchors(anchors, boxes.xyxy, normal, left_out)
        return Targets(matched, (matched >= 0).sum(), anchors)

    def loss_sums(self, outputs: DetectionOutputs, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        """Sums over a batch.

        Returns:
            `class`: the focal loss; `box`: the Huber loss times `box_weight` / 4 (it has four coordinates).
        """
        constants = self.model.loss
        boxes = _boxes_of(batch)
        matched = targets.matched.long()
        positive, number = matched >= 0, matched.clamp(min=0)
        classes = torch.where(positive, boxes.labels.gather(1, number), matched)
        corners = boxes.xyxy.gather(1, number[..., None].expand(-1, -1, 4))
        deltas = encode(corners, targets.anchors)
        box = huber_sum(outputs.deltas, deltas, positive, delta=constants.huber_delta)
        return {
            "class": focal_sum(outputs.logits, classes, alpha=constants.focal_alpha, gamma=constants.focal_gamma),
            "box": box * (constants.box_weight / 4),
        }

    def normalizer(self, counts: Tensor) -> Tensor:
        """What the sums are divided by: the positives + 1 (TPU detection code, losses.py)."""
        return counts + 1

    def check_label(self, label: LabelConfig) -> None:
        """Refuses views and scales that this network cannot take, before anything is computed (`InputError`)."""
        check_views(label.views, label.scales, self.model.canvas, 2**self.model.max_level, self.model.anchors)

    @torch.inference_mode()
    def predict(self, model: RetinaNet, batch: Batch, label: LabelConfig | None = None) -> list[Prediction]:
        """Detections of a batch's first views, in pixels of the original images, best first.

        Args:
            model: in eval mode.
            batch: on the model's device.
            label: views and scales; None is one pass. Raw outputs of the views of one scale are averaged before
                decoding; boxes of all scales enter suppression together.
        """
        label = label or ONE_PASS
        self.check_label(label)
        valid = batch.valid[:, 0]
        normalized = model.normalize(batch.images[:, 0], valid)
        passes = [self._candidates(model, normalized, valid, label, scale) for scale in label.scales]
        found = [suppress(join(list(parts)), self.postprocess) for parts in zip(*passes, strict=True)]
        return [_prediction(detections, batch, row) for row, detections in enumerate(found)]

    def judge(self, prediction: Prediction, index: Index, data: DataConfig) -> JudgedBoxes:
        """The boxes found in an image beside those that are there."""
        return judge_boxes(prediction, index, data)

    def metrics(self, judged: Sequence[JudgedBoxes]) -> dict[str, Any]:
        """COCO's figures in [0, 1], and `per_class`; None where undefined."""
        return detection_metrics([one.truth for one in judged], [one.found for one in judged], self.class_names)

    def tally(self, judged: Sequence[JudgedBoxes]) -> DetectionTally:
        """All predictions matched with the truth, once for all resamples."""
        return DetectionTally.of(judged, len(self.class_names))

    def tables(self, judged: Sequence[JudgedBoxes]) -> dict[str, Columns]:
        """`truth` and `predictions`: one row a box."""
        return box_tables(judged)

    def claims(self, predictions: Iterable[Prediction], index: Index, data: DataConfig, iou: float) -> list[Sums]:
        """Boxes claimed and right by class; a right one overlaps a human box by at least `iou`, one to one."""
        thresholds, num_classes = thresholds_from(self.postprocess.score_floor), len(self.class_names)
        images = (
            claimed_boxes(
                one.boxes or Boxes.empty(), shown_boxes(index, one.image_id, data), thresholds, num_classes, iou
            )
            for one in predictions
        )
        return sums_of(images, thresholds, num_classes)

    def _candidates(
        self, model: RetinaNet, normalized: Tensor, valid: Tensor, label: LabelConfig, scale: float
    ) -> list[Detections]:
        """Candidates of each image at one scale, in pixels of the canvas."""
        canvas = normalized.shape[-2:]
        normalized = rescaled(normalized, scale, 2**self.model.max_level)
        outputs = self._averaged(model, normalized, label)
        scaled = (normalized.shape[-2], normalized.shape[-1])
        factor = valid.new_tensor([scaled[0] / canvas[0], scaled[1] / canvas[1]], dtype=torch.float32)
        anchors = self.anchors(scaled, normalized.device)
        found = [
            candidates(logits, deltas, anchors, covered * factor, self.postprocess)
            for logits, deltas, covered in zip(outputs.logits, outputs.deltas, valid, strict=True)
        ]
        to_canvas = 1 / factor[[1, 0, 1, 0]]
        return [each._replace(xyxy=each.xyxy * to_canvas) for each in found]

    def _averaged(self, model: RetinaNet, normalized: Tensor, label: LabelConfig) -> DetectionOutputs:
        """Raw outputs, averaged over the views in the frame of the identity."""
        if label.views == ("identity",):
            return model.raw(normalized)
        logits: Tensor | float = 0.0
        deltas: Tensor | float = 0.0
        canvas = (normalized.shape[-2], normalized.shape[-1])
        for name in label.views:
            seen = model.raw(view_of(normalized, VIEWS[name]))
            back = outputs_from(seen, VIEWS[name], canvas, self._levels, self.model.anchors)
            logits, deltas = logits + back.logits, deltas + back.deltas
        return DetectionOutputs(logits / len(label.views), deltas / len(label.views))  # type: ignore[arg-type]

    @property
    def _levels(self) -> tuple[int, ...]:
        return tuple(range(self.model.min_level, self.model.max_level + 1))


def _canvas_of(batch: Batch) -> tuple[int, int]:
    return (batch.images.shape[-2], batch.images.shape[-1])


def _boxes_of(batch: Batch) -> PaddedBoxes:
    """The batch's boxes, with room for at least one, so that they can be gathered from."""
    assert batch.boxes is not None, "detection is trained on batches with boxes"
    if batch.boxes.labels.shape[1]:
        return batch.boxes
    return PaddedBoxes(*_padded(batch.boxes))


def _padded(boxes: PaddedBoxes) -> Iterator[Tensor]:
    yield F.pad(boxes.xyxy, (0, 0, 0, 1))
    for values in (boxes.labels, boxes.scores, boxes.ignore, boxes.valid):
        yield F.pad(values, (0, 1))


def _prediction(found: Detections, batch: Batch, row: int) -> Prediction:
    size = (int(batch.sizes[row, 0]), int(batch.sizes[row, 1]))
    matrix = batch.matrix[row, 0].cpu().numpy()
    xyxy = boxes_to_original(found.xyxy.cpu().numpy(), matrix, size)
    boxes = Boxes.build(xyxy, found.labels.cpu().numpy(), found.scores.cpu().numpy())
    return Prediction(int(batch.image_ids[row]), size, boxes)
