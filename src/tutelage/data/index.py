"""Columnar index of a data set: images and boxes as memory-mapped Arrow files, for millions of images in little memory.

Readers fill it, everything else reads it. An `Index` is a view: two Arrow files, a selection of image rows and a
mapping of class labels. It pickles as their paths, so that loader workers share the pages of the files.

Masks stand in it as paths. Its boxes are then *regions*, one for each class that occurs in an image: the hull of the
pixels, their number as `area`; so that all that counts, splits and joins by class works for masks as it does for boxes.

Legend: n images, m boxes. Sizes are (height, width), coordinates xyxy in pixels; a row's boxes stand in fractions of
the image where its size was not known when it was read (YOLO and OpenImages without images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from tutelage.data.fingerprint import chunks, fingerprint_of
from tutelage.data.images import probe
from tutelage.data.masks import MaskCoding, MaskFile
from tutelage.data.storage import (
    BoxColumns,
    box_table,
    cache_folder,
    cache_key,
    content_key,
    image_table,
    map_boxes,
    map_images,
    write_tables,
)
from tutelage.files import atomic_folder, read_json, write_json
from tutelage.types import Annotation, Boxes

__all__ = ["BoxColumns", "Index", "cache_folder", "cache_key", "header_size"]

PIXELS, FRACTIONS_SHOWN, FRACTIONS_STORED = 0, 1, 2
"""Units of an image's boxes: pixels, or fractions of the image as shown or as stored (EXIF)."""

IntArray = NDArray[np.int64]


