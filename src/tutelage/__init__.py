"""Self-training for object detection and segmentation (arXiv:2006.06882): from a folder of images to a report.

Each verb of the command line is a function here: `tutelage.fit(labeled=..., unlabeled=..., test=..., out=...)`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from tutelage.types import InputError

__version__ = importlib.metadata.version("tutelage")
VERBS = {
    "certify": "certifying",
    "check": "checking",
    "demo": "demo",
    "evaluate": "evaluation",
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
__all__ = ["InputError", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    """The verb of that name, imported at its first use: the training stack takes seconds to load."""
    if name not in VERBS:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tutelage.workflows.{VERBS[name]}"), name)
