"""The report of a segmentation run: what its page says, what it paints, what it counts."""

import base64
import re
import shutil
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.report_page import Page, change_record, page_of
from tests.run_folder import write_run_folder
from tutelage.config import EvalConfig, PseudoConfig
from tutelage.data.colors import class_colors
from tutelage.data.masks import decode_png, encode_png
from tutelage.data.painting import OPACITY
from tutelage.data.pseudo import open_store
from tutelage.data.thumbnails import Album
from tutelage.files import read_json
from tutelage.reporting.kinds import KINDS, Kind
from tutelage.reporting.masks.compare import GAINED, LOST, RIGHT, WRONG, changes, count_changes, masks_by_image
from tutelage.reporting.masks.paint import change_overlay, class_names_on, class_view
from tutelage.reporting.masks.pseudo import LEVEL_BINS, summarize_pixels, view_store
from tutelage.reporting.page import percent, typeset, write_report
from tutelage.reporting.read import read_evaluation, read_run
from tutelage.types import IGNORE

NAMES = ("background", "disk", "square", "triangle", "cross")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests only read, with its page."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    write_run_folder(folder, task="segmentation", class_names=NAMES, num_test=12, num_pool=40)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished / "report.html").read_text())


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; its pictures stay where they are."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("images")))


def painted(uri: str) -> np.ndarray:
    """RGBA (h, w, 4) of a PNG data URI."""
    packed = np.frombuffer(base64.b64decode(uri.removeprefix("data:image/png;base64,")), np.uint8)
    return cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)


def shown_percent(share: float) -> str:
    """A share as a page's text has it, where every space is a plain one."""
    return percent(share).replace("\xa0", " ")


def scene_uses(page: Page) -> list[str]:
    """Ids of photographs that further views point at."""
    return [use["href"][1:] for use in page.named("use") if "href" in use]


# The page


def test_the_page_speaks_of_masks(finished: Path, page: Page) -> None:
    record = read_json(finished / "run.json")
    assert page.open == []
    assert typeset(record["verdict"]) in page.text and "+1.6 mIoU" in page.text
    assert "mIoU points" in page.text and "mIoU on the selection split" in page.text
    assert "IoU by class (5)" in page.text and "Boundary IoU by class (5)" in page.text
    assert "Pixel accuracy 72.7" in page.text and "Labeled pixels" in page.text
    assert not re.search(r"\bAP\b|[Bb]oxes an image|Precision and recall|COCO figures", page.text)
    counts = open_store(next(finished.glob("stages/pseudo-*"))).counts(PseudoConfig())
    assert shown_percent(counts["pixels_kept"] / counts["pixels"]) in page.text


def test_a_class_without_truth_is_not_available(page: Page) -> None:
    assert re.search(r"cross 0 0 n/a n/a n/a \D", page.text), "neither a figure nor a difference"


def test_every_scene_has_four_described_pictures_of_one_photo(page: Page) -> None:
    pictures = [one["aria-label"] for one in page.named("svg") if "picture" in (one.get("class") or "")]
    scenes = [label for label in pictures if not label.startswith("Pseudo-mask")]
    assert [label.split(" of ")[0] for label in scenes[:3]] == ["Truth", "Teacher", "Student"]
    assert len(scenes) == 4 * 8 and all("background" in label for label in scenes if label[0] in "TS")
    assert all(" gained, " in label and " lost, " in label for label in scenes if label.startswith("What changed"))
    ids = [one["id"] for one in page.named("image") if "id" in one]
    assert sorted(ids) == sorted(set(scene_uses(page))) and len(ids) == 8


def test_the_page_is_self_contained_and_small(finished: Path, page: Page) -> None:
    targets = [tag[key] or "" for _, tag in page.tags for key in ("href", "src", "xlink:href") if key in tag]
    assert all(re.match("#|data:image/(jpeg|png);base64,", target) for target in targets)
    assert {name for name, _ in page.tags}.isdisjoint({"script", "link", "iframe", "img"})
    assert (finished / "report.html").stat().st_size < 1_000_000


