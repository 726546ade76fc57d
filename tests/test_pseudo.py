"""The pseudo-label store: written once by any number of processes, whole or absent, thresholds applied when read."""

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tutelage.config import AugmentConfig, DataConfig, PseudoConfig
from tutelage.data.index import Index
from tutelage.data.loader import train_batches
from tutelage.data.pseudo import (
    Leak,
    Manifest,
    PseudoStore,
    StoreWriter,
    open_store,
    require_kept,
    store_index,
    with_class_shares,
)
from tutelage.files import TEMPORARY, remove_stale
from tutelage.types import IGNORE_BOX, NOT_IGNORED, Boxes, InputError, Prediction, Skipped

Outcome = Prediction | Skipped | Leak
NAMES = ("cat", "dog")


def make_pool(folder: Path, count: int = 20, name: str = "pool") -> Index:
    """A pool whose images carry hidden human labels: one box of class 1 each."""
    return Index.build(
        roots=[folder],
        paths=[f"{name}/{row}.png" for row in range(count)],
        class_names=NAMES,
        sizes=[(100 + row, 200) for row in range(count)],
        offsets=np.arange(count + 1),
        xyxy=np.tile([1.0, 2.0, 3.0, 4.0], (count, 1)),
        labels=np.ones(count),
    )


def make_manifest(listing: Index, **changed: Any) -> Manifest:
    return replace(
        Manifest(
            teacher="ab" * 32,
            round=1,
            class_names=NAMES,
            score_floor=0.05,
            label={"views": ["identity"], "scales": [1.0]},
            pool=listing.fingerprint,
            held_out=(),
            key="cd" * 32,
            num_images=len(listing),
            part_size=8,
        ),
        **changed,
    )


def predict(row: int, scores: list[float], labels: list[int] | None = None) -> Prediction:
    corner = np.arange(len(scores), dtype=np.float32)[:, None] + row
    xyxy = np.hstack([corner, corner, corner + 10.25, corner + 20.5])
    boxes = Boxes.build(xyxy, labels or [0] * len(scores), scores)
    return Prediction(row, (100 + row, 200), boxes)


def make_outcomes(count: int = 20) -> list[Outcome]:
    """Image i has scores from 0.1 to 0.9; image 3 is broken, 5 leaks, 4 and 12 hold nothing."""
    outcomes: list[Outcome] = []
    for row in range(count):
        if row == 3:
            outcomes.append(Skipped(row, "3.png: broken image. Restore it."))
        elif row == 5:
            outcomes.append(Leak(row, "also in the test set"))
        else:
            scores = [] if row in (4, 12) else [0.1 + 0.8 * row / (count - 1), 0.3]
            outcomes.append(predict(row, scores, [row % 2, 1][: len(scores)]))
    return outcomes


def write_parts(writer: StoreWriter, outcomes: list[Outcome], pool: Index, parts: list[int] | None = None) -> None:
    for part in writer.missing_parts() if parts is None else parts:
        rows = writer.manifest.rows(part)
        writer.write_part(part, [outcomes[row] for row in rows], pool)


def make_store(folder: Path, pool: Index, outcomes: list[Outcome] | None = None, **changed: Any) -> PseudoStore:
    writer = StoreWriter(folder, make_manifest(pool, **changed))
    write_parts(writer, outcomes or make_outcomes(len(pool)), pool)
    writer.finish()
    return open_store(folder)


