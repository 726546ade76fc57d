"""Procedural pictures drawn from a seed, so that every command runs without any download.

Scenes hold 1 to 6 objects of four classes among distractors, on textured grounds, with noise and occlusion; written
with boxes, outlines and class masks, so that one folder is a data set of boxes and one of masks. Crops hold one shape
each, of classes that scenes do not use. Picture k of a seed is the same however many are drawn. Called by the `demo`
workflow and by tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tutelage.data.shapes import CROP_SHAPES, DISTRACTOR_SHAPES, SCENE_SHAPES, Outline
from tutelage.files import make_folder, write_text
from tutelage.types import IGNORE

SCENES, CROPS = 0, 1  # first number of a picture's seed
MIN_VISIBLE = 0.45  # share of an object that must stay uncovered, else it is not placed
MASK_CLASSES = ("ground", *SCENE_SHAPES)
FINE = 4  # contours are traced this much finer than pixels, so that outlines follow pixel edges

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Mask = NDArray[np.bool_]  # (H, W)


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene and what is in it."""

    pixels: Pixels
    labels: tuple[int, ...]  # index in SCENE_SHAPES
    masks: tuple[Mask, ...]  # visible pixels of each object


def draw_scenes(folder: Path, *, images: int, size: int = 96, seed: int = 0) -> Path:
    """COCO json of scenes drawn into `folder`: its boxes, areas and outlines are those of the visible pixels.

    Beside it lie `images/`, class masks in `masks/` and `classes.json`, which names their values: 0 is the ground,
    class k of the json k + 1. The folder itself is the data set of masks.

    Args:
        folder: where to write; made if missing.
        images: how many.
        size: side of the square scenes in pixels.
        seed: of everything drawn.
    """
    for name in ("images", "masks"):
        make_folder(folder / name)
    listing: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(images):
        scene = draw_scene(size, np.random.default_rng([SCENES, seed, number]))
        name = f"{number:05d}.png"
        _write_png(folder / "images" / name, scene.pixels[..., ::-1])
        _write_png(folder / "masks" / name, class_mask(scene))
        listing.append({"id": number, "file_name": f"images/{name}", "height": size, "width": size})
        for entry in _annotations(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(SCENE_SHAPES)]
    path = folder / "scenes.json"
    write_text(path, json.dumps({"images": listing, "annotations": annotations, "categories": categories}))
    values = [{"index": k, "name": name} for k, name in enumerate(MASK_CLASSES)]
    write_text(folder / "classes.json", json.dumps({"classes": values, "ignore_index": IGNORE}))
    return path


def draw_class_crops(folder: Path, *, images_per_class: int, size: int = 64, seed: int = 0) -> Path:
    """Folder with one sub-folder of pictures for each of `CROP_SHAPES`.

    Args:
        folder: where to write; made if missing.
        images_per_class: how many of each.
        size: side of the square pictures in pixels.
        seed: of everything drawn.
    """
    for label, name in enumerate(CROP_SHAPES):
        make_folder(folder / name)
        for number in range(images_per_class):
            crop = draw_crop(CROP_SHAPES[name], size, np.random.default_rng([CROPS, seed, label, number]))
            _write_png(folder / name / f"{number:04d}.png", crop[..., ::-1])
    return folder


def draw_scene(size: int, rng: np.random.Generator) -> Scene:
    """A scene of 1 to 6 objects and up to 4 distractors, later ones over earlier ones."""
    canvas = _ground(size, rng)
    labels: list[int] = []
    masks: list[Mask] = []
    areas: list[float] = []
    for is_object in rng.permutation([True] * int(rng.integers(1, 7)) + [False] * int(rng.integers(0, 5))):
        label = int(rng.integers(len(SCENE_SHAPES)))
        shape = list(SCENE_SHAPES.values())[label] if is_object else _distractor(rng)
        outline = _placed(shape, rng.uniform(0.08, 0.92, 2) * size, size * rng.uniform(0.08, 0.2), rng)
        cover = _coverage(outline, size)
        solid = cover > 127
        left = [*(mask & ~solid for mask in masks), *([solid] if is_object else [])]
        full = [*areas, *([cv2.contourArea(outline.astype(np.float32))] if is_object else [])]
        if masks and any(np.count_nonzero(mask) < MIN_VISIBLE * area for mask, area in zip(left, full, strict=True)):
            continue
        masks, areas = left, full
        labels += [label] if is_object else []
        _paint(canvas, outline, cover, rng)
    return Scene(_developed(canvas, rng), tuple(labels), tuple(masks))


def draw_crop(shape: Outline, size: int, rng: np.random.Generator) -> Pixels:
    """One shape that fills most of the picture, at times with a distractor behind it and one over its rim."""
    canvas = _ground(size, rng)
    middle = size * rng.uniform(0.42, 0.58, 2)
    radius = size * rng.uniform(0.24, 0.42)
    outlines = [_placed(shape, middle, radius, rng)]
    if rng.random() < 0.5:
        behind = _placed(_distractor(rng), rng.uniform(0, 1, 2) * size, radius * rng.uniform(0.3, 0.8), rng)
        outlines.insert(0, behind)
    if rng.random() < 0.3:
        angle = rng.uniform(0, 2 * np.pi)
        rim = middle + 1.2 * radius * np.array([np.cos(angle), np.sin(angle)])
        outlines.append(_placed(_distractor(rng), rim, radius * rng.uniform(0.2, 0.5), rng))
    for outline in outlines:
        _paint(canvas, outline, _coverage(outline, size), rng)
    return _developed(canvas, rng)


