"""How good masks are: pixels counted image by image, once, then summed over any resample of the images.

Everything measured is a ratio of sums over images, so that copies of an image only multiply its counts. IGNORE pixels
of the truth are counted nowhere. A class without a truth pixel (in the set, or in a resample) is undefined and left out
of means; what is taken for it costs the classes whose pixels these are.

Legend: h x w pixels, K classes, n images, R resamples, C cells of all confusion matrices that are not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.types import IGNORE

BOUNDARY_WIDTH = 0.02  # of the diagonal: arXiv:2103.16562 (Boundary IoU), sec. 5
WEIGHTS_AT_ONCE = 1 << 22  # 32 MB

Mask = NDArray[np.uint8]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class MaskCounts:
    """What one image adds to the sums."""

    cells: Counts  # (3, C) true class, predicted class, pixels
    boundary: Counts  # (3, c) class, pixels of the two boundaries' intersection and of their union


def count_mask(truth: Mask, predicted: Mask, num_classes: int) -> MaskCounts:
    """Counts of one image; both masks (h, w), only the truth with IGNORE."""
    confusion = confusion_of(truth, predicted, num_classes)
    rows, columns = confusion.nonzero()
    boundary = boundary_parts(truth, predicted, num_classes)
    labels = boundary[1].nonzero()[0]
    return MaskCounts(np.stack([rows, columns, confusion[rows, columns]]), np.stack([labels, *boundary[:, labels]]))


def confusion_of(truth: Mask, predicted: Mask, num_classes: int) -> Counts:
    """(K, K) pixels by true (row) and predicted (column) class."""
    assert truth.shape == predicted.shape, f"truth {truth.shape}, prediction {predicted.shape}"
    scored = truth != IGNORE
    pairs = truth[scored].astype(np.intp) * num_classes + predicted[scored]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def boundary_parts(truth: Mask, predicted: Mask, num_classes: int) -> Counts:
    """(2, K) pixels in the intersection and in the union of each class's two boundaries (arXiv:2103.16562).

    The boundary of a class is those of its pixels that lie within 2 % of the diagonal of another class or of the end of
    the image, by the larger of the distances along x and y. IGNORE pixels are taken out of both masks before, as if
    the image ended there: where people left a border unlabeled (VOC), no prediction can be off inside it.
    """
    predicted = np.where(truth == IGNORE, np.uint8(IGNORE), predicted)
    width = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*truth.shape))))
    near, near_predicted = _near_boundary(truth, width), _near_boundary(predicted, width)
    common = np.bincount(truth[near & near_predicted & (truth == predicted)], minlength=num_classes)
    both = np.bincount(truth[near], minlength=num_classes) + np.bincount(
        predicted[near_predicted], minlength=num_classes
    )
    return np.stack([common, both - common])


def _near_boundary(mask: Mask, width: int) -> NDArray[np.bool_]:
    """Pixels of a class whose surroundings, `width` pixels to every side, are not of that class alone."""
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    lowest = cv2.erode(mask, window, borderType=cv2.BORDER_CONSTANT, borderValue=IGNORE)
    highest = cv2.dilate(mask, window, borderType=cv2.BORDER_CONSTANT, borderValue=IGNORE)
    return np.asarray((lowest != highest) & (mask != IGNORE))


@dataclass(frozen=True, slots=True, eq=False)
class Confusions:
    """The counts of all test images of one model."""

    num_images: int
    num_classes: int
    cell_image: Counts  # (C,)
    cells: Counts  # (3, C) true class, predicted class, pixels
    boundary_image: Counts  # (B,)
    boundary: Counts  # (3, B) class, pixels of intersection and union

    @classmethod
    def of(cls, images: Sequence[MaskCounts], num_classes: int) -> Self:
        """The images' counts, one after the other."""
        none = np.zeros((3, 0), np.int64)
        return cls(
            len(images),
            num_classes,
            cell_image=np.repeat(np.arange(len(images)), [image.cells.shape[1] for image in images]),
            cells=np.hstack([none, *(image.cells for image in images)]),
            boundary_image=np.repeat(np.arange(len(images)), [image.boundary.shape[1] for image in images]),
            boundary=np.hstack([none, *(image.boundary for image in images)]),
        )

    def metrics(self, class_names: Sequence[str]) -> dict[str, Any]:
        """`miou, pixel_accuracy, boundary_iou` of all images, and `per_class`; None where undefined.

        Returns:
            `per_class: {name: {iou, boundary_iou, pixels, images}}`: pixels of the class in the truth, and images with
            such pixels.
        """
        found = self.resample(np.ones((1, self.num_images), np.int64))
        figures: dict[str, Any] = {
            name: _defined(found[name][0]) for name in ("miou", "pixel_accuracy", "boundary_iou")
        }
        truth = self._truth()
        figures["per_class"] = {
            name: {
                "iou": _defined(found["class_iou"][0, label]),
                "boundary_iou": _defined(found["class_boundary_iou"][0, label]),
                "pixels": int(truth[:, label].sum()),
                "images": int((truth[:, label] > 0).sum()),
            }
            for label, name in enumerate(class_names)
        }
        return figures

    def resample(self, weights: NDArray[np.integer], *, threads: int = 1) -> dict[str, Floats]:
        """Figures of resamples that hold `weights` (R, n) copies of each image.

        Returns:
            `miou, pixel_accuracy, boundary_iou` (R,) and `class_iou, class_boundary_iou` (R, K), in [0, 1].
        """
        assert weights.shape[1] == self.num_images, f"weights {weights.shape} for {self.num_images} images"
        parts = np.hstack([self._truth(), self._predicted(), self._right(), *self._boundary()]).astype(np.float64)
        step = max(1, WEIGHTS_AT_ONCE // max(1, self.num_images))
        chunks = [weights[start : start + step] for start in range(0, len(weights), step)]
        with ThreadPoolExecutor(threads) as pool:  # sums of counts are exact in float64 up to 9e15
            sums = list(pool.map(lambda chunk: chunk.astype(np.float64) @ parts, chunks))
        return _figures(np.vstack([np.zeros((0, parts.shape[1])), *sums]).reshape(len(weights), 5, self.num_classes))

    def groups_with_truth(self, groups: NDArray[np.integer]) -> dict[str, Any]:
        """How many groups (n,) hold a pixel of each class (`per_class`)."""
        truth = self._truth()
        return {"per_class": [len(np.unique(groups[truth[:, label] > 0])) for label in range(self.num_classes)]}

    def save(self, path: Path) -> None:
        """Writes a compressed npz file."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            columns: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)}
        sizes = {name: int(columns[name]) for name in ("num_images", "num_classes")}
        return cls(**{**columns, **sizes})

    def _truth(self) -> Counts:
        """(n, K) pixels of each class in the truth."""
        return self._by_class(self.cell_image, self.cells[0], self.cells[2])

    def _predicted(self) -> Counts:
        """(n, K) scored pixels that were taken for each class."""
        return self._by_class(self.cell_image, self.cells[1], self.cells[2])

    def _right(self) -> Counts:
        """(n, K) pixels of each class that were taken for it."""
        right = self.cells[0] == self.cells[1]
        return self._by_class(self.cell_image[right], self.cells[0, right], self.cells[2, right])

    def _boundary(self) -> tuple[Counts, Counts]:
        """(n, K) intersection and (n, K) union of each class's boundaries."""
        labels, common, union = self.boundary
        return self._by_class(self.boundary_image, labels, common), self._by_class(self.boundary_image, labels, union)

    def _by_class(self, image: Counts, label: Counts, pixels: Counts) -> Counts:
        table = np.zeros((self.num_images, self.num_classes), np.int64)
        np.add.at(table, (image, label), pixels)
        return table


def _figures(sums: Floats) -> dict[str, Floats]:
    """Figures from sums (R, 5, K): truth, predicted and right pixels, boundaries' intersection and union."""
    truth, predicted, right, common, union = sums.swapaxes(0, 1)
    present = truth > 0  # then both unions are above 0
    iou, boundary = (
        np.divide(part, whole, out=np.full_like(part, np.nan), where=present)
        for part, whole in ((right, truth + predicted - right), (common, union))
    )
    pixels = truth.sum(axis=1)
    return {
        "miou": _defined_mean(iou, present),
        "pixel_accuracy": np.divide(right.sum(axis=1), pixels, out=np.full_like(pixels, np.nan), where=pixels > 0),
        "boundary_iou": _defined_mean(boundary, present),
        "class_iou": iou,
        "class_boundary_iou": boundary,
    }


def _defined_mean(values: Floats, defined: NDArray[np.bool_]) -> Floats:
    """(R,) mean over the classes (R, K) that are defined; NaN where none is."""
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
