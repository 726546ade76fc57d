"""What is typed as a path: single images, folders with equal names, empty paths, places for pictures."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import annotation
from tutelage.cli import main
from tutelage.config import DataConfig
from tutelage.data.readers import open_index
from tutelage.types import InputError


def test_single_images_and_folders_with_equal_names_are_predicted(finished: Path, scenes: Path, tmp_path: Path) -> None:
    one, other = sorted((scenes / "pool" / "images").iterdir())[:2]
    for folder, picture in (("a", one), ("b", other)):
        (tmp_path / folder).mkdir()
        shutil.copy(picture, tmp_path / folder / "1.png")
    shutil.copy(one, tmp_path / "no_suffix")
    given = [str(tmp_path / name) for name in ("a", "b/1.png", "no_suffix")]
    options = ["--out", str(tmp_path / "out"), "--pictures", "--device", "cpu"]
    assert main(["predict", str(finished / "model"), *given, *options]) == 0
    written = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert {image["file_name"] for image in written["images"]} == {"a/1.png", "b/1.png", "no_suffix"}
    assert len(list((tmp_path / "out" / "pictures").rglob("*.jpg"))) == 3


def test_predict_wants_a_folder(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    pool = scenes / "pool" / "images"
    assert main(["predict", str(finished / "model"), str(pool), "--out", str(tmp_path / "notes")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_an_empty_pool_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        open_index(tmp_path, DataConfig(), unlabeled=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sheet", "no/such/folder/sheet.png"], "folder that exists"),
        (["--augment-sheet", "sheet.txt"], ".png or .jpg"),
        (["--sheet", "sheet.png", "--annotations-only"], "leaves closed"),
        (["--test", ""], "an empty path"),
    ],
)
def test_check_refuses_at_once(scenes: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str) -> None:
    assert main(["check", "--labeled", str(annotation(scenes, "labeled")), *options]) == 2
    output = capsys.readouterr()
    assert told in output.err and not output.out
