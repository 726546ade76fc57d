"""Images a second that come out of the training loader: S4 at 640 from JPEGs, with boxes, in batches of 8.

Beside it torch's loader with chains of the same kind, put together as their users do: torchvision's v2 (Pillow,
ScaleJitter, RandomCrop, RandAugment, whose moves leave boxes behind) and albumentations (OpenCV; two of ten operations,
boxes moved too). Every pass decodes anew, except where images are said to be kept in memory.

Run alone on the machine: python -m benchmarks loader, or python -m benchmarks.bench_loader [--images N --steps N
--workers N ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from tutelage.config import AugmentConfig, DataConfig
from tutelage.data.index import Index
from tutelage.data.loader import train_batches

CANVAS = (640, 640)
BATCH_SIZE = 8
SHAPES = {"COCO-like (480 x 640)": (480, 640), "photo (3000 x 4000)": (3000, 4000)}
BOXES = 7  # an image, as in COCO


def write_jpegs(folder: Path, images: int, size: tuple[int, int], rng: np.random.Generator) -> Index:
    """Pictures with the detail of photographs: smooth color, edges and a little noise; about 2 bits a pixel."""
    height, width = size
    for number in range(images):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    corners = rng.uniform(0, 0.7, (images * BOXES, 2))
    boxes = np.hstack([corners, corners + rng.uniform(0.05, 0.3, corners.shape)]) * (width, height, width, height)
    return Index.build(
        roots=[folder],
        paths=[f"{number}.jpg" for number in range(images)],
        class_names=["thing"],
        sizes=np.tile(size, (images, 1)),
        offsets=np.arange(images + 1) * BOXES,
        xyxy=boxes,
        labels=np.zeros(len(boxes)),
    )


def images_per_second(index: Index, steps: int, workers: int, cache_megabytes: int) -> float:
    """The rate after three passes, when kept images are in memory at most of the scales that are drawn."""
    first = -(-3 * len(index) // BATCH_SIZE)
    stream = train_batches(
        index,
        canvas=CANVAS,
        augment=AugmentConfig(level="s4"),
        data=DataConfig(),
        stream="labeled",
        seed=0,
        round=0,
        batch_size=BATCH_SIZE,
        first_step=0,
        num_steps=first + steps,
        rank=0,
        world_size=1,
        micro_batches=1,
        workers=workers,
        cache_megabytes=cache_megabytes,
        pin=False,
    )
    times = [time.perf_counter() for _ in stream][first - 1 :]
    return BATCH_SIZE * (len(times) - 1) / (times[-1] - times[0])


class OfTorchvision(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images and boxes of an index through v2, as the detection references of torchvision are built."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.policy = v2.RandAugment(2, 10)
        self.move = v2.Compose(
            [
                v2.ScaleJitter(CANVAS, (0.5, 2.0)),
                v2.RandomCrop(CANVAS, pad_if_needed=True, fill=128),
                v2.RandomHorizontalFlip(),
                v2.ClampBoundingBoxes(),
            ]
        )

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.index.path(row)) as opened:
            image = v2.functional.pil_to_tensor(opened.convert("RGB"))
        xyxy = self.index.boxes(row).xyxy
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(xyxy), format="XYXY", canvas_size=image.shape[-2:])
        pixels, boxes = self.move(tv_tensors.Image(image), boxes)
        return self.policy(pixels), boxes

    def __len__(self) -> int:
        return len(self.index)


class OfAlbumentations(OfTorchvision):
    """The same through albumentations."""

    def __init__(self, index: Index) -> None:
        self.index = index
        some = [
            A.Equalize(p=1),
            A.Solarize(p=1),
            A.ColorJitter(p=1),
            A.CoarseDropout(p=1),
            A.Posterize(p=1),
            A.Affine(translate_percent={"x": (-0.3, 0.3)}, p=1),
            A.Affine(translate_percent={"y": (-0.3, 0.3)}, p=1),
            A.Affine(shear={"x": (-17, 17)}, p=1),
            A.Affine(shear={"y": (-17, 17)}, p=1),
            A.Affine(rotate=(-30, 30), p=1),
        ]
        self.chain = A.Compose(
            [
                A.LongestMaxSize(CANVAS[0]),
                A.RandomScale((-0.5, 1.0), p=1),
                A.PadIfNeeded(*CANVAS, border_mode=cv2.BORDER_CONSTANT),
                A.RandomCrop(*CANVAS),
                A.HorizontalFlip(),
                A.SomeOf(some, n=2, p=1),
            ],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"]),
        )

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.index.path(row))), cv2.COLOR_BGR2RGB)
        boxes = self.index.boxes(row)
        moved = self.chain(image=image, bboxes=boxes.xyxy, labels=boxes.labels)
        return torch.from_numpy(moved["image"]).permute(2, 0, 1), torch.from_numpy(np.asarray(moved["bboxes"]))


def peer_images_per_second(dataset: OfTorchvision, steps: int, workers: int) -> float:
    rows = [[(step * BATCH_SIZE + place) % len(dataset) for place in range(BATCH_SIZE)] for step in range(steps + 1)]
    loader = DataLoader(dataset, batch_sampler=rows, num_workers=workers, collate_fn=stacked)
    times = [time.perf_counter() for _ in loader]
    return BATCH_SIZE * (len(times) - 1) / (times[-1] - times[0])


def stacked(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.stack([pixels for pixels, _ in samples]), [boxes for _, boxes in samples]


def main(images: int = 64, steps: int = 40, workers: Sequence[int] = (0, 1, 2)) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"training loader, S4 at {CANVAS[0]} x {CANVAS[1]}, batches of {BATCH_SIZE}: images a second")
    for name, size in SHAPES.items():
        with tempfile.TemporaryDirectory() as place:
            os.environ["TUTELAGE_CACHE"] = place
            folder = Path(place) / "images"
            folder.mkdir()
            count = images if max(size) < 1000 else max(BATCH_SIZE, images // 8)
            index = write_jpegs(folder, count, size, np.random.default_rng(0))
            for megabytes in (0, 4096):
                kept = "kept in memory" if megabytes else "decoded each time"
                rates = [images_per_second(index, steps, number, megabytes) for number in workers]
                shown = ", ".join(f"{number} workers {rate:.0f}" for number, rate in zip(workers, rates, strict=True))
                print(f"  {name}, {kept}: {shown}")
            for peer, dataset in (("torchvision", OfTorchvision(index)), ("albumentations", OfAlbumentations(index))):
                rates = [
                    peer_images_per_second(dataset, steps if max(size) < 1000 else 4, number) for number in workers
                ]
                shown = ", ".join(f"{number} workers {rate:.0f}" for number, rate in zip(workers, rates, strict=True))
                print(f"  {name}, {peer}, decoded each time: {shown}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    main(**vars(parser.parse_args()))
