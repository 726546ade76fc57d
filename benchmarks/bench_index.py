"""Opening an annotation file of COCO's size, and the memory of an index of OpenImages' size.

Run alone on the machine: python benchmarks/bench_index.py [--images N --boxes N --pool N --workers N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import psutil

from tutelage.config import DataConfig
from tutelage.data.index import Index
from tutelage.data.readers import open_index

COCO_IMAGES, COCO_BOXES, COCO_CLASSES = 118_287, 860_001, 80  # train2017
OPENIMAGES = 1_743_042  # train
MEBIBYTE = 1 << 20


def write_annotations(path: Path, images: int, boxes: int, rng: np.random.Generator) -> None:
    """A COCO json like instances_train2017.json: polygons of about 20 points, and the usual fields of an image."""
    owner = np.sort(rng.integers(0, images, boxes))
    corners = np.round(rng.uniform(0, 300, (boxes, 4)), 2) + 1
    outlines = np.round(rng.uniform(1, 300, (1000, 40)), 2).tolist()
    entries = [
        {
            "license": 3,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.example.org/train2017/{number:012d}.jpg",
            "height": 640,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "id": number,
        }
        for number in range(images)
    ]
    annotations = [
        {
            "segmentation": [outlines[number % 1000]],
            "area": box[2] * box[3],
            "iscrowd": 0,
            "image_id": image,
            "bbox": box,
            "category_id": number % COCO_CLASSES + 1,
            "id": number,
        }
        for number, (image, box) in enumerate(zip(owner.tolist(), corners.tolist(), strict=True))
    ]
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(COCO_CLASSES)]
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def opening(images: int, boxes: int, repeats: int = 3) -> dict[str, float]:
    """Seconds to open a generated json: pycocotools, the first time, from the cache."""
    from pycocotools.coco import COCO

    with tempfile.TemporaryDirectory() as folder, cache(Path(folder) / "cache"):
        path = Path(folder) / "instances_train.json"
        write_annotations(path, images, boxes, np.random.default_rng(0))

        def reference() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                COCO(str(path))

        def first() -> None:
            os.utime(path)  # another time: another key
            open_index(path, DataConfig(), annotations_only=True)

        def second() -> None:
            index = open_index(path, DataConfig(), annotations_only=True)
            assert len(index.boxes(images // 2).labels) >= 0

        times: dict[str, list[float]] = {"pycocotools": [], "first": [], "cached": []}
        for _ in range(repeats):  # in turns, so that a busy moment does not hit one alone
            for name, work in (("pycocotools", reference), ("first", first), ("cached", second)):
                times[name].append(seconds(work))
        return {"megabytes": path.stat().st_size / 1e6, **{name: min(found) for name, found in times.items()}}


@contextlib.contextmanager
def cache(folder: Path) -> Iterator[None]:
    """TUTELAGE_CACHE for a while."""
    before = os.environ.get("TUTELAGE_CACHE")
    os.environ["TUTELAGE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TUTELAGE_CACHE"]
        else:
            os.environ["TUTELAGE_CACHE"] = before


def build_pool(count: int, boxes_per_image: int, folder: Path) -> Index:
    """An index of OpenImages' kind."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 300, (count * boxes_per_image, 2))
    return Index.build(
        roots=[Path("/data/openimages")],
        paths=[f"train_{number % 16:x}/{number * 2654435761 % 2**64:016x}.jpg" for number in range(count)],
        class_names=[f"class {number}" for number in range(600)],
        sizes=np.full((count, 2), 768),
        offsets=np.arange(count + 1) * boxes_per_image,
        xyxy=np.concatenate([low, low + 50], axis=1),
        labels=rng.integers(0, 600, len(low)),
        folder=folder,
    )


def private_bytes() -> int:
    """Memory that this process shares with no other."""
    return int(psutil.Process().memory_full_info().uss)


def _walk(folder: Path, rank: int, workers: int, growth: multiprocessing.Queue[int], together: Barrier) -> None:
    """One worker's share of a shuffled pass, as a loader makes it."""
    before = private_bytes()
    together.wait()
    index = Index(folder)
    order = np.random.default_rng(1).permutation(len(index))
    for row in map(int, order[rank::workers]):
        assert index.path(row).name and index.size(row) and index.boxes(row)
    together.wait()  # all measure while all still hold their pages
    growth.put(private_bytes() - before)
    together.wait()


def memory(count: int, boxes_per_image: int = 1, workers: int = 4) -> float:
    """Growth of the private memory (USS, MiB) of main process and workers over a full shuffled pass."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builder = context.Process(target=build_pool, args=(count, boxes_per_image, folder))
        builder.start()
        builder.join()
        assert builder.exitcode == 0
        growth, together = context.Queue(), context.Barrier(workers + 1)
        arguments = [(folder, rank, workers, growth, together) for rank in range(workers)]
        processes = [context.Process(target=_walk, args=these) for these in arguments]
        for process in processes:
            process.start()
        before = private_bytes()
        together.wait()
        index = Index(folder)
        assert index.path(len(index) - 1).name
        together.wait()
        grown = private_bytes() - before + sum(growth.get() for _ in processes)
        together.wait()
        for process in processes:
            process.join()
        return grown / MEBIBYTE


def main() -> None:
    """Prints both benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=COCO_IMAGES)
    parser.add_argument("--boxes", type=int, default=COCO_BOXES)
    parser.add_argument("--pool", type=int, default=OPENIMAGES)
    parser.add_argument("--workers", type=int, default=4)
    options, _ = parser.parse_known_args()
    measured = opening(options.images, options.boxes)
    print(f"index: json of {measured['megabytes']:.0f} MB, {options.images} images, {options.boxes} boxes")
    print(f"  pycocotools {measured['pycocotools']:.2f} s")
    for name, aim in (("first", "at least 1"), ("cached", "at least 20")):
        ratio = measured["pycocotools"] / measured[name]
        print(f"  {name} time {measured[name]:.4f} s: {ratio:.2f} times as fast (aim: {aim})")
    grown = memory(options.pool, workers=options.workers)
    print(
        f"  {options.pool} images, shuffled pass, main + {options.workers} workers: USS +{grown:.0f} MiB (aim: < 300)"
    )


if __name__ == "__main__":
    main()
