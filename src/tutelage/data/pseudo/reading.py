"""Reading a pseudo-label store: the score threshold applies here, so that trying another costs no inference.

Legend: K classes, n images used, m boxes shown.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index, cache_folder, cache_key
from tutelage.data.pseudo.writing import Manifest, boxes_path, images_path
from tutelage.files import read_json
from tutelage.types import IGNORE_BOX, NOT_IGNORED, InputError

CORNERS = ("x1", "y1", "x2", "y2")
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PseudoStore:
    """A finished store, read part by part."""

    folder: Path
    manifest: Manifest
    content: str  # digest of all parts

    def parts(self) -> Iterator[tuple[Columns, Columns]]:
        """Columns of images and boxes, one part after the other.

        Raises:
            InputError: a part is missing or damaged.
        """
        for part in range(self.manifest.num_parts):
            yield _read_columns(images_path(self.folder, part)), _read_columns(boxes_path(self.folder, part))

    def counts(self, pseudo: PseudoConfig) -> dict[str, int]:
        """What became of the pool's images and boxes with this threshold, for the report."""
        limits = score_limits(pseudo, self.manifest.class_names)
        names = ("images", "labeled", "empty", "skipped", "leaks", "boxes", "boxes_kept")
        counts = dict.fromkeys(names, 0)
        for images, boxes in self.parts():
            kept = boxes["score"] >= limits[boxes["label"]]
            labeled = len(np.unique(boxes["image_id"][kept]))
            counts["images"] += len(images["status"])
            counts["labeled"] += labeled
            counts["empty"] += int((images["status"] == "ok").sum()) - labeled
            counts["skipped"] += int((images["status"] == "skipped").sum())
            counts["leaks"] += int((images["status"] == "leak").sum())
            counts["boxes"] += len(kept)
            counts["boxes_kept"] += int(kept.sum())
        return counts

    def usable_rows(self) -> NDArray[np.int64]:
        """Pool rows that could be read and are in no held-out set."""
        parts = [images["image_id"][images["status"] == "ok"] for images, _ in self.parts()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def skipped(self, limit: int) -> list[tuple[str, str]]:
        """(path, reason) of the first `limit` images that could not be read."""
        found: list[tuple[str, str]] = []
        for images, _ in self.parts():
            at = np.flatnonzero(images["status"] == "skipped")
            found += zip(images["path"][at].tolist(), images["reason"][at].tolist(), strict=True)
            if len(found) >= limit:
                break
        return found[:limit]

    def scores(self) -> NDArray[np.float32]:
        """Scores of all boxes, of all classes."""
        return np.concatenate([np.zeros(0, np.float32), *(boxes["score"] for _, boxes in self.parts())])

    def threshold_that_keeps(self, share: float) -> float | None:
        """The greatest threshold that keeps at least this share of all boxes; None where there are none."""
        scores = self.scores()
        if not len(scores):
            return None
        place = len(scores) - max(1, math.ceil(share * len(scores)))
        return float(np.partition(scores, place)[place])


def open_store(folder: Path) -> PseudoStore:
    """A finished store.

    Raises:
        InputError: there is none, it is not finished, or another version wrote it.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{folder}: holds no finished pseudo-label store (no manifest.json). Run the labeling again: it continues."
        )
    plain = read_json(folder / "manifest.json")
    expected = {"content", *(field.name for field in fields(Manifest))}
    if not isinstance(plain, dict) or set(plain) != expected:
        raise InputError(
            f"{folder / 'manifest.json'}: was written by another version of Tutelage (its keys differ). Label the pool "
            "again, or use that version."
        )
    content = plain.pop("content")
    lists = {name: tuple(plain[name]) for name in ("class_names", "held_out")}
    return PseudoStore(folder, Manifest(**{**plain, **lists}), content)


def _read_columns(path: Path) -> Columns:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: missing or damaged ({error}). Delete it and manifest.json, and run the labeling again: "
            "it makes what is missing."
        ) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


def score_limits(pseudo: PseudoConfig, class_names: tuple[str, ...]) -> NDArray[np.float32]:
    """(K,) least score of a pseudo-label, by class; as float32, so that a score equal to the option is kept.

    Raises:
        InputError: thresholds by class that name an unknown class, or leave one out.
    """
    given = pseudo.score_threshold
    if not isinstance(given, dict):
        return np.full(len(class_names), given, np.float32)
    for name in given:
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, 1)
            raise InputError(
                f"pseudo.score_threshold: unknown class {name!r}; the classes are {', '.join(class_names)}."
                + (f" Did you mean {near[0]!r}?" if near else " Remove it.")
            )
    left_out = [name for name in class_names if name not in given]
    if left_out:
        raise InputError(
            f"pseudo.score_threshold: no threshold for {', '.join(left_out)}; every class needs one. "
            "Add them, or give one number."
        )
    return np.array([given[name] for name in class_names], np.float32)


def require_kept(store: PseudoStore, pseudo: PseudoConfig) -> None:
    """Nothing, if the threshold keeps some box.

    Raises:
        InputError: it keeps none; the message names one that would keep a tenth.
    """
    if store.counts(pseudo)["boxes_kept"]:
        return
    floor = store.manifest.score_floor
    tenth = store.threshold_that_keeps(0.1)
    if tenth is None:
        raise InputError(
            f"{store.folder}: the teacher found nothing above the floor {floor} in {store.manifest.num_images} images. "
            "Train it longer or on more labels, or lower postprocess.score_floor and label again."
        )
    highest = store.scores().max()
    raise InputError(
        f"{store.folder}: no pseudo-label reaches pseudo.score_threshold={pseudo.score_threshold}; the highest score "
        f"is {highest:.3g}. Set pseudo.score_threshold={_rounded_down(tenth)} to keep a tenth of the boxes, or train a "
        "better teacher. The pseudo-labels are kept: nothing has to be labeled again."
    )


def _rounded_down(score: float) -> float:
    return math.floor(score * 100) / 100 or score


def store_index(store: PseudoStore, pool: Index, pseudo: PseudoConfig) -> Index:
    """The pool with pseudo-labels in the place of any labels of its own, as a data set to train on.

    Images that were skipped or leak are not in it, nor with `pseudo.empty=drop` those without a kept box.

    Raises:
        InputError: the store was made of another pool; thresholds by class that do not fit.
    """
    if pool.fingerprint != store.manifest.pool:
        raise InputError(
            f"{store.folder}: was made of another pool of {store.manifest.num_images} images; the one given has "
            f"{len(pool)} and differs in names, sizes or content. Give the same pool, or label this one anew."
        )
    options = pseudo.model_dump_json(exclude={"ratio"})
    key = cache_key("pseudo", store.manifest.digest(), store.content, options, *pool.roots)
    folder = cache_folder() / key
    if not Index.cached(folder):
        _build_index(store, pool, pseudo, folder)
    return Index(folder)


def _build_index(store: PseudoStore, pool: Index, pseudo: PseudoConfig, folder: Path) -> None:
    limits = score_limits(pseudo, store.manifest.class_names)
    parts = [_used(images, boxes, limits, pseudo) for images, boxes in store.parts()]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pool.select(columns["rows"]).with_boxes(
        np.concatenate([[0], np.cumsum(columns["counts"])]),
        columns["xyxy"],
        columns["labels"],
        class_names=store.manifest.class_names,
        scores=columns["scores"],
        ignore=columns["ignore"],
        sizes=columns["sizes"],
        description=f"pseudo-labels of score {pseudo.score_threshold}; teacher {store.manifest.teacher[:8]}",
        folder=folder,
    )


def _used(images: Columns, boxes: Columns, limits: NDArray[np.float32], pseudo: PseudoConfig) -> Columns:
    """Columns of one part: rows (n,), sizes (n, 2), counts (n,); xyxy (m, 4), labels, scores, ignore (m,)."""
    kept = boxes["score"] >= limits[boxes["label"]]
    used = images["status"] == "ok"
    if pseudo.empty == "drop":
        used &= np.isin(images["image_id"], boxes["image_id"][kept])
    shown = np.isin(boxes["image_id"], images["image_id"][used])
    if pseudo.unsure == "negative":
        shown &= kept
    place = np.searchsorted(images["image_id"], boxes["image_id"][shown])
    return {
        "rows": images["image_id"][used],
        "sizes": np.stack([images["height"], images["width"]], axis=1)[used],
        "counts": np.bincount(place, minlength=len(used))[used],
        "xyxy": np.stack([boxes[name][shown] for name in CORNERS], axis=1),
        "labels": boxes["label"][shown],
        "scores": boxes["score"][shown],
        # An unsure box may be one object: it excuses what overlaps it, not everything inside it.
        "ignore": np.where(kept[shown], NOT_IGNORED, IGNORE_BOX).astype(np.uint8),
    }
