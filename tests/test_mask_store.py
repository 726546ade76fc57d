"""The store of pseudo-masks: exact thresholds after the fact, whole or absent, small, and trained on."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.test_pseudo import contents, make_manifest
from tutelage.augment.apply import apply
from tutelage.augment.policies import evaluation_plan
from tutelage.config import AugmentConfig, DataConfig, PseudoConfig
from tutelage.data.images import decode
from tutelage.data.index import Index
from tutelage.data.loader import train_batches
from tutelage.data.masks import read_mask
from tutelage.data.pseudo import (
    Leak,
    PseudoStore,
    StoreWriter,
    open_store,
    require_kept,
    store_index,
    with_class_shares,
)
from tutelage.types import IGNORE, InputError, Prediction, Skipped

Outcome = Prediction | Skipped | Leak
Floats = NDArray[np.float64]
NAMES = ("road", "roof", "tree")
SIZE, STORED = (60, 80), (24, 32)  # of the images, and of their masks: a network that sees 32 pixels
COUNT, BROKEN, LEAKED = 10, 3, 6


@pytest.fixture
def pool(tmp_path: Path) -> Index:
    return make_pool(tmp_path)


def make_pool(folder: Path, count: int = COUNT) -> Index:
    paths = [f"pool/{row}.jpg" for row in range(count)]
    return Index.build(roots=[folder], paths=paths, class_names=NAMES, sizes=[SIZE] * count)


def probabilities(row: int, size: tuple[int, int] = STORED) -> Floats:
    """(K, h, w) smooth ones, of an image of its own."""
    rng = np.random.default_rng(row)
    coarse = rng.normal(0, 3, (4, 5, len(NAMES)))
    logits = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    likely = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.asarray(likely.transpose(2, 0, 1))


def predicted(row: int, likely: Floats) -> Prediction:
    mask = likely.argmax(0).astype(np.uint8)
    levels = np.floor(256 * likely.max(0)).clip(0, 255).astype(np.uint8)
    return Prediction(row, SIZE, mask=mask, levels=levels)


def make_outcomes(count: int = COUNT) -> list[Outcome]:
    outcomes: list[Outcome] = [predicted(row, probabilities(row)) for row in range(count)]
    outcomes[BROKEN] = Skipped(BROKEN, "3.jpg: broken image. Restore it.")
    outcomes[LEAKED] = Leak(LEAKED, "also in the test set")
    return outcomes


def make_store(folder: Path, pool: Index, outcomes: list[Outcome] | None = None) -> PseudoStore:
    writer = new_writer(folder, pool)
    write_parts(writer, outcomes or make_outcomes(len(pool)), pool, writer.missing_parts())
    writer.finish()
    return open_store(folder)


def new_writer(folder: Path, pool: Index) -> StoreWriter:
    manifest = make_manifest(pool, annotation="masks", class_names=NAMES, score_floor=0.0, part_size=4)
    return StoreWriter(folder, manifest)


def write_parts(writer: StoreWriter, outcomes: list[Outcome], pool: Index, parts: list[int]) -> None:
    for part in parts:
        writer.write_part(part, [outcomes[row] for row in writer.manifest.rows(part)], pool)


def read(index: Index, row: int) -> NDArray[np.uint8]:
    file = index.mask_file(row)
    assert file is not None
    return read_mask(file)


def column(*confidences: float) -> Prediction:
    """One pixel for each confidence, of class 1."""
    likely = np.zeros((len(NAMES), 1, len(confidences)))
    likely[1, 0] = confidences
    return predicted(0, likely)


def test_what_was_written_is_read(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    index = store_index(store, pool, PseudoConfig(score_threshold=0.5))
    used = [row for row in range(COUNT) if row not in (BROKEN, LEAKED)]
    assert [index.relative_path(row) for row in range(len(index))] == [f"pool/{row}.jpg" for row in used]
    assert index.annotation == "masks" and index.class_names == NAMES and index.size(0) == SIZE
    for place, row in enumerate(used):
        likely = probabilities(row)
        expected = np.where(likely.max(0) >= 0.5, likely.argmax(0), IGNORE)
        assert 0.05 < (expected == IGNORE).mean() < 0.95
        assert np.array_equal(read(index, place), expected)


def test_the_tables(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "store", pool)
    names = [f"part-{part:05d}.{table}.parquet" for part in range(3) for table in ("images", "levels", "masks")]
    assert sorted(contents(tmp_path / "store")) == ["manifest.json", *sorted(names)]
    images = pq.read_table(tmp_path / "store" / names[0]).to_pylist()
    assert [row["status"] for row in images] == ["ok", "ok", "ok", "skipped"]
    assert images[0]["scale"] == pytest.approx(STORED[0] / SIZE[0]) and images[0]["height"] == SIZE[0]
    pictures = pq.ParquetFile(tmp_path / "store" / names[2])
    assert pictures.num_row_groups == pictures.metadata.num_rows == 3, "one image can be read without the others"
    first = pictures.read_row_group(1).to_pylist()[0]
    classes = cv2.imdecode(np.frombuffer(first["classes"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert first["image_id"] == 1 and np.array_equal(classes, probabilities(1).argmax(0))


@pytest.mark.parametrize("threshold", [0.015625, 0.25, 0.5, 0.75, 0.890625, 0.984375])
def test_the_edge_is_exact_at_every_64th(tmp_path: Path, threshold: float) -> None:
    pool = make_pool(tmp_path, 1)
    below, above = np.nextafter(threshold, 0), np.nextafter(threshold, 1)
    confidences = (max(0, threshold - 0.01), below, threshold, above, threshold + 0.01)
    store = make_store(tmp_path / "store", pool, [column(*confidences)])
    seen = read(store_index(store, pool, PseudoConfig(score_threshold=threshold)), 0)[0]
    assert seen.tolist() == [1 if confidence >= threshold else IGNORE for confidence in confidences]


def test_a_half_ignores_049_and_keeps_051(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 1)
    store = make_store(tmp_path / "store", pool, [column(0.49, 0.51)])
    assert read(store_index(store, pool, PseudoConfig()), 0).tolist() == [[IGNORE, 1]]


@pytest.mark.parametrize(
    ("threshold", "kept_from"),
    [(0.49, 0.5), (0.51, 0.515625), (0.9, 0.90625), (0.95, 0.953125), (0.985, 2.0), (1.0, 2.0)],
)
def test_thresholds_between_64ths_are_rounded_up(tmp_path: Path, threshold: float, kept_from: float) -> None:
    pool = make_pool(tmp_path, 1)
    confidences = np.linspace(0, 1, 1001)
    store = make_store(tmp_path / "store", pool, [column(*confidences)])
    pseudo = PseudoConfig(score_threshold=threshold)
    seen = read(store_index(store, pool, pseudo), 0)[0]
    assert np.array_equal(seen == 1, confidences >= kept_from)
    assert store.counts(pseudo)["pixels_kept"] == (confidences >= kept_from).sum()


def test_another_threshold_and_one_a_class_need_no_labeling(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    before = contents(tmp_path / "store")
    limits = {"road": 0.375, "roof": 0.875, "tree": 0.625}
    strict = store_index(store, pool, PseudoConfig(score_threshold=0.75))
    by_class = store_index(store, pool, PseudoConfig(score_threshold=limits))
    likely = probabilities(0)
    classes, confidence = likely.argmax(0), likely.max(0)
    assert np.array_equal(read(strict, 0), np.where(confidence >= 0.75, classes, IGNORE))
    least = np.array(list(limits.values()))[classes]
    assert np.array_equal(read(by_class, 0), np.where(confidence >= least, classes, IGNORE))
    assert contents(tmp_path / "store") == before
    with pytest.raises(InputError, match="no threshold for roof, tree"):
        store_index(store, pool, PseudoConfig(score_threshold={"road": 0.5}))


@pytest.mark.parametrize("threshold", [0.375, 0.5, 0.9])
def test_counts_say_what_masks_hold(tmp_path: Path, pool: Index, threshold: float) -> None:
    outcomes = make_outcomes()
    outcomes[0] = predicted(0, np.full((3, *STORED), 1 / 3))  # sure of nothing
    pseudo = PseudoConfig(score_threshold=threshold)
    store = make_store(tmp_path / "store", pool, outcomes)
    index = store_index(store, pool, pseudo)
    kept = [int((read(index, row) != IGNORE).sum()) for row in range(len(index))]
    labeled = sum(pixels > 0 for pixels in kept)
    assert store.counts(pseudo) == {
        "images": 10, "labeled": labeled, "empty": 8 - labeled, "skipped": 1, "leaks": 1,
        "pixels": 8 * STORED[0] * STORED[1], "pixels_kept": sum(kept),
    }  # fmt: skip
    assert 0 < labeled < 8
    dropped = store_index(store, pool, pseudo.model_copy(update={"empty": "drop"}))
    assert len(dropped) == labeled and dropped.relative_path(0) != "pool/0.jpg"
    assert np.array_equal(read(dropped, 0), read(index, next(row for row, pixels in enumerate(kept) if pixels)))


def test_the_surest_share_of_each_class(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    pseudo = with_class_shares(PseudoConfig(score_threshold=0.4, class_share=0.3), store)
    assert isinstance(pseudo.score_threshold, dict)
    below = {name: limit - 1 / 64 for name, limit in pseudo.score_threshold.items()}
    whole, kept, more = (
        _pixels_by_class(store_index(store, pool, PseudoConfig(score_threshold=limits)))
        for limits in (0.4, pseudo.score_threshold, below)
    )
    assert (kept >= 0.3 * whole).all() and (kept < whole).all() and (more > kept).all()
    higher = {name: limit + 1 / 64 for name, limit in pseudo.score_threshold.items()}
    assert (_pixels_by_class(store_index(store, pool, PseudoConfig(score_threshold=higher))) < 0.3 * whole).all()


def _pixels_by_class(index: Index) -> NDArray[np.int64]:
    return sum(
        (np.bincount(read(index, row).ravel(), minlength=256)[:3] for row in range(len(index))), np.zeros(3, int)
    )


def test_masks_for_reports_and_exports(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    found = list(store.masks(np.array([9, 1, BROKEN, 2, LEAKED]), PseudoConfig(score_threshold=0.625)))
    assert [one.image_id for one in found] == [1, 2, 9]
    for one in found:
        likely = probabilities(one.image_id)
        assert (one.path, one.size) == (f"pool/{one.image_id}.jpg", SIZE)
        assert np.array_equal(one.mask, np.where(likely.max(0) >= 0.625, likely.argmax(0), IGNORE))
        assert np.array_equal(one.levels // 4, np.minimum(np.floor(64 * likely.max(0)), 63))
    assert len(list(store.masks(store.usable_rows(), PseudoConfig()))) == 8


def test_nothing_reaches_the_threshold(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2)
    unsure = [column(0.4, 0.42, 0.44, 0.46, 0.48, 0.35, 0.36, 0.37, 0.38, 0.39), Skipped(1, "broken")]
    store = make_store(tmp_path / "store", pool, unsure)
    before = contents(tmp_path / "store")
    with pytest.raises(InputError, match=r"none of 10 pixels reaches pseudo\.score_threshold=0\.5; .* is 0\.469") as at:
        require_kept(store, PseudoConfig())
    assert "Set pseudo.score_threshold=0.46 to keep a tenth of the pixels" in str(at.value)
    assert contents(tmp_path / "store") == before
    require_kept(store, PseudoConfig(score_threshold=0.46))
    assert store.counts(PseudoConfig(score_threshold=0.46))["pixels_kept"] == 1
    useless = make_store(tmp_path / "useless", pool, [Leak(0, "test"), Skipped(1, "broken")])
    with pytest.raises(InputError, match="none of the 2 pool images can be used: 1 could not be read, 1 are also in"):
        require_kept(useless, PseudoConfig())
    assert len(store_index(useless, pool, PseudoConfig())) == 0


def test_the_threshold_that_keeps_a_share_of_the_pixels(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    for share in (0.01, 0.1, 0.5, 0.9, 1.0):
        threshold = store.threshold_that_keeps(share)
        assert threshold is not None
        kept = store.counts(PseudoConfig(score_threshold=threshold))
        assert kept["pixels_kept"] >= share * kept["pixels"]
        fewer = store.counts(PseudoConfig(score_threshold=min(1.0, threshold + 1 / 64)))
        assert fewer["pixels_kept"] < share * kept["pixels"]


def test_the_same_bytes_from_any_number_of_processes(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "one", pool)
    for rank in (2, 0, 1):
        writer = new_writer(tmp_path / "three", pool)
        write_parts(writer, make_outcomes(), pool, [part for part in writer.missing_parts() if part % 3 == rank])
    writer.finish()
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


@pytest.mark.parametrize("failing", range(10))
def test_a_disk_that_fills_up_at_any_file(
    tmp_path: Path, pool: Index, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the ten files fails, the rest is made later and the store is the same."""
    count = 0
    replace = os.replace

    def spoiled(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count - 1 == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.files.os.replace", spoiled)
        with pytest.raises(InputError, match="the disk is full"):
            make_store(tmp_path / "store", pool)
    assert new_writer(tmp_path / "store", pool).missing_parts() == list(range(min(failing // 3, 3), 3))
    assert not list((tmp_path / "store").glob(".tmp-*"))
    make_store(tmp_path / "store", pool)
    make_store(tmp_path / "whole", pool)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-40])])
