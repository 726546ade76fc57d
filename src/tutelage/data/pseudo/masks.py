"""Pseudo-masks in a store: the likeliest class of every pixel, and how sure the teacher is of it.

Confidence is kept in steps of 1/64, rounded down: levels 0, 4, .. 252 of 256ths. A threshold of a half is met exactly
by level 128. All 256 levels take a third to two thirds more room, for edges that nobody sets a threshold by
(benchmarks/bench_store.py). Both pictures are PNGs, one row group an image, so that training reads one alone.

Legend: K classes, n images used, m areas of one class and level in one image, h x w pixels of a stored mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index
from tutelage.data.masks import Mask, MaskCoding, MaskFile, encode_png, read_stored
from tutelage.data.pseudo.tables import Columns, Found, Layout, Limits, table_path
from tutelage.data.pseudo.verdicts import JudgedImage, Label, People
from tutelage.files import make_folder
from tutelage.types import IGNORE, Prediction

LEVELS = 256  # levels are 256ths, see `Prediction.levels`
STEP = 4  # of which these are kept
SURE = LEVELS  # level of what people said: it reaches every threshold
TEACHER, NOBODY = -1, -2  # see `owners`
BACKGROUND = "background"  # class that pixels of a rejected one get
DRAWN = "drawn.parquet"  # masks of which people spoke


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A pseudo-mask under a threshold."""

    image_id: int  # row of the pool
    path: str  # relative, as the pool's listing has it
    size: tuple[int, int]  # original (height, width)
    mask: NDArray[np.uint8]  # (h, w) classes, IGNORE below the threshold
    levels: NDArray[np.uint8]  # (h, w) confidence in 256ths


