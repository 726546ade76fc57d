"""Labeled images that pseudo-labels are certified on: a part set aside from every training, or folds of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tutelage.config import CertifyConfig
from tutelage.data.index import Index
from tutelage.data.splits import draw_folds, even_draw
from tutelage.types import InputError

DEFAULT_FRACTION, DEFAULT_FOLDS = 0.2, 5
FEW = 10  # images; with fewer set aside nothing could be shown
CERTIFY_STREAM = 4  # random numbers of its own, beside those of `data/sources.py`


@dataclass(frozen=True)
class Apart:
    """The images of a certificate."""

    images: Index
    groups: NDArray[np.int64]  # (n,) numbers of images that belong together
    folds: NDArray[np.int64] | None = None  # (n,) where teachers each leave a fold out; None: set aside from all
    note: str = ""  # what was decided, as a sentence

    @property
    def certified(self) -> bool:
        """Whether the certificate is of the very teacher that labels; else it is an estimate, of others like it."""
        return self.folds is None


class Division(NamedTuple):
    """How labeled images are divided to certify on some of them: folds where there are any, else a part set aside."""

    fraction: float
    folds: int
    chosen: bool  # folds, because a part would be too small

    @classmethod
    def of(cls, certify: CertifyConfig, count: int) -> Self:
        """Of `count` images; where neither is asked for, a fifth is set aside, or five folds where that is few."""
        fraction = certify.fraction or DEFAULT_FRACTION
        few = not (certify.fraction or certify.folds) and round(fraction * count) < FEW
        return cls(fraction, certify.folds or (min(DEFAULT_FOLDS, count) if few else 0), few)


def set_apart(labeled: Index, groups: NDArray[np.int64], certify: CertifyConfig, seed: int) -> tuple[Index, Apart]:
    """What is left to train on, and the images to certify on.

    Args:
        labeled: the labeled images (n) after the check.
        groups: (n,) numbers of images that belong together, which a split keeps together.
        certify: what is asked for (see `Division`).
        seed: of the split.

    Raises:
        InputError: there are too few images for that.
    """
    count = len(np.unique(groups))
    fraction, folds, chosen = Division.of(certify, count)
    rng = np.random.default_rng([seed, CERTIFY_STREAM])
    offsets, labels = labeled.labels_per_image()
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if folds:
        if not 2 <= folds <= count:
            raise InputError(
                f"certify.folds={folds}: there are {count} labeled images that do not belong together; 2 to that many "
                "folds are allowed. Choose fewer, or label more images."
            )
        numbers = draw_folds(offsets, labels, codes, folds, rng)
        return labeled, Apart(labeled, groups, numbers, _folds_note(folds, len(labeled), chosen))
    aside = even_draw(offsets, labels, codes, fraction, rng)
    if not aside.any() or aside.all():
        raise InputError(
            f"certify.fraction={fraction}: sets {int(aside.sum())} of {len(labeled)} labeled images aside; some must "
            "be set aside and some left to train on. Choose another fraction, certify.folds=5, or label more images."
        )
    note = f"To certify on: {int(aside.sum())} of {len(labeled)} labeled images, set aside with the seed."
    return labeled.select(~aside), Apart(labeled.select(aside), groups[aside], None, note)


def _folds_note(folds: int, images: int, chosen: bool) -> str:
    why = " (too few labels to set a part aside)" if chosen else ""
    return f"To certify on: {images} labeled images in {folds} folds; {folds} teachers each leave one out{why}."