def test_shares_of_the_page_are_those_of_the_pixels(finished: Path, page: Page) -> None:
    tables = {
        role: pq.read_table(next(finished.glob(f"stages/evaluate-{role}-*/predictions.parquet"))).to_pylist()
        for role in ("teacher", "student")
    }
    truth = pq.read_table(next(finished.glob("stages/evaluate-teacher-*/truth.parquet"))).to_pylist()
    gained = lost = scored = 0
    for place, row in enumerate(truth):
        there, before, after = (decode_png(one["mask"]) for one in (row, *(tables[role][place] for role in tables)))
        for right, was, now in zip(
            there.ravel().tolist(), before.ravel().tolist(), after.ravel().tolist(), strict=True
        ):
            scored += right != IGNORE
            gained += right != IGNORE and was != right == now
            lost += right != IGNORE and was == right != now
    assert f"{shown_percent(gained / scored)} were gained" in page.text
    assert f"and {shown_percent(lost / scored)} lost" in page.text
    assert gained > lost > 0


@pytest.mark.parametrize("damage", ["*.masks.parquet", "*.levels.parquet", "truth.parquet"])
def test_a_missing_piece_leaves_the_rest(run: Path, damage: str) -> None:
    found = list(run.glob(f"stages/*/{damage}"))
    assert found
    for place in found:
        place.unlink()
    assert "37.4" in page_of(run).text


def test_masks_are_shown_where_the_picture_is_gone(run: Path) -> None:
    for place in run.glob("stages/evaluate-*/images.parquet"):
        table = pq.read_table(place)
        paths = [f"gone/<b>{number}.jpg" for number in range(len(table))]
        pq.write_table(table.set_column(table.column_names.index("path"), "path", [paths]), place)
    page = page_of(run)
    assert "8 of the pictures could not be shown" in page.text
    assert not page.named("b") and not scene_uses(page)
    assert len([one for one in page.named("svg") if "missing" in (one.get("class") or "")]) == 4 * 8


def test_thresholds_by_class_reach_the_pseudo_masks(run: Path) -> None:
    threshold = {name: 0.9 if name == "background" else 0.3 for name in NAMES}
    change_record(run / "run.json", pseudo={"threshold": threshold})
    page = page_of(run)
    counts = open_store(next(run.glob("stages/pseudo-*"))).counts(PseudoConfig(score_threshold=threshold))
    assert "background 0.9, disk 0.3" in page.text
    assert shown_percent(counts["pixels_kept"] / counts["pixels"]) in page.text


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_headline_can_be_chosen_for_the_verdict(kind: Kind) -> None:
    choices = get_args(EvalConfig.model_fields["metric"].annotation)
    assert next(iter(kind.metrics)) in choices
    assert set(choices) <= {name for one in KINDS.values() for name in one.metrics}


# What changed


def test_changes_follow_their_definition() -> None:
    rng = np.random.default_rng(0)
    truth, before, after = rng.integers(0, 3, (3, 20, 30)).astype(np.uint8)
    truth[:4] = IGNORE
    found = changes(truth, before, after)
    for at in np.ndindex(truth.shape):
        was, now = before[at] == truth[at], after[at] == truth[at]
        expected = {(True, True): RIGHT, (False, True): GAINED, (True, False): LOST, (False, False): WRONG}[was, now]
        assert found[at] == (IGNORE if truth[at] == IGNORE else expected)


def test_changes_are_counted_by_image(finished: Path) -> None:
    stages = read_run(finished).stages
    teacher, student = (
        read_evaluation(stages[f"evaluate-{name}"], masks_by_image) for name in ("teacher", "student-1")
    )
    assert teacher is not None and student is not None
    counts = count_changes(teacher, student)
    assert counts.shape == (12, 4)
    scored = [int((decode_png(packed) != IGNORE).sum()) for packed in teacher.truth]
    assert counts.sum(axis=1).tolist() == scored
    swapped = count_changes(student, teacher)
    assert (swapped[:, GAINED] == counts[:, LOST]).all() and (swapped[:, WRONG] == counts[:, WRONG]).all()


def test_masks_come_in_the_order_of_the_images() -> None:
    packed = [encode_png(np.full((2, 2), value, np.uint8)) for value in range(3)]
    rows = {"image_id": np.array([7, 5, 6]), "mask": np.array(packed, object)}
    assert [decode_png(one)[0, 0] for one in masks_by_image(np.array([5, 6, 7]), rows)] == [1, 2, 0]


# Paint


