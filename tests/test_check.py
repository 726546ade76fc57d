"""The check: what it counts, what it refuses, which copies it finds, and how it says so."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import DataConfig
from tutelage.data import survey as survey_module
from tutelage.data.check import CheckReport, check_sets
from tutelage.data.demo import draw_scene
from tutelage.data.duplicates import HashBook, groups_of, leaks_between, near_duplicate_groups
from tutelage.data.gap import Gap, gap_between
from tutelage.data.index import Index
from tutelage.data.sheets import contact_sheet, draw_boxes
from tutelage.data.sources import DataSets
from tutelage.data.survey import Prints, survey
from tutelage.types import IGNORE_REGION, Boxes, InputError

DATA = DataConfig()
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float, int]


@cache
def scene(seed: int, size: int = 96) -> Pixels:
    return draw_scene(size, np.random.default_rng([77, seed])).pixels


def recompressed(pixels: Pixels, quality: int = 40) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(pixels: Pixels, scale: float) -> Pixels:
    return np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def write(folder: Path, pictures: dict[str, Pixels]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)


def indexed(
    folder: Path,
    boxes: dict[str, Sequence[Box]],
    *,
    sizes: dict[str, tuple[int, int]] | None = None,
    names: tuple[str, ...] = ("cat", "dog"),
    **columns: object,
) -> Index:
    """An index of files in `folder` with boxes (x1, y1, x2, y2, label)."""
    flat = [box for several in boxes.values() for box in several]
    return Index.build(
        roots=[folder],
        paths=list(boxes),
        class_names=names,
        sizes=[(sizes or {}).get(name, (96, 96)) for name in boxes],
        offsets=np.cumsum([0, *(len(several) for several in boxes.values())]),
        xyxy=np.array([box[:4] for box in flat], np.float64).reshape(-1, 4),
        labels=[box[4] for box in flat],
        description="COCO json a.json; images in images",
        **columns,  # type: ignore[arg-type]
    )


def pictures(folder: Path, seeds: Sequence[int], prefix: str = "", **columns: object) -> Index:
    """An index of scenes, one 20 x 20 box of alternating class each."""
    names = [f"{prefix}{seed}.png" for seed in seeds]
    write(folder, {name: scene(seed) for name, seed in zip(names, seeds, strict=True)})
    return indexed(
        folder, {name: [(10, 10, 30, 30, seed % 2)] for name, seed in zip(names, seeds, strict=True)}, **columns
    )


def sets(labeled: Index, pool: Index | None = None, test: Index | None = None, val: Index | None = None) -> DataSets:
    return DataSets(labeled=labeled, pool=pool, hidden_labels=False, val=val, test=test, notes=[])


def said(report: CheckReport, words: str) -> str:
    """The one line of the report that holds `words`."""
    lines = [line for line in report.lines() if words in line]
    assert len(lines) == 1, report.lines()
    return lines[0]


def checked(index: Index, data: DataConfig = DATA, **others: Index) -> CheckReport:
    return check_sets(sets(index, **others), data, seed=0)


def test_summary_of_a_clean_set(tmp_path: Path) -> None:
    boxes = {"a.png": [(0, 0, 20, 20, 0), (0, 0, 40, 40, 1), (30, 30, 60, 60, 1)], "b.png": [(0, 0, 96, 96, 0)]}
    write(tmp_path, {"a.png": scene(1), "b.png": scene(2)})
    report = checked(indexed(tmp_path, boxes))
    assert report.lines()[:3] == [
        "labeled: COCO json a.json: 2 images, 4 boxes, 2 classes; images in images",
        "labeled: 96 x 96 pixels; 1 to 3 boxes an image, median 2; 50% small, 25% medium, 25% large",
        "labeled: boxes of cat 2, dog 2",
    ]
    assert json.loads(json.dumps(report.as_dict()))["lines"] == report.lines()


def test_annotated_area_bins_sizes_and_ignored_boxes_are_not_counted(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": scene(1)})
    boxes = {"a.png": [(0, 0, 90, 90, 0), (0, 0, 96, 96, 0)]}
    report = checked(indexed(tmp_path, boxes, area=[100, 9300], ignore=[0, IGNORE_REGION]))
    summary = report.summaries[0]
    assert summary.boxes_per_class == {"cat": 1, "dog": 0}
    assert summary.box_sizes == (0.5, 0, 0.5)


def test_findings_about_boxes(tmp_path: Path) -> None:
    write(tmp_path, {name: scene(seed) for seed, name in enumerate(("a.png", "b.png", "c.png"))})
    boxes = {
        "a.png": [(10, 10, 50, 50, 0), (40, 40, 80, 80, 0), (10, 10, 50, 50.5, 0), (10, 10, 50, 50, 1)],
        "b.png": [],
        "c.png": [(5, 5, 8, 9, 0), (0, 40, 96, 46, 1)],
    }
    report = checked(indexed(tmp_path, boxes, counts={"boxes clipped": 3, "boxes dropped": 0}))
    assert "1 box almost equal to another" in said(report, "almost equal") and "a.png" in said(report, "almost equal")
    assert said(report, "without a box").endswith("First: b.png.")
    assert "1 box less than 4 pixels" in said(report, "4 pixels") and "c.png" in said(report, "4 pixels")
    assert "1 box more than 12 times" in said(report, "12 times")
    assert "2 classes have fewer than 10 boxes" in said(report, "fewer than 10")
    assert said(report, "clipped") == "labeled: 3 boxes clipped."
    assert not [line for line in report.lines() if "dropped" in line]


@pytest.mark.parametrize("seed", range(3))
def test_repeated_boxes_equal_brute_force(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"{number}.png" for number in range(6)]
    boxes: dict[str, list[Box]] = {}
    for name in names:
        corners = rng.uniform(0, 40, (int(rng.integers(0, 12)), 2)).round()
        plain = [(x, y, x + 40.0, y + 40.0, int(rng.integers(2))) for x, y in corners.tolist()]
        jittered = [(x1 + 0.4, y1, x2, y2, label) for x1, y1, x2, y2, label in plain if rng.random() < 0.3]
        boxes[name] = [
            plain[k] if k < len(plain) else jittered[k - len(plain)]
            for k in rng.permutation(len(plain) + len(jittered))
        ]
    repeated = 0
    for several in boxes.values():
        for k, (x1, y1, x2, y2, label) in enumerate(several):
            earlier = [box for box in several[:k] if box[4] == label]
            inside = [max(min(x2, b[2]) - max(x1, b[0]), 0) * max(min(y2, b[3]) - max(y1, b[1]), 0) for b in earlier]
            area = [(b[2] - b[0]) * (b[3] - b[1]) for b in earlier]
            repeated += any(i / ((x2 - x1) * (y2 - y1) + a - i) > 0.95 for i, a in zip(inside, area, strict=True))
    report = check_sets(sets(indexed(tmp_path, boxes)), DATA, seed=0, annotations_only=True)
    assert repeated > 0
    assert f" {repeated} box" in said(report, "almost equal")


def test_findings_about_image_files(tmp_path: Path) -> None:
    write(tmp_path, {"same.png": scene(1), "other.png": scene(2), "copy.png": scene(1), "long.png": scene(3)[:20]})
    Image.fromarray(scene(4)).save(tmp_path / "early.jpg")
    content = (tmp_path / "early.jpg").read_bytes()
    (tmp_path / "early.jpg").write_bytes(content[:-40])
    names = ("same.png", "other.png", "copy.png", "long.png", "early.jpg")
    boxes: dict[str, Sequence[Box]] = {name: [(1, 1, 15, 15, 0)] for name in names}
    index = indexed(tmp_path, boxes, sizes={"other.png": (480, 640), "long.png": (0, 0), "copy.png": (0, 0)})
    report = checked(index, DataConfig(truncated="accept"))
    assert "1 image of another size than annotated" in said(report, "another size")
    assert "other.png" in said(report, "another size")
    assert "1 image repeating" in said(report, "repeating") and "copy.png" in said(report, "repeating")
    assert "long.png" in said(report, "4 times") and "long.png" in said(report, "below 32 pixels")
    assert "early.jpg" in said(report, "ending early")
    assert "96 x 20 to 96 x 96 pixels" in report.lines()[1]


def test_turned_images_are_counted_by_how_their_boxes_were_understood(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(4):
        Image.fromarray(scene(number)[:60]).save(tmp_path / f"{number}.jpg", exif=exif)
    boxes: dict[str, Sequence[Box]] = {f"{number}.jpg": [(1, 1, 15, 15, 0)] for number in range(3)} | {"3.jpg": []}
    index = indexed(tmp_path, boxes, sizes={"0.jpg": (60, 96), "1.jpg": (96, 60), "2.jpg": (0, 0), "3.jpg": (0, 0)})
    report = checked(index, DataConfig(boxes_in="stored"))
    assert "0.jpg" in said(report, "drawn on the stored pixels, as the annotated size says")
    assert "1.jpg" in said(report, "drawn on the shown pixels, as the annotated size says")
    assert "2.jpg" in said(report, "drawn on the stored pixels; if wrong, change data.boxes_in")
    assert not any("another size" in line for line in report.lines())


def test_broken_labeled_images_are_an_error_that_names_them(tmp_path: Path) -> None:
    index = pictures(tmp_path, range(10))
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png: is empty"):
        checked(index)
    for number in range(4, 10):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(
        InputError, match=r"(?s)7 of 10 images cannot be used.*3\.png.*4\.png: cannot be read.*and 2 more"
    ):
        checked(index)


def test_broken_pool_images_are_found_not_fatal(tmp_path: Path) -> None:
    labeled, pool = pictures(tmp_path / "l", range(4)), pictures(tmp_path / "p", range(10, 15), annotated=False)
    (tmp_path / "p" / "11.png").write_bytes(b"<html>")
    report = checked(labeled, pool=pool)
    assert "pool: 1 image that cannot be used" in said(report, "cannot be used")
    assert "web page" in said(report, "cannot be used")
    assert report.pool_looked_at == 5


def test_the_pool_is_sampled_with_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.data.gap.SAMPLE", 3)
    labeled, pool = pictures(tmp_path / "l", range(2)), pictures(tmp_path / "p", range(10, 16), annotated=False)
    opened: list[Path] = []
    look = survey_module._look
    monkeypatch.setattr(survey_module, "_look", lambda path, data: (opened.append(path), look(path, data))[1])
    report = checked(labeled, pool=pool)
    assert len([path for path in opened if path.parent.name == "p"]) == 3
    assert "3 images looked at" in said(report, "looked at")


def test_annotations_alone_need_no_images(tmp_path: Path) -> None:
    boxes: dict[str, Sequence[Box]] = {"none.png": [(0, 0, 20, 20, 0)], "gone.png": []}
    index = indexed(tmp_path, boxes)
    report = check_sets(sets(index, index, index), DATA, seed=0, annotations_only=True)
    assert said(report, "labeled: boxes of") == "labeled: boxes of cat 1, dog 0"
    assert report.leaks == {} and report.gap is None and len(report.leaked_rows) == 0


def test_classes_that_are_tested_but_never_labeled(tmp_path: Path) -> None:
    labeled = indexed(tmp_path, {"a.png": [(0, 0, 20, 20, 0)]})
    test = indexed(tmp_path, {"b.png": [(0, 0, 20, 20, 1), (5, 5, 30, 30, 1)]})
    report = check_sets(sets(labeled, test=test), DATA, seed=0, annotations_only=True)
    assert said(report, "without a labeled example").startswith("test: ") and "dog (2)" in said(
        report, "cannot be learned"
    )


def leaky(tmp_path: Path, leaked: int, labeled: int = 40) -> DataSets:
    """Labeled scenes of which the first `leaked` are in test too, as other files of other quality."""
    ours = pictures(tmp_path / "l", range(labeled))
    theirs = {f"t{seed}.png": scene(seed) for seed in range(100, 110)}
    theirs |= {f"same{seed}.png": recompressed(scene(seed)) if seed else scene(0) for seed in range(leaked)}
    write(tmp_path / "t", theirs)
    return sets(ours, test=indexed(tmp_path / "t", {name: [(1, 1, 20, 20, 0)] for name in theirs}))


def test_few_leaks_are_named_and_left_out(tmp_path: Path) -> None:
    found = check_sets(leaky(tmp_path, 2), DATA, seed=0)
    assert found.leaked_rows.tolist() == [0, 1]
    assert found.leaks["test"].exact.tolist() == [True, False]
    assert "2 images also in the test set, left out" in said(found, "left out of training")
    assert found.as_dict()["leaked_images"] == 2


def test_many_leaks_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"3 of 40 images are also in the test set \(0\.png equals same0\.png\); at most 5%"
    ):
        check_sets(leaky(tmp_path, 3), DATA, seed=0)


def test_no_leak_is_said_too(tmp_path: Path) -> None:
    clean = leaky(tmp_path, 0)
    assert said(check_sets(clean, DATA, seed=0), "leaks:") == "leaks: no labeled image is in the test set"
    found = check_sets(replace(clean, val=pictures(tmp_path / "v", range(200, 203))), DATA, seed=0)
    assert said(found, "leaks:") == "leaks: no labeled image is in the test set or the selection split"


def test_copies_of_selection_images_are_left_out_like_those_of_test_images(tmp_path: Path) -> None:
    both = replace(leaky(tmp_path, 2), val=pictures(tmp_path / "v", [1, 7, 200]))
    found = check_sets(both, DATA, seed=0)
    assert found.leaked_rows.tolist() == [0, 1, 7] and found.as_dict()["leaked_images"] == 3
    assert said(found, "also in the selection split, left out of training").startswith("labeled: 2 images")
    with pytest.raises(InputError, match=r"3 of 40 images are also in the selection split .*leave out --val"):
        check_sets(replace(both, val=pictures(tmp_path / "w", [5, 6, 7])), DATA, seed=0)


def test_a_pool_that_is_the_test_set_stops_the_run(tmp_path: Path) -> None:
    labeled, test = pictures(tmp_path / "l", range(6)), pictures(tmp_path / "t", range(50, 60))
    write(tmp_path / "p", {f"p{seed}.png": recompressed(scene(seed), 80) for seed in range(50, 60)})
    pool = indexed(tmp_path / "p", {f"p{seed}.png": [] for seed in range(50, 60)}, annotated=False)
    with pytest.raises(InputError, match="--unlabeled: 10 of 10 sampled images are also in the test set"):
        checked(labeled, pool=pool, test=test)
    mixed = pictures(tmp_path / "m", [50, 51, 3, *range(70, 78)], annotated=False)
    report = checked(labeled, pool=mixed, test=test)
    assert "2 of 11 sampled images are also in test" in said(report, "also in test")
    assert "1 of 11 sampled images are also in labeled" in said(report, "also in labeled")


def test_selection_images_that_are_elsewhere_are_said(tmp_path: Path) -> None:
    labeled, val = pictures(tmp_path / "l", range(30)), pictures(tmp_path / "v", [90, 91, 92, 93])
    pool = pictures(tmp_path / "p", [60, 92, 93, 94], annotated=False)
    report = checked(labeled, val=val, test=pictures(tmp_path / "t", [80, 90, 81]), pool=pool)
    assert "val: 1 image also in test" in said(report, "hindsight")
    assert "pool: 2 of 4 sampled images are also in val; such are left out" in said(report, "left out as they are")


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda pixels: resized(pixels, 0.5),
        lambda pixels: resized(pixels, 2.3),
        lambda pixels: np.clip(pixels.astype(int) + 6, 0, 255).astype(np.uint8),
    ],
    ids=["recompressed", "half", "larger", "brighter"],
)
def test_copies_are_recognized_among_other_scenes(tmp_path: Path, change: object) -> None:
    index = pictures(tmp_path, range(12))
    book = HashBook.build(index, DATA)
    assert all(book.contains(change(scene(seed))) for seed in range(12))  # type: ignore[operator]
    assert not any(book.contains(change(scene(seed))) for seed in range(100, 140))  # type: ignore[operator]


def test_a_reduced_decode_is_recognized(tmp_path: Path) -> None:
    big = {f"{seed}.jpg": scene(seed, 512) for seed in range(4)}
    write(tmp_path, big)
    book = HashBook.build(indexed(tmp_path, {name: [] for name in big}), DATA)
    assert all(book.contains(resized(pixels, 0.25)) for pixels in big.values())


def cells(count: int, seed: int) -> Pixels:
    """A flat bright ground with small faint disks, like a microscope's; hardly any structure for a hash."""
    rng = np.random.default_rng(seed)
    pixels = np.full((240, 320, 3), 200, np.float32)
    for x, y in rng.integers(20, 220, (count, 2)):
        cv2.circle(pixels, (int(x), int(y)), 14, (170, 150, 160), -1)
    return np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


