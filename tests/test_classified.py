"""Classified images from csv files and WebDataset tars: what is read, decoded in place, and refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import DataConfig, PretrainConfig
from tutelage.data.duplicates import near_duplicate_groups
from tutelage.data.images import decode, file_digest, is_image, probe
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.loader import classification_batches
from tutelage.data.members import members
from tutelage.data.readers import detect_format, locate, open_index
from tutelage.data.survey import survey
from tutelage.types import InputError

STRICT = DataConfig(unlisted="error")


def pixels_of(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(seed)).save(buffer, kind)
    return buffer.getvalue()


def pictures(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(seed))


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, ""]))
    return path


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, raw in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def classes(index: Index) -> dict[str, str]:
    """Class name by image."""
    names = [index.class_names[label] for label in index.image_classes()]
    return dict(zip(index.relative_paths().to_pylist(), names, strict=True))


# csv ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ("image,label", "a.png,dog", "b/c.png,cat", "b/d.png,dog"),
        ("Class,id,FileName", "dog,1,a.png", "cat,2,./b/c.png", "dog,3,b/d.png"),
        ("a.png,dog", "b/c.png,cat", "b/d.png,dog"),
        ('path,"class"', '"a.png", dog', "b/c.png,cat", "", "b\\d.png,dog", "a.png,dog"),
    ],
)
def test_a_csv_names_the_class_of_each_image(tmp_path: Path, lines: tuple[str, ...]) -> None:
    pictures(tmp_path, "a.png", "b/c.png", "b/d.png", "b/unused.png")
    path = write_csv(tmp_path / "all.csv", *lines)
    index = open_index(path, STRICT)
    assert detect_format(path) == "csv" and index.class_names == ("cat", "dog") and not index.declared
    assert classes(index) == {"a.png": "dog", "b/c.png": "cat", "b/d.png": "dog"}
    assert index.num_boxes == 0 and index.annotated
    np.testing.assert_array_equal(decode(index.path(1), STRICT).pixels, pixels_of(1))


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    path = write_csv(tmp_path / "all.csv", "image,label", "a.png,x", "b.png,y", "a.png,x")
    assert open_index(path, STRICT).counts == {"rows listed twice": 1}


def test_numbers_are_sorted_by_value_and_named_by_a_list(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png")
    path = write_csv(tmp_path / "all.csv", "image,label", "a.png,10", "b.png,2", "c.png,0")
    assert open_index(path, STRICT).class_names == ("0", "2", "10")
    (tmp_path / "classes.txt").write_text("\n".join(f"class {number}" for number in range(11)) + "\n")
    named = open_index(path, STRICT)
    assert classes(named) == {"a.png": "class 10", "b.png": "class 2", "c.png": "class 0"}
    assert len(named.class_names) == 11 and named.declared
    (tmp_path / "classes.txt").write_text("2\n10\n0\n")  # numbers that are names
    assert open_index(path, STRICT).image_classes().tolist() == [1, 0, 2]


def test_images_lie_beside_the_csv_in_a_folder_images_or_where_they_are_said_to(tmp_path: Path) -> None:
    pictures(tmp_path, "data/images/a.png", "data/images/b.png", "else/a.png", "else/b.png")
    path = write_csv(tmp_path / "data/all.csv", "image,label", "a.png,x", "b.png,y")
    assert open_index(path, STRICT).path(0) == tmp_path / "data/images/a.png"
    assert open_index(path, STRICT, images=str(tmp_path / "else")).path(1) == tmp_path / "else/b.png"
    absolute = write_csv(tmp_path / "data/b.csv", "image,label", f"{tmp_path}/else/a.png,x", "images/b.png,y")
    assert [open_index(absolute, STRICT).path(row) for row in range(2)] == [
        tmp_path / "else/a.png",
        tmp_path / "data/images/b.png",
    ]


def test_a_column_of_splits_makes_splits(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png")
    lines = ("split,image,label", "train,a.png,x", "valid,b.png,y", "Train,c.png,y")
    path = write_csv(tmp_path / "all.csv", *lines)
    assert set(locate(path)) == {"train", "val"}
    assert classes(open_index(path, STRICT)) == {"a.png": "x", "c.png": "y"}
    assert classes(open_index(path, STRICT, split="val")) == {"b.png": "y"}
    with pytest.raises(InputError, match=r"all\.csv line 3: split 'holdout'; allowed are train, .*Mend it"):
        locate(write_csv(path, *lines[:2], "holdout,b.png,y"))


def test_a_csv_may_be_a_pool(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    path = write_csv(tmp_path / "all.csv", "image,label", "a.png,x", "b.png,y", "a.png,y")
    pool = open_index(path, STRICT, unlabeled=True)
    assert len(pool) == 2 and not pool.annotated and pool.image_classes().tolist() == [-1, -1]


WRONG_CSV = {
    ("image,label", "a.png,x", "b.png,y", "a.png,y"): r"line 4: a\.png is 'y' here and 'x' on line 2; .*Remove one",
    ("image,label", "a.png,x", "b.png,y,z"): r"line 3: 3 columns; there must be 2 .*Quote",
    ("image,label", "a.png,x", "gone.png,y"): r"1 of 2 images are missing .*'gone\.png'.*Add the files",
    ("image,weight", "a.png,1"): r"found a csv with the columns image, weight; .*the columns image and label.*Convert",
    ("picture,label", "a.png,1"): r"found a csv with the columns label, picture; .*Convert",
    ("image,label", "a.png,x", "b.png, "): r"line 3: class ''; it must be one of 1 .*Mend it",
    ("image,label",): r"lists no images.*Give a source",
}


@pytest.mark.parametrize("lines", WRONG_CSV)
def test_bad_csv_files_are_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(InputError, match=r"all\.csv.*" + WRONG_CSV[lines]):
        open_index(write_csv(tmp_path / "all.csv", *lines), STRICT)


def test_a_class_outside_the_list_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for label in ("cow", "2", "-1"):
        path = write_csv(tmp_path / "all.csv", "image,label", "a.png,0", f"b.png,{label}")
        with pytest.raises(InputError, match=rf"line 3: class '{label}'; it must be one of 2 .*Mend it.*classes\.txt"):
            open_index(path, STRICT)


@pytest.mark.parametrize(
    ("names", "found"),
    [("cat\n\ndog\n", "line 2: empty;"), ("cat\ndog\n cat\n", "line 3: 'cat' again, as on line 1;")],
)
def test_names_that_would_shift_or_merge_classes_are_refused(tmp_path: Path, names: str, found: str) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "classes.txt").write_text(names + "\n")
    with pytest.raises(InputError, match=rf"classes\.txt {found} each line must be the name of one class"):
        open_index(write_csv(tmp_path / "all.csv", "image,label", "a.png,0", "b.png,1"), STRICT)


def test_numbers_of_one_value_have_one_order(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{number}.png" for number in range(6)))
    written = ("001", "1", "01", "0", "00", "0001")
    path = write_csv(tmp_path / "all.csv", "image,label", *(f"{row}.png,{label}" for row, label in enumerate(written)))
    assert open_index(path, STRICT).class_names == ("0", "00", "0001", "001", "01", "1")


def test_folders_without_an_image_are_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        pictures(tmp_path / name, "a.png")
    (tmp_path / "cow").mkdir()
    index = open_index(tmp_path, STRICT)
    assert index.class_names == ("cat", "dog")
    assert index.counts == {"folders without an image, which are no classes": 1}


def test_groceries(real_data: Path) -> None:
    """labels.csv and the class folders say the same."""
    folder = real_data / "grocery_cls"
    listed, sorted_in = open_index(folder / "labels.csv", STRICT), open_index(folder / "images/train", STRICT)
    assert len(listed) == 2640 and listed.class_names == sorted_in.class_names and len(listed.class_names) == 81
    below = {f"train/{path}": name for path, name in classes(sorted_in).items()}
    assert classes(listed) == below
    assert len(open_index(folder / "labels.csv", STRICT, split="test")) == 405


# WebDataset -----------------------------------------------------------------------------------------------------------


def shards(folder: Path) -> Path:
    """Two tars: classes as numbers in .cls, in .json, and as text; one key in both."""
    folder.mkdir(exist_ok=True)
    first = {"a.png": encoded(0), "a.cls": b"1", "./b/c.jpg": encoded(1, "JPEG"), "./b/c.json": b'{"label": 0, "x": 1}'}
    second = {"a.txt": b"2\n", "a.WEBP": encoded(2, "WEBP"), "info.md": b"words", "._a.png": b"mac"}
    write_tar(folder / "shard-000.tar", first)
    write_tar(folder / "shard-001.tar", second)
    return folder


def test_tars_are_read_in_place(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    index = open_index(folder, STRICT)
    assert detect_format(folder) == "webdataset"
    assert classes(index) == {"shard-000.tar::a.png": "1", "shard-000.tar::b/c.jpg": "0", "shard-001.tar::a.WEBP": "2"}
    np.testing.assert_array_equal(decode(index.path(0), STRICT).pixels, pixels_of(0))
    for row, (kind, seed) in enumerate((("PNG", 0), ("JPEG", 1), ("WEBP", 2))):
        whole = Image.open(io.BytesIO(encoded(seed, kind))).convert("RGB")
        np.testing.assert_array_equal(decode(index.path(row), STRICT).pixels, np.asarray(whole))
        assert probe(index.path(row)).format == kind and probe(index.path(row)).shown_size == (20 + seed, 30)
    (folder / "classes.txt").write_text("zero\none\ntwo\n")
    assert set(classes(open_index(folder, STRICT)).values()) == {"zero", "one", "two"}
    assert sorted(entry.name for entry in folder.iterdir()) == ["classes.txt", "shard-000.tar", "shard-001.tar"]


def test_one_tar_is_a_data_set_too_and_names_of_tars_tell_splits(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    assert len(open_index(folder / "shard-000.tar", STRICT)) == 2
    (folder / "shard-000.tar").rename(folder / "my-train-000.tar")
    (folder / "shard-001.tar").rename(folder / "my-val-000.tar")
    assert set(locate(folder)) == {"train", "val"}
    assert len(open_index(folder, STRICT)) == 2 and len(open_index(folder, STRICT, split="val")) == 1


def test_members_have_fingerprints_digests_and_twins_as_files_have(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    index = open_index(folder, STRICT)
    (tmp_path / "a.png").write_bytes(encoded(0))
    assert file_digest(index.path(0)) == file_digest(tmp_path / "a.png")
    before = survey(index, STRICT).prints
    moved = open_index(shards(tmp_path / "copy"), STRICT)
    assert moved.fingerprint == index.fingerprint and moved.path(0) != index.path(0)
    both = join([index, moved])
    assert near_duplicate_groups(both, STRICT).tolist() == [0, 1, 2, 0, 1, 2]
    write_tar(folder / "shard-001.tar", {"a.txt": b"2\n", "a.WEBP": encoded(5, "WEBP")})  # other content, same names
    after = survey(open_index(folder, STRICT), STRICT).prints
    assert (before.digests != after.digests).any(axis=1).tolist() == [False, False, True]


def test_tars_are_a_pool_without_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "pool.tar", {"a.png": encoded(0), "b.v2.jpg": encoded(1, "JPEG"), "c.txt": b"a caption"})
    pool = open_index(tmp_path / "pool.tar", STRICT, unlabeled=True)
    assert pool.relative_paths().to_pylist() == ["pool.tar::a.png", "pool.tar::b.v2.jpg"] and not pool.annotated
    assert is_image(pool.path(1)) and pool.image_classes().tolist() == [-1, -1]
    masks = open_index(tmp_path, STRICT, unlabeled=True, annotation="masks")
    assert len(masks) == 2
    with pytest.raises(InputError, match=r"pool\.tar: a\.png has no class; it must be in a\.cls.*Add it"):
        open_index(tmp_path / "pool.tar", STRICT)


def test_workers_load_from_tars(tmp_path: Path) -> None:
    index = open_index(shards(tmp_path / "data"), STRICT)

    def loaded(workers: int) -> list[NDArray[np.uint8]]:
        stream = classification_batches(
            index,
            data=STRICT,
            pretrain=PretrainConfig(size=16),
            stream="labeled",
            seed=0,
            round=0,
            batch_size=3,
            first_step=0,
            num_steps=2,
            rank=0,
            world_size=1,
            micro_batches=1,
            workers=workers,
            cache_megabytes=0,
            pin=False,
        )
        return [batch.images.numpy() for (batch,) in stream]

    np.testing.assert_array_equal(loaded(0), loaded(2))


WRONG_TARS = {
    "two images": ({"a.png": encoded(0), "a.jpg": encoded(1), "a.cls": b"1"}, "key 'a' .*a.jpg and a.png; one is"),
    "no image": ({"a.cls": b"1", "b.png": encoded(0), "b.cls": b"0"}, "key 'a' has a class and as image none; .*Mend"),
    "no field": ({"a.png": encoded(0), "a.json": b'{"width": 3}'}, r"a\.png has no class; .*Add it"),
    "no json": ({"a.png": encoded(0), "a.json": b"{"}, r"a\.json: not JSON .*Pack the archive again"),
    "null": ({"a.png": encoded(0), "a.json": b'{"label": null}'}, r"a\.json: class null; it must be a name or .*Mend"),
    "list": ({"a.png": encoded(0), "a.json": b'{"label": [1]}'}, r"a\.json: class \[1\]; it must be a name or .*Mend"),
    "nothing": ({"readme": b"hello"}, "holds no image .*Give tars of images"),
}


@pytest.mark.parametrize("case", WRONG_TARS)
def test_bad_tars_are_refused(tmp_path: Path, case: str) -> None:
    content, message = WRONG_TARS[case]
    with pytest.raises(InputError, match=rf"shard\.tar.*{message}"):
        open_index(write_tar(tmp_path / "shard.tar", content), STRICT)


@pytest.mark.parametrize("unlabeled", [False, True])
def test_two_members_of_one_name_are_refused(tmp_path: Path, unlabeled: bool) -> None:
    path = write_tar(tmp_path / "shard.tar", {"a.png": encoded(0), "a.cls": b"0", "./a.png": encoded(1)})
    with pytest.raises(InputError, match=r"shard\.tar: holds 'a\.png' twice; .*Rename"):
        open_index(path, STRICT, unlabeled=unlabeled)


def test_a_class_in_a_tar_outside_the_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    content = {"a.png": encoded(0), "a.cls": b"0", "b.png": encoded(1), "b.json": json.dumps({"class": 2}).encode()}
    with pytest.raises(InputError, match=r"shard\.tar::b\.png: class '2'; it must be one of 2 \('0', '1'\)"):
        open_index(write_tar(tmp_path / "shard.tar", content), STRICT)


@pytest.mark.parametrize("where", ["header", "content", "border", "end mark"])
def test_truncated_tars_are_refused(tmp_path: Path, where: str) -> None:
    path = write_tar(tmp_path / "shard.tar", {name: encoded(3) for name in ("a.png", "b.png", "c.png")})
    offset, size = members(str(path))["c.png"]
    end = offset + -(-size // 512) * 512
    kept = {"header": offset - 200, "content": offset + 10, "border": offset - 512, "end mark": end}[where]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"shard\.tar: is no whole tar \(.*\); .*fetch or pack it again"):
        open_index(path, STRICT, unlabeled=True)


def test_compressed_and_other_files_are_no_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "other.tar").write_bytes(b"not a tar" * 100)
    for name in ("packed.tar", "other.tar"):
        with pytest.raises(InputError, match=rf"{name}: is no whole tar .*uncompressed.*Unzip it"):
            open_index(tmp_path / name, STRICT)


def test_a_member_that_is_gone_is_an_error_of_the_user(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", {"a.png": encoded(0), "a.cls": b"1"})
    index = open_index(path, STRICT)
    write_tar(path, {"b.png": encoded(0), "b.cls": b"1"})
    with pytest.raises(InputError, match=r"shard\.tar::a\.png: cannot be read \(the archive has no such member\)"):
        decode(index.path(0), STRICT)
    path.unlink()
    with pytest.raises(InputError, match=r"shard\.tar: is gone, and with it"):
        decode(index.path(0), STRICT)
