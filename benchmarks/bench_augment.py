"""Augment-S4 to a 640 x 640 canvas with boxes, and with masks: ours against torchvision's v2 and albumentations.

The peers are handed the operations, parameters and crop that our policy drew, and carry them out one by one, with their
own defaults. torchvision works on uint8 tensors and `BoundingBoxes` or `Mask` (nearest in turns and shears, as the
original; antialiased resize), in both memory layouts; the faster one counts. albumentations works, with masks, by a
`Compose` made beforehand for each image (linear, not antialiased; what it lacks, SolarizeAdd and a hole at a given
place, by `Lambda`). Ours includes drawing the plan. One thread each.
Aim: at least 2 times torchvision's images per second with boxes, and more than either peer's with masks.
"""

import os
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from tutelage.augment.apply import FILL, apply
from tutelage.augment.ops import GEOMETRY
from tutelage.augment.plan import Hole, Plan
from tutelage.augment.policies import draw_plan
from tutelage.config import AugmentConfig
from tutelage.ops import affine
from tutelage.types import IGNORE, Boxes

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for newer versions
import albumentations as A

IMAGES, PICTURES, ROUNDS = 200, 16, 3
CANVAS, SIZES = (640, 640), [(480, 640), (427, 640), (640, 480), (640, 427)]  # COCO's usual sizes
BOXES = 7  # COCO's mean an image
CLASSES = 21
AIM, AIM_MASKS = 2.0, 1.0
Size = tuple[int, int]  # (height, width)
Works = dict[str, Callable[[int], object]]


def made_image(rng: np.random.Generator, size: Size) -> np.ndarray:
    coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
    return cv2.add(cv2.resize(coarse, size[::-1]), rng.integers(0, 20, (*size, 3), dtype=np.uint8))


def made_boxes(rng: np.random.Generator, size: Size) -> Boxes:
    limit = np.array(size[::-1])
    corner = rng.uniform(0, 0.7, (BOXES, 2)) * limit
    far = np.minimum(corner + rng.uniform(0.03, 0.5, (BOXES, 2)) * limit, limit)
    return Boxes.build(np.hstack([corner, far]), rng.integers(0, 80, BOXES))


