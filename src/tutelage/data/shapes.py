"""Outlines of the demo's procedural shapes: polygons (N, 2) of points (x, y) with the origin in their middle.

Scenes are made of `SCENE_SHAPES`; `CROP_SHAPES`, which scenes never show, are there to pre-train a backbone on.
`DISTRACTOR_SHAPES` lie about in both and belong to no class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]  # (N, 2)


def regular(corners: int, inner: float = 1.0) -> Outline:
    """A regular polygon; with `inner` below 1 a star whose notches lie at that radius."""
    count = corners if inner == 1 else 2 * corners
    angle = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radius = np.where(np.arange(count) % 2, inner, 1.0) if inner != 1 else np.ones(count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def arc(radius: float, start: float, stop: float, center: tuple[float, float] = (0.0, 0.0)) -> Outline:
    """Points of a circle's arc, angles in degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, 24))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + center


def _heart() -> Outline:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle))
    return np.stack([x, y], axis=1) / 17


def _moon() -> Outline:
    return np.concatenate([arc(1, 60, 300), arc(0.85, 290, 70, (0.42, 0))])


def _leaf() -> Outline:
    return np.concatenate([arc(1.3, 220, 320, (0, 0.85)), arc(1.3, 40, 140, (0, -0.85))])


def _gear() -> Outline:
    angle = 2 * np.pi * np.arange(32) / 32
    radius = np.where(np.arange(32) // 2 % 2, 0.7, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _points(*pairs: tuple[float, float]) -> Outline:
    return np.array(pairs, dtype=np.float64)


def _cross(arm: float = 0.36) -> Outline:
    quarter = _points((-arm, -1), (arm, -1), (arm, -arm))
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


SCENE_SHAPES: dict[str, Outline] = {
    "star": regular(5, 0.45),
    "heart": _heart(),
    "moon": _moon(),
    "cross": _cross(),
}
CROP_SHAPES: dict[str, Outline] = {
    "triangle": regular(3),
    "square": regular(4),
    "pentagon": regular(5),
    "octagon": regular(8),
    "kite": _points((0, -1), (0.6, -0.3), (0, 1), (-0.6, -0.3)),
    "arrow": _points((0, -1), (0.8, 0), (0.3, 0), (0.3, 1), (-0.3, 1), (-0.3, 0), (-0.8, 0)),
    "chevron": _points((-0.9, 0.2), (0, -0.8), (0.9, 0.2), (0.9, 0.8), (0, -0.2), (-0.9, 0.8)),
    "corner": _points((-0.8, -0.9), (-0.2, -0.9), (-0.2, 0.3), (0.8, 0.3), (0.8, 0.9), (-0.8, 0.9)),
    "tee": _points(
        (-0.9, -0.8), (0.9, -0.8), (0.9, -0.2), (0.3, -0.2), (0.3, 0.9), (-0.3, 0.9), (-0.3, -0.2), (-0.9, -0.2)
    ),
    "dome": arc(1, 180, 360, (0, 0.4)),
    "trapezoid": _points((-0.45, -0.6), (0.45, -0.6), (1, 0.6), (-1, 0.6)),
    "hourglass": _points((-0.7, -0.9), (0.7, -0.9), (0.15, 0), (0.7, 0.9), (-0.7, 0.9), (-0.15, 0)),
    "bolt": _points((0.1, -1), (-0.6, 0.2), (-0.05, 0.2), (-0.2, 1), (0.6, -0.25), (0.05, -0.25), (0.4, -1)),
    "gear": _gear(),
    "house": _points((0, -1), (0.8, -0.2), (0.8, 0.9), (-0.8, 0.9), (-0.8, -0.2)),
    "leaf": _leaf(),
}
DISTRACTOR_SHAPES: dict[str, Outline] = {
    "disk": arc(0.8, 0, 345),
    "bar": _points((-1.3, -0.16), (1.3, -0.16), (1.3, 0.16), (-1.3, 0.16)),
    "egg": arc(1, 0, 345) * np.array([1.0, 0.5]),
}
