"""Masks as files: codings, what is refused, and how an index holds them."""

import json
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.masks import Kind, MaskCoding, MaskFile, decode_png, encode_png, read_codes, read_mask
from tutelage.types import IGNORE, InputError

CLASSES = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
TABLE = {0: 0, 1: 1, 2: 2, 255: -1}


def save(path: Path, values: NDArray[np.generic], mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(values))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def values_in(root: Path, table: dict[int, int] | None = None) -> MaskCoding:
    return MaskCoding("values", root, TABLE if table is None else table)


def with_masks(root: Path, names: tuple[str, ...] = ("a", "b", "c"), values: NDArray[np.uint8] = CLASSES) -> Index:
    """Two images, the first with a mask of classes 0, 1 and 2."""
    save(root / "m.png", values)
    return Index.build(
        roots=[root],
        paths=["x.jpg", "y.jpg"],
        class_names=names,
        sizes=[(2, 3), (2, 3)],
        offsets=[0, 3, 3],
        xyxy=[[0, 0, 1, 1], [1, 0, 2, 2], [0, 0, 3, 2]],
        labels=[0, 1, 2],
        area=[1, 2, 2],
        masks=["m.png", ""],
        codings=[values_in(root)],
        digests=np.array([1 << 63, 0], np.uint64),
        description="made by hand; images in .",
    )


