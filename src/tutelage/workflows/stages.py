"""The stages of a run folder: what is finished is taken, what is not is made.

`OUT/stages/NAME-HASH8/run.json` is written last and proves a stage. The hash covers the config parts, data and upstream
stages that the result depends on, never devices, workers or paths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tutelage.config import NO_RESULT, RunConfig, changed_keys, config_hash, load_config
from tutelage.engine.checkpoint import remove_checkpoint
from tutelage.engine.runtime import Runtime
from tutelage.files import TEMPORARY, make_folder, read_json, remove_stale, unfinished, write_json, write_text
from tutelage.models.init import model_folder
from tutelage.types import InputError
from tutelage.workflows.precision import with_precision

OWN_FILES = ("run.json", "report.html", "model", "export", "stages", "data.json", "config.yaml")
"""Of a run, in the order in which they go: what proves others whole first, what proves the folder a run last."""
PROOFS = ("run.json", "manifest.json")
REVIEWS = "review"  # folder of a run in which people's verdicts are; no run replaces it
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Stage:
    """One step of a run: a training, a labeling or an evaluation."""

    name: str
    hash: str
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the stage's record, its last file, exists."""
        return (self.folder / "run.json").is_file()

    @property
    def model_folder(self) -> Path:
        """Where the stage's model lies: in `model/`, or in the folder itself where a bare model was given."""
        return model_folder(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        """The stage's `run.json`."""
        record: dict[str, Any] = read_json(self.folder / "run.json")
        return record


@dataclass(frozen=True)
class Place:
    """Where stages are made: side by side in a `stages` folder, or one alone in a folder of its own.

    `own_files` are the patterns of the files that a stage alone writes; empty for a `stages` folder.
    """

    folder: Path
    own_files: tuple[str, ...] = ()

    def prepare(self, *, overwrite: bool) -> None:
        """Sees that the folder of a stage alone holds nothing else, and with `overwrite` empties it of its own files.

        Raises:
            InputError: it holds other files, which are never deleted.
        """
        own = {path for pattern in self.own_files for path in self.folder.glob(pattern)}
        foreign = sorted(path.name for path in self.folder.glob("*") if path not in {*own, self.folder / REVIEWS})
        if foreign:
            raise InputError(
                f"{self.folder}: holds other files ({', '.join(foreign[:5])}); a new folder, or one of an earlier "
                "call of the same command, is allowed. Choose another --out."
            )
        if overwrite and own:
            _remove(self.folder, sorted(own, key=lambda path: path.name not in PROOFS))

    def stage(self, name: str, key: Mapping[str, Any]) -> Stage:
        """The stage of that name and key.

        Raises:
            InputError: the folder of a stage alone holds something else.
        """
        digest = config_hash(key)
        if not self.own_files:
            return Stage(name, digest, self.folder / f"{name}-{digest[:8]}")
        stage = Stage(name, digest, self.folder)
        if stage.finished and stage.record.get("hash") != digest:
            raise InputError(
                f"{self.folder}: holds the result of another {stage.record.get('name', 'run')} (model, data or options "
                "differ). Choose another --out, or replace it with --overwrite."
            )
        return stage


def run_stage(
    place: Place, name: str, key: Mapping[str, Any], runtime: Runtime, work: Callable[[Stage], dict[str, Any]]
) -> Stage:
    """The finished stage `name`: taken if its record exists, else made by `work`.

    A training's checkpoint goes only when the record is there, so that a kill never costs a whole training.

    Args:
        place: where it is looked for and made.
        name: what the stage is in this run, for example `student-1`.
        key: all that the result depends on, as plain values.
        runtime: devices; every process runs `work`, the main one writes the record.
        work: makes the result in `stage.folder` and returns what the record says of it.
    """
    stage = place.stage(name, key)
    if runtime.is_main:
        remove_stale(stage.folder.rglob(TEMPORARY))
    if runtime.broadcast(stage.finished):
        if runtime.is_main:
            console.print(f"[bold]{name}[/]: finished earlier, taken from {stage.folder}")
            remove_checkpoint(stage.folder)
        return stage
    if runtime.is_main:
        make_folder(stage.folder)
        console.print(f"[bold]{name}[/] in {stage.folder}")
    runtime.barrier()
    started = time.perf_counter()
    record = work(stage)
    if runtime.is_main:
        seconds = round(time.perf_counter() - started, 2)
        head = {"name": name, "hash": stage.hash, "key": dict(key), "seconds": seconds}
        write_json(stage.folder / "run.json", {**head, **record})
        remove_checkpoint(stage.folder)
    runtime.barrier()
    return stage


def given_model(name: str, folder: Path) -> Stage:
    """A model made elsewhere (a run, a stage or a model folder) in the place of the stage `name`."""
    stage = Stage(name, "", folder)
    weights = stage.model_folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder}: holds no model (no model.safetensors). Give a run, stage or model folder.")
    return replace(stage, hash=hashlib.sha256(weights.read_bytes()).hexdigest())


