"""Semantic segmentation: targets, loss, masks from raw outputs, and how these are measured."""

from tutelage.tasks.segmentation.task import MaskTargets, SegmentationTask

__all__ = ["MaskTargets", "SegmentationTask"]
