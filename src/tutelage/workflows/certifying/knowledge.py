"""What a finished model was trained on, as far as its run can say: a certificate on such images would be worth nothing.

A model's card names the training stage that made it. Where that stage still stands in its run, and the run's data is
where it was, the very images can be opened again and compared with others, copies included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig, load_config
from tutelage.data.duplicates import leaks_between
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.listed import rows_at
from tutelage.data.survey import survey
from tutelage.files import read_json
from tutelage.models.init import model_folder, read_card
from tutelage.types import InputError
from tutelage.workflows.prepare import Prepared, prepare

PARENTS = 3  # OUT / stages / NAME-HASH / model


@dataclass(frozen=True)
class Training:
    """Images that a model was trained on."""

    labeled: tuple[Index, ...]  # with human labels
    pools: tuple[Index, ...]  # with pseudo-labels

    def __add__(self, other: Training) -> Training:
        return Training(self.labeled + other.labeled, self.pools + other.pools)


def training_of(model: Path) -> Training | str:
    """What a run, stage or model folder holds was trained on; where that cannot be known, why not."""
    card = read_card(model_folder(model))
    made = f"{card.get('trained_as')}-{str(card.get('hash'))[:8]}"
    for run in (model, *model.resolve().parents[:PARENTS]):
        if not (run / "config.yaml").is_file():
            continue
        config = load_config(run / "config.yaml")
        stage = Path(config.sources.stages or run / "stages") / made / "run.json"
        if not stage.is_file():
            continue
        try:
            prepared = prepare(config)
        except InputError as error:
            return f"the data of its run {run} cannot be opened ({error})"
        key = read_json(stage)["key"]
        if prepared.sets.labeled.fingerprint != key.get("labeled"):
            return f"the data of its run {run} has changed, or it is the teacher of a fold"
        own = _own(prepared, trained_on_pool=key.get("second") is not None)
        return own if not config.sources.teacher else _with_teacher(own, Path(config.sources.teacher))
    return "the run that made it is not there"


def _own(prepared: Prepared, *, trained_on_pool: bool) -> Training:
    pool = prepared.sets.pool
    return Training((prepared.sets.labeled,), (pool,) if trained_on_pool and pool is not None else ())


def _with_teacher(own: Training, teacher: Path) -> Training | str:
    before = training_of(teacher)
    return f"it started from another model, of which {before}" if isinstance(before, str) else own + before


def refuse_known(images: Index, training: Training, data: DataConfig, option: str) -> None:
    """Nothing, if the model has seen none of the images.

    Labeled images are compared by what they look like, the pool, which may be large, by path.

    Raises:
        InputError: it was trained on some of them, or on copies.
    """
    seen = np.zeros(len(images), bool)
    if training.labeled:
        seen[leaks_between(survey(images, data).prints, survey(join(training.labeled), data).prints).rows] = True
    for pool in training.pools:
        seen |= rows_at(images, [str(pool.path(row)) for row in range(len(pool))])
    if seen.any():
        first = images.path(int(np.flatnonzero(seen)[0]))
        raise InputError(
            f"{option}: the model was trained on {int(seen.sum())} of the {len(images)} images (or on copies of them; "
            f"first: {first}); a certificate needs images that it has not seen. Give others, for example the test "
            "images, or list the unseen ones with --labeled-list."
        )
