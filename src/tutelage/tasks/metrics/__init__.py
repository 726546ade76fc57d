"""How good detections are: point figures (`coco`), our own matching (`matching`) and its resampling (`resampling`)."""

from tutelage.tasks.metrics.coco import detection_metrics
from tutelage.tasks.metrics.matching import Matches, match_detections
from tutelage.tasks.metrics.resampling import (
    average_precision,
    bootstrap_metrics,
    bootstrap_size_metrics,
    precision_recall,
)

__all__ = [
    "Matches",
    "average_precision",
    "bootstrap_metrics",
    "bootstrap_size_metrics",
    "detection_metrics",
    "match_detections",
    "precision_recall",
]