def made_mask(rng: np.random.Generator, size: Size) -> np.ndarray:
    coarse = rng.integers(0, CLASSES, (size[0] // 40, size[1] // 40), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)


def by_torchvision(plan: Plan, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Image and target, that is boxes or a mask, through the plan up to the crop."""
    size, geometry = tuple(image.shape[-2:]), affine.identity()
    holes = hole_corners(plan, size)
    for name, amount in plan.drawn:
        if name in GEOMETRY:
            image, target = (moved(name, amount, item) for item in (image, target))
            geometry = GEOMETRY[name](amount, size) @ geometry
        elif name == "Cutout":
            left, top, right, bottom = holes.pop(0)
            image = F.erase(
                image, top, left, bottom - top, right - left, torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
            )
        else:
            image = recolored(name, amount, image)
    flipped, resized, crop = placement_of(plan, size, geometry)
    if flipped:
        image, target = F.horizontal_flip(image), F.horizontal_flip(target)
    image, target = F.resize(image, resized), F.resize(target, resized)
    return F.crop(image, *crop), F.crop(target, *crop)


def padded(plan: Plan, item: Tensor) -> Tensor:
    return F.pad(item, [0, 0, CANVAS[1] - plan.valid[1], CANVAS[0] - plan.valid[0]], fill=fill_of(item))


def boxes_by_torchvision(
    plan: Plan, image: Tensor, boxes: tv_tensors.BoundingBoxes, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    image, boxes = by_torchvision(plan, image, boxes)
    boxes, kept = F.sanitize_bounding_boxes(F.clamp_bounding_boxes(boxes), min_size=1e-3)
    return padded(plan, image), boxes, labels[kept]


def mask_by_torchvision(plan: Plan, image: Tensor, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
    image, mask = by_torchvision(plan, image, mask)
    return padded(plan, image), padded(plan, mask)


def hole_corners(plan: Plan, size: Size) -> list[list[int]]:
    """(left, top, right, bottom) of each hole when its turn comes."""
    holes = [operation for operation in plan.canvas_ops if isinstance(operation, Hole)]
    geometry, found = affine.identity(), []
    for name, amount in plan.drawn:
        if name in GEOMETRY:
            geometry = GEOMETRY[name](amount, size) @ geometry
        elif name == "Cutout":
            frame = geometry @ affine.inverse(plan.matrix)
            corners = affine.transform_points(frame, holes.pop(0).corners).round().astype(int)
            found.append([*corners.min(0).tolist(), *corners.max(0).tolist()])
    return found


def placement_of(plan: Plan, size: Size, geometry: np.ndarray) -> tuple[bool, list[int], tuple[int, int, int, int]]:
    """Whether it is mirrored, (height, width) of the resized image, and the crop (top, left, height, width)."""
    flipped = bool(np.linalg.det(plan.matrix) < 0)
    if flipped:
        geometry = affine.horizontal_flip(size[1]) @ geometry
    placement = plan.matrix @ affine.inverse(geometry)
    resized = [round(size[0] * placement[1, 1]), round(size[1] * placement[0, 0])]
    return flipped, resized, (round(-placement[1, 2]), round(-placement[0, 2]), *plan.valid)


def fill_of(item: Tensor) -> list[int] | int | None:
    if isinstance(item, tv_tensors.BoundingBoxes):
        return None
    return IGNORE if isinstance(item, tv_tensors.Mask) else list(FILL)


def moved(name: str, amount: float, item: Tensor) -> Tensor:
    fill = fill_of(item)
    if name == "Rotate":
        return F.rotate(item, amount, fill=fill)
    shift, shear = [0.0, 0.0], [0.0, 0.0]
    if name.startswith("Translate"):
        shift["XY".index(name[-1])] = -amount
    else:
        shear["XY".index(name[-1])] = float(np.degrees(np.arctan(amount)))
    return F.affine(item, angle=0.0, translate=shift, scale=1.0, shear=shear, fill=fill, center=[0.0, 0.0])


def recolored(name: str, amount: float, image: Tensor) -> Tensor:
    if name == "SolarizeAdd":
        return torch.where(image < 128, image + int(amount), image)  # at most 127 + 110: no overflow
    if name == "Solarize":
        return image if amount > 255 else F.solarize(image, amount)
    return F.equalize(image) if name == "Equalize" else F.adjust_saturation(image, amount)


def albumentations_pipeline(plan: Plan, size: Size) -> A.Compose:
    steps, geometry, holes = [], affine.identity(), hole_corners(plan, size)
    for name, amount in plan.drawn:
        if name in GEOMETRY:
            steps.append(albumentations_move(name, amount, size))
            geometry = GEOMETRY[name](amount, size) @ geometry
        elif name == "Cutout":
            steps.append(A.Lambda(image=partial(with_hole, hole=holes.pop(0)), p=1))
        else:
            steps.append(albumentations_color(name, amount))
    flipped, (height, width), (top, left, crop_height, crop_width) = placement_of(plan, size, geometry)
    return A.Compose(
        [
            *steps,
            *([A.HorizontalFlip(p=1)] if flipped else []),
            A.Resize(height, width, p=1),
            A.Crop(left, top, left + crop_width, top + crop_height, p=1),
            A.PadIfNeeded(
                *CANVAS, position="top_left", border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE, p=1
            ),
        ]
    )


def albumentations_move(name: str, amount: float, size: Size) -> A.Affine:
    options = {"fill": FILL, "fill_mask": IGNORE, "p": 1}
    if name == "Rotate":
        return A.Affine(rotate=(amount, amount), **options)
    axis, other = ("x", "y") if name.endswith("X") else ("y", "x")
    shift, degrees = -amount, 0.0
    if name.startswith("Shear"):  # its shears leave the center where it is, ours the corner
        shift, degrees = -amount * size["xy".index(axis)] / 2, float(np.degrees(np.arctan(amount)))
    pixels, still = round(shift), (0, 0)
    return A.Affine(
        shear={axis: (degrees, degrees), other: still}, translate_px={axis: (pixels, pixels), other: still}, **options
    )


def albumentations_color(name: str, amount: float) -> A.ImageOnlyTransform | A.Lambda:
    if name == "SolarizeAdd":
        return A.Lambda(image=partial(with_darks_raised, added=int(amount)), p=1)
    if name == "Solarize":
        return A.Solarize(threshold_range=(min(amount / 255, 1.0),) * 2, p=1)
    if name == "Equalize":
        return A.Equalize(p=1)
    return A.ColorJitter((1, 1), (1, 1), (amount, amount), (0, 0), p=1)


def with_hole(image: np.ndarray, hole: list[int], **_: object) -> np.ndarray:
    left, top, right, bottom = hole
    return cv2.rectangle(image.copy(), (left, top), (right - 1, bottom - 1), FILL, cv2.FILLED)


def with_darks_raised(image: np.ndarray, added: int, **_: object) -> np.ndarray:
    return cv2.LUT(image, np.where(np.arange(256) < 128, np.arange(256) + added, np.arange(256)).astype(np.uint8))


def images_per_second(works: Works, count: int) -> dict[str, float]:
    """Images per second of compute time (other programs' load stays out of it); the best of interleaved rounds."""
    best = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for name, work in works.items():
            work(0)
            start = time.process_time()
            for k in range(count):
                work(k)
            best[name] = max(best[name], count / (time.process_time() - start))
    return best


class Drawn:
    """What is augmented: images of COCO's usual sizes in both layouts, with a plan each."""

    def __init__(self, count: int) -> None:
        self.rng = np.random.default_rng(0)
        self.sizes = [SIZES[k % len(SIZES)] for k in range(count)]
        self.images = [made_image(self.rng, size) for size in self.sizes[:PICTURES]]
        self.last = [torch.from_numpy(image).permute(2, 0, 1) for image in self.images]
        self.first = [tensor.contiguous() for tensor in self.last]

    def plan(self, k: int, boxes: Boxes | None) -> Plan:
        return draw_plan(AugmentConfig(level="s4"), np.random.default_rng(k), self.sizes[k], CANVAS, boxes)


def main(num_images: int = IMAGES) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    drawn = Drawn(num_images)
    with_boxes(drawn, num_images)
    with_masks(drawn, num_images)


def with_boxes(drawn: Drawn, count: int) -> None:
    boxes = [made_boxes(drawn.rng, size) for size in drawn.sizes]
    shapes = [
        tv_tensors.BoundingBoxes(one.xyxy, format="XYXY", canvas_size=size)
        for one, size in zip(boxes, drawn.sizes, strict=True)
    ]
    labels = [torch.from_numpy(one.labels) for one in boxes]
    plans = [drawn.plan(k, boxes[k]) for k in range(count)]
    works: Works = {
        "ours": lambda k: apply(drawn.plan(k, boxes[k]), drawn.images[k % PICTURES], drawn.sizes[k], boxes[k])
    }
    for layout, images in (("first", drawn.first), ("last", drawn.last)):
        works[f"torchvision, channels {layout}"] = lambda k, images=images: boxes_by_torchvision(
            plans[k], images[k % PICTURES], shapes[k], labels[k]
        )
    show(f"{BOXES} boxes", images_per_second(works, count), count, AIM)
    share = agreement(plans, drawn, boxes)
    print(f"  boxes alike to 2 px         {100 * share:6.0f} % (the peer's cut ones are looser)")


def with_masks(drawn: Drawn, count: int) -> None:
    masks = [made_mask(drawn.rng, size) for size in drawn.sizes[:PICTURES]]
    tensors = [tv_tensors.Mask(mask[None]) for mask in masks]
    plans = [drawn.plan(k, None) for k in range(count)]
    pipelines = [albumentations_pipeline(plan, size) for plan, size in zip(plans, drawn.sizes, strict=True)]

    def ours(k: int) -> np.ndarray:
        return apply(drawn.plan(k, None), drawn.images[k % PICTURES], drawn.sizes[k], mask=masks[k % PICTURES]).mask

    def torchvisions(k: int, images: list[Tensor]) -> np.ndarray:
        return mask_by_torchvision(plans[k], images[k % PICTURES], tensors[k % PICTURES])[1].numpy()[0]

    def albumentations(k: int) -> np.ndarray:
        return pipelines[k](image=drawn.images[k % PICTURES], mask=masks[k % PICTURES])["mask"]

    first, last = partial(torchvisions, images=drawn.first), partial(torchvisions, images=drawn.last)
    works: Works = {
        "ours": ours,
        "torchvision, channels first": first,
        "torchvision, channels last": last,
        "albumentations": albumentations,
    }
    show(f"a mask of {CLASSES} classes", images_per_second(works, count), count, AIM_MASKS)
    for name, peer in (("torchvision", first), ("albumentations", albumentations)):
        share = np.mean([(ours(k) == peer(k)).mean() for k in range(count)])
        print(f"  mask pixels as {name:14s}{100 * share:5.1f} %")


def show(what: str, rates: dict[str, float], count: int, aim: float) -> None:
    print(f"S4 to {CANVAS[0]} x {CANVAS[1]}, {count} images of COCO's usual sizes, {what}, one thread")
    for name, rate in rates.items():
        print(f"  {name:28s}{rate:6.1f} images/s")
    ours = rates["ours"]
    peers = {name.partition(",")[0] for name in rates} - {"ours"}
    for peer in sorted(peers, reverse=True):
        best = max(rate for name, rate in rates.items() if name.startswith(peer))
        print(f"  ratio to {peer:19s}{ours / best:6.2f}   (aim {aim})")


def agreement(plans: list[Plan], drawn: Drawn, boxes: list[Boxes]) -> float:
    """Share of our boxes that the peer also has, to 2 px; its hulls of clipped shapes are looser, and it rounds."""
    same = total = 0
    for k, plan in enumerate(plans):
        shapes = tv_tensors.BoundingBoxes(boxes[k].xyxy, format="XYXY", canvas_size=drawn.sizes[k])
        _, theirs, _ = boxes_by_torchvision(plan, drawn.last[k % PICTURES], shapes, torch.arange(BOXES))
        mine = apply(plan, drawn.images[k % PICTURES], drawn.sizes[k], boxes[k]).boxes
        total += len(mine)
        distance = np.abs(mine.xyxy[:, None] - theirs.numpy()[None]).max(-1)
        same += int((distance.min(1, initial=np.inf) <= 2).sum())
    return same / total


if __name__ == "__main__":
    main()
