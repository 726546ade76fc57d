"""Training step of a RetinaNet on SpineNet-49 beside torchvision's retinanet_resnet50_fpn_v2 of equal multiply-adds.

A pixel of the ResNet costs more, so that its canvas is an eighth narrower; both counts are printed. SpineNet runs as
its recipe has it (swish, stochastic depth). Arms take turns; the figures are medians.

Run alone on the machine: python -m benchmarks spinenet, or for a rehearsal BENCH_REPETITIONS=1 BENCH_SIDE=128.
"""

from __future__ import annotations

import os

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_detector import BATCH, PRECISIONS, REPETITIONS, Ours, Torchvisions, in_turns, made_batch
from tutelage.config import load_config
from tutelage.models.cost import count_parameters

SIDE = int(os.environ.get("BENCH_SIDE", "256"))
THEIR_WIDTH = SIDE - SIDE // 8


def multiply_adds(arm: Ours | Torchvisions) -> int:
    """Of one image's forward pass: the convolutions."""
    arm.model.eval()
    with FlopCounterMode(display=False) as counter:
        arm.infer()
    return int(counter.get_total_flops()) // 2 // BATCH


def main() -> None:
    """Prints rates and ratios."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = load_config("detection-spinenet49", [f"model.canvas=[{SIDE},{SIDE}]"]).model
    square, narrow = made_batch(generator, SIDE, SIDE), made_batch(generator, SIDE, THEIR_WIDTH)
    arms: dict[str, Ours | Torchvisions] = {f"SpineNet-49 {name}": Ours(square, name, config) for name in PRECISIONS}
    arms |= {f"torchvision R50-FPN {name}": Torchvisions(narrow, name) for name in PRECISIONS}
    print(f"{torch.get_num_threads()} threads, {SIDE} x {SIDE} px, theirs {SIDE} x {THEIR_WIDTH}, batch {BATCH}")
    counts = {name: multiply_adds(arm) for name, arm in arms.items()}
    print(f"medians of {REPETITIONS} repetitions")
    for arm in arms.values():
        arm.model.train()
    seconds = in_turns({name: arm.step for name, arm in arms.items()})
    for name, arm in arms.items():
        size = f"{counts[name] / 1e9:.2f} B multiply-adds, {count_parameters(arm.model) / 1e6:.1f} M parameters"
        print(f"step, {name} ({size}): {BATCH / seconds[name]:.2f} images/s")
    for name in PRECISIONS:
        mine, theirs = f"SpineNet-49 {name}", f"torchvision R50-FPN {name}"
        ratio = seconds[theirs] / seconds[mine]
        per_work = ratio * counts[mine] / counts[theirs]
        print(f"step, {name}: {ratio:.2f} times their rate of images, {per_work:.2f} times of multiply-adds")


if __name__ == "__main__":
    main()
