"""A `tutelage` command that is killed at a drawn point: `KILL='{...}' python -m tests.torture.child fit ...`.

Production code holds no hook: renames, optimizer steps, parts and reads are watched from here. Processes that the
command spawns import this module as their main one and are watched as well; forked ones inherit the watch.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import safetensors.torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage.workflows.fit
from tutelage.cli import main
from tutelage.data.pseudo.writing import StoreWriter

VARIABLE = "TUTELAGE_TESTS_KILL"


@dataclass(frozen=True)
class Kill:
    """Where a command is killed: before or after the n-th event that its process sees."""

    event: str  # rename, step, part, figure or read
    number: int
    when: str = "before"
    scope: str = "group"  # or process: this one alone; or parent: the one that spawned it
    below: str = ""  # reads: of files in this folder

    def strike(self) -> None:
        if self.scope == "group":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getppid() if self.scope == "parent" else os.getpid(), signal.SIGKILL)


class Watch:
    """Counts the events of one kind and kills at the one that was drawn."""

    def __init__(self, kill: Kill) -> None:
        self.kill = kill
        self.count = 0

    def happened(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.kill.number:
            self.kill.strike()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.kill.when == "before":
                self.happened()
            result = function(*args, **kwargs)
            if self.kill.when == "after":
                self.happened()
            return result

        return watched

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[1]).startswith("r") and str(args[0]).startswith(self.kill.below):
            self.happened()


def watch(kill: Kill) -> None:
    """From now on this process is killed at that point."""
    watch = Watch(kill)
    if kill.event == "rename":
        os.replace, os.rename = watch.around(os.replace), watch.around(os.rename)
    elif kill.event == "part":
        StoreWriter.write_part = watch.around(StoreWriter.write_part)  # type: ignore[method-assign]
    elif kill.event == "figure":
        matplotlib.figure.Figure.savefig = watch.around(matplotlib.figure.Figure.savefig)  # type: ignore[method-assign]
    elif kill.event == "step":
        register_optimizer_step_post_hook(watch.happened)
    else:
        assert kill.event == "read"
        safetensors.torch.load_file = watch.around(safetensors.torch.load_file)
        tutelage.engine.checkpoint.load_file = safetensors.torch.load_file  # type: ignore[attr-defined]
        sys.addaudithook(watch.audit)


def run(arguments: list[str], environment: dict[str, str], kill: Kill | None, output: Path) -> None:
    """What a forked process does: the command, in a process group of its own, its output in a file."""
    os.setsid()
    os.environ.update(environment)
    with output.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if kill is not None:
        watch(kill)
    sys.exit(main(arguments))


def variables(kill: Kill | None) -> dict[str, str]:
    """What tells a new interpreter where to be killed."""
    return {} if kill is None else {VARIABLE: json.dumps(asdict(kill))}


if __name__ in ("__main__", "__mp_main__") and VARIABLE in os.environ:
    watch(Kill(**json.loads(os.environ[VARIABLE])))
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
