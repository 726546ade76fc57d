"""Intervals of two models on a COCO-size test set: 5 000 images, 80 classes, 100 detections an image, 1 000 resamples.

Aim: matching and resampling of both models within 2 minutes on two cores. pycocotools' one evaluation of one model on
the same detections stands beside it: resampling with it would take a thousand times that for each model.
"""

import contextlib
import io
import os
import time

import numpy as np

from tutelage.stats import bootstrap, paired_difference
from tutelage.tasks.metrics import bootstrap_metrics, detection_metrics, match_detections
from tutelage.tasks.metrics.coco import coco_results, coco_truth
from tutelage.types import Boxes

IMAGES, CLASSES, DETECTIONS, RESAMPLES = 5000, 80, 100, 1000
BOXES = 7.3  # a COCO val2017 image: 36 781 boxes in 5 000 images
AIM_SECONDS = 120


def made_set(rng: np.random.Generator, num_images: int) -> tuple[list[Boxes], list[list[Boxes]]]:
    """Truth, and two models' detections: one near every box they find, the rest false; classes as uneven as COCO's."""
    share = 1 / np.arange(1, CLASSES + 1)
    share /= share.sum()
    truth: list[Boxes] = []
    models: list[list[Boxes]] = [[], []]
    for _ in range(num_images):
        count = int(rng.poisson(BOXES))
        labels = rng.choice(CLASSES, count, p=share)
        corner, side = rng.uniform(0, 500, (count, 2)), np.exp(rng.uniform(2.5, 5.5, (count, 2)))
        xyxy = np.hstack([corner, corner + side])
        truth.append(Boxes.build(xyxy, labels, ignore=rng.uniform(size=count) < 0.012))
        for model in models:
            found = np.flatnonzero(rng.uniform(size=count) < 0.8)[:DETECTIONS]
            noise = rng.uniform(0, 500, (DETECTIONS - len(found), 2))
            near = xyxy[found] + rng.normal(0, 0.06, (len(found), 4)) * np.tile(side[found], 2)
            boxes = np.vstack([near, np.hstack([noise, noise + rng.uniform(10, 200, noise.shape)])])
            kinds = np.concatenate([labels[found], rng.choice(CLASSES, len(noise), p=share)])
            scores = np.concatenate([rng.uniform(0.2, 1, len(found)), rng.uniform(0.05, 0.6, len(noise))])
            model.append(Boxes.build(boxes, kinds, scores))
    return truth, models


def pycocotools_seconds(truth: list[Boxes], predictions: list[Boxes]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = coco_truth(truth, [str(label) for label in range(CLASSES)])
        reference.createIndex()
        results = reference.loadRes(coco_results(predictions))
        start = time.perf_counter()
        evaluator = COCOeval(reference, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return time.perf_counter() - start


def main(num_images: int = IMAGES, resamples: int = RESAMPLES) -> None:
    threads = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    truth, models = made_set(rng, num_images)
    names = [str(label) for label in range(CLASSES)]
    start = time.perf_counter()
    points = [detection_metrics(truth, model, names)["ap"] for model in models]
    evaluated = time.perf_counter()
    matches = [match_detections(truth, model, CLASSES) for model in models]
    matched = time.perf_counter()
    draws = bootstrap(np.arange(num_images), resamples, rng)
    one, other = (bootstrap_metrics(match, draws.weights, threads=threads)["ap"] for match in matches)
    done = time.perf_counter()
    peer = pycocotools_seconds(truth, models[0])
    difference = paired_difference(one, other, points[0], points[1], draws.kind, 0.95)
    print(f"   {num_images} images, {CLASSES} classes, {resamples} resamples, 2 models, {threads} threads")
    print(f"   point figures (faster-coco-eval) {evaluated - start:.1f} s; pycocotools, one model {peer:.1f} s")
    print(
        f"   matching {matched - evaluated:.1f} s: {2 * peer / (matched - evaluated):.1f} times as fast as pycocotools"
    )
    print(
        f"   resampling {done - matched:.1f} s; matching and resampling {done - evaluated:.1f} s (aim {AIM_SECONDS} s)"
    )
    assert difference is not None, "both models find something"
    print(
        f"   difference {100 * difference.mean:+.2f} ({100 * difference.low:+.2f} to {100 * difference.high:+.2f}) AP"
    )


if __name__ == "__main__":
    main()
