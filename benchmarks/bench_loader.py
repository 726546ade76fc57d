"""Images a second that come out of the training loader: S4 at 640 from JPEGs, with boxes, in batches of 8.

Run alone on the machine: python benchmarks/bench_loader.py [--images N --steps N --workers N ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    main(**vars(parser.parse_args()))
