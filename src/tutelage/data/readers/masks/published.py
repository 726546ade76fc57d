"""Classes of published data sets whose files do not name them."""

from __future__ import annotations

from tutelage.data.readers.masks.classes import Entry

# Pascal VOC 2012 devkit documentation, sec. 3.1: values 0 to 20, the border between objects is 255
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()

# cityscapesScripts, helpers/labels.py: name, id of the classes that are evaluated, in the order of their trainId
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITYSCAPES_IDS = 34  # ids 0 to 33; those above have no trainId and are ignored


def published_entries(format: str, first_mask: str) -> tuple[list[Entry], list[int | str]]:
    """Classes and further ignored values of a layout, told by its format and the name of a mask; none if unknown."""
    if format == "voc-masks":
        return [Entry(name, value) for value, name in enumerate(VOC)], []
    if first_mask.endswith("_labelTrainIds.png"):
        return [Entry(name, value) for value, name in enumerate(CITYSCAPES)], []
    if first_mask.endswith("_labelIds.png"):
        others: list[int | str] = [number for number in range(CITYSCAPES_IDS) if number not in CITYSCAPES.values()]
        return [Entry(name, value) for name, value in CITYSCAPES.items()], others
    return [], []
