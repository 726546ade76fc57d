"""What the page says and shows of each task and of no other: the table that chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.reporting.boxes.pseudo import view_store as view_boxes
from tutelage.reporting.boxes.read import boxes_by_image
from tutelage.reporting.boxes.recall import recall_figures
from tutelage.reporting.boxes.scenes import compare_models as compare_boxes
from tutelage.reporting.masks.compare import masks_by_image
from tutelage.reporting.masks.pseudo import view_store as view_masks
from tutelage.reporting.masks.scenes import compare_models as compare_masks
from tutelage.reporting.pseudo import ViewStore
from tutelage.reporting.read import Columns


@dataclass(frozen=True, slots=True)
class Kind:
    """Words, columns and makers of pictures for one task."""

    templates: str  # folder of its own templates
    measured: str  # what the figures are called
    metrics: Mapping[str, str]  # titles by name; the first is the headline
    class_metrics: Mapping[str, str]  # titles by name; the first is what classes are compared by
    class_counts: Mapping[str, str]  # titles of what there is of a class in the test images, by name
    amount: str  # what labels are counted in: a name in the records' counts
    amount_title: str
    labels_of: Callable[[NDArray[np.int64], Columns], list[Any]]  # labels by image id, from a table of an evaluation
    compare: Callable[..., Any]  # teacher, student, class names, album, seed -> what scenes.html draws
    view_store: ViewStore
    recall: Callable[..., Any] | None = None  # models, class names -> what recall.html draws

    @property
    def headline(self) -> tuple[str, str]:
        """Name and title of the figure that models are compared by."""
        return next(iter(self.metrics.items()))


KINDS: Mapping[str, Kind] = {
    "detection": Kind(
        templates="boxes",
        measured="COCO figures",
        metrics={
            "ap": "AP",
            "ap50": "AP50",
            "ap75": "AP75",
            "ap_small": "AP small",
            "ap_medium": "AP medium",
            "ap_large": "AP large",
        },
        class_metrics={"ap": "AP"},
        class_counts={"boxes": "Test boxes"},
        amount="boxes",
        amount_title="Boxes",
        labels_of=boxes_by_image,
        compare=compare_boxes,
        view_store=view_boxes,
        recall=recall_figures,
    ),
    "segmentation": Kind(
        templates="masks",
        measured="Figures",
        metrics={"miou": "mIoU", "pixel_accuracy": "Pixel accuracy", "boundary_iou": "Boundary IoU"},
        class_metrics={"iou": "IoU", "boundary_iou": "Boundary IoU"},
        class_counts={"images": "Test images", "pixels": "Test pixels"},
        amount="pixels",
        amount_title="Labeled pixels",
        labels_of=masks_by_image,
        compare=compare_masks,
        view_store=view_masks,
    ),
}
