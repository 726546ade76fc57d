"""The verbs `recipes`, `show` and `report`: what there is, what it means, what came out."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tutelage.config import RunConfig, load_config, option_table, recipe_names
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.reporting.page import write_report
from tutelage.tasks.table import build_task
from tutelage.workflows.options import default_recipe
from tutelage.workflows.stages import console

WITH_CLASSIFIER = "(arXiv:2006.06882, table 6; the classifier, which is not used, is counted there and not here)"
PUBLISHED = {
    "detection-paper-r50": "34.0 million parameters, 97.0 billion multiply-adds (TPU model zoo, R50-FPN)",
    "segmentation-paper-b7": f"71 million parameters, 60 billion multiply-adds {WITH_CLASSIFIER}",
    "segmentation-paper-l2": f"485 million parameters, 229 billion multiply-adds {WITH_CLASSIFIER}",
}
"""What the authors state of a recipe's network."""


def recipes() -> dict[str, str]:
    """Prints and returns the shipped recipes with their first comment."""
    found = {name: _first_comment(name) for name in recipe_names()}
    table = Table("recipe", "what for", box=None)
    for name, comment in found.items():
        table.add_row(f"{name} (default)" if name == default_recipe("detection") else name, comment)
    Console().print(table)
    return found


def show(recipe: str | Path, *, options: bool = False, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Prints a recipe whole and resolved, with the cost of its network; or what every option means.

    Raises:
        InputError: unknown recipe, key or value.
    """
    config = load_config(recipe, overrides)
    if options:
        table = Table("option", "default", "meaning", box=None)
        for row in option_table():
            table.add_row(*row)
        Console().print(table)
        return config
    class_names = tuple(f"class {number}" for number in range(config.model.num_classes))
    with torch.device("meta"):
        model = build_task(config, class_names).build_model()
    print(config.to_yaml(), end="")
    print(f"# {count_parameters(model) / 1e6:.1f} million parameters with {config.model.num_classes} classes")
    height, width = config.model.canvas
    billions = count_multiply_adds(model, config.model.canvas) / 1e9
    print(f"# {billions:.1f} billion multiply-adds an image of {height} x {width}, of convolutions and matrix products")
    if str(recipe) in PUBLISHED:
        print(f"# published: {PUBLISHED[str(recipe)]}")
    return config


def report(run: str | Path) -> Path:
    """Writes the page of a finished run again and returns its path.

    Raises:
        InputError: the folder holds no finished run.
    """
    page = write_report(Path(run))
    console.print(f"Report: {page}")
    return page


def _first_comment(name: str) -> str:
    text = (resources.files("tutelage") / "recipes" / f"{name}.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    return " ".join(lines).split(". ")[0].rstrip(".") + "."
