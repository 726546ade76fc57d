"""The watch over labeling: do the pseudo-labels look like the labels that people gave?

Amounts in an image, the share of each class and the share of empty images are compared with those of the labeled set,
from the first parts of the store on. What is at fault is told by the teacher's trial on labeled images.

Legend: n images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.fingerprint import chunks
from tutelage.data.index import Index
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.data.pseudo.kinds import KINDS
from tutelage.data.pseudo.tables import Columns
from tutelage.engine.trial import Trial, is_permuted, is_untrained
from tutelage.engine.watch import Alarm
from tutelage.stats.amounts import Amounts, class_distance, empty_excess, mean_ratio, rarer_than
from tutelage.types import NOT_IGNORED, Annotation

LEAST_IMAGES = 8  # of both sets: spreads of fewer are too uncertain to warn by
FEW, MANY = 1 / 4, 4.0  # times what people label in an image
NEARLY_NOTHING = 1 / 20
OTHER_CLASSES, WHOLLY_OTHER = 0.2, 0.5  # distance of class histograms that chance does not explain
RARE = 1 / 4  # of the share of images that people label a class in
EMPTY = 0.4  # share of the images, beyond that of the labeled ones
SKIPPED = 0.1
ENOUGH = 1 / 2  # of what people labeled: a threshold that keeps as much in labeled images is not to blame
ALIKE = 1 / 3  # of a distance: histograms in another order that are so much nearer
CLASSES_NAMED = 4

AMOUNT: Mapping[Annotation, str] = {"boxes": "{:.3g} boxes an image", "masks": "{:.1%} of an image's pixels"}
EMPTY_IMAGES: Mapping[Annotation, str] = {
    "boxes": "no box at or above the threshold and will be trained on as background",
    "masks": "no pixel at or above the threshold and will take part without teaching anything",
}


def labeled_amounts(labeled: Index) -> Amounts:
    """What people labeled: boxes that are not ignored, or shares of an image's pixels."""
    areas = labeled.sizes().astype(np.float64).prod(1)
    parts = []
    for rows in chunks(len(labeled)):
        columns = labeled.box_columns(rows)
        normal = columns.ignore == NOT_IGNORED
        images, labels = columns.images[normal], columns.labels[normal]
        amounts = columns.area[normal] / np.maximum(areas[images], 1) if labeled.has_masks else np.ones(len(images))
        per_image = np.zeros((len(rows), len(labeled.class_names)))
        np.add.at(per_image, (images - rows[0], labels), amounts)
        parts.append(Amounts.of(per_image))
    return sum(parts[1:], start=parts[0])


def kept_amounts(images: Columns, table: Columns, limits: NDArray[np.float32], annotation: Annotation) -> Amounts:
    """What a part of a store holds at or above the thresholds (K,), in the images that could be used."""
    ids = images["image_id"][images["status"] == "ok"]
    found = KINDS[annotation].found(table)
    kept, rows = found.kept(limits), np.searchsorted(ids, found.image_ids)
    per_image = np.zeros((len(ids), len(limits)))
    np.add.at(per_image, (rows[kept], found.labels[kept]), found.amounts[kept])
    if annotation == "masks":
        per_image /= np.maximum(np.bincount(rows, found.amounts, len(ids)), 1)[:, None]
    return Amounts.of(per_image)


