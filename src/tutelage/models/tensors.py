"""Tensors in safetensors files that are whole or absent."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tutelage.files import atomic


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes contiguous tensors by name, atomically (see `tutelage.files.atomic`).

    Raises:
        InputError: the disk is full or not writable.
    """
    with atomic(path) as temporary:
        try:
            save_file(dict(tensors), temporary)
        except SafetensorError as error:
            code = re.search(r"(?:os error|code:) (\d+)", str(error))  # the operating system's: full disk, quota
            if code is None:
                raise
            raise OSError(int(code[1]), errno.errorcode.get(int(code[1]), "")) from error
