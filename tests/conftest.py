"""Shared fixtures: an isolated cache and the place of the real data sets."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache folder of its own and one compute thread."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (`TUTELAGE_DATA`); tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TUTELAGE_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip("real data sets are absent (TUTELAGE_DATA)")
    return folder.resolve()
