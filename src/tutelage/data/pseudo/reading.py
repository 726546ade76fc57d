"""Reading a pseudo-label store: the score threshold applies here, so that trying another costs no inference.

Legend: K classes, n images used, u distinct scores.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from tutelage.config import PseudoConfig
from tutelage.data.index import Index, cache_folder, cache_key
from tutelage.data.pseudo.kinds import KINDS, Kind
from tutelage.data.pseudo.masks import StoredMask, stored_masks
from tutelage.data.pseudo.tables import IMAGES, Columns, Limits, read_columns, table_path
from tutelage.data.pseudo.verdicts import People, Verdicts, require_fitting
from tutelage.data.pseudo.writing import Manifest
from tutelage.data.readers.source import shortened
from tutelage.files import read_json
from tutelage.types import InputError

MANIFESTS = TypeAdapter(Manifest)
STATUSES = {"ok", "skipped", "leak"}  # of an image
MOST_PIXELS = 1 << 29  # of an image, three times what data.max_pixels allows unless it is raised


@dataclass(frozen=True)
class PseudoStore:
    """A finished store, read part by part."""

    folder: Path
    manifest: Manifest
    content: str  # digest of all parts, and of what people said
    people: People

    @property
    def kind(self) -> Kind:
        """Of boxes or of masks."""
        return KINDS[self.manifest.annotation]

    def parts(self) -> Iterator[tuple[Columns, Columns]]:
        """Columns of the images and of what was found in them (`boxes` or `levels`), one part after the other.

        What people said is in it: see `with_verdicts`.

        Raises:
            InputError: a part is missing or damaged.
        """
        for part in range(self.manifest.num_parts):
            images, found = self.tables(part)
            said = bool(self.people.of(images["image_id"]))
            yield images, self.kind.judged(self.folder, part, images, found, self.people) if said else found

    def tables(self, part: int) -> tuple[Columns, Columns]:
        """Columns of a part's images and of what the teacher found in them, whatever people said.

        Raises:
            InputError: a table is missing or damaged.
        """
        images, place = self.images(part), table_path(self.folder, part, self.kind.table)
        found = read_columns(place, self.kind.layouts[self.kind.table])
        self._require_rows(place, found, images["image_id"])
        return images, found

    def images(self, part: int) -> Columns:
        """Columns of a part's images.

        Raises:
            InputError: it is missing or damaged.
        """
        place = table_path(self.folder, part, "images")
        images = read_columns(place, IMAGES)
        first = part * self.manifest.part_size
        rows = np.arange(first, min(first + self.manifest.part_size, self.manifest.num_images))
        pixels = images["height"].astype(np.int64) * images["width"]  # of skipped images 0
        possible = ((images["height"] >= 0) & (images["width"] >= 0) & (pixels <= MOST_PIXELS)).all()
        if not (possible and np.array_equal(images["image_id"], rows) and set(images["status"]) <= STATUSES):
            raise _contradicts(place)
        return images

    def _require_rows(self, place: Path, found: Columns, rows: NDArray[np.int64]) -> None:
        """Refuses labels of other images or of unknown classes, and scores that are no numbers from 0 to 1."""
        labels, scores = found["label"], found.get("score", np.zeros(0))
        known = np.isin(found["image_id"], rows).all() and (np.diff(found["image_id"]) >= 0).all()
        known &= ((labels >= 0) & (labels < len(self.manifest.class_names))).all()
        if not (known and ((scores >= 0) & (scores <= 1)).all()):
            raise _contradicts(place)

    def with_verdicts(self, verdicts: Verdicts | None, source: str = "verdicts") -> PseudoStore:
        """The store with what people said laid over it, whatever is read from it afterwards.

        Accepted and drawn labels are human ones, of score 1; stored ones that they speak of give way. Rejected boxes
        are background, pixels of a rejected class are of the class `background`, or without a label where the data has
        none. Ignored boxes and pixels are neither. In an image that was reviewed as a whole only what people said
        remains. Images that could not be read, or are kept out, stay so.

        Raises:
            InputError: the verdicts are about other images, sizes, classes or kinds of labels; `source` is named.
        """
        if verdicts is None:
            return self
        listed = [self.images(part) for part in range(self.manifest.num_parts)]
        rows = {str(path): (part, at) for part, images in enumerate(listed) for at, path in enumerate(images["path"])}
        paths = (str(path) for images in listed for path in images["path"])
        require_fitting(verdicts, self.manifest.class_names, self.manifest.annotation, paths, source)
        said = {}
        for image in verdicts.images:
            part, at = rows[image.path]
            images = listed[part]
            size = int(images["height"][at]), int(images["width"][at])
            if images["status"][at] != "ok":
                continue
            if size != image.size:
                raise InputError(
                    f"{source}: {image.path} has {image.size[0]} x {image.size[1]} pixels (height x width) there and "
                    f"{size[0]} x {size[1]} in the pool. Review it again."
                )
            said[int(images["image_id"][at])] = image
        content = f"{self.content}, verdicts {verdicts.digest()}"
        return replace(self, people=People(said, self.manifest.class_names), content=content)

    def counts(self, pseudo: PseudoConfig) -> dict[str, int]:
        """What became of the pool's images and of their boxes or pixels with this threshold, for the report."""
        limits = score_limits(pseudo, self.manifest.class_names)
        unit, kept_unit = self.kind.unit, f"{self.kind.unit}_kept"
        counts = dict.fromkeys(("images", "labeled", "empty", "skipped", "leaks", unit, kept_unit), 0)
        for images, table in self.parts():
            found = self.kind.found(table)
            kept = found.kept(limits)
            labeled = len(np.unique(found.image_ids[kept]))
            counts["images"] += len(images["status"])
            counts["labeled"] += labeled
            counts["empty"] += int((images["status"] == "ok").sum()) - labeled
            counts["skipped"] += int((images["status"] == "skipped").sum())
            counts["leaks"] += int((images["status"] == "leak").sum())
            counts[unit] += int(found.amounts.sum())
            counts[kept_unit] += int(found.amounts[kept].sum())
        return counts | self.people.counts()

    def usable_rows(self) -> NDArray[np.int64]:
        """Pool rows that could be read and are in no held-out set."""
        parts = [images["image_id"][images["status"] == "ok"] for images, _ in self.parts()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def masks(self, rows: NDArray[np.int64], pseudo: PseudoConfig) -> Iterator[StoredMask]:
        """The masks of usable ones of `rows` (of the pool) under this threshold, in the pool's order; for reports.

        Raises:
            InputError: a part is missing or damaged; thresholds by class that do not fit.
        """
        assert self.manifest.annotation == "masks", "a store of masks"
        limits, size = score_limits(pseudo, self.manifest.class_names), self.manifest.part_size
        for part in np.unique(rows // size).tolist():
            images = self.images(part)
            yield from stored_masks(self.folder, part, images, rows[rows // size == part], limits, self.people)

    def skipped(self, limit: int) -> list[tuple[str, str]]:
        """(path, reason) of the first `limit` images that could not be read."""
        found: list[tuple[str, str]] = []
        for images, _ in self.parts():
            at = np.flatnonzero(images["status"] == "skipped")
            found += zip(images["path"][at].tolist(), images["reason"][at].tolist(), strict=True)
            if len(found) >= limit:
                break
        return found[:limit]

    def amounts(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(u,) distinct scores, ascending, and (u,) how many boxes or pixels have each."""
        gathered = [(np.zeros(0, np.float32), np.zeros(0, np.int64))]
        for _, table in self.parts():
            found = self.kind.found(table)
            gathered.append(_summed(found.scores, found.amounts))
        scores, amounts = (np.concatenate(column) for column in zip(*gathered, strict=True))
        return _summed(scores, amounts)

    def threshold_that_keeps(self, share: float) -> float | None:
        """The greatest threshold that keeps at least this share of all boxes or pixels; None where there are none."""
        scores, amounts = self.amounts()
        if not len(scores):
            return None
        kept = amounts[::-1].cumsum()  # by thresholds at the scores, from the highest down
        place = int(np.searchsorted(kept, max(1, math.ceil(share * kept[-1]))))
        return float(scores[::-1][place])


def _contradicts(place: Path) -> InputError:
    return InputError(
        f"{place}: its rows are not those that manifest.json tells of. Delete both, and run the labeling again: it "
        "makes what is missing."
    )


def _summed(scores: NDArray[np.float32], amounts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The same with each score once, ascending."""
    values, places = np.unique(scores, return_inverse=True)
    return values, np.bincount(places, amounts, len(values)).astype(np.int64)


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
    content = str(plain.pop("content"))
    try:
        manifest = MANIFESTS.validate_python(plain)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{folder / 'manifest.json'}: {'.'.join(map(str, problem['loc']))} is {shortened(problem['input'])} "
            f"({problem['msg']}). Restore the file, or label the pool again."
        ) from None
    return PseudoStore(folder, manifest, content, People({}, manifest.class_names))


def score_limits(pseudo: PseudoConfig, class_names: tuple[str, ...]) -> NDArray[np.float32]:
    """(K,) least score of a pseudo-label, by class; as float32, so that a score equal to the option is kept.

    Raises:
        InputError: thresholds by class that name an unknown class, or leave one out.
    """
    given = pseudo.score_threshold
    if given == "certified":
        raise InputError(
            "pseudo.score_threshold=certified: no certificate was made here; a number, or one for each class, is "
            "allowed. Give those that `tutelage certify` printed, or let `tutelage fit` certify."
        )
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
    """Nothing, if the threshold keeps some box or pixel.

    Raises:
        InputError: it keeps none; the message names one that would keep a tenth.
    """
    unit = store.kind.unit
    counts = store.counts(pseudo)
    if counts[f"{unit}_kept"]:
        return
    if counts["images"] == counts["skipped"] + counts["leaks"]:
        raise InputError(
            f"{store.folder}: none of the {counts['images']} pool images can be used: {counts['skipped']} could not be "
            f"read, {counts['leaks']} are also in the test set or selection split. Give another pool."
        )
    tenth = store.threshold_that_keeps(0.1)
    if tenth is None:
        raise InputError(
            f"{store.folder}: the teacher found nothing above the floor {store.manifest.score_floor} in "
            f"{counts['images']} images. Train it longer or on more labels, or lower postprocess.score_floor and label "
            "again."
        )
    highest = store.amounts()[0].max()
    raise InputError(
        f"{store.folder}: none of {counts[unit]} {unit} reaches pseudo.score_threshold={pseudo.score_threshold}; the "
        f"highest confidence is {highest:.3g}. Set pseudo.score_threshold={_rounded_down(tenth)} to keep a tenth of "
        f"the {unit}, or train a better teacher. The pseudo-labels are kept: nothing has to be labeled again."
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
    folder = store.folder.resolve()  # masks stay where they are
    key = cache_key("pseudo", store.manifest.digest(), store.content, options, folder, *pool.roots)
    if not Index.cached(cache_folder() / key):
        _build_index(store, pool, pseudo, cache_folder() / key)
    return Index(cache_folder() / key)


def _build_index(store: PseudoStore, pool: Index, pseudo: PseudoConfig, folder: Path) -> None:
    limits = score_limits(pseudo, store.manifest.class_names)
    parts = [_used(store, part, *tables, limits, pseudo) for part, tables in enumerate(store.parts())]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    store.kind.index(
        pool.select(columns["rows"]),
        columns,
        store.folder,
        limits,
        store.people,
        class_names=store.manifest.class_names,
        sizes=columns["sizes"],
        description=f"pseudo-labels of score {pseudo.score_threshold}; teacher {store.manifest.teacher[:8]}",
        folder=folder,
    )


def _used(
    store: PseudoStore, part: int, images: Columns, table: Columns, limits: Limits, pseudo: PseudoConfig
) -> Columns:
    """Columns of one part: rows (n,), sizes (n, 2) and the targets of its kind."""
    used = images["status"] == "ok"
    if pseudo.empty == "drop":
        found, ids = store.kind.found(table), images["image_id"]
        used &= np.isin(ids, found.image_ids[found.kept(limits)]) | store.people.reviewed(ids)
    return {
        "rows": images["image_id"][used],
        "sizes": np.stack([images["height"], images["width"]], axis=1)[used],
        **store.kind.targets(part, images, table, used, limits, pseudo),
    }
