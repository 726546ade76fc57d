"""What is handed to an annotation tool, and what comes back: the same for all formats.

Handed out are `Verdicts` in which the teacher's labels have no verdict yet. They are kept beside the tool's file
(`shown.json`), so that what comes back can be compared: see `comparing.py`.

Legend: h, w pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.data.pseudo.boxes import CORNERS
from tutelage.data.pseudo.masks import TEACHER, owners
from tutelage.data.pseudo.verdicts import Corners, JudgedImage, Label, People, Region, Verdicts
from tutelage.types import IGNORE, Annotation, InputError

ID, IGNORED = "label_id", "ignore"  # names of the attributes that tell what a label is
Value = TypeVar("Value")


@dataclass(frozen=True)
class Sheet:
    """Images that are handed out, and the names that their labels have in a tool."""

    shown: Verdicts

    @cached_property
    def prefix(self) -> str:
        """What tells these labels from those of another export."""
        return self.shown.digest()[:8]

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Number of an image, by its path."""
        return {image.path: number for number, image in enumerate(self.shown.images)}

    def labels(self, number: int) -> list[tuple[str, Label]]:
        """The labels of an image, with their names in the tool."""
        labels = self.shown.images[number].labels
        return [(f"{self.prefix}-{number}-{at}", label) for at, label in enumerate(labels)]

    def image(self, path: str, source: str) -> JudgedImage:
        """The image of that path.

        Raises:
            InputError: it was not handed out; `source` is named.
        """
        if path not in self.places:
            raise InputError(
                f"{source}: the image {path!r} is none of the {len(self.places)} that were exported last. Import what "
                "came of that export, or remove the image."
            )
        return self.shown.images[self.places[path]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A label as it came back."""

    name: str  # class
    place: Corners | Region
    id: str = ""  # the label that it came from
    ignored: bool = False


Returned = Iterator[tuple[str, list[Drawn]]]
"""Path of each image that came back, and its labels."""


def about(label: Label) -> dict[str, str]:
    """Where a label came from, for people to read in the tool."""
    known = {"score": label.score, "teacher": label.teacher, "round": label.round}
    return {name: str(value) for name, value in known.items() if value is not None}


def corners(label: Label) -> Corners:
    """The box of a label of boxes."""
    assert label.xyxy is not None, "a label of boxes"
    return label.xyxy


def upright(box: Corners, degrees: float, around: tuple[float, float]) -> Corners:
    """The upright box around one that is turned clockwise around a point."""
    if not degrees:
        return box
    (left, top, right, bottom), (x, y), angle = box, around, math.radians(degrees)
    corners = [(side - x, end - y) for side in (left, right) for end in (top, bottom)]
    xs = [x + across * math.cos(angle) - down * math.sin(angle) for across, down in corners]
    ys = [y + across * math.sin(angle) + down * math.cos(angle) for across, down in corners]
    return min(xs), min(ys), max(xs), max(ys)


def region(label: Label) -> Region:
    """The region of a label of masks, of the image's size."""
    assert label.region is not None, "a label of masks"
    return label.region


def validated(form: Any, plain: object, source: str, tool: str) -> Any:
    """JSON values as `form` wants them.

    Raises:
        InputError: they are of another shape; the first place is named.
    """
    try:
        return TypeAdapter(form).validate_python(plain)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the whole"
        raise InputError(
            f"{source}: is not what {tool} writes: {place}: {problem['msg']}. Export it from there again."
        ) from None


def hand_out(store: PseudoStore, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Verdicts:
    """The images of `rows` (of the pool), in that order, with what reaches the threshold and what people said.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    found = dict(SHOWN[store.manifest.annotation](store, rows, pseudo))
    images = tuple(found[row] for row in rows.tolist() if row in found)
    assert store.manifest.annotation != "classes", "pool images of a task"
    return Verdicts(annotation=store.manifest.annotation, class_names=store.manifest.class_names, images=images)


def _boxes(store: PseudoStore, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Iterator[tuple[int, JudgedImage]]:
    names = store.manifest.class_names
    limits = score_limits(pseudo, names)
    for images, table in store.parts():
        xyxy = np.stack([table[name] for name in CORNERS], axis=1).astype(np.float64)
        with_area = (xyxy[:, :2] < xyxy[:, 2:]).all(axis=1)
        kept = (table["score"] >= limits[table["label"]]) & (table["verdict"] == None) & with_area  # noqa: E711 elementwise
        for at in np.flatnonzero(np.isin(images["image_id"], rows) & (images["status"] == "ok")).tolist():
            row = int(images["image_id"][at])
            own = np.flatnonzero(kept & (table["image_id"] == row)).tolist()
            teachers = [
                _by_teacher(store, names[table["label"][box]], float(table["score"][box]), xyxy=xyxy[box].tolist())
                for box in own
            ]
            size = int(images["height"][at]), int(images["width"][at])
            labels = (*teachers, *_peoples(store, row))
            yield row, JudgedImage(path=str(images["path"][at]), size=size, labels=labels)


def _masks(store: PseudoStore, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Iterator[tuple[int, JudgedImage]]:
    """One region for each class of the teacher's, and those of people; none lies on another."""
    names = store.manifest.class_names
    unjudged = replace(store, people=People({}, names))
    for stored in unjudged.masks(rows, pseudo):
        mask, levels = (
            np.asarray(cv2.resize(one, stored.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
            for one in (stored.mask, stored.levels)
        )
        said = store.people.images.get(stored.image_id, JudgedImage(path=stored.path, size=stored.size))
        owner = owners(mask, said, store.people)
        left = np.where(owner == TEACHER, mask, IGNORE)
        teachers = [
            _by_teacher(store, names[label], float(levels[left == label].mean() / 256), region=Region.of(left == label))
            for label in np.unique(left[left != IGNORE]).tolist()
        ]
        peoples = [
            label.model_copy(update={"region": Region.of(owner == number)})
            for number, label in enumerate(said.labels)
            if label.verdict != "reject" and (owner == number).any()
        ]
        yield stored.image_id, JudgedImage(path=stored.path, size=stored.size, labels=(*teachers, *peoples))


def _by_teacher(store: PseudoStore, name: str, score: float, **place: Any) -> Label:
    return Label(name=name, score=score, teacher=store.manifest.teacher, round=store.manifest.round, **place)


def _peoples(store: PseudoStore, row: int) -> list[Label]:
    """What people said is in an image, or is to be ignored."""
    image = store.people.images.get(row)
    return [label for label in image.labels if label.verdict != "reject"] if image else []


SHOWN: Mapping[str, Callable[..., Iterator[tuple[int, JudgedImage]]]] = {"boxes": _boxes, "masks": _masks}
PLACES: Mapping[Annotation, str] = {"boxes": "xyxy", "masks": "region"}
"""The field of a label that says where it is."""