@pytest.fixture
def pool(tmp_path: Path) -> Index:
    return make_pool(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_written_is_read(tmp_path: Path, pool: Index) -> None:
    outcomes = make_outcomes()
    store = make_store(tmp_path / "store", pool, outcomes)
    index = store_index(store, pool, PseudoConfig(score_threshold=0.0))
    found = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
    assert len(index) == len(found) == 18 and index.class_names == NAMES
    for row, prediction in enumerate(found):
        boxes = index.boxes(row)
        assert prediction.boxes is not None
        assert index.path(row) == pool.path(prediction.image_id)
        assert index.size(row) == prediction.size
        for name in ("xyxy", "labels", "scores", "ignore"):
            assert np.array_equal(getattr(boxes, name), getattr(prediction.boxes, name)), name


def test_the_tables_record_every_image(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "store", pool)
    names = ["manifest.json"]
    names += [f"part-{part:05d}.{table}.parquet" for part in range(3) for table in ("boxes", "images")]
    assert sorted(contents(tmp_path / "store")) == sorted(names)
    images = pq.read_table(tmp_path / "store" / "part-00000.images.parquet").to_pylist()
    assert [row["image_id"] for row in images] == list(range(8))
    assert images[3]["status"] == "skipped" and "broken" in images[3]["reason"]
    assert images[5]["status"] == "leak" and images[5]["path"] == "pool/5.png"
    assert images[4] | {"scale": 1.0} == {
        "image_id": 4, "path": "pool/4.png", "height": 104, "width": 200, "scale": 1.0, "status": "ok", "reason": "",
    }  # fmt: skip
    boxes = pq.read_table(tmp_path / "store" / "part-00000.boxes.parquet")
    assert boxes.column_names == ["image_id", "x1", "y1", "x2", "y2", "label", "score", "verdict"]
    assert set(boxes["image_id"].to_pylist()) == {0, 1, 2, 6, 7}


def test_counts(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    # rows 10, 11, 13 .. 19 have a first score of 0.1 + 0.8 i / 19 >= 0.5
    assert store.counts(PseudoConfig(score_threshold=0.5)) == {
        "images": 20, "labeled": 9, "empty": 9, "skipped": 1, "leaks": 1, "boxes": 32, "boxes_kept": 9,
    }  # fmt: skip
    assert store.skipped(50) == [("pool/3.png", "3.png: broken image. Restore it.")]
    assert store.skipped(0) == []
    assert store.amounts()[1].sum() == 32


def test_the_same_bytes_from_any_number_of_processes_in_any_order(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "one", pool)
    writers = [StoreWriter(tmp_path / "two", make_manifest(pool)) for _ in range(2)]
    for rank in (1, 0):
        mine = [part for part in writers[rank].missing_parts() if part % 2 == rank]
        for part in reversed(mine):
            rows = writers[rank].manifest.rows(part)
            writers[rank].write_part(part, [make_outcomes()[row] for row in reversed(rows)], pool)
    writers[0].finish()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_labeling_continues(tmp_path: Path, pool: Index) -> None:
    writer = StoreWriter(tmp_path / "store", make_manifest(pool))
    assert writer.missing_parts() == [0, 1, 2]
    write_parts(writer, make_outcomes(), pool, parts=[1])
    # killed between the two tables of part 2, and while writing one of part 0
    write_parts(writer, make_outcomes(), pool, parts=[2])
    (tmp_path / "store" / "part-00002.images.parquet").unlink()
    (tmp_path / "store" / ".tmp-0123456789ab-part-00000.boxes.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(InputError, match="no finished pseudo-label store"):
        open_store(tmp_path / "store")
    kept = (tmp_path / "store" / "part-00001.images.parquet").stat().st_mtime_ns
    again = StoreWriter(tmp_path / "store", make_manifest(pool))
    assert again.missing_parts() == [0, 2]
    with pytest.raises(AssertionError):
        again.finish()
    write_parts(again, make_outcomes(), pool)
    again.finish()
    assert (tmp_path / "store" / "part-00001.images.parquet").stat().st_mtime_ns == kept
    make_store(tmp_path / "whole", pool)
    remove_stale((tmp_path / "store").glob(TEMPORARY))  # as a stage does before it begins
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"teacher": "cd" * 32}, {"pool": "other"}, {"part_size": 4}, {"round": 2}])
def test_parts_of_another_labeling_are_refused(tmp_path: Path, pool: Index, changed: dict[str, Any]) -> None:
    write_parts(StoreWriter(tmp_path / "store", make_manifest(pool)), make_outcomes(), pool, parts=[0])
    with pytest.raises(InputError, match=r"part-00000.images.parquet: belongs to pseudo-labels of another"):
        StoreWriter(tmp_path / "store", make_manifest(pool, **changed)).missing_parts()


