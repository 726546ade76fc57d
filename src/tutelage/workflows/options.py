"""From what a user typed to a resolved config: the default recipe, the sources, the overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tutelage.config import RunConfig, load_config
from tutelage.tasks.table import TASKS
from tutelage.types import InputError

SINGLE = ("labeled_list", "images", "teacher", "pseudo", "verdicts", "stages")  # sources that are one path
Paths = str | Path | Iterable[str | Path]


def paths(given: Paths) -> list[str]:
    """One path or several, as a list of strings."""
    return [str(given)] if isinstance(given, str | Path) else [str(path) for path in given]


def default_recipe(task: str) -> str:
    """The recipe taken when none is named: the small one, or ResNet-50 on a GPU."""
    return f"{task}-r50" if torch.cuda.is_available() else f"{task}-small"


def resolve(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str],
    sources: Mapping[str, Paths],
    *,
    task: str = "",
    seed: int | None = None,
    device: str = "",
    devices: int = 0,
) -> RunConfig:
    """The config of a run.

    Args:
        recipe: name, file or plain data; empty takes the default of the task (detection unless named) and device.
        overrides: `key=value`, stronger than all else.
        sources: fields of the config's `sources`; empty ones keep the recipe's.
        task: what a label means; the recipe's when empty.
        seed: replaces the recipe's.
        device: replaces the recipe's.
        devices: replaces the recipe's.

    Raises:
        InputError: an empty path; an unknown task, or another than the recipe's; an unknown key or value.
    """
    given: dict[str, Any] = {name: str(value) if name in SINGLE else paths(value) for name, value in sources.items()}
    for name, value in given.items():
        if "" in value and isinstance(value, list):
            raise InputError(f"--{name}: found an empty path; it must name a file or folder. Is a variable not set?")
    parts: dict[str, Any] = {"sources": {name: value for name, value in given.items() if value}}
    runtime = {"device": device, "devices": devices}
    parts["runtime"] = {name: value for name, value in runtime.items() if value}
    if seed is not None:
        parts["seed"] = seed
    if task and task not in TASKS:
        raise InputError(f"--task: unknown task {task!r}; choose one of {', '.join(TASKS)}.")
    config = load_config(recipe or default_recipe(task or "detection"), overrides, **parts)
    if task and config.task != task:
        raise InputError(f"--task {task}: the recipe is for {config.task}. Leave --task out, or take another recipe.")
    return config


def require_sources(config: RunConfig, *names: str) -> None:
    """Refuses a run that lacks data it cannot do without (`InputError`)."""
    for name in names:
        if not getattr(config.sources, name):
            raise InputError(f"--{name}: was not given; this command needs it. Add --{name} PATH.")