@dataclass
class LabelWatch:
    """Pseudo-labels as they come, beside what people labeled."""

    class_names: tuple[str, ...]
    annotation: Annotation
    pseudo: PseudoConfig
    prior: Amounts | None = None  # of the labeled set
    trial: Trial | None = None
    kept: Amounts | None = None
    seen: int = 0  # images, unusable ones included
    skipped: int = 0

    def take(self, images: Columns, table: Columns) -> None:
        """Takes in a part of the store."""
        part = kept_amounts(images, table, self._limits, self.annotation)
        self.kept = part if self.kept is None else self.kept + part
        self.seen += len(images["status"])
        self.skipped += int((images["status"] == "skipped").sum())

    def alarms(self) -> list[Alarm]:
        """What is wrong with the pseudo-labels taken in so far."""
        found = list(self._skipped())
        if self.prior and self.kept and min(self.prior.images, self.kept.images) >= LEAST_IMAGES and self.prior.filled:
            found += [*self._amount(self.prior, self.kept), *self._empty(self.prior, self.kept)]
            found += self._classes(self.prior, self.kept) if self.kept.filled else ()
        return found

    @property
    def _limits(self) -> NDArray[np.float32]:
        return score_limits(self.pseudo, self.class_names)

    @property
    def _tried(self) -> Trial | None:
        """The teacher's trial, if people labeled anything in its images."""
        return self.trial if self.trial is not None and self.trial.human.any() else None

    def _skipped(self) -> Iterator[Alarm]:
        if self.skipped > SKIPPED * self.seen:
            yield Alarm(
                "skipped",
                f"{self.skipped} of {self.seen} pool images could not be read. See what they are (the stage's run.json "
                "names the first) before training on the rest.",
            )

    def _amount(self, prior: Amounts, kept: Amounts) -> Iterator[Alarm]:
        ratio, amount = mean_ratio(prior, kept), AMOUNT[self.annotation].format
        seen = (
            f"{amount(kept.mean)} reach {self._threshold} in {kept.images} pool images; people labeled "
            f"{amount(prior.mean)}"
        )
        if ratio.high < FEW:
            yield Alarm("few", f"{seen}. {self._fault()}", lost=ratio.high < NEARLY_NOTHING)
        elif ratio.low > MANY:
            fitting = "" if self._tried is None else f" ({_fitting(self._tried)} keeps about as much as people label)"
            yield Alarm("many", f"{seen}: most of it cannot be right. Raise pseudo.score_threshold{fitting}.")

    def _empty(self, prior: Amounts, kept: Amounts) -> Iterator[Alarm]:
        if self.pseudo.empty == "background" and empty_excess(prior, kept) > EMPTY:
            yield Alarm(
                "empty",
                f"{kept.images - kept.filled} of {kept.images} pool images have {EMPTY_IMAGES[self.annotation]}; of "
                f"the labeled ones {prior.empty:.0%} are empty. If the teacher is weak, set pseudo.empty=drop or lower "
                "pseudo.score_threshold.",
            )

    def _classes(self, prior: Amounts, kept: Amounts) -> Iterator[Alarm]:
        distance, known = class_distance(prior, kept), prior.present > 0
        rare = rarer_than(prior, kept, RARE)
        if distance.excess > OTHER_CLASSES:
            yield Alarm(
                "classes",
                f"the classes of the pseudo-labels are not those of the labels (distance {distance.value:.2f}, by "
                f"chance up to {distance.by_chance:.2f}): {self._largest_gaps(prior, kept)}. "
                + (self._order(prior, kept) or self._fault()),
                lost=distance.excess > WHOLLY_OTHER,
            )
        elif rare.any() and not rare[known].all():  # all of them are what `few` is about
            yield Alarm(
                "missing",
                f"hardly any pseudo-label is of {self._named(np.flatnonzero(rare))}, which people labeled in "
                f"{(prior.present / prior.images)[rare].min():.0%} of their images or more. "
                + self._fault(np.flatnonzero(rare)),
                lost=bool(rare.sum() >= max(2, known.sum() - 1)),
            )

    def _order(self, prior: Amounts, kept: Amounts) -> str:
        """What to say where another order of the classes would make the histograms alike, and no trial knows better."""
        distance = class_distance(prior, kept, in_order=False).value
        if self._tried is not None or distance > ALIKE * class_distance(prior, kept).value:
            return ""
        return (
            f"In another order the shares would fit (distance {distance:.2f}): the class names may be permuted; "
            "compare class_names in the teacher's model.json with the order of the classes in --labeled."
        )

    def _fault(self, rows: NDArray[np.int64] | None = None) -> str:
        """Whether teacher, threshold or pool is to blame (for some classes), by the teacher's trial; what to do."""
        trial = self._tried
        if trial is None:
            return (
                "Either the threshold does not fit this teacher (lower pseudo.score_threshold), the teacher is weak "
                "(train it longer), or the pool is of another domain than the labeled images (give another)."
            )
        if is_permuted(trial):
            return "The class names are at fault: the teacher's are permuted against those of the labels."
        trial = trial if rows is None else trial.of_classes(rows)
        labeled = f"people labeled{' of them' if rows is not None else ''} in labeled images"
        share, found = trial.kept(self._limits), trial.right()
        if is_untrained(trial, self.annotation, len(self.class_names)):
            return (
                f"The teacher is at fault: it finds {found:.1%} of what {labeled}. Train it longer "
                "(teacher.min_steps, teacher.passes), or give another."
            )
        if share < ENOUGH:
            return (
                f"The threshold is at fault: {share:.1%} of what {labeled} reaches it; "
                f"pseudo.score_threshold={_fitting(trial)}{' for them' if rows is not None else ''} keeps as much."
            )
        return (
            f"The pool is at fault: the teacher keeps {share:.0%} of the amount that {labeled}. The pool seems to be "
            "of another domain; give images like the labeled ones, or label some of the pool's."
        )

    def _largest_gaps(self, prior: Amounts, kept: Amounts) -> str:
        rows = np.argsort(-np.abs(prior.shares - kept.shares), kind="stable")[:CLASSES_NAMED]
        return ", ".join(
            f"{self.class_names[row]} {kept.shares[row]:.1%} (labels {prior.shares[row]:.1%})" for row in rows
        )

    def _named(self, rows: NDArray[np.int64]) -> str:
        more = f" and {len(rows) - CLASSES_NAMED} more" if len(rows) > CLASSES_NAMED else ""
        return ", ".join(self.class_names[row] for row in rows[:CLASSES_NAMED]) + more

    @property
    def _threshold(self) -> str:
        given = self.pseudo.score_threshold
        return "the thresholds by class" if isinstance(given, Mapping) else f"pseudo.score_threshold={given}"


def watched_store(store: PseudoStore, pseudo: PseudoConfig, labeled: Index | None, trial: Trial | None) -> list[Alarm]:
    """What is wrong with a finished store.

    Args:
        store: of boxes or masks.
        pseudo: with the thresholds that it is read with.
        labeled: what people labeled; None where that is not known.
        trial: of its teacher on labeled images.
    """
    manifest = store.manifest
    assert manifest.annotation != "classes", "pseudo-labels of a task"
    prior = None if labeled is None else labeled_amounts(labeled)
    watch = LabelWatch(manifest.class_names, manifest.annotation, pseudo, prior, trial)
    for images, table in store.parts():
        watch.take(images, table)
    return watch.alarms()


def _fitting(trial: Trial) -> float:
    """The threshold that keeps in labeled images what people labeled, rounded down."""
    return math.floor(100 * trial.fitting_threshold()) / 100
