"""The commands and the Python of the docs are run, with tiny networks, where the docs' own paths exist."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import tutelage
from tests.test_docs import PAGES, ROOT, commands
from tests.tiny import TINY, annotation, masks
from tutelage.cli import main
from tutelage.files import read_json, write_json

TAKES_OPTIONS = {"fit", "train", "label", "evaluate", "certify", "check"}
LONG = {"demo", "pretrain", "show"}  # run by `make demo` and by tests of their own
RUN_ELSEWHERE = {"review.md", "guard.md"}  # by the tests of reviews and of the guard
PRETRAINED = re.compile(r"model\.init=backbone|--recipe detection-joint|run/model/")


@pytest.fixture
def my(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the docs call `my/...`."""
    for name, split in {"train": "labeled", "test": "test"}.items():
        record = read_json(annotation(scenes, split))
        images = annotation(scenes, split).parent / "images"
        shutil.copytree(images, tmp_path / "my" / "images" / name)
        for image in record["images"]:
            image["file_name"] = f"{name}/{Path(image['file_name']).name}"
        write_json(tmp_path / "my" / f"{name}.json", record)
    for name, split in {"labeled": "labeled", "test": "test"}.items():
        shutil.copytree(masks(scenes, split).parent, tmp_path / "my" / name)
    for name in ("pool", "photos"):
        shutil.copytree(scenes / "pool" / "images", tmp_path / "my" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my"


def runnable(page: Path) -> list[list[str]]:
    found = []
    for words in commands(page):
        line = shlex.join(words)
        if words[0] not in LONG and not PRETRAINED.search(line) and not line.startswith("predict demo-run"):
            found.append(words)
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in RUN_ELSEWHERE and runnable(page)], ids=lambda page: page.name
)
def test_commands_of_a_page_run_one_after_the_other(page: Path, my: Path) -> None:
    for words in runnable(page):
        if "--out" in words and words[0] in ("fit", "train"):
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        assert main([*words, *(TINY if words[0] in TAKES_OPTIONS else ())]) == 0, words


@pytest.mark.parametrize("page", ["first-steps.md"])
def test_python_of_a_page_runs(page: str, my: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = tutelage.fit
    monkeypatch.setattr(tutelage, "fit", lambda **given: fit(**given, overrides=TINY))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
