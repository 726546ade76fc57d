"""Decides what an image undergoes: S1 to S4 of arXiv:2006.06882, evaluation, classification, and SimCLR's views.

All randomness comes from the generator that is handed in; all geometry of an image becomes one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.augment.autoaugment import IMAGENET_V0, POLICIES, SubPolicy
from tutelage.augment.ops import (
    BOX_REACH,
    CLASSIFICATION_REACH,
    COLOR_OPERATIONS,
    GEOMETRY,
    IMAGE_REACH,
    SIGNED,
    Reach,
    amount_at,
)
from tutelage.augment.plan import BoxOperation, ColorOperation, Hole, Plan
from tutelage.config import AugmentConfig, ClassifiedConfig, PretrainConfig
from tutelage.ops import affine
from tutelage.ops.affine import Matrix
from tutelage.types import NOT_IGNORED, Boxes

Size = tuple[int, int]  # (height, width)

# The paper does not say which operations S4 draws from. Our choice: the ten box-aware ones of the EfficientDet code
# (google/automl, efficientdet/aug/autoaugment.py), the nearest to the paper in time and authorship.
RAND_AUGMENT_BOXES = (
    "Equalize",
    "Solarize",
    "Color",
    "Cutout",
    "SolarizeAdd",
    "TranslateX_BBox",
    "TranslateY_BBox",
    "ShearX_BBox",
    "ShearY_BBox",
    "Rotate_BBox",
)
# TPU code, efficientnet/autoaugment.py
RAND_AUGMENT_CLASSIFICATION = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
BOX_ONLY, WITH_BOXES = "_Only_BBoxes", "_BBox"
CLASSIFICATION_SIDE = 224  # pixels that the classification distances are meant for
CENTER_CROP = 0.875  # of the short side, TPU code, classification_parser.py

# Color jitter at strength 1, and probabilities (arXiv:2002.05709, app. A; google-research/simclr, data_util.py).
# Brightness is a factor as in the v2 form of that code and in the paper's PyTorch listing; v1 added to the values.
COLOR_JITTER = {"Brightness": 0.8, "Contrast": 0.8, "Color": 0.8, "Hue": 0.2}
JITTERED, GRAYED = 0.8, 0.2
BLUR_SIGMAS = (0.1, 2.0)  # pixels
GRAY = ColorOperation("Color", 0.0)

WEAK_JITTER = (0.9, 1.0)  # never above 1: what a weak view does not show could not be labeled


def draw_plan(config: AugmentConfig, rng: np.random.Generator, size: Size, canvas: Size, boxes: Boxes | None) -> Plan:
    """What a training image of `size` undergoes on its way to `canvas`.

    Level `none` neither flips nor runs a policy; it still crops if a jitter is configured.

    Args:
        config: level and its options.
        rng: the sample's own generator.
        size: original (height, width).
        canvas: (height, width) of the result.
        boxes: in original pixels; the operations inside boxes leave ignored ones alone. Without boxes, as in data with
            masks, the operations that need some (`..._Only_BBoxes`, `BBox_Cutout`) do nothing. No policy for masks was
            ever released; that they take those of boxes is our choice.
    """
    shapes = np.zeros((0, 4)) if boxes is None else boxes.xyxy[boxes.ignore == NOT_IGNORED]
    draft = _Draft(rng, size, shapes, _scaled(IMAGE_REACH, config.pixel_scale), _scaled(BOX_REACH, config.pixel_scale))
    if config.level in ("s2", "s3"):
        draft.run_auto_augment(POLICIES[config.policy])
    elif config.level == "s4":
        draft.run_rand_augment(RAND_AUGMENT_BOXES, config.layers, config.magnitude)
    if config.level != "none" and rng.random() < config.flip:
        draft.geometry = affine.horizontal_flip(size[1]) @ draft.geometry
    placement, valid = _jittered_crop(size, canvas, config.jitter, rng)
    return draft.plan(placement, canvas, valid)


def strong_plan(config: AugmentConfig, rng: np.random.Generator, size: Size, canvas: Size) -> Plan:
    """The view that a student learns from while its teacher labels another: as `draw_plan`, its boxes not yet known."""
    return draw_plan(config, rng, size, canvas, None)


def weak_plan(config: AugmentConfig, rng: np.random.Generator, size: Size, canvas: Size) -> Plan:
    """The view that is labeled meanwhile: the whole image, flipped as `config` allows, a little below its full size."""
    level = "none" if config.level == "none" else "s1"
    weak = config.model_copy(update={"level": level, "jitter": WEAK_JITTER})
    return draw_plan(weak, rng, size, canvas, None)


def evaluation_plan(size: Size, canvas: Size) -> Plan:
    """The whole image, as large as the canvas allows, at its top left."""
    resized = _fitted(size, canvas, 1.0)
    return Plan(_resize(size, resized), canvas, resized)


def classification_plan(config: ClassifiedConfig, rng: np.random.Generator, size: Size) -> Plan:
    """Random-resized crop, flip and the policy, to a square canvas.

    The distances of policies are pixels of the canvas, whatever its size, as in the original; below 224 pixels they
    shrink with it, which is ours. What they vacate shows the surroundings of the crop where there are any.
    """
    canvas = (config.size, config.size)
    to_canvas = _random_resized_crop(config, rng, size)
    # TPU code, efficientnet/autoaugment.py, has two sets of distances; AutoAugment's is that of detection.
    reach = IMAGE_REACH if config.policy == "autoaugment" else CLASSIFICATION_REACH
    reach = _scaled(reach, min(1.0, config.size / CLASSIFICATION_SIDE))
    draft = _Draft(rng, canvas, np.zeros((0, 4)), reach, reach, geometry=to_canvas)
    if config.policy == "autoaugment":
        draft.run_auto_augment(IMAGENET_V0)
    elif config.policy == "randaugment":
        draft.run_rand_augment(RAND_AUGMENT_CLASSIFICATION, config.layers, config.magnitude)
    return draft.plan(affine.identity(), canvas, canvas)


def simclr_plan(pretrain: PretrainConfig, rng: np.random.Generator, size: Size) -> Plan:
    """One of SimCLR's views: random-resized crop, flip, color jitter, gray and blur, to a square canvas."""
    canvas = (pretrain.size, pretrain.size)
    matrix = _random_resized_crop(pretrain, rng, size)
    operations = _color_jitter(pretrain.simclr.color_strength, rng) if rng.random() < JITTERED else []
    if rng.random() < GRAYED:
        operations.append(GRAY)
    if rng.random() < pretrain.simclr.blur:
        operations.append(ColorOperation("GaussianBlur", rng.uniform(*BLUR_SIGMAS)))
    drawn = tuple((operation.name, operation.amount) for operation in operations)
    return Plan(matrix, canvas, canvas, canvas_ops=tuple(operations), drawn=drawn)


