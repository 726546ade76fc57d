"""The model card of a pre-trained backbone: what it was made of, how, and what its figures were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.models.init import read_card

NAMED_CLASSES = 100
WORDS = {
    "supervised": ("supervised classification", "Accuracy of its classifier"),
    "simclr": (
        "SimCLR (arXiv:2002.05709), which uses no labels",
        "Accuracy of a linear classifier of its frozen features",
    ),
    "noisy-student": ("Noisy Student (arXiv:1911.04252)", "Accuracy of its classifier"),
}
"""How a card speaks of each method and of its accuracy."""


def model_card(record: Mapping[str, Any], model: Path) -> str:
    """The text of `OUT/model/README.md`.

    Args:
        record: of the finished run.
        model: its model folder.
    """
    card = read_card(model)
    backbone, normalization = card["model"]["backbone"], card["normalization"]
    method, figure = WORDS[record["method"]]
    mean, std = (", ".join(f"{value:.2f}" for value in normalization[name]) for name in ("mean", "std"))
    return "\n".join(
        [
            f"# {backbone}, pre-trained with Tutelage",
            "",
            f"- Method: {method}, {record['size']} px, seed {record['seed']}",
            *(f"- Data ({name}): {data['description']}" for name, data in record["data"].items()),
            f"- {figure}: {_figure(record)}",
            *([f"- {record['verdict']}"] if "verdict" in record else []),
            *(
                f"- {arm.capitalize()}: {found['note']}."
                for arm, found in record.get("arms", {}).items()
                if "note" in found
            ),
            f"- Normalization (part of the model): mean {mean}, standard deviation {std}, of RGB values from 0 to 255",
            f"- Classes ({len(record['classes'])}): {_named(record['classes'])}",
            f"- Started from: {record['init']}",
            "- License: not stated. It depends on the images, and on the weights that it started from.",
            f"- Made by: `{record['command']}`, version {record['version']}",
            "",
            f"Start a detector or segmenter from this FOLDER with `model.backbone={backbone} model.init=FOLDER`.",
            "`model.json` holds architecture, classes and normalization; `model.safetensors` the weights.",
            "",
        ]
    )


def _figure(record: Mapping[str, Any]) -> str:
    if record["accuracy"] is None:
        return "not measured; no image was held out"
    interval = record["accuracy_interval"]
    ends = f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"
    return (
        f"{100 * record['accuracy']:.1f} % (interval {ends}) of {record['held_out']} images, a seeded part of each "
        "class that was not trained on; pictures that resemble them may have been"
    )


def _named(classes: list[str]) -> str:
    more = f" and {len(classes) - NAMED_CLASSES} more" if len(classes) > NAMED_CLASSES else ""
    return (", ".join(classes[:NAMED_CLASSES]) + more) or "none"
