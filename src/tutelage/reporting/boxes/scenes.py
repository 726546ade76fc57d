"""Pictures of the page: test images with what was gained and lost, and the surest and least sure pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.data.thumbnails import Album, Picture
from tutelage.reporting.boxes.compare import CORRECT, WRONG, Outcome, above, best_threshold, match_image
from tutelage.reporting.boxes.read import PseudoBox
from tutelage.reporting.pictures import NUM_SCENES, choose_images
from tutelage.reporting.read import Evaluation
from tutelage.types import NOT_IGNORED, Boxes

SCENE_SIDE = 400
CROP_SIDE = 144
MOST_NAMED = 10
"""Truth boxes up to which their classes are written into the picture."""

SYMBOLS = {"gained": "+", "lost": "\u2212", "wrong": "\u00d7"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A box on a thumbnail; `kind` is truth, excused, found, gained, lost or wrong."""

    kind: str
    place: tuple[float, float, float, float]  # x, y, width, height
    text: str  # shown on hovering
    name: str = ""  # written beside it

    @property
    def symbol(self) -> str:
        """The sign that carries the meaning where color does not."""
        return SYMBOLS.get(self.kind, "")


@dataclass(frozen=True, slots=True)
class Scene:
    """One test image three times: truth, teacher, student."""

    path: str
    picture: Picture
    truth: list[Mark]
    teacher: list[Mark]
    student: list[Mark]
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Teacher and student over all test images, and some of them as pictures."""

    teacher_threshold: float
    student_threshold: float
    gained: int
    lost: int
    both: int
    neither: int
    scenes: list[Scene] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Crop:
    """A pseudo-label with its surroundings."""

    picture: Picture
    mark: Mark
    name: str
    score: float
    path: str


def compare_models(
    teacher: Evaluation[Boxes], student: Evaluation[Boxes], class_names: tuple[str, ...], album: Album, seed: int
) -> Comparison:
    """What the student finds that the teacher does not, and the reverse, each at its own best threshold."""
    before, after = _look(teacher), _look(student)
    gained, lost = _only_in(after, before), _only_in(before, after)
    positives = sum(int((boxes.ignore == NOT_IGNORED).sum()) for boxes in teacher.truth)
    found_before = sum(int(outcome.found.sum()) for outcome in before.outcomes)
    found_after = sum(int(outcome.found.sum()) for outcome in after.outcomes)
    names = teacher.names()
    return Comparison(
        teacher_threshold=before.threshold,
        student_threshold=after.threshold,
        gained=int(gained.sum()),
        lost=int(lost.sum()),
        both=found_after - int(gained.sum()),
        neither=positives - found_before - int(gained.sum()),
        scenes=[
            Scene(
                names[row], *_views(row, teacher, before, after, class_names, album), int(gained[row]), int(lost[row])
            )
            for row in choose_images(gained, lost, NUM_SCENES, seed)
        ],
    )


def crops(boxes: Sequence[PseudoBox], class_names: tuple[str, ...], album: Album) -> list[Crop]:
    """Pseudo-labels as square pictures."""
    shown = []
    for box in boxes:
        picture = album.around(box.path, box.xyxy, CROP_SIDE)
        name = class_names[box.label] if box.label < len(class_names) else str(box.label)
        mark = Mark("found", picture.place(box.xyxy), f"{name} {box.score:.2f}")
        shown.append(Crop(picture, mark, name, box.score, box.path))
    return shown


@dataclass(frozen=True, slots=True)
class _Look:
    """One model on all images: its boxes from its threshold on, and what became of them."""

    threshold: float
    boxes: list[Boxes]
    outcomes: list[Outcome]


def _look(model: Evaluation[Boxes]) -> _Look:
    threshold = best_threshold(model.truth, model.predictions)
    boxes = [above(predictions, threshold) for predictions in model.predictions]
    return _Look(threshold, boxes, [match_image(*pair) for pair in zip(model.truth, boxes, strict=True)])


def _only_in(one: _Look, other: _Look) -> NDArray[np.int64]:
    """Objects of each image (N,) that the one model finds and the other does not."""
    pairs = zip(one.outcomes, other.outcomes, strict=True)
    return np.array([int((mine.found & ~theirs.found).sum()) for mine, theirs in pairs], dtype=np.int64)


def _views(
    row: int, images: Evaluation[Boxes], before: _Look, after: _Look, class_names: tuple[str, ...], album: Album
) -> tuple[Picture, list[Mark], list[Mark], list[Mark]]:
    """The picture of a test image with the marks of truth, teacher and student."""
    height, width = (int(side) for side in images.sizes[row])
    picture = album.whole(images.paths[row], (height, width), SCENE_SIDE)
    truth, old, new = images.truth[row], before.outcomes[row], after.outcomes[row]
    nothing_new = np.zeros(len(before.boxes[row]), bool)
    gained = np.array([owner >= 0 and not old.found[owner] for owner in new.owner], dtype=bool)
    lost = truth.select(old.found & ~new.found)
    return (
        picture,
        _truth_marks(truth, picture, class_names),
        _marks(before.boxes[row], old, nothing_new, picture, class_names),
        _marks(after.boxes[row], new, gained, picture, class_names)
        + [Mark("lost", picture.place(box), "found by the teacher only") for box in lost.xyxy],
    )


def _truth_marks(truth: Boxes, picture: Picture, class_names: tuple[str, ...]) -> list[Mark]:
    named = len(truth) <= MOST_NAMED
    marks = []
    for box, label, ignore in zip(truth.xyxy, truth.labels, truth.ignore, strict=True):
        name = class_names[label]
        kind = "truth" if ignore == NOT_IGNORED else "excused"
        text = name if kind == "truth" else f"{name} (ignored)"
        marks.append(Mark(kind, picture.place(box), text, name if named else ""))
    return marks


def _marks(
    boxes: Boxes, outcome: Outcome, gained: NDArray[np.bool_], picture: Picture, class_names: tuple[str, ...]
) -> list[Mark]:
    """Predictions as marks, the plain ones first, so that gains and errors lie on top."""
    marks = []
    for row, (box, label, score) in enumerate(zip(boxes.xyxy, boxes.labels, boxes.scores, strict=True)):
        kind = {CORRECT: "gained" if gained[row] else "found", WRONG: "wrong"}.get(int(outcome.outcome[row]), "excused")
        marks.append(Mark(kind, picture.place(box), f"{class_names[label]} {score:.2f}"))
    return sorted(marks, key=lambda mark: ("excused", "found", "wrong", "gained").index(mark.kind))
