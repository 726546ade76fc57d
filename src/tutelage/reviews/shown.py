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
from tutelage.data.pseudo.tables import Stored, read_columns, table_path
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
        images, boxes = (read_columns(table_path(store.folder, part, table)) for table in ("images", "boxes"))
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
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        found += [(int(areas[n]), label, numbers == n) for n in range(1, len(areas)) if areas[n] >= LEAST_PIXELS]
    found.sort(key=lambda one: -one[0])
    return [_region(label, mask, stored) for _, label, mask in found[:MOST_REGIONS]]


def _region(label: int, mask: NDArray[np.bool_], stored: StoredMask) -> Plain:
    rows, columns = mask.nonzero()
    scale = np.array([stored.size[1] / mask.shape[1], stored.size[0] / mask.shape[0]])
    corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * np.tile(scale, 2)
    return {
        "class": label,
        "score": float(round(stored.levels[mask].mean() / 256, 4)),
        "xyxy": corners.round(2).tolist(),
        "rle": Region.of(mask).model_dump(mode="json"),
        "outline": outline(mask),
    }


def outline(mask: NDArray[np.bool_]) -> str:
    """SVG path along the pixels at the border of a mask (h, w), holes included; to be filled by the even-odd rule."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for line in lines:
        points = cv2.approxPolyDP(line, FINENESS, True)[:, 0] + 0.5  # from the places of pixels to their middles
        paths.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
    return "".join(paths)


def _exact(score: np.float32) -> float:
    """A score in the fewest digits that tell it from its neighbors: thresholds are compared as in training."""
    return float(str(np.float32(score)))


SHOWN: Mapping[Stored, Callable[[PseudoStore, NDArray[np.int64], PseudoConfig], Iterator[Shown]]] = {
    "boxes": shown_boxes,
    "masks": shown_regions,
}
