"""The review page: what its order is made of, what it counts and draws, and that it runs nothing but its own script."""

import base64
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask
from scipy import ndimage

from tests.run_folder import CLASS_NAMES, write_run_folder
from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, StoredMask, open_store
from tutelage.data.pseudo.verdicts import JudgedImage, Label, Verdicts, read_verdicts, write_verdicts
from tutelage.data.thumbnails import Album
from tutelage.reviews.informativeness import boxes_between, boxes_within, rarity_of
from tutelage.reviews.page import gather, ranked, render
from tutelage.reviews.shown import LEAST_PIXELS, regions, shown_boxes
from tutelage.reviews.tally import grid_of, tally
from tutelage.types import IGNORE, InputError
from tutelage.workflows.reviewing import open_reviewed, review

MASK_NAMES = ("background", "disk", "square", "triangle", "cross")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task, with two rounds, that tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    given = {"boxes": ("detection", CLASS_NAMES, 40), "masks": ("segmentation", MASK_NAMES, 11)}
    for name, (task, names, num_pool) in given.items():
        write_run_folder(folder / name, task=task, class_names=names, num_test=2, num_pool=num_pool, rounds=2)
    return {name: folder / name for name in given}


# The order


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def rows_of(store: PseudoStore) -> tuple[list[int], list[dict]]:
    """Usable images, and all that was found, as plain rows."""
    usable, found = [], []
    for images, table in store.parts():
        usable += images["image_id"][images["status"] == "ok"].tolist()
        found += [dict(zip(table, row, strict=True)) for row in zip(*(table[k].tolist() for k in table), strict=True)]
    return usable, found


def box_doubt(box: dict, others: list[dict] | None, own: list[dict]) -> float:
    corners = [box[name] for name in ("x1", "y1", "x2", "y2")]
    agreement, dispute = 0.0, 0.0
    for other in own if others is None else others:
        if other["image_id"] != box["image_id"]:
            continue
        overlap = iou(corners, [other[name] for name in ("x1", "y1", "x2", "y2")])
        if other["label"] == box["label"]:
            agreement = max(agreement, overlap * (1 - abs(box["score"] - other["score"])))
        else:
            ratio = min(box["score"], other["score"]) / max(box["score"], other["score"])
            dispute = max(dispute, overlap * ratio)
    if others is not None:
        return 1 - agreement
    return 1 - (1 - 4 * box["score"] * (1 - box["score"])) * (1 - dispute)


def masses(rows: list[dict]) -> dict[tuple[int, int], float]:
    """Confidence-weighted pixels of each image and class, in shares of the image."""
    whole, found = Counter[int](), Counter[tuple[int, int]]()
    for row in rows:
        whole[row["image_id"]] += row["pixels"]
        found[row["image_id"], row["label"]] += row["pixels"] * row["level"]
    return {key: mass / whole[key[0]] for key, mass in found.items()}


def area_doubt(area: dict, others: dict | None, own: dict) -> float:
    if others is None:
        return 4 * area["level"] / 256 * (1 - area["level"] / 256)
    mine, theirs = (one.get((area["image_id"], area["label"]), 0) for one in (own, others))
    return 1 - min(mine, theirs) / max(mine, theirs)


def expected(kind: str, stores: list[PseudoStore], thresholds: list[float]) -> dict[int, float]:
    """The formula of the docs, label by label."""
    usable, now = rows_of(stores[-1])
    tables = [now] if len(stores) == 1 else [now, rows_of(stores[-2])[1]]
    score = (lambda row: row["score"]) if kind == "boxes" else (lambda row: row["level"] / 256)
    images = [len({row["image_id"] for row in now if row["label"] == k and score(row) >= t - 1e-7})
              for k, t in enumerate(thresholds)]  # fmt: skip
    rarity = [min(math.sqrt(max(images) / max(n, 1)), 10) for n in images]
    worth = dict.fromkeys(usable, 0.0)
    for at, table in enumerate(tables):
        others = tables[1 - at] if len(tables) == 2 else None
        pixels = {
            one: sum(row["pixels"] for row in table if row["image_id"] == one) for one in usable if kind == "masks"
        }
        own, others = (one if kind == "boxes" or one is None else masses(one) for one in (table, others))
        for row in table:
            weight = 1 if kind == "boxes" else row["pixels"] / pixels[row["image_id"]]
            doubt = (box_doubt if kind == "boxes" else area_doubt)(row, others, own)
            close = math.exp(-abs(score(row) - thresholds[row["label"]]) / 0.1)
            worth[row["image_id"]] += weight * doubt * rarity[row["label"]] * close
    return worth


