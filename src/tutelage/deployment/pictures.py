"""Pictures as people have them (files, Pillow images, arrays) to samples on a model's canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.augment.apply import apply
from tutelage.augment.policies import evaluation_plan
from tutelage.config import DataConfig
from tutelage.data.images import decode, pixels_of, probe
from tutelage.types import InputError, Sample

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""A path; an open Pillow image; or uint8 RGB (height, width, 3)."""


def sample_of(picture: Picture, number: int, canvas: tuple[int, int], data: DataConfig) -> Sample:
    """A picture fitted into the top left of the canvas, as evaluation and `predict` do it.

    Args:
        picture: of any size. What a viewer shows of a file or Pillow image is taken: its orientation is applied.
        number: the sample's `image_id`.
        canvas: (height, width).
        data: how files are decoded.

    Raises:
        InputError: a file that cannot be read, or an array that is no picture.
    """
    if isinstance(picture, str | Path):
        path = Path(picture)
        size = probe(path).shown_size
        plan = evaluation_plan(size, canvas)
        pixels = decode(path, data, needed_scale=plan.min_scale).pixels
    else:
        pixels = pixels_of(picture, data) if isinstance(picture, Image.Image) else _checked(picture, number)
        size = (pixels.shape[0], pixels.shape[1])
        plan = evaluation_plan(size, canvas)
    warped = apply(plan, pixels, size)
    valid = np.array([warped.valid], np.int64)
    return Sample(number, warped.pixels[None], plan.matrix[None], size, valid)


def _checked(picture: Any, number: int) -> NDArray[np.uint8]:
    """The array, if it holds a picture."""
    found = f"an array of {picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture)
    fits = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.size
    if not fits or picture.dtype != np.uint8:
        raise InputError(
            f"images[{number}]: found {found}; a path, a Pillow image, or a uint8 array (height, width, 3) of RGB "
            "values is allowed. Convert it."
        )
    return np.ascontiguousarray(picture)
