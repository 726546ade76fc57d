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

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index
from tutelage.data.masks import MaskCoding, MaskFile, encode_png, read_stored
from tutelage.data.pseudo.tables import Columns, Found, Layout, Limits, table_path
from tutelage.types import IGNORE, Prediction

LEVELS = 256  # levels are 256ths, see `Prediction.levels`
STEP = 4  # of which these are kept


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

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Of one part: where each image's mask is (n,)."""
        rows = np.cumsum(images["status"] == "ok") - 1
        name = table_path(Path(), part, "masks").name
        return {"masks": np.array([f"{name}#{row}" for row in rows[used].tolist()], object)}

    def index(self, images: Index, targets: Columns, store: Path, limits: Limits, **described: Any) -> Index:
        """The images with their masks, which stay in the store; the threshold applies whenever one is read."""
        masks: list[str] = targets["masks"].tolist()
        coding = MaskCoding.of_store(store.resolve(), least_levels(limits))
        return images.with_masks(masks, None, (coding,), **described)


def least_levels(limits: Limits) -> NDArray[np.uint16]:
    """(K,) the lowest level that reaches each class's threshold, 0..256; the highest that is stored is 252."""
    return np.ceil(limits.astype(np.float64) * LEVELS).astype(np.uint16)


def stored_masks(
    store: Path, part: int, images: Columns, rows: NDArray[np.int64], limits: Limits
) -> Iterator[StoredMask]:
    """The masks of those of `rows` (pool rows) that are in a part, under the thresholds; one is decoded at a time.

    Raises:
        InputError: the part is missing or damaged.
    """
    name = table_path(Path(), part, "masks").name
    least = least_levels(limits)
    coding = MaskCoding.of_store(store, least)
    usable = images["status"] == "ok"
    for row, at in enumerate(np.flatnonzero(usable).tolist()):
        if images["image_id"][at] not in rows:
            continue
        classes, levels = read_stored(MaskFile(f"{name}#{row}", coding))
        mask = np.where(levels < least[classes], IGNORE, classes).astype(np.uint8)
        size = int(images["height"][at]), int(images["width"][at])
        yield StoredMask(int(images["image_id"][at]), str(images["path"][at]), size, mask, levels)


def _areas(mask: NDArray[np.uint8], levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(3, m) class, level and number of pixels of what occurs."""
    pixels = np.bincount((mask.astype(np.int64) * LEVELS + levels).ravel())
    (occurring,) = pixels.nonzero()
    return np.stack([*np.divmod(occurring, LEVELS), pixels[occurring]])