def test_similar_flat_images_are_not_copies(tmp_path: Path) -> None:
    write(tmp_path, {f"{seed}.png": cells(6, seed) for seed in range(12)})
    index = indexed(tmp_path, {f"{seed}.png": [] for seed in range(12)})
    assert len(np.unique(near_duplicate_groups(index, DATA))) == 12
    assert HashBook.build(index, DATA).contains(recompressed(cells(6, 3), 70))


def test_a_moved_object_makes_another_image(tmp_path: Path) -> None:
    pair = np.full((2, 200, 200, 3), 90, np.uint8)
    pair[:, :, 100:] = 160
    pair[0, 40:56, 40:56] = pair[1, 120:136, 40:56] = 220
    write(tmp_path, {"a.png": pair[0], "b.png": pair[1]})
    assert near_duplicate_groups(indexed(tmp_path, {"a.png": [], "b.png": []}), DATA).tolist() == [0, 1]


def test_blank_images_are_copies_only_when_their_bytes_are(tmp_path: Path) -> None:
    blank = np.full((50, 50, 3), 128, np.uint8)
    write(tmp_path, {"a.png": blank, "b.png": blank, "c.png": blank + 1})
    index = indexed(tmp_path, {"a.png": [], "b.png": [], "c.png": []})
    assert near_duplicate_groups(index, DATA).tolist() == [0, 0, 1]
    assert not HashBook.build(index, DATA).contains(blank)


