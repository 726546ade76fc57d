"""Starts commands, kills them, starts them again; compares what they leave with what a command never killed leaves."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file

from tests.torture import child
from tests.torture.child import Kill

ROOT = Path(__file__).parents[2]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.torture.child"])
LONGEST = 300.0  # seconds of one start
OWN_PACE = {"seconds", "train_seconds", "images_per_second"}
OWN_STORY = {"resumed_from", "command", "roots"}  # where a training continued; how it was called, and on what place
STREAMS = ("tensorboard", "log.jsonl")  # written line by line, not whole


@dataclass
class Command:
    """A command that is started until it ends."""

    arguments: list[str]
    out: Path
    cache: Path
    output: Path
    kills: int = 0
    group: int = 0  # of the last start's processes
    codes: list[int] = field(default_factory=list)

    def start(
        self, kill: Kill | None = None, *, more: Sequence[str] = (), seconds: float = LONGEST, cold: bool = False
    ) -> int:
        """Exit code of one start, negative for a signal; after `seconds` its process group is killed.

        Args:
            kill: where it is killed before.
            more: further arguments.
            seconds: when it is killed at the latest.
            cold: in a new interpreter (seconds), which the processes that it spawns need to be watched.
        """
        environment = {"TUTELAGE_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        arguments = [*self.arguments, *more]
        code = (self._start_cold if cold else self._start_warm)(arguments, environment, kill, seconds)
        self.codes.append(code)
        self.kills += code == -signal.SIGKILL
        return code

    def _start_warm(self, arguments: list[str], environment: dict[str, str], kill: Kill | None, seconds: float) -> int:
        process = SERVER.Process(target=child.run, args=(arguments, environment, kill, self.output))
        process.start()
        self.group = process.pid or 0
        process.join(seconds)
        if process.is_alive():
            _kill_group(self.group)
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    def _start_cold(self, arguments: list[str], environment: dict[str, str], kill: Kill | None, seconds: float) -> int:
        environment = {**os.environ, **environment, **child.variables(kill)}
        command = [sys.executable, "-m", "tests.torture.child", *arguments]
        with self.output.open("a") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        self.group = process.pid
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            _kill_group(self.group)
            return process.wait()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:  # it has not left our group yet
        os.kill(leader, signal.SIGKILL)


def draw_kill(rng: np.random.Generator, out: Path) -> Kill:
    """A point a little further on than where the last start ended."""
    event = str(rng.choice(["rename", "step", "part", "read", "figure"], p=[0.45, 0.2, 0.1, 0.2, 0.05]))
    reach = {"rename": 12, "step": 5, "part": 2, "read": 8, "figure": 4}[event]
    return Kill(event, int(rng.integers(1, reach + 1)), str(rng.choice(["before", "after"])), below=str(out))


def assert_whole(folder: Path, reference: Path) -> None:
    """Every file under a final name is whole, and every finished stage is that of the reference."""
    for path in files_of(folder):
        if not path.name.startswith(".tmp-"):
            _read_whole(path)
    for record in folder.glob("stages/*/run.json"):
        assert_equal(record.parent, reference / record.parent.relative_to(folder))


def _read_whole(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".parquet":
        pq.read_table(path)
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            assert all(arrays[name] is not None for name in arrays)
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text())["student"]
    else:
        assert path.name == "README.md" and path.read_text().endswith("\n"), path


def assert_equal(folder: Path, reference: Path) -> None:
    """Both folders hold the same files, byte for byte but for times, speeds and the story of the starts."""
    names, expected = ({str(path.relative_to(one)) for path in files_of(one)} for one in (folder, reference))
    checkpoints = {name for name in names if name.startswith("checkpoint/")}  # goes right after the record is written
    assert names - checkpoints == expected
    for name in sorted(expected):
        assert content_of(folder / name) == content_of(reference / name), name
    assert log_of(folder) == log_of(reference)


def files_of(folder: Path) -> Iterator[Path]:
    """All files but the streams."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not {*path.relative_to(folder).parts} & {*STREAMS}:
            yield path


def content_of(path: Path) -> Any:
    """Bytes of a file; of a record its values without times, speeds and the story of the starts; nothing of a page.

    A page shows the command and the seconds; a config is compared without `runtime`, which no result depends on.
    """
    if path.name == "run.json":
        return _without(json.loads(path.read_text()), OWN_PACE | OWN_STORY)
    if path.name == "config.yaml":
        return {name: part for name, part in yaml.safe_load(path.read_text()).items() if name != "runtime"}
    return None if path.name == "report.html" else path.read_bytes()


def log_of(folder: Path) -> dict[str, list[Any]]:
    """The lines of every log, without speeds."""
    return {
        str(path.relative_to(folder)): [_without(json.loads(line), OWN_PACE) for line in path.read_text().splitlines()]
        for path in sorted(folder.rglob("log.jsonl"))
    }


def leftovers(*folders: Path) -> list[Path]:
    """Temporary files and folders."""
    return [path for folder in folders for path in folder.rglob(".*") if path.name.startswith((".tmp", "."))]


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, keys) for name, inner in value.items() if name not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value
