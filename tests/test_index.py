"""The index: columns in, views out, fingerprints, cache, memory."""

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from tutelage.config import DataConfig
from tutelage.data.index import Index, cache_folder
from tutelage.data.joining import join
from tutelage.data.readers import open_index
from tutelage.files import atomic_folder
from tutelage.types import IGNORE_REGION, InputError


def make_index(root: str = "/data", names: tuple[str, ...] = ("cat", "dog"), shift: float = 0) -> Index:
    """Three images with 2, 0 and 1 boxes."""
    return Index.build(
        roots=[Path(root)],
        paths=["a.jpg", "sub/b c%20.png", "d.JPG"],
        class_names=names,
        sizes=[(10, 20), (0, 0), (30, 40)],
        offsets=[0, 2, 2, 3],
        xyxy=[[0, 1, 4, 5], [2, 2, 3, 3.5], [shift, 0, 8 + shift, 9]],
        labels=[1, 0, 1],
        area=[7, 1.5, 72],
        ignore=[0, 0, IGNORE_REGION],
        description="made by hand; images in .",
    )


def test_rows_are_what_was_built() -> None:
    index = make_index()
    assert len(index) == 3 and index.num_boxes == 3
    assert index.path(1) == Path("/data/sub/b c%20.png") and index.relative_path(1) == "sub/b c%20.png"
    assert index.size(0) == (10, 20) and index.size(1) == (0, 0)
    boxes = index.boxes(0)
    assert boxes.xyxy.tolist() == [[0, 1, 4, 5], [2, 2, 3, 3.5]] and boxes.xyxy.dtype == np.float32
    assert boxes.labels.tolist() == [1, 0] and boxes.area.tolist() == [7, 1.5] and boxes.scores.tolist() == [1, 1]
    assert len(index.boxes(1)) == 0 and index.boxes(2).ignore.tolist() == [IGNORE_REGION]
    assert index.description == "made by hand: 3 images, 3 boxes, 2 classes; images in ."


def test_columns_stay_float64() -> None:
    value = 0.1 + 1e-12
    index = Index.build(
        roots=[Path("/")], paths=["a"], class_names=["x"], offsets=[0, 1], xyxy=[[0, 0, value, 1]], labels=[0]
    )
    assert index.box_columns().xyxy[0, 2] == value
    assert index.box_columns().area[0] == value


def test_a_selection_is_a_view_in_the_given_order() -> None:
    view = make_index().select(np.array([2, 0]))
    assert [view.relative_path(row) for row in range(2)] == ["d.JPG", "a.jpg"]
    columns = view.box_columns()
    assert columns.images.tolist() == [0, 1, 1] and columns.labels.tolist() == [1, 1, 0]
    assert columns.xyxy[1].tolist() == [0, 1, 4, 5]
    offsets, labels = view.labels_per_image()
    assert offsets.tolist() == [0, 1, 3] and labels.tolist() == [1, 1, 0]
    assert view.select(np.array([False, True])).relative_path(0) == "a.jpg"
    assert view.box_columns(np.array([1])).images.tolist() == [1, 1]


def test_classes_are_matched_by_name_and_others_left_out() -> None:
    view = make_index().with_classes(["bird", "dog"])
    assert view.class_names == ("bird", "dog") and view.num_boxes == 2
    assert view.boxes(0).labels.tolist() == [1] and view.boxes(0).xyxy.tolist() == [[0, 1, 4, 5]]
    assert view.box_columns().labels.tolist() == [1, 1]


def test_join_is_by_class_name() -> None:
    joined = join([make_index("/one"), make_index("/two", ("dog", "eel")).select(np.array([0, 2]))])
    assert joined.class_names == ("cat", "dog", "eel") and len(joined) == 5
    assert joined.boxes(0).labels.tolist() == [1, 0]
    assert joined.boxes(3).labels.tolist() == [2, 1]
    assert joined.path(0) == Path("/one/a.jpg") and joined.path(4) == Path("/two/d.JPG")
    assert joined.size(4) == (30, 40) and joined.boxes(4).ignore.tolist() == [IGNORE_REGION]


def test_with_boxes_keeps_the_images() -> None:
    index = make_index().select(np.array([2, 1]))
    other = index.with_boxes([0, 0, 1], [[1, 2, 3, 4]], [0], class_names=["thing"], scores=[0.25])
    assert other.path(0) == index.path(0) and len(other.boxes(0)) == 0
    assert other.boxes(1).scores.tolist() == [0.25] and other.class_names == ("thing",)
    assert other.size(0) == (30, 40)


