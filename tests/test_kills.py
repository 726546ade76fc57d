"""Whatever is killed, and whenever: the same command, or --resume, ends with what a run never killed leaves."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.tiny import annotation, arguments, mask_arguments, masks
from tests.torture.child import Kill
from tests.torture.harness import Command, assert_equal, assert_whole, draw_kill, leftovers

TWO = ("--devices", "2")
SECONDS_TO_END = 10.0
ARGUMENTS = {"detection": (arguments, annotation), "segmentation": (mask_arguments, masks)}
RESUME = ("--resume", "runtime.checkpoint_seconds=0")
EACH_STEP = ("runtime.checkpoint_seconds=0",)  # a checkpoint after every step
# What each start of the fit is killed at, the starts before having come as far as they had.
KILLS = {
    "detection": (
        Kill("rename", 1),  # the first file of all
        Kill("rename", 4, "after"),
        Kill("step", 3),  # of the teacher
        Kill("read", 2),  # the config, again
        Kill("rename", 2),  # a checkpoint: its tensors are renamed, its record is not
        Kill("step", 2),
        Kill("part", 2, "after"),  # of the pseudo-labels
        Kill("rename", 2),  # of a part some tables are there
        Kill("step", 5),  # in the control
        Kill("figure", 2),  # of the report
    ),
    "segmentation": (
        Kill("rename", 8, "after"),
        Kill("step", 4),
        Kill("read", 2),
        Kill("rename", 3),
        Kill("rename", 5, "after"),
        Kill("part", 1),
        Kill("rename", 4, "after"),
        Kill("step", 1),
        Kill("rename", 6),
        Kill("rename", 7, "after"),
    ),
}


def command(task: str, scenes: Path, folder: Path, *more: str) -> Command:
    """A tiny fit with a selection split, as the fixtures `finished` are."""
    arguments_of, labels = ARGUMENTS[task]
    given = arguments_of(scenes, folder / "run", val=labels(scenes, "val"))
    overrides = given.pop("overrides")
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return Command(["fit", *options, *overrides, *more], folder / "run", folder / "cache", folder / "output.txt")


def killed_until_done(fit: Command, kills: list[Kill], reference: Path, seed: int) -> None:
    """Starts the fit with one kill after the other, in the same words or with --resume, then to its end."""
    rng = np.random.default_rng(seed)
    for kill in kills:
        resumed = (fit.out / "config.yaml").is_file() and rng.random() < 0.4
        resuming = Command(["fit", "--out", str(fit.out), *RESUME], fit.out, fit.cache, fit.output)
        code = (resuming if resumed else fit).start(kill)
        assert code in (0, -signal.SIGKILL), fit.output.read_text()
        fit.kills += resuming.kills
        assert_whole(fit.out, reference)
    assert fit.start() == 0, fit.output.read_text()
    assert_equal(fit.out, reference)
    assert leftovers(fit.out, fit.cache) == []


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_fit_killed_ten_times_is_the_fit_never_killed(
    task: str, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reference: Path = request.getfixturevalue({"detection": "finished", "segmentation": "finished_masks"}[task])
    fit = command(task, scenes, tmp_path, *EACH_STEP)
    killed_until_done(fit, [place_in(kill, fit.out) for kill in KILLS[task]], reference, seed=0)
    assert fit.kills == 10, fit.codes


def test_workers_and_processes_end_with_their_parent(finished: Path, scenes: Path, tmp_path: Path) -> None:
    """SIGKILL for one process alone; what the others had done is taken, and the store is the one never disturbed."""
    fit = command("detection", scenes, tmp_path, *EACH_STEP, "runtime.workers=2")
    assert fit.start(Kill("step", 8, scope="process")) == -signal.SIGKILL
    assert gone(fit.group), "loader workers"
    label = labeling(finished / "model", scenes, tmp_path, "runtime.workers=1")
    whole = labeling(finished / "model", scenes, tmp_path / "whole")
    assert label.start(Kill("part", 2, "after"), more=TWO, cold=True) == -signal.SIGKILL
    assert gone(label.group), "two processes and their loader workers, of which one was killed with its parent"
    assert label.start(Kill("part", 1, "after", scope="parent"), more=TWO, cold=True) == -signal.SIGKILL
    assert gone(label.group), "the processes that the killed one had spawned, and their loader workers"
    whole.output.parent.mkdir()
    assert label.start() == whole.start() == 0, label.output.read_text()
    assert_equal(label.out, whole.out)
    assert leftovers(label.out, label.cache) == []


def labeling(model: Path, scenes: Path, folder: Path, *more: str) -> Command:
    """In five parts of four images."""
    tiny = ("--device", "cpu", "runtime.threads=1", "runtime.precision=float32", "label.part_size=4", *more)
    arguments = ["label", str(model), "--unlabeled", str(scenes / "pool" / "images"), "--out", str(folder / "store")]
    return Command([*arguments, *tiny], folder / "store", folder / "cache", folder / "output.txt")


def gone(group: int) -> bool:
    """Whether no process of the group lives, some seconds after."""
    deadline = time.monotonic() + SECONDS_TO_END
    while alive := [one for one in psutil.process_iter() if in_group(one, group)]:
        if time.monotonic() > deadline:
            raise AssertionError(alive)
        time.sleep(0.05)
    return True


def in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def place_in(kill: Kill, out: Path) -> Kill:
    return Kill(kill.event, kill.number, kill.when, kill.scope, str(out))


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_drawn_kills(task: str, seed: int, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Ten kills each at drawn events, of which some starts see none, and by time."""
    reference: Path = request.getfixturevalue({"detection": "finished", "segmentation": "finished_masks"}[task])
    rng = np.random.default_rng([seed, task == "detection"])
    kills = 0
    for number in range(20):
        fit = command(task, scenes, tmp_path / str(number), *EACH_STEP)
        fit.output.parent.mkdir()
        for _ in range(3):
            fit.start(seconds=float(rng.uniform(0.1, 8.0)))
        killed_until_done(fit, [draw_kill(rng, fit.out) for _ in range(7)], reference, seed)
        kills += fit.kills
        if kills >= 10:
            return
    raise AssertionError(f"only {kills} kills")
