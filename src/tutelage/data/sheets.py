"""Pictures with their boxes or masks drawn in, alone or as a contact sheet: people look before they trust."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tutelage.augment.apply import Warped
from tutelage.augment.sheet import levels_sheet
from tutelage.config import DataConfig
from tutelage.data.colors import NUM_COLORS, class_colors
from tutelage.data.images import decode
from tutelage.data.index import Index
from tutelage.data.loader.pictures import shown_boxes, shown_mask
from tutelage.data.painting import name_places, paint
from tutelage.types import IGNORE, NOT_IGNORED, Boxes

CELL, MARGIN, CAPTION = 256, 8, 18  # pixels of a contact sheet
COLUMNS, PICTURES = 6, 24
INK, PAPER, IGNORED = (40, 40, 40), (255, 255, 255), (150, 150, 150)
FULLEST_OF = 100  # images looked at for the one that shows the most
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    font = _name_font(drawn)
    for row in np.argsort(-boxes.area, kind="stable"):
        ignored = boxes.ignore[row] != NOT_IGNORED
        color = IGNORED if ignored else _color(int(boxes.labels[row]))
        name = class_names[boxes.labels[row]] + (f" {boxes.scores[row]:.2f}" if boxes.scores[row] < 1 else "")
        x1, y1, x2, y2 = (float(side) for side in boxes.xyxy[row])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color, width=thickness)
        _draw_name(pen, name, (min(x1, drawn.width - pen.textlength(name, font) - 4), y1), color, font)
    return drawn


def draw_mask(picture: Image.Image, mask: NDArray[np.uint8], class_names: Sequence[str]) -> Image.Image:
    """The picture with classes painted over it in their colors, outlined, and named where there is room.

    Args:
        picture: as shown; it is not changed.
        mask: (h, w) classes of the whole picture, at its size or another; pixels of IGNORE are striped.
        class_names: names by label.
    """
    fitted = np.asarray(cv2.resize(mask, picture.size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    drawn = Image.alpha_composite(picture.convert("RGBA"), Image.fromarray(paint(fitted))).convert("RGB")
    pen = ImageDraw.Draw(drawn)
    font = _name_font(drawn)
    for place in name_places(fitted):
        name = class_names[place.label]
        left, top, right, bottom = pen.textbbox((0, 0), name, font)
        width, height = right - left + 4, bottom - top + 4
        if place.radius > height and width < drawn.width:
            x = min(max(place.x - width / 2, 0), drawn.width - width)
            _draw_name(pen, name, (x, place.y + height / 2), _color(place.label), font)
    return drawn


def contact_sheet(index: Index, data: DataConfig, seed: int, pictures: int = PICTURES) -> Image.Image:
    """A seeded choice of images with their boxes or masks and file names; below masks a legend of the classes.

    Args:
        index: where the images come from.
        data: how they are decoded.
        seed: of the choice.
        pictures: at most so many.

    Raises:
        InputError: a chosen image or its mask cannot be decoded.
    """
    rng = np.random.default_rng([seed, len(index)])
    chosen = np.sort(rng.permutation(len(index))[:pictures])
    columns = min(COLUMNS, max(len(chosen), 1))
    lines = max(-(-len(chosen) // columns), 1)
    step = (CELL + MARGIN, CELL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (columns * step[0] + MARGIN, lines * step[1] + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    seen: set[int] = set()
    for place, row in enumerate(chosen.tolist()):
        left, top = MARGIN + place % columns * step[0], MARGIN + place // columns * step[1]
        cell, found, labels = (_mask_cell if index.has_masks else _box_cell)(index, row, data)
        sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        pen.text((left, top + CELL + 2), _caption(index.relative_path(row), found * index.annotated), INK, font)
        seen |= labels
    return _with_legend(sheet, sorted(seen), index.class_names) if index.has_masks else sheet


def augmentation_sheet(index: Index, data: DataConfig, seed: int) -> Image.Image:
    """One image under every augmentation level, with its boxes or its mask.

    Args:
        index: where it comes from: the image that shows most boxes or classes among the first FULLEST_OF.
        data: how it is decoded.
        seed: of the draws.

    Raises:
        InputError: the image or its mask cannot be decoded.
    """
    row = int(np.argmax([len(index.boxes(row)) for row in range(min(FULLEST_OF, len(index)))]))
    pixels, names = decode(index.path(row), data).pixels, index.class_names

    def drawn(warped: Warped) -> Image.Image:
        picture = Image.fromarray(warped.pixels)
        if warped.mask is not None:
            return draw_mask(picture, warped.mask, names)
        return draw_boxes(picture, warped.boxes or Boxes.empty(), names)

    if index.has_masks:
        return levels_sheet(pixels, drawn, seed, mask=shown_mask(index, row, data))
    return levels_sheet(pixels, drawn, seed, boxes=shown_boxes(index, row, data))


def _box_cell(index: Index, row: int, data: DataConfig) -> tuple[Image.Image, str, set[int]]:
    """The image scaled to fit CELL, boxes drawn afterwards so that lines stay sharp; what it holds, and its labels."""
    picture, scale = _cell(index, row, data)
    boxes = shown_boxes(index, row, data)
    scaled = Boxes.build(boxes.xyxy * scale, boxes.labels, boxes.scores, boxes.area, boxes.ignore)
    found = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
    return draw_boxes(picture, scaled, index.class_names), found, set(boxes.labels.tolist())


def _mask_cell(index: Index, row: int, data: DataConfig) -> tuple[Image.Image, str, set[int]]:
    picture, _ = _cell(index, row, data)
    mask = shown_mask(index, row, data)
    if mask is None:
        return picture, "no mask", set()
    labels = set(np.unique(mask).tolist()) - {IGNORE}
    found = f"{len(labels)} class{'' if len(labels) == 1 else 'es'}"
    return draw_mask(picture, mask, index.class_names), found, labels


def _cell(index: Index, row: int, data: DataConfig) -> tuple[Image.Image, float]:
    """The image scaled to fit CELL, and by how much."""
    decoded = decode(index.path(row), data)
    height, width = decoded.size
    scale = CELL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return Image.fromarray(decoded.pixels).resize(size, Image.Resampling.LANCZOS), scale


def _caption(path: str, found: str) -> str:
    name = path.rsplit("/", 1)[-1]
    name = name if len(name) <= 26 else f"{name[:12]}...{name[-11:]}"
    return f"{name}: {found}" if found else name


def _with_legend(sheet: Image.Image, labels: Sequence[int], class_names: Sequence[str]) -> Image.Image:
    """The sheet with a strip below it: classes beside their colors, in as many lines as they need."""
    font = ImageFont.load_default(14)
    places, x, y = [], MARGIN, 0
    for label in labels:
        width = CAPTION + 6 + round(font.getlength(class_names[label])) + 2 * MARGIN
        if x > MARGIN and x + width > sheet.width:
            x, y = MARGIN, y + CAPTION + MARGIN
        places.append((label, x, sheet.height + y))
        x += width
    whole = Image.new("RGB", (sheet.width, sheet.height + y + CAPTION + MARGIN), PAPER)
    whole.paste(sheet)
    pen = ImageDraw.Draw(whole)
    for label, left, top in places:
        pen.rectangle((left, top, left + CAPTION, top + CAPTION), fill=_color(label), outline=INK)
        pen.text((left + CAPTION + 6, top + 1), class_names[label], INK, font)
    return whole


def _color(label: int) -> Color:
    red, green, blue = class_colors(NUM_COLORS)[label % NUM_COLORS].tolist()
    return red, green, blue


def _name_font(picture: Image.Image) -> Font:
    return ImageFont.load_default(max(min(picture.size) / 28, 10.0))


def _draw_name(
    pen: ImageDraw.ImageDraw,
    name: str,
    corner: tuple[float, float],
    color: Color,
    font: Font,
) -> None:
    """The name on a patch of color above the box, or inside it at the upper edge of the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), name, font)
    width, height = right - left + 4, bottom - top + 4
    x = max(corner[0], 0)
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width, y + height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    pen.text((x + 2 - left, y + 2 - top), name, INK if dark else PAPER, font)
