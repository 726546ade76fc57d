"""A contact sheet of one image under every augmentation level, to be looked at before training."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tutelage.augment.apply import apply
from tutelage.augment.plan import Plan
from tutelage.augment.policies import BOX_ONLY, draw_plan
from tutelage.config import AugmentConfig
from tutelage.ops.affine import magnification
from tutelage.types import NOT_IGNORED, Boxes

Level = Literal["none", "s1", "s2", "s3", "s4"]

DRAWS = 4  # pictures of a level
SIDE = 320  # pixels of a picture
MARGIN, CAPTION, HEADING = 8, 18, 80  # pixels around a picture, below it, and left of a row
WITHOUT_AMOUNT = ("AutoContrast", "Equalize", "Flip")
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (112, 112, 112)


def contact_sheet(pixels: NDArray[np.uint8], boxes: Boxes, class_names: Sequence[str], seed: int) -> Image.Image:
    """One image (h, w, 3) under no augmentation and S1 to S4, a few draws each, with its boxes and their classes.

    Under each picture stands what was drawn for it: the largest enlargement, then the operations.
    """
    levels: tuple[Level, ...] = get_args(Level)
    width = HEADING + DRAWS * (SIDE + MARGIN) + MARGIN
    height = len(levels) * (SIDE + CAPTION + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    for row, level in enumerate(levels):
        top = MARGIN + row * (SIDE + CAPTION + MARGIN)
        ImageDraw.Draw(sheet).text((MARGIN, top + SIDE // 2), level.upper(), INK, ImageFont.load_default(20))
        for draw in range(1 if level == "none" else DRAWS):
            picture = _picture(pixels, boxes, class_names, level, np.random.default_rng((seed, row, draw)))
            sheet.paste(picture, (HEADING + draw * (SIDE + MARGIN), top))
    return sheet


def _picture(
    pixels: NDArray[np.uint8], boxes: Boxes, class_names: Sequence[str], level: Level, rng: np.random.Generator
) -> Image.Image:
    """One draw with its boxes and caption: SIDE wide, SIDE + CAPTION high."""
    size = (pixels.shape[0], pixels.shape[1])
    plan = draw_plan(AugmentConfig(level=level), rng, size, (SIDE, SIDE), boxes)
    warped = apply(plan, pixels, size, boxes)
    assert warped.boxes is not None
    picture = Image.new("RGB", (SIDE, SIDE + CAPTION), PAPER)
    picture.paste(Image.fromarray(warped.pixels), (0, 0))
    pen = ImageDraw.Draw(picture)
    for xyxy, label, ignore in zip(warped.boxes.xyxy, warped.boxes.labels, warped.boxes.ignore, strict=True):
        name = class_names[label] if ignore == NOT_IGNORED else f"({class_names[label]})"
        _draw_box(pen, xyxy.tolist(), name, _color(int(label), len(class_names)))
    pen.text((0, SIDE + 3), _caption(plan), FAINT, ImageFont.load_default(11))
    return picture


def _draw_box(pen: ImageDraw.ImageDraw, xyxy: list[float], name: str, color: tuple[int, int, int]) -> None:
    """An outline with its name in the upper left corner, where the box has room for it."""
    x1, y1, x2, y2 = xyxy
    pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=2)
    font = ImageFont.load_default(10)
    left, top, right, bottom = pen.textbbox((x1 + 3, y1 + 2), name, font=font)
    if right < x2 and bottom < y2:
        pen.rectangle((left - 2, top - 1, right + 1, bottom + 1), fill=color)
        pen.text((x1 + 3, y1 + 2), name, PAPER, font)


def _caption(plan: Plan) -> str:
    whole = [_named(name, amount) for name, amount in plan.drawn if not name.endswith(BOX_ONLY)]
    inside = Counter(_named(operation.name, operation.amount) for operation in plan.source_ops)
    boxes = [f"{text} in {count} box{'es' * (count > 1)}" for text, count in inside.items()]
    return ", ".join([f"x{magnification(plan.matrix):.2f}", *whole, *boxes])


def _named(name: str, amount: float) -> str:
    return name if name in WITHOUT_AMOUNT else f"{name} {amount + 0.0:g}"  # never "-0"


def _color(label: int, num_classes: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / max(num_classes, 1), 0.9, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)
