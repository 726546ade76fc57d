"""Writes a finished run folder as `fit` leaves it: procedural pictures, plausible numbers, no training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from tutelage import stats
from tutelage.config import parse_config
from tutelage.data.pseudo import Manifest
from tutelage.tasks.metrics import match_detections
from tutelage.types import IGNORE_REGION, NOT_IGNORED, Boxes

CLASS_NAMES = ("disk", "square", "triangle", "cross")
HEIGHT, WIDTH = 192, 256
QUALITY = {"teacher": 0.55, "control": 0.62, "student": 0.68, "hidden": 0.8}
AP = {"teacher": 0.327, "control": 0.358, "student": 0.374, "hidden": 0.452}


def write_run_folder(
    folder: Path,
    *,
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
    names = tuple(class_names)
    test = draw_images(folder / "images" / "test", num_test, len(names), rng)
    pool = draw_images(folder / "images" / "pool", num_pool, len(names), rng)
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
            write_store(stage_folder(folder, stages, name), pool, names, rng)
            continue
        write_training(stage_folder(folder, stages, name), name, val, rng)
        write_evaluation(stage_folder(folder, stages, f"evaluate-{name}"), role, test, names, rng)
    (folder / "config.yaml").write_text(parse_config({"seed": seed, "rounds": rounds}, "test").to_yaml())
    arms_last = {"teacher": "teacher", **{arm: f"{arm}-{rounds}" for arm in arms}}
    record = run_record(
        folder, names, stages, arms_last, num_test, num_pool, shown=shown, rounds=rounds, repeats=repeats
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


def draw_images(folder: Path, count: int, num_classes: int, rng: np.random.Generator) -> list[tuple[str, Boxes]]:
    """Pictures of shapes on a graded ground, with their boxes; paths are absolute."""
    folder.mkdir(parents=True)
    drawn = []
    for number in range(count):
        ground = np.linspace(rng.integers(40, 220, 3), rng.integers(40, 220, 3), WIDTH)[None].repeat(HEIGHT, axis=0)
        noisy = np.clip(ground + rng.normal(0, 6, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(noisy)
        pen = ImageDraw.Draw(image)
        corners, labels = [], []
        for _ in range(rng.integers(2, 8)):
            side = int(rng.integers(18, 64))
            x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
            label = int(rng.choice(num_classes, p=_shares(num_classes)))
            draw_shape(pen, label % 4, (x, y, x + side, y + side), tuple(rng.integers(0, 256, 3).tolist()))
            corners.append((x, y, x + side, y + side))
            labels.append(label)
        ignore = np.full(len(labels), NOT_IGNORED)
        if number % 9 == 5:
            ignore[-1] = IGNORE_REGION
        place = folder / f"scene-{number:04d}.jpg"
        image.save(place, quality=90)
        drawn.append((str(place), Boxes.build(corners, labels, ignore=ignore)))
    return drawn


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


def write_training(folder: Path, name: str, val: bool, rng: np.random.Generator) -> None:
    steps = 600 if name == "teacher" else 400
    lines = []
    for step in range(10, steps + 1, 10):
        progress = step / steps
        loss = 1.9 * np.exp(-4 * progress) + 0.42 + rng.normal(0, 0.04)
        entry = {"step": step, "lr": 1.5e-3 * 0.5 * (1 + np.cos(np.pi * progress)), "loss": float(loss)}
        lines.append({**entry, "labeled_class": 0.6 * float(loss), "images_per_second": 88.0})
    if val:
        ap = AP[name.split("-")[0]]
        lines += [{"step": steps * k // 5, "val_ap": ap * (1 - np.exp(-0.7 * k)), "val_ap50": ap} for k in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"kind": "train", "name": name, "hash": "3f" * 32, "seed": 0, "steps": steps, "batch_size": 16}
    write_json(folder / "run.json", {**record, "parameters": 2_118_204, "images_per_second": 88.3, "seconds": 53.1})


def write_evaluation(
    folder: Path, role: str, test: list[tuple[str, Boxes]], names: tuple[str, ...], rng: np.random.Generator
) -> None:
    truth = [boxes for _, boxes in test]
    seen = [predicted(boxes, QUALITY[role], len(names), rng) for boxes in truth]
    images = {"image_id": np.arange(len(test)), "path": [path for path, _ in test]}
    sizes = {"height": np.full(len(test), HEIGHT), "width": np.full(len(test), WIDTH)}
    write_table(folder / "images.parquet", {**images, **sizes})
    write_table(folder / "truth.parquet", box_columns(truth, "area", "ignore"))
    write_table(folder / "predictions.parquet", box_columns(seen, "scores"))
    match_detections(truth, seen, len(names)).save(folder / "matches.npz")
    write_json(folder / "run.json", {"kind": "evaluate", "hash": "a4" * 32, **figures(role, names), "seconds": 4.2})


def figures(role: str, names: tuple[str, ...]) -> dict[str, Any]:
    ap = AP[role]
    points = {"ap": ap, "ap50": ap * 1.62, "ap75": ap * 0.96, "ap_small": ap * 0.7, "ap_medium": ap * 1.3}
    intervals = {key: {"low": value - 0.022, "high": value + 0.024} for key, value in points.items()}
    per_class = {
        name: {"ap": ap + 0.03 * (k % 4) - 0.04, "ap50": ap * 1.5, "boxes": 40 - 3 * (k % 4)}
        for k, name in enumerate(names)
    }
    return {"metrics": {**points, "ap_large": None, "per_class": per_class}, "intervals": intervals}


def write_store(folder: Path, pool: list[tuple[str, Boxes]], names: tuple[str, ...], rng: np.random.Generator) -> None:
    part_size, kept, total, empty = 32, 0, 0, 0
    for part in range(0, len(pool), part_size):
        rows = pool[part : part + part_size]
        ids = np.arange(part, part + len(rows))
        seen = [predicted(boxes, 0.8, len(names), rng) for _, boxes in rows]
        place = folder / f"part-{part // part_size:05d}.images.parquet"
        count = len(rows)
        columns = {"image_id": ids, "path": [Path(path).name for path, _ in rows], "height": np.full(count, HEIGHT)}
        more = {"width": np.full(count, WIDTH), "scale": np.ones(count), "status": ["ok"] * count}
        write_table(place, {**columns, **more, "reason": [""] * count})
        boxes = box_columns(seen, "scores")
        boxes["image_id"] = boxes["image_id"] + part
        write_table(folder / place.name.replace("images", "boxes"), boxes)
        kept += int((boxes["score"] >= 0.5).sum())
        total += len(boxes["score"])
        empty += sum(not (one.scores >= 0.5).any() for one in seen)
    counts = {"images": len(pool), "labeled": len(pool) - empty, "empty": empty, "skipped": 1, "leaks": 2}
    skipped = [{"path": "pool/broken.jpg", "reason": "the file ends early"}]
    origin = {"teacher": "", "round": 1, "label": {}, "pool": "", "held_out": (), "key": ""}
    sizes = {"num_images": len(pool), "part_size": part_size}
    manifest = Manifest(class_names=names, score_floor=0.05, **origin, **sizes)
    write_json(folder / "manifest.json", {**asdict(manifest), "content": ""})
    record = {"kind": "label", "hash": "b7" * 32, "counts": {**counts, "boxes": total, "boxes_kept": kept}}
    views = ["identity", "hflip", "vflip", "rot180", "transpose", "antitranspose", "rot90", "rot270"]
    write_json(folder / "run.json", {**record, "skipped": skipped, "threshold": 0.5, "views": views, "seconds": 21.0})


def run_record(
    folder: Path,
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
    differences: dict[str, Any] = {name: {"metric": "ap", **one.as_dict()} for name, one in intervals.items()}
    per_class = {
        name: stats.Interval(0.016 - 0.01 * (k % 4), -0.02, 0.05, 1000, covers) for k, name in enumerate(names)
    }
    differences["per_class"] = {"student_minus_control": {name: one.as_dict() for name, one in per_class.items()}}
    points = [0.05, 0.24, 0.29, 0.31, 0.327]
    steps = [120, 240, 360, 480, 600]
    labeled = {
        "description": "COCO json train.json: 20 images, 91 boxes",
        "images": 20,
        "annotation": "boxes",
        "counts": {"boxes clipped": 3},
    }
    balance = {name: int(92 * share) for name, share in zip(names, _shares(len(names)), strict=True)}
    return {
        "task": "detection",
        "class_names": list(names),
        "command": "tutelage fit --task detection --labeled train.json --unlabeled pool --test test.json --out run",
        "version": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31"},
        "machine": {"system": "Linux", "cores": 2, "device": "cpu"},
        "config_hash": "9c" * 32,
        "seed": 0,
        **{role: {**figures(role, names), "stage": name} for role, name in arms.items()},
        "rounds": rounds,
        "repeats": repeats,
        "stages": dict(stages),
        "differences": differences,
        "verdict": stats.verdict(gain, metric="AP", num_seeds=repeats),
        "recommended": recommended.model,
        "recommended_reason": recommended.reason,
        "decided_on": "test images",
        "data": {
            "labeled": {**labeled, "fingerprint": "1a" * 16, "amounts_per_class": balance},
            "pool": {
                "description": "folder of images",
                "images": num_pool,
                "fingerprint": "2b" * 16,
                "roots": [root],
            },
            "test": {
                "description": "COCO json test.json",
                "images": num_test,
                "annotation": "boxes",
                "fingerprint": "3c" * 16,
                "amounts_per_class": {name: 28 for name in names},
            },
        },
        "notes": ["formats were detected: COCO json, plain folder"],
        "check": {
            "lines": [
                "labeled: COCO json train.json: 20 images, 91 boxes, 4 classes",
                "labeled: 256 x 192; 2 to 7 boxes an image, median 5; 61% small, 39% medium, 0% large",
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
