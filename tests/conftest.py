"""Shared fixtures: an isolated cache and the place of the real data sets."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.tiny import annotation, arguments, mask_arguments, masks
from tutelage.data.demo import draw_scenes


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache folder of its own, one compute thread and a Ctrl-C that comes."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job, where Ctrl-C would never come
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (`TUTELAGE_DATA`); tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TUTELAGE_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip("real data sets are absent (TUTELAGE_DATA)")
    return folder.resolve()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Procedural scenes: `labeled`, `pool`, `test` and `val`."""
    folder = tmp_path_factory.mktemp("scenes")
    for number, (name, images) in enumerate({"labeled": 8, "pool": 20, "test": 24, "val": 20}.items()):
        draw_scenes(folder / name, images=images, size=64, seed=number)
    return folder


@pytest.fixture(scope="session")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny fit with a selection split."""
    return fitted(tmp_path_factory, lambda out: arguments(scenes, out, val=annotation(scenes, "val")))


@pytest.fixture(scope="session")
def finished_masks(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny segmentation fit with a selection split."""
    return fitted(tmp_path_factory, lambda out: mask_arguments(scenes, out, val=masks(scenes, "val")))


def fitted(factory: pytest.TempPathFactory, arguments_for: Callable[[Path], dict[str, Any]]) -> Path:
    out = factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(factory.mktemp("cache")))
        tutelage.fit(**arguments_for(out))
    return out
