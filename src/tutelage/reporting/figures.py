"""Figures as SVG strings; the only place that knows matplotlib (Agg-free, no pyplot, no global figure).

Figures are drawn in stand-in colors that become CSS variables, so that one drawing reads on light and on dark, and
text stays text. No text from the data enters a figure: names of classes and files belong to the page around it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

STAND_INS = {
    "ink": "#010203",
    "muted": "#020304",
    "rule": "#030405",
    "teacher": "#040506",
    "control": "#050607",
    "student": "#060708",
    "hidden": "#070809",
    "teacher_control": "#08090a",
}
"""Colors that no figure means; `_finish` turns each into the CSS variable of that name."""

DASHES: dict[str, str | tuple[int, tuple[int, ...]]] = {
    "teacher": (0, (1, 1)),
    "control": (0, (4, 2)),
    "student": "-",
    "hidden": (0, (6, 2, 1, 2)),
    "teacher_control": (0, (1, 3)),
}
"""Line styles of the models: color is never the only difference."""

SETTINGS: Any = {  # matplotlib's stubs want a type of some three hundred keys
    "svg.fonttype": "none",
    "svg.hashsalt": "tutelage",
    "font.family": ["sans-serif"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": STAND_INS["ink"],
    "axes.edgecolor": STAND_INS["muted"],
    "axes.labelcolor": STAND_INS["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": STAND_INS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": STAND_INS["muted"],
    "ytick.color": STAND_INS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
}
LARGEST_SCALE = 1.45
"""CSS pixels a point at most, so that text has about one size in all figures."""

MOST_POINTS = 240
"""Points of a curve; longer logs are averaged in bins."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a figure."""

    role: str  # of a model: color and dashes
    points: NDArray[np.float64]  # (rows, 2) x, y
    faint: bool = False  # earlier rounds and repeats


@dataclass(frozen=True, slots=True)
class Whisker:
    """A difference with its interval."""

    label: str
    mean: float
    low: float
    high: float
    shown: bool  # the interval leaves zero out


@dataclass(frozen=True, slots=True)
class Band:
    """A curve with its interval."""

    role: str  # color and dashes
    points: NDArray[np.float64]  # (rows, 4) x, y, low, high; NaN where undefined


def line_figure(
    curves: Sequence[Curve], *, title: str, xlabel: str, ylabel: str = "", square: bool = False, markers: bool = False
) -> str:
    """Curves over a common axis; `square` fixes both axes to 0..1."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(3.4, 2.9 if square else 2.3)
        for curve in curves:
            points = thinned(curve.points)
            axes.plot(
                points[:, 0],
                points[:, 1],
                color=STAND_INS[curve.role],
                linestyle=DASHES[curve.role],
                linewidth=0.8 if curve.faint else 1.6,
                alpha=0.45 if curve.faint else 1.0,
                marker="o" if markers else "",
                markersize=3,
            )
        if square:
            axes.set(xlim=(0, 1.005), ylim=(0, 1.02))
        else:
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return _finish(figure, title)


def histogram_figure(counts: NDArray[Any], thresholds: Sequence[float], *, title: str, xlabel: str, ylabel: str) -> str:
    """Bars of counts or shares over 0..1; those right of the (lowest) threshold are filled, thresholds are marked."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(4.4, 2.5)
        edges = np.linspace(0, 1, len(counts) + 1)
        width = edges[1] * 0.86
        kept = edges[:-1] >= min(thresholds, default=0) - 1e-9
        middle = (edges[:-1] + edges[1:]) / 2
        axes.bar(middle[~kept], counts[~kept], width, color=STAND_INS["muted"], alpha=0.4, linewidth=0)
        axes.bar(middle[kept], counts[kept], width, color=STAND_INS["teacher"], linewidth=0)
        for threshold in thresholds:
            axes.axvline(threshold, color=STAND_INS["ink"], linewidth=1, linestyle=(0, (4, 2)))
        if len(thresholds) == 1:
            axes.text(thresholds[0], 1.02, f"kept from {thresholds[0]:g}", transform=axes.get_xaxis_transform())
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(False, axis="x")
        axes.set(xlim=(0, 1), xlabel=xlabel, ylabel=ylabel)
        return _finish(figure, title)