def gray_png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A gray PNG with samples of 1, 2 or 4 bits, which Pillow does not write."""
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes() for row in values
    )

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_values_become_labels_and_declared_ones_ignore(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[3, 7], [9, 3]], np.uint8))
    mask = read_mask(MaskFile("m.png", values_in(tmp_path, {3: 0, 7: 5, 9: -1})))
    assert mask.tolist() == [[0, 5], [IGNORE, 0]] and mask.dtype == np.uint8


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_are_not_spread(tmp_path: Path, bits: int) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % (1 << bits)
    (tmp_path / "m.png").write_bytes(gray_png(values, bits))
    assert read_codes(tmp_path / "m.png", "values").tolist() == values.tolist()


def test_a_palette_file_gives_its_indices_or_its_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == "P"
    assert read_codes(tmp_path / "m.png", "values").tolist() == [[0, 1], [2, 1]]
    assert read_codes(tmp_path / "m.png", "colors").tolist() == [[0xFF0000, 0x00FF00], [0x0000FF, 0x00FF00]]


def test_colors_become_labels(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[[60, 16, 152], [254, 221, 58]]], np.uint8))
    coding = MaskCoding("colors", tmp_path, {0x3C1098: 1, 0xFEDD3A: -1})
    assert read_mask(MaskFile("m.png", coding)).tolist() == [[1, IGNORE]]


def test_the_full_ade20k_codes_classes_in_red_and_green(tmp_path: Path) -> None:
    # R // 10 * 256 + G: (0, 3) is 3; (17, 5) is 256 + 5; blue counts instances
    save(tmp_path / "m.png", np.array([[[0, 3, 9], [17, 5, 200]]], np.uint8))
    assert read_mask(MaskFile("m.png", MaskCoding("ade20k", tmp_path, {3: 0, 261: 1}))).tolist() == [[0, 1]]


def test_sixteen_bits_are_read_where_the_values_fit(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 300]], np.uint16))
    assert read_mask(MaskFile("m.png", values_in(tmp_path, {0: 0, 300: 1}))).tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"m\.png: holds the value 300 \(50\.00%\) of no class"):
        read_mask(MaskFile("m.png", values_in(tmp_path)))


def test_an_unknown_value_is_named_with_its_share(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 9, 9, 1]], np.uint8))
    with pytest.raises(InputError, match=r"the value 9 \(50\.00%\).*known are 0, 1, 2, 255.*data\.classes"):
        read_mask(MaskFile("m.png", values_in(tmp_path)))


def test_gray_stored_as_rgb_is_gray(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.repeat(CLASSES[..., None], 3, axis=2))
    assert read_mask(MaskFile("m.png", values_in(tmp_path))).tolist() == [[0, 1, 2], [2, 1, IGNORE]]


def refused_masks() -> dict[str, tuple[NDArray[np.generic], str, str]]:
    """Content, file name and what the error says."""
    smooth = np.zeros((8, 8), np.uint8)
    clear = np.full((2, 2, 4), 128, np.uint8)
    return {
        "float": (np.zeros((2, 2), np.float32), "m.tif", "floating-point.*8-bit PNG"),
        "negative": (np.full((2, 2), -1, np.int32), "m.tif", "values from -1 to -1; a mask has 0 to 65535"),
        "rgb": (np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), "m.png", r"#010203 \(50\.0%\).*data\.classes"),
        "transparent": (clear, "m.png", "transparent pixels"),
        "jpeg": (smooth, "m.jpg", "is a JPEG.*as PNG"),
    }


@pytest.mark.parametrize("name", refused_masks())
def test_what_is_no_mask_of_values_is_refused(tmp_path: Path, name: str) -> None:
    content, file, message = refused_masks()[name]
    save(tmp_path / file, content)
    with pytest.raises(InputError, match=message):
        read_mask(MaskFile(file, values_in(tmp_path)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", ["values", "colors"])
def test_colors_of_sixteen_bits_are_refused_not_cut(tmp_path: Path, suffix: str, kind: Kind) -> None:
    cv2.imwrite(str(tmp_path / f"m.{suffix}"), np.full((2, 2, 3), 1, np.uint16))
    with pytest.raises(InputError, match=rf"m\.{suffix}: holds colors of 16 bits"):
        read_mask(MaskFile(f"m.{suffix}", MaskCoding(kind, tmp_path, {0: 0, 1: 1})))


def test_a_broken_or_missing_mask_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "m.png", np.zeros((50, 50), np.uint8)).read_bytes()
    (tmp_path / "m.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"m\.png: broken mask"):
        read_mask(MaskFile("m.png", values_in(tmp_path)))
    (tmp_path / "m.png").write_text("<html>")
    with pytest.raises(InputError, match=r"m\.png: is no mask"):
        read_mask(MaskFile("m.png", values_in(tmp_path)))
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        read_mask(MaskFile("none.png", values_in(tmp_path)))


def test_packed_masks_are_unpacked_unchanged() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
    packed = encode_png(mask)
    assert packed.startswith(b"\x89PNG") and (decode_png(packed) == mask).all()
    with pytest.raises(InputError, match="damaged"):
        decode_png(packed[:20])


def test_pseudo_masks_keep_what_reaches_the_level_of_its_class(tmp_path: Path) -> None:
    classes = np.array([[0, 0, 1, 1]], np.uint8)
    levels = np.array([[127, 128, 128, 199]], np.uint8)
    other = np.zeros((1, 1), np.uint8)
    rows = {"classes": [encode_png(other), encode_png(classes)], "levels": [encode_png(other), encode_png(levels)]}
    pq.write_table(pa.table(rows), tmp_path / "part-00000.masks.parquet", row_group_size=1)
    file = MaskFile("part-00000.masks.parquet#1", MaskCoding.of_store(tmp_path, np.array([128, 199])))
    assert read_mask(file).tolist() == [[IGNORE, 0, IGNORE, 1]]
    none = MaskFile(file.path, MaskCoding.of_store(tmp_path, np.array([256, 256])))
    assert (read_mask(none) == IGNORE).all()


def test_a_coding_survives_json_and_a_mask_file_pickling(tmp_path: Path) -> None:
    for coding in (values_in(tmp_path), MaskCoding.of_store(tmp_path, np.array([1, 256]))):
        assert MaskCoding.from_dict(json.loads(json.dumps(coding.as_dict()))) == coding
    save(tmp_path / "m.png", CLASSES)
    file = MaskFile("m.png", values_in(tmp_path), np.array([2, -1, 0]))
    assert read_mask(pickle.loads(pickle.dumps(file))).tolist() == [[2, IGNORE, 0], [0, IGNORE, IGNORE]]


def test_an_index_holds_masks_as_paths(tmp_path: Path) -> None:
    index = with_masks(tmp_path)
    assert index.has_masks and index.annotation == "masks"
    assert index.description == "made by hand: 2 images with masks, 3 classes; images in ."
    file = pickle.loads(pickle.dumps(index)).mask_file(0)
    assert file is not None and file.file == tmp_path / "m.png"
    assert read_mask(file).tolist() == [[0, 1, 2], [2, 1, IGNORE]]
    assert index.mask_file(1) is None and index.select(np.array([1, 0])).mask_file(0) is None
    assert index.labels_per_image()[1].tolist() == [0, 1, 2] and index.box_columns().area.tolist() == [1, 2, 2]


def test_an_index_of_boxes_has_no_masks() -> None:
    index = Index.build(roots=[Path("/")], paths=["x.jpg"], class_names=["a"])
    assert not index.has_masks and index.annotation == "boxes" and index.mask_file(0) is None


def test_masks_follow_the_classes_that_are_shown(tmp_path: Path) -> None:
    file = with_masks(tmp_path).with_classes(["c", "a"]).mask_file(0)
    assert file is not None
    assert read_mask(file).tolist() == [[1, IGNORE, 0], [0, IGNORE, IGNORE]]


def test_sources_with_other_values_are_joined_by_class_name(tmp_path: Path) -> None:
    one, other = with_masks(tmp_path / "one"), with_masks(tmp_path / "two", ("c", "d", "a"))
    plain = Index.build(roots=[tmp_path], paths=["z.jpg"], class_names=["a"])
    joined = join([one.with_classes(["b", "a", "c"]), other, plain])
    assert joined.class_names == ("b", "a", "c", "d") and len(joined) == 5
    first, second = joined.mask_file(0), joined.mask_file(2)
    assert first is not None and read_mask(first).tolist() == [[1, 0, 2], [2, 0, IGNORE]]
    assert second is not None and read_mask(second).tolist() == [[2, 3, 1], [1, 3, IGNORE]]
    assert joined.mask_file(3) is None and joined.mask_file(4) is None
    assert joined.select(np.array([2])).labels_per_image()[1].tolist() == [2, 3, 1]


def test_joined_stores_keep_their_levels(tmp_path: Path) -> None:
    index = with_masks(tmp_path)
    coding = MaskCoding.of_store(tmp_path, np.array([128, 256]))
    store = index.with_masks(["p.parquet#0", ""], [0, -1], [coding], class_names=["b", "a"])
    assert store.shown and store.num_boxes == 0 and store.mask_file(1) is None
    file = join([index, store]).mask_file(2)
    assert file is not None and file.coding.least == (128, 256)
    assert file.coding.table == {0: 1, 1: 0, IGNORE: -1}


def test_the_fingerprint_follows_the_content_of_masks(tmp_path: Path) -> None:
    def changed(digest: int) -> str:
        masks, digests = ["m.png", ""], np.array([digest, 0], np.uint64)
        coding = [values_in(tmp_path)]
        return index.with_masks(masks, [0, -1], coding, class_names=["a", "b", "c"], digests=digests).fingerprint

    index = with_masks(tmp_path)
    assert changed(5) == changed(5) != changed(6)
    moved = with_masks(tmp_path / "elsewhere")
    assert moved.fingerprint == index.fingerprint
    assert moved.select(np.array([0, 1])).fingerprint == index.fingerprint
