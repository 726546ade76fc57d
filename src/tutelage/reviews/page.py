"""The page to look through pseudo-labels: one self-contained HTML file, written by `tutelage review`.

Names of files and classes are untrusted text: they reach the page through the template engine's escaping, or as JSON
in which no tag can end, and its script makes text nodes of them. The page's content policy allows its own script and
style, by their hashes, pictures that are inside, and nothing from the network; a served page may talk to its server.

Legend: K classes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tutelage.config import PseudoConfig
from tutelage.data.colors import NUM_COLORS, class_colors
from tutelage.data.pseudo import PseudoStore, score_limits
from tutelage.data.pseudo.verdicts import FORMAT, Verdicts
from tutelage.data.thumbnails import Album
from tutelage.reviews.informativeness import Ranking, comparable, rank, rarity_of
from tutelage.reviews.shown import SHOWN
from tutelage.reviews.tally import grid_of, tally

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = "verdicts.js", "drawing.js", "acting.js"
SIDE = 800
"""Longer side of a picture, at most."""

NEAR = 0.1
"""Boxes that are shown at first: from this far below the lowest threshold."""

REJECTED = {
    "boxes": "there is no such object; the place becomes background",
    "masks": "it is not of that class",
}
MISSING = {
    "boxes": "Where objects are missing, leave it open: draw them in a labeling tool (review --export).",
    "masks": "Where regions are missing, leave it open: paint them in a labeling tool (review --export).",
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows, before any verdict."""

    title: str
    summary: str
    data: dict[str, Any]  # for the script
    shown: int  # images


def ranked(stores: Sequence[PseudoStore], pseudo: PseudoConfig, reviewed: Collection[str] = ()) -> Ranking:
    """The usable images of the last of some rounds' stores, the most informative first, reviewed ones behind.

    Args:
        stores: of consecutive rounds; the one before the last tells where rounds disagree.
        pseudo: holds the thresholds.
        reviewed: paths of images that people are done with.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    *before, store = stores
    limits = score_limits(pseudo, store.manifest.class_names)
    earlier = before[-1] if before and comparable(store, before[-1]) else None
    ranking = rank(store, earlier, limits, rarity_of(tally(store, limits).images[:, -1]))
    return ranking.select(np.argsort(np.isin(ranking.paths.astype(str), list(reviewed)), kind="stable"))


def gather(
    stores: Sequence[PseudoStore],
    pseudo: PseudoConfig,
    album: Album,
    *,
    title: str,
    limit: int = 0,
    reviewed: Collection[str] = (),
) -> Content:
    """What the page shows of the last of some rounds' stores (see `ranked`).

    Args:
        stores: of consecutive rounds.
        pseudo: holds the thresholds.
        album: makes the pictures.
        title: of the page.
        limit: images, at most; 0 is all.
        reviewed: paths of images that people are done with.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    store = stores[-1]
    ranking = ranked(stores, pseudo, reviewed)
    chosen = ranking.image_ids[: limit or None]
    by_row = {}
    for image in SHOWN[store.manifest.annotation](store, np.sort(chosen), pseudo):
        picture = album.whole(image.path, image.size, min(SIDE, max(image.size))).href
        by_row[image.image_id] = {
            "path": image.path,
            "size": image.size,
            "picture": picture,
            "labels": image.labels,
        }
    round_ = f"round {store.manifest.round}"
    summary = f"Pseudo-labels of {round_}: {len(chosen)} of {len(ranking.image_ids)} images, most informative first."
    images = [by_row[row] for row in chosen.tolist()]
    return Content(title, summary, {**_described(store, pseudo), "images": images}, len(images))


def _described(store: PseudoStore, pseudo: PseudoConfig) -> dict[str, Any]:
    """What the script needs to know of a whole store."""
    manifest = store.manifest
    limits = score_limits(pseudo, manifest.class_names)
    counted = tally(store, limits)
    grid = [float(str(value)) for value in grid_of(store)]
    lowest = float(limits.min(initial=1))
    return {
        "format": FORMAT,
        "annotation": manifest.annotation,
        "class_names": manifest.class_names,
        "colors": _colors(len(manifest.class_names)),
        "teacher": manifest.teacher,
        "round": manifest.round,
        "store": store.content,
        "grid": grid,
        "limits": [float(str(limit)) for limit in limits],
        "from": max(0.0, round(lowest - NEAR, 2)) if manifest.annotation == "boxes" else 0.0,
        "near": NEAR if manifest.annotation == "boxes" else 1.0,  # unsure labels are shown so far below the threshold
        "kept": counted.amounts.tolist(),
        "kept_images": counted.images.tolist(),
        "everything": max(counted.everything, 1),
    }


def _colors(num: int) -> list[str]:
    """CSS colors of classes; those of the first come again after 255."""
    palette = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(NUM_COLORS)]
    return [palette[label % NUM_COLORS] for label in range(num)]


def render(
    content: Content, verdicts: Verdicts | None, verdicts_time: float = 0, save_to: str = "", seen: str = ""
) -> str:
    """The page.

    Args:
        content: what it shows.
        verdicts: that it begins with.
        verdicts_time: when these were written, seconds since 1970; a browser that keeps newer ones prefers them.
        save_to: address, relative to the page's, that takes verdicts; without one they are downloaded.
        seen: what the page tells that address of the verdicts that it began with.
    """
    plain = verdicts.plain() if verdicts else None
    data = {**content.data, "verdicts": plain, "verdicts_time": 1000 * verdicts_time, "save_to": save_to, "seen": seen}
    script, style = (_joined(names) for names in (SCRIPTS, ("page.css",)))
    annotation = content.data["annotation"]
    return (
        Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
        .get_template("page.html")
        .render(
            title=content.title,
            summary=content.summary,
            unit={"boxes": "boxes", "masks": "pixels"}[annotation],
            rejected=REJECTED[annotation],
            missing=MISSING[annotation],
            served=bool(save_to),
            policy=policy(script, style, served=bool(save_to)),
            script=Markup(script),
            style=Markup(style),
            data=Markup(embedded(data)),
        )
    )


def _joined(names: Sequence[str]) -> str:
    return "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def policy(script: str, style: str, *, served: bool) -> str:
    """A content security policy that lets these run and nothing else."""
    rules = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def embedded(value: Any) -> str:
    """JSON in which no HTML tag, comment or entity can begin."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
