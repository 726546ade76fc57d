"""What the page draws of a store's images: boxes, or the regions of masks, as plain values for its script.

Legend: h x w pixels of a stored mask, H x W of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, StoredMask
from tutelage.data.pseudo.boxes import CORNERS
from tutelage.data.pseudo.tables import Stored
from tutelage.data.pseudo.verdicts import Region
from tutelage.types import IGNORE

LEAST_PIXELS = 12  # of a region, in the stored mask; smaller ones are left out
MOST_REGIONS = 100  # of an image, the largest
FINENESS = 0.6  # pixels by which an outline may differ from the region

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image of the pool and what the teacher saw in it."""

    image_id: int
    path: str
    size: tuple[int, int]  # (H, W)
    labels: list[Plain]  # class, score, xyxy (original pixels); of regions also rle and outline (of the stored mask)


def shown_boxes(store: PseudoStore, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Iterator[Shown]:
    """Usable ones of `rows` (of the pool, ascending) with all their boxes, whatever the threshold, the surest first.

    Raises:
        InputError: a part is missing or damaged.
    """
    for part in np.unique(rows // store.manifest.part_size).tolist():
        images, boxes = store.tables(part)
        wanted = np.isin(images["image_id"], rows) & (images["status"] == "ok")
        order = np.lexsort((-boxes["score"], boxes["image_id"]))
        owners = boxes["image_id"][order]
        for at in np.flatnonzero(wanted).tolist():
            own = order[slice(*np.searchsorted(owners, images["image_id"][at] + np.arange(2)))]
            size = int(images["height"][at]), int(images["width"][at])
            labels = [_box({name: boxes[name][row] for name in boxes}) for row in own.tolist()]
            yield Shown(
                int(images["image_id"][at]), str(images["path"][at]), size, [one for one in labels if _has_area(one)]
            )


def _box(row: Mapping[str, Any]) -> Plain:
    corners = [round(float(row[name]), 2) for name in CORNERS]
    return {"class": int(row["label"]), "score": _exact(row["score"]), "xyxy": corners}


def _has_area(label: Plain) -> bool:
    x1, y1, x2, y2 = label["xyxy"]
    return bool(x1 < x2 and y1 < y2)


def shown_regions(store: PseudoStore, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Iterator[Shown]:
    """Usable ones of `rows` (of the pool) with the regions at or above the threshold, the largest first.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    for stored in store.masks(rows, pseudo):
        yield Shown(stored.image_id, stored.path, stored.size, regions(stored))


def regions(stored: StoredMask) -> list[Plain]:
    """Connected pixels of one class, over edges and corners, the largest first."""
    found = []
    for label in np.unique(stored.mask[stored.mask != IGNORE]).tolist():
        of_class = (stored.mask == label).astype(np.uint8)
        _, numbers, places, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
        large = [n for n in range(1, len(places)) if places[n, cv2.CC_STAT_AREA] >= LEAST_PIXELS]
        found += [(int(places[n, cv2.CC_STAT_AREA]), label, numbers, n, places[n, :4]) for n in large]
    found.sort(key=lambda one: -one[0])
    return [_region(stored, *one) for _, *one in found[:MOST_REGIONS]]


def _region(stored: StoredMask, label: int, numbers: NDArray[np.int32], number: int, place: NDArray[np.int32]) -> Plain:
    """The pixels of a number, within `place` (x, y, width, height)."""
    x, y, width, height = place.tolist()
    mask = numbers == number
    own = slice(y, y + height), slice(x, x + width)
    scale = np.divide(stored.size, mask.shape)[[1, 0, 1, 0]]
    return {
        "class": label,
        "score": float(round(stored.levels[own][mask[own]].mean() / 256, 4)),
        "xyxy": (scale * (x, y, x + width, y + height)).round(2).tolist(),
        "rle": Region.of(mask).model_dump(mode="json"),
        "outline": outline(mask[own], x, y),
    }


def outline(mask: NDArray[np.bool_], left: int, top: int) -> str:
    """SVG path along the border pixels of a mask that is moved to a place; the even-odd rule leaves its holes open."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for line in lines:
        points = cv2.approxPolyDP(line, FINENESS, True)[:, 0] + (left + 0.5, top + 0.5)  # the middles of pixels
        paths.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
    return "".join(paths)


def _exact(score: np.float32) -> float:
    """A score in the fewest digits that tell it from its neighbors: thresholds are compared as in training."""
    return float(str(np.float32(score)))


SHOWN: Mapping[Stored, Callable[[PseudoStore, NDArray[np.int64], PseudoConfig], Iterator[Shown]]] = {
    "boxes": shown_boxes,
    "masks": shown_regions,
}
