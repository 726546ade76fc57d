"""The data that flows through Tutelage; the bottom layer, imported by all others.

Legend: B images, V views, N boxes, H x W pixels. Sizes are (height, width); coordinates are (x, y).
Boxes are xyxy in pixels, measured at pixel edges, origin at the top left corner of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import InputError as InputError

IGNORE = 255
"""Mask value of pixels without a label: not trained on, not scored."""

Annotation = Literal["boxes", "masks"]
"""What images are annotated with, by people or by a teacher."""

NOT_IGNORED, IGNORE_REGION, IGNORE_BOX = 0, 1, 2
"""Values of `Boxes.ignore`: a normal box; a region (crowd, group) that excuses any number of detections inside it
by overlap; a single box (VOC difficult) that excuses one detection by IoU."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image: human labels, predictions and pseudo-labels alike."""

    xyxy: NDArray[np.float32]  # (N, 4) pixels
    labels: NDArray[np.int64]  # (N,) class index, 0 .. num_classes - 1
    scores: NDArray[np.float32]  # (N,) confidence in [0, 1]; 1 for human labels
    area: NDArray[np.float32]  # (N,) square pixels as annotated (COCO bins sizes by it)
    ignore: NDArray[np.uint8]  # (N,) NOT_IGNORED, IGNORE_REGION or IGNORE_BOX

    @classmethod
    def build(
        cls,
        xyxy: Any,
        labels: Any,
        scores: Any = None,
        area: Any = None,
        ignore: Any = None,
    ) -> Self:
        """Boxes from array-likes; scores default to 1, area to width x height, ignore to 0."""
        corners = np.asarray(xyxy, dtype=np.float32).reshape(-1, 4)
        count = len(corners)
        if area is None:
            area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        return cls(
            xyxy=corners,
            labels=np.asarray(labels, dtype=np.int64).reshape(count),
            scores=np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32).reshape(count),
            area=np.asarray(area, dtype=np.float32).reshape(count),
            ignore=np.zeros(count, np.uint8) if ignore is None else np.asarray(ignore, np.uint8).reshape(count),
        )

    @classmethod
    def empty(cls) -> Self:
        """No boxes."""
        return cls.build(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.xyxy)

    def select(self, which: NDArray[Any]) -> Self:
        """The boxes chosen by a boolean mask (N,) or by row numbers."""
        return replace(self, **{field.name: getattr(self, field.name)[which] for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded image on its canvas, with its targets moved along."""

    image_id: int  # row of the index that it came from
    images: NDArray[np.uint8]  # (V, H, W, 3) RGB on the canvas
    matrix: NDArray[np.float64]  # (V, 3, 3): original (x, y, 1) -> canvas
    size: tuple[int, int]  # original (height, width), as shown
    valid: NDArray[np.int64]  # (V, 2) covered (height, width) of the canvas, from its top left; the rest is padding
    boxes: Boxes | None = None  # canvas pixels, of view 0
    mask: NDArray[np.uint8] | None = None  # (H, W) classes, IGNORE where there is none, of view 0
    label: int | None = None  # image class
    passed_over: tuple[int, int] = (0, 0)  # unreadable images, and copies of held-out ones, in whose place it stands


@dataclass(frozen=True, slots=True)
class Skipped:
    """A pool image that could not be used, and why."""

    image_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class PaddedBoxes:
    """Boxes of a batch, padded to one count; padding has `valid` False."""

    xyxy: Tensor  # (B, N, 4) float32 canvas pixels
    labels: Tensor  # (B, N) int64
    scores: Tensor  # (B, N) float32
    ignore: Tensor  # (B, N) uint8
    valid: Tensor  # (B, N) bool

    def to(self, device: torch.device | str) -> PaddedBoxes:
        """The same boxes on another device."""
        return _moved(self, device)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples on one fixed canvas, ready for a device."""

    images: Tensor  # (B, V, 3, H, W) uint8 RGB, channels-last strides; the model normalizes
    matrix: Tensor  # (B, V, 3, 3) float64: original (x, y, 1) -> canvas
    valid: Tensor  # (B, V, 2) int64 covered (height, width)
    image_ids: Tensor  # (B,) int64
    sizes: Tensor  # (B, 2) int64 original (height, width)
    boxes: PaddedBoxes | None = None
    masks: Tensor | None = None  # (B, H, W) uint8
    labels: Tensor | None = None  # (B,) int64
    passed_over: Tensor | None = None  # (B, 2) int64, see `Sample`

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return _moved(self, device)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return _mapped(self, Tensor.pin_memory)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image, in the pixels of the original image."""

    image_id: int
    size: tuple[int, int]  # original (height, width)
    boxes: Boxes | None = None
    mask: NDArray[np.uint8] | None = None  # (h, w) class of each pixel; of the original or a smaller size
    levels: NDArray[np.uint8] | None = None  # (h, w) confidence of `mask` in 256ths, rounded down: >= 128 is >= 0.5
    probabilities: NDArray[np.float32] | None = None  # (K,) of the whole image's classes


Tensors = TypeVar("Tensors", PaddedBoxes, Batch)


def _mapped(holder: Tensors, function: Callable[[Tensor], Tensor]) -> Tensors:
    changed: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, PaddedBoxes):
            changed[field.name] = _mapped(value, function)
    return replace(holder, **changed)


def _moved(holder: Tensors, device: torch.device | str) -> Tensors:
    return _mapped(holder, lambda tensor: tensor.to(device, non_blocking=True))
