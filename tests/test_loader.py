"""Streams of batches: the same for any ranks, workers, micro-batches and after a stop; targets follow their images."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain
from multiprocessing import active_children
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tutelage.config import AugmentConfig, DataConfig, PretrainConfig
from tutelage.data.images import decode, probe
from tutelage.data.index import Index
from tutelage.data.loader import (
    classification_batches,
    classification_evaluation_batches,
    collate,
    epoch_order,
    evaluation_batches,
    sample_rng,
    shown_boxes,
    shown_mask,
    streams,
    train_batches,
)
from tutelage.data.loader.pictures import Pictures
from tutelage.data.loader.samples import TrainSamples
from tutelage.data.loader.workers import _next, loaded
from tutelage.data.masks import MaskCoding, read_mask
from tutelage.types import IGNORE, Batch, Boxes, InputError, Sample

CANVAS = (64, 96)
STRONG = AugmentConfig(level="s4", pixel_scale=0.2)
PLAIN = AugmentConfig(level="none", jitter=(1.0, 1.0), flip=0.0)


def photograph(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colors, so that JPEG and resampling change little."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def make_index(folder: Path, count: int = 7, *, suffixes: tuple[str, ...] = (".jpg", ".png"), side: int = 150) -> Index:
    """`count` images, image i with i boxes (image 0 has none)."""
    rng = np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    names = [f"{row}{suffixes[row % len(suffixes)]}" for row in range(count)]
    sizes = [(side + 7 * row, side + 60) for row in range(count)]
    for name, size in zip(names, sizes, strict=True):
        Image.fromarray(photograph(rng, *size)).save(folder / name)
    corners = rng.uniform(5, 60, (sum(range(count)), 2))
    return Index.build(
        roots=[folder],
        paths=names,
        class_names=["a", "b", "c"],
        sizes=sizes,
        offsets=np.cumsum([0, *range(count)]),
        xyxy=np.hstack([corners, corners + rng.uniform(20, 70, corners.shape)]),
        labels=rng.integers(0, 3, len(corners)),
        ignore=rng.integers(0, 3, len(corners)),
        image_class=[row % 3 for row in range(count)],
    )


def options(**changed: Any) -> dict[str, Any]:
    return {
        "canvas": CANVAS,
        "augment": STRONG,
        "data": DataConfig(),
        "stream": "labeled",
        "seed": 5,
        "round": 1,
        "batch_size": 4,
        "first_step": 0,
        "num_steps": 5,
        "rank": 0,
        "world_size": 1,
        "micro_batches": 1,
        "workers": 0,
        "cache_megabytes": 0,
        "pin": False,
        **changed,
    }


def make_mask_index(folder: Path, count: int = 7, *, side: int = 150) -> Index:
    """`count` images, each painted in the colors of its mask: class k has gray 80 k."""
    rng = np.random.default_rng(4)
    folder.mkdir(exist_ok=True)
    names = [f"{row}{('.jpg', '.png')[row % 2]}" for row in range(count)]
    sizes = [(side + 7 * row, side + 60) for row in range(count)]
    for row, size in enumerate(sizes):
        mask = cv2.resize(rng.integers(0, 4, (4, 5), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(80), 3, axis=2)).save(folder / names[row], quality=95)
        Image.fromarray(np.where(mask == 3, IGNORE, mask).astype(np.uint8)).save(folder / f"{row}.mask.png")
    return Index.build(
        roots=[folder],
        paths=names,
        class_names=["a", "b", "c"],
        sizes=sizes,
        masks=[f"{row}.mask.png" for row in range(count)],
        codings=[MaskCoding("values", folder, {0: 0, 1: 1, 2: 2, IGNORE: -1})],
    )


def masks_of(index: Index, **changed: Any) -> list[list[tuple[int, bytes, bytes]]]:
    """Each step's samples as image id, mask and pixels, micro-batches behind one another."""
    steps = []
    for micro_batches in train_batches(index, annotation="masks", **options(**changed)):
        rows = []
        for batch in micro_batches:
            assert batch.masks is not None and batch.boxes is None and batch.masks.shape[1:] == CANVAS
            columns = (batch.masks, batch.images)
            rows += [
                (int(batch.image_ids[row]), *(column[row].contiguous().numpy().tobytes() for column in columns))
                for row in range(len(batch))
            ]
        steps.append(rows)
    return steps


