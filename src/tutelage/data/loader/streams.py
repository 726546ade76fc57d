"""Streams of batches through torch's DataLoader; the training loop and the predicting workflows iterate over them.

Workers are forked where that is safe (they then share the index and the kept images) and compute on one thread each.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, TypedDict, Unpack

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch._C import _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tutelage.augment.plan import Plan
from tutelage.augment.policies import (
    classification_evaluation_plan,
    classification_plan,
    draw_plan,
    evaluation_plan,
    simclr_plan,
    strong_plan,
    weak_plan,
)
from tutelage.config import AugmentConfig, ClassifiedConfig, DataConfig, PretrainConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.loader.order import Order, sample_rng
from tutelage.data.loader.pictures import Pictures
from tutelage.data.loader.samples import (
    DrawPlan,
    EvaluationSamples,
    FixedPlan,
    PoolSamples,
    Size,
    Targets,
    TrainSamples,
    collate_evaluation,
    collate_training,
)
from tutelage.processes import end_with
from tutelage.types import Annotation, Batch, Boxes, InputError, Skipped

FEWER = (
    "Lower runtime.workers (0 loads without workers), runtime.cache_megabytes or the batch size, then run the same "
    "command: it continues."
)


class StreamOptions(TypedDict):
    """What the training loop tells every stream."""

    stream: str  # name; streams of one index differ in order and augmentation
    seed: int
    round: int
    batch_size: int  # images a step, over all ranks
    first_step: int  # to begin at; earlier steps are not loaded
    num_steps: int  # of the whole training
    rank: int
    world_size: int
    micro_batches: int  # of each rank
    workers: int  # processes; 0 loads in this one
    cache_megabytes: int  # sets that fit are kept decoded
    pin: bool  # page-locked memory, for a GPU


def train_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation = "boxes",
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """For each step from `first_step` on this rank's micro-batches, augmented, with boxes or masks.

    Order and every byte depend on seed, round, stream, epoch and row alone: never on ranks, workers, micro-batches or
    where the training was continued.

    Raises:
        InputError: no images; a batch that cannot be divided; while iterating, an image or mask that cannot be read.
    """
    mask_size = (
        canvas if annotation == "masks" else None
    )  # pseudo-masks are as large as that, human ones as their image
    samples = _train_samples(index, data, [partial(_task_plan, augment, canvas)], annotation, mask_size, options)
    return _train_stream(samples, **options)


def labeled_pair_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation,
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """The same in two views (B, 2, 3, H, W): the strong one, which boxes or masks are of, and a weak one."""
    mask_size = canvas if annotation == "masks" else None
    return _train_stream(
        _train_samples(index, data, _pair_of_plans(augment, canvas), annotation, mask_size, options), **options
    )


def pool_pair_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation | None,
    held_out: HashBook | None,
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """The same two views of a pool, whose images that are of no use give their places to others (`PoolSamples`).

    Args:
        index: the pool.
        data: how it is decoded.
        canvas: (height, width).
        augment: of the strong view.
        annotation: the pool's own labels where they shall be the targets; None gives no targets.
        held_out: what must not be trained on.
        options: what the training loop tells every stream.

    Raises:
        InputError: as `train_batches`; while iterating, that no image of a long row can be used.
    """
    mask_size = canvas if annotation == "masks" else None
    plans = _pair_of_plans(augment, canvas)
    samples = _train_samples(index, data, plans, annotation or "none", mask_size, options)
    return _train_stream(PoolSamples(samples, held_out), **options)


def classification_batches(
    index: Index, *, data: DataConfig, pretrain: ClassifiedConfig, **options: Unpack[StreamOptions]
) -> Iterator[list[Batch]]:
    """The same of a set of classified images, with `Batch.labels`."""
    samples = _train_samples(index, data, [partial(_classification_plan, pretrain)], "label", None, options)
    return _train_stream(samples, **options)


def view_batches(
    index: Index, *, data: DataConfig, pretrain: PretrainConfig, **options: Unpack[StreamOptions]
) -> Iterator[list[Batch]]:
    """The same of images without labels: two of SimCLR's views of each, (B, 2, 3, S, S), no targets."""
    samples = _train_samples(index, data, [partial(_simclr_plan, pretrain)] * 2, "none", None, options)
    return _train_stream(samples, **options)


