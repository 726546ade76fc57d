"""The costs of all stages as a table for people and as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tutelage.config import RunConfig
from tutelage.types import InputError
from tutelage.workflows.costing.images import Images, count_images, pretrains
from tutelage.workflows.costing.speed import measured_speed
from tutelage.workflows.costing.stages import Stage, stages_of

ADDED = ("images_seen", "training_flops", "hours")  # over the stages; of the others the total is the largest
COUNTS = {1e9: "B", 1e6: "M", 1e3: "K", 1: ""}
SIZES = {1e12: "TB", 1e9: "GB", 1e6: "MB", 1e3: "KB"}
SELF_TRAINING = ("teacher", "label", "label-again", "student")


@dataclass(frozen=True)
class Costs:
    """What the stages of a run cost."""

    stages: Sequence[Stage]
    images: Images
    rounds: int
    speed: float | None  # FLOP/s of all devices together; None where nobody knows

    @property
    def ratio(self) -> float | None:
        """One self-training (teacher, and in each round labeling and student) over the teacher alone, in FLOPs."""
        flops = {
            stage.name: min(stage.times, self.rounds) * stage.flops / stage.times  # the others are of other repeats
            for stage in self.stages
            if stage.name in SELF_TRAINING
        }
        return sum(flops.values()) / flops["teacher"] if "student" in flops else None

    def as_dict(self) -> dict[str, Any]:
        """Figures by name and stage, with a total."""
        figures: dict[str, dict[str, Any]] = {
            "parameters": {stage.name: stage.parameters for stage in self.stages},
            "multiply_adds": {stage.name: stage.multiply_adds for stage in self.stages},
            "images_seen": {stage.name: stage.images_seen for stage in self.stages},
            "training_flops": {stage.name: stage.flops for stage in self.stages},
            "memory_bytes": {stage.name: stage.memory_bytes for stage in self.stages},
            "hours": {stage.name: self._hours(stage.flops) for stage in self.stages},
        }
        for name, by_stage in figures.items():
            known = [value for value in by_stage.values() if value is not None]
            by_stage["total"] = (sum if name in ADDED else max)(known) if known else None
        images = {"labeled": self.images.labeled, "pool": self.images.pool, "origin": self.images.origin}
        return {**figures, "ratio": self.ratio, "num_images": images, "flops_per_second": self.speed}

    def table(self) -> Table:
        """The same to be printed."""
        table = Table(box=None)
        table.add_column("stage", no_wrap=True)
        for column in ("times", "weights", "mult-adds", "images", "FLOPs", "memory", "hours"):
            table.add_column(column, justify="right", no_wrap=True)
        figures = self.as_dict()
        for name, times in [*((stage.name, str(stage.times)) for stage in self.stages), ("total", "")]:
            hours = figures["hours"][name]
            table.add_row(
                name,
                times,
                scaled(figures["parameters"][name], COUNTS),
                scaled(figures["multiply_adds"][name], COUNTS),
                scaled(figures["images_seen"][name], COUNTS),
                f"{figures['training_flops'][name]:.2e}",
                scaled(figures["memory_bytes"][name], SIZES),
                "?" if hours is None else f"{hours:,.{2 if hours < 100 else 0}f}",
            )
        return table

    def lines(self) -> list[str]:
        """What the table leaves open, a sentence each."""
        images = self.images
        said = [
            f"Images: {images.labeled:,} labeled, {images.pool:,} in the pool ({images.origin}).",
            "Memory: of one device, at runtime.devices and runtime.device_batch_size, without the allocator's rest.",
        ]
        if self.ratio is not None:
            said.append(
                f"Self-training (teacher, labeling, student) costs {self.ratio:.1f} x supervised training alone "
                "(teacher) here."
            )
        if self.speed is None:
            said.append("This machine cannot run the network: for hours give --flops, what a device sustains.")
        else:
            said.append(f"Hours are at {self.speed:.2e} FLOP/s, data loading left out.")
        return said

    def _hours(self, flops: int) -> float | None:
        return None if self.speed is None else flops / self.speed / 3600


def costs_of(config: RunConfig, *, flops: float = 0.0, labeled: int = 0, pool: int = 0) -> Costs:
    """What a recipe costs.

    Args:
        config: the recipe.
        flops: sustained FLOP/s of a device; measured on this machine when 0.
        labeled: number of labeled images; counted in `sources`, else the paper's when 0.
        pool: the same of the pool.

    Raises:
        InputError: sources that cannot be read, numbers that cannot be, an unknown backbone, a canvas that cannot be.
    """
    if not 0 <= flops < math.inf:
        raise InputError(
            f"--flops: found {flops}; what a device sustains in a second is allowed, 3e14 for example, or 0 to have it "
            "measured. Change it."
        )
    images = count_images(config, labeled, pool)
    stages = stages_of(config, images)
    speed = flops or measured_speed(config)
    rounds = config.pretrain.noisy_student.rounds if pretrains(config) else config.rounds
    return Costs(stages, images, rounds, None if speed is None else speed * config.runtime.devices)


def scaled(value: float, units: Mapping[float, str]) -> str:
    """A number in the largest of `units` (name by factor, largest first) that it reaches, else in the last."""
    factor = next((factor for factor in units if value >= factor), min(units))
    return f"{value / factor:,.{1 if factor > 1 else 0}f} {units[factor]}".rstrip()
