"""Images for pre-training, from JPEG files to batches of uint8 at 224 x 224: against lightly and timm's train script.

SimCLR's two views: against lightly's `SimCLRTransform` over torchvision's ImageFolder, as its tutorial sets it up, once
from files and once from decoded pixels; its normalization is left out, since ours is the model's.
Supervised: random-resized crop, flip and RandAugment (2 operations, magnitude 9) against timm's `create_loader` with
the options of its train script (`--aa rand-m9-n2`), up to the uint8 batch that its prefetcher would normalize on a
device. Images are counted once, however many views they give. One process and one thread each, in compute time.
Aim: more than either peer's.

Run alone on the machine: python benchmarks/bench_pretraining.py [--images N --folder CLASS_FOLDERS]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tutelage.augment.apply import Warped, apply
from tutelage.augment.policies import simclr_plan
from tutelage.config import DataConfig, PretrainConfig
from tutelage.data.index import Index
from tutelage.data.loader import classification_batches, view_batches
from tutelage.data.readers import open_index

IMAGES, BATCH_SIZE, ROUNDS, WARM = 192, 16, 3, 2
PIXELS = (375, 500)  # ImageNet's most frequent size
SIDE = 224
AIM = 1.0
PRETRAIN = PretrainConfig(size=SIDE, layers=2, magnitude=9)

Batches = Iterator[object]


def write_jpegs(folder: Path, count: int) -> None:
    """Two class folders of pictures with the detail of photographs: smooth color, edges and a little noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (PIXELS[0] // 16, PIXELS[1] // 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, PIXELS[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += rng.integers(-6, 7, (*PIXELS, 1), dtype=np.int16)
        place = folder / f"class{number % 2}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place, quality=90)


def ours(index: Index, stream: Callable[..., Batches], round: int, steps: int) -> Batches:
    return stream(
        index,
        data=DataConfig(),
        pretrain=PRETRAIN,
        stream="images",
        seed=round,
        round=0,
        batch_size=BATCH_SIZE,
        first_step=0,
        num_steps=steps,
        rank=0,
        world_size=1,
        micro_batches=1,
        workers=0,
        cache_megabytes=0,
        pin=False,
    )


def lightlys(folder: Path) -> DataLoader:
    images = ImageFolder(str(folder), transform=SimCLRTransform(input_size=SIDE, normalize=None))
    return DataLoader(images, BATCH_SIZE, shuffle=True)


def timms(folder: Path) -> DataLoader:
    """What its prefetcher reads from: batches of uint8, collated by timm."""
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIDE, SIDE),
        BATCH_SIZE,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        auto_augment="rand-m9-n2",
        interpolation="random",
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        use_prefetcher=True,
    )
    return loader.loader


def images_per_second(sources: dict[str, Callable[[int], Batches]], steps: int) -> dict[str, float]:
    """Images a second of compute time by source; the best of interleaved rounds, first batches left out."""
    best = dict.fromkeys(sources, 0.0)
    for round in range(ROUNDS):
        for name, source in sources.items():
            batches = source(round)
            for _ in range(WARM):
                next(batches)
            start, count = time.process_time(), 0
            for _ in zip(range(steps - WARM), batches, strict=False):
                count += BATCH_SIZE
            best[name] = max(best[name], count / (time.process_time() - start))
    return best


def from_files(index: Index, folder: Path, steps: int) -> None:
    views = {
        "ours": lambda round: ours(index, view_batches, round, steps),
        "lightly": lambda round: iter(lightlys(folder)),
    }
    show("SimCLR's two views, from files", images_per_second(views, steps))
    supervised = {
        "ours": lambda round: ours(index, classification_batches, round, steps),
        "timm": lambda round: iter(timms(folder)),
    }
    show("crop, flip and RandAugment, from files", images_per_second(supervised, steps))


def from_pixels(index: Index, steps: int) -> None:
    """Both views of decoded images, handed to each in the form that it works on."""
    pictures = [Image.open(index.path(row)).convert("RGB") for row in range(min(len(index), 32))]
    arrays, theirs = [np.asarray(picture) for picture in pictures], SimCLRTransform(input_size=SIDE, normalize=None)

    def our_views(round: int) -> Batches:
        rng = np.random.default_rng(round)
        for places in np.arange(steps * BATCH_SIZE).reshape(steps, -1) % len(arrays):
            yield [two_views(arrays[place], rng) for place in places]

    def their_views(round: int) -> Batches:
        for places in np.arange(steps * BATCH_SIZE).reshape(steps, -1) % len(pictures):
            yield [theirs(pictures[place]) for place in places]

    show("SimCLR's two views, from pixels", images_per_second({"ours": our_views, "lightly": their_views}, steps))


def two_views(pixels: np.ndarray, rng: np.random.Generator) -> list[Warped]:
    size = pixels.shape[:2]
    return [apply(simclr_plan(PRETRAIN, rng, size), pixels, size) for _ in range(2)]


def show(what: str, rates: dict[str, float]) -> None:
    peer = next(name for name in rates if name != "ours")
    print(f"  {what:40s}ours {rates['ours']:6.1f}, {peer} {rates[peer]:6.1f} images/s")
    print(f"  {'ratio':40s}{rates['ours'] / rates[peer]:6.2f}   (aim {AIM})")


def main(images: int = IMAGES, folder: str = "") -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["TUTELAGE_CACHE"] = place
        if not folder:
            write_jpegs(Path(place) / "images", images)
        given = Path(folder or Path(place) / "images")
        index = open_index(given, DataConfig())
        steps = min(images, len(index)) // BATCH_SIZE
        print(
            f"{steps * BATCH_SIZE} of {len(index)} JPEG images to {SIDE} x {SIDE}, batches of {BATCH_SIZE}, one thread"
        )
        from_files(index, given, steps)
        from_pixels(index, steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--folder", default="", help="class folders to use instead of generated images")
    main(**vars(parser.parse_args()))