class Index:
    """Images of a data set with their boxes; rows count from 0 to `len(index) - 1`."""

    def __init__(
        self, folder: Path, rows: IntArray | None = None, classes: tuple[tuple[str, ...], IntArray] | None = None
    ) -> None:
        """Opens what `build` wrote.

        Args:
            folder: holds images.arrow, boxes.arrow and meta.json.
            rows: the chosen images; all when None.
            classes: class names to show, and for each stored label its place among them (-1: not shown).
        """
        self.folder = folder
        self._rows = rows
        self._classes = classes

    @classmethod
    def build(
        cls,
        *,
        roots: Sequence[Path],
        paths: Sequence[str] | pa.Array,
        class_names: Sequence[str],
        sizes: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        xyxy: ArrayLike = (),
        labels: ArrayLike = (),
        area: ArrayLike | None = None,
        ignore: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        relative: ArrayLike | None = None,
        image_class: ArrayLike | None = None,
        root_of: ArrayLike | None = None,
        masks: Sequence[str] | pa.Array | None = None,
        coding_of: ArrayLike | None = None,
        codings: Sequence[MaskCoding] = (),
        digests: ArrayLike | None = None,
        description: str = "",
        counts: Mapping[str, int] | None = None,
        declared: bool = True,
        annotated: bool = True,
        shown: bool = False,
        folder: Path | None = None,
    ) -> Self:
        """Writes columns to files and opens them.

        Args:
            roots: folders that image paths are relative to.
            paths: (n,) relative paths.
            class_names: names by label.
            sizes: (n, 2) annotated (height, width); 0 where unknown.
            offsets: (n + 1,) where each image's boxes begin; the boxes stand in image order.
            xyxy: (m, 4) pixels, or fractions where `relative`.
            labels: (m,) places in `class_names`.
            area: (m,) square pixels; width x height when None.
            ignore: (m,) values of `Boxes.ignore`.
            scores: (m,) confidences; 1 when None.
            relative: (n,) unit of the image's boxes: PIXELS, FRACTIONS_SHOWN or FRACTIONS_STORED.
            image_class: (n,) class of the whole image, -1 for none.
            root_of: (n,) which of `roots`.
            masks: (n,) paths of masks below the root of their coding, "" for none; None for a set without masks.
            coding_of: (n,) which of `codings`, -1 for none; the first when None.
            codings: what the values of masks mean, in places of `class_names`.
            digests: (n,) hashes of the masks' content.
            description: what was read, in words.
            counts: what was mended or dropped.
            declared: whether the source lists its classes, or they were collected from its boxes.
            annotated: whether a person said what is in the images (without boxes: nothing).
            shown: whether the boxes are known to refer to pictures as shown (predictions), whatever their EXIF says.
            folder: where to keep it, taken as it is if it is there; when None a cache folder named by the content.
        """
        images = image_table(
            paths,
            sizes,
            offsets,
            root=root_of,
            relative=relative,
            image_class=image_class,
            masks=masks,
            coding_of=coding_of,
            digests=digests,
        )
        boxes = box_table(xyxy, labels, area, ignore, scores)
        meta = {
            "class_names": list(class_names),
            "roots": [str(root) for root in roots],
            "description": description,
            "counts": dict(counts or {}),
            "declared": declared,
            "annotated": annotated,
            "shown": shown,
            "codings": [coding.as_dict() for coding in codings],
        }
        folder = folder or cache_folder() / content_key(meta, images, boxes)
        if not cls.cached(folder):
            with atomic_folder(folder) as own:
                write_tables(own, images, boxes)
                index = cls(own)
                index._meta = meta
                write_json(own / "meta.json", {**meta, "fingerprint": fingerprint_of(index)})
        return cls(folder)

    @staticmethod
    def cached(folder: Path) -> bool:
        """Whether `folder` holds an index."""
        return (folder / "meta.json").is_file()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_rows": self._rows, "_classes": self._classes}

    @cached_property
    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = read_json(self.folder / "meta.json")
        return meta

    @cached_property
    def _codings(self) -> tuple[MaskCoding, ...]:
        return tuple(MaskCoding.from_dict(raw) for raw in self._meta["codings"])

    @property
    def codings(self) -> tuple[MaskCoding, ...]:
        """What the values of masks mean, in places of `class_names`."""
        if self._classes is None:
            return self._codings
        return tuple(coding.relabeled(self._classes[1]) for coding in self._codings)

    @cached_property
    def _images(self) -> dict[str, Any]:
        return map_images(self.folder)

    @cached_property
    def _boxes(self) -> dict[str, NDArray[Any]]:
        return map_boxes(self.folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return self._classes[0] if self._classes else tuple(self._meta["class_names"])

    @cached_property
    def description(self) -> str:
        """What it is, in one line: "COCO json train.json: 205 images, 2 300 boxes, 3 classes; images in ../images"."""
        what, _, where = self.origin.partition("; ")
        amounts = [f"{len(self):_} images{' with masks' * self.has_masks}".replace("_", " ")]
        if self.annotated and not self.has_masks:
            amounts.append(f"{self.num_boxes:_} boxes".replace("_", " "))
        if self.annotated:
            amounts.append(f"{len(self.class_names)} classes")
        return f"{what}: {', '.join(amounts)}{'; ' if where else ''}{where}"

    @property
    def origin(self) -> str:
        """What was read, in words: "COCO json train.json; images in ../images"."""
        return str(self._meta["description"])

    @property
    def counts(self) -> dict[str, int]:
        """What reading mended, dropped or marked, of the whole source."""
        return dict(self._meta["counts"])

    @property
    def declared(self) -> bool:
        """Whether the source lists its classes, or they were collected from its boxes."""
        return bool(self._meta["declared"])

    @property
    def annotated(self) -> bool:
        """Whether a person said what is in the images."""
        return bool(self._meta["annotated"])

    @property
    def shown(self) -> bool:
        """Whether the boxes are known to refer to pictures as shown, whatever their EXIF orientation."""
        return bool(self._meta["shown"])

    @property
    def has_masks(self) -> bool:
        """Whether its images have masks (single ones may lack theirs)."""
        return "mask" in self._images

    @property
    def annotation(self) -> Annotation:
        """What the images are annotated with."""
        return "masks" if self.has_masks else "boxes"

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """Folders that image paths are relative to."""
        return tuple(Path(root) for root in self._meta["roots"])

    @cached_property
    def rows(self) -> IntArray:
        """(n,) rows in the files."""
        return np.arange(len(self._images["root"])) if self._rows is None else self._rows

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of relative paths, sizes, classes and boxes of the rows; never absolute paths or times."""
        if self._rows is None and self._classes is None:
            return str(self._meta["fingerprint"])
        return fingerprint_of(self)

    @cached_property
    def num_boxes(self) -> int:
        """Boxes of the selected rows, ignored ones included."""
        if self._rows is None and self._classes is None:
            return len(self._boxes["label"])
        return sum(len(self.box_columns(rows)) for rows in chunks(len(self)))

    def __len__(self) -> int:
        return len(self._images["root"]) if self._rows is None else len(self._rows)

    def _stored(self, row: int) -> int:
        return int(row if self._rows is None else self._rows[row])

    def relative_path(self, row: int) -> str:
        """Path of an image below its root, as the source writes it."""
        return str(self._images["path"][self._stored(row)].as_py())

    def relative_paths(self, rows: NDArray[Any] | None = None) -> pa.Array:
        """(n,) Arrow strings, see `relative_path`."""
        if rows is None and self._rows is None:
            return self._images["path"]
        return self._images["path"].take(pa.array(self._select(rows)))

    def path(self, row: int) -> Path:
        """Path of an image file."""
        stored = self._stored(row)
        root: Path = self.roots[self._images["root"][stored]]
        return root / str(self._images["path"][stored].as_py())

    def root_numbers(self) -> NDArray[np.int32]:
        """(n,) place of each image's root in `roots`."""
        numbers: NDArray[np.int32] = self._images["root"][self.rows]
        return numbers

    def size(self, row: int) -> tuple[int, int]:
        """Annotated (height, width); (0, 0) where unknown."""
        stored = self._stored(row)
        return int(self._images["height"][stored]), int(self._images["width"][stored])

    def sizes(self) -> NDArray[np.int32]:
        """(n, 2) annotated (height, width)."""
        return np.stack([self._images["height"][self.rows], self._images["width"][self.rows]], axis=1)

    def image_class(self, row: int) -> int:
        """Class of the whole image, -1 for none."""
        return int(self._images["image_class"][self._stored(row)])

    def image_classes(self) -> NDArray[np.int32]:
        """(n,) classes of the whole images, -1 for none."""
        classes: NDArray[np.int32] = self._images["image_class"][self.rows]
        return classes

    def units(self) -> NDArray[np.uint8]:
        """(n,) units of the images' boxes: PIXELS, FRACTIONS_SHOWN or FRACTIONS_STORED."""
        units: NDArray[np.uint8] = self._images["relative"][self.rows]
        return units

    def mask_columns(self) -> tuple[list[str], NDArray[np.int32], NDArray[np.uint64]]:
        """(n,) paths of masks, places of their codings in `codings`, hashes of their content; "", -1, 0 for none."""
        if not self.has_masks:
            return [""] * len(self), np.full(len(self), -1, np.int32), np.zeros(len(self), np.uint64)
        paths = self._images["mask"].take(pa.array(self.rows)).to_pylist()
        return paths, self._images["coding"][self.rows], self._images["digest"][self.rows]

    def mask_file(self, row: int) -> MaskFile | None:
        """The mask of an image, for `read_mask`."""
        if not self.has_masks:
            return None
        stored = self._stored(row)
        coding = int(self._images["coding"][stored])
        if coding < 0:
            return None
        shown = None if self._classes is None else self._classes[1]
        return MaskFile(str(self._images["mask"][stored].as_py()), self._codings[coding], shown)

    def boxes(self, row: int) -> Boxes:
        """Boxes of an image in pixels; the image's header is read where the source gives fractions and no size.

        Raises:
            InputError: that header cannot be read.
        """
        stored = self._stored(row)
        part = slice(int(self._images["start"][stored]), int(self._images["end"][stored]))
        columns = {name: column[part] for name, column in self._boxes.items()}
        xyxy, area = columns["xyxy"], columns["area"]
        if self._images["relative"][stored] and len(xyxy):
            height, width = header_size(self.path(row), int(self._images["relative"][stored]))
            xyxy, area = xyxy * (width, height, width, height), area * (height * width)
        boxes = Boxes.build(xyxy, columns["label"], columns.get("score"), area, columns["ignore"])
        if self._classes is None:
            return boxes
        labels = self._classes[1][boxes.labels]
        return Boxes(boxes.xyxy, labels, boxes.scores, boxes.area, boxes.ignore).select(labels >= 0)

    def box_columns(self, rows: NDArray[Any] | None = None) -> BoxColumns:
        """Boxes of `rows` (all when None) as flat columns."""
        stored = self._select(rows)
        counts = self._images["end"][stored] - self._images["start"][stored]
        images = np.repeat(np.arange(len(stored)) if rows is None else np.asarray(rows, np.int64), counts)
        firsts = np.cumsum(counts) - counts
        at = np.repeat(self._images["start"][stored] - firsts, counts) + np.arange(len(images))
        labels = self._boxes["label"][at].astype(np.int64)
        if self._classes is not None:
            labels = self._classes[1][labels]
            shown = labels >= 0
            images, at, labels, counts = images[shown], at[shown], labels[shown], None
        scores = self._boxes["score"][at] if "score" in self._boxes else np.ones(len(at))
        relative = self._images["relative"][self._select(images)].astype(bool)
        xyxy, area, ignore = (self._boxes[name][at] for name in ("xyxy", "area", "ignore"))
        return BoxColumns(images, xyxy, labels, area, ignore, scores, relative)

    def labels_per_image(self) -> tuple[IntArray, IntArray]:
        """(n + 1,) offsets and (m,) labels: those of image i are `labels[offsets[i] : offsets[i + 1]]`."""
        columns = self.box_columns()
        counts = np.bincount(columns.images, minlength=len(self))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), columns.labels

    def select(self, rows: NDArray[Any]) -> Self:
        """A view of chosen rows (numbers or a boolean mask (n,)), in that order."""
        return type(self)(self.folder, self.rows[rows], self._classes)

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """A view with these class names, matched by name; boxes of other classes are left out."""
        if tuple(class_names) == self.class_names:
            return self
        place = {name: number for number, name in enumerate(class_names)}
        stored = self._meta["class_names"]
        return type(self)(
            self.folder, self._rows, (tuple(class_names), np.array([place.get(name, -1) for name in stored], np.int64))
        )

    def with_boxes(
        self,
        offsets: ArrayLike,
        xyxy: ArrayLike,
        labels: ArrayLike,
        *,
        class_names: Sequence[str],
        sizes: ArrayLike | None = None,
        **columns: Any,
    ) -> Self:
        """The same images with other boxes in pixels (predictions, corrections); columns as in `build`."""
        return self.build(
            **self._same_images(sizes),
            class_names=class_names,
            offsets=offsets,
            xyxy=xyxy,
            labels=labels,
            shown=True,
            **columns,
        )

    def with_masks(
        self,
        masks: Sequence[str] | pa.Array,
        coding_of: ArrayLike | None,
        codings: Sequence[MaskCoding],
        *,
        class_names: Sequence[str],
        sizes: ArrayLike | None = None,
        **columns: Any,
    ) -> Self:
        """The same images with other masks (pseudo-masks, corrections); columns as in `build`."""
        return self.build(
            **self._same_images(sizes),
            class_names=class_names,
            masks=masks,
            coding_of=coding_of,
            codings=codings,
            shown=True,
            **columns,
        )

    def _same_images(self, sizes: ArrayLike | None) -> dict[str, Any]:
        return {
            "roots": self.roots,
            "paths": self.relative_paths(),
            "root_of": self.root_numbers(),
            "sizes": self.sizes() if sizes is None else sizes,
        }

    def _select(self, rows: NDArray[Any] | None) -> IntArray:
        return self.rows if rows is None else self.rows[rows]


def header_size(path: Path, fractions: int) -> tuple[int, int]:
    """(height, width) that fractions of an image refer to, from its header (`InputError` where there is none)."""
    info = probe(path)
    return info.stored_size if fractions == FRACTIONS_STORED else info.shown_size