def class_mask(scene: Scene) -> NDArray[np.uint8]:
    """Class of each pixel (H, W): 0 ground and distractors, k + 1 class k."""
    mask = np.zeros(scene.pixels.shape[:2], np.uint8)
    for label, visible in zip(scene.labels, scene.masks, strict=True):
        mask[visible] = label + 1
    return mask


def _distractor(rng: np.random.Generator) -> Outline:
    shapes = list(DISTRACTOR_SHAPES.values())
    pick = int(rng.integers(len(shapes) + 1))
    if pick < len(shapes):
        return shapes[pick]
    angle = 2 * np.pi * np.arange(24) / 24  # a pebble
    turns = np.array([[2.0], [3.0], [4.0]])
    waves = rng.uniform(-0.16, 0.16, (3, 1)) * np.cos(turns * angle + rng.uniform(0, 2 * np.pi, (3, 1)))
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * (0.75 + waves.sum(axis=0))[:, None])


def _placed(shape: Outline, middle: NDArray[np.float64], radius: float, rng: np.random.Generator) -> Outline:
    """The outline in pixels, stretched a little and turned at random."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.exp(rng.uniform(-0.22, 0.22, 2))
    return np.asarray(shape * stretch * radius @ turn + middle)


def _coverage(outline: Outline, size: int) -> NDArray[np.uint8]:
    """Share of each pixel (size, size) that the outline covers, 0 to 255."""
    cover = np.zeros((size, size), np.uint8)
    points = np.rint((outline - 0.5) * 16).astype(np.int32)  # OpenCV counts from pixel centers, here in 1/16
    cv2.fillPoly(cover, [points], 255, cv2.LINE_AA, 4)
    return cover


def _ground(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A textured ground (size, size, 3): clouds of two grain sizes, at times with stripes."""
    base = rng.uniform(80, 180) + rng.uniform(-40, 40, 3)
    canvas = np.full((size, size, 3), base, np.float32)
    for cells, strength in ((4, 16.0), (max(size // 5, 2), 7.0)):
        clouds = 0.5 * rng.standard_normal((cells, cells, 3), np.float32)
        clouds += rng.standard_normal((cells, cells, 1), np.float32)
        canvas += strength * cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        canvas += 12 * _wave((size, size), rng.uniform(0.08, 0.3) * 96 / size, rng)[..., None]
    return canvas


def _wave(size: tuple[int, int], frequency: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A sine (h, w) in a random direction, its angular frequency in radians a pixel."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    y, x = np.ogrid[: size[0], : size[1]]
    wave = np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.asarray(wave, np.float32)


def _paint(canvas: NDArray[np.float32], outline: Outline, cover: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Lays a filled outline with shadow, shading and rim on the canvas, in place."""
    size = len(canvas)
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 4, 0)
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 6, size)
    part = np.s_[top:bottom, left:right]
    here = canvas[part]
    alpha = cover[part].astype(np.float32)[..., None] / 255
    shadow = cv2.blur(np.roll(cover[part], (2, 2), (0, 1)), (5, 5)).astype(np.float32)[..., None] / 255
    here *= 1 - rng.uniform(0, 0.4) * shadow
    color = _color(here, rng)
    shading = rng.uniform(4, 26) * _wave(alpha.shape[:2], (0.06, 0.7)[int(rng.integers(2))] * 96 / size, rng)
    fill = np.clip(color + shading[..., None], 0, 255)
    rim = np.zeros(here.shape[:2], np.uint8)
    points = np.rint((outline - (left, top) - 0.5) * 16).astype(np.int32)
    cv2.polylines(rim, [points], True, 255, 1, cv2.LINE_AA, 4)
    fill *= 1 - rng.uniform(0, 0.5) * rim.astype(np.float32)[..., None] / 255
    here += alpha * (fill - here)


def _color(behind: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A color that stands out a little from what is behind it; it says nothing about the class."""
    colors = rng.uniform(20, 240, (6, 3)).astype(np.float32)
    contrast = np.abs(colors - behind.mean(axis=(0, 1))).sum(axis=1)
    return np.asarray(colors[np.argmax(contrast > 90)])


def _developed(canvas: NDArray[np.float32], rng: np.random.Generator) -> Pixels:
    """Pixels of the canvas as a plain camera would give them: light, blur, noise."""
    light = canvas * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12)
    if rng.random() < 0.3:
        light = np.asarray(cv2.GaussianBlur(light, (3, 3), 0), np.float32)
    noise = rng.standard_normal(canvas.shape, np.float32)
    return np.clip(light + rng.uniform(2, 12) * noise, 0, 255).astype(np.uint8)


def _annotations(scene: Scene) -> Iterator[dict[str, Any]]:
    """COCO entries of the objects, without ids."""
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        yield {
            "category_id": label + 1,
            "bbox": [left, top, width, height],
            "area": int(np.count_nonzero(mask)),
            "iscrowd": 0,
            "segmentation": _polygons(mask[top : top + height, left : left + width], left, top),
        }


def _polygons(mask: Mask, left: int, top: int) -> list[list[float]]:
    """Outlines [x, y, x, y, ...] of the parts of a mask whose corner lies at (left, top)."""
    fine = cv2.resize(mask.astype(np.uint8), None, fx=FINE, fy=FINE, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.45 * FINE, True).reshape(-1, 2)
        if len(points) >= 3:
            polygons.append(np.round((points + 0.5) / FINE + (left, top), 2).ravel().tolist())
    return polygons


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    quick = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    encoded, content = cv2.imencode(".png", pixels, quick)
    assert encoded, pixels.shape
    path.write_bytes(content.tobytes())
