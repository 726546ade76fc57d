"""The guard of a run: what its watches found, said while it is early, kept in the records, and heeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.pseudo import PseudoStore, open_store
from tutelage.data.pseudo.kinds import KINDS
from tutelage.data.pseudo.tables import IMAGES, read_columns, table_path
from tutelage.engine.labelwatch import LabelWatch, labeled_amounts, watched_store
from tutelage.engine.runtime import Runtime
from tutelage.engine.trial import Trial, read_trial, trial_alarms
from tutelage.engine.watch import Alarm, stop_if_lost
from tutelage.tasks.confusion import CONFUSIONS
from tutelage.tasks.task import Task
from tutelage.types import Prediction
from tutelage.workflows.stages import Stage, console

TRIED = 32  # labeled images that a teacher is tried on

Predict = Callable[[NDArray[np.int64]], Iterable[Any]]


class LabelGuard:
    """Looks on while a pool is labeled: tries the teacher first (`engine.trial`), then each part (`engine.labelwatch`).

    Args:
        stage: the labeling.
        config: of the run.
        task: of the teacher.
        labeled: what people labeled; None where that is not known, and little can be told.
        runtime: devices; the main process speaks.
    """

    def __init__(self, stage: Stage, config: RunConfig, task: Task, labeled: Index | None, runtime: Runtime) -> None:
        self._stage, self._config, self._task, self._labeled = stage, config, task, labeled
        self._shown = runtime.is_main
        self._said: set[str] = set()
        prior = None if labeled is None else labeled_amounts(labeled)
        self._watch = LabelWatch(task.class_names, task.annotation, config.pseudo, prior)

    def try_teacher(self, predict: Predict) -> None:
        """Tries the teacher on some labeled images before it labels the pool.

        Args:
            predict: the outcomes of rows of the labeled set.

        Raises:
            InputError: the teacher is no good, and the guard is to stop.
        """
        if self._labeled is None:
            return
        trial = read_trial(self._stage.folder, self._labeled.fingerprint)
        if trial is None:
            trial = _trial(self._config, self._task, self._labeled, predict)
            if self._shown:
                trial.write(self._stage.folder)
        self._watch.trial = trial
        self._heed(trial_alarms(trial, self._task.class_names, self._task.annotation), f"{trial.images} labeled images")

    def take(self, part: int, num_images: int) -> None:
        """Looks at the store's parts so far, a new one among them; the whole store is looked at once it is there.

        Raises:
            InputError: the run is lost, and the guard is to stop it.
        """
        kind = KINDS[self._task.annotation]
        images = read_columns(table_path(self._stage.folder, part, "images"), IMAGES)
        found = read_columns(table_path(self._stage.folder, part, kind.table), kind.layouts[kind.table])
        self._watch.take(images, found)
        if self._watch.seen < num_images:
            self._heed(self._watch.alarms(), f"{self._watch.seen}/{num_images} images")

    def conclude(self) -> list[dict[str, Any]]:
        """What is wrong with the whole store, for its record."""
        found = label_alarms(open_store(self._stage.folder), self._config, self._labeled)
        self._say(found, "all images")
        return [alarm.as_dict() for alarm in found]

    def _heed(self, alarms: Iterable[Alarm], where: str) -> None:
        alarms = list(alarms)
        self._say(alarms, where)
        stop_if_lost(self._stage.name, alarms, self._config.guard)

    def _say(self, alarms: Iterable[Alarm], where: str) -> None:
        new = {alarm.cause: alarm for alarm in alarms if alarm.cause not in self._said}
        self._said |= set(new)
        if self._shown:
            _say(f"{self._stage.name}, {where}", new.values())


def _trial(config: RunConfig, task: Task, labeled: Index, predict: Predict) -> Trial:
    order = np.random.default_rng(config.seed).permutation(len(labeled))
    found = [one for one in predict(np.sort(order[:TRIED])) if isinstance(one, Prediction)]
    judged = [task.judge(one, labeled, config.data) for one in found]
    confusion = CONFUSIONS[task.annotation](judged, len(task.class_names))
    return Trial.of(labeled.fingerprint, confusion, found, task.annotation)


def label_alarms(store: PseudoStore, config: RunConfig, labeled: Index | None) -> list[Alarm]:
    """What is wrong with a finished store under this run's thresholds, and with its teacher."""
    trial = None if labeled is None else read_trial(store.folder, labeled.fingerprint)
    annotation = store.manifest.annotation
    assert annotation != "classes", "pseudo-labels of a task"
    own = [] if trial is None else list(trial_alarms(trial, store.manifest.class_names, annotation))
    return [*own, *watched_store(store, config.pseudo, labeled, trial)]


def heed_store(stage: Stage, store: PseudoStore, config: RunConfig, labeled: Index, runtime: Runtime) -> None:
    """Says what is wrong with a store that is about to be trained on, unless its record does.

    Raises:
        InputError: the run is lost, and the guard is to stop it.
    """
    alarms = label_alarms(store, config, labeled)
    recorded = {one["text"] for one in stage.record.get("warnings", ())} if stage.finished else set()
    if runtime.is_main:
        _say(stage.name, [alarm for alarm in alarms if alarm.text not in recorded])
    stop_if_lost(stage.name, alarms, config.guard)


def _say(where: str, alarms: Iterable[Alarm]) -> None:
    for alarm in alarms:
        console.print(f"{where}: {alarm.text}", style="yellow", markup=False)


def run_warnings(graph: Mapping[str, Stage], config: RunConfig, labeled: Index) -> list[dict[str, Any]]:
    """All that the guard found in a run, by stage; pseudo-labels under the thresholds of this run."""
    found: list[dict[str, Any]] = []
    for name, stage in graph.items():
        if (stage.folder / "manifest.json").is_file():
            own = [alarm.as_dict() for alarm in label_alarms(open_store(stage.folder), config, labeled)]
        else:
            own = stage.record.get("warnings", []) if stage.finished else []
        found += [{"stage": name, **one} for one in own]
    return found