def given_store(name: str, folder: Path) -> Stage:
    """A finished pseudo-label store in the place of the stage `name`."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise InputError(f"{folder}: holds no finished pseudo-label store (no manifest.json). Run tutelage label.")
    return Stage(name, hashlib.sha256(manifest.read_bytes()).hexdigest(), folder)


def open_run(out: Path, config: RunConfig, overrides: Sequence[str], *, overwrite: bool, resume: bool) -> RunConfig:
    """The config that the run folder `out` goes by: the given one, or with `resume` the folder's own.

    With `resume`, sources and overrides of `runtime.*` and `guard` that were given replace the folder's.

    Raises:
        InputError: the folder holds another run (the keys that differ are listed) or foreign files, there is nothing
            to resume, or `resume` comes with options that it would not take.
    """
    saved = out / "config.yaml"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; a run needs a folder. Choose another --out.")
    remove_stale(out.rglob(TEMPORARY) if _is_run(out) else out.glob(TEMPORARY))
    if resume:
        if not saved.is_file():
            raise InputError(f"{out}: holds no run to resume (no config.yaml). Leave --resume out to start one.")
        ignored = [one for one in overrides if not one.startswith(("runtime.", "guard="))] + ["--overwrite"] * overwrite
        if ignored:
            raise InputError(
                f"--resume: takes the config from {saved}; {', '.join(ignored)} would not be taken. Leave out either."
            )
        kept = load_config(saved, overrides)
        given = {name: value for name, value in config.sources if value}
        return kept.model_copy(update={"sources": kept.sources.model_copy(update=given)})
    if overwrite and _is_run(out):
        remove_run(out)
    kept_apart = {saved, out / REVIEWS}
    if saved.is_file() and set(out.iterdir()) - kept_apart:  # alone, it was refused before it began
        differing = changed_keys(load_config(saved), config)
        if differing:
            raise InputError(
                f"{out}: holds a run with another config ({'; '.join(differing)}). "
                "Choose another --out, continue that run with --resume, or replace it with --overwrite."
            )
        return _in_its_precision(config, load_config(saved))
    if out.is_dir() and set(out.iterdir()) - kept_apart:
        raise InputError(f"{out}: is not empty and holds no run of Tutelage. Choose another --out.")
    config = with_precision(config)
    make_folder(out)
    write_text(saved, config.to_yaml())
    return config


def _in_its_precision(config: RunConfig, saved: RunConfig) -> RunConfig:
    """The config with the precision that the run was begun in, unless another one was asked for."""
    if config.runtime.precision != "auto":
        return config
    return config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"precision": saved.runtime.precision})}
    )


def pin_data(out: Path, fingerprints: Mapping[str, str]) -> None:
    """Remembers what data and given stages a run was started with; others in the same folder are an `InputError`."""
    pinned = out / "data.json"
    if not pinned.is_file():
        write_json(pinned, dict(fingerprints))
        return
    before: dict[str, str] = read_json(pinned)
    changed = [name for name in {**before, **fingerprints} if before.get(name) != fingerprints.get(name)]
    if changed:
        raise InputError(
            f"{out}: was started with other data for {', '.join(changed)} (files, sizes or content differ). "
            "Choose another --out, or replace the run with --overwrite."
        )


def _is_run(out: Path) -> bool:
    """Whether the folder's config.yaml is that of a run: projects of others may have files of these names too."""
    saved = out / "config.yaml"
    parts = (
        {line.partition(":")[0] for line in saved.read_text("utf-8", "replace").splitlines()} if saved.is_file() else ()
    )
    return {"sources", "runtime", "student"} <= set(parts)


def remove_run(out: Path) -> None:
    """Deletes the files of a run, and nothing else, from its folder."""
    _remove(out, [out / name for name in OWN_FILES if (out / name).exists()])


def _remove(folder: Path, entries: Sequence[Path]) -> None:
    """Deletes entries of `folder`, each at once and in this order: a kill leaves none of them half."""
    with unfinished(folder / "removed", folder=True) as aside:
        for entry in entries:
            os.replace(entry, aside / entry.name)


def provenance(config: RunConfig) -> dict[str, Any]:
    """What it takes to make a run again: command, versions, machine, config hash, seed."""
    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": importlib.metadata.version("tutelage"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "machine": _machine(config),
        "config_hash": result_hash(config),
        "seed": config.seed,
    }


def _machine(config: RunConfig) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    own = {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {**own, "gpu": gpu, "device": config.runtime.device, "devices": config.runtime.devices}


def result_hash(config: RunConfig) -> str:
    """Hash of all options that change a result."""
    return config_hash(config.model_dump(mode="json", exclude=set(NO_RESULT)))


def figure_lines(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """Figures in points, one a line, with their intervals where there are any; undefined ones read n/a."""
    lines = []
    for name, value in metrics.items():
        if name == "per_class":
            continue
        text = "n/a" if value is None else f"{100 * value:.1f}"
        if name in intervals:
            text += f" [{100 * intervals[name]['low']:.1f}, {100 * intervals[name]['high']:.1f}]"
        lines.append(f"  {name:<10} {text}")
    return "\n".join(lines)