def test_a_part_that_is_lost_or_damaged_is_named(tmp_path: Path, pool: Index, spoil: Any) -> None:
    store = make_store(tmp_path / "store", pool)
    index = store_index(store, pool, PseudoConfig())
    spoil(tmp_path / "store" / "part-00001.masks.parquet")
    read(index, 0)
    with pytest.raises(InputError, match=r"part-00001\.masks\.parquet: .*missing or damaged"):
        read(index, 4)
    spoil(tmp_path / "store" / "part-00002.levels.parquet")
    with pytest.raises(InputError, match=r"part-00002\.levels\.parquet: missing or damaged"):
        store.counts(PseudoConfig())


def test_a_store_that_was_moved_is_read_where_it_is(tmp_path: Path, pool: Index) -> None:
    before = read(store_index(make_store(tmp_path / "store", pool), pool, PseudoConfig()), 5)
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert np.array_equal(read(store_index(open_store(tmp_path / "moved"), pool, PseudoConfig()), 5), before)


def test_the_manifest_says_that_it_holds_masks(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "store", pool)
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["annotation"] == "masks"
    boxes = StoreWriter(tmp_path / "store", make_manifest(pool, class_names=NAMES, score_floor=0.0, part_size=4))
    with pytest.raises(InputError, match="belongs to pseudo-labels of another"):
        boxes.missing_parts()


