"""Point figures of detections through faster-coco-eval; the one door to that library.

How ignored boxes are told to an evaluator that knows only `iscrowd` and areas:

- IGNORE_REGION is a crowd: detections overlap it by their own area (IoA), any number of them.
- IGNORE_BOX (VOC difficult) gets an area beyond every size range. Such a box counts in no range, is matched by IoU
  and by one detection only, and a box that counts is preferred to it: what the evaluator does with boxes of other
  sizes. VOC's own code differs in the last: there the nearest box wins, difficult or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from tutelage.types import IGNORE_BOX, IGNORE_REGION, NOT_IGNORED, Boxes

OUTSIDE_ALL_SIZES = 1e11  # square pixels; the evaluator's largest range ends at 1e10


def detection_metrics(
    truth: Sequence[Boxes], predictions: Sequence[Boxes], class_names: Sequence[str]
) -> dict[str, Any]:
    """COCO figures in [0, 1] of predictions against truth, image by image in the same order.

    Returns:
        `ap, ap50, ap75, ap_small, ap_medium, ap_large` and `per_class: {name: {ap, ap50, boxes}}`, `boxes` being the
        truth boxes that count. What is undefined (no truth of that class or size) is None.
    """
    precision = _precision(truth, predictions, class_names)
    figures: dict[str, Any] = {
        "ap": _mean(precision[:, :, :, 0]),
        "ap50": _mean(precision[0, :, :, 0]),
        "ap75": _mean(precision[5, :, :, 0]),
        "ap_small": _mean(precision[:, :, :, 1]),
        "ap_medium": _mean(precision[:, :, :, 2]),
        "ap_large": _mean(precision[:, :, :, 3]),
    }
    boxes = _boxes_per_class(truth, len(class_names))
    figures["per_class"] = {
        name: {
            "ap": _mean(precision[:, :, label, 0]),
            "ap50": _mean(precision[0, :, label, 0]),
            "boxes": int(boxes[label]),
        }
        for label, name in enumerate(class_names)
    }
    return figures


def coco_truth(truth: Sequence[Boxes], class_names: Sequence[str]) -> dict[str, Any]:
    """Truth as a COCO data set: image ids from 0, category ids from 1, annotation ids from 1."""
    annotations: list[dict[str, Any]] = []
    for image_id, boxes in enumerate(truth):
        xywh = _xywh(boxes)
        area = np.where(boxes.ignore == IGNORE_BOX, OUTSIDE_ALL_SIZES, boxes.area)
        for row in range(len(boxes)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(boxes.labels[row]) + 1,
                    "bbox": xywh[row],
                    "area": float(area[row]),
                    "iscrowd": int(boxes.ignore[row] == IGNORE_REGION),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in range(len(truth))],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
        "annotations": annotations,
    }


def coco_results(predictions: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Predictions as COCO results, with the ids of `coco_truth`."""
    return [
        {"image_id": image_id, "category_id": label + 1, "bbox": xywh, "score": score}
        for image_id, boxes in enumerate(predictions)
        for label, xywh, score in zip(boxes.labels.tolist(), _xywh(boxes), boxes.scores.tolist(), strict=True)
    ]


def _precision(truth: Sequence[Boxes], predictions: Sequence[Boxes], class_names: Sequence[str]) -> NDArray[np.float64]:
    """(10 IoU thresholds, 101 recall levels, K classes, 4 sizes) precision of up to 100 detections; -1 undefined."""
    if not truth or not class_names:
        return np.full((10, 101, len(class_names), 4), -1.0)
    reference = COCO(coco_truth(truth, class_names))
    evaluator = COCOeval_faster(
        reference, reference.loadRes(coco_results(predictions)), iouType="bbox", print_function=_silent
    )
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"], dtype=np.float64)[..., -1]


def _silent(*_: object) -> None:
    """Takes the place of the evaluator's print."""


def _xywh(boxes: Boxes) -> list[list[float]]:
    corners = boxes.xyxy.astype(np.float64)
    xywh: list[list[float]] = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    return xywh


def _mean(precision: NDArray[np.float64]) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def _boxes_per_class(truth: Sequence[Boxes], num_classes: int) -> NDArray[np.int64]:
    counts = np.zeros(num_classes, np.int64)
    for boxes in truth:
        counts += np.bincount(boxes.labels[boxes.ignore == NOT_IGNORED], minlength=num_classes)
    return counts