@pytest.mark.parametrize("num_rounds", [1, 2])
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_the_order_is_the_formula_of_the_docs(runs: dict[str, Path], kind: str, num_rounds: int) -> None:
    reviewed = open_reviewed(runs[kind])
    assert [store.manifest.round for store in reviewed.stores] == [1, 2]
    stores = list(reviewed.stores[2 - num_rounds :])
    names = stores[-1].manifest.class_names
    thresholds = [0.5, 0.25, 0.75, 0.5, 0.625][: len(names)]
    ranking = ranked(stores, PseudoConfig(score_threshold=dict(zip(names, thresholds, strict=True))))
    worth = expected(kind, stores, thresholds)
    assert sorted(worth) == sorted(ranking.image_ids.tolist()) and len(worth) >= 8
    np.testing.assert_allclose(ranking.informativeness, [worth[row] for row in ranking.image_ids.tolist()], rtol=1e-5)
    assert (np.diff(ranking.informativeness) <= 0).all() and ranking.informativeness[0] > 1.2 * ranking.informativeness[
        -1
    ]


def table(*rows: tuple[int, int, float, tuple[float, ...]]) -> dict[str, np.ndarray]:
    ids, labels, scores, corners = zip(*rows, strict=True)
    columns = {
        name: np.array([one[axis] for one in corners], np.float32) for axis, name in enumerate(("x1", "y1", "x2", "y2"))
    }
    return {
        "image_id": np.array(ids),
        "label": np.array(labels, np.int32),
        "score": np.array(scores, np.float32),
    } | columns


def test_disagreement_by_hand() -> None:
    now = table((0, 0, 0.8, (0, 0, 10, 10)), (0, 1, 0.8, (0, 0, 10, 10)), (1, 0, 0.5, (0, 0, 10, 10)))
    then = table((0, 0, 0.6, (0, 0, 10, 5)), (0, 0, 0.8, (0, 0, 10, 4)), (1, 1, 0.5, (0, 0, 10, 10)))
    # IoU 0.5 * (1 - 0.2) = 0.4 and IoU 0.4 * 1 = 0.4; no box of class 1; another image does not count
    np.testing.assert_allclose(boxes_between(now, then), [0.6, 1, 1], atol=1e-6)
    np.testing.assert_allclose(boxes_within(now), [1, 1, 1], atol=1e-6)  # the same place; a coin
    np.testing.assert_allclose(boxes_within(then)[:2], [4 * 0.6 * 0.4, 4 * 0.8 * 0.2], atol=1e-6)
    np.testing.assert_allclose(rarity_of(np.array([100, 25, 1, 0, 400])), [2, 4, 10, 10, 1])


