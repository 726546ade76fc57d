"""The folder of a run: what is replaced in it, and what is never touched."""

from pathlib import Path

import pytest

from tutelage.config import RunConfig
from tutelage.types import InputError
from tutelage.workflows.stages import open_run


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two seconds for the precision of the default recipe's network."""
    monkeypatch.setattr("tutelage.workflows.stages.with_precision", lambda config: config)


@pytest.mark.parametrize("config", [None, "learning_rate: 0.1\nmodel: theirs\n"])
def test_overwrite_leaves_the_folder_of_another_project_alone(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "theirs").write_text("precious")
    if config:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InputError):
        open_run(tmp_path, RunConfig(), (), overwrite=True, resume=False)
    assert (tmp_path / "model" / "theirs").read_text() == "precious"


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    open_run(tmp_path, RunConfig(), (), overwrite=False, resume=False)
    (tmp_path / "stages").mkdir()
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        open_run(tmp_path, RunConfig(seed=1), (), overwrite=False, resume=False)
    assert open_run(tmp_path, RunConfig(seed=1), (), overwrite=True, resume=False).seed == 1
    assert not (tmp_path / "stages").exists()


def test_a_run_refused_before_it_began_is_in_nobodys_way(tmp_path: Path) -> None:
    open_run(tmp_path, RunConfig(seed=1), (), overwrite=False, resume=False)
    open_run(tmp_path, RunConfig(seed=2), (), overwrite=False, resume=False)
    assert open_run(tmp_path, RunConfig(), (), overwrite=False, resume=True).seed == 2


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        open_run(tmp_path / "notes", RunConfig(), (), overwrite=True, resume=False)
