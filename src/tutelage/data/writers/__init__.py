"""Boxes and masks of many images out to files that the readers read back.

Records come one by one and are written as they come, so that memory does not grow with their number.
"""

from tutelage.data.writers.boxes import Record, write_coco, write_voc, write_yolo
from tutelage.data.writers.masks import MaskRecord, write_coco_masks, write_mask_folder

__all__ = [
    "MaskRecord",
    "Record",
    "write_coco",
    "write_coco_masks",
    "write_mask_folder",
    "write_voc",
    "write_yolo",
]
