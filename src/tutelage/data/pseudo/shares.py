"""The surest share of each class: thresholds that follow a store's own confidences, class by class.

A teacher is surer of some classes than of others. One threshold for all keeps nearly all of the former and little of
the latter, and the student drifts towards the former; the same share of each keeps the balance that the teacher found
(class-balanced self-training, arXiv:1810.07911).

Legend: K classes.
"""

from __future__ import annotations

import math

import numpy as np

from tutelage.config import PseudoConfig
from tutelage.data.pseudo.reading import PseudoStore, score_limits

STEPS = 1000  # thresholds are rounded down to thousandths, so that records can be read


def with_class_shares(pseudo: PseudoConfig, store: PseudoStore) -> PseudoConfig:
    """The options with thresholds by class that keep `class_share` of what reaches the given ones in `store`, or more.

    More where confidences are equal or nearly so. A class of which nothing reaches its threshold keeps that. Reads the
    store once; with a share of 1 not at all.

    Raises:
        InputError: a part is missing or damaged; thresholds that do not fit the classes.
    """
    if pseudo.class_share == 1:
        return pseudo
    names = store.manifest.class_names
    limits = score_limits(pseudo, names)
    found = [store.kind.found(table) for _, table in store.parts()]
    labels, scores, amounts = (
        np.concatenate([getattr(one, column)[one.kept(limits)] for one in found])
        for column in ("labels", "scores", "amounts")
    )
    given = pseudo.score_threshold
    chosen = dict(given) if isinstance(given, dict) else {name: float(given) for name in names}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        surest = own[np.argsort(-scores[own], kind="stable")]
        kept = amounts[surest].cumsum()
        last = surest[np.searchsorted(kept, pseudo.class_share * kept[-1])]
        chosen[names[label]] = max(chosen[names[label]], _rounded_down(float(scores[last])))
    return pseudo.model_copy(update={"score_threshold": chosen, "class_share": 1.0})


def _rounded_down(score: float) -> float:
    """To a whole step; scores are float32, of which one that was meant as a whole step may lie a little below it."""
    return math.floor(round(STEPS * score, 4)) / STEPS
