"""Self-training for object detection and segmentation (arXiv:2006.06882): from a folder of images to a report.

Each verb of the command line is a function here: `tutelage.fit(labeled=..., unlabeled=..., test=..., out=...)`; and
`tutelage.load_model(path).predict(images)` uses what they made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from tutelage.errors import InputError

__version__ = importlib.metadata.version("tutelage")
VERBS = {
    "benchmark": "benchmarking",
    "certify": "certifying",
    "check": "checking",
    "demo": "demo",
    "evaluate": "evaluation",
    "export": "exporting",
    "fit": "fit",
    "label": "labeling",
    "predict": "prediction",
    "pretrain": "pretraining",
    "recipes": "showing",
    "report": "showing",
    "review": "reviewing",
    "show": "showing",
    "train": "training",
}
FUNCTIONS = {**VERBS, "load_model": "exporting"}
__all__ = ["InputError", "__version__", *FUNCTIONS]


def __getattr__(name: str) -> Any:
    """The function of that name, imported at its first use: the training stack takes seconds to load."""
    if name not in FUNCTIONS:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tutelage.workflows.{FUNCTIONS[name]}"), name)
