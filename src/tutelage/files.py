"""Files that are whole or absent: written under a temporary name, brought to the disk, then renamed.

Used by all that writes state (stores, checkpoints, records), so that a kill, a full disk or a power cut at any moment
leaves nothing that could be taken for complete. What a killed process leaves under temporary names, `.tmp-*`,
is removed by the next start (`remove_stale`). Writers hold a lock on what they write, which ends with them: a
process number would come again, and says nothing where containers share a folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tutelage.types import InputError

TEMPORARY = f".tmp-{12 * '[0-9a-f]'}-*"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to it when the block ends without an error.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    try:
        with unfinished(path, folder=False) as temporary:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise mendable(error, path) or error from error
    with suppress(OSError):  # some file systems cannot; the file is whole in any case
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """The same of a folder to fill, made of files that are atomic themselves.

    Processes that share a cache may make the same folder at once: the first one stays, unless `replace`.
    """
    try:
        with unfinished(path, folder=True) as temporary:
            yield temporary
            if replace:
                with unfinished(path, folder=True) as former, suppress(FileNotFoundError):
                    os.replace(path, former)
            try:
                os.rename(temporary, path)
            except OSError:
                if not path.is_dir():
                    raise
    except OSError as error:
        raise mendable(error, path) or error from error


def make_folder(path: Path) -> None:
    """Makes a folder that the user named, and those above it.

    Raises:
        InputError: it cannot be made there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        impossible = InputError(f"{path}: this folder cannot be made ({error.strerror}). Choose another.")
        raise mendable(error, path) or impossible from None


def copy_files(source: Path, folder: Path) -> None:
    """Copies the files of `source`, not its folders, each atomically (see `atomic`)."""
    for path in filter(Path.is_file, source.iterdir()):
        with atomic(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def remove_stale(found: Iterable[Path]) -> None:
    """Deletes those of the `TEMPORARY` files and folders found that killed processes have left; the others stay."""
    for path in sorted(found):
        with suppress(OSError):  # gone, being written, or on a file system without locks, where nobody can tell
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def mendable(error: OSError, path: Path | None = None) -> InputError | None:
    """What a user is told of an error of the file system, about `path` or the file it names; None of other errors."""
    again = "then run the same command: it continues"
    remedies = {
        errno.ENOSPC: f"the disk is full; free some space, {again}",
        errno.EDQUOT: f"the disk quota is used up; free some space, {again}",
        errno.EFBIG: f"the largest allowed file size is reached; raise it, {again}",
        errno.EACCES: "this folder cannot be written to; choose another",
        errno.ENOTDIR: "a file is in the way; choose another folder",
        errno.EROFS: "this disk is read-only; choose another folder",
    }
    remedy = remedies.get(error.errno or 0)
    return InputError(f"{path or error.filename or 'disk'}: {remedy}.") if remedy else None


def write_text(path: Path, text: str) -> None:
    """Writes text atomically (see `atomic`)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, keys in the given order (see `atomic`)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        InputError: the file is missing, no readable file or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist. Give a folder that Tutelage wrote and finished.") from None
    except OSError as error:  # a folder, or a link to itself
        raise InputError(f"{path}: cannot be read ({error.strerror}). Restore the file, or make it again.") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, endless digits or depth
        raise InputError(f"{path}: not valid JSON ({error}). Restore the file, or make it again.") from None


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unfinished(path: Path, *, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside `path`, locked while the block lasts, and gone after it unless renamed."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")  # see TEMPORARY; some go by the suffix
    descriptor = _locked(temporary, folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(descriptor)


def _locked(path: Path, folder: bool) -> int:
    """Descriptor of a new file or folder under a lock, which ends with the process."""
    while True:  # until no other process has taken it for stale before it was locked
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if path.parent.is_dir():
                continue
            raise
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
