"""How good a model is.

Detections: point figures (`coco`), our own matching (`matching`) and its resampling (`resampling`). Masks: counts of
pixels, and the resampling of these (`masks`).
"""

from tutelage.tasks.metrics.coco import detection_metrics
from tutelage.tasks.metrics.masks import Confusions, MaskCounts, boundary_parts, confusion_of, count_mask
from tutelage.tasks.metrics.matching import Matches, match_detections
from tutelage.tasks.metrics.resampling import (
    average_precision,
    bootstrap_metrics,
    bootstrap_size_metrics,
    precision_recall,
)

__all__ = [
    "Confusions",
    "MaskCounts",
    "Matches",
    "average_precision",
    "bootstrap_metrics",
    "bootstrap_size_metrics",
    "boundary_parts",
    "confusion_of",
    "count_mask",
    "detection_metrics",
    "match_detections",
    "precision_recall",
]