def rows_of(batch: Batch) -> list[tuple[Any, ...]]:
    """Every sample of a batch as plain values, without the padding of its boxes."""
    assert batch.boxes is not None
    return [
        (
            int(batch.image_ids[row]),
            tuple(batch.sizes[row].tolist()),
            batch.images[row].contiguous().numpy().tobytes(),
            batch.matrix[row].numpy().tobytes(),
            batch.valid[row].numpy().tobytes(),
            *(
                getattr(batch.boxes, name)[row][batch.boxes.valid[row]].numpy().tobytes()
                for name in ("xyxy", "labels", "scores", "ignore")
            ),
        )
        for row in range(len(batch))
    ]


def steps_of(index: Index, **changed: Any) -> list[list[tuple[Any, ...]]]:
    """The samples of each step, micro-batches behind one another."""
    stream = train_batches(index, **options(**changed))
    return [[row for batch in micro_batches for row in rows_of(batch)] for micro_batches in stream]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("index")))
        return make_index(folder)


@pytest.fixture(scope="module")
def reference(index: Index) -> list[list[tuple[Any, ...]]]:
    return steps_of(index)


def test_epochs_are_permutations_of_their_own() -> None:
    orders = [epoch_order(0, "labeled", epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    others = [epoch_order(1, "labeled", 0, 50), epoch_order(0, "second", 0, 50)]
    distinct = {tuple(order.tolist()) for order in [*orders, *others]}
    assert len(distinct) == 5
    assert epoch_order(0, "labeled", 0, 50).tolist() == orders[0].tolist()


def test_samples_draw_from_generators_of_their_own() -> None:
    keys = [
        (0, 0, "a", 0, 0),
        (1, 0, "a", 0, 0),
        (0, 1, "a", 0, 0),
        (0, 0, "b", 0, 0),
        (0, 0, "a", 1, 0),
        (0, 0, "a", 0, 1),
    ]
    draws = {tuple(sample_rng(*key).integers(0, 1 << 30, 4).tolist()) for key in keys}
    assert len(draws) == len(keys)
    # PCG64 of SeedSequence([0, 0, crc32("a"), 0, 0]): the stream's name must hash alike in every process
    words = np.random.SeedSequence([0, 0, 0xE8B7BE43, 0, 0])
    assert sample_rng(*keys[0]).random() == np.random.default_rng(words).random()


def test_every_epoch_sees_every_image_once_and_batches_cross_epochs(index: Index) -> None:
    ids = [row[0] for step in steps_of(index, num_steps=7, batch_size=4) for row in step]
    assert len(ids) == 28
    assert all(sorted(ids[first : first + 7]) == list(range(7)) for first in range(0, 28, 7))
    assert ids == [row for epoch in range(4) for row in epoch_order(5, "labeled", epoch, 7)]


def test_an_image_looks_different_in_every_epoch_and_stream(index: Index) -> None:
    views = [row for step in steps_of(index, num_steps=7) for row in step]
    views += [row for step in steps_of(index, num_steps=7, stream="second") for row in step]
    views += [row for step in steps_of(index, num_steps=7, round=2) for row in step]
    assert len({row[2:4] for row in views}) == len(views) == 84


@pytest.mark.parametrize("changed", [{"workers": 1}, {"workers": 2}, {"micro_batches": 4}, {"cache_megabytes": 64}])
def test_batches_do_not_depend_on_how_they_are_loaded(
    index: Index, reference: list[list[tuple[Any, ...]]], changed: dict[str, int]
) -> None:
    assert steps_of(index, **changed) == reference


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("masked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("index")))
        return make_mask_index(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"workers": 1},
        {"workers": 2},
        {"micro_batches": 4},
        {"cache_megabytes": 64},
        {"workers": 2, "cache_megabytes": 64},
    ],
)
def test_masks_do_not_depend_on_how_they_are_loaded(masked: Index, changed: dict[str, int]) -> None:
    reference = masks_of(masked)
    assert masks_of(masked, **changed) == reference
    assert masks_of(masked, first_step=3, **changed) == reference[3:]


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (2, 2), (4, 1)])
def test_ranks_share_a_step(
    index: Index, reference: list[list[tuple[Any, ...]]], world_size: int, micro_batches: int
) -> None:
    shares = [
        steps_of(index, rank=rank, world_size=world_size, micro_batches=micro_batches) for rank in range(world_size)
    ]
    assert [list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)] == reference