def test_changes_differ_without_color() -> None:
    """In gray, a patch of each kind has its own set of tones or its own pattern."""
    patches = {}
    for kind in (RIGHT, GAINED, LOST, WRONG, IGNORE):
        rgba = painted(change_overlay(np.full((20, 20), kind, np.uint8))).astype(float)
        patches[kind] = (rgba[..., :3].mean(axis=2) * rgba[..., 3] / 255).round()
    assert [len(np.unique(patches[kind])) for kind in (RIGHT, GAINED, LOST, WRONG, IGNORE)] == [1, 1, 2, 2, 2]
    assert abs(patches[RIGHT][0, 0] - patches[GAINED][0, 0]) > 50
    bright = {kind: patches[kind] > patches[kind].mean() for kind in (LOST, WRONG, IGNORE)}
    assert bright[WRONG].mean() < 0.3, "dots"
    assert (bright[LOST][1:, 1:] == bright[LOST][:-1, :-1]).all(), "stripes that fall"
    assert (bright[IGNORE][1:, :-1] == bright[IGNORE][:-1, 1:]).all(), "stripes that rise"


def test_paint_lies_where_the_class_is() -> None:
    mask = np.zeros((50, 80), np.uint8)
    mask[10:30, 20:60] = 1
    mask[40:] = IGNORE
    view = class_view("Truth", "a.jpg", mask, (100, 160), ("ground", "field"))
    rgba = painted(view.overlay)
    assert rgba.shape == (100, 160, 4)
    ground, field = class_colors(2)
    assert rgba[24:58, 44:118].reshape(-1, 4).tolist() == [[*field, OPACITY]] * (34 * 74)
    assert (rgba[:18, :, :3] == ground).all() and (rgba[:18, :, 3] == OPACITY).all()
    assert len(np.unique(rgba[84:98], axis=0)) > 1, "no label is striped"
    assert view.labels == {0, 1}
    assert view.description == "Truth of a.jpg: ground 60%, field 20%, no label 20%"


def test_names_stand_in_their_class_and_not_on_each_other() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[20:80, 200:298] = 1
    mask[150:160, 20:30] = 2  # no room
    mask[100:130, 100:130] = 3
    names = class_names_on(mask, ("ground", "a very long name of a class", "dot", "field"))
    assert {name.text for name in names} == {"ground", "a very long nam...", "field"}
    (long,) = (name for name in names if name.text.startswith("a very"))
    assert 20 < long.y < 80 and long.x + 8 * len(long.text) / 2 <= 300
    assert not any(one.covers(other) for one in names for other in names if one is not other)
    close = class_names_on(np.repeat(np.arange(12, dtype=np.uint8), 26)[None].repeat(40, axis=0), list("abcdefghijkl"))
    assert len(close) == 8


# The store


@pytest.mark.parametrize("threshold", [0.5, {name: 0.3 + 0.15 * k for k, name in enumerate(NAMES)}])
def test_the_store_is_summed_up_without_decoding_and_exactly(
    finished: Path, threshold: float | dict[str, float]
) -> None:
    store = open_store(next(finished.glob("stages/pseudo-*")))
    pseudo = PseudoConfig(score_threshold=threshold)
    summary = summarize_pixels(store, pseudo, NAMES)
    histogram, kept, shares, confidence = np.zeros(LEVEL_BINS, int), np.zeros(len(NAMES), int), {}, []
    for stored in store.masks(store.usable_rows(), pseudo):
        histogram += np.bincount((stored.levels // 4).ravel(), minlength=LEVEL_BINS)
        kept += np.bincount(stored.mask[stored.mask != IGNORE], minlength=len(NAMES))
        shares[stored.image_id] = (stored.mask != IGNORE).mean()
        confidence.append((stored.levels // 4 * 4).mean() / 256)
    assert summary.histogram.tolist() == histogram.tolist()
    assert summary.kept_per_class.tolist() == kept.tolist()
    assert summary.image_ids.tolist() == list(shares) and len(shares) == 37
    assert summary.shares == pytest.approx(list(shares.values()))
    assert summary.confidence == pytest.approx(confidence)


def test_the_least_sure_keep_something(finished: Path) -> None:
    store = open_store(next(finished.glob("stages/pseudo-*")))
    pseudo = PseudoConfig(score_threshold=0.93)
    shares = np.sort(summarize_pixels(store, pseudo, NAMES).shares)
    view = view_store(store, pseudo, NAMES, Album([finished / "images" / "pool"]))
    kept = shares[shares > 0]
    assert [one.share for one in view.least_sure] == pytest.approx(kept[:8].tolist())
    assert [one.share for one in view.surest] == pytest.approx(kept[::-1][:8].tolist())
    assert all(one.picture.href for one in view.surest)
    assert any("no label" in one.view.description for one in view.least_sure)
