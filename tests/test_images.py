"""Decoding of every kind of file; each dirty case is written here, the real ones are looked at where present."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tutelage.config import DataConfig
from tutelage.data.demo import draw_scene
from tutelage.data.images import ImageInfo, decode, file_digest, is_image, oriented_boxes, probe
from tutelage.types import InputError

DATA = DataConfig()
ORIENTATION = 0x0112


def picture(height: int = 60, width: int = 96, seed: int = 0) -> NDArray[np.uint8]:
    return np.ascontiguousarray(draw_scene(max(height, width), np.random.default_rng(seed)).pixels[:height, :width])


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """A smooth picture with noise as a camera gives it."""
    small = cv2.resize(picture(96, 96), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(1).normal(0, 3, small.shape)
    return np.clip(small + noise, 0, 255).astype(np.uint8)


def saved(path: Path, pixels: NDArray[np.uint8], format: str = "PNG", **options: object) -> Path:
    Image.fromarray(pixels).save(path, format, **options)
    return path


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def png(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG file of raw rows, as Pillow and OpenCV cannot write all kinds."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_formats_are_recognized_by_content(tmp_path: Path, format: str) -> None:
    path = saved(tmp_path / "named.jpg", picture(), format, **({"lossless": True} if format == "WEBP" else {}))
    decoded = decode(path, DATA)
    assert is_image(path) and probe(path).format == format
    assert decoded.pixels.shape == (60, 96, 3) and decoded.pixels.dtype == np.uint8
    assert decoded.size == (60, 96)
    close = 0 if format != "GIF" else 12  # 256 colors
    assert np.abs(decoded.pixels.astype(int) - picture()).mean() <= close


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_equals_pillows(tmp_path: Path, format: str, orientation: int) -> None:
    path = saved(tmp_path / "image", picture(), format, exif=with_orientation(orientation))
    stored = saved(tmp_path / "plain", picture(), format)
    plain = Image.open(stored).convert("RGB")
    plain.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    decoded = decode(path, DATA)
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert decoded.orientation == orientation
    assert decoded.info.stored_size == (60, 96)
    assert decoded.size == probe(path).shown_size == expected.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 65537])
def test_impossible_orientations_turn_nothing(tmp_path: Path, orientation: int) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", ORIENTATION, 4, 1, orientation) + b"\0\0\0\0"
    path = saved(tmp_path / "image.jpg", picture(), "JPEG", exif=exif)
    assert Image.open(path).getexif()[ORIENTATION] == orientation
    assert decode(path, DATA).pixels.shape == (60, 96, 3)
    assert probe(path).orientation == 1


def test_broken_metadata_does_not_break_the_image(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.jpg", picture(), "JPEG", exif=b"Exif\0\0nonsense")
    assert decode(path, DATA).pixels.shape == (60, 96, 3)


def test_cmyk_jpeg_has_the_colors_of_the_original(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(picture()).convert("CMYK").save(path, quality=98)
    assert np.abs(decode(path, DATA).pixels.astype(int) - picture()).mean() < 4


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    gray = picture()[..., 0]
    np.testing.assert_array_equal(decode(saved(tmp_path / "a.png", gray), DATA).pixels, np.stack([gray] * 3, -1))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    color, opacity = picture(), np.zeros((60, 96), np.uint8)
    opacity[:, 48:], opacity[:30] = 255, 102
    layers = np.dstack([color, opacity])
    share = opacity[..., None] / 255
    expected = color * share + 255 * (1 - share)
    found = decode(saved(tmp_path / "rgba.png", layers), DATA).pixels
    assert np.abs(found - expected).max() <= 1
    gray = np.dstack([color[..., 0], opacity])
    found = decode(saved(tmp_path / "la.png", gray), DATA).pixels
    assert np.abs(found - (gray[..., :1] * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_lies_on_white(tmp_path: Path, format: str) -> None:
    indices = np.repeat(np.arange(3, dtype=np.uint8), 4)[None].repeat(5, 0)
    image = Image.frombytes("P", (12, 5), indices.tobytes())
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    path = tmp_path / "image"
    image.save(path, format, transparency=1)
    found = decode(path, DATA).pixels[2, [0, 5, 9]]
    np.testing.assert_array_equal(found, [[10, 20, 30], [255, 255, 255], [7, 8, 9]])


def test_palette_with_several_opacities(tmp_path: Path) -> None:
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([100, 100, 100, 0, 0, 0])
    image.save(tmp_path / "a.png", transparency=bytes([255, 51]))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", DATA).pixels[0], [[100] * 3, [204] * 3])


def test_color_key_of_a_png_without_palette(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(4, 5, 6))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", DATA).pixels, [[[1, 2, 3], [255, 255, 255]]])


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(tmp_path / "a.gif", DATA).pixels[0, 0], [255, 0, 0])


def test_sixteen_bit_gray(tmp_path: Path) -> None:
    values = np.array([[0, 257, 1000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", DATA).pixels[0, :, 0], [0, 1, 4, 255])
    ranged = decode(tmp_path / "a.png", DataConfig(range=(257, 1257))).pixels
    np.testing.assert_array_equal(ranged[0, :, 1], [0, 0, 189, 255])  # (1000 - 257) * 255 / 1000 = 189.5 -> even


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_color(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), values[..., ::-1])
    np.testing.assert_array_equal(decode(path, DATA).pixels, np.rint(values / 257))


def test_sixteen_bit_color_with_alpha(tmp_path: Path) -> None:
    values = np.array([[[65535, 0, 257, 65535], [0, 0, 0, 0]]], ">u2")
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 6, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", DATA).pixels, [[[255, 0, 1], [255, 255, 255]]])


def test_sixteen_bit_gray_with_alpha(tmp_path: Path) -> None:
    values = np.array([[[0x8000, 0xFFFF], [0x1234, 0]]], ">u2")
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 4, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", DATA).pixels, [[[128] * 3, [255] * 3]])


def test_floats_need_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"data\.range"):
        decode(tmp_path / "a.tif", DATA)
    found = decode(tmp_path / "a.tif", DataConfig(range=(0, 1))).pixels
    np.testing.assert_array_equal(found[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.6, 0.97])
def test_a_jpeg_that_ends_early(tmp_path: Path, kept: float, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", photo(120, 160), "JPEG", progressive=progressive)
    whole = decode(path, DATA)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match=r"a\.jpg: this JPEG ends early.*data\.truncated=accept"):
        decode(path, DATA)
    decoded = decode(path, DataConfig(truncated="accept"))
    assert decoded.truncated and not whole.truncated
    assert decoded.pixels.shape == (120, 160, 3)
    upper = np.abs(decoded.pixels[:40].astype(int) - whole.pixels[:40]).mean()
    assert upper == 0 or (progressive and upper < 12)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scratched(content: bytes) -> bytes:
    return content[:200] + bytes(60) + content[260:]


@pytest.mark.parametrize("damage", [cut, scratched])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_damaged_png_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], depth: int) -> None:
    pixels = picture() if depth == 8 else picture().astype(np.uint16) * 257
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    path.write_bytes(damage(path.read_bytes()))
    for data in (DATA, DataConfig(truncated="accept")):
        with pytest.raises(InputError, match=r"a\.png: broken"):
            decode(path, data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n <HTML>", "web page"),
        (b"just text", "not an image"),
        (b"\xff\xd8\xff\xe0", "a.jpg: "),
        (b"\x89PNG\r\n\x1a\n", "a.jpg: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start Ghostscript
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert not is_image(path)
    for function in (probe, lambda path: decode(path, DATA)):
        with pytest.raises(InputError, match=said):
            function(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_probing_decodes_nothing(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "image", picture(), format)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert probe(path).stored_size == (60, 96)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "another.jpg").touch()  # in an empty folder, the disk would be what is gone
    for path in (tmp_path / "none.jpg", tmp_path):
        assert not is_image(path)
        with pytest.raises(InputError, match="cannot be read"):
            decode(path, DATA)


def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30_000, 30_000, 8, 0, b""))
    limit = Image.MAX_IMAGE_PIXELS
    assert probe(saved(tmp_path / "fine.png", picture())).stored_size == (60, 96)
    with pytest.raises(InputError, match="bomb"):
        decode(path, DATA)
    assert limit == Image.MAX_IMAGE_PIXELS
    saved(tmp_path / "small.png", picture(60, 96))
    assert decode(tmp_path / "small.png", DataConfig(max_pixels=60 * 96)).size == (60, 96)
    with pytest.raises(InputError, match=r"96 x 60 pixels.*data\.max_pixels"):
        decode(tmp_path / "small.png", DataConfig(max_pixels=60 * 96 - 1))


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(
    ("needed", "divisor"), [(1.0, 1), (0.51, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.1, 8), (0.01, 8)]
)
def test_reduced_decode_equals_full_decode_reduced(
    tmp_path: Path, needed: float, divisor: int, subsampling: int
) -> None:
    path = saved(tmp_path / "a.jpg", photo(480, 640), "JPEG", quality=90, subsampling=subsampling)
    full = decode(path, DATA).pixels
    decoded = decode(path, DATA, needed_scale=needed)
    assert decoded.size == (480, 640)
    assert decoded.pixels.shape == (480 // divisor, 640 // divisor, 3)
    assert min(decoded.pixels.shape[0] / 480, decoded.pixels.shape[1] / 640) >= min(needed, 1 / 8)
    expected = cv2.resize(full, (640 // divisor, 480 // divisor), interpolation=cv2.INTER_AREA)
    difference = np.abs(decoded.pixels.astype(int) - expected)
    assert difference.mean() < 1.5


def test_reduced_decode_of_odd_sizes_is_turned_and_keeps_the_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", photo(301, 403), "JPEG", exif=with_orientation(6))
    decoded = decode(path, DATA, needed_scale=0.25)
    assert decoded.size == (403, 301)
    assert decoded.pixels.shape == (101, 76, 3)


def test_other_formats_are_decoded_whole(tmp_path: Path) -> None:
    assert decode(saved(tmp_path / "a.png", picture()), DATA, needed_scale=0.1).pixels.shape == (60, 96, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_boxes_follow_their_pixels(orientation: int) -> None:
    stored = np.zeros((60, 96, 3), np.uint8)
    stored[10:25, 30:80] = 255
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION] = orientation
    shown = np.asarray(ImageOps.exif_transpose(image))[..., 0]
    info = ImageInfo("JPEG", (60, 96), orientation)
    assert info.shown_size == shown.shape
    boxes = np.array([[30, 10, 80, 25]], np.float32)
    found, how = oriented_boxes(boxes, (0, 0), info, "stored")
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    np.testing.assert_array_equal(found, [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]])
    assert found.dtype == np.float32
    assert how == ("upright" if orientation == 1 else "stored by option")


@pytest.mark.parametrize(
    ("annotated", "option", "how"),
    [
        ((60, 96), "shown", "stored by size"),
        ((96, 60), "stored", "shown by size"),
        ((0, 0), "stored", "stored by option"),
        ((0, 0), "shown", "shown by option"),
        ((600, 960), "shown", "shown by option"),
    ],
)
def test_the_annotated_size_decides_before_the_option(annotated: tuple[int, int], option: str, how: str) -> None:
    boxes = np.array([[1, 2, 11, 22]], np.float64)
    found, said = oriented_boxes(boxes, annotated, ImageInfo("JPEG", (60, 96), 6), option)
    assert said == how
    np.testing.assert_array_equal(found, [[38, 1, 58, 11]] if how.startswith("stored") else boxes)


def test_sizes_decide_nothing_where_both_are_equal() -> None:
    boxes = np.array([[1, 2, 11, 22]], np.float64)
    for info in (ImageInfo("JPEG", (60, 96), 3), ImageInfo("JPEG", (60, 60), 6)):
        assert oriented_boxes(boxes, info.stored_size, info, "shown")[1] == "shown by option"
        assert oriented_boxes(boxes, info.stored_size, info, "stored")[1] == "stored by option"


def test_no_boxes_stay_none() -> None:
    found, _ = oriented_boxes(np.zeros((0, 4), np.float32), (0, 0), ImageInfo("JPEG", (4, 6), 6), "stored")
    assert found.shape == (0, 4)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    one, same = saved(tmp_path / "a.png", picture()), saved(tmp_path / "b.jpg", picture())
    assert file_digest(one) == file_digest(same) != file_digest(saved(tmp_path / "c.png", picture(seed=1)))


REAL_ERRORS = {
    "made_from_BloodImage_00000_not_an_image.jpg": "web page",
    "made_from_BloodImage_00000_truncated_60pct.jpg": "ends early",
    "made_from_BloodImage_00000_truncated_last20bytes.jpg": "ends early",
    "made_from_BloodImage_00000_zero_byte.jpg": "empty",
}
REAL_CLOSE = {
    "exif3": 0.5,
    "exif6": 0.5,
    "exif8": 0.5,
    "cmyk": 1,
    "rgba": 0,
    "is_png_named": 0,
    "palette": 4,
    "progressive": 1,
}


def test_real_dirty_images(real_data: Path) -> None:
    folder = real_data / "dirty_images"
    reference = decode(folder / "made_from_BloodImage_00000_is_png_named.jpg", DATA).pixels.astype(int)
    for path in sorted(folder.glob("*_*.*")):
        if path.name in REAL_ERRORS:
            with pytest.raises(InputError, match=REAL_ERRORS[path.name]):
                decode(path, DATA)
            continue
        pixels = decode(path, DATA).pixels
        assert pixels.shape == (*probe(path).shown_size, 3)
        for kind, close in REAL_CLOSE.items():
            if kind in path.name:
                assert np.abs(pixels - reference).mean() <= close, path.name
