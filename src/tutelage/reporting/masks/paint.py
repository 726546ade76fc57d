"""Masks as half-transparent pictures to be laid over a thumbnail, with names and descriptions of what they show.

Nothing is told by color alone: classes are outlined and named, and each kind of change has a pattern of its own.
Legend: h x w pixels of a thumbnail, K classes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.data.colors import class_colors
from tutelage.data.painting import STRIPES, name_places, paint
from tutelage.reporting.masks.compare import GAINED, LOST, RIGHT, WRONG, Mask
from tutelage.tasks.segmentation.measuring import resized_mask
from tutelage.types import IGNORE

Color = tuple[int, int, int, int]  # RGBA

VEIL: Color = (11, 13, 15, 100)
GAIN: Color = (46, 230, 184, 235)
LOSS: tuple[Color, Color] = (255, 138, 94, 245), (60, 16, 4, 200)  # two stripes
ERROR: tuple[Color, Color] = (225, 225, 225, 230), (11, 13, 15, 150)  # dots and what is between them
STRIPE, DOT = 4, 5  # pixels

MOST_NAMES, LEAST_RADIUS = 8, 12  # names on a picture; pixels around a name that are of its class
LETTER, LINE = 9.5, 17.0  # width of a letter and height of a name, pixels
LONGEST_NAME = 18  # letters
MOST_TOLD = 4  # classes that a description names


@dataclass(frozen=True, slots=True)
class Name:
    """A class's name on a thumbnail, centered at (x, y)."""

    text: str
    x: float
    y: float

    @classmethod
    def placed(cls, text: str, x: float, y: float, width: int) -> Self:
        """A name near a place, moved so that it ends inside a picture of that width, and cut where it is long."""
        short = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 3] + "..."
        reach = LETTER * len(short) / 2
        return cls(short, min(max(x, reach), max(width - reach, reach)), y)

    def covers(self, other: Name) -> bool:
        """Whether two names lie on each other."""
        letters = (len(self.text) + len(other.text)) / 2
        return abs(self.x - other.x) < LETTER * letters and abs(self.y - other.y) < LINE


@dataclass(frozen=True, slots=True)
class View:
    """One painted thumbnail."""

    title: str
    overlay: str  # data URI
    description: str  # for those who do not see it
    names: Sequence[Name] = ()
    labels: frozenset[int] = frozenset()  # classes that are seen


@dataclass(frozen=True, slots=True)
class ClassKey:
    """A class in the legend."""

    name: str
    color: str  # CSS


def class_view(title: str, path: str, mask: Mask, size: tuple[int, int], class_names: Sequence[str]) -> View:
    """A mask (any size) painted for a thumbnail of (height, width) `size`."""
    shown = resized_mask(mask, size)
    pixels = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    ranked = [label for label in np.argsort(-pixels[:IGNORE], kind="stable")[:MOST_TOLD].tolist() if pixels[label]]
    told = [f"{class_names[label]} {pixels[label] / mask.size:.0%}" for label in ranked]
    told += [f"no label {pixels[IGNORE] / mask.size:.0%}"] if pixels[IGNORE] else []
    return View(
        title,
        _data_uri(paint(shown)),
        f"{title} of {path}: {', '.join(told)}",
        class_names_on(shown, class_names),
        frozenset(np.flatnonzero(pixels[:IGNORE]).tolist()),
    )


def change_view(path: str, became: Mask, size: tuple[int, int]) -> View:
    """What became of the pixels of an image, painted for a thumbnail of (height, width) `size`."""
    pixels = np.bincount(became.ravel(), minlength=IGNORE + 1)
    scored = max(int(pixels[:IGNORE].sum()), 1)
    kinds = {GAINED: "gained", LOST: "lost", WRONG: "wrong in both"}
    told = ", ".join(f"{pixels[kind] / scored:.1%} {text}" for kind, text in kinds.items())
    return View("What changed", change_overlay(resized_mask(became, size)), f"What changed in {path}: {told}")


def class_keys(views: Iterable[View], class_names: Sequence[str]) -> list[ClassKey]:
    """The legend of all classes that some view shows."""
    seen = sorted(frozenset[int]().union(*(view.labels for view in views)))
    colors = class_colors(len(class_names))
    return [ClassKey(class_names[label], "#{:02x}{:02x}{:02x}".format(*colors[label])) for label in seen]


def change_keys() -> list[tuple[str, str]]:
    """The legend of changes: overlay of 26 x 20 pixels, and what it means."""
    kinds = {
        GAINED: "gained",
        LOST: "lost",
        WRONG: "wrong in both",
        RIGHT: "right in both",
        IGNORE: "no truth, not scored",
    }
    return [(change_overlay(np.full((20, 26), kind, np.uint8)), text) for kind, text in kinds.items()]


def change_overlay(became: Mask) -> str:
    """What became of pixels (h, w): gained plain, lost striped, wrong dotted, the rest dim, as a PNG data URI."""
    y, x = np.ogrid[: became.shape[0], : became.shape[1]]
    falling, rising = ((x + direction * y) // STRIPE % 2 == 0 for direction in (-1, 1))
    dots = (x % DOT < 2) & ((y + x // DOT % 2 * 2) % DOT < 2)
    painted = np.zeros((*became.shape, 4), np.uint8)
    painted[became == RIGHT] = VEIL
    painted[became == GAINED] = GAIN
    for kind, pattern, (first, second) in ((LOST, falling, LOSS), (WRONG, dots, ERROR), (IGNORE, rising, STRIPES)):
        painted[became == kind] = second
        painted[(became == kind) & pattern] = first
    return _data_uri(painted)


def class_names_on(mask: Mask, class_names: Sequence[str]) -> list[Name]:
    """Names of the classes that have room for one in a mask (h, w), none over another."""
    names: list[Name] = []
    for place in name_places(mask):
        name = Name.placed(class_names[place.label], place.x, place.y, mask.shape[1])
        if place.radius >= LEAST_RADIUS and len(names) < MOST_NAMES and not any(map(name.covers, names)):
            names.append(name)
    return names


def _data_uri(painted: NDArray[np.uint8]) -> str:
    done, packed = cv2.imencode(".png", cv2.cvtColor(painted, cv2.COLOR_RGBA2BGRA), (cv2.IMWRITE_PNG_COMPRESSION, 6))
    assert done, painted.shape
    return f"data:image/png;base64,{base64.b64encode(packed.tobytes()).decode('ascii')}"
