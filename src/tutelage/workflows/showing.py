"""The verbs `recipes`, `show` and `report`: what there is, what it means, what came out."""

from __future__ import annotations

import re
from importlib import resources
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tutelage.config import RunConfig, option_table, recipe_names
from tutelage.reporting.page import write_report
from tutelage.types import InputError
from tutelage.workflows.costing import SIZES, Costs, costs_of, largest_pass, main_network, precision_of, scaled
from tutelage.workflows.options import Paths, default_recipe, resolve
from tutelage.workflows.stages import console

WITH_CLASSIFIER = "(arXiv:2006.06882, table 6; the classifier, which is not used, is counted there and not here)"
PUBLISHED = {
    "detection-paper-r50": "34.0 million parameters, 97.0 billion multiply-adds (TPU model zoo, R50-FPN)",
    "detection-spinenet49": "28.5 million parameters, 85.4 billion multiply-adds (TPU model zoo)",
    "detection-spinenet143": "67.0 million parameters, 524 billion multiply-adds (TPU model zoo)",
    "detection-spinenet190": "163.6 million parameters, 1885 billion multiply-adds (TPU model zoo)",
    "segmentation-paper-b7": f"71 million parameters, 60 billion multiply-adds {WITH_CLASSIFIER}",
    "segmentation-paper-l2": f"485 million parameters, 229 billion multiply-adds {WITH_CLASSIFIER}",
}
"""What the authors state of a recipe's network."""


def recipes() -> dict[str, str]:
    """Prints and returns the shipped recipes with what they are for."""
    found = {name: _purpose(name) for name in recipe_names()}
    table = Table("recipe", "what for", box=None)
    for name, comment in found.items():
        table.add_row(f"{name} (default)" if name == default_recipe("detection") else name, comment)
    Console().print(table)
    return found


def show(
    recipe: str | Path,
    *,
    options: bool = False,
    cost: bool = False,
    json: bool = False,
    flops: float = 0.0,
    labeled: Paths = (),
    unlabeled: Paths = (),
    classification: Paths = (),
    labeled_images: int = 0,
    pool_images: int = 0,
    overrides: tuple[str, ...] = (),
) -> RunConfig | Costs:
    """Prints a recipe whole and resolved, with the size of its network; or what every option means; or what it costs.

    Args:
        recipe: name or YAML file.
        options: print every option with its meaning instead.
        cost: print what each stage costs instead.
        json: print the cost as JSON and nothing else.
        flops: sustained FLOP/s of a device; measured on this one in about ten seconds when 0.
        labeled: labeled data, whose images are counted; those of the recipe's sources when empty.
        unlabeled: the pool, likewise.
        classification: classified images, which make the training joint; they are not counted.
        labeled_images: their number, in the place of data.
        pool_images: likewise.
        overrides: `key=value` options.

    Returns:
        The config; with `cost` the costs.

    Raises:
        InputError: unknown recipe, key or value, or data that cannot be read.
    """
    sources: dict[str, Paths] = {"labeled": labeled, "unlabeled": unlabeled, "classification": classification}
    config = resolve(recipe, overrides, sources)
    if json and not cost:
        raise InputError("--json: prints the cost of a recipe, which was not asked for. Add --cost.")
    if options:
        _print_options()
    elif cost:
        costs = costs_of(config, flops=flops, labeled=labeled_images, pool=pool_images)
        if json:
            print(dumps(costs.as_dict(), indent=1))
        else:
            _print_costs(costs)
        return costs
    else:
        print(config.to_yaml(), end="")
        _print_network(str(recipe), config)
    return config


def report(run: str | Path) -> Path:
    """Writes the page of a finished run again and returns its path.

    Raises:
        InputError: the folder holds no finished run.
    """
    page = write_report(Path(run))
    console.print(f"Report: {page}")
    return page


def _print_options() -> None:
    table = Table("option", "default", "meaning", box=None)
    for row in option_table():
        table.add_row(*row)
    Console().print(table)


def _print_network(recipe: str, config: RunConfig) -> None:
    network = main_network(config)
    height, width = network.canvas
    print(f"# {network.parameters / 1e6:.1f} million parameters with {config.model.num_classes} classes")
    print(
        f"# {network.multiply_adds / 1e9:.1f} billion multiply-adds an image of {height} x {width}, of convolutions "
        "and matrix products"
    )
    if recipe in PUBLISHED:
        print(f"# published: {PUBLISHED[recipe]}")
    part, images = largest_pass(config)
    print(f"# memory of a training step of this network (estimated, {precision_of(config)}; of every stage: --cost):")
    for recompute in (False, True):
        one = network.activations_with(recompute)
        whole = network.step_memory(part, images * one).total
        print(
            f"#   {scaled(one, SIZES)} an image, {scaled(whole, SIZES)} the {images} images of a device and all else, "
            f"runtime.activation_checkpointing={str(recompute).lower()}"
        )


def _print_costs(costs: Costs) -> None:
    Console().print(costs.table(), *costs.lines(), sep="\n", highlight=False)


def _purpose(name: str) -> str:
    """The first sentence of a recipe's comments, which may cite a section (sec. 3.2, app. H)."""
    text = (resources.files("tutelage") / "recipes" / f"{name}.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    return re.split(r"(?<!sec)(?<!app)\. ", " ".join(lines))[0].rstrip(".") + "."
