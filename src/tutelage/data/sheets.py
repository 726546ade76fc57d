"""Pictures with their boxes drawn in, alone or as a contact sheet: people look before they trust."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tutelage.config import DataConfig
from tutelage.data.images import decode
from tutelage.data.index import Index
from tutelage.data.loader.pictures import shown_boxes
from tutelage.types import NOT_IGNORED, Boxes

CELL, MARGIN, CAPTION = 256, 8, 18  # pixels of a contact sheet
COLUMNS, PICTURES = 6, 24
INK, PAPER, IGNORED = (40, 40, 40), (255, 255, 255), (150, 150, 150)
Color = tuple[int, int, int]


def class_color(label: int) -> Color:
    """A color of its own for each class; neighbors in the list lie far apart in hue."""
    hue = (0.02 + 0.618034 * label) % 1  # steps of the golden ratio never come back to an earlier hue
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(picture: Image.Image, boxes: Boxes, class_names: Sequence[str]) -> Image.Image:
    """The picture with boxes in the colors of their classes, named; ignored ones in gray, predictions with scores.

    Args:
        picture: as shown, in the pixels that `boxes` refer to; it is not changed.
        boxes: human labels or predictions.
        class_names: names by label.
    """
    drawn = picture.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    thickness = max(round(min(drawn.size) / 200), 1)
    font = ImageFont.load_default(max(min(drawn.size) / 28, 10.0))
    for row in np.argsort(-boxes.area, kind="stable"):
        ignored = boxes.ignore[row] != NOT_IGNORED
        color = IGNORED if ignored else class_color(int(boxes.labels[row]))
        name = class_names[boxes.labels[row]] + (f" {boxes.scores[row]:.2f}" if boxes.scores[row] < 1 else "")
        x1, y1, x2, y2 = (float(side) for side in boxes.xyxy[row])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color, width=thickness)
        _draw_name(pen, name, (min(x1, drawn.width - pen.textlength(name, font) - 4), y1), color, font)
    return drawn


def contact_sheet(index: Index, data: DataConfig, seed: int, pictures: int = PICTURES) -> Image.Image:
    """A seeded choice of images with their boxes, file names and box counts.

    Args:
        index: where the images come from.
        data: how they are decoded.
        seed: of the choice.
        pictures: at most so many.

    Raises:
        InputError: a chosen image cannot be decoded.
    """
    rng = np.random.default_rng([seed, len(index)])
    chosen = np.sort(rng.permutation(len(index))[:pictures])
    columns = min(COLUMNS, max(len(chosen), 1))
    lines = max(-(-len(chosen) // columns), 1)
    step = (CELL + MARGIN, CELL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (columns * step[0] + MARGIN, lines * step[1] + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, row in enumerate(chosen.tolist()):
        left, top = MARGIN + place % columns * step[0], MARGIN + place // columns * step[1]
        boxes = shown_boxes(index, row, data)
        cell = _cell(index, row, boxes, data)
        sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        pen.text((left, top + CELL + 2), _caption(index.relative_path(row), boxes, index), INK, font)
    return sheet


def _cell(index: Index, row: int, boxes: Boxes, data: DataConfig) -> Image.Image:
    """The image scaled to fit CELL, boxes drawn afterwards so that lines stay sharp."""
    decoded = decode(index.path(row), data)
    height, width = decoded.size
    scale = CELL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(decoded.pixels).resize(size, Image.Resampling.LANCZOS)
    scaled = Boxes.build(boxes.xyxy * scale, boxes.labels, boxes.scores, boxes.area, boxes.ignore)
    return draw_boxes(picture, scaled, index.class_names)


def _caption(path: str, boxes: Boxes, index: Index) -> str:
    name = path.rsplit("/", 1)[-1]
    name = name if len(name) <= 26 else f"{name[:12]}...{name[-11:]}"
    if not index.annotated:
        return name
    return f"{name}: {len(boxes)} box{'' if len(boxes) == 1 else 'es'}"


def _draw_name(
    pen: ImageDraw.ImageDraw,
    name: str,
    corner: tuple[float, float],
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The name on a patch of color above the box, or inside it at the upper edge of the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), name, font)
    width, height = right - left + 4, bottom - top + 4
    x = max(corner[0], 0)
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width, y + height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    pen.text((x + 2 - left, y + 2 - top), name, INK if dark else PAPER, font)
