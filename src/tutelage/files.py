"""Files that are whole or absent: written under a temporary name, brought to the disk, then renamed.

Used by all that writes state (stores, checkpoints, records), so that a kill, a full disk or a power cut at any moment
leaves nothing that could be taken for complete.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tutelage.types import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to it when the block ends without an error.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # some writers go by the suffix
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _mendable(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some file systems cannot; the file is whole in any case
        _sync(path.parent)


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
        InputError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist. Give a folder that Tutelage wrote and finished.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}). Restore the file, or make it again.") from None


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mendable(path: Path, error: OSError) -> Exception:
    remedies = {
        errno.ENOSPC: "the disk is full; free some space, then run the same command: it continues",
        errno.EDQUOT: "the disk quota is used up; free some space, then run the same command: it continues",
        errno.EFBIG: "the largest allowed file size is reached; raise it, then run the same command: it continues",
        errno.EACCES: "this folder cannot be written to; choose another",
        errno.EROFS: "this disk is read-only; choose another folder",
    }
    remedy = remedies.get(error.errno or 0)
    return InputError(f"{path}: {remedy}.") if remedy else error
