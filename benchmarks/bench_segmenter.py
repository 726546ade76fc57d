"""Segmentation beside segmentation_models_pytorch (FPN, DeepLabV3+) with the same timm backbone, and torchmetrics.

Training step, inference, labeling at the paper's six scales, and mIoU with what the intervals need of it. The networks
are not the same: ours puts its head at stride 4 of a pyramid of five levels, theirs have heads of half the width and
upsample logits to the pixels of the canvas before the loss. So multiply-adds stand beside the times, and a second arm
of ours is about as wide as their FPN. Peers run as shipped (float32, channels-first), and in bfloat16 besides. Arms
take turns; the figures are medians.

Run alone on the machine: python -m benchmarks segmenter, or for a rehearsal BENCH_REPETITIONS=1 BENCH_SIDE=64.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassJaccardIndex

from benchmarks.bench_detector import in_turns
from tutelage.config import EvalConfig, LabelConfig, ModelConfig, TrainConfig
from tutelage.engine.optim import build_optimizer
from tutelage.stats import bootstrap
from tutelage.tasks.metrics import Confusions, boundary_parts, confusion_of, count_mask
from tutelage.tasks.segmentation import SegmentationTask
from tutelage.types import IGNORE, Batch

SIDE = int(os.environ.get("BENCH_SIDE", "256"))
BATCH, CLASSES, BACKBONE = 4, 21, "resnet18"
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # arXiv:2006.06882, sec. 3.2
SGD = TrainConfig(optimizer="sgd", lr=0.001, lr_rule="fixed")
WIDE = ModelConfig(backbone=BACKBONE, canvas=(SIDE, SIDE), head_depth=3)  # head and pyramid of the paper, 256 channels
NARROW = WIDE.model_copy(update={"max_level": 5, "pyramid_width": 128, "head_width": 128, "head_depth": 1})
PEERS = {"smp FPN": smp.FPN, "smp DeepLabV3+": smp.DeepLabV3Plus}
TEST_IMAGES, TEST_SIDE, RESAMPLES = 40, 2 * SIDE, 1000


def made_batch(generator: torch.Generator) -> Batch:
    """Noise pictures, each with a coarse mask of which a tenth is without label."""
    images = torch.randint(256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(CLASSES, (BATCH, 1, SIDE // 16, SIDE // 16), generator=generator).float()
    masks = F.interpolate(coarse, size=(SIDE, SIDE)).squeeze(1)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = IGNORE
    whole = torch.full((BATCH, 1, 2), SIDE)
    matrix = torch.eye(3, dtype=torch.float64).expand(BATCH, 1, 3, 3)
    pixels = images.permute(0, 3, 1, 2)[:, None]
    return Batch(pixels, matrix, whole, torch.arange(BATCH), whole[:, 0], masks=masks.to(torch.uint8))


class Ours:
    """Our segmenter as the training loop and the label stage use it."""

    def __init__(self, batch: Batch, config: ModelConfig, precision: str) -> None:
        self.batch, self.precision = batch, precision
        self.task = SegmentationTask(config, EvalConfig(), tuple(map(str, range(CLASSES))))
        self.model = self.task.build_model().to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, SGD)

    def step(self) -> None:
        targets = self.task.assign(self.batch)
        with autocast(self.precision):
            outputs = self.model(self.batch.images[:, 0], self.batch.valid[:, 0])
            sums = self.task.loss_sums(outputs, self.batch, targets)
        (sums["pixel"] / self.task.normalizer(targets.num_positives)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        with autocast(self.precision):
            self.task.predict(self.model, self.batch)

    def label(self) -> None:
        with autocast(self.precision):
            self.task.predict(self.model, self.batch, LabelConfig(scales=SCALES))

    @torch.no_grad()
    def once(self) -> None:
        self.model(self.batch.images[:, 0], self.batch.valid[:, 0])


class Theirs:
    """A model of segmentation_models_pytorch with torch's loss, its pictures normalized beforehand."""

    def __init__(self, batch: Batch, kind: type[nn.Module], precision: str) -> None:
        self.precision = precision
        self.model = kind(f"tu-{BACKBONE}", encoder_weights=None, classes=CLASSES)
        self.images = (batch.images[:, 0].float() / 64 - 2).contiguous()
        assert batch.masks is not None
        self.masks = batch.masks.long()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)

    def step(self) -> None:
        with autocast(self.precision):
            loss = F.cross_entropy(self.model(self.images), self.masks, ignore_index=IGNORE)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        self.classified((1.0,))

    def label(self) -> None:
        self.classified(SCALES)

    @torch.inference_mode()
    def classified(self, scales: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Confidence and class of every pixel, probabilities averaged over the scales; sides are multiples of 32."""
        total = torch.zeros(1)
        with autocast(self.precision):
            for scale in scales:
                side = max(1, round(SIDE * scale / 32)) * 32
                seen = F.interpolate(self.images, size=(side, side), mode="bilinear") if scale != 1 else self.images
                logits = self.model(seen).float()
                back = F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear") if scale != 1 else logits
                total = total + back.softmax(dim=1)
            highest, label = total.div_(len(scales)).max(dim=1)
        return highest.mul(256).to(torch.uint8), label.to(torch.uint8)

    @torch.no_grad()
    def once(self) -> None:
        self.model(self.images)


Arm = Ours | Theirs


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def multiply_adds(run: Callable[[], None]) -> float:
    """Billions of one image."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 2e9 / BATCH


def show(what: str, seconds: dict[str, float]) -> None:
    for name, value in seconds.items():
        print(f"{what}, {name}: {BATCH / value:.2f} images/s")
    for mine in (name for name in seconds if name.startswith("ours")):
        ratios = (f"{peer} {seconds[peer] / seconds[mine]:.2f}" for peer in seconds if peer.startswith("smp"))
        print(f"{what}, {mine}, times as fast as: {', '.join(ratios)}")


def compare_networks() -> None:
    batch = made_batch(torch.Generator().manual_seed(0))
    arms: dict[str, Arm] = {}
    for precision in ("float32", "bfloat16"):
        arms |= {f"ours wide {precision}": Ours(batch, WIDE, precision)}
        arms |= {f"ours narrow {precision}": Ours(batch, NARROW, precision)}
        arms |= {f"{name} {precision}": Theirs(batch, kind, precision) for name, kind in PEERS.items()}
    for name, arm in arms.items():
        if arm.precision == "float32":
            parameters = sum(each.numel() for each in arm.model.parameters()) / 1e6
            print(f"{name}: {parameters:.1f} M parameters, {multiply_adds(arm.once):.2f} B multiply-adds an image")
    show("step", in_turns({name: arm.step for name, arm in arms.items()}))
    for arm in arms.values():
        arm.model.eval()
    show("inference", in_turns({name: arm.infer for name, arm in arms.items()}))
    show("labeling at six scales", in_turns({name: arm.label for name, arm in arms.items()}))


def made_masks(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and predictions in blocks of 16 pixels, as regions are larger than pixels."""
    coarse = (TEST_SIDE // 16, TEST_SIDE // 16)
    pairs = []
    for _ in range(TEST_IMAGES):
        truth = rng.integers(0, CLASSES, coarse).astype(np.uint8)
        found = np.where(rng.random(coarse) < 0.7, truth, rng.integers(0, CLASSES, coarse).astype(np.uint8))
        whole = [np.repeat(np.repeat(each, 16, axis=0), 16, axis=1) for each in (truth, found)]
        whole[0][rng.random(whole[0].shape) < 0.02] = IGNORE
        pairs.append((whole[0], whole[1]))
    return pairs


def compare_metrics() -> None:
    rng = np.random.default_rng(0)
    pairs = made_masks(rng)
    tensors = [(torch.from_numpy(found), torch.from_numpy(truth).long()) for truth, found in pairs]
    peer = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORE)

    def theirs() -> None:
        peer.reset()
        for found, truth in tensors:
            peer.update(found[None], truth[None])
        peer.compute()

    arms: dict[str, Callable[[], None]] = {
        "confusion": lambda: [confusion_of(*pair, CLASSES) for pair in pairs] and None,
        "boundary": lambda: [boundary_parts(*pair, CLASSES) for pair in pairs] and None,
        "torchmetrics": theirs,
    }
    seconds = in_turns(arms)
    tally = Confusions.of([count_mask(*pair, CLASSES) for pair in pairs], CLASSES)
    miou = tally.metrics([str(label) for label in range(CLASSES)])["miou"]
    assert abs(miou - float(peer.compute())) < 1e-5, f"mIoU {miou}, torchmetrics {float(peer.compute())}"
    weights = bootstrap(np.arange(TEST_IMAGES), RESAMPLES, rng).weights
    start = time.perf_counter()
    tally.resample(weights)
    resampled = time.perf_counter() - start
    print(f"mIoU of {TEST_IMAGES} images of {TEST_SIDE} px, {CLASSES} classes: the same as torchmetrics'")
    for name, value in seconds.items():
        print(f"{name}: {1000 * value / TEST_IMAGES:.2f} ms an image")
    print(f"confusion, times as fast as torchmetrics: {seconds['torchmetrics'] / seconds['confusion']:.1f}")
    print(f"{RESAMPLES} resamples of all figures: {1000 * resampled:.0f} ms")


def main() -> None:
    """Prints rates and ratios."""
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {BACKBONE}, {SIDE} px, batch {BATCH}, {CLASSES} classes")
    compare_networks()
    compare_metrics()


if __name__ == "__main__":
    main()
