"""The table that chooses a task by its name in the config."""

from __future__ import annotations

from tutelage.config import RunConfig
from tutelage.tasks.detection import DetectionTask
from tutelage.tasks.segmentation import SegmentationTask
from tutelage.tasks.task import Task

TASKS: dict[str, type[DetectionTask] | type[SegmentationTask]] = {
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}


def build_task(config: RunConfig, class_names: tuple[str, ...]) -> Task:
    """The task that `config.task` names, for the data's classes."""
    return TASKS[config.task].of(config, class_names)
