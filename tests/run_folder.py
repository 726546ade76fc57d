"""Writes a finished run folder as `fit` leaves it: procedural pictures, plausible numbers, no training."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from tutelage import stats
from tutelage.config import PseudoConfig, parse_config
from tutelage.data.masks import encode_png
from tutelage.data.pseudo import Leak, Manifest, StoreWriter, open_store
from tutelage.tasks.metrics import match_detections
from tutelage.types import IGNORE, IGNORE_REGION, NOT_IGNORED, Annotation, Boxes, Prediction, Skipped

CLASS_NAMES = ("disk", "square", "triangle", "cross")
HEIGHT, WIDTH = 192, 256
QUALITY = {"teacher": 0.55, "control": 0.62, "student": 0.68, "hidden": 0.8}
HEADLINE = {"teacher": 0.327, "control": 0.358, "student": 0.374, "hidden": 0.452}
NO_LABEL_EVERY = 3
"""Pictures of which one has a band without labels around its shapes, as VOC's."""

Mask = np.ndarray


@dataclass(frozen=True)
class Drawn:
    """A picture with its labels."""

    path: str  # absolute
    boxes: Boxes  # shape k is class k
    mask: Mask  # (HEIGHT, WIDTH) 0 is the ground, shape k is class k + 1


@dataclass(frozen=True)
class Kind:
    """What folders of the two tasks differ in."""

    annotation: Annotation
    metric: str
    title: str
    shapes_from: int  # class of the first shape
    figures: Callable[[str, tuple[str, ...]], dict[str, Any]]
    write_tables: Callable[[Path, str, list[Drawn], int, np.random.Generator], None]
    predict: Callable[[int, Drawn, int, np.random.Generator], Prediction]
    amounts: Callable[[int], list[int]]  # of the labeled set, by class


def write_run_folder(
    folder: Path,
    *,
    task: str = "detection",
    class_names: Sequence[str] = CLASS_NAMES,
    num_test: int = 24,
    num_pool: int = 60,
    rounds: int = 1,
    repeats: int = 1,
    hidden: bool = False,
    val: bool = True,
    shown: bool = True,
    seed: int = 0,
) -> Path:
    """The folder, with stages, tables and `run.json` (last)."""
    rng = np.random.default_rng(seed)
    names, kind = tuple(class_names), KINDS[task]
    shapes = len(names) - kind.shapes_from
    test = draw_images(folder / "images" / "test", num_test, shapes, rng)
    pool = draw_images(folder / "images" / "pool", num_pool, shapes, rng)
    arms = ("control", "student", *(("hidden",) if hidden else ()))
    trained = ["teacher"]
    for round_ in range(1, rounds + 1):
        trained.append(f"pseudo-{round_}")
        for repeat in range(1, repeats + 1):
            trained += [f"{arm}-{round_}" + (f"-repeat{repeat}" if repeat > 1 else "") for arm in arms]
    stages: dict[str, str] = {}
    for name in trained:
        role = name.split("-")[0]
        if role == "pseudo":
            write_store(stage_folder(folder, stages, name), pool, names, kind, rng, int(name.split("-")[1]))
            continue
        write_training(stage_folder(folder, stages, name), name, kind.metric if val else "", rng)
        write_evaluation(stage_folder(folder, stages, f"evaluate-{name}"), role, test, names, kind, rng)
    config = {"task": task, "seed": seed, "rounds": rounds, "eval": {"metric": kind.metric}}
    (folder / "config.yaml").write_text(parse_config(config, "test").to_yaml())
    arms_last = {"teacher": "teacher", **{arm: f"{arm}-{rounds}" for arm in arms}}
    record = run_record(
        folder, task, names, stages, arms_last, num_test, num_pool, shown=shown, rounds=rounds, repeats=repeats
    )
    write_json(folder / "run.json", record)
    return folder


def stage_folder(folder: Path, stages: dict[str, str], name: str) -> Path:
    relative = f"stages/{name}-{abs(hash_of(name)):08x}"[: len(f"stages/{name}-") + 8]
    stages[name] = relative
    (folder / relative).mkdir(parents=True)
    return folder / relative


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[-4:], "big")


