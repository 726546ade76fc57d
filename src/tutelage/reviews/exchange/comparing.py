"""From what came back of a tool to verdicts: by comparing it with what was handed out.

A label that is as it was is accepted; one that moved, or got another class, is a human one, which keeps the score,
teacher and round of the label that it came from; one that is gone is rejected; one that was marked is ignored; a new
one is human and comes from nobody. Every image that comes back was reviewed as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.data.pseudo.verdicts import SAME_PLACE, JudgedImage, Label, Region, Verdicts, overlap
from tutelage.reviews.exchange.handing import Drawn, Returned, Sheet, region
from tutelage.types import InputError

UNMOVED = 0.02
"""Pixels that a corner may differ by and be taken as it was: CVAT writes two decimals."""


def verdicts_of(sheet: Sheet, returned: Returned, source: str) -> Verdicts:
    """What people said of the images that came back.

    Raises:
        InputError: an image that was not handed out or comes twice, an unknown class, or a box outside of its image.
    """
    names = sheet.shown.class_names
    images: dict[str, JudgedImage] = {}
    for path, drawn in returned:
        image = sheet.image(path, source)
        if path in images:
            raise InputError(f"{source}: {path} stands in it twice; once is allowed. Remove one.")
        if unknown := sorted({one.name for one in drawn} - set(names)):
            raise InputError(
                f"{source}: {path}: unknown class {unknown[0]!r}; the classes are {', '.join(names)}. Rename it in the "
                "tool and export again; a new class needs labeled images of its own."
            )
        ids = {id: at for at, (id, _) in enumerate(sheet.labels(sheet.places[path]))}
        inside = [_inside(one, image, source) for one in drawn]
        images[path] = image.model_copy(update={"reviewed": True, "labels": tuple(_said(image, ids, inside))})
    return sheet.shown.model_copy(update={"images": tuple(images.values())})


def _inside(drawn: Drawn, image: JudgedImage, source: str) -> Drawn:
    """The same, a box cut at the borders of its image."""
    if isinstance(drawn.place, Region):
        if drawn.place.size != image.size:
            raise InputError(
                f"{source}: {image.path}: a mask of {drawn.place.size} pixels; the image has {image.size}. Draw it on "
                "the image that was exported."
            )
        return drawn
    height, width = image.size
    x1, y1, x2, y2 = np.clip(drawn.place, 0, [width, height, width, height]).tolist()
    if not (x1 < x2 and y1 < y2):
        raise InputError(
            f"{source}: {image.path}: the box {list(drawn.place)} of {drawn.name} has no area inside the image. "
            "Remove it in the tool and export again."
        )
    return Drawn(drawn.name, (x1, y1, x2, y2), drawn.id, drawn.ignored)


def _said(image: JudgedImage, ids: Mapping[str, int], drawn: Sequence[Drawn]) -> list[Label]:
    """The verdicts on an image: on each label that was handed out, then what is new."""
    owners = _owners(image, ids, drawn)
    labels = [
        verdict
        for at, label in enumerate(image.labels)
        for verdict in (_changed(label, owners[at]) if at in owners else _gone(label))
    ]
    known = {id(one) for one in owners.values()}
    return labels + [_new(one) for one in drawn if id(one) not in known]


def _owners(image: JudgedImage, ids: Mapping[str, int], drawn: Sequence[Drawn]) -> dict[int, Drawn]:
    """What came back of each label, by its number: by id (of copies the one that did not move), else by its place."""
    owners: dict[int, Drawn] = {}
    for unmoved in (True, False):
        for one in drawn:
            at = ids.get(one.id)
            if at is not None and _is_unmoved(image.labels[at], one) >= unmoved:
                owners.setdefault(at, one)
    known = {id(one) for one in owners.values()}
    for one in drawn:
        if id(one) not in known:
            same = (at for at, label in enumerate(image.labels) if at not in owners and _is_unmoved(label, one))
            if (at := next(same, None)) is not None:
                owners[at] = one
    return owners


def _is_unmoved(label: Label, drawn: Drawn) -> bool:
    """Whether a label came back with its class, where it was."""
    if label.name != drawn.name:
        return False
    if isinstance(drawn.place, Region):
        return label.region == drawn.place
    return bool(label.xyxy and np.abs(np.subtract(label.xyxy, drawn.place)).max() <= UNMOVED)


def _changed(label: Label, drawn: Drawn) -> list[Label]:
    """The verdict on a label that came back, and the rejection of what it no longer covers."""
    unmoved = _is_unmoved(label, drawn)
    if drawn.ignored:
        verdict = "ignore"
    elif not unmoved:
        verdict = "human"
    elif label.verdict in ("accept", "human"):
        verdict = label.verdict
    else:
        verdict = "accept" if label.teacher else "human"
    place = {} if unmoved else _place(drawn)
    said = label.model_copy(update={"name": drawn.name, "verdict": verdict, **place})
    return [said, *([] if unmoved else _left(label, said))]


def _left(label: Label, said: Label) -> list[Label]:
    """What a moved label rejects: its old place, where the new one does not speak of it."""
    if label.verdict == "ignore":
        return []
    if label.region is None:
        return [] if label.name == said.name and overlap(label, said) >= SAME_PLACE else _gone(label)
    left = region(label).mask()
    if label.name == said.name:
        left &= ~region(said).mask()
    return _gone(label.model_copy(update={"region": Region.of(left)})) if left.any() else []


def _gone(label: Label) -> list[Label]:
    """The verdict on a label that did not come back."""
    return [] if label.verdict == "ignore" else [label.model_copy(update={"verdict": "reject"})]


def _new(drawn: Drawn) -> Label:
    return Label(name=drawn.name, verdict="ignore" if drawn.ignored else "human", **_place(drawn))


def _place(drawn: Drawn) -> dict[str, object]:
    """The place as a field of a label."""
    return {"region" if isinstance(drawn.place, Region) else "xyxy": drawn.place}