def classification_evaluation_plan(config: ClassifiedConfig, size: Size) -> Plan:
    """The central square, 0.875 of the short side, resized to the canvas."""
    left, top, width, height = _central_region(size)
    matrix = affine.scaling(config.size / width, config.size / height) @ affine.translation(-left, -top)
    return Plan(matrix, (config.size, config.size), (config.size, config.size))


@dataclass
class _Draft:
    """A plan in the making: operations drawn so far, all places carried back to the original image."""

    rng: np.random.Generator
    size: Size  # frame that the operations act in
    boxes: NDArray[np.floating]  # (N, 4) original pixels
    reach: Reach
    box_reach: Reach
    geometry: Matrix = field(default_factory=affine.identity)  # original -> frame after the operations so far
    source_ops: list[BoxOperation] = field(default_factory=list)
    canvas_ops: list[ColorOperation | Hole] = field(default_factory=list)  # holes still in original pixels
    drawn: list[tuple[str, float]] = field(default_factory=list)

    def run_auto_augment(self, policy: Sequence[SubPolicy]) -> None:
        """One sub-policy, drawn uniformly; each operation by its own probability."""
        for name, probability, level in policy[int(self.rng.integers(len(policy)))]:
            if name.endswith(BOX_ONLY):
                self._add_inside_boxes(name.removesuffix(BOX_ONLY), probability, level)
            elif self.rng.random() < probability:
                self._add(name.removesuffix(WITH_BOXES), level)

    def run_rand_augment(self, names: Sequence[str], layers: int, magnitude: float) -> None:
        """`layers` operations, each drawn uniformly and always carried out (TPU code, efficientnet/autoaugment.py)."""
        for _ in range(layers):
            self._add(names[int(self.rng.integers(len(names)))].removesuffix(WITH_BOXES), magnitude)

    def plan(self, placement: Matrix, canvas: Size, valid: Size) -> Plan:
        """The finished plan; `placement` maps the frame to the canvas."""
        matrix = placement @ self.geometry
        canvas_ops = [
            Hole(affine.transform_points(matrix, operation.corners)) if isinstance(operation, Hole) else operation
            for operation in self.canvas_ops
        ]
        return Plan(matrix, canvas, valid, tuple(self.source_ops), tuple(canvas_ops), tuple(self.drawn))

    def _add(self, name: str, level: float) -> None:
        amount = self._signed(name, amount_at(name, level, self.reach))
        self.drawn.append((name, amount))
        if name in GEOMETRY:
            self.geometry = GEOMETRY[name](amount, self.size) @ self.geometry
        elif name in COLOR_OPERATIONS:
            self.canvas_ops.append(ColorOperation(name, amount))
        elif name == "Cutout":
            self._cut(self.rng.uniform((0, 0), self.size[::-1]), np.array([amount, amount]))
        else:
            assert name == "BBox_Cutout", name
            self._cut_in_a_box(amount)

    def _add_inside_boxes(self, name: str, probability: float, level: float) -> None:
        """The operation in each box by a coin of its own, boxes in random order, all with one sign."""
        amount = self._signed(name, amount_at(name, level, self.box_reach))
        self.drawn.append((name + BOX_ONLY, amount))
        for row in self.rng.permutation(len(self.boxes)):
            # a third of the stated probability: TPU code, autoaugment_utils.py
            if self.rng.random() < probability / 3:
                x1, y1, x2, y2 = self.boxes[row].tolist()
                across, down = self.rng.random(2).tolist()
                self.source_ops.append(BoxOperation(name, amount, (x1, y1, x2, y2), (across, down)))

    def _cut_in_a_box(self, fraction: float) -> None:
        """A hole of a fraction of a box's sides, around a point in that box, as the box lies by now."""
        hulls, visible = affine.hull_of_warped(self.boxes, self.geometry, self.size)
        if visible.any():
            box = hulls[self.rng.choice(np.flatnonzero(visible))].astype(np.float64)
            self._cut(self.rng.uniform(box[:2], box[2:]), (box[2:] - box[:2]) * fraction / 2)

    def _cut(self, center: NDArray[np.float64], half: NDArray[np.float64]) -> None:
        limit = np.array(self.size[::-1])
        ends = np.concatenate([np.clip(center - half, 0, limit), np.clip(center + half, 0, limit)])
        if (ends[2:] > ends[:2]).all():
            corners = affine.corners_of(ends)
            self.canvas_ops.append(Hole(affine.transform_points(affine.inverse(self.geometry), corners)))

    def _signed(self, name: str, amount: float) -> float:
        return -amount if name in SIGNED and self.rng.random() < 0.5 else amount