def test_groups_join_through_others_in_the_order_of_first_images(tmp_path: Path) -> None:
    index = pictures(tmp_path, [4, 1, 2])
    one = survey(index, DATA).prints.select(np.array([0, 1, 0, 2, 1, 0]))
    assert groups_of(one).tolist() == [0, 1, 0, 2, 1, 0]
    # a chain whose ends alone differ too much: neighbors in steps of 3 gray levels over half the thumbnail
    chain = np.repeat(one.thumbnails[:1], 12, axis=0).astype(np.int16)
    chain[:, :, :12] += 4 * np.arange(12)[:, None, None]
    prints = Prints(
        np.arange(24, dtype=np.uint64).reshape(12, 2), one.hashes[[0] * 12], np.clip(chain, 0, 255).astype(np.uint8)
    )
    assert groups_of(prints.select(np.array([0, 11]))).tolist() == [0, 1]
    assert set(groups_of(prints).tolist()) == {0}
    assert groups_of(one.select(np.zeros(0, np.int64))).tolist() == []


def test_difference_hash_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    tiny = rng.permutation(72).reshape(8, 9).astype(np.uint8) * 3
    pixels = np.repeat(np.repeat(np.repeat(tiny, 12, 0), 12, 1)[..., None], 3, 2)  # 96 x 108: no resampling but by 12
    code, thumbnail = survey_module.fingerprint(survey_module.working_size(pixels))
    expected = sum(1 << (8 * y + x) for y in range(8) for x in range(8) if tiny[y, x + 1] > tiny[y, x])
    assert int(code) == expected
    assert thumbnail.shape == (24, 24)


