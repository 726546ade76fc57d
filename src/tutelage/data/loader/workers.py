"""Batches from loader processes, through torch's DataLoader: what ends one is told in one line, and none is left over.

They are forked where that is safe (they then share the index and the kept images) and compute on one thread each.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from torch._C import _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tutelage.processes import end_with
from tutelage.types import InputError

FEWER = (
    "Lower runtime.workers (0 loads without workers), runtime.cache_megabytes or the batch size, then run the same "
    "command: it continues."
)


def loaded(
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
