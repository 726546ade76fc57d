"""The pseudo-labels of a run: how many, how sure, of which classes, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.report.figures import histogram_figure
from tutelage.report.pictures import Album
from tutelage.report.read import Run, Stage, summarize_store
from tutelage.report.scenes import crops

NUM_CROPS = 12


def pseudo_sections(run: Run, class_names: tuple[str, ...], album: Album) -> list[dict[str, Any]]:
    """One entry for each labeling of the pool (one a round); only the last one's boxes are shown as pictures."""
    stages = [stage for stage in run.stages.values() if stage.record.get("kind") == "label"]
    return [_pseudo_section(run, stage, class_names, album, stage is stages[-1]) for stage in stages]


def _pseudo_section(
    run: Run, stage: Stage, class_names: tuple[str, ...], album: Album, with_pictures: bool
) -> dict[str, Any]:
    threshold = stage.record.get("threshold", 0.5)
    summary = summarize_store(stage, class_names, threshold, NUM_CROPS)
    section: dict[str, Any] = {
        "stage": stage,
        "counts": stage.record.get("counts") or {},
        "skipped": stage.record.get("skipped") or [],
        "threshold": dict(threshold) if isinstance(threshold, Mapping) else threshold,
        "views": stage.record.get("views") or [],
        "histogram": None,
        "balance": [],
        "surest": [],
        "least_sure": [],
    }
    if summary is None:
        return section
    marks = sorted(set(threshold.values())) if isinstance(threshold, Mapping) else [float(threshold)]
    section["histogram"] = Markup(
        histogram_figure(
            summary.histogram, marks, title="Scores of the teacher's detections", xlabel="score", ylabel="boxes"
        )
    )
    labeled = run.record.get("data", {}).get("labeled") or {}
    section["balance"] = _balance(class_names, labeled.get("boxes_per_class") or {}, summary.kept_per_class)
    if with_pictures:
        section["surest"] = crops(summary.surest, class_names, album)
        section["least_sure"] = crops(summary.least_sure, class_names, album)
    return section


def _balance(class_names: tuple[str, ...], labeled: Mapping[str, int], kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Classes with their share of the human labels and of the pseudo-labels; bars are relative to the largest share."""
    human = np.array([labeled.get(name, 0) for name in class_names], dtype=np.float64)
    shares = human / max(human.sum(), 1), kept / max(kept.sum(), 1)
    largest = max(*(share.max(initial=0) for share in shares), 1e-9)
    return [
        {
            "title": name,
            "labels": int(human[row]),
            "pseudo": int(kept[row]),
            "bars": [
                {"share": float(share[row]), "length": round(100 * float(share[row] / largest), 1)} for share in shares
            ],
        }
        for row, name in enumerate(class_names)
    ]