def test_fingerprint_is_of_content_not_of_place() -> None:
    index = make_index("/one")
    assert index.fingerprint == make_index("/two").fingerprint
    assert index.fingerprint != make_index(shift=1).fingerprint
    assert index.fingerprint != make_index(names=("cat", "cow")).fingerprint


def test_fingerprint_of_a_selection_covers_the_selected_rows_only() -> None:
    rows = np.array([0, 1])
    assert make_index().select(rows).fingerprint == make_index(shift=1).select(rows).fingerprint
    assert make_index().select(rows).fingerprint != make_index().select(np.array([0, 2])).fingerprint
    assert make_index().select(np.arange(3)).fingerprint == make_index().fingerprint


def test_fingerprint_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_index().select(np.arange(3)).fingerprint
    monkeypatch.setattr("tutelage.data.fingerprint.CHUNK", 2)
    assert make_index().select(np.arange(3)).fingerprint == whole


def test_it_pickles_as_paths() -> None:
    index = make_index().select(np.array([2]))
    assert len(index.boxes(0)) == 1  # maps the files
    raw = pickle.dumps(index)
    assert len(raw) < 1500
    assert pickle.loads(raw).boxes(0).xyxy.tolist() == [[0, 0, 8, 9]]


def test_names_that_are_no_valid_unicode_survive(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "ä ?.png").write_bytes(PNG)
    index = open_index(tmp_path / "pool", DataConfig(), unlabeled=True)
    assert index.path(0).read_bytes() == PNG


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8cf500f0003860180b2b8d4b10000000049454e44ae426082"
)


def test_the_cache_is_used_and_follows_the_source(tmp_path: Path) -> None:
    source = tmp_path / "train.json"
    source.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}')
    first = open_index(source, DataConfig(), annotations_only=True)
    files = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.arrow")}
    assert open_index(source, DataConfig(), annotations_only=True).folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.arrow")} == files
    source.write_text(source.read_text().replace("a.jpg", "b.jpg"))
    os.utime(source, (0, 0))
    assert open_index(source, DataConfig(), annotations_only=True).relative_path(0) == "b.jpg"
    assert first.relative_path(0) == "a.jpg", "what is open stays as it is"
    shutil.rmtree(first.folder)
    os.utime(source, (1, 1))
    assert open_index(source, DataConfig(), annotations_only=True).relative_path(0) == "b.jpg"


def test_processes_that_build_the_same_index_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = tmp_path / "train.json"
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(500)]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    together = multiprocessing.get_context("fork").Barrier(4)
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork"), _wait_at, (together,)) as pool:
        opened = list(pool.map(_open_with_the_others, [source] * 4))
    assert {index.folder for index in opened} == {open_index(source, DataConfig(), annotations_only=True).folder}
    assert all(index.relative_path(499) == "499.jpg" for index in opened)
    assert not list(cache_folder().glob(".tmp-*"))


_barrier: list[Barrier] = []


def _wait_at(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _open_with_the_others(source: Path) -> Index:
    _barrier[0].wait(20)
    index = open_index(source, DataConfig(), annotations_only=True)
    assert len(index.fingerprint) == 64 and index.num_boxes == 0
    return index


def test_who_comes_second_keeps_the_first_ones_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "kept") as second:
        (second / "file").write_text("second")
        with atomic_folder(tmp_path / "kept") as first:
            (first / "file").write_text("first")
    assert (tmp_path / "kept" / "file").read_text() == "first"
    with pytest.raises(KeyError), atomic_folder(tmp_path / "broken"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="TUTELAGE_CACHE"):
        cache_folder()


def test_a_damaged_cache_says_what_to_delete() -> None:
    index = make_index()
    (index.folder / "boxes.arrow").write_bytes(b"nothing")
    with pytest.raises(InputError, match="Delete"):
        Index(index.folder).boxes(0)


def test_private_memory_of_a_shuffled_pass_is_small() -> None:
    # In a process of its own: workers forked from the test runner would copy the runner's pages as they touch them.
    program = "from benchmarks.bench_index import memory; print(memory(1_000), memory(100_000))"
    root = Path(__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    fixed, grown = map(float, answer.stdout.split())  # `fixed`: what five processes load whatever the size
    assert grown - fixed < 300 * 100_000 / 1_700_000 + 15  # MiB; lists cost 60