def test_leaks_between_sets(tmp_path: Path) -> None:
    ours, theirs = pictures(tmp_path / "a", [1, 2, 3, 4]), pictures(tmp_path / "b", [9, 4, 2])
    leaks = leaks_between(survey(ours, DATA).prints, survey(theirs, DATA).prints)
    assert (leaks.rows.tolist(), leaks.twins.tolist()) == ([1, 3], [2, 1])


def test_a_survey_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = pictures(tmp_path, range(3))
    first = survey(index, DATA)
    monkeypatch.setattr(survey_module, "_look", lambda path, data: pytest.fail("opened again"))
    again = survey(index, DATA)
    for name in ("sizes", "hashes", "thumbnails", "traits", "reasons"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    monkeypatch.undo()
    Image.fromarray(scene(50)).save(tmp_path / "1.png")
    assert survey(index, DATA).hashes[1] != first.hashes[1]


def changed(folder: Path, seeds: Sequence[int], change: object) -> Index:
    write(folder, {f"{seed}.png": change(scene(seed)) for seed in seeds})  # type: ignore[operator]
    return indexed(folder, {f"{seed}.png": [] for seed in seeds}, annotated=False)


def gap_of(labeled: Index, pool: Index) -> Gap | None:
    return gap_between(survey(labeled, DATA), survey(pool, DATA))


@pytest.mark.parametrize(
    ("change", "part", "words"),
    [
        (lambda pixels: pixels // 3, "color", "darker|flatter|paler"),
        (lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 3), "sharpness", "blurrier"),
        (lambda pixels: resized(pixels, 3), "size", "larger"),
    ],
)
def test_the_domain_gap_names_what_differs(tmp_path: Path, change: object, part: str, words: str) -> None:
    labeled = pictures(tmp_path / "l", range(20))
    gap = gap_of(labeled, changed(tmp_path / "p", range(40, 70), change))
    assert gap is not None and gap.value >= 1.5
    assert gap.parts[part] == gap.value
    assert any(word in gap.sentence() for word in words.split("|"))
    assert "much" in gap.sentence()


def test_the_domain_gap_of_like_images_is_small(tmp_path: Path) -> None:
    labeled = pictures(tmp_path / "l", range(30))
    same = gap_of(labeled, changed(tmp_path / "p", range(200, 260), lambda pixels: pixels))
    assert same is not None and same.value < 0.5
    assert "looks like the labeled images" in same.sentence()
    assert gap_of(labeled, changed(tmp_path / "q", [1], lambda pixels: pixels)) is None


def test_contact_sheet_shows_boxes_of_a_seeded_choice(tmp_path: Path) -> None:
    index = pictures(tmp_path, range(30))
    sheet = contact_sheet(index, DATA, seed=0)
    assert sheet.mode == "RGB" and sheet.size == (6 * 264 + 8, 4 * 282 + 8)
    np.testing.assert_array_equal(np.asarray(sheet), np.asarray(contact_sheet(index, DATA, seed=0)))
    assert (np.asarray(sheet) != np.asarray(contact_sheet(index, DATA, seed=1))).any()
    assert contact_sheet(index.select(np.arange(2)), DATA, seed=0).size == (2 * 264 + 8, 282 + 8)


def test_drawn_boxes_lie_on_their_edges() -> None:
    picture = Image.new("RGB", (120, 100))
    boxes = Boxes.build([[30, 40, 70, 80]], [1], [0.5])
    drawn = np.asarray(draw_boxes(picture, boxes, ("cat", "dog")))
    assert not np.asarray(picture).any(), "the given picture is not changed"
    colored = drawn[41:].any(axis=2)  # below the name
    rows, columns = np.flatnonzero(colored.any(axis=1)) + 41, np.flatnonzero(colored.any(axis=0))
    assert (columns[0], columns[-1], rows[-1]) == (30, 69, 79)
    assert not drawn[45:75, 35:65].any(), "the inside stays"
    ignored = np.asarray(draw_boxes(picture, replace(boxes, ignore=np.array([1], np.uint8)), ("cat", "dog")))
    assert set(map(tuple, ignored[60, 30:31].tolist())) == {(150, 150, 150)}
    outside = Boxes.build([[-10, -10, 500, 3], [119, 99, 120, 100]], [0, 1])
    assert draw_boxes(picture, outside, ("cat", "dog")).size == (120, 100)
