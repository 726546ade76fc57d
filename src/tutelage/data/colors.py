"""Colors of classes: the same class index has the same color in masks that are written, in sheets and in reports.

The first eight are the palette of Okabe and Ito (2008, "Color Universal Design"). Each further color is the one of a
grid that lies farthest from all before it, for people with usual sight and for red-blind and green-blind ones alike.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

IGNORE_COLOR = (255, 255, 255)
"""Color of pixels without a label: no class comes near it."""

FIRST = "0072B2 E69F00 009E73 CC79A7 56B4E9 D55E00 F0E442 5A5A5A"  # Okabe and Ito; gray stands in for their black
NUM_COLORS = 255
GRID = (20, 58, 96, 134, 172, 210, 240)  # values of each channel that further colors are made of
LIGHTNESS = (22.0, 90.0)  # CIE L* of further colors: neither black nor white

# What is left of linear RGB for the red-blind and the green-blind: Machado, Oliveira, Fernandes 2009, severity 1.0
RED_BLIND = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
GREEN_BLIND = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
SIGHTS = np.array([np.eye(3), RED_BLIND, GREEN_BLIND])
XYZ_OF_RGB = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)))  # sRGB, D65


def class_colors(num: int) -> NDArray[np.uint8]:
    """RGB (num, 3) of classes 0 .. num - 1, at most 255; more classes do not change the colors of the first."""
    assert 0 <= num <= NUM_COLORS, num
    return _colors()[:num].copy()


@cache
def _colors() -> NDArray[np.uint8]:
    first = np.array([tuple(bytes.fromhex(color)) for color in FIRST.split()], np.uint8)
    grid = np.stack(np.meshgrid(GRID, GRID, GRID, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.uint8)
    lightness = _seen(grid)[0, :, 0]
    grid = grid[(lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1])]
    seen = _seen(grid)
    nearest = np.full(len(grid), np.inf)
    for color in _seen(np.array([*first, IGNORE_COLOR], np.uint8)).swapaxes(0, 1):
        nearest = np.minimum(nearest, _distance(seen, color))
    chosen = []
    for _ in range(NUM_COLORS - len(first)):
        chosen.append(int(nearest.round(6).argmax()))
        nearest = np.minimum(nearest, _distance(seen, seen[:, chosen[-1]]))
    return np.concatenate([first, grid[chosen]])


def _distance(seen: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances (n,) of colors (3, n, 3) to one (3, 3): the least over the three kinds of sight."""
    return np.asarray(np.linalg.norm(seen - color[:, None], axis=2).min(axis=0))


def _seen(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE L*a*b* (3, n, 3) of RGB colors (n, 3) in the three kinds of sight."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    shown = np.clip(np.einsum("sij,nj->sni", SIGHTS, linear), 0, 1)
    relative = shown @ XYZ_OF_RGB.T / XYZ_OF_RGB.sum(axis=1)
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
