"""Images of an index found by name: entries of a list, and files that another source holds too."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tutelage.data.index import Index
from tutelage.data.readers.source import first_five, read_text
from tutelage.types import InputError


def listed_rows(index: Index, path: Path) -> NDArray[np.int64]:
    """Sorted rows that a text file names, one a line: a path (or the end of one), a file name, or a stem.

    Raises:
        InputError: an entry is not found, or fits several images.
    """
    if not path.is_file():
        raise InputError(f"--labeled-list {path}: does not exist. Give a text file of paths, names or stems.")
    entries = [line.strip().replace("\\", "/") for line in read_text(path).splitlines() if line.strip()]
    names: dict[str, list[int]] = {}
    relative = index.relative_paths().to_pylist()
    for row, name in enumerate(relative):
        base = os.path.basename(name)
        for key in {name, base, os.path.splitext(base)[0]}:
            names.setdefault(key, []).append(row)
    found = [_rows_named(entry, names, index) for entry in entries]
    if lost := [entry for entry, rows in zip(entries, found, strict=True) if not rows]:
        raise InputError(
            f"--labeled-list {path}: {len(lost)} of {len(entries)} entries are not in {index.description} (first: "
            f"{first_five(lost)}). Entries are paths, file names or stems; remove these, or mend them."
        )
    for entry, rows in zip(entries, found, strict=True):
        if len(rows) > 1:
            raise InputError(
                f"--labeled-list {path}: {entry!r} fits {len(rows)} images (first: "
                f"{first_five(relative[row] for row in rows[:2])}). Write its path."
            )
    if not found:
        raise InputError(f"--labeled-list {path}: is empty. It must name at least one image.")
    return np.unique([rows[0] for rows in found])


def _rows_named(entry: str, names: dict[str, list[int]], index: Index) -> list[int]:
    if "/" not in entry:
        return names.get(entry, [])
    ending = "/" + entry.lstrip("./")
    exact = [row for row in names.get(entry, []) if index.relative_path(row) == entry]
    return exact or [row for row in names.get(os.path.basename(entry), []) if str(index.path(row)).endswith(ending)]


def rows_at(index: Index, paths: Iterable[str]) -> NDArray[np.bool_]:
    """(n,) which images lie at one of these absolute paths; vectorized, for pools of millions."""
    found = np.zeros(len(index), bool)
    absolute = list(paths)
    relative = index.relative_paths()
    for number, root in enumerate(index.roots):
        prefix = os.path.join(root, "")
        below = [path[len(prefix) :] for path in absolute if path.startswith(prefix)]
        if below:
            here = pc.is_in(relative, value_set=pa.array(below, pa.large_string())).to_numpy(zero_copy_only=False)
            found |= here & (index.root_numbers() == number)
    return found
