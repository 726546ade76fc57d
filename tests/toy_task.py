"""A task small enough for exact comparisons: a grid of cells, positive where a box has its center.

Legend: B images, A cells, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.types import IGNORE, Batch, PaddedBoxes

CANVAS = (32, 32)
STRIDE = 8
NUM_CLASSES = 3


class ToyOutputs(NamedTuple):
    logits: Tensor  # (B, A, K)
    deltas: Tensor  # (B, A, 4)


class ToyNetwork(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = ToyBlock(width)
        self.logits = nn.Conv2d(width, NUM_CLASSES, 1)
        self.deltas = nn.Conv2d(width, 4, 1)

    def forward(self, images: Tensor, valid: Tensor) -> ToyOutputs:
        pixels = images.to(self.logits.weight.dtype) / 128 - 1
        features = self.body(self.stem(pixels))
        maps = self.logits(features), self.deltas(features)
        return ToyOutputs(*(part.flatten(2).transpose(1, 2) for part in maps))


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        down = F.relu(self.norm(self.down(features)))
        return down + self.mix(down)


@dataclass(frozen=True)
class ToyTargets:
    classes: Tensor  # (B, A, K)
    positive: Tensor  # (B, A) bool
    num_positives: Tensor  # ()


@dataclass(frozen=True)
class ToyTask:
    scale: float = 1.0  # of all losses

    def assign(self, batch: Batch, ignored: str) -> ToyTargets:
        boxes = batch.boxes
        assert boxes is not None
        cells = (boxes.xyxy[..., :2] + boxes.xyxy[..., 2:]) // (2 * STRIDE)
        place = (cells[..., 1] * (CANVAS[1] // STRIDE) + cells[..., 0]).long()
        num_cells = (CANVAS[0] // STRIDE) * (CANVAS[1] // STRIDE)
        cell_of_box = F.one_hot(place, num_cells).bool() & boxes.valid[..., None]  # (B, N, A)
        class_of_box = F.one_hot(boxes.labels, NUM_CLASSES).bool()
        classes = (cell_of_box[..., None] & class_of_box[:, :, None]).any(1)
        positive = classes.any(-1)
        return ToyTargets(classes, positive, positive.sum())

    def loss_sums(self, outputs: ToyOutputs, batch: Batch, targets: ToyTargets) -> dict[str, Tensor]:
        wanted = targets.classes.to(outputs.logits.dtype)
        of_class = F.binary_cross_entropy_with_logits(outputs.logits, wanted, reduction="sum")
        of_box = (outputs.deltas.square().sum(-1) * targets.positive).sum()
        return {"class": self.scale * of_class, "box": self.scale * of_box}

    def normalizer(self, counts: Tensor) -> Tensor:
        return counts + 1


def toy_batch(seed: int, size: int = 4, boxes: int = 3) -> Batch:
    """Random images; image i has i + 1 boxes, at most `boxes`, so that shares of a batch differ in their counts.

    Of its mask the upper i / size are without a label.
    """
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 24, (size, max(boxes, 1), 2)).astype(np.float32)
    valid = np.arange(max(boxes, 1)) < np.minimum(np.arange(1, size + 1), boxes)[:, None]
    pixels = rng.integers(0, 256, (size, 1, *CANVAS, 3), dtype=np.uint8)
    masks = np.random.default_rng((seed, 1)).integers(0, NUM_CLASSES, (size, *CANVAS), dtype=np.uint8)
    masks[np.arange(CANVAS[0]) / CANVAS[0] < np.arange(size)[:, None] / size] = IGNORE
    return Batch(
        images=torch.from_numpy(pixels).permute(0, 1, 4, 2, 3),
        matrix=torch.eye(3, dtype=torch.float64).expand(size, 1, 3, 3),
        valid=torch.tensor(CANVAS).expand(size, 1, 2),
        image_ids=torch.arange(size),
        sizes=torch.tensor(CANVAS).expand(size, 2),
        boxes=PaddedBoxes(
            xyxy=torch.from_numpy(np.concatenate([corners, corners + 8], axis=-1)),
            labels=torch.from_numpy(rng.integers(0, NUM_CLASSES, valid.shape)),
            scores=torch.ones(valid.shape),
            ignore=torch.zeros(valid.shape, dtype=torch.uint8),
            valid=torch.from_numpy(valid),
        ),
        masks=torch.from_numpy(masks),
        labels=torch.from_numpy(rng.integers(0, NUM_CLASSES, size)),
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some images of a batch."""
    boxes = batch.boxes
    assert boxes is not None
    return Batch(
        images=batch.images[rows],
        matrix=batch.matrix[rows],
        valid=batch.valid[rows],
        image_ids=batch.image_ids[rows],
        sizes=batch.sizes[rows],
        boxes=PaddedBoxes(
            boxes.xyxy[rows], boxes.labels[rows], boxes.scores[rows], boxes.ignore[rows], boxes.valid[rows]
        ),
        masks=None if batch.masks is None else batch.masks[rows],
        labels=None if batch.labels is None else batch.labels[rows],
    )


def toy_stream(
    index: object,
    *,
    stream: str,
    seed: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    rank: int,
    world_size: int,
    micro_batches: int,
    **unused: object,
) -> Iterator[list[Batch]]:
    """In the place of `train_batches`: batches that depend on the seed, the stream and the step alone."""
    for step in range(first_step, num_steps):
        whole = toy_batch(seed + 1000 * step + len(stream), batch_size)
        share = batch_size // (world_size * micro_batches)
        starts = [(rank * micro_batches + number) * share for number in range(micro_batches)]
        yield [rows_of(whole, slice(start, start + share)) for start in starts]


def toy_network(seed: int = 0, *, double: bool = False) -> ToyNetwork:
    torch.manual_seed(seed)
    return ToyNetwork().double() if double else ToyNetwork()
