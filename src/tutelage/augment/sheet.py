"""A contact sheet of one image under every augmentation level, to be looked at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tutelage.augment.apply import Warped, apply
from tutelage.augment.plan import Plan
from tutelage.augment.policies import BOX_ONLY, draw_plan
from tutelage.config import AugmentConfig
from tutelage.ops.affine import magnification
from tutelage.types import Boxes

Level = Literal["none", "s1", "s2", "s3", "s4"]

DRAWS = 4  # pictures of a level
SIDE = 320  # pixels of a picture
MARGIN, CAPTION, HEADING = 8, 18, 80  # pixels around a picture, below it, and left of a row
WITHOUT_AMOUNT = ("AutoContrast", "Equalize", "Flip")
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (112, 112, 112)


def levels_sheet(
    pixels: NDArray[np.uint8],
    draw: Callable[[Warped], Image.Image],
    seed: int,
    *,
    boxes: Boxes | None = None,
    mask: NDArray[np.uint8] | None = None,
) -> Image.Image:
    """One image (h, w, 3) under no augmentation and S1 to S4, a few draws each.

    Under each picture stands what was drawn for it: the largest enlargement, then the operations.

    Args:
        pixels: the image at its original size.
        draw: the picture of what became of it, with its labels.
        seed: of the draws.
        boxes: in its pixels.
        mask: (h, w) classes.
    """
    levels: tuple[Level, ...] = get_args(Level)
    width = HEADING + DRAWS * (SIDE + MARGIN) + MARGIN
    height = len(levels) * (SIDE + CAPTION + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    size = (pixels.shape[0], pixels.shape[1])
    for row, level in enumerate(levels):
        top = MARGIN + row * (SIDE + CAPTION + MARGIN)
        pen.text((MARGIN, top + SIDE // 2), level.upper(), INK, ImageFont.load_default(20))
        for number in range(1 if level == "none" else DRAWS):
            rng = np.random.default_rng((seed, row, number))
            plan = draw_plan(AugmentConfig(level=level), rng, size, (SIDE, SIDE), boxes)
            left = HEADING + number * (SIDE + MARGIN)
            sheet.paste(draw(apply(plan, pixels, size, boxes, mask)), (left, top))
            caption = Image.new("RGB", (SIDE, CAPTION), PAPER)  # cuts off what is too long
            ImageDraw.Draw(caption).text((0, 3), _caption(plan), FAINT, ImageFont.load_default(11))
            sheet.paste(caption, (left, top + SIDE))
    return sheet


def _caption(plan: Plan) -> str:
    whole = [_named(name, amount) for name, amount in plan.drawn if not name.endswith(BOX_ONLY)]
    inside = Counter(_named(operation.name, operation.amount) for operation in plan.source_ops)
    boxes = [f"{text} in {count} box{'es' * (count > 1)}" for text, count in inside.items()]
    return ", ".join([f"x{magnification(plan.matrix):.2f}", *whole, *boxes])


def _named(name: str, amount: float) -> str:
    return name if name in WITHOUT_AMOUNT else f"{name} {amount + 0.0:g}"  # never "-0"
