"""What a model found in a picture, and how other tools take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.rle import Spans, box_of, class_spans, counts_of, encode_counts, num_pixels
from tutelage.types import Boxes, InputError, Prediction

if TYPE_CHECKING:
    import supervision

STEPS = 256  # of a stored confidence, which is rounded down


@dataclass(frozen=True, slots=True)
class Found(Prediction):
    """A prediction with the names of its classes; `image_id` is the picture's place in the list that was given."""

    class_names: tuple[str, ...] = ()

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO result file: boxes as x, y, width, height, or a run-length mask for each class.

        Args:
            image_id: of the entries; the picture's place in the list when None. Category ids count from 1.
        """
        number = self.image_id if image_id is None else image_id
        entries = self._coco_boxes(self.boxes) if self.boxes is not None else self._coco_masks()
        return [{"image_id": number, **entry} for entry in entries]

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections` with `class_name` in its data; of a mask one detection for each class in it.

        Raises:
            InputError: the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError:
            raise InputError(
                "to_supervision: the package supervision is not installed; it is needed for its Detections. "
                "Install it with pip install supervision."
            ) from None
        parts = self._box_arrays(self.boxes) if self.boxes is not None else self._mask_arrays()
        names = np.array(self.class_names, np.str_)[parts["class_id"]]
        return Detections(**parts, data={"class_name": names})

    @property
    def _regions(self) -> Iterator[tuple[int, Spans, float]]:
        """Class, runs and mean confidence of each class in the mask."""
        assert self.mask is not None and self.levels is not None, "a prediction holds boxes or a mask"
        for label, spans in class_spans(self.mask):
            yield label, spans, float((self.levels[self.mask == label] + 0.5).mean() / STEPS)

    def _coco_boxes(self, boxes: Boxes) -> Iterator[dict[str, Any]]:
        columns = (boxes.xyxy.astype(float).tolist(), boxes.labels.tolist(), boxes.scores.tolist())
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
            yield {"category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}

    def _coco_masks(self) -> Iterator[dict[str, Any]]:
        assert self.mask is not None, "a prediction holds boxes or a mask"
        height, width = self.mask.shape
        for label, spans, score in self._regions:
            runs = {"size": [height, width], "counts": encode_counts(counts_of(spans, height * width))}
            shape = {"bbox": box_of(spans, height), "area": num_pixels(spans)}
            yield {"category_id": label + 1, "segmentation": runs, **shape, "score": score}

    def _box_arrays(self, boxes: Boxes) -> dict[str, Any]:
        return {"xyxy": boxes.xyxy, "confidence": boxes.scores, "class_id": boxes.labels}

    def _mask_arrays(self) -> dict[str, Any]:
        assert self.mask is not None, "a prediction holds boxes or a mask"
        regions = list(self._regions)
        labels = np.array([label for label, _, _ in regions], np.int64)
        x, y, width, height = np.array([box_of(spans, len(self.mask)) for _, spans, _ in regions], np.float32).T
        return {
            "xyxy": np.stack([x, y, x + width, y + height], axis=1),
            "mask": self.mask == labels[:, None, None],
            "confidence": np.array([score for _, _, score in regions], np.float32),
            "class_id": labels,
        }