def draw_images(folder: Path, count: int, num_shapes: int, rng: np.random.Generator) -> list[Drawn]:
    """Pictures of shapes on a graded ground, with their boxes and masks."""
    folder.mkdir(parents=True)
    drawn = []
    for number in range(count):
        ground = np.linspace(rng.integers(40, 220, 3), rng.integers(40, 220, 3), WIDTH)[None].repeat(HEIGHT, axis=0)
        noisy = np.clip(ground + rng.normal(0, 6, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        image, mask = Image.fromarray(noisy), Image.new("L", (WIDTH, HEIGHT))
        pen, mask_pen = ImageDraw.Draw(image), ImageDraw.Draw(mask)
        corners, labels = [], []
        for _ in range(rng.integers(2, 8)):
            side = int(rng.integers(18, 64))
            x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
            label = int(rng.choice(num_shapes, p=_shares(num_shapes)))
            box = (x, y, x + side, y + side)
            draw_shape(pen, label % 4, box, tuple(rng.integers(0, 256, 3).tolist()))
            draw_shape(mask_pen, label % 4, box, label + 1)
            corners.append(box)
            labels.append(label)
        ignore = np.full(len(labels), NOT_IGNORED)
        if number % 9 == 5:
            ignore[-1] = IGNORE_REGION
        place = folder / f"scene-{number:04d}.jpg"
        image.save(place, quality=90)
        truth = with_band(np.array(mask)) if number % NO_LABEL_EVERY == 0 else np.array(mask)
        drawn.append(Drawn(str(place), Boxes.build(corners, labels, ignore=ignore), truth))
    return drawn


def with_band(mask: Mask) -> Mask:
    """A mask with a band of IGNORE along its edges."""
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    return np.where(edges, IGNORE, mask).astype(np.uint8)


def draw_shape(pen: ImageDraw.ImageDraw, shape: int, box: tuple[int, int, int, int], color: Any) -> None:
    x1, y1, x2, y2 = box
    if shape == 0:
        pen.ellipse(box, fill=color)
    elif shape == 1:
        pen.rectangle(box, fill=color)
    elif shape == 2:
        pen.polygon([(x1, y2), ((x1 + x2) // 2, y1), (x2, y2)], fill=color)
    else:
        third_x, third_y = (x2 - x1) // 3, (y2 - y1) // 3
        pen.rectangle((x1 + third_x, y1, x2 - third_x, y2), fill=color)
        pen.rectangle((x1, y1 + third_y, x2, y2 - third_y), fill=color)


def predicted(truth: Boxes, quality: float, num_classes: int, rng: np.random.Generator) -> Boxes:
    """Truth seen by a detector that finds a share `quality` of it, with jitter and false alarms."""
    seen = truth.select(rng.random(len(truth)) < quality)
    jittered = seen.xyxy + rng.normal(0, 2.5, seen.xyxy.shape)
    false = rng.integers(0, 4)
    origin = rng.uniform(0, (WIDTH - 60, HEIGHT - 60), (false, 2))
    boxes = np.concatenate([jittered, np.concatenate([origin, origin + rng.uniform(15, 60, (false, 1))], axis=1)])
    boxes = np.clip(boxes, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT))
    scores = np.concatenate([rng.beta(5, 2.5, len(seen)), rng.beta(1.5, 6, false)])
    return Boxes.build(boxes, np.concatenate([seen.labels, rng.integers(0, num_classes, false)]), scores)


def predicted_mask(drawn: Drawn, quality: float, num_classes: int, rng: np.random.Generator) -> tuple[Mask, np.ndarray]:
    """Classes and levels (256ths) by a segmenter that finds about a share `quality` of the shapes."""
    mask = np.where(drawn.mask == IGNORE, 0, drawn.mask).astype(np.uint8)
    for x1, y1, x2, y2 in drawn.boxes.xyxy[rng.random(len(drawn.boxes)) > quality].astype(int):
        mask[y1 : y2 + 1, x1 : x2 + 1][mask[y1 : y2 + 1, x1 : x2 + 1] > 0] = rng.integers(0, num_classes)
    for _ in range(rng.integers(0, 3)):
        center = tuple(rng.integers(0, (WIDTH, HEIGHT)).tolist())
        cv2.circle(mask, center, int(rng.integers(6, 18)), int(rng.integers(0, num_classes)), -1)
    mask = np.roll(mask, tuple(rng.integers(-2, 3, 2)), axis=(0, 1))
    flat = (cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) == 0).astype(np.uint8)
    distance = np.minimum(cv2.distanceTransform(flat, cv2.DIST_L2, 3) / 12, 1)
    haze = cv2.GaussianBlur(rng.normal(0, 2.0, mask.shape), (0, 0), 9)
    confidence = np.clip(0.4 + 0.5 * distance * (0.6 + quality / 2) + haze * 0.6, 0.2, 0.99)
    return mask, (256 * confidence).astype(np.uint8)


def write_training(folder: Path, name: str, metric: str, rng: np.random.Generator) -> None:
    """A training; `metric` is what was measured along it, empty for nothing."""
    steps = 600 if name == "teacher" else 400
    lines = []
    for step in range(10, steps + 1, 10):
        progress = step / steps
        loss = 1.9 * np.exp(-4 * progress) + 0.42 + rng.normal(0, 0.04)
        entry = {"step": step, "lr": 1.5e-3 * 0.5 * (1 + np.cos(np.pi * progress)), "loss": float(loss)}
        lines.append({**entry, "labeled_class": 0.6 * float(loss), "images_per_second": 88.0})
    if metric:
        last = HEADLINE[name.split("-")[0]]
        lines += [{"step": steps * k // 5, f"val_{metric}": last * (1 - np.exp(-0.7 * k))} for k in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"kind": "train", "name": name, "hash": "3f" * 32, "seed": 0, "steps": steps, "batch_size": 16}
    write_json(folder / "run.json", {**record, "parameters": 2_118_204, "images_per_second": 88.3, "seconds": 53.1})


def write_evaluation(
    folder: Path, role: str, test: list[Drawn], names: tuple[str, ...], kind: Kind, rng: np.random.Generator
) -> None:
    images = {"image_id": np.arange(len(test)), "path": [drawn.path for drawn in test]}
    sizes = {"height": np.full(len(test), HEIGHT), "width": np.full(len(test), WIDTH)}
    write_table(folder / "images.parquet", {**images, **sizes})
    kind.write_tables(folder, role, test, len(names), rng)
    write_json(
        folder / "run.json", {"kind": "evaluate", "hash": "a4" * 32, **kind.figures(role, names), "seconds": 4.2}
    )


def write_box_tables(folder: Path, role: str, test: list[Drawn], num_classes: int, rng: np.random.Generator) -> None:
    truth = [drawn.boxes for drawn in test]
    seen = [predicted(boxes, QUALITY[role], num_classes, rng) for boxes in truth]
    write_table(folder / "truth.parquet", box_columns(truth, "area", "ignore"))
    write_table(folder / "predictions.parquet", box_columns(seen, "scores"))
    match_detections(truth, seen, num_classes).save(folder / "tally.npz")


def write_mask_tables(folder: Path, role: str, test: list[Drawn], num_classes: int, rng: np.random.Generator) -> None:
    """Masks at half the pictures' size, as `eval.size` makes them."""
    seen = [predicted_mask(drawn, QUALITY[role], num_classes, rng)[0] for drawn in test]
    for name, masks in {"truth": [drawn.mask for drawn in test], "predictions": seen}.items():
        columns = {"image_id": np.arange(len(test)), "mask": [encode_png(mask[1::2, 1::2]) for mask in masks]}
        write_table(folder / f"{name}.parquet", columns)


def box_figures(role: str, names: tuple[str, ...]) -> dict[str, Any]:
    ap = HEADLINE[role]
    points = {"ap": ap, "ap50": ap * 1.62, "ap75": ap * 0.96, "ap_small": ap * 0.7, "ap_medium": ap * 1.3}
    per_class = {
        name: {"ap": ap + 0.03 * (k % 4) - 0.04, "ap50": ap * 1.5, "boxes": 40 - 3 * (k % 4)}
        for k, name in enumerate(names)
    }
    return {"metrics": {**points, "ap_large": None, "per_class": per_class}, "intervals": intervals_of(points)}


def mask_figures(role: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Figures and intervals; the last class is in no test image."""
    miou = HEADLINE[role]
    points = {"miou": miou, "pixel_accuracy": miou + 0.4, "boundary_iou": miou * 0.7}
    present = {
        name: {"iou": miou + 0.06 * (2 - k), "boundary_iou": miou * 0.6, "pixels": 14_100_000 // (k + 1), "images": 24}
        for k, name in enumerate(names[:-1])
    }
    absent = {"iou": None, "boundary_iou": None, "pixels": 0, "images": 0}
    intervals: dict[str, Any] = intervals_of(points)
    intervals["per_class"] = {
        name: intervals_of({metric: one[metric] for metric in ("iou", "boundary_iou")}) for name, one in present.items()
    }
    intervals["per_class"][names[-1]] = {"iou": None, "boundary_iou": None}
    return {"metrics": {**points, "per_class": {**present, names[-1]: absent}}, "intervals": intervals}


def intervals_of(points: Mapping[str, float]) -> dict[str, Any]:
    return {key: {"low": value - 0.022, "high": value + 0.024} for key, value in points.items()}


def predict_boxes(row: int, drawn: Drawn, num_classes: int, rng: np.random.Generator) -> Prediction:
    return Prediction(row, (HEIGHT, WIDTH), predicted(drawn.boxes, 0.8, num_classes, rng))


def predict_mask(row: int, drawn: Drawn, num_classes: int, rng: np.random.Generator) -> Prediction:
    """At half the picture's size, as a small network sees it."""
    mask, levels = predicted_mask(drawn, 0.8, num_classes, rng)
    return Prediction(row, (HEIGHT, WIDTH), mask=mask[::2, ::2], levels=levels[::2, ::2])


@dataclass(frozen=True)
class Listing:
    """As much of a pool's index as a store is written with."""

    drawn: list[Drawn]

    def relative_path(self, row: int) -> str:
        return Path(self.drawn[row].path).name


def write_store(
    folder: Path, pool: list[Drawn], names: tuple[str, ...], kind: Kind, rng: np.random.Generator, round_: int = 1
) -> None:
    """A store in parts of 32 images; the first three pool images are unreadable or held out."""
    manifest = Manifest(
        teacher="", round=round_, class_names=names, score_floor=0.05, label={}, pool="", held_out=(), key="",
        num_images=len(pool), part_size=32, annotation=kind.annotation,
    )  # fmt: skip
    writer = StoreWriter(folder, manifest)
    for part in range(manifest.num_parts):
        outcomes = [outcome_of(row, pool[row], len(names), kind, rng) for row in manifest.rows(part)]
        writer.write_part(part, outcomes, Listing(pool))
    writer.finish()
    views = ["identity", "hflip", "vflip", "rot180", "transpose", "antitranspose", "rot90", "rot270"]
    record = {"kind": "label", "hash": "b7" * 32, "counts": open_store(folder).counts(PseudoConfig()), "views": views}
    skipped = [{"path": "pool/broken.jpg", "reason": "the file ends early"}]
    write_json(folder / "run.json", {**record, "skipped": skipped, "threshold": 0.5, "seconds": 21.0})


def outcome_of(
    row: int, drawn: Drawn, num_classes: int, kind: Kind, rng: np.random.Generator
) -> Prediction | Skipped | Leak:
    if row == 0:
        return Skipped(row, "the file ends early")
    return Leak(row, "also in the test set") if row in (1, 2) else kind.predict(row, drawn, num_classes, rng)


def run_record(
    folder: Path,
    task: str,
    names: tuple[str, ...],
    stages: Mapping[str, str],
    arms: Mapping[str, str],
    num_test: int,
    num_pool: int,
    *,
    shown: bool,
    rounds: int,
    repeats: int,
) -> dict[str, Any]:
    kind = KINDS[task]
    covers = stats.covers(num_test, num_test, "bootstrap", repeats)
    low = 0.004 if shown else -0.009
    gain = stats.Interval(0.016, low, 0.029, 1000, covers)
    intervals = {
        "student_minus_control": gain,
        "student_minus_teacher": stats.Interval(0.047, 0.029, 0.066, 1000, covers),
        "control_minus_teacher": stats.Interval(0.031, 0.014, 0.047, 1000, covers),
    }
    root = str((folder / "images" / "pool").resolve())
    recommended = stats.recommend(intervals, "test images")
    differences: dict[str, Any] = {name: {"metric": kind.metric, **one.as_dict()} for name, one in intervals.items()}
    student = kind.figures("student", names)["metrics"]["per_class"]
    absent = {name for name, one in student.items() if None in one.values()}
    per_class = {
        name: stats.Interval(0.016 - 0.01 * (k % 4), -0.02, 0.05, 1000, covers) for k, name in enumerate(names)
    }
    differences["per_class"] = {
        "student_minus_control": {name: None if name in absent else one.as_dict() for name, one in per_class.items()}
    }
    points = [0.05, 0.24, 0.29, 0.31, 0.327]
    steps = [120, 240, 360, 480, 600]
    labeled = {
        "description": "train.json: 20 images",
        "images": 20,
        "annotation": kind.annotation,
        "counts": {f"{kind.annotation} dropped": 3},
    }
    amounts = dict(zip(names, kind.amounts(len(names)), strict=True))
    return {
        "task": task,
        "class_names": list(names),
        "command": f"tutelage fit --task {task} --labeled train.json --unlabeled pool --test test.json --out run",
        "version": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31"},
        "machine": {"system": "Linux", "cores": 2, "device": "cpu"},
        "config_hash": "9c" * 32,
        "seed": 0,
        **{role: {**kind.figures(role, names), "stage": name} for role, name in arms.items()},
        "rounds": rounds,
        "repeats": repeats,
        "stages": dict(stages),
        "differences": differences,
        "verdict": stats.verdict(gain, metric=kind.title, num_seeds=repeats),
        "recommended": recommended.model,
        "recommended_reason": recommended.reason,
        "decided_on": "test images",
        "data": {
            "labeled": {**labeled, "fingerprint": "1a" * 16, "amounts_per_class": amounts},
            "pool": {
                "description": "folder of images",
                "images": num_pool,
                "fingerprint": "2b" * 16,
                "roots": [root],
            },
            "test": {
                "description": "COCO json test.json",
                "images": num_test,
                "annotation": kind.annotation,
                "fingerprint": "3c" * 16,
                "amounts_per_class": amounts,
            },
        },
        "notes": ["formats were detected: COCO json, plain folder"],
        "check": {
            "lines": [
                "labeled: COCO json train.json: 20 images, 4 classes",
                "labeled: 256 x 192; 4 classes occur in 3 images or more",
                "pool: folder of images: 60 images",
                "labeled: 2 images are near-copies of others",
                "leaks: no labeled image is in the test set",
                "Domain gap 0.2 standard deviations (color 0.2, size 0.0, sharpness 0.1; 60 pool images): "
                "the pool looks like the labeled images.",
            ],
            "gap": 0.213,
        },
        "teacher_converged": False,
        "convergence": stats.convergence_sentence(steps, points, stats.Interval(0.327, 0.315, 0.339, 1000, covers)),
        "seconds": {name: 53.1 if "evaluate" not in name else 4.2 for name in stages},
    }


def box_columns(boxes: Sequence[Boxes], *more: str) -> dict[str, Any]:
    """A box table as columns; `scores` is called `score` in the files."""
    corners = np.concatenate([one.xyxy for one in boxes])
    columns: dict[str, Any] = {"image_id": np.repeat(np.arange(len(boxes)), [len(one) for one in boxes])}
    columns |= {name: corners[:, k] for k, name in enumerate(("x1", "y1", "x2", "y2"))}
    for name in ("labels", *more):
        columns[name.removesuffix("s") if name in ("labels", "scores") else name] = np.concatenate(
            [getattr(one, name) for one in boxes]
        )
    return columns


def write_table(place: Path, columns: Mapping[str, Any]) -> None:
    pq.write_table(pa.table(dict(columns)), place)


def write_json(place: Path, value: Any) -> None:
    place.write_text(json.dumps(value))


def _shares(num_classes: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, num_classes + 1)
    return weights / weights.sum()


KINDS = {
    "detection": Kind(
        "boxes", "ap", "AP", 0, box_figures, write_box_tables, predict_boxes,
        lambda count: (92 * _shares(count)).astype(int).tolist(),
    ),
    "segmentation": Kind(
        "masks", "miou", "mIoU", 1, mask_figures, write_mask_tables, predict_mask,
        lambda count: [700_000, *(280_000 * _shares(count - 1)).astype(int).tolist()],
    ),
}  # fmt: skip
