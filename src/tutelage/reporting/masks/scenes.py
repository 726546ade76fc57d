"""Test images with the masks of truth, teacher and student, and what changed from one model to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data.thumbnails import Album, Picture
from tutelage.reporting.masks.compare import GAINED, LOST, RIGHT, WRONG, changes, count_changes, masks_of
from tutelage.reporting.masks.paint import ClassKey, View, change_keys, change_view, class_keys, class_view
from tutelage.reporting.pictures import NUM_SCENES, choose_images
from tutelage.reporting.read import Evaluation

SCENE_SIDE = 340


@dataclass(frozen=True, slots=True)
class Scene:
    """One test image: truth, teacher, student, and what changed."""

    path: str
    picture: Picture
    views: Sequence[View]
    gained: int
    lost: int
    pixels: int  # with truth


@dataclass(frozen=True, slots=True)
class Comparison:
    """Teacher and student over all test images, and some of them as pictures."""

    gained: int  # pixels
    lost: int
    both: int
    neither: int
    change_keys: Sequence[tuple[str, str]]  # overlay and meaning
    classes: Sequence[ClassKey]  # those that are seen in the scenes
    scenes: Sequence[Scene]

    @property
    def pixels(self) -> int:
        """Pixels with truth."""
        return self.gained + self.lost + self.both + self.neither


def compare_models(
    teacher: Evaluation[bytes], student: Evaluation[bytes], class_names: tuple[str, ...], album: Album, seed: int
) -> Comparison:
    """What the student gets right that the teacher does not, and the reverse, pixel by pixel.

    Images are chosen by shares of their own pixels, so that large ones do not win by their size.
    """
    counts = count_changes(teacher, student)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = choose_images(shares[:, GAINED], shares[:, LOST], NUM_SCENES, seed)
    names = teacher.names()
    scenes = []
    for row in rows:
        height, width = (int(side) for side in teacher.sizes[row])
        picture = album.whole(teacher.paths[row], (height, width), SCENE_SIDE)
        views = _views(row, names[row], (int(picture.height), int(picture.width)), teacher, student, class_names)
        gained, lost = int(counts[row, GAINED]), int(counts[row, LOST])
        scenes.append(Scene(names[row], picture, views, gained, lost, int(counts[row].sum())))
    totals = counts.sum(axis=0).tolist()
    keys = class_keys((view for scene in scenes for view in scene.views), class_names)
    return Comparison(totals[GAINED], totals[LOST], totals[RIGHT], totals[WRONG], change_keys(), keys, scenes)


def _views(
    row: int,
    path: str,
    size: tuple[int, int],
    teacher: Evaluation[bytes],
    student: Evaluation[bytes],
    class_names: tuple[str, ...],
) -> list[View]:
    masks = masks_of(row, teacher, student)
    titled = zip(("Truth", "Teacher", "Student"), masks, strict=True)
    return [
        *(class_view(title, path, mask, size, class_names) for title, mask in titled),
        change_view(path, changes(*masks), size),
    ]
