"""Disks that fill up or cannot be written to, pools that vanish, workers and memory that end: exit code 2 and one line;
the same command continues afterwards, and ends with what an undisturbed one leaves.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.test_kills import command
from tests.torture.harness import assert_equal, leftovers
from tutelage.cli import main
from tutelage.data.pseudo.writing import StoreWriter
from tutelage.engine.objectives import Objective
from tutelage.files import read_json
from tutelage.tasks.detection import DetectionTask

EACH_STEP = "runtime.checkpoint_seconds=0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk in memory: the returned function mounts it, or mounts it anew, with these options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        remount = ("remount," if os.path.ismount(place) else "") + options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", remount, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here ({done.stderr.decode().strip()})")
        return place

    yield mounted
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command which ends with code 2 says of it."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("tutelage: ")]
    assert said.rstrip().endswith(line)
    return line


def fit_arguments(scenes: Path, folder: Path, *more: str) -> list[str]:
    return command("detection", scenes, folder, *more).arguments


def label_arguments(model: Path, pool: Path, out: Path, *more: str) -> list[str]:
    tiny = ("label.part_size=4", "label.views=[identity]", "runtime.precision=float32", "runtime.threads=1", *more)
    return ["label", str(model), "--unlabeled", str(pool), "--out", str(out), "--device", "cpu", *tiny]


@pytest.fixture(scope="module")
def store(finished: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing disturbed."""
    out = tmp_path_factory.mktemp("store") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(label_arguments(finished / "model", scenes / "pool" / "images", out, "runtime.workers=0")) == 0
    return out


def test_a_fit_goes_on_after_every_fault(
    finished: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files that may not be larger, memory that ends in a step, a loader worker that the system kills."""
    arguments = fit_arguments(scenes, tmp_path, EACH_STEP, "runtime.workers=1")
    for size in (1000, 500_000):
        with largest_file(size):
            message = refused(arguments, capsys)
        assert "the largest allowed file size is reached; raise it, then run the same command" in message
        assert not leftovers(tmp_path)
    assert "step-00000001.safetensors" in message
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", memory_ends_after(tmp_path, "step-00000002.safetensors"))
        message = refused(arguments, capsys)
    assert "teacher: the memory of this cpu device ended with 4 images in a pass" in message
    assert "Set runtime.device_batch_size=2, then run the same command" in message
    before = set(psutil.Process().children())
    with at_step(3, lambda: (set(psutil.Process().children()) - before).pop().kill()):
        message = refused(arguments, capsys)
    assert "a worker process died" in message and "memory" in message and "runtime.workers" in message
    assert set(psutil.Process().children()) <= before
    assert main(arguments) == 0
    assert_equal(tmp_path / "run", finished)
    (record,) = (tmp_path / "run" / "stages").glob("teacher-*/run.json")
    assert read_json(record)["resumed_from"] >= 4, "two steps, and two of the three before the worker was killed"


def memory_ends_after(folder: Path, checkpoint: str) -> Callable[..., Any]:
    forward = Objective.forward

    def limited(self: Objective, *rest: Any) -> Any:
        if any(folder.rglob(checkpoint)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *rest)

    return limited


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[None]:
    steps = []

    def count(*_: Any) -> None:
        steps.append(1)
        if len(steps) == number:
            act()

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


def test_a_labeling_goes_on_after_every_fault(
    finished: Path,
    scenes: Path,
    store: Path,
    disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is read-only, or full; memory that ends."""
    place = disk("size=32k")
    arguments = label_arguments(finished / "model", scenes / "pool" / "images", place / "store", "runtime.workers=0")
    disk("size=32k,ro")
    assert "this disk is read-only; choose another folder" in refused(arguments, capsys)
    assert "this disk is read-only; choose another folder" in refused(fit_arguments(scenes, place), capsys)
    disk("size=32k,rw")
    assert "the disk is full; free some space, then run the same command: it continues." in refused(arguments, capsys)
    assert (place / "store" / "part-00000.images.parquet").is_file() and not leftovers(place)
    disk("size=50m")
    predict = DetectionTask.predict

    def limited(self: DetectionTask, model: Any, batch: Any, label: Any = None) -> Any:
        if int(batch.image_ids[0]) >= 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, model, batch, label)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionTask, "predict", limited)
        assert "Set runtime.device_batch_size=2, then run the same command" in refused(arguments, capsys)
    assert (place / "store" / "part-00003.images.parquet").is_file()
    assert main(arguments) == 0
    assert_equal(place / "store", store)


def test_a_folder_below_a_file_is_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    pool = scenes / "pool" / "images"
    for arguments in (
        fit_arguments(scenes, tmp_path / "file"),
        label_arguments(finished / "model", pool, tmp_path / "file" / "store"),
    ):
        assert "a file is in the way; choose another folder" in refused(arguments, capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pool_that_vanishes_stops_the_labeling_and_costs_nothing(
    finished: Path,
    scenes: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    pool, away, out = tmp_path / "pool" / "images", tmp_path / "away", tmp_path / "store"
    shutil.copytree(scenes / "pool" / "images", pool)
    write_part = StoreWriter.write_part

    def write_and_lose(writer: StoreWriter, part: int, *rest: Any) -> None:
        write_part(writer, part, *rest)
        if part == 0:
            pool.rename(away)

    arguments = label_arguments(finished / "model", pool, out, f"runtime.workers={workers}")
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_part", write_and_lose)
        message = refused(arguments, capsys)
    assert "is gone, and with it all that was in its folder" in message and str(pool) in message
    assert (out / "part-00000.images.parquet").is_file() and not (out / "manifest.json").exists()
    assert "does not exist" in refused(arguments, capsys)
    away.rename(pool)
    assert main(arguments) == 0
    assert_equal(out, store)


def test_one_image_that_goes_is_skipped_and_counted(finished: Path, scenes: Path, tmp_path: Path) -> None:
    pool = tmp_path / "images"
    shutil.copytree(scenes / "pool" / "images", pool)
    write_part = StoreWriter.write_part

    def write_and_delete(writer: StoreWriter, part: int, *rest: Any) -> None:
        write_part(writer, part, *rest)
        sorted(pool.iterdir())[-1].unlink(missing_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "write_part", write_and_delete)
        assert main(label_arguments(finished / "model", pool, tmp_path / "store", "runtime.workers=0")) == 0
    assert read_json(tmp_path / "store" / "run.json")["counts"]["skipped"] > 0