def train_options(**changed: Any) -> dict[str, Any]:
    plain = AugmentConfig(level="none", jitter=(1.0, 1.0), flip=0.0)
    run = dict(stream="second", seed=0, round=1, batch_size=2, first_step=0, num_steps=4, rank=0, world_size=1)
    loading = dict(micro_batches=1, workers=0, cache_megabytes=0, pin=False)
    return {"canvas": (48, 64), "augment": plain, "data": DataConfig(), "annotation": "masks"} | run | loading | changed


def write_images(folder: Path, count: int = COUNT) -> None:
    (folder / "pool").mkdir()
    for row in range(count):
        coarse = np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, SIZE[::-1])).save(folder / "pool" / f"{row}.jpg", quality=95)


def test_a_student_trains_on_masks_of_network_size(tmp_path: Path, pool: Index) -> None:
    """A stored pixel is 2 x 2 of the canvas here, so that the target is the stored mask enlarged, exactly."""
    write_images(tmp_path)
    index = store_index(make_store(tmp_path / "store", pool), pool, PseudoConfig())
    for (batch,) in train_batches(index, **train_options()):
        assert batch.masks is not None and batch.boxes is None
        for place, row in enumerate(batch.image_ids.tolist()):
            enlarged = read(index, row).repeat(2, axis=0).repeat(2, axis=1)
            assert np.array_equal(batch.masks[place].numpy(), enlarged)
            plan = evaluation_plan(SIZE, (48, 64))
            alone = apply(plan, decode(index.path(row), DataConfig()).pixels, SIZE).pixels
            assert np.array_equal(batch.images[place, 0].permute(1, 2, 0).numpy(), alone)


