"""The certificate in words and figures: what precision and recall pseudo-labels have, class by class.

`certify` and `fit` print the lines; the report page and the small page of `certify` show the rest.

Legend: T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.reporting.figures import Band, threshold_figure
from tutelage.reporting.read import Run

PROMISE = (
    "The promise is for images drawn like the labeled ones. Where the pool differs from them, its pseudo-labels may be "
    "worse than this."
)
FEW_IMAGES = 10
MOST_DRAWN = 24
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClassView:
    """A class of a certificate, ready to be drawn."""

    name: str
    sentence: str
    threshold: float  # that is taken
    shown: bool  # whether the precision is shown there
    precision: tuple[float | None, float | None, float | None]  # at that threshold, with its interval
    recall: tuple[float | None, float | None, float | None]
    claims: int  # at that threshold
    truths: int
    images: int  # that hold the class
    figure: Markup | None


@dataclass(frozen=True, slots=True)
class CertificateView:
    """A certificate, ready to be drawn."""

    record: Record
    heading: str
    basis: str  # whose labels, on how many images
    gap: str  # how far the pool lies from the labeled images
    promise: str
    used: str  # which threshold the run went by
    classes: Sequence[ClassView]


def basis_of(record: Record) -> str:
    """Whose pseudo-labels the figures are of, and on how many images they were counted."""
    images = f"{record['num_images']} human-labeled images"
    if record["num_groups"] < record["num_images"]:
        images += f" ({record['num_groups']} groups of images that belong together)"
    if not record.get("known", True):
        return f"Counted on {images}."
    if record["certified"]:
        labeler = f"the labeler ({record['about']})" if record["about"] else "the model"
        return f"Counted on {images} that {labeler} was not trained on."
    folds = record["folds"]
    return (
        f"An estimate: {folds} teachers, each trained on {folds - 1}/{folds} of the labels, labeled the part that they "
        f"did not see, {images} in all. The figures are about teachers trained on so many labels, not about the "
        "one that labels the pool."
    )


def class_sentence(name: str, found: Record, record: Record) -> str:
    """What can be said of one class."""
    wanted = f"precision {record['precision']:g}"
    if found["chosen"] is not None:
        place = found["thresholds"].index(found["chosen"])
        at = f"{name}: {wanted} is {'shown' if record['certified'] else 'estimated to hold'} from threshold"
        return f"{at} {found['chosen']:.4g}; recall there {_figure(found['recall'][place])}."
    start, taken = f"{name}: {wanted} cannot be reached with these labels", _taken(found, record["thresholds"][name])
    not_shown = f"Not {'certified' if record['certified'] else 'shown'}: threshold {taken}"
    if found["best"] is None:
        truths = f"{found['truths']} {record['unit']} of it in the labels"
        return f"{start}; nothing was claimed of this class ({truths}). {not_shown}."
    if not any(found["hits"]):
        return f"{start}; none of the {found['claims'][0]} claimed {record['unit']} is right. {not_shown}."
    threshold, low = found["best"]
    more = found["more_images"]
    then = (
        f"; about {more} more labeled {'image' if more == 1 else 'images'} of this class would show it"
        if more
        else "; more labels alone would not show it"
    )
    single = " (of this threshold alone, which is one of many)" if low >= record["precision"] else ""
    return f"{start}; the best is at least {low:.2f}{single}, from threshold {threshold:.4g}{then}. {not_shown}."


def _taken(found: Record, threshold: float) -> str:
    """The threshold of a class that is not shown to meet the precision, and why that one."""
    if found["balanced"] is None:
        return f"{threshold:.4g}, as nothing right was found"
    place = found["thresholds"].index(threshold)
    figures = f"{_figure(found['precision'][place])} and {_figure(found['recall'][place])}"
    return f"{threshold:.4g}, where precision and recall balance ({figures})"


def certificate_lines(record: Record) -> list[str]:
    """The certificate as lines of text."""
    confidence = f"{100 * record['confidence']:g} % confidence"
    lines = [f"{basis_of(record)} With {confidence} for each class:"]
    lines += [f"  {class_sentence(name, found, record)}" for name, found in record["classes"].items()]
    if record["num_groups"] < FEW_IMAGES:
        lines.append(f"  With fewer than {FEW_IMAGES} images hardly anything can be shown.")
    return [*lines, f"  {PROMISE}", *([f"  {record['unseen']}"] if record.get("unseen") else [])]


def certificate_view(record: Record, gap: str = "", used: str = "") -> CertificateView:
    """A certificate for the page.

    Args:
        record: of a certify stage.
        gap: the check's sentence on the distance between pool and labels.
        used: which thresholds the run went by.
    """
    classes = [
        _class_view(name, found, record, drawn=number < MOST_DRAWN)
        for number, (name, found) in enumerate(record["classes"].items())
    ]
    heading = "What the pseudo-labels are worth" + ("" if record["certified"] else ": an estimate")
    return CertificateView(record, heading, basis_of(record), gap, PROMISE, used, classes)


def certificate_of_run(run: Run) -> CertificateView | None:
    """The last round's certificate of a fit; None where nothing was certified."""
    told = run.record.get("certificate") or {}
    stage = run.stages.get(told.get("stage", ""))
    if stage is None:
        return None
    lines = (run.record.get("check") or {}).get("lines") or ()
    gap = next((line for line in lines if line.startswith("Domain gap")), "")
    return certificate_view(stage.record, gap, told.get("used", ""))


def _class_view(name: str, found: Record, record: Record, *, drawn: bool) -> ClassView:
    threshold = record["thresholds"][name]
    place = found["thresholds"].index(threshold)
    return ClassView(
        name,
        class_sentence(name, found, record),
        threshold,
        found["chosen"] is not None,
        (found["precision"][place], found["low"][place], found["high"][place]),
        (found["recall"][place], found["recall_low"][place], found["recall_high"][place]),
        found["claims"][place],
        found["truths"],
        found["images"],
        _figure_of(found, threshold, record) if drawn and found["best"] else None,
    )


def _figure_of(found: Record, threshold: float, record: Record) -> Markup:
    bands = [
        Band("teacher", _curve(found, "precision", "low", "high")),
        Band("student", _curve(found, "recall", "recall_low", "recall_high")),
    ]
    title = "Precision and recall over the threshold"
    shown = found["chosen"] is not None
    return Markup(threshold_figure(bands, threshold, record["precision"], shown=shown, title=title))


def _curve(found: Record, *names: str) -> NDArray[np.float64]:
    """(T, 4) threshold, value, low, high; NaN where nothing was claimed."""
    return np.array([found[name] for name in ("thresholds", *names)], np.float64).T


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
