"""Masks drawn from annotations: polygons, run-length masks and panoptic segments of COCO, polygons of YOLO."""
