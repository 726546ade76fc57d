"""Files in tar archives, told by one path as files on disk are: `shard-0007.tar::n01440764_1.jpg`.

A tar is not unpacked: where its members begin is read once a process, their bytes where they stand. No archive stays
open, so that loader workers may be forked at any time.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import IO

from tutelage.types import InputError

SUFFIX, SEPARATOR = ".tar", "::"

Place = tuple[int, int]  # (offset, size) in bytes


def split_path(path: str) -> tuple[str, str]:
    """The file on disk, and the member of it that is meant; "" for the file itself."""
    archive, found, name = path.partition(SUFFIX + SEPARATOR)
    return (archive + SUFFIX, name) if found else (path, "")


def file_of(path: Path) -> Path:
    """The file on disk that holds what lies at a path: the archive of a member, else the path itself."""
    archive, name = split_path(str(path))
    return Path(archive) if name else path


def read_bytes(path: Path) -> bytes:
    """Content of a file or member.

    Raises:
        OSError: it is not there.
        InputError: the archive cannot be read.
    """
    archive, name = split_path(str(path))
    if not name:
        return path.read_bytes()
    places = members(archive)
    if name not in places:
        raise FileNotFoundError(errno.ENOENT, "the archive has no such member")
    offset, size = places[name]
    with open(archive, "rb") as file:
        file.seek(offset)
        return file.read(size)


def opened(path: Path) -> IO[bytes]:
    """A file or member to be read from; raises what `read_bytes` raises."""
    return io.BytesIO(read_bytes(path)) if split_path(str(path))[1] else open(path, "rb")


def members(archive: str) -> dict[str, Place]:
    """Where the files in a tar lie, by name, in their order.

    Raises:
        OSError: it is not there.
        InputError: it is no tar, compressed, ends early, or holds two files of one name.
    """
    return _members(archive, os.stat(archive).st_mtime_ns)


@cache
def _members(archive: str, changed: int) -> dict[str, Place]:
    try:
        with tarfile.open(archive, "r:") as tar:
            files = [member for member in tar if member.isreg() and not member.issparse()]
            end = tar.offset
    except tarfile.TarError as error:
        raise _damaged(archive, str(error)) from None
    with open(archive, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes anything there for the end
            raise _damaged(archive, f"no end mark after {len(files)} files")
    places: dict[str, Place] = {}
    for member in files:
        name = member.name.removeprefix("./")
        if name in places:
            raise InputError(
                f"{archive}: holds {name!r} twice; each file needs a name of its own. Rename one, and pack it again."
            )
        places[name] = (member.offset_data, member.size)
    return places


def _damaged(archive: str, found: str) -> InputError:
    return InputError(
        f"{archive}: is no whole tar ({found}); it must be uncompressed and complete. Unzip it, or fetch or pack it "
        "again."
    )
