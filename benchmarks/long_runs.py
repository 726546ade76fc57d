"""Resident memory and open files of a long training and of the labeling of a large pool, over time.

`python -m benchmarks.long_runs` trains a tiny network for 10 000 steps, then labels 100 000 images of 32 px with it;
both are processes of their own, looked at from outside. Not among `make bench`, for its length.
Aim: after a tenth of the way neither grows: less than 5 % of memory, no open file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil

from tutelage.data.demo import draw_scenes

SIDE, LABELED, ROWS, WARM = 32, 64, 20, 0.1
MOST_GROWTH = 0.05
NETWORK = (
    "model.backbone=test_resnet", "model.init=random", "model.canvas=[64,64]", "model.pyramid_width=16",
    "model.head_width=16", "model.head_depth=1", "runtime.device=cpu", "runtime.precision=float32", "runtime.threads=1",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """A process and its workers at one moment."""

    seconds: float
    done: int
    megabytes: float  # resident
    files: int  # open


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    given = parser.parse_args()
    options = (*NETWORK, f"runtime.workers={given.workers}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw_scenes(place / "labeled", images=LABELED, size=SIDE, seed=0)
        draw_pool(place / "pool", given.images)
        training = place / "trained"
        draw_scenes(place / "test", images=LABELED, size=SIDE, seed=1)
        labeled, test = (str(place / name / "scenes.json") for name in ("labeled", "test"))
        train = ["train", "--labeled", labeled, "--test", test, "--out", str(training), "--recipe", "detection-demo"]
        budget = ("train.batch_size=4", "train.passes=0", f"teacher.min_steps={given.steps}", "eval.resamples=20")
        log = f"runtime.log_every={max(1, given.steps // 100)}"
        show("training, steps", watched([*train, *options, *budget, log], lambda: steps_done(training)), given.steps)
        store = place / "store"
        label = ["label", str(training / "model"), "--unlabeled", str(place / "pool"), "--out", str(store)]
        parts = ("label.part_size=256", "label.views=[identity]")
        show("labeling, images", watched([*label, *options, *parts], lambda: images_done(store)), given.images)


def draw_pool(folder: Path, images: int) -> None:
    """Small pictures, 1000 a folder."""
    rng = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"{number // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number:06d}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def steps_done(folder: Path) -> int:
    lines = [line for log in folder.glob("stages/*/log.jsonl") for line in log.read_text().splitlines()]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def images_done(folder: Path) -> int:
    return 256 * len(list(folder.glob("part-*.images.parquet")))


def watched(arguments: Sequence[str], done: Callable[[], int]) -> list[Look]:
    """Looks at a command, about one a second, from its first progress to its end."""
    looks, started = [], time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "tutelage", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if count := done():
            looks.append(look_at(psutil.Process(process.pid), time.monotonic() - started, count))
        time.sleep(0.2 if len(looks) < ROWS else 1.0)
    if process.returncode:
        sys.exit(f"tutelage {arguments[0]} ended with code {process.returncode}.")
    return looks


def look_at(process: psutil.Process, seconds: float, done: int) -> Look:
    family = [process, *process.children(recursive=True)]
    resident = sum(one.memory_info().rss for one in family)
    return Look(seconds, done, resident / 2**20, sum(one.num_fds() for one in family))


def show(title: str, looks: Sequence[Look], total: int) -> None:
    """A table of the looks, evenly over the way, and what became more after the warm-up."""
    print(f"{title:<20} {'seconds':>8} {'resident MB':>12} {'open files':>11}")
    for at in np.linspace(0, len(looks) - 1, min(ROWS, len(looks))).astype(int):
        look = looks[at]
        print(f"{min(look.done, total):<20} {look.seconds:>8.0f} {look.megabytes:>12.1f} {look.files:>11}")
    warm = [look for look in looks if look.done >= WARM * total and look.done < total]
    third = max(1, len(warm) // 3)
    first, last = warm[:third], warm[-third:]
    memory = [float(np.median([look.megabytes for look in part])) for part in (first, last)]
    files = [float(np.median([look.files for look in part])) for part in (first, last)]
    growth = memory[1] / memory[0] - 1
    flat = growth < MOST_GROWTH and files[1] <= files[0]
    print(f"first to last third after the warm-up: memory {growth:+.1%}, files {files[1] - files[0]:+.0f}: "
          f"{'flat' if flat else 'NOT FLAT'}\n")  # fmt: skip


if __name__ == "__main__":
    main()
