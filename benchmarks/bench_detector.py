"""Training step and inference of R50-RetinaNet at 320 px, batch 4, beside torchvision's retinanet_resnet50_fpn_v2.

Aims on two cores: a step of our default (bfloat16, channels-last) at least 2 times torchvision's as shipped (float32);
at equal precision at least 1.1 times; all that is not the network's own forward and backward at most 10 % of the step;
inference at least 1.15 times in bfloat16 and 1.05 in float32. Arms take turns; the figures are medians.

Run alone on the machine: python -m benchmarks detector, or for a rehearsal BENCH_REPETITIONS=1.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from tutelage.config import ModelConfig, PostprocessConfig, TrainConfig
from tutelage.engine.optim import build_optimizer
from tutelage.tasks.detection import DetectionTask
from tutelage.types import Batch, PaddedBoxes

SIDE, BATCH, BOXES, CLASSES = 320, 4, 8, 91
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "7"))
SPREAD = 0.5  # of the class logits, so that about 0.05 % of them pass the score floor and suppression has work
PRECISIONS = ("float32", "bfloat16")
SGD = TrainConfig(optimizer="sgd", lr=0.001, lr_rule="fixed")
R50 = ModelConfig(backbone="resnet50", canvas=(SIDE, SIDE))


def made_batch(generator: torch.Generator, height: int = SIDE, width: int = SIDE) -> Batch:
    """Noise pictures, each with eight boxes."""
    images = torch.randint(256, (BATCH, height, width, 3), dtype=torch.uint8, generator=generator)
    sides = torch.tensor([width, height])
    corner = torch.rand(BATCH, BOXES, 2, generator=generator) * sides * 0.6
    size = 10 + torch.rand(BATCH, BOXES, 2, generator=generator) * sides * 0.3
    full = (BATCH, BOXES)
    boxes = PaddedBoxes(
        torch.cat([corner, corner + size], dim=-1),
        torch.randint(1, CLASSES, full, generator=generator),
        torch.ones(full),
        torch.zeros(full, dtype=torch.uint8),
        torch.ones(full, dtype=torch.bool),
    )
    whole = torch.tensor([height, width]).expand(BATCH, 1, 2)
    matrix = torch.eye(3, dtype=torch.float64).expand(BATCH, 1, 3, 3)
    return Batch(images.permute(0, 3, 1, 2)[:, None], matrix, whole, torch.arange(BATCH), whole[:, 0], boxes)


class Ours:
    """Our detector as the training loop uses it."""

    def __init__(self, batch: Batch, precision: str, config: ModelConfig = R50) -> None:
        self.batch, self.precision = batch, precision
        self.task = DetectionTask(config, PostprocessConfig(), tuple(map(str, range(CLASSES))))
        self.model = self.task.build_model().to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, SGD)
        spread_logits(self.model.head.class_predictor, lambda: self.model(batch.images[:, 0], batch.valid[:, 0]).logits)

    def step(self) -> None:
        targets = self.task.assign(self.batch, "mask")
        with self.autocast():
            outputs = self.model(self.batch.images[:, 0], self.batch.valid[:, 0])
            sums = self.task.loss_sums(outputs, self.batch, targets)
        (torch.stack(list(sums.values())).sum() / (targets.num_positives + 1)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self) -> dict[str, float]:
        """Seconds of a step's parts, the network's forward and backward apart from the rest."""
        clock = Clock()
        targets = self.task.assign(self.batch, "mask")
        clock.lap("targets")
        with self.autocast():
            normalized = self.model.normalize(self.batch.images[:, 0], self.batch.valid[:, 0])
            clock.lap("normalize")
            outputs = self.model.raw(normalized)
            clock.lap("network")
            leaves = type(outputs)(*(each.detach().requires_grad_() for each in outputs))
            sums = self.task.loss_sums(leaves, self.batch, targets)
        (torch.stack(list(sums.values())).sum() / (targets.num_positives + 1)).backward()
        clock.lap("losses")
        torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])
        clock.lap("network")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap("optimizer")
        return clock.seconds

    def infer(self) -> None:
        with self.autocast():
            self.task.predict(self.model, self.batch)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


class Torchvisions:
    """torchvision's detector as shipped, but for the size that it resizes to."""

    def __init__(self, batch: Batch, precision: str) -> None:
        self.precision = precision
        sides = batch.images.shape[-2:]
        self.model = retinanet_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=CLASSES, min_size=min(sides), max_size=max(sides)
        )
        self.images = [image.float() / 255 for image in batch.images[:, 0].contiguous()]
        assert batch.boxes is not None
        self.targets = [
            {"boxes": boxes, "labels": labels}
            for boxes, labels in zip(batch.boxes.xyxy, batch.boxes.labels, strict=True)
        ]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)
        head = self.model.head.classification_head
        spread_logits(head.cls_logits, lambda: head(self.features()))

    def features(self) -> list[Tensor]:
        return list(self.model.backbone(self.model.transform(self.images)[0].tensors).values())

    def step(self) -> None:
        with self.autocast():
            losses = self.model(self.images, self.targets)
        sum(losses.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        with self.autocast(), torch.inference_mode():
            self.model(self.images)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


class Clock:
    """Seconds between laps, added up by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


@torch.no_grad()
def spread_logits(predictor: nn.Conv2d, logits: Callable[[], Tensor]) -> None:
    """Scales a class predictor's weights until its logits have the standard deviation `SPREAD`."""
    predictor.weight.mul_(SPREAD / logits().std())


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(arms: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each arm, after a warm-up run, the arms taking turns."""
    for run in arms.values():
        run()
    seconds = [{name: timed(run) for name, run in arms.items()} for _ in range(REPETITIONS)]
    return {name: statistics.median(each[name] for each in seconds) for name in arms}


def show(what: str, seconds: dict[str, float], aims: list[tuple[str, str, float]]) -> None:
    for name, value in seconds.items():
        print(f"{what}, {name}: {BATCH / value:.2f} images/s")
    for mine, peer, aim in aims:
        print(f"{what}, {mine} over {peer}: {seconds[peer] / seconds[mine]:.2f} times (aim: at least {aim})")


def show_parts(model: Ours) -> None:
    laps = [model.parts() for _ in range(REPETITIONS)]
    parts = {name: statistics.median(each[name] for each in laps) for name in laps[0]}
    whole = sum(parts.values())
    rest = ", ".join(f"{name} {value / whole:.1%}" for name, value in parts.items() if name != "network")
    print(f"step, share outside the network: {1 - parts['network'] / whole:.1%} (aim: at most 10 %): {rest}")


def main() -> None:
    """Prints rates and ratios."""
    torch.manual_seed(0)
    batch = made_batch(torch.Generator().manual_seed(0))
    ours = {precision: Ours(batch, precision) for precision in PRECISIONS}
    theirs = {precision: Torchvisions(batch, precision) for precision in PRECISIONS}
    arms: dict[str, Ours | Torchvisions] = {f"ours {name}": each for name, each in ours.items()}
    arms |= {f"torchvision {name}": each for name, each in theirs.items()}
    print(f"{torch.get_num_threads()} threads, {SIDE} px, batch {BATCH}, {REPETITIONS} repetitions")
    steps = in_turns({name: each.step for name, each in arms.items()})
    same = [(f"ours {name}", f"torchvision {name}") for name in PRECISIONS]
    show("step", steps, [("ours bfloat16", "torchvision float32", 2.0), *((*pair, 1.1) for pair in same)])
    for name, model in ours.items():
        print(f"{name}: ", end="")
        show_parts(model)
    for each in (*ours.values(), *theirs.values()):
        each.model.eval()
    passes = in_turns({name: each.infer for name, each in arms.items()})
    show("inference", passes, [(*same[0], 1.05), (*same[1], 1.15)])


if __name__ == "__main__":
    main()
