"""Training steps compiled by torch (`runtime.compile=true`) beside the same steps as they are, in bfloat16.

Steps are those of the training loop: targets, forward pass and losses in one wrapped call, backward, optimizer. The
seconds of the first compiled step, in which the compiler works, stand beside what each later one saves. Arms take
turns; the figures are medians.

Run alone on the machine: python -m benchmarks compile, or for a rehearsal BENCH_REPETITIONS=1.
"""

from __future__ import annotations

import torch

from benchmarks import bench_detector, bench_segmenter
from benchmarks.bench_detector import in_turns, timed
from tutelage.config import ModelConfig, load_config
from tutelage.engine.objectives import Supervised
from tutelage.engine.optim import build_optimizer
from tutelage.types import Batch

SIDE = bench_detector.SIDE


class Step:
    """A step of supervised training on one batch."""

    def __init__(self, ours: bench_detector.Ours | bench_segmenter.Ours, compiled: bool) -> None:
        self.batches = {"labeled": ours.batch}
        self.objective = Supervised(ours.task, ours.model, "mask")
        self.optimizer = build_optimizer(ours.model, bench_detector.SGD)
        if compiled:
            self.objective.compile()

    def __call__(self) -> None:
        targets = self.objective.prepare(self.batches)
        counts = self.objective.counts(targets)
        with torch.autocast("cpu", torch.bfloat16):
            sums = self.objective(self.batches, targets)
        self.objective.total(sums, counts).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def detector(model: ModelConfig, batch: Batch, compiled: bool) -> Step:
    config = model.model_copy(update={"canvas": (SIDE, SIDE)})
    return Step(bench_detector.Ours(batch, "bfloat16", config), compiled)


def segmenter(batch: Batch, compiled: bool) -> Step:
    return Step(bench_segmenter.Ours(batch, bench_segmenter.NARROW, "bfloat16"), compiled)


def compare(what: str, arms: dict[str, Step]) -> None:
    first = {name: timed(step) for name, step in arms.items()}
    seconds = in_turns(dict(arms))
    plain, compiled = seconds["plain"], seconds["compiled"]
    print(
        f"{what}: a step {1000 * plain:.0f} ms, compiled {1000 * compiled:.0f} ms, {plain / compiled:.2f} times; "
        f"the first compiled one {first['compiled']:.0f} s"
    )


def main() -> None:
    """Prints times and ratios."""
    torch.manual_seed(0)
    boxes = bench_detector.made_batch(torch.Generator().manual_seed(0))
    masks = bench_segmenter.made_batch(torch.Generator().manual_seed(0))
    tiny = load_config("detection-tiny").model
    ways = {"plain": False, "compiled": True}
    print(f"{torch.get_num_threads()} threads, batches of 4")
    compare(f"test_resnet detector, {SIDE} px", {name: detector(tiny, boxes, way) for name, way in ways.items()})
    compare(
        f"R50-RetinaNet, {SIDE} px",
        {name: detector(bench_detector.R50, boxes, way) for name, way in ways.items()},
    )
    compare(
        f"resnet18 segmenter, {bench_segmenter.SIDE} px", {name: segmenter(masks, way) for name, way in ways.items()}
    )


if __name__ == "__main__":
    main()