def _scaled(reach: Reach, factor: float) -> Reach:
    return Reach(reach.translate * factor, reach.cutout * factor)


def _fitted(size: Size, canvas: Size, factor: float) -> Size:
    """Size of an image that fits into `factor` times the canvas, its aspect kept (TPU code, input_utils.py)."""
    scale = min(round(factor * canvas[0]) / size[0], round(factor * canvas[1]) / size[1])
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _resize(size: Size, resized: Size) -> Matrix:
    return affine.scaling(resized[1] / size[1], resized[0] / size[0])


def _jittered_crop(
    size: Size, canvas: Size, jitter: tuple[float, float], rng: np.random.Generator
) -> tuple[Matrix, Size]:
    """Scale jitter and random crop of the original, and the part of the canvas that is then covered."""
    resized = _fitted(size, canvas, rng.uniform(*jitter))
    top, left = (int(rng.random() * max(0, there - fits)) for there, fits in zip(resized, canvas, strict=True))
    valid = min(resized[0], canvas[0]), min(resized[1], canvas[1])
    return affine.translation(-left, -top) @ _resize(size, resized), valid


def _random_resized_crop(config: ClassifiedConfig, rng: np.random.Generator, size: Size) -> Matrix:
    """Original -> square canvas: a random region resized, and flipped half of the time."""
    left, top, width, height = _random_region(rng, size, config.least_area)
    matrix = affine.scaling(config.size / width, config.size / height) @ affine.translation(-left, -top)
    return affine.horizontal_flip(config.size) @ matrix if rng.random() < 0.5 else matrix


def _color_jitter(strength: float, rng: np.random.Generator) -> list[ColorOperation]:
    """The four operations in random order; factors lie around 1 and end at 0, turns of the hue around 0."""
    operations = []
    for place in rng.permutation(len(COLOR_JITTER)):
        name, reach = list(COLOR_JITTER.items())[place]
        reach *= strength
        low, high = (-reach, reach) if name == "Hue" else (max(0.0, 1 - reach), 1 + reach)
        operations.append(ColorOperation(name, rng.uniform(low, high)))
    return operations


def _random_region(rng: np.random.Generator, size: Size, least_area: float) -> tuple[float, float, float, float]:
    """(left, top, width, height) of part or all of the area, aspect 3/4 to 4/3; the central square if 10 draws fail."""
    for _ in range(10):
        area = rng.uniform(least_area, 1.0) * size[0] * size[1]
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size[1] and 0 < height <= size[0]:
            left, top = rng.integers(size[1] - width + 1), rng.integers(size[0] - height + 1)
            return float(left), float(top), float(width), float(height)
    return _central_region(size)


def _central_region(size: Size) -> tuple[float, float, float, float]:
    side = max(1.0, float(round(CENTER_CROP * min(size))))
    return (size[1] - side) // 2, (size[0] - side) // 2, side, side