def threshold_figure(bands: Sequence[Band], threshold: float, wanted: float, *, shown: bool, title: str) -> str:
    """Shares in 0..1 over a threshold in 0..1 with their intervals; `wanted` of the first is a line.

    The threshold that is taken is marked on the first curve, hollow where nothing is `shown` there.
    """
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(3.4, 2.5)
        axes.axhline(wanted, color=STAND_INS["ink"], linewidth=0.9, linestyle=(0, (1, 2)))
        axes.axvline(threshold, color=STAND_INS["ink"], linewidth=0.9, linestyle=(0, (4, 2)))
        for band in bands:
            x, y, low, high = band.points.T
            color = STAND_INS[band.role]
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(x, y, color=color, linestyle=DASHES[band.role], linewidth=1.6)
        x, y = bands[0].points[:, :2].T
        color = STAND_INS[bands[0].role]
        face = color if shown else "none"
        at = int(np.argmin(np.abs(x - threshold)))
        axes.plot([x[at]], [y[at]], "o", markersize=6, color=color, markerfacecolor=face, markeredgewidth=1.4)
        axes.text(threshold, 1.05, f"{threshold:.4g}", transform=axes.get_xaxis_transform(), ha="center")
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="threshold")
        return _finish(figure, title)


def whisker_figure(whiskers: Sequence[Whisker], *, title: str, xlabel: str) -> str:
    """Differences as points with intervals around a line at zero; one that holds zero is drawn hollow."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(4.4, 0.6 + 0.34 * len(whiskers))
        axes.axvline(0, color=STAND_INS["ink"], linewidth=0.9)
        for row, whisker in enumerate(whiskers):
            color = STAND_INS["ink"] if whisker.shown else STAND_INS["muted"]
            axes.plot([whisker.low, whisker.high], [row, row], color=color, linewidth=1.8, solid_capstyle="butt")
            face = color if whisker.shown else "none"
            axes.plot([whisker.mean], [row], "o", markersize=6, color=color, markerfacecolor=face, markeredgewidth=1.4)
        reach = max((abs(end) for whisker in whiskers for end in (whisker.low, whisker.high)), default=0.0) or 1.0
        low = min((whisker.low for whisker in whiskers), default=-1.0)
        axes.set_xlim(min(low, -0.15 * reach) - 0.05 * reach, reach * 1.08)
        axes.set_ylim(len(whiskers) - 0.5, -0.5)
        axes.set_yticks(range(len(whiskers)), [whisker.label for whisker in whiskers])
        axes.tick_params(axis="y", labelcolor=STAND_INS["ink"])
        axes.spines["left"].set_visible(False)
        axes.grid(False, axis="y")
        axes.set_xlabel(xlabel)
        return _finish(figure, title)


def thinned(points: NDArray[np.float64], most: int = MOST_POINTS) -> NDArray[np.float64]:
    """A curve with at most this many points: means of consecutive bins."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, most)])


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _finish(figure: Figure, title: str) -> str:
    """The figure as an SVG element for a page: scalable, colored by CSS, with a title for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same ids in every figure
    width = LARGEST_SCALE * figure.get_figwidth() * 72
    opening = rf'<svg viewBox="\1" role="img" aria-label="{title}" style="max-width: {width:.0f}px">'
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, text)
    return _recolored(text)


def _recolored(text: str) -> str:
    colors: Mapping[str, str] = {value: f"var(--{name})" for name, value in STAND_INS.items()}
    return re.sub("|".join(colors), lambda match: colors[match.group()], text)
