"""Object detection with a RetinaNet: targets, losses, decoding."""

from tutelage.tasks.detection.task import DetectionTask, Targets

__all__ = ["DetectionTask", "Targets"]