def evaluation_batches(
    index: Index,
    *,
    canvas: Size,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
    tolerant: bool,
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    """The images of `rows` (all when None) in their order, resized to fit the canvas, without targets.

    Each batch stands beside what was skipped among its rows; it is None where nothing else was left.

    Args:
        index: the images.
        canvas: (height, width).
        data: how they are decoded.
        device_batch_size: rows a batch.
        rows: of the index.
        workers: loader processes; 0 loads in this one.
        tolerant: skip what cannot be read (a pool) instead of raising.

    Raises:
        InputError: while iterating, an image that cannot be read, unless `tolerant`.
    """
    samples = EvaluationSamples(Pictures(index, data), partial(_evaluation_plan, canvas), "none", tolerant)
    return _evaluation_stream(samples, rows, device_batch_size, workers)


def classification_evaluation_batches(
    index: Index,
    *,
    pretrain: ClassifiedConfig,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
) -> Iterator[Batch]:
    """The images of `rows` (all when None) in their order, center-cropped, with `Batch.labels`."""
    plan: FixedPlan = partial(classification_evaluation_plan, pretrain)
    samples = EvaluationSamples(Pictures(index, data), plan, "label", tolerant=False)
    for batch, _ in _evaluation_stream(samples, rows, device_batch_size, workers):
        assert batch is not None, "an intolerant stream skips nothing"
        yield batch


def classification_pool_batches(
    index: Index,
    *,
    pretrain: ClassifiedConfig,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    """The same of a pool, without labels, each batch beside what could not be read among its rows."""
    plan: FixedPlan = partial(classification_evaluation_plan, pretrain)
    samples = EvaluationSamples(Pictures(index, data), plan, "none", tolerant=True)
    return _evaluation_stream(samples, rows, device_batch_size, workers)


def _task_plan(augment: AugmentConfig, canvas: Size, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return draw_plan(augment, rng, size, canvas, boxes)


def _pair_of_plans(augment: AugmentConfig, canvas: Size) -> list[DrawPlan]:
    """Of the strong and of the weak view: neither knows the boxes, which in a pool are yet to be found."""
    return [partial(_unboxed_plan, draw, augment, canvas) for draw in (strong_plan, weak_plan)]


def _unboxed_plan(
    draw: Callable[[AugmentConfig, np.random.Generator, Size, Size], Plan],
    augment: AugmentConfig,
    canvas: Size,
    rng: np.random.Generator,
    size: Size,
    boxes: Boxes | None,
) -> Plan:
    return draw(augment, rng, size, canvas)


def _classification_plan(pretrain: ClassifiedConfig, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return classification_plan(pretrain, rng, size)


def _simclr_plan(pretrain: PretrainConfig, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return simclr_plan(pretrain, rng, size)


def _evaluation_plan(canvas: Size, size: Size) -> Plan:
    return evaluation_plan(size, canvas)


def _train_samples(
    index: Index,
    data: DataConfig,
    draw_plans: Sequence[DrawPlan],
    targets: Targets,
    mask_size: Size | None,
    options: StreamOptions,
) -> TrainSamples:
    if not len(index):
        raise InputError(f"stream {options['stream']!r}: there are no images in it. Give data that has some.")
    rng_of = partial(sample_rng, options["seed"], options["round"], options["stream"])
    return TrainSamples(Pictures(index, data, options["cache_megabytes"], mask_size), draw_plans, rng_of, targets)


def _train_stream(samples: TrainSamples | PoolSamples, **options: Unpack[StreamOptions]) -> Iterator[list[Batch]]:
    order = Order(**{name: options[name] for name in Order.__dataclass_fields__})  # type: ignore[literal-required]
    keys = order.micro_batch_keys(len(samples))
    batches = _loaded(samples, keys, collate_training, options["workers"], pin=options["pin"])
    return _grouped(batches, options["micro_batches"])


def _grouped(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    while group := [batch for _, batch in zip(range(count), batches, strict=False)]:
        yield group


def _evaluation_stream(
    samples: EvaluationSamples, rows: NDArray[np.int64] | None, size: int, workers: int
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    chosen = np.arange(len(samples.pictures.index)) if rows is None else rows
    keys = Slices(chosen, size)
    return _loaded(samples, keys, collate_evaluation, min(workers, len(keys)))


@dataclass(frozen=True)
class Slices:
    """Consecutive slices of rows, made as they are asked for."""

    rows: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.rows), self.size):
            yield self.rows[first : first + self.size].tolist()


def _loaded(
    samples: Any, keys: Iterable[list[Any]], collate_fn: Callable[..., Any], workers: int, *, pin: bool = False
) -> Iterator[Any]:
    """Collated samples of each list of keys, in order; raises what a user can mend."""
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin,
        worker_init_fn=partial(_start_worker, os.getpid()),
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # else it draws from the global one, and a continued training would differ
    )
    stream = _iterate(loader)
    # Before multiprocessing's own exit handler, which would wait forever for workers that leave SIGTERM unanswered.
    atexit.register(_close, weakref.ref(stream))
    Finalize(None, _kill_workers, exitpriority=0)
    return stream


def _iterate(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    with _opened(loader) as draw:
        while (batch := draw()) is not None:
            if isinstance(batch, InputError):
                raise batch
            yield batch


@contextmanager
def _opened(loader: DataLoader[Any]) -> Iterator[Callable[[], Any]]:
    """Gives the next batch, or None after the last.

    Workers end with the block, not with the last reference to them: a traceback keeps some, and later forks would
    inherit the workers' pipes.
    """
    if not loader.num_workers:
        yield partial(next, iter(loader), None)
        return
    batches = _started(loader)
    try:
        yield partial(_next, batches)
    finally:
        try:
            if _death(batches._workers):  # torch might wait forever for the rest of what the dead one was sending
                batches._shutdown = True
                if loader.pin_memory:
                    batches._pin_memory_thread_done_event.set()
            else:
                batches._shutdown_workers()
        finally:
            _end(batches._workers)


def _started(loader: DataLoader[Any]) -> Any:
    """Torch's iterator, of whose workers its handler of signals does not know (`_read` says why).

    It is made in two steps, so that what there is of it can be ended where it is not made to the end.
    """
    batches: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
    try:
        _MultiProcessingDataLoaderIter.__init__(batches, loader)
    except (OSError, RuntimeError) as error:
        workers = getattr(batches, "_workers", [])
        death = _death(workers)
        batches._shutdown = True
        with suppress(ValueError):  # torch did not know of them yet
            _remove_worker_pids(id(batches))
        _end(workers)
        if isinstance(error, OSError) or "start new thread" in str(error):
            raise InputError(f"loader: worker processes could not be started ({error}). {FEWER}") from error
        raise death or error from error
    _remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    return batches


def _next(batches: Any) -> Any:
    """The next batch, or None after the last.

    Raises:
        InputError: a worker was killed.
    """
    try:
        return _read(batches)
    except (RuntimeError, OSError, EOFError) as error:
        # The socket of a worker that dies is closed a moment before the worker has ended.
        ready = wait([worker.sentinel for worker in batches._workers], timeout=0.1)
        for worker in batches._workers:
            if worker.sentinel in ready:
                worker.join()
        raise _death(batches._workers) or error from error


def _read(batches: Any) -> Any:
    """The next batch, while torch's handler of SIGCHLD knows of the workers.

    It raises where one of those that it knows of has died, wherever this process happens to be: where that is the start
    of another worker, nobody would know of the new process. Here a read could wait forever for the rest of what a dead
    one was sending.
    """
    _set_worker_pids(id(batches), tuple(worker.pid for worker in batches._workers))
    try:
        if death := _death(batches._workers):
            raise death
        return next(batches, None)
    finally:
        _remove_worker_pids(id(batches))


def _death(workers: Iterable[Any]) -> InputError | None:
    """What a user is told when one of these processes was killed; None when none was."""
    code = next((worker.exitcode for worker in workers if worker.exitcode), 0)
    if not code:
        return None
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if -code == signal.SIGBUS:
        return InputError(
            f"loader: a worker process died ({how}): there is no shared memory left. Raise its limit (of a container: "
            f"--shm-size). {FEWER}"
        )
    return InputError(f"loader: a worker process died ({how}), most often for want of memory. {FEWER}")


def _end(workers: Iterable[Any]) -> None:
    """At once: workers ignore SIGTERM, and may wait for a lock that a dead one held."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5)


def _close(reference: weakref.ref[Generator[Any, None, None]]) -> None:
    stream = reference()
    if stream is not None:
        stream.close()


def _kill_workers() -> None:
    """Those of streams that an error has cut off, in whatever state; what would not end else are daemons alone."""
    for child in active_children():
        if child.daemon:
            child.kill()


def _start_worker(parent: int, worker: int) -> None:
    end_with(parent)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the main process answers and ends workers
        signal.signal(number, signal.SIG_IGN)
