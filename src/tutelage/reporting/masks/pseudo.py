"""A store of pseudo-masks for the page: confidence by pixels, classes, and the surest and least sure images painted.

Legend: n pool images that the teacher saw, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.data.thumbnails import Album, Picture
from tutelage.reporting.figures import histogram_figure
from tutelage.reporting.masks.paint import View, class_keys, class_view
from tutelage.reporting.pseudo import StoreView, threshold_marks
from tutelage.types import IGNORE

LEVEL_BINS = 64
"""Bars of the histogram: the store keeps confidence in steps of 1/64."""

NUM_PICTURES = 8
SIDE = 280


@dataclass(frozen=True, slots=True)
class PseudoMask:
    """A pool image with its pseudo-mask."""

    path: str
    picture: Picture
    view: View
    share: float  # of its pixels that are kept


@dataclass(slots=True)
class PixelSummary:
    """A store of pseudo-masks in numbers."""

    histogram: NDArray[np.int64]  # (LEVEL_BINS,) pixels by confidence
    kept_per_class: NDArray[np.int64]  # (K,) pixels at or above the threshold
    image_ids: NDArray[np.int64]  # (n,)
    shares: NDArray[np.float64]  # (n,) of an image's pixels that are kept
    confidence: NDArray[np.float64]  # (n,) mean of an image's pixels


def view_store(store: PseudoStore, pseudo: PseudoConfig, class_names: tuple[str, ...], album: Album) -> StoreView:
    """A store under the threshold of `pseudo`.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    summary = summarize_pixels(store, pseudo, class_names)
    percent = 100 * summary.histogram / max(int(summary.histogram.sum()), 1)
    title = "Confidence of the teacher in the pixels of the pool"
    marks = threshold_marks(pseudo)
    drawn = histogram_figure(percent, marks, title=title, xlabel="confidence", ylabel="% of all pixels")
    labeled = np.flatnonzero(summary.shares > 0)
    order = labeled[np.lexsort((summary.confidence[labeled], summary.shares[labeled]))]
    surest = _pictures(order[::-1][:NUM_PICTURES], summary, store, pseudo, album)
    least_sure = _pictures(order[:NUM_PICTURES], summary, store, pseudo, album)
    keys = class_keys((one.view for one in (*surest, *least_sure)), class_names)
    return StoreView(("Confidence of all pixels", Markup(drawn)), summary.kept_per_class, surest, least_sure, keys)


def summarize_pixels(store: PseudoStore, pseudo: PseudoConfig, class_names: tuple[str, ...]) -> PixelSummary:
    """Exact pixel counts of a store under the threshold of `pseudo`; no mask is decoded for them.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    limits = score_limits(pseudo, class_names)
    histogram = np.zeros(LEVEL_BINS)
    kept_per_class = np.zeros(len(class_names))
    ids, shares, confidence = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0)]
    for images, table in store.parts():
        found = store.kind.found(table)
        kept = np.where(found.kept(limits), found.amounts, 0)
        histogram += np.histogram(found.scores, LEVEL_BINS, (0, 1), weights=found.amounts)[0]
        kept_per_class += np.bincount(found.labels, kept, minlength=len(class_names))
        seen = images["image_id"][images["status"] == "ok"]
        place = np.searchsorted(seen, found.image_ids)
        pixels, kept_pixels, scores = (
            np.bincount(place, amounts, minlength=len(seen))
            for amounts in (found.amounts, kept, found.amounts * found.scores)
        )
        ids.append(seen)
        shares.append(kept_pixels / np.maximum(pixels, 1))
        confidence.append(scores / np.maximum(pixels, 1))
    counts = histogram.astype(np.int64), kept_per_class.astype(np.int64)
    return PixelSummary(*counts, np.concatenate(ids), np.concatenate(shares), np.concatenate(confidence))


def _pictures(
    chosen: NDArray[np.int64], summary: PixelSummary, store: PseudoStore, pseudo: PseudoConfig, album: Album
) -> list[PseudoMask]:
    """The `chosen` places of the summary as painted pictures, in their order."""
    painted = {}
    for stored in store.masks(np.sort(summary.image_ids[chosen]), pseudo):
        picture = album.whole(stored.path, stored.size, SIDE)
        size = int(picture.height), int(picture.width)
        view = class_view("Pseudo-mask", stored.path, stored.mask, size, store.manifest.class_names)
        share = float(np.mean(stored.mask != IGNORE))
        painted[stored.image_id] = PseudoMask(stored.path, picture, view, share)
    return [painted[image_id] for image_id in summary.image_ids[chosen].tolist()]