def test_a_stopped_stream_continues(index: Index, reference: list[list[tuple[Any, ...]]]) -> None:
    assert steps_of(index, first_step=3) == reference[3:]
    assert steps_of(index, first_step=5) == []


def test_micro_batches_come_as_lists_of_a_step(index: Index) -> None:
    steps = list(train_batches(index, **options(micro_batches=2, num_steps=3)))
    assert [[len(batch) for batch in step] for step in steps] == [[2, 2]] * 3


@pytest.mark.parametrize("changed", [{"batch_size": 5, "world_size": 2}, {"batch_size": 4, "micro_batches": 3}])
def test_a_batch_that_cannot_be_divided_is_refused(index: Index, changed: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be divisible"):
        train_batches(index, **options(**changed))


def test_an_empty_set_is_refused(index: Index) -> None:
    with pytest.raises(InputError, match="no images"):
        train_batches(index.select(np.zeros(0, np.int64)), **options())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(index: Index, workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(train_batches(index, **options(num_steps=1, workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_channels_last_and_its_boxes_are_padded_to_eights(index: Index) -> None:
    (batch,) = next(train_batches(index, **options(batch_size=7)))
    assert batch.images.shape == (7, 1, 3, *CANVAS) and batch.images.dtype == torch.uint8
    assert batch.images[:, 0].is_contiguous(memory_format=torch.channels_last)
    assert batch.boxes is not None and batch.boxes.xyxy.shape == (7, 8, 4)
    assert batch.matrix.dtype == torch.float64 and batch.labels is None


@pytest.mark.parametrize(("count", "width"), [(0, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_padding(count: int, width: int) -> None:
    def sample(boxes: Boxes) -> Sample:
        return Sample(3, np.zeros((1, 8, 8, 3), np.uint8), np.eye(3)[None], (8, 8), np.array([[8, 8]]), boxes)

    boxes = Boxes.build(np.arange(count * 4).reshape(-1, 4), np.arange(count), ignore=np.ones(count))
    batch = collate([sample(boxes), sample(Boxes.empty())]).boxes
    assert batch is not None and batch.valid.shape == (2, width)
    assert batch.valid.sum(1).tolist() == [count, 0]
    assert batch.xyxy[0, :count].flatten().tolist() == list(range(count * 4))
    assert batch.ignore[0].sum() == count and (batch.scores[0, :count] == 1).all()


def test_boxes_move_with_their_image(index: Index) -> None:
    """Without augmentation a box is its annotation, scaled; its ignore flag, label and score come along."""
    for (batch,) in train_batches(index, **options(augment=PLAIN, batch_size=1, num_steps=7)):
        row = int(batch.image_ids[0])
        truth, matrix = index.boxes(row), batch.matrix[0, 0].numpy()
        assert batch.boxes is not None
        valid = batch.boxes.valid[0]
        scale = np.array([matrix[0, 0], matrix[1, 1]] * 2)
        np.testing.assert_allclose(batch.boxes.xyxy[0][valid], truth.xyxy * scale, atol=1e-3)
        assert batch.boxes.labels[0][valid].tolist() == truth.labels.tolist()
        assert batch.boxes.ignore[0][valid].tolist() == truth.ignore.tolist()
        assert (batch.boxes.scores[0][valid] == 1).all()


def test_masks_move_with_their_image(masked: Index) -> None:
    """A canvas pixel shows the color of its class, also where a JPEG was decoded at a half or a quarter."""
    geometry = AugmentConfig(level="s1", jitter=(0.5, 1.1))
    compared = 0
    for (batch,) in train_batches(masked, annotation="masks", **options(augment=geometry, num_steps=7)):
        assert batch.masks is not None
        for place in range(len(batch)):
            mask, pixels = batch.masks[place].numpy(), batch.images[place, 0].float().mean(0).numpy()
            alike = cv2.erode(mask, np.ones((5, 5), np.uint8)) == cv2.dilate(mask, np.ones((5, 5), np.uint8))
            inside = alike & (mask != IGNORE)
            assert np.abs(pixels[inside] - 80.0 * mask[inside]).max(initial=0) < 25
            compared += int(inside.sum())
            height, width = batch.valid[place, 0].tolist()
            assert (mask[height:] == IGNORE).all() and (mask[:, width:] == IGNORE).all()
    assert compared > 10_000


def test_kept_masks_are_not_read_again(masked: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "tutelage.data.loader.pictures.read_mask", lambda file: (asked.append(file.path), read_mask(file))[1]
    )
    kept = masks_of(masked, num_steps=7, cache_megabytes=64)
    assert sorted(asked) == sorted(f"{row}.mask.png" for row in range(7))
    assert masks_of(masked, num_steps=7) == kept and len(asked) == 7 + 28


def test_masks_count_in_the_budget(masked: Index) -> None:
    """A megabyte holds the seven pictures at their four scales, but not their masks too."""
    pixels = sum(height * width for height, width in masked.sizes().tolist())
    assert 3 * 1.328 * pixels < 2**20 < (3 * 1.328 + 1) * pixels
    assert Pictures(masked, DataConfig(), 1)._infos and not Pictures(masked, DataConfig(), 1, CANVAS)._infos


def test_the_memory_gives_the_bytes_of_the_file_at_every_scale(index: Index) -> None:
    pictures = Pictures(index, DataConfig(), cache_megabytes=64)
    for needed in (1.0, 0.6, 0.5, 0.3, 0.25, 0.2, 0.1, 0.3, 1.0, 0.6):
        for row in range(len(index)):
            level = next(1 / divisor for divisor in (8, 4, 2, 1) if 1 / divisor >= needed)
            alone = decode(index.path(row), DataConfig(), needed_scale=level).pixels
            assert np.array_equal(pictures.pixels(row, needed), alone)
            assert np.array_equal(pictures.pixels(row, needed), alone)


def test_kept_images_are_not_decoded_again(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        decoded.append(path)
        return decode(path, *args, **kwargs)

    monkeypatch.setattr("tutelage.data.loader.pictures.decode", counted)
    list(train_batches(index, **options(augment=PLAIN, num_steps=7, cache_megabytes=64)))
    assert len(decoded) == 7
    decoded.clear()
    list(train_batches(index, **options(augment=PLAIN, num_steps=7, cache_megabytes=0)))
    assert len(decoded) == 28


def test_a_set_that_does_not_fit_is_not_opened_ahead(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[Path] = []
    monkeypatch.setattr("tutelage.data.loader.pictures.probe", lambda path: (probed.append(path), probe(path))[1])
    large = index.select(np.tile(np.arange(7), 5000))  # 3.5 GB decoded; 1 MB holds 8
    Pictures(large, DataConfig(), cache_megabytes=1)
    assert len(probed) <= 9


def test_workers_share_what_they_decode(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "decoded"

    def logged(path: Path, *args: Any, **kwargs: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        return decode(path, *args, **kwargs)

    monkeypatch.setattr("tutelage.data.loader.pictures.decode", logged)
    changed = options(augment=PLAIN, num_steps=28, cache_megabytes=64, workers=2)
    list(train_batches(index, **changed))
    # 112 samples; two workers may decode the same image at the same moment, but never again later
    assert 7 <= len(log.read_text().splitlines()) <= 14


def write_turned(path: Path, pixels: NDArray[np.uint8], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=exif)


@pytest.mark.parametrize("annotated", ["stored", "shown"])
def test_boxes_of_a_turned_photograph(tmp_path: Path, annotated: str) -> None:
    """A red square, stored lying (orientation 6: turn clockwise to show), must be red inside its box on the canvas."""
    stored = np.full((40, 80, 3), 200, np.uint8)
    stored[5:15, 50:70] = (255, 0, 0)
    write_turned(tmp_path / "turned.jpg", stored, 6)
    box = {"stored": (50, 5, 70, 15), "shown": (25, 50, 35, 70)}[annotated]
    size = {"stored": (40, 80), "shown": (80, 40)}[annotated]
    index = Index.build(
        roots=[tmp_path], paths=["turned.jpg"], class_names=["x"], sizes=[size], offsets=[0, 1], xyxy=[box], labels=[0]
    )
    assert shown_boxes(index, 0, DataConfig()).xyxy.tolist() == [[25, 50, 35, 70]]
    (batch,) = next(train_batches(index, **options(augment=PLAIN, batch_size=1, canvas=(80, 80))))
    assert batch.boxes is not None
    x1, y1, x2, y2 = batch.boxes.xyxy[0, 0].round().int().tolist()
    inside = batch.images[0, 0, :, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float().mean((1, 2))
    assert inside[0] > 200 and inside[1] < 60
    assert batch.sizes.tolist() == [[80, 40]]


@pytest.mark.parametrize("drawn_on", ["stored", "shown"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_of_a_turned_photograph(tmp_path: Path, drawn_on: str, orientation: int) -> None:
    """Bright pixels have class 1, on whichever picture the mask was drawn; Pillow says what is shown."""
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[5:15, 50:70] = 255
    write_turned(tmp_path / "turned.png", stored, orientation)
    with Image.open(tmp_path / "turned.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))[..., 0] // 255
    Image.fromarray(stored[..., 0] // 255 if drawn_on == "stored" else shown).save(tmp_path / "mask.png")
    index = one_mask_index(tmp_path, "turned.png")
    decided = orientation >= 5  # a turned picture has another size; a mirrored one is decided by the option
    data = DataConfig() if decided else DataConfig(boxes_in=drawn_on)
    assert np.array_equal(shown_mask(index, 0, data), shown)


def one_mask_index(folder: Path, image: str, mask: str = "mask.png") -> Index:
    coding = MaskCoding("values", folder, {0: 0, 1: 1})
    return Index.build(roots=[folder], paths=[image], class_names=["x", "y"], masks=[mask], codings=[coding])


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40)).save(tmp_path / "image.png")
    Image.new("L", (79, 40)).save(tmp_path / "mask.png")
    index = one_mask_index(tmp_path, "image.png")
    expected = r"mask\.png: the mask is 79 x 40 pixels; its image .*image\.png is 80 x 40, .* Resize the mask"
    with pytest.raises(InputError, match=expected):
        shown_mask(index, 0, DataConfig())
    with pytest.raises(InputError, match=expected):
        list(train_batches(index, annotation="masks", **options(batch_size=1, workers=1)))


def test_an_image_without_mask_teaches_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40)).save(tmp_path / "image.png")
    bare = one_mask_index(tmp_path, "image.png", mask="")
    assert shown_mask(bare, 0, DataConfig()) is None
    ((batch,),) = train_batches(bare, annotation="masks", **options(batch_size=1, num_steps=1))
    assert batch.masks is not None and (batch.masks == IGNORE).all()


def test_predicted_boxes_are_never_turned(tmp_path: Path) -> None:
    """A model sees a photo as shown: its boxes stay, though human ones are declared to be `stored`."""
    write_turned(tmp_path / "upside_down.jpg", np.full((40, 40, 3), 200, np.uint8), 3)
    human = Index.build(
        roots=[tmp_path],
        paths=["upside_down.jpg"],
        class_names=["x"],
        sizes=[(40, 40)],
        offsets=[0, 1],
        xyxy=[(0, 0, 10, 20)],
        labels=[0],
    )
    predicted = human.with_boxes([0, 1], [(0, 0, 10, 20)], [0], class_names=["x"], scores=[0.5])
    data = DataConfig(boxes_in="stored")
    assert shown_boxes(human, 0, data).xyxy.tolist() == [[30, 20, 40, 40]]
    assert shown_boxes(predicted, 0, data).xyxy.tolist() == [[0, 0, 10, 20]]


def test_evaluation_goes_through_the_rows_in_order(index: Index) -> None:
    shared: dict[str, Any] = dict(canvas=CANVAS, data=DataConfig(), device_batch_size=3, tolerant=False)
    plain = list(evaluation_batches(index, workers=0, **shared))
    assert [batch.image_ids.tolist() for batch, _ in plain if batch] == [[0, 1, 2], [3, 4, 5], [6]]
    rows = np.array([6, 2, 5, 0])
    some = list(evaluation_batches(index, rows=rows, workers=2, **shared))
    assert [batch.image_ids.tolist() for batch, _ in some if batch] == [[6, 2, 5], [0]]
    first, last = some[0][0], plain[2][0]
    assert first is not None and last is not None and first.boxes is None
    assert torch.equal(first.images[0], last.images[0])
    height, width = first.sizes[0].tolist()
    scale = min(CANVAS[0] / height, CANVAS[1] / width)
    assert first.valid[0, 0].tolist() == [round(height * scale), round(width * scale)]
    assert list(evaluation_batches(index, rows=np.zeros(0, np.int64), workers=2, **shared)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images(tmp_path: Path, workers: int) -> None:
    index = make_index(tmp_path, 6)
    (tmp_path / "2.jpg").write_bytes(b"not an image")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:500])
    (tmp_path / "5.png").unlink()
    shared: dict[str, Any] = dict(canvas=CANVAS, data=DataConfig(), device_batch_size=2, workers=workers)
    seen = list(evaluation_batches(index, tolerant=True, **shared))
    assert [batch.image_ids.tolist() if batch else None for batch, _ in seen] == [[0, 1], None, [4]]
    skipped = [each for _, some in seen for each in some]
    assert [each.image_id for each in skipped] == [2, 3, 5]
    assert all(name in each.reason for name, each in zip(("2.jpg", "3.png", "5.png"), skipped, strict=True))
    with pytest.raises(InputError, match=r"^\S*2\.jpg: is not an image"):
        list(evaluation_batches(index, tolerant=False, **shared))
    with pytest.raises(InputError, match=r"^\S*[235]\.(jpg|png): "):
        list(train_batches(index, **options(workers=workers)))


class Deadly:
    """Samples that end their process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, key: int) -> Any:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGKILL, "most often for want of memory"), (signal.SIGBUS, "--shm-size")]
)
def test_a_worker_that_dies_is_explained(number: int, told: str) -> None:
    with pytest.raises(InputError, match=rf"a worker process died .*{told}.*runtime\.workers"):
        list(loaded(Deadly(number), [[0], [1]], collate, workers=1))


def test_a_worker_that_dies_is_told_of_by_its_own_stream(index: Index) -> None:
    """Not by a signal in the midst of whatever the program does, and neither stream leaves a process behind."""
    before = set(psutil.Process().children())
    doomed = train_batches(index, **options(num_steps=20, workers=1))
    next(doomed)
    (worker,) = set(psutil.Process().children()) - before
    worker.kill()
    assert len(list(train_batches(index, **options(num_steps=3, workers=1)))) == 3
    with pytest.raises(InputError, match=r"a worker process died .*runtime\.workers"):
        list(doomed)
    assert set(psutil.Process().children()) <= before


def test_a_worker_that_dies_while_it_sends() -> None:
    """More than its pipe takes at once: what is missing will never come, and the read would wait for it."""
    before = set(psutil.Process().children())
    stream = loaded(range(4), [[0], [1], [2]], lambda rows: (rows, bytes(1 << 20)), workers=1)
    next(stream)
    (worker,) = set(psutil.Process().children()) - before
    time.sleep(0.2)  # until it waits for the pipe to be read
    worker.kill()
    with pytest.raises(InputError, match="a worker process died"):
        list(stream)
    assert set(psutil.Process().children()) <= before


class Faulty:
    """Samples with an error of their own."""

    def __getitem__(self, key: int) -> Any:
        raise EOFError("of the sample")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_samples_are_no_deaths(workers: int) -> None:
    with pytest.raises(EOFError, match="of the sample"):
        list(loaded(Faulty(), [[0]], collate, workers=workers))


def refuse_after(count: int, function: Any, error: Exception) -> Any:
    """The function, which fails once it was called so often."""
    calls = iter(range(count))

    def limited(*given: Any) -> Any:
        if next(calls, None) is None:
            raise error
        return function(*given)

    return limited


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (os, "fork", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
        (Queue, "_start_thread", RuntimeError("can't start new thread")),
    ],
)
def test_workers_that_cannot_be_started(
    owner: Any, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(psutil.Process().children())
    monkeypatch.setattr(owner, name, refuse_after(1, getattr(owner, name), error))
    with pytest.raises(InputError, match=r"could not be started .*(Cannot allocate|new thread).*runtime\.workers"):
        next(loaded(range(8), [[row] for row in range(8)], list, workers=2))
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError()])
def test_a_worker_whose_socket_closes_before_it_has_ended(error: Exception) -> None:
    stream = loaded(range(4), [[0], [1], [2]], list, workers=1)
    next(stream)
    (worker,) = active_children()

    class Closing:
        """Torch's iterator, at the moment at which the worker is about to end."""

        _workers = (worker,)

        def __next__(self) -> Any:
            worker.kill()
            raise error

    with pytest.raises(InputError, match=r"a worker process died \(signal 9\)"):
        _next(Closing())
    stream.close()  # type: ignore[attr-defined]


ABANDONED = """
import pickle, sys
from tutelage.data.loader import train_batches
index, options = pickle.load(sys.stdin.buffer)
stream = train_batches(index, **options)
next(stream)
sys.exit(3)
"""


def test_a_program_ends_though_a_stream_is_open(index: Index) -> None:
    """Workers ignore SIGTERM, which multiprocessing would send them at the end, to wait for them forever."""
    told = pickle.dumps((index, options(workers=2, num_steps=1000)))
    ended = subprocess.run([sys.executable, "-c", ABANDONED], input=told, capture_output=True, timeout=60)
    assert ended.returncode == 3, ended.stderr.decode()


def test_classification(index: Index) -> None:
    pretrain = PretrainConfig(size=32)
    steps = list(classification_batches(index, pretrain=pretrain, **options(num_steps=3)))
    assert len(steps) == 3
    for (batch,) in steps:
        assert batch.images.shape == (4, 1, 3, 32, 32) and batch.boxes is None and batch.labels is not None
        assert batch.labels.tolist() == [row % 3 for row in batch.image_ids.tolist()]
    again = list(classification_batches(index, pretrain=pretrain, **options(num_steps=3, workers=2)))
    assert all(torch.equal(one.images, two.images) for (one,), (two,) in zip(steps, again, strict=True))
    rows = np.array([4, 0, 2])
    (whole,) = classification_evaluation_batches(
        index, pretrain=pretrain, data=DataConfig(), device_batch_size=8, rows=rows, workers=0
    )
    assert whole.labels is not None and whole.labels.tolist() == [1, 0, 2]


def test_samples_survive_a_spawned_worker(index: Index) -> None:
    """Where processes are spawned, samples travel by pickle; the memory stays behind and the bytes are the same."""
    draw = partial(streams._task_plan, STRONG, CANVAS)
    samples = TrainSamples(Pictures(index, DataConfig(), 64), [draw], partial(sample_rng, 0, 0, "labeled"), "boxes")
    travelled = pickle.loads(pickle.dumps(samples))
    for row in range(3):
        here, there = samples[(0, row)], travelled[(0, row)]
        assert isinstance(here, Sample) and isinstance(there, Sample)
        assert np.array_equal(here.images, there.images)
