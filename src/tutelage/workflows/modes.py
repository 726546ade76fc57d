"""Who labels a student's second stream: its teacher once, before training, or a teacher that learns on.

`MODES` is the table that `student.mode` chooses from; nothing else asks for the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from tutelage.config import RunConfig, StudentConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.loader import labeled_pair_batches, pool_pair_batches, train_batches
from tutelage.data.pseudo import PseudoStore, open_store, store_index, with_class_shares
from tutelage.engine.loop import Stream
from tutelage.engine.objectives import Student
from tutelage.engine.online import OnlineStudent, teacher_decay
from tutelage.models.model import Network
from tutelage.tasks.table import TASKS
from tutelage.tasks.task import Task
from tutelage.types import Batch, InputError
from tutelage.workflows.prepare import Prepared
from tutelage.workflows.stages import Stage


class Mode(Protocol):
    """What differs between the modes of a student's training; `student` says where its second stream comes from."""

    @property
    def needs_store(self) -> bool:
        """Whether the pool is labeled before a student is trained."""
        ...

    @property
    def views(self) -> int:
        """Views of each image of the second stream: one is trained on, a teacher looks at the others."""
        ...

    def check(self, config: RunConfig) -> None:
        """Refuses options that the mode cannot follow (`InputError`)."""
        ...

    def key(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> dict[str, Any]:
        """What the mode and the second stream add to the stage's key."""
        ...

    def second_stream(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> Stream:
        """The second stream."""
        ...

    def objective(self, task: Task, model: Network, config: RunConfig, student: StudentConfig) -> Student:
        """What is minimized."""
        ...

    def average(self, student: StudentConfig, before: int) -> Callable[[int], float] | None:
        """The decay of averaged weights after a step, as `Training` has it; they were trained for `before` steps."""
        ...

    def notes(self, config: RunConfig, prepared: Prepared, graph: Mapping[str, Stage]) -> list[str]:
        """What a reader of the report should know, one sentence each."""
        ...


@dataclass(frozen=True)
class Offline:
    """The teacher labels the pool once; the student reads the store."""

    needs_store: bool = True
    views: int = 1

    def check(self, config: RunConfig) -> None:
        """Nothing is refused."""

    def key(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> dict[str, Any]:
        """The store for the student; the control depends on no pool."""
        if student.second_stream == "pool":
            said = {"verdicts": prepared.verdicts.digest()} if prepared.verdicts else {}
            return {"store": _made(pseudo).hash, "pseudo": config.pseudo.model_dump(mode="json"), **said}
        hidden = _made(pseudo).hash if student.second_stream == "hidden" else ""
        return {"ratio": config.pseudo.ratio, "hidden": hidden}

    def second_stream(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> Stream:
        """Labeled images, or those of the pool that the store holds, with its labels or their own."""
        batches = partial(train_batches, **reading(config, student))
        return Stream(self._second_index(config, prepared, student, pseudo), second_size(config, student), batches)

    def objective(self, task: Task, model: Network, config: RunConfig, student: StudentConfig) -> Student:
        """The normalized loss of both streams."""
        return Student(task, model, student)

    def average(self, student: StudentConfig, before: int) -> Callable[[int], float] | None:
        """That of `ema_decay`."""
        return None

    def notes(self, config: RunConfig, prepared: Prepared, graph: Mapping[str, Stage]) -> list[str]:
        """None."""
        return []

    def _second_index(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> Index:
        if student.second_stream == "labeled":
            return prepared.sets.labeled
        store = pseudo_labels(_made(pseudo), prepared)
        if student.second_stream == "hidden":
            return pool_of(prepared).select(store.usable_rows())
        return store_index(store, pool_of(prepared), config.pseudo)


@dataclass(frozen=True)
class Online:
    """The student's running average labels the pool as training goes."""

    needs_store: bool = False
    views: int = 2

    def check(self, config: RunConfig) -> None:
        """Refuses rounds, a store from elsewhere, and empty images that would be trained on after all."""
        if config.rounds > 1:
            raise InputError(
                f"rounds={config.rounds}: with student.mode=online the teacher learns on through one training; 1 is "
                "allowed. Set rounds=1, or student.mode=offline."
            )
        if config.sources.pseudo:
            raise InputError(
                f"--pseudo {config.sources.pseudo}: with student.mode=online the pool is labeled as training goes; no "
                "store is allowed. Leave it out, or set student.mode=offline."
            )
        if config.sources.verdicts:
            raise InputError(
                f"--verdicts {config.sources.verdicts}: with student.mode=online nobody can have looked at the labels; "
                "no verdicts are allowed. Leave them out, or set student.mode=offline."
            )
        if config.pseudo.class_share < 1:
            raise InputError(
                f"pseudo.class_share={config.pseudo.class_share}: shares are of a store, and with student.mode=online "
                "there is none; 1 is allowed. Set it, with thresholds by class if need be, or student.mode=offline."
            )
        if config.pseudo.empty == "drop" and config.student.ignored == "drop":
            raise InputError(
                "pseudo.empty=drop with student.ignored=drop: online, images without a confident box would become "
                "background; student.ignored=mask is allowed there. Set it, or pseudo.empty=background."
            )

    def key(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> dict[str, Any]:
        """The pool and what of it is not trained on; the control depends on neither."""
        own = {"online": student.online.model_dump(mode="json", exclude={"sample"}), "ratio": config.pseudo.ratio}
        if student.second_stream == "labeled":
            return own
        held_out = [index.fingerprint for index in prepared.held_out]
        pool = {**own, "pool": pool_of(prepared).fingerprint, "held_out": held_out}
        if student.second_stream == "hidden":
            return pool
        labeled_by = {name: getattr(config, name).model_dump(mode="json") for name in ("pseudo", "postprocess")}
        return {**pool, **labeled_by}

    def second_stream(
        self, config: RunConfig, prepared: Prepared, student: StudentConfig, pseudo: Stage | None
    ) -> Stream:
        """Two views of labeled images or of the pool, whose copies of held-out images are passed over."""
        index = prepared.sets.labeled if student.second_stream == "labeled" else pool_of(prepared)
        batches: Callable[..., Iterator[list[Batch]]] = partial(labeled_pair_batches, **reading(config, student))
        if student.second_stream != "labeled":
            held_out = HashBook.build(join(prepared.held_out), config.data) if prepared.held_out else None
            annotation = TASKS[config.task].annotation if student.second_stream == "hidden" else None
            own = {**reading(config, student), "annotation": annotation, "held_out": held_out}
            batches = partial(pool_pair_batches, **own)
        return Stream(index, second_size(config, student), batches)

    def objective(self, task: Task, model: Network, config: RunConfig, student: StudentConfig) -> Student:
        """The same loss, with a teacher."""
        return OnlineStudent(task, model, student, config.pseudo)

    def average(self, student: StudentConfig, before: int) -> Callable[[int], float] | None:
        """The teacher's."""
        return partial(teacher_decay, student.online.decay, before)

    def notes(self, config: RunConfig, prepared: Prepared, graph: Mapping[str, Stage]) -> list[str]:
        """What became of the images that the student drew, and what the store that is shown holds."""
        drawn = graph["student-1"].record["second_stream"]
        sample, pool = len(sample_of_pool(config, pool_of(prepared))), len(pool_of(prepared))
        return [
            f"student-1: its running average labeled the pool as training went. It drew {drawn['images']} images; in "
            f"the place of {drawn['skipped']} that could not be read and {drawn['leaks']} that are held out (test set, "
            "selection split, or set aside to certify on), each time it drew one, it took the next in the pool.",
            f"pseudo-1: what its running average says at the end of {sample} of {pool} pool images, drawn by the seed.",
        ]


MODES: Mapping[str, Mode] = {"offline": Offline(), "online": Online()}


def reading(config: RunConfig, part: Any) -> dict[str, Any]:
    """How images of the task become training batches."""
    return {
        "data": config.data,
        "canvas": config.model.canvas,
        "augment": part.augment,
        "annotation": TASKS[config.task].annotation,
    }


def second_size(config: RunConfig, student: StudentConfig) -> int:
    """Images of the second stream a step."""
    return student.batch_size * config.pseudo.ratio


def pool_of(prepared: Prepared) -> Index:
    """The pool, where the graph has seen to it that there is one."""
    assert prepared.sets.pool is not None, "the graph asks for a pool only where there is one"
    return prepared.sets.pool


def sample_of_pool(config: RunConfig, pool: Index) -> Index:
    """`student.online.sample` images of the pool, drawn by the seed, in the pool's order."""
    drawn = np.random.default_rng(np.random.SeedSequence([config.seed, *b"sample"])).permutation(len(pool))
    return pool.select(np.sort(drawn[: config.student.online.sample]))


def pseudo_labels(made: Stage, prepared: Prepared) -> PseudoStore:
    """The store of a stage, with what people said of it."""
    return open_store(made.folder).with_verdicts(prepared.verdicts, "--verdicts")


def with_shares(config: RunConfig, store: PseudoStore) -> RunConfig:
    """The config with the thresholds by class that `pseudo.class_share` means in this store."""
    return config.model_copy(update={"pseudo": with_class_shares(config.pseudo, store)})


def _made(pseudo: Stage | None) -> Stage:
    assert pseudo is not None, "the graph labels the pool before a student trains on it"
    return pseudo
