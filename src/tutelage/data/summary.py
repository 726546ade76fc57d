"""What is in a data set, in a few lines for people: images, classes, boxes or pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.data.findings import counted, grouped, pixel_boxes
from tutelage.data.index import Index
from tutelage.data.survey import Survey
from tutelage.types import NOT_IGNORED

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # square pixels, as COCO bins sizes
CLASSES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Summary:
    """What is in a set of boxes, or in one whose labels are absent or hidden."""

    name: str
    description: str
    images: int
    image_sizes: str
    boxes_per_class: dict[str, int] | None  # none where labels are absent or hidden
    boxes_per_image: tuple[int, int, int] = (0, 0, 0)  # least, median, most
    box_sizes: tuple[float, float, float] | None = None  # shares small, medium, large

    def lines(self) -> Iterator[str]:
        """The set in a few lines, each complete in itself."""
        hidden = "" if self.boxes_per_class is not None else " (labels are not used)"
        yield f"{self.name}: {self.description}{hidden}"
        facts = [self.image_sizes] if self.image_sizes else []
        if self.boxes_per_class:
            least, median, most = self.boxes_per_image
            facts.append(f"{least} to {most} boxes an image, median {median}")
        if self.box_sizes:
            names = ("small", "medium", "large")
            facts.append(", ".join(f"{share:.0%} {name}" for share, name in zip(self.box_sizes, names, strict=True)))
        if facts:
            yield f"{self.name}: {'; '.join(facts)}"
        if self.boxes_per_class:
            ranked = sorted(self.boxes_per_class.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {grouped(count)}" for name, count in ranked[:CLASSES_SHOWN])
            more = f", and {len(ranked) - CLASSES_SHOWN} classes more" if len(ranked) > CLASSES_SHOWN else ""
            yield f"{self.name}: boxes of {shown}{more}"


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """What is in a set of masks."""

    name: str
    description: str
    images: int
    image_sizes: str
    classes: dict[str, tuple[int, int]]  # pixels of each class, and images that have some
    ignored: float  # share of the pixels without a label

    def lines(self) -> Iterator[str]:
        """The set in a few lines, each complete in itself."""
        yield f"{self.name}: {self.description}"
        facts = [self.image_sizes] if self.image_sizes else []
        facts.append(f"{_percent(self.ignored)} of the pixels without a label")
        yield f"{self.name}: {'; '.join(facts)}"
        total = max(sum(pixels for pixels, _ in self.classes.values()), 1)
        ranked = sorted(self.classes.items(), key=lambda item: -item[1][0])
        shown = ", ".join(
            f"{class_name} {_percent(pixels / total)} in {counted(images, 'image')}"
            for class_name, (pixels, images) in ranked[:CLASSES_SHOWN]
        )
        more = f", and {len(ranked) - CLASSES_SHOWN} classes more" if len(ranked) > CLASSES_SHOWN else ""
        yield f"{self.name}: labeled pixels of {shown}{more}"


def _percent(share: float) -> str:
    """A share with two digits that say something: 53%, 5.1%, 0.023%."""
    return f"{share:.0%}" if share >= 0.095 or not share else f"{100 * share:.2g}%"


def summarize(name: str, index: Index, look: Survey | None, *, hidden: bool = False) -> Summary:
    """What is in a set of boxes; sizes are those of `look` where there is one. `hidden`: its labels are not used."""
    extent = _image_sizes(index, look)
    if hidden or not index.annotated:
        return Summary(name, index.description, len(index), extent, None)
    columns = index.box_columns()
    plain = columns.ignore == NOT_IGNORED
    per_class = np.bincount(columns.labels[plain], minlength=len(index.class_names))
    per_image = np.bincount(columns.images, minlength=len(index)) if len(index) else np.zeros(1, np.int64)
    spread = int(per_image.min()), int(np.median(per_image)), int(per_image.max())
    by_class = dict(zip(index.class_names, per_class.tolist(), strict=True))
    return Summary(name, index.description, len(index), extent, by_class, spread, _box_sizes(index, look))


def summarize_masks(name: str, index: Index, look: Survey | None, ignored: float) -> MaskSummary:
    """What is in a set of masks; `ignored` is the share of their pixels without a label."""
    columns, classes = index.box_columns(), len(index.class_names)
    pixels = np.bincount(columns.labels, columns.area, classes).astype(np.int64)
    images = np.bincount(columns.labels, minlength=classes)
    by_class = {
        class_name: (int(pixels[label]), int(images[label])) for label, class_name in enumerate(index.class_names)
    }
    return MaskSummary(name, index.description, len(index), _image_sizes(index, look), by_class, ignored)


def _image_sizes(index: Index, look: Survey | None) -> str:
    sizes = look.sizes[look.usable] if look is not None else index.sizes()
    extent = _extent(sizes[(sizes > 0).all(axis=1)])
    if look is not None and len(look) < len(index):
        return f"{grouped(len(look))} images looked at, {extent}"
    return extent


def _extent(sizes: NDArray[np.int32]) -> str:
    """Sizes (n, 2) of images in words."""
    if not len(sizes):
        return ""
    area = sizes.astype(np.int64).prod(axis=1)
    least, most = (f"{sizes[row, 1]} x {sizes[row, 0]}" for row in (area.argmin(), area.argmax()))
    return f"{least} pixels" if (sizes == sizes[0]).all() else f"{least} to {most} pixels"


def _box_sizes(index: Index, look: Survey | None) -> tuple[float, float, float] | None:
    columns = index.box_columns()
    boxes, known = pixel_boxes(index, columns, look)
    spans = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    area = np.where(columns.relative, spans, columns.area)[known]
    if not len(area):
        return None
    small, large = float((area < SMALL_AREA).mean()), float((area >= LARGE_AREA).mean())
    return small, 1 - small - large, large
