"""What people said of pseudo-labels: accepted, rejected, ignored, drawn. A JSON file of its own, beside any store.

A verdict names an image by its path in the pool and a place in it, not a row of a store: it holds for the store that
was looked at, for those of later rounds and for those of other teachers.
`boxes.py` and `masks.py` lay verdicts over a store.

Legend: h, w pixels of the picture that a region is drawn on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.data.rle import counts_of, decode_counts, encode_counts
from tutelage.files import read_json, write_json
from tutelage.types import Annotation, InputError

FORMAT = "tutelage-verdicts-1"
SAME_PLACE = 0.5  # IoU from which two boxes of a class speak of one object
MAX_PIXELS = 1 << 28  # of one image: no file makes a reader draw more

Said = Literal["accept", "reject", "ignore", "human"]
"""accept: right as it is; reject: not there; ignore: neither taught nor held against; human: drawn or corrected."""
COUNTED: Mapping[Said, str] = {"human": "human", "accept": "accepted", "reject": "rejected", "ignore": "ignored"}
Pixels = Annotated[int, Field(gt=0)]
Size = tuple[Pixels, Pixels]  # height, width
Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image as shown
Mask = NDArray[np.bool_]


class _Entry(BaseModel):
    """Part of a file: unknown keys, NaN and infinity are refused, values cannot be changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Region(_Entry):
    """Some pixels of a picture of the image's shape, in COCO's compressed run-length coding."""

    size: Size
    counts: str

    @model_validator(mode="after")
    def _covers_the_picture(self) -> Self:
        if self.size[0] * self.size[1] > MAX_PIXELS:
            raise ValueError(f"a picture of {self.size[0]} x {self.size[1]} pixels; at most {MAX_PIXELS} are allowed")
        counts, pixels = decode_counts(self.counts), self.size[0] * self.size[1]
        if ((counts < 0) | (counts > pixels)).any() or counts.sum() != pixels:
            raise ValueError(f"the runs do not add up to {self.size[0]} x {self.size[1]} pixels")
        return self

    @classmethod
    def of(cls, mask: Mask) -> Self:
        """The region of a mask (h, w)."""
        pixels = mask.T.ravel()
        edges = np.flatnonzero(np.diff(pixels, prepend=False, append=False))
        height, width = mask.shape
        return cls(size=(height, width), counts=encode_counts(counts_of(edges.reshape(-1, 2), pixels.size)))

    def mask(self, size: tuple[int, int] | None = None) -> Mask:
        """(h, w) of the own size, or of another one, by the nearest pixel."""
        counts = decode_counts(self.counts)
        inside = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8).reshape(self.size[::-1]).T
        if size not in (None, self.size):
            assert size is not None, "narrowed for the type checker"
            inside = cv2.resize(np.ascontiguousarray(inside), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(inside, bool)


class Label(_Entry):
    """What was said of one place: a box or a region, and where it came from."""

    name: str = Field(alias="class")
    verdict: Said | None = None  # None: shown to people, who said nothing yet; in no file of verdicts
    xyxy: Corners | None = None
    region: Region | None = Field(None, alias="rle")
    score: Annotated[float, Field(ge=0, le=1)] | None = None  # of the teacher; None where a person drew it
    teacher: str | None = None
    round: int | None = None

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if (self.xyxy is None) == (self.region is None):
            raise ValueError("a label has either xyxy (boxes) or rle (masks)")
        if self.xyxy is not None and not (self.xyxy[0] < self.xyxy[2] and self.xyxy[1] < self.xyxy[3]):
            raise ValueError(f"the box {list(self.xyxy)} is empty; x1 < x2 and y1 < y2 are needed")
        return self


class JudgedImage(_Entry):
    """What was said of one image."""

    path: str  # in the pool, as its listing has it
    size: Size  # as shown
    reviewed: bool = False  # every label was looked at: beside what people said there is nothing
    labels: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _labels_lie_inside(self) -> Self:
        height, width = self.size
        for label in self.labels:
            if label.xyxy and not (label.xyxy[0] < width and label.xyxy[1] < height and min(label.xyxy[2:]) > 0):
                raise ValueError(f"{self.path}: the box {list(label.xyxy)} lies outside of {width} x {height} pixels")
        return self


class Verdicts(_Entry):
    """What people said of the images of a pool."""

    format: Literal["tutelage-verdicts-1"] = "tutelage-verdicts-1"
    annotation: Annotation
    class_names: tuple[str, ...]
    images: tuple[JudgedImage, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        paths = [image.path for image in self.images]
        if len(set(paths)) < len(paths):
            twice = next(path for at, path in enumerate(paths) if path in paths[:at])
            raise ValueError(f"the image {twice} stands in it twice")
        for image in self.images:
            for label in image.labels:
                if label.name not in self.class_names:
                    raise ValueError(
                        f"{image.path}: unknown class {label.name!r}; class_names has {', '.join(self.class_names)}"
                    )
                if (label.xyxy is not None) != (self.annotation == "boxes"):
                    raise ValueError(f"{image.path}: labels of {self.annotation} are needed")
        return self

    def plain(self) -> dict[str, object]:
        """Values for JSON, as in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=False)

    def digest(self) -> str:
        """Hex digest of all that is said."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class People:
    """What people said of the images of one store."""

    images: Mapping[int, JudgedImage]  # by row of the pool
    class_names: tuple[str, ...]  # of the store

    def of(self, rows: NDArray[np.int64]) -> dict[int, JudgedImage]:
        """What was said of those of `rows` of which anything was said."""
        return {row: self.images[row] for row in rows.tolist() if row in self.images} if self.images else {}

    def reviewed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which of `rows` were looked at as a whole."""
        return np.isin(rows, [row for row, image in self.images.items() if image.reviewed])

    def label(self, label: Label) -> int:
        """The place of a label's class in the store."""
        return self.class_names.index(label.name)

    def counts(self) -> dict[str, int]:
        """How many labels people drew or corrected, accepted, rejected and ignored; none where nobody spoke."""
        said = Counter(label.verdict for image in self.images.values() for label in image.labels)
        return {name: said[verdict] for verdict, name in COUNTED.items()} if self.images else {}


def read_verdicts(path: Path) -> Verdicts:
    """Verdicts of a file.

    Raises:
        InputError: missing, no JSON, or not of this form; the message names the place.
    """
    verdicts = parse_verdicts(read_json(path), str(path))
    require_said(verdicts, str(path))
    return verdicts


def require_said(verdicts: Verdicts, source: str) -> None:
    """Nothing, if every label has a verdict.

    Raises:
        InputError: one has none; `source` is named.
    """
    for image in verdicts.images:
        if any(label.verdict is None for label in image.labels):
            raise InputError(
                f"{source}: {image.path}: a label has no verdict; accept, reject, ignore or human is needed."
            )


def parse_verdicts(plain: object, source: str) -> Verdicts:
    """Verdicts from JSON values; labels without a verdict are let through.

    Raises:
        InputError: not of this form; `source` is named.
    """
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise InputError(f"{source}: holds no verdicts of people (format {FORMAT}). Give a file that review wrote.")
    try:
        return Verdicts.model_validate(plain)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{source}: {place + ': ' if place else ''}{problem['msg'].removeprefix('Value error, ')}. "
            "Mend the file, or export it again."
        ) from None


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Writes the file, whole or not at all."""
    write_json(path, verdicts.plain())


def require_fitting(
    verdicts: Verdicts, class_names: Sequence[str], annotation: str, paths: Iterable[str], source: str
) -> None:
    """Nothing, if verdicts speak of these classes and images.

    Raises:
        InputError: another kind of label, a class or an image that there is not, or an image that is there twice.
    """
    if verdicts.annotation != annotation:
        raise InputError(f"{source}: is about {verdicts.annotation}; {annotation} are needed here. Give another file.")
    unknown = sorted({label.name for image in verdicts.images for label in image.labels} - set(class_names))
    if unknown:
        raise InputError(
            f"{source}: speaks of {', '.join(unknown)}; the classes are {', '.join(class_names)}. Give other verdicts."
        )
    found = dict.fromkeys((image.path for image in verdicts.images), 0)
    for path in paths:
        if path in found:
            found[path] += 1
    for path, times in found.items():
        if times != 1:
            state = "is not in the pool" if not times else f"stands in the pool {times} times"
            raise InputError(f"{source}: the image {path} {state}; each must be there once. Give the same pool.")


def merge(old: Verdicts, new: Verdicts) -> Verdicts:
    """Both, the newer laid over the older.

    A newer verdict takes the place of the older one on the same object (boxes of one class that overlap by half, the
    likeliest pair first), or of the older one's pixels. In an image that was newly reviewed as a whole, what people
    had accepted, drawn or ignored before is replaced; earlier rejections stay.

    Raises:
        InputError: they are about different classes or kinds of labels.
    """
    if (old.annotation, old.class_names) != (new.annotation, new.class_names):
        raise InputError(
            f"verdicts: the earlier ones are about {old.annotation} of {', '.join(old.class_names)}, the new ones "
            f"about {new.annotation} of {', '.join(new.class_names)}; both must be the same. Choose another --out."
        )
    images = {image.path: image for image in old.images}
    for image in new.images:
        before = images.get(image.path)
        images[image.path] = _laid_over(before, image) if before else image
    return new.model_copy(update={"images": tuple(images.values())})


def _laid_over(old: JudgedImage, new: JudgedImage) -> JudgedImage:
    if old.size != new.size:
        raise InputError(f"verdicts: {new.path} was {old.size} pixels and is {new.size} now. Choose another --out.")
    kept = [label for label in old.labels if label.verdict == "reject" or not new.reviewed]
    rest = _other_pixels(kept, new.labels) if any(label.region for label in kept) else _other_boxes(kept, new.labels)
    return new.model_copy(update={"labels": (*rest, *new.labels), "reviewed": old.reviewed or new.reviewed})


def _other_boxes(old: Sequence[Label], new: Sequence[Label]) -> list[Label]:
    """Those of `old` of which no newer label speaks; each newer one speaks of one."""
    pairs = [(overlap(a, b), row, at) for row, a in enumerate(old) for at, b in enumerate(new) if a.name == b.name]
    replaced: set[int] = set()
    spoken: set[int] = set()
    for shared, row, at in sorted(pairs, reverse=True):
        if shared >= SAME_PLACE and row not in replaced and at not in spoken:
            replaced.add(row)
            spoken.add(at)
    return [label for row, label in enumerate(old) if row not in replaced]


def _other_pixels(old: Sequence[Label], new: Sequence[Label]) -> list[Label]:
    """`old` without the pixels of which a newer label speaks; a rejection speaks of its class alone."""
    rest = []
    for label in old:
        assert label.region is not None, "labels of masks"
        left = label.region.mask()
        for newer in new:
            if newer.region is not None and (newer.verdict != "reject" or newer.name == label.name):
                left = left & ~newer.region.mask(label.region.size)
        if left.any():
            rest.append(label.model_copy(update={"region": Region.of(left)}))
    return rest


def overlap(a: Label, b: Label) -> float:
    """IoU of two boxes."""
    assert a.xyxy is not None and b.xyxy is not None, "labels of boxes"
    return float(ious(np.array([a.xyxy]), np.array([b.xyxy]))[0, 0])


def ious(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, m) intersection over union of boxes a (n, 4) and b (m, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared), np.float64)
