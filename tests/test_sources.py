"""Sources joined and split: what a run works on, and what is said about it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.config import DataConfig, SourcesConfig
from tutelage.data.index import Index
from tutelage.data.listed import listed_rows, rows_at
from tutelage.data.sources import DataSets, open_sources
from tutelage.data.splits import draw_split, group_ids, merge_groups, stratified_order
from tutelage.types import InputError


def coco(path: Path, boxes: dict[str, list[str]], names: list[str] | None = None) -> Path:
    """A COCO json: the classes of the boxes by image name."""
    names = names if names is not None else sorted({name for held in boxes.values() for name in held})
    raw = {
        "images": [{"id": i, "file_name": name, "height": 10, "width": 10} for i, name in enumerate(boxes)],
        "annotations": [
            {"id": 100 * i + j, "image_id": i, "category_id": names.index(name), "bbox": [1, 1, 5, 5]}
            for i, held in enumerate(boxes.values())
            for j, name in enumerate(held)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw))
    return path


def many(count: int, prefix: str = "") -> dict[str, list[str]]:
    """Images of a common, a less common and a rare class; every tenth has no box."""
    return {
        f"{prefix}{i:04d}.jpg": []
        if i % 10 == 9
        else ["cat"] * (1 + i % 3) + ["dog"] * (i % 4 == 0) + ["eel"] * (i % 25 == 0)
        for i in range(count)
    }


def opened(*labeled: Path, data: dict[str, Any] | None = None, seed: int = 0, **sources: Any) -> DataSets:
    return open_sources(
        SourcesConfig(
            labeled=tuple(map(str, labeled)),
            **{key: value if isinstance(value, str) else tuple(map(str, value)) for key, value in sources.items()},
        ),
        DataConfig(**(data or {})),
        seed=seed,
        annotations_only=True,
    )


def names(index: Index | None) -> set[str]:
    return set() if index is None else {index.relative_path(row) for row in range(len(index))}


def classes(index: Index | None) -> set[str]:
    assert index is not None
    return {index.class_names[label] for label in index.box_columns().labels}


# splits ---------------------------------------------------------------------------------------------------------------


def test_test_is_a_stratified_fifth_that_follows_the_seed(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", many(200))
    sets = opened(path)
    assert sets.test is not None and len(sets.test) == 40 and len(sets.labeled) == 160
    assert not names(sets.labeled) & names(sets.test) and sets.val is None and sets.pool is None
    assert classes(sets.test) == classes(sets.labeled) == {"cat", "dog", "eel"}
    dogs = [
        np.isin(index.class_names.index("dog"), index.boxes(row).labels) for index in (sets.test,) for row in range(40)
    ]
    assert 8 <= sum(dogs) <= 12  # a fifth of 50
    assert names(opened(path).test) == names(sets.test) != names(opened(path, seed=1).test)
    assert sets.notes == ["Test split: 40 of 200 labeled images, drawn with the seed, stratified by class."]


@pytest.mark.parametrize(("count", "expected"), [(200, 40), (60, 20), (40, 16), (5, 2)])
def test_test_is_at_least_20_and_at_most_40_percent(tmp_path: Path, count: int, expected: int) -> None:
    sets = opened(coco(tmp_path / "a.json", {f"{i}.jpg": ["cat"] for i in range(count)}))
    assert sets.test is not None and len(sets.test) == expected
    assert ("no figure measured on it is reliable" in sets.notes[0]) == (expected < 20)


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    sets = opened(coco(tmp_path / "a.json", {"a.jpg": ["cat"], "b.jpg": ["cat"]}), data={"val_fraction": 0.1})
    assert sets.test is None and sets.val is None and len(sets.labeled) == 2
    assert "nothing can be measured" in sets.notes[0] and "No selection split" in sets.notes[1]


def test_selection_split_only_when_asked_for(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", many(200))
    sets = opened(path, data={"val_fraction": 0.1})
    assert sets.val is not None and len(sets.val) == 20 and len(sets.labeled) == 140
    assert not names(sets.val) & (names(sets.labeled) | names(sets.test))
    assert names(sets.test) == names(opened(path).test)
    least = opened(path, data={"val_fraction": 0.01})
    assert least.val is not None and len(least.val) == 10


def test_the_last_image_of_a_class_is_never_test(tmp_path: Path) -> None:
    boxes = {**{f"{i}.jpg": ["cat"] for i in range(60)}, "one.jpg": ["eel", "cat"]}
    for seed in range(5):
        assert "one.jpg" in names(opened(coco(tmp_path / "a.json", boxes), seed=seed).labeled)


@pytest.mark.parametrize("group", ["parent", r"(\d+)_frame"])
def test_groups_are_never_split(tmp_path: Path, group: str) -> None:
    boxes = {f"v{i // 5}/{i // 5}_frame{i}.jpg": ["cat"] for i in range(100)}
    sets = opened(coco(tmp_path / "a.json", boxes), data={"group": group, "val_fraction": 0.2})
    folders = [{name.split("/")[0] for name in names(index)} for index in (sets.labeled, sets.val, sets.test)]
    assert sum(map(len, folders)) == 20 and len(set.union(*folders)) == 20
    assert sets.test is not None and len(sets.test) == 20


def test_near_duplicates_are_one_group(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", {f"{i}.jpg": ["cat"] for i in range(100)})
    sets = open_sources(
        SourcesConfig(labeled=(str(path),)),
        DataConfig(),
        seed=0,
        annotations_only=True,
        groups=lambda index: np.arange(len(index)) // 10,
    )
    assert sets.test is not None and len(sets.test) == 20
    assert len({int(Path(name).stem) // 10 for name in names(sets.test)}) == 2


@pytest.mark.parametrize(
    ("group", "message"), [("(", "no valid pattern"), ("frame", "has 0 groups"), ("(a)(b)", "has 2")]
)
def test_bad_group_patterns(tmp_path: Path, group: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"data\.group.*{message}"):
        opened(coco(tmp_path / "a.json", many(50)), data={"group": group})


def test_merged_groups_keep_together_what_either_does() -> None:
    merged = merge_groups(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 7]))
    assert merged.tolist() == [0, 0, 0, 1, 1]


def test_unmatched_images_are_groups_of_their_own() -> None:
    index = Index.build(roots=[Path("/")], paths=["a1x", "a1y", "b", "c"], class_names=[])
    groups = group_ids(index, r"a(\d)")
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 3


# labeled fractions ----------------------------------------------------------------------------------------------------


def test_fractions_are_nested_stratified_and_leave_the_rest_as_pool(tmp_path: Path) -> None:
    path, test = coco(tmp_path / "a.json", many(300)), coco(tmp_path / "test.json", many(30, "t"))
    sets = {
        share: opened(path, test=[test], data={"labeled_fraction": share, "rest_as_pool": True})
        for share in (0.02, 0.1, 0.2, 0.5)
    }
    inner: set[str] = set()
    for share, found in sets.items():
        assert len(found.labeled) == round(300 * share) and inner < names(found.labeled)
        inner = names(found.labeled)
        assert classes(found.labeled) == {"cat", "dog", "eel"}
        assert found.hidden_labels and found.pool is not None and found.pool.num_boxes > 0
        assert names(found.pool) == names(opened(path, test=[test]).labeled) - inner
    dogs = sum(
        found
        for found in (
            sets[0.5].labeled.class_names.index("dog") in sets[0.5].labeled.boxes(row).labels for row in range(150)
        )
    )
    assert 35 <= dogs <= 40  # half of 75
    assert names(opened(path, test=[test], seed=1, data={"labeled_fraction": 0.1}).labeled) != names(sets[0.1].labeled)
    assert opened(path, test=[test], data={"labeled_fraction": 0.1}).pool is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), max_size=5), min_size=1, max_size=60), st.integers(0, 5))
def test_orders_are_permutations_whose_first_items_hold_every_class(held: list[list[int]], seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(labels) for labels in held])]).astype(np.int64)
    labels = np.array([label for item in held for label in item], np.int64)
    order = stratified_order(offsets, labels, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(held)))
    first = {label for item in order[: len(set(labels.tolist()))] for label in held[item]}
    assert first == set(labels.tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(0, 4), max_size=3)), min_size=5, max_size=50))
def test_drawn_splits_keep_groups_classes_and_limits(items: list[tuple[int, list[int]]]) -> None:
    groups = np.unique([group for group, _ in items], return_inverse=True)[1]
    offsets = np.concatenate([[0], np.cumsum([len(labels) for _, labels in items])]).astype(np.int64)
    labels = np.array([label for _, held in items for label in held], np.int64)
    limit = int(0.4 * len(items))
    aside = draw_split(offsets, labels, groups, limit, limit, np.random.default_rng(0))
    assert aside.sum() <= limit
    assert not set(groups[aside].tolist()) & set(groups[~aside].tolist())
    left = {label for (_, held), gone in zip(items, aside, strict=True) if not gone for label in held}
    assert left == set(labels.tolist())


# lists ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nested() -> Index:
    paths = ["train/a.jpg", "train/b.jpg", "val/b.jpg", "c d%.JPG", "train/e.x.png"]
    return Index.build(roots=[Path("/data/images")], paths=paths, class_names=[], description="made; images in .")


def test_list_entries_are_paths_names_or_stems(tmp_path: Path, nested: Index) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("c d%\n\nval/b.jpg\nimages/train/b.jpg\ne.x\n/data/images/train/a.jpg\nc d%.JPG\n")
    assert listed_rows(nested, listing).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nz\nval/a.jpg\n", r"2 of 3 entries are not in made.*'z', 'val/a\.jpg'"),
        ("b\n", r"'b' fits 2 images \(first: 'train/b\.jpg', 'val/b\.jpg'\). Write its path"),
        ("\n", "is empty"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, nested: Index, content: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        listed_rows(nested, tmp_path / "list.txt")
    with pytest.raises(InputError, match="does not exist"):
        listed_rows(nested, tmp_path / "none.txt")


def test_a_labeled_list_hides_the_rest(tmp_path: Path) -> None:
    path, test = coco(tmp_path / "a.json", many(50)), coco(tmp_path / "test.json", many(30, "t"))
    (tmp_path / "list.txt").write_text("0000\n0008.jpg\n")
    sets = opened(path, test=[test], labeled_list=str(tmp_path / "list.txt"), data={"rest_as_pool": True})
    assert names(sets.labeled) == {"0000.jpg", "0008.jpg"} and sets.pool is not None and len(sets.pool) == 48


def test_the_pool_holds_nothing_that_belongs_to_an_image_set_aside(tmp_path: Path) -> None:
    boxes = {f"v{i // 4}/{i}.jpg": ["cat"] for i in range(240)}
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg\n" for i in range(240) if i % 4 < 2))
    data = {"rest_as_pool": True, "group": "parent", "val_fraction": 0.1}
    sets = opened(coco(tmp_path / "a.json", boxes), labeled_list=str(tmp_path / "list.txt"), data=data)
    videos = {name.split("/")[0] for name in names(sets.test) | names(sets.val)}
    assert len(videos) == (24 + 12) / 2
    assert not videos & {name.split("/")[0] for name in names(sets.pool) | names(sets.labeled)}
    assert len(names(sets.pool)) == 120 - 36
    assert "36 images that belong together with val or test images are left out of the pool." in sets.notes


def test_near_duplicates_of_a_test_image_are_not_in_the_pool(tmp_path: Path) -> None:
    boxes = {f"{i}.jpg": ["cat"] for i in range(100)}
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg\n" for i in range(50)))
    sets = open_sources(
        SourcesConfig(labeled=(str(coco(tmp_path / "a.json", boxes)),), labeled_list=str(tmp_path / "list.txt")),
        DataConfig(rest_as_pool=True),
        seed=0,
        annotations_only=True,
        groups=lambda index: np.array([int(index.relative_path(row)[:-4]) % 50 for row in range(len(index))]),
    )
    twins = {f"{int(name[:-4]) + 50}.jpg" for name in names(sets.test)}
    assert len(twins) == 20 and names(sets.pool) == {f"{i}.jpg" for i in range(50, 100)} - twins


# joining --------------------------------------------------------------------------------------------------------------


def test_sources_join_by_name_whatever_their_ids(tmp_path: Path) -> None:
    one = coco(tmp_path / "one" / "a.json", {"a.jpg": ["dog", "cat"]}, ["cat", "dog"])
    two = coco(tmp_path / "two" / "b.json", {"b.jpg": ["dog"]}, ["dog", "cat"])
    test = coco(tmp_path / "test.json", {"t.jpg": ["dog"]}, ["eel", "dog"])
    sets = opened(one, two, test=[test])
    assert sets.labeled.class_names == ("cat", "dog") and sets.labeled.boxes(1).labels.tolist() == [1]
    assert (
        sets.test is not None and sets.test.class_names == ("cat", "dog") and sets.test.boxes(0).labels.tolist() == [1]
    )


def test_class_lists_that_disagree(tmp_path: Path) -> None:
    one = coco(tmp_path / "one" / "a.json", {"a.jpg": ["Platelets", "cell"]})
    two = coco(tmp_path / "two" / "b.json", {"b.jpg": ["Platelet", "cell"]})
    with pytest.raises(InputError, match=r"--labeled: class lists disagree: .*'Platelets'.*same as 'Platelet'"):
        opened(one, two)
    with pytest.raises(InputError, match=r"--test: class lists disagree: .*'Platelet'"):
        opened(one, test=[two])
    unused = coco(tmp_path / "three" / "c.json", {"b.jpg": ["cell"]}, ["cell", "Platelets", "never used"])
    assert opened(one, unused).labeled.class_names == ("Platelets", "cell", "never used")


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--labeled: nothing given"):
        open_sources(SourcesConfig(), DataConfig(), seed=0)
    with pytest.raises(InputError, match=r"--labeled: no labels.*use it as --unlabeled"):
        opened(coco(tmp_path / "a.json", {"a.jpg": []}))


def test_pool_leaves_out_what_is_labeled_or_test(tmp_path: Path) -> None:
    boxes = many(50)
    train, test = coco(tmp_path / "a.json", boxes), coco(tmp_path / "b.json", many(30, "t"))
    for name in [*boxes, *many(30, "t"), "x.jpg", "y.jpg"]:
        Image.new("RGB", (10, 10)).save(tmp_path / name)
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"{name}\n" for name in [*boxes, "t0003.jpg", "x.jpg", "y.jpg"]))
    sources = SourcesConfig(labeled=(str(train),), test=(str(test),), unlabeled=(str(pool),))
    sets = open_sources(sources, DataConfig(), seed=0)
    assert names(sets.pool) == {"x.jpg", "y.jpg"} and not sets.hidden_labels
    assert sets.notes == ["51 images of the pool are labeled, val or test images: left out of it."]
    pool.write_text("0001.jpg\n")
    (tmp_path / "x.jpg").unlink()
    (tmp_path / "y.jpg").unlink()
    with pytest.raises(InputError, match="--unlabeled: the pool is empty"):
        open_sources(sources, DataConfig(), seed=0)


def test_unlisted_files_are_an_error_negatives_or_the_pool(tmp_path: Path) -> None:
    train, test = coco(tmp_path / "a.json", many(30)), coco(tmp_path / "b.json", many(25, "t"))
    for name in [*many(30), *many(25, "t"), "x.jpg"]:
        Image.new("RGB", (10, 10)).save(tmp_path / name)
    sources = SourcesConfig(labeled=(str(train),), test=(str(test),))
    with pytest.raises(
        InputError, match=r"1 image files .*'x\.jpg'"
    ):  # the test images are listed: by the other source
        open_sources(sources, DataConfig(), seed=0)
    pool = open_sources(sources, DataConfig(unlisted="pool"), seed=0)
    assert names(pool.pool) == {"x.jpg"} and len(pool.labeled) == 30
    negative = open_sources(sources, DataConfig(unlisted="negative"), seed=0)
    assert len(negative.labeled) == 31 and negative.pool is None


def test_a_yaml_fills_val_and_test(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (10, 10)).save(tmp_path / "images" / split / f"{split}.jpg")
        (tmp_path / "labels" / split / f"{split}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [cat]\n")
    sets = open_sources(SourcesConfig(labeled=(str(tmp_path / "data.yaml"),)), DataConfig(), seed=0)
    assert [names(index) for index in (sets.labeled, sets.val, sets.test)] == [{"train.jpg"}, {"val.jpg"}, {"test.jpg"}]
    assert [note.split(" is ")[0] for note in sets.notes] == ["val", "test"]
    own = open_sources(SourcesConfig(labeled=(str(tmp_path),), test=(str(tmp_path),)), DataConfig(), seed=0)
    assert names(own.test) == {"test.jpg"}


def test_rows_at_paths() -> None:
    index = Index.build(roots=[Path("/one"), Path("/two")], paths=["a", "b/c", "a"], root_of=[0, 0, 1], class_names=[])
    assert rows_at(index, ["/two/a", "/one/b/c", "/three/a"]).tolist() == [False, True, True]


def test_real_lists_and_pools(real_data: Path) -> None:
    bccd = real_data / "bccd"
    sets = open_sources(
        SourcesConfig(
            labeled=(str(bccd / "annotations" / "instances_train.json"),),
            labeled_list=str(bccd / "splits" / "train_labeled_10pct_seed0.txt"),
            test=(str(bccd / "annotations" / "instances_test.json"),),
        ),
        DataConfig(rest_as_pool=True),
        seed=0,
    )
    assert sets.pool is not None and sets.test is not None and sets.hidden_labels
    assert (len(sets.labeled), len(sets.pool), len(sets.test)) == (20, 185, 72)
    assert sets.labeled.path(0).is_file()
