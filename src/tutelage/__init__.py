"""Self-training for object detection and segmentation (arXiv:2006.06882): from a folder of images to a report."""
