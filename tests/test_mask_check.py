"""The check of masks: what it counts, what it finds, what it refuses; and masks drawn on pictures."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import DataConfig
from tutelage.data.check import CheckReport, check_sets
from tutelage.data.colors import class_colors
from tutelage.data.demo import class_mask, draw_scene
from tutelage.data.index import Index
from tutelage.data.mask_findings import count_seams
from tutelage.data.masks import MaskCoding
from tutelage.data.painting import OPACITY, name_places
from tutelage.data.sheets import augmentation_sheet, contact_sheet, draw_mask
from tutelage.data.sources import DataSets
from tutelage.types import IGNORE

DATA = DataConfig()
NAMES = ("ground", "star", "ring", "cross", "moon")
Mask = NDArray[np.uint8]


@cache
def scene(seed: int, size: int = 96) -> tuple[NDArray[np.uint8], Mask]:
    """A picture and its mask."""
    drawn = draw_scene(size, np.random.default_rng([78, seed]))
    return drawn.pixels, class_mask(drawn)


def indexed(
    folder: Path,
    masks: dict[str, Mask | None],
    *,
    names: tuple[str, ...] = NAMES,
    **columns: object,
) -> Index:
    """An index of images with masks, written into `folder`; regions by looping over the classes of each."""
    for below in ("images", "masks"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    regions: list[list[tuple[list[int], int, int]]] = []
    for number, (name, mask) in enumerate(masks.items()):
        if not (folder / "images" / name).exists():
            Image.fromarray(scene(number)[0]).save(folder / "images" / name)
        regions.append([])
        if mask is None:
            continue
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
        for label in range(len(names)):
            rows, columns_of = np.nonzero(mask == label)
            if len(rows):
                hull = [columns_of.min(), rows.min(), columns_of.max() + 1, rows.max() + 1]
                regions[-1].append((hull, label, len(rows)))
    flat = [region for several in regions for region in several]
    table = {label: label for label in range(len(names))} | {IGNORE: -1}
    return Index.build(
        roots=[folder / "images"],
        paths=list(masks),
        class_names=names,
        sizes=[(0, 0) if mask is None else mask.shape for mask in masks.values()],
        offsets=np.cumsum([0, *(len(several) for several in regions)]),
        xyxy=np.array([hull for hull, _, _ in flat], np.float64).reshape(-1, 4),
        labels=[label for _, label, _ in flat],
        area=[pixels for _, _, pixels in flat],
        masks=["" if mask is None else f"{name}.png" for name, mask in masks.items()],
        codings=[MaskCoding("values", folder / "masks", table)],
        description="mask folder a; images in images",
        **columns,  # type: ignore[arg-type]
    )


def scenes(folder: Path, seeds: Sequence[int]) -> Index:
    """An index of scenes with their masks."""
    (folder / "images").mkdir(parents=True)
    for seed in seeds:
        Image.fromarray(scene(seed)[0]).save(folder / "images" / f"{seed}.png")
    return indexed(folder, {f"{seed}.png": scene(seed)[1] for seed in seeds})


def checked(labeled: Index, data: DataConfig = DATA, **others: Index | None) -> CheckReport:
    sets = {"pool": None, "val": None, "test": None, **others}
    return check_sets(DataSets(labeled=labeled, hidden_labels=False, notes=[], **sets), data, seed=0)


def said(report: CheckReport, words: str) -> str:
    """The one line of the report that holds `words`."""
    lines = [line for line in report.lines() if words in line]
    assert len(lines) == 1, report.lines()
    return lines[0]


def filled(*parts: tuple[int, int]) -> Mask:
    """A mask 96 x 96 of bands: so many rows of each class."""
    return np.repeat([label for label, _ in parts], [rows for _, rows in parts]).astype(np.uint8)[:, None].repeat(96, 1)


def test_summary_by_hand(tmp_path: Path) -> None:
    masks = {"a.png": filled((0, 72), (1, 24)), "b.png": filled((0, 48), (2, 24), (IGNORE, 24))}
    report = checked(indexed(tmp_path, masks, names=("ground", "star", "ring")))
    assert report.lines()[:3] == [
        "labeled: mask folder a: 2 images with masks, 3 classes; images in images",
        "labeled: 96 x 96 pixels; 12% of the pixels without a label",  # 24 of 192 rows
        "labeled: labeled pixels of ground 71% in 2 images, star 14% in 1 image, ring 14% in 1 image",
    ]
    assert json.loads(json.dumps(report.as_dict()))["lines"] == report.lines()


def test_summary_counts_every_pixel(tmp_path: Path) -> None:
    index = scenes(tmp_path, range(6))
    masks = np.stack([scene(seed)[1] for seed in range(6)])
    summary = checked(index).summaries[0]
    expected = {
        name: (int((masks == k).sum()), int((masks == k).any(axis=(1, 2)).sum())) for k, name in enumerate(NAMES)
    }
    assert summary.classes == expected  # type: ignore[union-attr]
    assert summary.ignored == 0  # type: ignore[union-attr]


def test_classes_that_never_occur_and_rare_ones(tmp_path: Path) -> None:
    masks = {f"{number}.png": filled((0, 60), (number % 2, 36)) for number in range(8)}
    report = checked(indexed(tmp_path, masks))
    assert said(report, "never occur").startswith("labeled: 3 classes never occur")
    assert said(report, "never occur").endswith(": ring, cross, moon.")
    assert said(report, "too few to rely on") == (
        "labeled: 1 class is in fewer than 5 images, too few to rely on: star (4)."
    )
    assert not [line for line in report.lines() if "box" in line], "regions are not boxes"


def test_images_without_a_mask_and_masks_without_a_class_are_counted(tmp_path: Path) -> None:
    masks = {"a.png": filled((0, 96)), "b.png": filled((IGNORE, 96)), "c.png": None, "d.png": filled((IGNORE, 96))}
    report = checked(indexed(tmp_path, masks, counts={"masks without an image": 2, "masks dropped": 0}))
    assert "2 images whose mask is all ignored" in said(report, "all ignored")
    assert said(report, "all ignored").endswith("First: b.png, d.png.")
    assert said(report, "without a mask;").endswith("First: c.png.")
    assert said(report, "without an image") == "labeled: 2 masks without an image."
    assert "67% of the pixels have no label" in said(report, "have no label")


def test_classes_that_are_tested_but_never_labeled(tmp_path: Path) -> None:
    labeled = indexed(tmp_path / "l", {"a.png": filled((0, 96))})
    test = indexed(tmp_path / "t", {"b.png": filled((0, 40), (1, 56)), "c.png": filled((1, 95), (3, 1))})
    sets = DataSets(labeled=labeled, pool=None, hidden_labels=False, val=None, test=test, notes=[])
    report = check_sets(sets, DATA, seed=0, annotations_only=True)
    line = said(report, "cannot be learned: star")
    assert line == (
        "test: pixels of classes without a labeled example, which cannot be learned: star (2 images), cross (1 image)."
    )


def turned(folder: Path, sizes: dict[str, tuple[int, int]], mask_sizes: dict[str, tuple[int, int]]) -> Index:
    """Photographs with EXIF orientation 6 (stored lying, shown standing) with masks of given sizes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "images").mkdir(parents=True)
    for number, (name, (height, width)) in enumerate(sizes.items()):
        Image.fromarray(scene(number)[0][:height, :width]).save(folder / "images" / name, exif=exif)
    masks: dict[str, Mask | None] = {}
    for name, size in mask_sizes.items():
        masks[name] = np.zeros(size, np.uint8)
        masks[name][: size[0] // 2] = 1  # type: ignore[index]
    return indexed(folder, masks)


def test_turned_images_are_counted_by_how_their_masks_were_understood(tmp_path: Path) -> None:
    sizes = {"a.jpg": (60, 96), "b.jpg": (60, 96), "c.jpg": (80, 80)}
    index = turned(tmp_path, sizes, {"a.jpg": (60, 96), "b.jpg": (96, 60), "c.jpg": (80, 80)})
    report = checked(index, DataConfig(boxes_in="stored"))
    assert "a.jpg" in said(report, "masks taken as drawn on the stored pixels, as their size says")
    assert "b.jpg" in said(report, "masks taken as drawn on the shown pixels, as their size says")
    assert "c.jpg" in said(report, "masks taken as drawn on the stored pixels; if wrong, change data.boxes_in")


def blurred(mask: Mask) -> Mask:
    return np.asarray(cv2.resize(cv2.resize(mask, None, fx=0.7, fy=0.7), mask.shape[::-1]), np.uint8)


def through_jpeg(mask: Mask) -> Mask:
    content = cv2.imencode(".jpg", mask * np.uint8(10), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return np.rint(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) / 10).clip(0, 4).astype(np.uint8)


@pytest.mark.parametrize("damage", [blurred, through_jpeg])
def test_blended_masks_are_found_and_clean_ones_are_not(tmp_path: Path, damage: Callable[[Mask], Mask]) -> None:
    clean = {f"{seed}.png": scene(seed)[1] for seed in range(8)}
    assert not [line for line in checked(indexed(tmp_path / "clean", clean)).lines() if "seams" in line]
    damaged = {name: damage(mask) for name, mask in clean.items()}
    line = said(checked(indexed(tmp_path / "damaged", damaged)), "seams")
    assert " of 8 masks looked at have seams" in line and "nearest neighbor" in line


def test_seams_by_hand() -> None:
    columns = np.array([0, 0, 0, 0, 2, 4, 4, 4, 4, 4, 7, 4, 4, 4], np.uint8)
    mask = columns[None].repeat(10, 0)
    # the 2 lies between 0 and 4; the 7 is a thin thing on 4, above all that is near it
    # borders: 0|2, 2, 2|4 and 4|7, 7, 7|4, each of 10 rows
    assert count_seams(mask, [0, 2, 4, 7]) == (10, 60)
    assert count_seams(mask, [0, 4, 7])[0] == 0, "values of no class are nobody's seam"
    assert count_seams(mask.repeat(2, 1), [0, 2, 4, 7])[0] == 0, "two pixels wide is a thing"
    assert count_seams(np.zeros((1, 1), np.uint8), [0]) == (0, 0)


def test_leaks_and_copies_are_found_as_ever(tmp_path: Path) -> None:
    labeled, test = scenes(tmp_path / "l", range(30)), scenes(tmp_path / "t", [3, 40, 41])
    report = checked(labeled, test=test)
    assert report.leaked_rows.tolist() == [3]
    assert "1 image also in the test set, left out of training" in said(report, "left out of training")


def test_a_pool_needs_no_masks(tmp_path: Path) -> None:
    pool = Index.build(
        roots=[tmp_path / "p" / "images"],
        paths=[f"{seed}.png" for seed in range(10, 14)],
        class_names=(),
        annotated=False,
        description="folder p",
    )
    scenes(tmp_path / "p", range(10, 14))
    report = checked(scenes(tmp_path / "l", range(6)), pool=pool)
    assert report.pool_looked_at == 4 and report.gap is not None
    assert "pool: folder p: 4 images (labels are not used)" in report.lines()


def test_painted_classes_have_their_colors_and_the_picture_shines_through() -> None:
    picture = Image.fromarray(np.full((60, 90, 3), 100, np.uint8))
    mask = np.zeros((20, 30), np.uint8)  # smaller than the picture: it is enlarged
    mask[:, 10:20], mask[:, 20:] = 1, IGNORE
    drawn = np.asarray(draw_mask(picture, mask, ("a" * 80, "b" * 80))).astype(int)  # names without room
    assert (np.asarray(picture) == 100).all(), "the given picture is not changed"
    share = OPACITY / 255
    for label, middle in ((0, 15), (1, 45)):
        expected = share * class_colors(2)[label] + (1 - share) * 100
        np.testing.assert_allclose(drawn[30, middle], expected, atol=1)
    assert drawn[30, 30].max() < 60, "an outline where the class changes"
    striped = drawn[5:55, 65:]
    assert len(np.unique(striped.reshape(-1, 3), axis=0)) == 2 and (striped[..., :1] == striped).all()


def test_names_stand_inside_their_class_and_only_where_there_is_room() -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[:, 100:] = 1
    mask[40:44, 20:24] = 2
    picture = Image.new("RGB", (200, 100))
    plain, named = (np.asarray(draw_mask(picture, mask, names)) for names in (("", "", ""), ("sky", "sea", "islet")))
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert {"left": (columns < 100).any(), "right": (columns >= 100).any()} == {"left": True, "right": True}
    places = {place.label: place for place in name_places(mask)}
    assert places[1].radius > 40 and places[2].radius <= 3
    assert mask[places[0].y, places[0].x] == 0 and places[1].x > 100
    for column, row in zip(columns.tolist(), rows.tolist(), strict=True):
        assert min(abs(row - places[label].y) for label in (0, 1)) < 15 and column < 200


def test_contact_sheet_of_masks_has_a_legend(tmp_path: Path) -> None:
    index = scenes(tmp_path, range(3))
    sheet = np.asarray(contact_sheet(index, DATA, seed=0))
    assert sheet.shape[1] == 3 * 264 + 8 and sheet.shape[0] > 282 + 8, "a strip below the pictures"
    strip = {tuple(color) for color in sheet[290:].reshape(-1, 3).tolist()}
    assert {tuple(color) for color in class_colors(5).tolist()} <= strip
    np.testing.assert_array_equal(sheet, np.asarray(contact_sheet(index, DATA, seed=0)))
    picture = np.asarray(Image.fromarray(scene(0)[0]).resize((256, 256), Image.Resampling.LANCZOS))
    assert (sheet[8:264, 8:264] != picture).mean() > 0.5, "painted over"


def test_an_image_without_a_mask_is_shown_bare(tmp_path: Path) -> None:
    index = indexed(tmp_path, {"a.png": None})
    sheet = np.asarray(contact_sheet(index, DATA, seed=0))
    bare = np.asarray(Image.fromarray(scene(0)[0]).resize((256, 256), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sheet[8:264, 8:264], bare)


def test_augmentation_sheet_shows_the_mask_under_every_level(tmp_path: Path) -> None:
    masks = {"a.png": filled((0, 96)), "b.png": filled((0, 30), (1, 30), (2, 36))}
    sheet = np.asarray(augmentation_sheet(indexed(tmp_path, masks), DATA, seed=0))
    again = np.asarray(augmentation_sheet(indexed(tmp_path, masks), DATA, seed=0))
    np.testing.assert_array_equal(sheet, again)
    first = sheet[8 : 8 + 320, 80 : 80 + 320]  # no augmentation: bands of three classes
    share = OPACITY / 255
    for label, row in ((0, 20), (1, 120), (2, 300)):
        paint = first[row, 300].astype(float) - share * class_colors(3)[label]
        assert (paint >= -1).all() and (paint <= (1 - share) * 255 + 1).all()
    assert all(row.std() > 20 for row in np.array_split(sheet, 5))