@pytest.mark.parametrize("changed", [{"workers": 2}, {"cache_megabytes": 8}, {"workers": 1, "cache_megabytes": 8}])
def test_pseudo_masks_do_not_depend_on_how_they_are_loaded(
    tmp_path: Path, pool: Index, changed: dict[str, int]
) -> None:
    write_images(tmp_path)
    index = store_index(make_store(tmp_path / "store", pool), pool, PseudoConfig())
    strong = AugmentConfig(level="s4", pixel_scale=0.2)
    streams = [train_batches(index, **train_options(augment=strong, **more)) for more in ({}, changed)]
    for (one,), (two,) in zip(*streams, strict=True):
        assert one.masks is not None and two.masks is not None
        assert one.masks.equal(two.masks) and one.images.equal(two.images)


def test_pseudo_masks_larger_than_their_images_are_kept_in_memory(
    tmp_path: Path, pool: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that enlarges small images stores masks of its own size."""
    write_images(tmp_path)
    large: list[Outcome] = [predicted(row, probabilities(row, (96, 128))) for row in range(COUNT)]
    index = store_index(make_store(tmp_path / "store", pool, large), pool, PseudoConfig())
    asked: list[str] = []
    monkeypatch.setattr(
        "tutelage.data.loader.pictures.read_mask", lambda file: (asked.append(file.path), read_mask(file))[1]
    )
    options = train_options(canvas=(96, 128), batch_size=COUNT, num_steps=3)
    kept, read_anew = (list(train_batches(index, **options | {"cache_megabytes": size})) for size in (8, 0))
    assert len(asked) == COUNT + 3 * COUNT
    for (one,), (two,) in zip(kept, read_anew, strict=True):
        assert one.masks is not None and two.masks is not None and one.masks.equal(two.masks)
