"""SimCLR against lightly: NT-Xent alone, forward and backward, and a whole step from JPEG files to new weights.

The loss is of embeddings of 128 numbers in float32, checked to be equal. The step is of the same network, optimizer and
precision. lightly's is its tutorial's: `SimCLRTransform` over torchvision's ImageFolder, a pass for each view,
`NTXentLoss`. Ours: `view_batches`, both views in one pass, `engine.contrastive`. Wall time on a GPU, else compute
time of the one process without workers; the best of interleaved rounds; images are counted once, with both their views.
Aim: more than lightly's.

Run alone on the machine: python -m benchmarks contrastive, or
python -m benchmarks.bench_contrastive --backbone resnet50 --batch-size 256 --workers 12 on a GPU.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tutelage.config import DataConfig, ModelConfig, PretrainConfig
from tutelage.data.loader import view_batches
from tutelage.data.readers import open_index
from tutelage.engine.contrastive import SimCLR, contrast
from tutelage.models.embedder import Embedder
from tutelage.models.model import pooled

LOSS_IMAGES = {"cpu": (64, 256, 1024), "cuda": (256, 1024, 4096)}
WIDTH, TEMPERATURE = 128, 0.1
ROUNDS, WARM = 3, 1
AIM = 1.0

Step = Callable[[], object]


def main(
    backbone: str = "resnet10t",
    batch_size: int = 32,
    side: int = 96,
    steps: int = 4,
    images: int = 192,
    workers: int = 0,
) -> None:
    if importlib.util.find_spec("lightly") is None:
        print("  lightly is not installed: nothing to compare with (pip install lightly)")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for count in LOSS_IMAGES[device]:
        losses(count, device)
    with tempfile.TemporaryDirectory() as place:
        os.environ["TUTELAGE_CACHE"] = place
        whole_steps(Path(place) / "images", images, Bench(backbone, batch_size, side, steps, workers, device))


def losses(count: int, device: str) -> None:
    """NT-Xent of `count` images, 2 * count embeddings, and its gradient."""
    from lightly.loss import NTXentLoss

    generator = torch.Generator(device).manual_seed(0)
    embeddings = torch.randn((2 * count, WIDTH), generator=generator, device=device).requires_grad_()
    peer = NTXentLoss(TEMPERATURE)

    def ours() -> Tensor:
        loss = contrast(embeddings, TEMPERATURE)["contrast"] / len(embeddings)
        loss.backward()
        return loss.detach()

    def lightlys() -> Tensor:
        loss: Tensor = peer(embeddings[::2], embeddings[1::2])
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(ours(), lightlys())
    found = seconds({"ours": ours, "lightly": lightlys}, 3 if device == "cpu" else 20)
    shown = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in found.items())
    print(f"  NT-Xent of {count:5d} images  {shown}, ratio {found['lightly'] / found['ours']:.2f} (aim {AIM})")


def whole_steps(folder: Path, images: int, bench: "Bench") -> None:
    from benchmarks.bench_pretraining import write_jpegs

    write_jpegs(folder, images)
    found = seconds({"ours": bench.ours(folder), "lightly": bench.lightlys(folder)}, bench.steps)
    rates = {name: bench.batch_size / value for name, value in found.items()}
    shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    what = (
        f"step of {bench.backbone}, batch {bench.batch_size}, {bench.side} px, {bench.workers} workers, {bench.device}"
    )
    print(f"  {what}  {shown} images/s, ratio {rates['ours'] / rates['lightly']:.2f} (aim {AIM})")


class Bench:
    """Two trainings of the same network, one step at a time."""

    def __init__(self, backbone: str, batch_size: int, side: int, steps: int, workers: int, device: str) -> None:
        self.backbone, self.batch_size, self.side, self.steps = backbone, batch_size, side, steps
        self.workers, self.device = workers, device

    def ours(self, folder: Path) -> Step:
        model, optimizer = self.training()
        objective, batches = SimCLR(model, TEMPERATURE), self.our_batches(folder)

        def step() -> None:
            batch = {"images": next(batches)[0].to(self.device)}
            targets = objective.prepare(batch)
            with self.autocast():
                sums = objective(batch, targets)
            objective.total(sums, objective.counts(targets)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def our_batches(self, folder: Path) -> Iterator[list]:
        return view_batches(
            open_index(folder, DataConfig()),
            data=DataConfig(),
            pretrain=PretrainConfig(size=self.side),
            stream="images",
            seed=0,
            round=0,
            batch_size=self.batch_size,
            first_step=0,
            num_steps=ROUNDS * (self.steps + WARM),
            rank=0,
            world_size=1,
            micro_batches=1,
            workers=self.workers,
            cache_megabytes=0,
            pin=self.device == "cuda",
        )

    def lightlys(self, folder: Path) -> Step:
        from lightly.loss import NTXentLoss
        from lightly.transforms import SimCLRTransform

        model, optimizer = self.training()
        loader = DataLoader(
            ImageFolder(str(folder), transform=SimCLRTransform(input_size=self.side)),
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device == "cuda",
        )
        batches, criterion = endless(loader), NTXentLoss(TEMPERATURE)

        def step() -> None:
            first, second = (view.to(self.device, non_blocking=True) for view in next(batches)[0])
            with self.autocast():
                embeddings = [model.projection(pooled(model.backbone(view))) for view in (first, second)]
            criterion(*(F.normalize(part.float()) for part in embeddings)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def training(self) -> tuple[Embedder, torch.optim.Optimizer]:
        torch.manual_seed(0)
        config = ModelConfig(backbone=self.backbone, backbone_norm="own")
        model = Embedder(config, WIDTH, layers=2).to(self.device, memory_format=torch.channels_last).train()
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, foreach=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")


def endless(loader: DataLoader) -> Iterator[list]:
    while True:
        yield from loader


def seconds(steps: dict[str, Step], count: int) -> dict[str, float]:
    """Seconds of a step by name; the best of interleaved rounds, each after steps that are not timed."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            for _ in range(WARM):
                step()
            best[name] = min(best[name], timed(step, count))
    return best


def timed(step: Step, count: int) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    synchronize()
    start = clock()
    for _ in range(count):
        step()
    synchronize()
    return (clock() - start) / count


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet10t")
    for option, default in (("batch-size", 32), ("side", 96), ("steps", 4), ("images", 192), ("workers", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    main(**vars(parser.parse_args()))