class MaskKind:
    """Stores of masks (see `Kind`): `levels` says what was found without any picture, `masks` holds the pictures."""

    unit = "pixels"
    table = "levels"
    layouts: Mapping[str, Layout] = {
        "levels": Layout(
            pa.schema(
                {
                    "image_id": pa.int64(),
                    "label": pa.uint8(),  # place in the manifest's class names
                    "level": pa.uint8(),
                    "pixels": pa.int32(),  # of the stored mask
                }
            )
        ),
        "masks": Layout(
            pa.schema({"image_id": pa.int64(), "classes": pa.binary(), "levels": pa.binary()}),  # PNG
            {"compression": "none", "use_dictionary": False, "write_statistics": False, "row_group_size": 1},
        ),
    }

    def scale(self, prediction: Prediction) -> float:
        """Height of the mask over that of the image."""
        assert prediction.mask is not None, "a prediction of masks"
        return len(prediction.mask) / prediction.size[0]

    def rows(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Rows of `levels`, and the one of `masks`."""
        assert prediction.mask is not None and prediction.levels is not None, "a prediction of masks"
        levels = prediction.levels - prediction.levels % STEP
        label, level, pixels = _areas(prediction.mask, levels)
        return {
            "levels": {
                "image_id": np.full(len(pixels), prediction.image_id),
                "label": label.astype(np.uint8),
                "level": level.astype(np.uint8),
                "pixels": pixels.astype(np.int32),
            },
            "masks": {
                "image_id": [prediction.image_id],
                "classes": [encode_png(prediction.mask)],
                "levels": [encode_png(levels)],
            },
        }

    def found(self, table: Columns) -> Found:
        """The pixels of each image, class and level."""
        scores = table["level"].astype(np.float32) / np.float32(LEVELS)
        return Found(table["image_id"], table["label"], scores, table["pixels"].astype(np.int64))

    def judged(self, folder: Path, part: int, images: Columns, table: Columns, people: People) -> Columns:
        """`levels` with what people said: their pixels have the level SURE, those without a label are left out."""
        usable = images["image_id"][images["status"] == "ok"]
        said = people.of(usable)
        added = []
        for row, image in said.items():
            mask, levels = settled(*read_stored(_file(folder, part, usable, row)), image, people)
            areas = _areas(mask, levels)
            label, level, pixels = areas[:, areas[0] != IGNORE]
            added.append({"image_id": np.full(len(pixels), row), "label": label, "level": level, "pixels": pixels})
        others = ~np.isin(table["image_id"], list(said))
        joined = {name: np.concatenate([table[name][others], *(rows[name] for rows in added)]) for name in table}
        order = np.argsort(joined["image_id"], kind="stable")
        return {name: column[order] for name, column in joined.items()}

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Of one part: where each image's mask is (n,)."""
        rows = np.cumsum(images["status"] == "ok") - 1
        name = table_path(Path(), part, "masks").name
        return {"masks": np.array([f"{name}#{row}" for row in rows[used].tolist()], object)}

    def index(
        self, images: Index, targets: Columns, store: Path, limits: Limits, people: People, **described: Any
    ) -> Index:
        """The images with their masks, which stay in the store; the threshold applies whenever one is read.

        Those of which people spoke are drawn at the size of the image, into a table beside the index.
        """
        least = least_levels(limits)
        codings = [MaskCoding.of_store(store.resolve(), least)]
        masks: list[str] = targets["masks"].tolist()
        rows: list[int] = targets["rows"].tolist()
        said = people.of(targets["rows"])
        spoken = [at for at, row in enumerate(rows) if row in said]
        if spoken:
            folder = described["folder"].with_name(described["folder"].name + "-people")
            drawn = [_drawn(MaskFile(masks[at], codings[0]), said[rows[at]], people, least) for at in spoken]
            make_folder(folder)
            self.layouts["masks"].write(folder / DRAWN, drawn, {})
            codings.append(MaskCoding.of_store(folder.resolve(), np.zeros(len(limits), np.uint16)))
        for number, at in enumerate(spoken):
            masks[at] = f"{DRAWN}#{number}"
        coding_of = np.isin(np.arange(len(masks)), spoken).astype(np.int64)
        return images.with_masks(masks, coding_of, codings, **described)


def least_levels(limits: Limits) -> NDArray[np.uint16]:
    """(K,) the lowest level that reaches each class's threshold, 0..256; the highest that is stored is 252."""
    return np.ceil(limits.astype(np.float64) * LEVELS).astype(np.uint16)


def stored_masks(
    store: Path, part: int, images: Columns, rows: NDArray[np.int64], limits: Limits, people: People
) -> Iterator[StoredMask]:
    """The masks of those of `rows` (pool rows) that are in a part, under the thresholds; one is decoded at a time.

    Raises:
        InputError: the part is missing or damaged.
    """
    least = least_levels(limits)
    usable = images["status"] == "ok"
    ids = images["image_id"][usable]
    said = people.of(ids)
    for at in np.flatnonzero(usable).tolist():
        row = int(images["image_id"][at])
        if row not in rows:
            continue
        classes, levels = read_stored(_file(store, part, ids, row))
        sure = levels.astype(np.uint16)
        if row in said:
            classes, sure = settled(classes, levels, said[row], people)
        mask = _kept(classes, sure, least)
        size = int(images["height"][at]), int(images["width"][at])
        yield StoredMask(row, str(images["path"][at]), size, mask, sure.clip(0, LEVELS - 1).astype(np.uint8))


def settled(
    mask: NDArray[np.uint8], levels: NDArray[np.uint8], image: JudgedImage, people: People
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Classes and levels (h, w) of a stored mask with what people said: SURE where they did, 0 where nobody speaks."""
    owner = owners(mask, image, people)
    said = np.array([*(_taught(label, people) for label in image.labels), IGNORE, IGNORE], np.uint8)[owner]
    by_teacher = owner == TEACHER
    sure = np.where(said == IGNORE, 0, SURE)
    return np.where(by_teacher, mask, said), np.where(by_teacher, levels, sure).astype(np.uint16)


def owners(mask: NDArray[np.uint8], image: JudgedImage, people: People) -> NDArray[np.int32]:
    """(h, w) whose word counts at each pixel: the number of a label of `image`, TEACHER or NOBODY.

    What is drawn goes before what is rejected, and what is ignored before both; of equals the later one counts.
    """
    owner = np.full(mask.shape, NOBODY if image.reviewed else TEACHER, np.int32)
    for turn in (("reject",), ("accept", "human"), ("ignore",)):
        for number, label in enumerate(image.labels):
            if label.verdict in turn and label.region is not None:
                inside = label.region.mask(mask.shape)
                owner[inside & (mask == people.label(label)) if label.verdict == "reject" else inside] = number
    return owner


def _taught(label: Label, people: People) -> int:
    """The class that the pixels of a label are trained as, or IGNORE: none can be trained as not being of a class."""
    if label.verdict == "ignore":
        return IGNORE
    if label.verdict != "reject":
        return people.label(label)
    return (
        people.class_names.index(BACKGROUND)
        if BACKGROUND in people.class_names and label.name != BACKGROUND
        else IGNORE
    )


def _drawn(file: MaskFile, image: JudgedImage, people: People, least: NDArray[np.uint16]) -> dict[str, Any]:
    """The row of `masks` of an image of which people spoke: final classes at the size of the image."""
    shown = [cv2.resize(one, image.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for one in read_stored(file)]
    classes, levels = (np.asarray(one, np.uint8) for one in shown)
    mask = _kept(*settled(classes, levels, image, people), least)
    return {"image_id": [0], "classes": [encode_png(mask)], "levels": [encode_png(np.zeros_like(mask))]}


def _kept(mask: Mask, levels: NDArray[np.integer], least: NDArray[np.uint16]) -> Mask:
    """(h, w) classes whose level reaches `least` (K,), else IGNORE."""
    never = np.full(IGNORE + 1 - len(least), SURE + 1, np.uint16)  # IGNORE among them
    return np.where(levels < np.append(least, never)[mask], IGNORE, mask).astype(np.uint8)


def _file(folder: Path, part: int, usable: NDArray[np.int64], row: int) -> MaskFile:
    """The stored mask of a pool row; `usable` are the rows of the part that have one."""
    coding = MaskCoding.of_store(folder, np.zeros(0, np.uint16))  # it is read before any threshold
    return MaskFile(f"{table_path(Path(), part, 'masks').name}#{int(np.searchsorted(usable, row))}", coding)


def _areas(mask: NDArray[np.uint8], levels: NDArray[np.integer]) -> NDArray[np.int64]:
    """(3, m) class, level and number of pixels of what occurs."""
    pixels = np.bincount((mask.astype(np.int64) * (SURE + 1) + levels).ravel())
    (occurring,) = pixels.nonzero()
    return np.stack([*np.divmod(occurring, SURE + 1), pixels[occurring]])
