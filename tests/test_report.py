"""The report page: honest with missing pieces, safe with untrusted names, self-contained."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.report_page import Page, change_record, page_of
from tests.run_folder import CLASS_NAMES, write_run_folder
from tutelage.config import PseudoConfig
from tutelage.data.pseudo import open_store
from tutelage.data.thumbnails import Album
from tutelage.reporting.boxes.compare import CORRECT, EXCUSED, WRONG, best_threshold, match_image
from tutelage.reporting.boxes.pseudo import view_store
from tutelage.reporting.boxes.read import SCORE_BINS, boxes_by_image, summarize_store
from tutelage.reporting.boxes.recall import RECALL_POINTS, recall_curve
from tutelage.reporting.figures import Curve, Whisker, line_figure, thinned, whisker_figure
from tutelage.reporting.page import duration, points, signed_points, typeset, write_report
from tutelage.reporting.pictures import choose_images
from tutelage.reporting.pseudo import class_balance, pseudo_labels
from tutelage.reporting.read import read_evaluation, read_run, training_log
from tutelage.tasks.metrics import detection_metrics, match_detections
from tutelage.types import IGNORE_BOX, IGNORE_REGION, Boxes, InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests only read."""
    return write_run_folder(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; its pictures stay where they are."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("images")))


def test_the_page_says_what_the_record_says(run: Path) -> None:
    page = page_of(run)
    record = json.loads((run / "run.json").read_text())
    assert typeset(record["verdict"]) in page.text
    assert "37.4" in page.text and "35.2 to 39.8" in page.text
    assert "Student \u2212 control +1.6 +0.4 to +2.9 shown" in page.text
    assert record["differences"]["student_minus_control"]["covers"][1:] in page.text
    assert "optimistic" in page.text
    assert typeset(record["convergence"]) in page.text
    assert record["command"] in page.text and record["config_hash"] in page.text
    assert "boxes dropped 3" in page.text and "Domain gap 0.2" in page.text
    assert "leaks no labeled image is in the test set" in page.text
    assert "could not be shown" not in page.text, "pool images are found through the recorded roots"
    assert "score_threshold: 0.5" in page.text


def test_a_difference_around_zero_is_called_not_shown(tmp_path: Path) -> None:
    page = page_of(write_run_folder(tmp_path / "run", shown=False, num_test=6, num_pool=6))
    assert "Student \u2212 control +1.6 \u22120.9 to +2.9 not shown" in page.text


def test_the_page_is_self_contained(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert len(text) < 4_000_000
    assert {name for name, _ in page.tags}.isdisjoint({"script", "link", "iframe", "img"})
    targets = [tag[key] or "" for _, tag in page.tags for key in ("href", "src", "xlink:href") if key in tag]
    assert targets and all(target.startswith(("#", "data:image/jpeg;base64,")) for target in targets)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_every_reference_and_anchor_exists(run: Path) -> None:
    page = page_of(run)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    links = [
        attributes.get("href") or attributes.get("xlink:href") for tag in ("a", "use") for attributes in page.named(tag)
    ]
    assert "#scene-1" in links and {f"#{one}" for one in ids} >= set(links)
    scenes = [one for one in ids if one and one.startswith("scene-")]
    assert len(scenes) == len(set(scenes)) == 8


def test_untrusted_names_stay_text(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    run = write_run_folder(
        tmp_path / "run", class_names=(evil, "a&b", "'><svg onload=x>", "$\\frac$"), num_test=12, num_pool=20
    )
    for place in run.glob("stages/*/images.parquet"):
        table = pq.read_table(place)
        paths = [f"gone/{evil}{number}.jpg" for number in range(len(table))]
        pq.write_table(table.set_column(table.column_names.index("path"), "path", [paths]), place)
    change_record(
        run / "run.json", command=evil, notes=[evil], verdict=evil, check={"lines": [evil, f"{evil}: {evil}"]}
    )
    page = page_of(run)
    assert not page.named("script")
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert page.text.count(evil) > 5 and "'><svg onload=x>" in page.text and "$\\frac$" in page.text


@pytest.mark.parametrize("damage", ["log.jsonl", "tally.npz", "*.parquet", "../../config.yaml"])
def test_a_missing_piece_leaves_the_rest(run: Path, damage: str) -> None:
    found = [place for stage in run.glob("stages/*") for place in stage.glob(damage)]
    assert found
    for place in set(found):
        place.unlink(missing_ok=True)
    assert "37.4" in page_of(run).text


def test_a_bare_record_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = page_of(tmp_path)
    assert "no verdict" in page.text and "No model was measured" in page.text


def test_what_was_not_measured_is_not_available(run: Path) -> None:
    arms = {role: {"metrics": None, "intervals": {}, "stage": role} for role in ("teacher", "control", "student")}
    change_record(run / "run.json", **arms, differences={"student_minus_control": None, "per_class": {}})
    page = page_of(run)
    row = re.search(r"AP50 n/a n/a n/a", page.text)
    assert row, "an unmeasured figure must read n/a"
    assert "No differences were measured" in page.text


def test_an_unfinished_run_is_refused(run: Path) -> None:
    (run / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json; a report needs a finished run"):
        write_report(run)


def test_a_broken_record_is_refused(run: Path) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        write_report(run)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run", num_test=6, num_pool=6)
    for place in (run / "images" / "test").iterdir():
        place.unlink()
    (run / "images" / "pool" / "scene-0000.jpg").write_bytes(b"no image")
    page = page_of(run)
    assert page.text.count("image not found") >= 18
    assert re.search(r"(\d+) of the pictures could not be shown", page.text)[1] in {"6", "7", "8"}


def test_rounds_repeats_and_the_hidden_arm_are_listed(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run", rounds=2, repeats=2, hidden=True, num_test=5, num_pool=6)
    page = page_of(run)
    assert "Every round and repeat" in page.text
    for name in ("student-1", "student-1-repeat2", "control-2-repeat2", "hidden-2"):
        assert name in page.text
    assert "Hidden labels" in page.text and "45.2" in page.text
    assert "means over 2 seeds" in page.text


def test_thresholds_by_class_are_named(run: Path) -> None:
    (stage,) = run.glob("stages/pseudo-*")
    change_record(stage / "run.json", threshold={"disk": 0.4, "square": 0.6, "triangle": 0.7, "cross": 0.8})
    assert "disk 0.4, square 0.6, triangle 0.7, cross 0.8" in page_of(run).text


def test_pseudo_labels_are_counted_under_the_threshold_of_the_run(run: Path) -> None:
    (folder,) = run.glob("stages/pseudo-*")
    counts = open_store(folder).counts(PseudoConfig(score_threshold=0.8))
    assert 0 < counts["boxes_kept"] < json.loads((folder / "run.json").read_text())["counts"]["boxes_kept"]
    change_record(run / "run.json", pseudo={"threshold": 0.8, "counts": counts})
    page = page_of(run)
    assert f"{counts['boxes_kept']} at or above the threshold; {counts['empty']} pool images without" in page.text
    shown = pseudo_labels(read_run(run), view_store, CLASS_NAMES, Album([]))
    assert shown is not None and shown.threshold == 0.8 and shown.view is not None
    assert sum(row.pseudo for row in shown.balance) == counts["boxes_kept"]
    assert min(crop.score for crop in shown.view.least_sure) >= 0.8


def test_writing_again_gives_the_same_page(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


# Reading


def test_tables_come_back_as_they_were(finished: Path) -> None:
    run = read_run(finished)
    evaluation = read_evaluation(run.stages["evaluate-student-1"], boxes_by_image)
    assert evaluation is not None
    assert len(evaluation.truth) == len(evaluation.paths) == 24
    assert evaluation.names()[3] == "scene-0003.jpg"
    table = pq.read_table(run.stages["evaluate-student-1"].folder / "predictions.parquet")
    per_image = np.bincount(table.column("image_id").to_numpy(), minlength=24)
    assert [len(boxes) for boxes in evaluation.predictions] == per_image.tolist()
    assert any((boxes.ignore == IGNORE_REGION).any() for boxes in evaluation.truth)
    assert all((np.diff(boxes.scores) <= 0).all() for boxes in evaluation.predictions)


def test_a_continued_log_counts_its_steps_once(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 9.0},
        {"step": 20, "loss": 2.0},
        {"step": 20, "val_ap": 0.1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = training_log(tmp_path)
    assert log["loss"].tolist() == [[10, 3], [20, 2]] and log["val_ap"].tolist() == [[20, 0.1]]


def test_the_store_is_summed_up_over_its_parts(finished: Path) -> None:
    stage = read_run(finished).stages["pseudo-1"]
    tables = [pq.read_table(place) for place in sorted(stage.folder.glob("*.boxes.parquet"))]
    assert len(tables) > 1
    scores = np.concatenate([table.column("score").to_numpy() for table in tables]).astype(np.float64)
    labels = np.concatenate([table.column("label").to_numpy() for table in tables])
    images = np.concatenate([table.column("image_id").to_numpy() for table in tables])
    summary = summarize_store(open_store(stage.folder), PseudoConfig(score_threshold=0.5), CLASS_NAMES, 7)
    assert summary.images == 60
    assert summary.histogram.tolist() == np.histogram(scores, SCORE_BINS, (0, 1))[0].tolist()
    assert summary.kept_per_class.tolist() == [int(((labels == k) & (scores >= 0.5)).sum()) for k in range(4)]
    best = sorted((max(scores[images == image]) for image in set(images.tolist())), reverse=True)[:7]
    assert [box.score for box in summary.surest] == pytest.approx(best)
    worst = sorted(
        min(kept) for image in set(images.tolist()) if len(kept := scores[(images == image) & (scores >= 0.5)])
    )
    assert [box.score for box in summary.least_sure] == pytest.approx(worst[:7])


# Matching and choosing


def test_matching_takes_the_best_free_box_of_the_class() -> None:
    truth = Boxes.build([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]], [0, 0, 1])
    seen = Boxes.build(
        [[0, 0, 10, 11.5], [0, 0, 10, 11], [50, 50, 60, 60], [50, 50, 60, 60]], [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6]
    )
    outcome = match_image(truth, seen)
    assert outcome.outcome.tolist() == [CORRECT, CORRECT, WRONG, CORRECT]
    assert outcome.owner.tolist() == [1, 0, -1, 2]
    assert outcome.found.tolist() == [True, True, True]


def test_ignored_boxes_excuse_and_are_never_found() -> None:
    truth = Boxes.build([[0, 0, 100, 100], [200, 0, 210, 10]], [0, 0], ignore=[IGNORE_REGION, IGNORE_BOX])
    seen = Boxes.build([[5, 5, 15, 15], [40, 40, 60, 60], [200, 0, 210, 10], [300, 0, 310, 10]], [0] * 4, [0.9] * 4)
    outcome = match_image(truth, seen)
    assert outcome.outcome.tolist() == [EXCUSED, EXCUSED, EXCUSED, WRONG]
    assert not outcome.found.any()


def test_the_threshold_is_that_of_the_highest_f1(finished: Path) -> None:
    evaluation = read_evaluation(read_run(finished).stages["evaluate-teacher"], boxes_by_image)
    assert evaluation is not None

    def f1(threshold: float) -> float:
        correct = seen = positives = 0
        for truth, boxes in zip(evaluation.truth, evaluation.predictions, strict=True):
            outcome = match_image(truth, boxes.select(boxes.scores >= threshold)).outcome
            correct, seen = correct + int((outcome == CORRECT).sum()), seen + int((outcome != EXCUSED).sum())
            positives += int((truth.ignore == 0).sum())
        return 2 * correct / (seen + positives)

    every = np.unique(np.concatenate([boxes.scores for boxes in evaluation.predictions]))
    chosen = best_threshold(evaluation.truth, evaluation.predictions)
    assert f1(chosen) == pytest.approx(max(f1(float(threshold)) for threshold in every))


def test_gained_and_lost_add_up(run: Path) -> None:
    page = page_of(run)
    numbers = re.search(
        r"(\d+) were gained .* and (\d+) lost ?; (\d+) were found by both and (\d+) by neither", page.text
    )
    assert numbers
    truth = pq.read_table(next(run.glob("stages/evaluate-teacher-*/truth.parquet")))
    assert sum(map(int, numbers.groups())) == int((truth.column("ignore").to_numpy() == 0).sum())


def test_gains_and_losses_are_shown_alike() -> None:
    gained, lost = np.array([5, 0, 0, 3, 0, 1, 0, 0, 0, 0]), np.array([0, 4, 2, 0, 0, 0, 1, 0, 0, 0])
    rows = choose_images(gained, lost, 8, seed=0)
    assert rows[:6] == [0, 3, 5, 1, 2, 6]
    assert len(rows) == len(set(rows)) == 8
    assert rows == choose_images(gained, lost, 8, seed=0)
    assert sorted(choose_images(gained[:3], lost[:3], 8, seed=0)) == [0, 1, 2]


# Figures, pictures, numbers


def test_recall_curves_average_to_ap50(finished: Path) -> None:
    evaluation = read_evaluation(read_run(finished).stages["evaluate-student-1"], boxes_by_image)
    assert evaluation is not None
    matches = match_detections(evaluation.truth, evaluation.predictions, 4)
    curves = [recall_curve(matches, label, 0.5) for label in range(4)]
    reference = detection_metrics(evaluation.truth, evaluation.predictions, CLASS_NAMES)["ap50"]
    assert len(RECALL_POINTS) == 101
    assert np.mean([curve[:, 1].mean() for curve in curves if curve is not None]) == pytest.approx(reference, abs=1e-9)


def test_figures_take_their_colors_from_the_page() -> None:
    curve = np.stack([np.arange(500.0), np.linspace(2, 1, 500)], axis=1)
    drawn = line_figure([Curve("student", curve), Curve("teacher", curve)], title="Loss", xlabel="step")
    assert "var(--student)" in drawn and "var(--teacher)" in drawn
    assert "<text" in drawn and ">step<" in drawn
    assert not re.search(r"#0[1-7]0[2-8]0[3-9]", drawn), "a stand-in color was left"
    assert len(drawn) < 30_000


def test_a_difference_that_is_not_shown_is_hollow() -> None:
    def drawn(shown: bool) -> str:
        return whisker_figure([Whisker("Student", 1.0, 0.5, 1.5, shown)], title="Differences", xlabel="AP points")

    assert drawn(True) != drawn(False)
    assert "fill: none; stroke: var(--muted)" in drawn(False).replace('fill="none"', "fill: none;")


def test_long_curves_are_thinned_by_means() -> None:
    rows = np.stack([np.arange(1000.0), np.ones(1000)], axis=1)
    assert thinned(rows, 100).shape == (100, 2)
    assert thinned(rows, 100)[0].tolist() == [4.5, 1.0]
    assert thinned(rows[:50], 100) is not None and len(thinned(rows[:50], 100)) == 50


def test_boxes_lie_where_the_pixels_are(tmp_path: Path) -> None:
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[100:200, 400:600] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    album = Album([tmp_path])
    for picture in (album.whole("a.png", (400, 800), 200), album.around("a.png", (400, 100, 600, 200), 120)):
        x, y, width, height = picture.place((400, 100, 600, 200))
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.href.split(",")[1]))).convert("L"))
        rows, columns = np.flatnonzero(shown.max(axis=1) > 127), np.flatnonzero(shown.max(axis=0) > 127)
        assert abs(columns[0] - x) <= 1 and abs(columns[-1] + 1 - (x + width)) <= 1
        assert abs(rows[0] - y) <= 1 and abs(rows[-1] + 1 - (y + height)) <= 1
    assert album.missing == []
    assert album.whole("b.png", (40, 80), 200).href == "" and album.missing == ["b.png"]


def test_class_shares_are_relative_to_the_largest() -> None:
    rows = class_balance(("a", "b", "c"), {"a": 30, "b": 10}, np.array([10, 10, 0]))
    assert [(row.labels, row.pseudo) for row in rows] == [(30, 10), (10, 10), (0, 0)]
    assert [row.labels_bar for row in rows] == [100.0, 33.3, 0.0]
    assert [row.pseudo_bar for row in rows] == [66.7, 66.7, 0.0]


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [(0.3741, "37.4", "+37.4"), (-0.0162, "-1.6", "\u22121.6"), (0.0, "0.0", "0"), (None, "n/a", "n/a")],
)
def test_points(value: float | None, plain: str, signed: str) -> None:
    assert (points(value), signed_points(value)) == (plain, signed)


def test_sentences_get_true_minus_signs() -> None:
    assert (
        typeset("95 % of -0.9 to +2.9, not student-1 or 3-4") == "95\u00a0% of \u22120.9 to +2.9, not student-1 or 3-4"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7500, "2 h 05 min"), (None, "n/a")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
