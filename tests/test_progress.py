"""What is shown and logged of long work."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.engine.progress import Progress, TrainingLog, duration


def lines_of(work: Callable[[Progress], None], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Progress("label", 100, unit="images", console=Console(width=200)) as progress:
        work(progress)
    return capsys.readouterr().out.splitlines()


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def work(progress: Progress) -> None:
        progress.advance(40)
        progress.note("loss 1.5")
        progress.advance(60)

    lines = lines_of(work, capsys)
    assert lines[0].startswith("label: 40/100 images, loss 1.5, ") and lines[0].endswith(" left")
    assert lines[1:] == ["label: 100/100 images, loss 1.5"]


def test_durations_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3725)] == ["0 s", "59 s", "1:01", "1:02:05"]


def test_only_the_main_process_writes_the_log(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "log", 0, main=False) as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "log").exists()
