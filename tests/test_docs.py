"""The docs name what exists: commands with their options, config keys, files."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from tutelage.cli import app
from tutelage.config import load_config, option_table

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.strip() for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tutelage ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_docs_exist(page: Path) -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    group = typer.main.get_command(app)
    for words in commands(page):
        assert words[0] in verbs, words
        parameters = group.commands[words[0]].params  # type: ignore[attr-defined]
        known = {option for parameter in parameters for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
        settings = [word for word in words if re.match(r"^[a-z_.]+=", word)]
        load_config("detection-small", settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_docs_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_table_of_options_is_the_config() -> None:
    rows = [f"| `{key}` | `{default}` | {description} |" for key, default, description in option_table()]
    page = (ROOT / "docs" / "options.md").read_text()
    assert [row for row in rows if row not in page] == [], "run: python -m tests.test_docs"
    assert page.count("\n| `") == len(rows)


def write_options() -> None:
    head = (
        "# Options\n\nEvery option can be set in a recipe file or with `key=value` at the end of a command.\n"
        "`teacher` and `student` take every key of `train` and lie over it; the control is the student's run with\n"
        "`student.second_stream=labeled`. `runtime` changes speed, `sources` places, and `guard` what happens to a\n"
        "run that is lost; all other options are part of a run's hash.\n\n"
        "| option | default | meaning |\n|---|---|---|\n"
    )
    rows = [f"| `{key}` | `{default}` | {description} |\n" for key, default, description in option_table()]
    (ROOT / "docs" / "options.md").write_text(head + "".join(rows))


if __name__ == "__main__":
    write_options()