def test_many_pairs_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (300, 2))
    boxes = table(*((k // 20, int(rng.integers(3)), rng.random(), (*xy, *(xy + 20))) for k, xy in enumerate(corners)))
    whole = boxes_within(boxes)
    monkeypatch.setattr("tutelage.reviews.informativeness.PAIRS_AT_ONCE", 70)
    np.testing.assert_array_equal(boxes_within(boxes), whole)
    assert boxes_within(table((0, 0, 0.5, (0, 0, 1, 1)))).tolist() == [1]


def test_images_that_people_are_done_with_come_last(runs: dict[str, Path]) -> None:
    stores = open_reviewed(runs["boxes"]).stores
    before = ranked(stores, PseudoConfig())
    first = str(before.paths[0])
    after = ranked(stores, PseudoConfig(), [first])
    assert after.paths.tolist() == [*before.paths[1:].tolist(), first]


def test_another_pool_is_not_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    last = open_reviewed(runs["boxes"]).stores[-1]
    write_run_folder(tmp_path / "run", num_test=2, num_pool=7)
    other = open_reviewed(tmp_path / "run").stores[-1]
    other = replace(other, manifest=replace(other.manifest, pool="another"))
    alone, both = (ranked(stores, PseudoConfig()) for stores in ([last], [other, last]))
    np.testing.assert_array_equal(alone.informativeness, both.informativeness)


# What is counted


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_counts_are_those_of_the_store(runs: dict[str, Path], kind: str) -> None:
    store = open_reviewed(runs[kind]).stores[-1]
    limits = np.full(len(store.manifest.class_names), 0.437, np.float32)
    counted = tally(store, limits)
    for column, value in {20: grid_of(store)[20], 50: grid_of(store)[50], -1: np.float32(0.437)}.items():
        counts = store.counts(PseudoConfig(score_threshold=float(value)))
        assert counted.amounts[:, column].sum() == counts[f"{kind}_kept" if kind == "boxes" else "pixels_kept"] > 0
        _, found = rows_of(store)
        score = [row["score"] if kind == "boxes" else row["level"] / 256 for row in found]
        pairs = {(row["image_id"], row["label"]) for row, s in zip(found, score, strict=True) if np.float32(s) >= value}
        assert counted.images[:, column].sum() == len(pairs)
        for label in range(len(limits)):
            assert counted.images[label, column] == sum(one == label for _, one in pairs)
    assert (np.diff(counted.amounts[:, :-1]) <= 0).all()


# What is drawn


def test_regions_are_connected_over_corners_and_come_back_from_their_runs() -> None:
    rng = np.random.default_rng(3)
    blocks = ndimage.gaussian_filter(rng.normal(size=(48, 64)), 2.5)
    mask = np.digitize(blocks, np.quantile(blocks, [0.3, 0.6])).astype(np.uint8)
    levels = rng.integers(0, 256, mask.shape).astype(np.uint8)
    mask[levels < 20] = IGNORE
    found = regions(StoredMask(0, "a.png", (96, 256), mask, levels))
    wanted = []
    for label in range(3):
        numbers, count = ndimage.label(mask == label, np.ones((3, 3)))
        wanted += [(label, numbers == n) for n in range(1, count + 1) if (numbers == n).sum() >= LEAST_PIXELS]
    assert len(found) == len(wanted) > 6
    for one in found:
        drawn = coco_mask.decode({"size": one["rle"]["size"], "counts": one["rle"]["counts"].encode()}).astype(bool)
        assert any(label == one["class"] and (drawn == pixels).all() for label, pixels in wanted)
        assert one["score"] == pytest.approx(levels[drawn].mean() / 256, abs=1e-4)
        rows, columns = drawn.nonzero()
        box = [columns.min() * 4, rows.min() * 2, (columns.max() + 1) * 4, (rows.max() + 1) * 2]
        assert one["xyxy"] == pytest.approx(box)  # the image is 2 x 4 times larger
        xy = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", one["outline"]), float)
        assert drawn[tuple((xy[:, ::-1] - 0.5).round().astype(int).T)].all(), "outlines run along own pixels"
    sizes = [coco_mask.area({**one["rle"], "counts": one["rle"]["counts"].encode()}) for one in found]
    assert sizes == sorted(sizes, reverse=True)


def test_boxes_are_all_there_with_scores_that_compare_as_in_training(runs: dict[str, Path]) -> None:
    store = open_reviewed(runs["boxes"]).stores[-1]
    usable, found = rows_of(store)
    shown = list(shown_boxes(store, np.array(usable[3:9]), PseudoConfig()))
    assert [one.image_id for one in shown] == usable[3:9]
    for image in shown:
        stored = sorted((np.float32(row["score"]) for row in found if row["image_id"] == image.image_id), reverse=True)
        assert [np.float32(label["score"]) for label in image.labels] == stored
    assert sum(len(image.labels) for image in shown) > 6


# The page


class Scripts(HTMLParser):
    """Tags of a page, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((dict(attrs).get("type") or tag, ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style") and self.raw:
            self.raw[-1] = (self.raw[-1][0], self.raw[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self.lasttag = ""


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}<!--"


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_the_page_runs_its_own_script_alone(tmp_path: Path, kind: str) -> None:
    task, names = ("detection", ("disk", EVIL)) if kind == "boxes" else ("segmentation", ("ground", "disk", EVIL))
    run = write_run_folder(tmp_path / "run", task=task, class_names=names, num_test=2, num_pool=6)
    (run / "images" / "pool" / "scene-0004.jpg").unlink()
    made = review(run)
    text = Path(made["page"]).read_text()
    page = Scripts(text)
    raw = dict(page.raw)
    assert [name for name, _ in page.raw] == ["style", "application/json", "script"]
    [policy] = [one["content"] or "" for tag, one in page.tags if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, name in (("script-src", "script"), ("style-src", "style")):
        digest = base64.b64encode(hashlib.sha256(raw[name].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == "'none'" and rules["img-src"] == "data:"
    assert not any(key.startswith("on") or key in ("src", "style") for _, one in page.tags for key in one)
    script = raw["script"].replace("http://www.w3.org/2000/svg", "")  # the name of a namespace
    assert not any(word in script for word in ("innerHTML", "eval(", "http:", "https:", "import("))
    data = json.loads(raw["application/json"])
    assert data["class_names"] == list(names) and data["save_to"] == "" and data["verdicts"] is None
    pictures = [image["picture"] for image in data["images"]]
    assert pictures.count("") == 1 and sum(one.startswith("data:image/jpeg;base64,") for one in pictures) == 2
    assert made == {"page": str(run / "review" / "review.html"), "images": 3}


def test_the_page_begins_with_the_verdicts_that_are_there(runs: dict[str, Path], tmp_path: Path) -> None:
    reviewed = open_reviewed(runs["boxes"])
    store = reviewed.store
    path = str(ranked(reviewed.stores, reviewed.pseudo).paths[0])
    said = Label(**{"class": "disk"}, verdict="human", xyxy=(1, 2, 30, 40))
    image = JudgedImage(path=path, size=(192, 256), reviewed=True, labels=(said,))
    verdicts = Verdicts(annotation="boxes", class_names=store.manifest.class_names, images=(image,))
    write_verdicts(tmp_path / "verdicts.json", verdicts)
    review(runs["boxes"], out=tmp_path, limit=5)
    data = json.loads(dict(Scripts((tmp_path / "review.html").read_text()).raw)["application/json"])
    assert data["verdicts"] == verdicts.plain() and data["verdicts_time"] > 1e12
    assert len(data["images"]) == 5 and path not in [one["path"] for one in data["images"]], "it is done"
    assert not (runs["boxes"] / "review").exists()


def test_a_run_that_learned_from_verdicts_is_reviewed_with_them(runs: dict[str, Path], tmp_path: Path) -> None:
    """What people said of one run is not lost in the review of the next."""
    run, names = tmp_path / "run", open_reviewed(runs["boxes"]).store.manifest.class_names
    shutil.copytree(runs["boxes"], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sources"]["verdicts"] = str(tmp_path / "earlier.json")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    label = Label(**{"class": "disk"}, verdict="human", xyxy=(1, 2, 30, 40))
    [path, other] = ranked(open_reviewed(run).stores, open_reviewed(run).pseudo).paths[:2].tolist()
    image = JudgedImage(path=path, size=(192, 256), reviewed=True, labels=(label,))
    earlier = Verdicts(annotation="boxes", class_names=names, images=(image,))
    review(run, limit=2)  # they are gone from where they were
    write_verdicts(tmp_path / "earlier.json", earlier)
    for _ in ("page", "again"):
        review(run, limit=2)
        data = json.loads(dict(Scripts((run / "review" / "review.html").read_text()).raw)["application/json"])
        assert data["verdicts"] == earlier.plain() and path not in [one["path"] for one in data["images"]]
    new = earlier.model_copy(update={"images": (image.model_copy(update={"path": other}),)})
    write_verdicts(tmp_path / "new.json", new)
    review(run, import_=tmp_path / "new.json")
    assert [one.path for one in read_verdicts(run / "review" / "verdicts.json").images] == [path, other]
    assert read_verdicts(tmp_path / "earlier.json") == earlier


def test_pictures_are_reduced_and_small_ones_are_not_enlarged(runs: dict[str, Path]) -> None:
    reviewed = open_reviewed(runs["masks"])
    content = gather(reviewed.stores, reviewed.pseudo, Album(reviewed.roots), title="run", limit=2)
    text = render(content, None, save_to="verdicts")
    assert len(text) < 200_000 and "connect-src &#39;self&#39;" in text
    [width] = {int(one["size"][1]) for one in content.data["images"]}
    assert width == 256 and content.data["everything"] > 0


def test_a_thousand_classes_have_colors(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(1203))
    reviewed = open_reviewed(write_run_folder(tmp_path / "run", class_names=names, num_test=1, num_pool=4))
    data = gather(reviewed.stores, reviewed.pseudo, Album(reviewed.roots), title="run").data
    assert len(data["colors"]) == 1203 and data["colors"][255] == data["colors"][0] != data["colors"][254]
    assert len(data["kept"]) == 1203


def test_what_cannot_be_reviewed_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--round 3: .* has round 1, 2"):
        review(runs["boxes"], round_=3, out=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"stages": {}}))
    with pytest.raises(InputError, match="labeled nothing"):
        review(tmp_path)
    with pytest.raises(InputError, match=r"no run\.json"):
        review(tmp_path / "absent")


def test_one_store_can_be_reviewed_by_itself(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Path(shutil.copytree(next(runs["boxes"].glob("stages/pseudo-1-*")), tmp_path / "store"))
    assert open_reviewed(stage).stores == [open_store(stage)]
    assert review(stage, limit=3)["images"] == 3
    assert "3 pictures are no longer where they were" in capsys.readouterr().err
    record = json.loads((stage / "run.json").read_text())
    roots = [str(runs["boxes"] / "images" / "pool")]
    (stage / "run.json").write_text(json.dumps(record | {"roots": roots, "threshold": 0.7}))
    assert open_reviewed(stage).pseudo.score_threshold == 0.7
    review(stage, limit=3)
    assert "no longer" not in capsys.readouterr().err


def test_verdicts_of_another_run_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    image = JudgedImage(path="absent.jpg", size=(9, 9))
    write_verdicts(tmp_path / "verdicts.json", Verdicts(annotation="boxes", class_names=CLASS_NAMES, images=(image,)))
    with pytest.raises(InputError, match=r"absent\.jpg is not in the pool"):
        review(runs["boxes"], out=tmp_path)
    with pytest.raises(InputError, match="masks are needed"):
        review(runs["masks"], out=tmp_path)
