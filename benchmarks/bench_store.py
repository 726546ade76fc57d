"""Size and speed of a store of pseudo-masks beside a folder of the class PNGs that it replaces.

Masks are procedural scenes. The teacher's logits are those at stride 4, blurred, with noise of two scales, enlarged and
turned into probabilities: once of a sure teacher, once of an unsure one. The PNG folder holds what one threshold keeps;
the store takes any. Times are compute time of one thread, the best of interleaved rounds.
Aim: less than 10 times the bytes of the PNGs, and less than 4 ms to read a mask.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.config import PseudoConfig
from tutelage.data.demo import class_mask, draw_scene
from tutelage.data.index import Index
from tutelage.data.masks import MaskCoding, MaskFile, encode_png, read_mask
from tutelage.data.pseudo import Manifest, PseudoStore, StoreWriter, open_store, store_index
from tutelage.types import IGNORE, Prediction

SIDE, STRIDE, CLASSES, PART_SIZE, ROUNDS = 512, 4, 6, 64, 3
TEACHERS = {"sure teacher": (14.0, 0.6), "unsure teacher": (6.0, 1.5)}  # height of the logits, and their noise
OTHER_STEPS = (1, 2, 8)  # of the 256 levels; the store keeps every 4th
PLAIN = PseudoConfig()


def label(row: int, mask: NDArray[np.uint8], height: float, noise: float) -> Prediction:
    """What such a teacher would say of the scene behind a mask (SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(row)
    small = SIDE // STRIDE
    truth = F.one_hot(torch.from_numpy(mask).long(), CLASSES).permute(2, 0, 1)[None].float()
    blurred = F.avg_pool2d(F.pad(F.avg_pool2d(truth, STRIDE), (3, 3, 3, 3), mode="replicate"), 7, 1)
    coarse = F.interpolate(torch.randn(1, CLASSES, small // 8, small // 8, generator=generator), small, mode="bicubic")
    fine = F.avg_pool2d(torch.randn(1, CLASSES, small + 2, small + 2, generator=generator), 3, 1)
    logits = height * (blurred - 0.5) + noise * (coarse + 0.6 * fine)
    likely, classes = F.interpolate(logits, SIDE, mode="bilinear").softmax(1)[0].max(0)
    levels = (256 * likely).floor().clamp(max=255)
    return Prediction(row, (SIDE, SIDE), mask=classes.byte().numpy(), levels=levels.byte().numpy())


def kept(prediction: Prediction) -> NDArray[np.uint8]:
    """The classes that a threshold of a half keeps."""
    assert prediction.mask is not None and prediction.levels is not None
    return np.where(prediction.levels < 128, IGNORE, prediction.mask).astype(np.uint8)


def write_store(folder: Path, pool: Index, predictions: list[Prediction]) -> PseudoStore:
    manifest = Manifest(
        teacher="",
        round=1,
        class_names=pool.class_names,
        score_floor=0.0,
        label={},
        pool=pool.fingerprint,
        held_out=(),
        key="",
        num_images=len(pool),
        part_size=PART_SIZE,
        annotation="masks",
    )
    writer = StoreWriter(folder, manifest)
    for part in range(manifest.num_parts):
        writer.write_part(part, [predictions[row] for row in manifest.rows(part)], pool)
    writer.finish()
    return open_store(folder)


def write_pngs(folder: Path, predictions: list[Prediction]) -> None:
    folder.mkdir(exist_ok=True)
    for row, prediction in enumerate(predictions):
        cv2.imwrite(str(folder / f"{row}.png"), kept(prediction))


def milliseconds(works: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Compute time an image of each work on `count` images."""
    best = dict.fromkeys(works, np.inf)
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], 1000 * (time.process_time() - start) / count)
    return best


def compare(place: Path, name: str, predictions: list[Prediction]) -> None:
    count = len(predictions)
    pool = Index.build(
        roots=[place],
        paths=[f"{row}.jpg" for row in range(count)],
        class_names=[f"class {label}" for label in range(CLASSES)],
    )
    stored, pngs = place / "store", place / "pngs"
    writing = milliseconds(
        {
            "store": lambda: write_store(stored, pool, predictions),
            "PNG files": lambda: write_pngs(pngs, predictions),
        },
        count,
    )
    store = open_store(stored)
    index = store_index(store, pool, PLAIN)
    coding = MaskCoding("values", pngs, {label: label for label in range(CLASSES)} | {IGNORE: -1})
    order = np.random.default_rng(0).permutation(count).tolist()  # as training reads
    reading = milliseconds(
        {
            "store": lambda: [read_row(index, row) for row in order],
            "PNG files": lambda: [cv2.imread(str(pngs / f"{row}.png"), cv2.IMREAD_UNCHANGED) for row in order],
            "PNG data set": lambda: [read_mask(MaskFile(f"{row}.png", coding)) for row in order],
            "counts": lambda: store.counts(PLAIN),
        },
        count,
    )
    counts = store.counts(PLAIN)
    size, plain = (sum(path.stat().st_size for path in folder.iterdir()) / count for folder in (stored, pngs))
    print(f"{name}: {count} masks of {SIDE} x {SIDE}, {counts['pixels_kept'] / counts['pixels']:.1%} of pixels kept")
    print(f"  bytes an image   store {size:7.0f}, PNG files {plain:6.0f}, ratio {size / plain:.1f}")
    for step in OTHER_STEPS:
        more = np.mean([level_bytes(one, step) - level_bytes(one, 4) for one in predictions])
        print(f"    had it kept every {step}. level {size + more:7.0f}")
    print(f"  writing, ms      store {writing['store']:7.2f}, PNG files {writing['PNG files']:6.2f}")
    print(f"  reading, ms      store {reading['store']:7.2f}, PNG files {reading['PNG files']:6.2f},", end=" ")
    print(f"the same as a data set {reading['PNG data set']:.2f}")
    print(f"  counting at another threshold, ms {reading['counts']:.3f}")
    assert all(np.array_equal(read_row(index, row), kept(one)) for row, one in enumerate(predictions))


def read_row(index: Index, row: int) -> NDArray[np.uint8]:
    file = index.mask_file(row)
    assert file is not None
    return read_mask(file)


def level_bytes(prediction: Prediction, step: int) -> int:
    """Of the levels, had the store kept every `step`-th."""
    assert prediction.levels is not None
    return len(encode_png(prediction.levels - prediction.levels % step))


def main(num_images: int = 128) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    masks = [class_mask(draw_scene(SIDE, np.random.default_rng(row))) for row in range(num_images)]
    for name, (height, noise) in TEACHERS.items():
        with tempfile.TemporaryDirectory() as place:
            os.environ["TUTELAGE_CACHE"] = f"{place}/cache"
            compare(Path(place), name, [label(row, mask, height, noise) for row, mask in enumerate(masks)])


if __name__ == "__main__":
    main()
