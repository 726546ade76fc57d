"""From rows of an index to samples and batches; what loader workers run.

Legend: B images, V views, N boxes, H x W canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.augment.apply import apply
from tutelage.augment.plan import Plan
from tutelage.data.duplicates import HashBook
from tutelage.data.images import Vanished
from tutelage.data.loader.order import Key
from tutelage.data.loader.pictures import Pictures, shown_boxes
from tutelage.types import Batch, Boxes, InputError, PaddedBoxes, Sample, Skipped

BUCKET = 8
"""Boxes are padded to multiples of this, so that few shapes reach a compiled step."""

MOST_IN_A_ROW = 1000
"""Images of a pool that may follow each other and be of no use."""

Size = tuple[int, int]
Targets = Literal["boxes", "masks", "label", "none"]
DrawPlan = Callable[[np.random.Generator, Size, Boxes | None], Plan]
FixedPlan = Callable[[Size], Plan]


@dataclass(frozen=True)
class TrainSamples:
    """Augmented samples by (epoch, row). What a user can mend is returned, not raised: torch would wrap it."""

    pictures: Pictures
    draw_plans: Sequence[DrawPlan]  # one a view, drawn from one after the other
    rng_of: Callable[[int, int], np.random.Generator]  # (epoch, row)
    targets: Targets

    def __getitem__(self, key: Key) -> Sample | InputError:
        try:
            rng = self.rng_of(*key)
            return _sample(self.pictures, key[1], partial(self._plans, rng), self.targets)
        except InputError as error:
            return error

    def __len__(self) -> int:
        return len(self.pictures.index)

    def _plans(self, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> list[Plan]:
        return [draw_plan(rng, size, boxes) for draw_plan in self.draw_plans]


@dataclass(frozen=True)
class PoolSamples:
    """Two views of a pool's images by (epoch, row), the second of them weak.

    An image that cannot be read, or that shows what is held out, gives its place to the next one that can be used,
    which says so: what is trained on follows from the key alone.
    """

    samples: TrainSamples
    held_out: HashBook | None

    def __getitem__(self, key: Key) -> Sample | InputError:
        epoch, row = key
        total, unreadable, copies = len(self), 0, 0
        for place in range(row, row + min(total, MOST_IN_A_ROW)):
            sample = self.samples[epoch, place % total]
            if isinstance(sample, Vanished):
                return sample
            if isinstance(sample, InputError):
                unreadable += 1
            elif self.held_out is not None and self.held_out.contains(_whole_picture(sample)):
                copies += 1
            else:
                return replace(sample, passed_over=(unreadable, copies))
        return InputError(
            f"--unlabeled: of {unreadable + copies} images that follow each other, from "
            f"{self.samples.pictures.index.path(row)} on, {unreadable} cannot be read and {copies} are held out "
            "(test set, selection split, or set aside to certify on); none can be trained on. Look through the pool "
            "with tutelage check."
        )

    def __len__(self) -> int:
        return len(self.samples)


def _whole_picture(sample: Sample) -> NDArray[np.uint8]:
    """The image (h, w, 3) as its weak view shows it, unflipped: that one is neither cropped nor changed in color."""
    height, width = sample.valid[1]
    picture = sample.images[1, :height, :width]
    return np.asarray(cv2.flip(picture, 1), np.uint8) if sample.matrix[1, 0, 0] < 0 else picture


@dataclass(frozen=True)
class EvaluationSamples:
    """Samples by row, without randomness; `tolerant` makes broken images `Skipped`."""

    pictures: Pictures
    plan_for: FixedPlan
    targets: Targets
    tolerant: bool

    def __getitem__(self, row: int) -> Sample | Skipped | InputError:
        try:
            return _sample(self.pictures, row, lambda size, _: [self.plan_for(size)], self.targets)
        except InputError as error:
            broken = self.tolerant and not isinstance(error, Vanished)
            return Skipped(row, str(error)) if broken else error


def _sample(
    pictures: Pictures, row: int, plans_for: Callable[[Size, Boxes | None], Sequence[Plan]], targets: Targets
) -> Sample:
    """All views of an image, which is decoded once; targets are of the first."""
    index, info = pictures.index, pictures.info(row)
    boxes = shown_boxes(index, row, pictures.data, info) if targets == "boxes" else None
    mask = pictures.mask(row) if targets == "masks" else None
    plans = plans_for(info.shown_size, boxes)
    pixels = pictures.pixels(row, max(plan.min_scale for plan in plans))
    first = apply(plans[0], pixels, info.shown_size, boxes, mask)
    views = [first, *(apply(plan, pixels, info.shown_size) for plan in plans[1:])]
    return Sample(
        image_id=row,
        images=first.pixels[None] if len(views) == 1 else np.stack([view.pixels for view in views]),
        matrix=np.stack([plan.matrix for plan in plans]),
        size=info.shown_size,
        valid=np.array([view.valid for view in views], np.int64),
        boxes=first.boxes,
        mask=first.mask,
        label=index.image_class(row) if targets == "label" else None,
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples that share a canvas and a kind of target; pixels are copied once, by stacking."""
    labels = [sample.label for sample in samples if sample.label is not None]
    boxes = [sample.boxes for sample in samples if sample.boxes is not None]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    passed_over = [sample.passed_over for sample in samples]
    return Batch(
        images=_stacked([sample.images for sample in samples]).permute(0, 1, 4, 2, 3),
        matrix=_stacked([sample.matrix for sample in samples]),
        valid=_stacked([sample.valid for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        sizes=torch.tensor([sample.size for sample in samples]),
        boxes=padded_boxes(boxes) if boxes else None,
        masks=_stacked(masks) if masks else None,
        labels=torch.tensor(labels) if labels else None,
        passed_over=torch.tensor(passed_over),
    )


def _stacked(arrays: Sequence[NDArray[np.generic]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


def padded_boxes(rows: Sequence[Boxes]) -> PaddedBoxes:
    """The boxes of each image of a batch, padded to one count, a multiple of `BUCKET`."""
    width = max(BUCKET, -(-max(map(len, rows)) // BUCKET) * BUCKET)

    def pad(name: str) -> torch.Tensor:
        columns = [getattr(boxes, name) for boxes in rows]
        padded = np.zeros((len(rows), width, *columns[0].shape[1:]), columns[0].dtype)
        for row, column in enumerate(columns):
            padded[row, : len(column)] = column
        return torch.from_numpy(padded)

    counts = torch.tensor([len(boxes) for boxes in rows])
    valid = torch.arange(width) < counts[:, None]
    return PaddedBoxes(pad("xyxy"), pad("labels"), pad("scores"), pad("ignore"), valid)


def collate_training(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    """A batch, or the first thing that is wrong with it."""
    wrong = next((sample for sample in samples if isinstance(sample, InputError)), None)
    return wrong or collate([sample for sample in samples if isinstance(sample, Sample)])


def collate_evaluation(
    samples: Sequence[Sample | Skipped | InputError],
) -> tuple[Batch | None, list[Skipped]] | InputError:
    """A batch of what could be read (None when nothing) and what was skipped, or the first thing that is wrong."""
    wrong = next((sample for sample in samples if isinstance(sample, InputError)), None)
    good = [sample for sample in samples if isinstance(sample, Sample)]
    skipped = [sample for sample in samples if isinstance(sample, Skipped)]
    return wrong or (collate(good) if good else None, skipped)