def test_a_part_takes_one_outcome_an_image(tmp_path: Path, pool: Index) -> None:
    writer = StoreWriter(tmp_path / "store", make_manifest(pool))
    with pytest.raises(AssertionError, match="one outcome an image"):
        writer.write_part(0, make_outcomes()[:7], pool)
    assert writer.missing_parts() == [0, 1, 2]


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file may grow beyond `free` bytes: a write stops in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_that_could_be_taken_for_whole(tmp_path: Path, pool: Index) -> None:
    rng = np.random.default_rng(0)
    outcomes: list[Outcome] = [predict(row, rng.uniform(0.05, 1, 20_000).tolist()) for row in range(20)]
    writer = StoreWriter(tmp_path / "store", make_manifest(pool))
    with full_disk(200_000), pytest.raises(InputError, match="run the same command"):
        writer.write_part(0, outcomes[:8], pool)
    assert list((tmp_path / "store").iterdir()) == []
    assert writer.missing_parts() == [0, 1, 2]


@pytest.mark.parametrize("failing", [0, 1, 2, 3, 4, 5, 6])
def test_a_disk_that_fills_up_at_any_file(
    tmp_path: Path, pool: Index, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the seven files fails, the rest is made later and the store is the same."""
    written: list[str] = []

    def spoil(write: Any) -> Any:
        def spoiled(path: Path, content: Any, *args: Any, **kwargs: Any) -> int:
            written.append(path.name)
            if len(written) - 1 == failing:
                write(path, content[: len(content) // 2], *args, **kwargs)
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return int(write(path, content, *args, **kwargs))

        return spoiled

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", spoil(Path.write_bytes))
        patch.setattr(Path, "write_text", spoil(Path.write_text))
        with pytest.raises(InputError, match="the disk is full"):
            make_store(tmp_path / "store", pool)
    assert not list((tmp_path / "store").glob(".tmp-*")) and not (tmp_path / "store" / "manifest.json").exists()
    make_store(tmp_path / "store", pool)
    make_store(tmp_path / "whole", pool)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_score_of_exactly_the_threshold_is_kept(tmp_path: Path, threshold: float) -> None:
    pool = make_pool(tmp_path, 3)
    below, above = (float(np.nextafter(np.float32(threshold), np.float32(side))) for side in (0, 1))
    outcomes: list[Outcome] = [predict(0, [below]), predict(1, [threshold]), predict(2, [above])]
    store = make_store(tmp_path / "store", pool, outcomes)
    pseudo = PseudoConfig(score_threshold=threshold)
    assert store.counts(pseudo)["boxes_kept"] == 2
    index = store_index(store, pool, pseudo)
    assert [len(index.boxes(row)) for row in range(3)] == [0, 1, 1]


def test_thresholds_by_class(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 1)
    store = make_store(tmp_path / "store", pool, [predict(0, [0.6, 0.6, 0.9, 0.2], [0, 1, 1, 0])])
    index = store_index(store, pool, PseudoConfig(score_threshold={"cat": 0.5, "dog": 0.8}))
    boxes = index.boxes(0)
    assert boxes.labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes.scores, [0.6, 0.9], atol=1e-6)
    with pytest.raises(InputError, match=r"unknown class 'dgo'; the classes are cat, dog\. Did you mean 'dog'"):
        store.counts(PseudoConfig(score_threshold={"cat": 0.5, "dgo": 0.5}))
    with pytest.raises(InputError, match="no threshold for dog"):
        store_index(store, pool, PseudoConfig(score_threshold={"cat": 0.5}))


def test_the_surest_share_of_each_class(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2)
    outcomes: list[Outcome] = [predict(0, [0.9, 0.8, 0.45, 0.3], [0, 0, 1, 1]), predict(1, [0.7, 0.6, 0.2], [0, 0, 0])]
    store = make_store(tmp_path / "store", pool, outcomes)
    half = with_class_shares(PseudoConfig(score_threshold=0.5, class_share=0.5), store)
    assert half.score_threshold == {"cat": 0.8, "dog": 0.5}  # of 4 cats at or above 0.5 two; of dogs there are none
    assert half.class_share == 1
    lower = with_class_shares(PseudoConfig(score_threshold={"cat": 0.65, "dog": 0.1}, class_share=0.51), store)
    assert lower.score_threshold == {"cat": 0.8, "dog": 0.3}  # half is not enough: two of three, and both of two
    whole = PseudoConfig(score_threshold=0.5)
    assert with_class_shares(whole, store) is whole
    with pytest.raises(InputError, match="no threshold for dog"):
        with_class_shares(PseudoConfig(score_threshold={"cat": 0.5}, class_share=0.5), store)


def test_shares_of_many_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool, scores = make_pool(tmp_path, 50), rng.uniform(0.05, 1, (50, 40)).round(4)
    labels = (rng.random((50, 40)) < 0.1).astype(int)
    store = make_store(tmp_path / "store", pool, [predict(row, [*scores[row]], [*labels[row]]) for row in range(50)])
    for share in (0.1, 0.37, 0.9):
        limits = with_class_shares(PseudoConfig(score_threshold=0.4, class_share=share), store).score_threshold
        assert isinstance(limits, dict)
        for label, name in enumerate(NAMES):
            reached = scores[(labels == label) & (scores >= 0.4)]
            kept = (reached >= limits[name]).sum()
            most = (reached >= limits[name] + 0.001).sum()  # rounded down to thousandths, no more is kept than that
            assert kept >= share * len(reached) > most


@pytest.mark.parametrize(
    ("empty", "unsure", "rows", "shown"),
    [
        ("background", "negative", [0, 1, 2], [[0.9], [], []]),
        ("drop", "negative", [0], [[0.9]]),
        ("background", "ignore", [0, 1, 2], [[0.9, 0.3], [0.4], []]),
        ("drop", "ignore", [0], [[0.9, 0.3]]),
    ],
)
def test_empty_images_and_unsure_boxes(
    tmp_path: Path, empty: Any, unsure: Any, rows: list[int], shown: list[list[float]]
) -> None:
    pool = make_pool(tmp_path, 3)
    store = make_store(tmp_path / "store", pool, [predict(0, [0.9, 0.3]), predict(1, [0.4]), predict(2, [])])
    index = store_index(store, pool, PseudoConfig(empty=empty, unsure=unsure))
    assert [index.path(row) for row in range(len(index))] == [pool.path(row) for row in rows]
    for row, scores in enumerate(shown):
        boxes = index.boxes(row)
        np.testing.assert_allclose(boxes.scores, scores, atol=1e-6)
        assert boxes.ignore.tolist() == [NOT_IGNORED if score >= 0.5 else IGNORE_BOX for score in scores]


def test_hidden_human_labels_never_show(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    index = store_index(store, pool, PseudoConfig(score_threshold=0.0))
    hidden = pool.boxes(0).xyxy[0]
    columns = index.box_columns()
    assert len(columns) == 32 and not (columns.xyxy == hidden).all(1).any()
    assert (columns.scores < 1).all()


def test_a_changed_pool_is_refused(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    for other in (make_pool(tmp_path, 21), make_pool(tmp_path, 20, "pools"), pool.select(np.arange(20)[::-1])):
        with pytest.raises(InputError, match="was made of another pool"):
            store_index(store, other, PseudoConfig())
    assert len(store_index(store, make_pool(tmp_path), PseudoConfig())) == 18


def test_a_share_of_boxes_and_the_threshold_that_keeps_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 1)
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9]
    store = make_store(tmp_path / "store", pool, [predict(0, scores)])
    for share, expected in [(0.0, 0.9), (0.1, 0.9), (0.11, 0.85), (0.3, 0.8), (1.0, 0.1)]:
        threshold = store.threshold_that_keeps(share)
        assert threshold is not None and threshold == pytest.approx(expected, abs=1e-6)
        kept = store.counts(PseudoConfig(score_threshold=threshold))["boxes_kept"]
        assert kept >= share * len(scores)
    nothing = make_store(tmp_path / "nothing", pool, [predict(0, [])])
    assert nothing.threshold_that_keeps(0.5) is None


def test_nothing_above_the_threshold(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2)
    store = make_store(tmp_path / "store", pool, [predict(0, [0.123, 0.347]), predict(1, [0.2])])
    with pytest.raises(InputError) as caught:
        require_kept(store, PseudoConfig(score_threshold=0.5))
    assert "pseudo.score_threshold=0.34 " in str(caught.value) and "are kept" in str(caught.value)
    require_kept(store, PseudoConfig(score_threshold=0.34))
    nothing = make_store(tmp_path / "nothing", pool, [predict(0, []), Skipped(1, "broken")])
    with pytest.raises(InputError, match=r"found nothing above the floor 0\.05 in 2 images"):
        require_kept(nothing, PseudoConfig())


def test_a_lost_part_is_noticed(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    (tmp_path / "store" / "part-00001.boxes.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00001\.boxes\.parquet: missing or damaged"):
        store.counts(PseudoConfig())


def test_the_manifest_tells_what_the_store_was_made_of(tmp_path: Path, pool: Index) -> None:
    store = make_store(tmp_path / "store", pool)
    plain = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert plain["class_names"] == ["cat", "dog"] and plain["num_images"] == 20 and plain["pool"] == pool.fingerprint
    assert store.manifest == make_manifest(pool)
    other = make_store(tmp_path / "other", pool, [predict(row, [0.5]) for row in range(20)])
    assert other.content != store.content


def test_a_student_trains_on_the_store(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2)
    (tmp_path / "pool").mkdir()
    for row in range(2):
        Image.new("RGB", (200, 100 + row), (200, 100, 0)).save(tmp_path / "pool" / f"{row}.png")
    store = make_store(tmp_path / "store", pool, [predict(0, [0.9, 0.2]), predict(1, [0.4])])
    index = store_index(store, pool, PseudoConfig(unsure="ignore"))
    ((batch,),) = train_batches(
        index,
        canvas=(128, 256),
        augment=AugmentConfig(level="none", jitter=(1.0, 1.0), flip=0.0),
        data=DataConfig(),
        stream="second",
        seed=0,
        round=1,
        batch_size=2,
        first_step=0,
        num_steps=1,
        rank=0,
        world_size=1,
        micro_batches=1,
        workers=0,
        cache_megabytes=0,
        pin=False,
    )
    assert batch.boxes is not None
    place = {int(row): number for number, row in enumerate(batch.image_ids)}
    first, second = place[0], place[1]
    np.testing.assert_allclose(batch.boxes.scores[first][batch.boxes.valid[first]], [0.9, 0.2], atol=1e-6)
    assert batch.boxes.ignore[first][batch.boxes.valid[first]].tolist() == [NOT_IGNORED, IGNORE_BOX]
    assert batch.boxes.ignore[second][batch.boxes.valid[second]].tolist() == [IGNORE_BOX]
    np.testing.assert_allclose(batch.boxes.xyxy[first, 0], np.array([0, 0, 10.25, 20.5]) * 1.28, atol=1e-2)


def test_a_store_of_another_version_is_named(tmp_path: Path, pool: Index) -> None:
    make_store(tmp_path / "store", pool)
    manifest = tmp_path / "store" / "manifest.json"
    plain = json.loads(manifest.read_text())
    del plain["held_out"]
    manifest.write_text(json.dumps(plain))
    with pytest.raises(InputError, match="another version"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("sides", [(1 << 20, 1 << 20), (-5, 8)])
def test_a_store_with_impossible_pictures_is_damaged(tmp_path: Path, pool: Index, sides: tuple[int, int]) -> None:
    make_store(tmp_path, pool)
    place = tmp_path / "part-00000.images.parquet"
    table = pq.read_table(place)
    for name, side in zip(("height", "width"), sides, strict=True):
        column = pa.array([side] * len(table), pa.int32())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, place)
    with pytest.raises(InputError, match=r"part-00000.images.parquet"):
        list(open_store(tmp_path).parts())
