"""What a user sees of long work (a bar, or plain lines where there is no terminal), and the log of a training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch.utils.tensorboard import SummaryWriter

from tutelage.files import make_folder, write_text

PLAIN_SECONDS = 30.0  # between plain lines that nothing else causes
LOG_FILE = "log.jsonl"


class Progress:
    """Progress of one piece of work on standard error.

    Args:
        name: what is done, for example `student-1`.
        total: how much there is to do.
        shown: False in all processes but the main one.
        unit: what is counted.
        first: how much was done before.
        console: where to write; standard error by default.
    """

    def __init__(
        self,
        name: str,
        total: int,
        shown: bool = True,
        *,
        unit: str = "steps",
        first: int = 0,
        console: Console | None = None,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.first = self.done = first
        self._shown = shown
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._note = ""
        self._warned: set[str] = set()
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._shown and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            details = (TextColumn(self.unit), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, *details, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.first, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.done > self.first:
            self._print_line()

    def advance(self, count: int = 1) -> None:
        """Counts what was done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._print_line()

    def note(self, text: str) -> None:
        """Shows figures beside the bar, or in a plain line now."""
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, note=text)
        elif self.done < self.total:
            self._print_line()

    def warn(self, text: str | None, cause: str = "") -> None:
        """Says what is wrong, if anything: the first time for each cause, since it mostly stays wrong."""
        if text and self._shown and cause not in self._warned:
            self._console.print(
                f"{self.name}, {self.done}/{self.total} {self.unit}: {text}", style="yellow", markup=False
            )
            self._warned.add(cause)

    def remaining_seconds(self) -> float:
        """At the speed so far."""
        elapsed = time.monotonic() - self._started
        return elapsed / max(1, self.done - self.first) * (self.total - self.done)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        if not self._shown:
            return
        parts = [f"{self.name}: {self.done}/{self.total} {self.unit}", self._note]
        if self.done < self.total:
            parts.append(f"{duration(self.remaining_seconds())} left")
        self._console.print(", ".join(filter(None, parts)), markup=False)


class TrainingLog:
    """`log.jsonl` and TensorBoard events of a training; does nothing in processes that are not `main`.

    A training that continues from a checkpoint drops the lines after it, which it is about to write again.
    """

    def __init__(self, folder: Path, first_step: int, main: bool) -> None:
        self.path = folder / LOG_FILE
        self._writer: SummaryWriter | None = None
        if not main:
            return
        make_folder(folder)
        write_text(self.path, "".join(_lines_until(self.path, first_step)))
        self._lines = self.path.open("a", encoding="utf-8", buffering=1)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._lines.close()
            self._writer.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line of figures after `step` finished steps."""
        if self._writer is None:
            return
        self._lines.write(json.dumps({"step": step, **figures}, allow_nan=False) + "\n")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


def last_losses(path: Path) -> dict[str, float]:
    """Figures of the last line of a log that has losses; empty where there is none."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    figures: dict[str, float] = next((line for line in reversed(lines) if "loss" in line), {})
    return {name: value for name, value in figures.items() if name != "step"}


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3:05, 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _lines_until(path: Path, step: int) -> list[str]:
    """The log's whole lines of steps up to `step`; a kill may have cut the last one."""
    if step == 0 or not path.is_file():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in whole if json.loads(line)["step"] <= step]
