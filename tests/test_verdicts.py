"""What people said of pseudo-labels, laid over stores of boxes and masks, whatever round they are of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

import tutelage
from tests import test_mask_store as mask_stores
from tests import test_pseudo as box_stores
from tests.tiny import TINY, arguments, mask_arguments
from tutelage.config import DataConfig, PseudoConfig
from tutelage.data.index import Index
from tutelage.data.masks import read_mask
from tutelage.data.pseudo import PseudoStore, merge, open_store, read_verdicts, store_index, write_verdicts
from tutelage.data.pseudo.masks import settled
from tutelage.data.pseudo.verdicts import JudgedImage, Label, People, Region, Verdicts, ious
from tutelage.data.readers import open_index
from tutelage.types import IGNORE, IGNORE_BOX, NOT_IGNORED, InputError

NAMES = ("cat", "dog")
SAID = ("accept", "human", "ignore", "reject")


def box(name: str, said: str | None, xyxy: Any, **origin: Any) -> Label:
    return Label(name=name, verdict=said, xyxy=tuple(xyxy), **origin)


def region(name: str, said: str | None, mask: NDArray[np.bool_], **origin: Any) -> Label:
    return Label(name=name, verdict=said, region=Region.of(mask), **origin)


def boxes_verdicts(*images: JudgedImage) -> Verdicts:
    return Verdicts(annotation="boxes", class_names=NAMES, images=images)


def judged(row: int, *labels: Label, reviewed: bool = False) -> JudgedImage:
    """What is said of an image of the pool of tests/test_pseudo.py."""
    return JudgedImage(path=f"pool/{row}.png", size=(100 + row, 200), reviewed=reviewed, labels=labels)


@pytest.fixture
def pool(tmp_path: Path) -> Index:
    return box_stores.make_pool(tmp_path)


@pytest.fixture
def store(tmp_path: Path, pool: Index) -> PseudoStore:
    """Image i has a box of class i % 2 at its own corner with a score of its own, and one of class 1 and score 0.3."""
    return box_stores.make_store(tmp_path / "store", pool)


def stored(row: int, number: int) -> list[float]:
    return [row + number, row + number, row + number + 10.25, row + number + 20.5]


def test_accepted_and_drawn_boxes_are_trained_on_whatever_the_threshold(store: PseudoStore, pool: Index) -> None:
    near = [10.5, 10.5, 21.0, 31.0]
    said = boxes_verdicts(
        judged(10, box("cat", "human", near, score=0.5, teacher="ab", round=1)),
        judged(11, box("dog", "accept", stored(11, 1), score=0.3)),
        judged(4, box("dog", "human", [0, 0, 5, 5.5])),  # the teacher saw nothing there
    )
    index = store_index(store.with_verdicts(said), pool, PseudoConfig(score_threshold=0.99))
    found = {index.relative_path(row): index.boxes(row) for row in range(len(index)) if len(index.boxes(row))}
    assert set(found) == {"pool/10.png", "pool/11.png", "pool/4.png"}, "no pseudo-label reaches 0.99"
    assert found["pool/10.png"].xyxy.tolist() == [near] and found["pool/10.png"].scores.tolist() == [1]
    assert found["pool/4.png"].labels.tolist() == [1] and found["pool/4.png"].ignore.tolist() == [NOT_IGNORED]


def test_a_stored_box_gives_way_to_a_persons_and_others_stay(store: PseudoStore, pool: Index) -> None:
    moved = [10.5, 10.5, 21.0, 31.0]  # IoU 0.86 with the cat's box, and more than a half with the dog's beside it
    said = boxes_verdicts(judged(10, box("cat", "human", moved)))
    index = store_index(store.with_verdicts(said), pool, PseudoConfig(score_threshold=0.0))
    boxes = index.boxes([index.relative_path(row) for row in range(len(index))].index("pool/10.png"))
    assert boxes.xyxy.tolist() == [stored(10, 1), moved], "the dog's box stays, though it overlaps"
    assert boxes.labels.tolist() == [1, 0] and boxes.scores.tolist() == pytest.approx([0.3, 1])


@pytest.mark.parametrize("unsure", ["negative", "ignore"])
def test_a_rejected_box_is_background_and_an_ignored_one_neither(store: PseudoStore, pool: Index, unsure: str) -> None:
    said = boxes_verdicts(
        judged(10, box("cat", "reject", stored(10, 0))), judged(12), judged(14, box("cat", "ignore", stored(14, 0)))
    )
    options = PseudoConfig(score_threshold=0.4, unsure=unsure)
    index = store_index(store.with_verdicts(said), pool, options)
    at = {index.relative_path(row): index.boxes(row) for row in range(len(index))}
    rest = 1 if unsure == "ignore" else 0  # the dog's box of score 0.3
    assert at["pool/10.png"].ignore.tolist() == [IGNORE_BOX] * rest, "nothing is left of the cat's, not even ignored"
    assert (at["pool/10.png"].labels == 1).all()
    assert at["pool/14.png"].ignore.tolist() == [IGNORE_BOX] * (rest + 1)
    assert stored(14, 0) in at["pool/14.png"].xyxy.tolist()


def test_in_a_reviewed_image_only_what_people_said_remains(store: PseudoStore, pool: Index) -> None:
    said = boxes_verdicts(judged(10, reviewed=True), judged(11, box("cat", "human", [1, 1, 9, 9]), reviewed=True))
    options = PseudoConfig(score_threshold=0.0, empty="drop")
    index = store_index(store.with_verdicts(said), pool, options)
    at = {index.relative_path(row): index.boxes(row) for row in range(len(index))}
    assert len(at["pool/10.png"]) == 0, "a person vouches that it is empty: it is not dropped"
    assert at["pool/11.png"].xyxy.tolist() == [[1, 1, 9, 9]]
    assert "pool/4.png" not in at, "the teacher alone vouches for nothing"


def test_counts_tell_what_people_said(store: PseudoStore) -> None:
    everything = [box("cat", said, [1, 1, 4 + at, 5]) for at, said in enumerate(SAID)]
    options = PseudoConfig(score_threshold=0.95)
    before = store.counts(options)
    counts = store.with_verdicts(boxes_verdicts(judged(10, *everything), judged(5, everything[0]))).counts(options)
    told = {name: counts[name] for name in ("human", "accepted", "rejected", "ignored")}
    assert told == dict.fromkeys(told, 1), "nothing is said of image 5, which is also in the test set"
    assert before["boxes_kept"] == 0 and "human" not in before
    assert counts["boxes_kept"] == 2 and counts["labeled"] == 1, "accepted and drawn"


corner = st.floats(0, 80, width=32)
side = st.floats(1, 40, width=32)
boxes_of = st.tuples(corner, corner, side, side).map(lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3]))
labels_of = st.builds(box, st.sampled_from(NAMES), st.sampled_from(SAID), boxes_of)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> PseudoStore:
    folder = tmp_path_factory.mktemp("lasting")
    return box_stores.make_store(folder / "store", box_stores.make_pool(folder, 8))


@given(st.lists(labels_of, max_size=4), st.booleans(), st.sampled_from([0.0, 0.3, 0.6]))
@settings(max_examples=60, deadline=None)
def test_every_box_is_kept_or_gone_as_the_rules_say(
    lasting: PseudoStore, labels: list[Label], reviewed: bool, threshold: float
) -> None:
    said = lasting.with_verdicts(boxes_verdicts(judged(2, *labels, reviewed=reviewed)))
    found, others = targets_of(said, threshold), targets_of(lasting, threshold)
    expected = []
    for number, (label, score) in enumerate([(0, 0.1 + 0.8 * 2 / 7), (1, 0.3)]):
        spoken = [one for one in labels if one.name == NAMES[label] and overlap(one.xyxy, stored(2, number)) >= 0.5]
        if np.float32(score) >= np.float32(threshold) and not spoken and not reviewed:
            expected.append((label, stored(2, number), NOT_IGNORED))
    for one in labels:
        if one.verdict != "reject" and one.xyxy:
            inside = np.minimum(one.xyxy, [200, 102, 200, 102]).tolist()
            expected.append((NAMES.index(one.name), inside, IGNORE_BOX if one.verdict == "ignore" else NOT_IGNORED))
    of_two = found[2]
    assert [(label, ignore) for label, _, ignore in of_two] == [(label, ignore) for label, _, ignore in expected]
    assert np.array_equal([one[1] for one in of_two], np.array([one[1] for one in expected], np.float32).tolist())
    assert {**found, 2: others[2]} == others, "an image of which nobody spoke is as it was"


def targets_of(store: PseudoStore, threshold: float) -> dict[int, list[tuple[int, list[float], int]]]:
    """Label, corners and ignore flag of each box that is trained on, by pool row."""
    ((images, table),) = store.parts()
    used = images["status"] == "ok"
    limits = np.full(2, threshold, np.float32)
    columns = store.kind.targets(0, images, table, used, limits, PseudoConfig(score_threshold=threshold))
    rows = np.repeat(images["image_id"][used], columns["counts"]).tolist()
    found: dict[int, list[tuple[int, list[float], int]]] = {row: [] for row in images["image_id"][used].tolist()}
    for row, *box in zip(
        rows, columns["labels"].tolist(), columns["xyxy"].tolist(), columns["ignore"].tolist(), strict=True
    ):
        found[row].append(tuple(box))
    return found


def overlap(a: Any, b: Any) -> float:
    """IoU of pycocotools."""
    xywh = [[[one[0], one[1], one[2] - one[0], one[3] - one[1]]] for one in (a, b)]
    return float(coco_masks.iou(*map(np.array, xywh), [False])[0, 0])


@given(boxes_of, boxes_of)
@settings(max_examples=50, deadline=None)
def test_overlap_is_that_of_pycocotools(a: Any, b: Any) -> None:
    assert ious(np.array([a]), np.array([b]))[0, 0] == pytest.approx(overlap(a, b), abs=1e-6)


masks_of = st.integers(0, 2**48 - 1).map(
    lambda bits: np.array([bits >> at & 1 for at in range(48)], bool).reshape(6, 8)
)
PIXEL_NAMES = ("road", "roof", "background")


@given(
    st.lists(st.builds(region, st.sampled_from(PIXEL_NAMES), st.sampled_from(SAID), masks_of), max_size=4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_what_the_rules_say(labels: list[Label], reviewed: bool, background: bool, seed: int) -> None:
    names = PIXEL_NAMES if background else ("road", "roof", "backdrop")
    labels = [label for label in labels if label.name in names]
    rng = np.random.default_rng(seed)
    mask, levels = rng.integers(0, 3, (6, 8), np.uint8), rng.integers(0, 64, (6, 8), np.uint8) * 4
    image = JudgedImage(path="a", size=(6, 8), reviewed=reviewed, labels=tuple(labels))
    found, sure = settled(mask, levels.astype(np.uint8), image, People({}, names))
    for y in range(6):
        for x in range(8):
            here = [label for label in labels if label.region and label.region.mask()[y, x]]
            drawn = [label for label in here if label.verdict in ("accept", "human")]
            rejected = [one for one in here if one.verdict == "reject" and names.index(one.name) == mask[y, x]]
            if any(label.verdict == "ignore" for label in here):
                expected = (IGNORE, 0)
            elif drawn:
                expected = (names.index(drawn[-1].name), 256)
            elif rejected:
                negative = background and rejected[0].name != "background"
                expected = (2, 256) if negative else (IGNORE, 0)
            else:
                expected = (IGNORE, 0) if reviewed else (int(mask[y, x]), int(levels[y, x]))
            assert (int(found[y, x]), int(sure[y, x])) == expected


def test_a_drawn_region_is_trained_on_at_the_size_of_the_image(tmp_path: Path) -> None:
    pool = mask_stores.make_pool(tmp_path)
    store = mask_stores.make_store(tmp_path / "store", pool)
    drawn = np.zeros(mask_stores.SIZE, bool)
    drawn[7:9, 3:60] = True  # two rows of 60: less than one of the 24 that are stored
    image = JudgedImage(path="pool/2.jpg", size=mask_stores.SIZE, labels=(region("roof", "human", drawn),))
    said = store.with_verdicts(Verdicts(annotation="masks", class_names=mask_stores.NAMES, images=(image,)))
    for threshold in (0.5, 1.0):
        options = PseudoConfig(score_threshold=threshold)
        index, plain = store_index(said, pool, options), store_index(store, pool, options)
        mask, before = (read_mask(one.mask_file(2)) for one in (index, plain))
        assert mask.shape == mask_stores.SIZE and (mask[drawn] == 1).all()
        nearest = before[np.arange(60)[:, None] * 24 // 60, np.arange(80)[None] * 32 // 80]
        differing = (mask != nearest)[~drawn].mean()
        assert differing < 0.1, "elsewhere it is the teacher's, enlarged"
        assert np.array_equal(read_mask(index.mask_file(1)), read_mask(plain.mask_file(1)))
    counts = said.counts(PseudoConfig(score_threshold=1.0))
    assert counts["human"] == 1 and counts["pixels_kept"] > 0 and counts["labeled"] == 1
    (shown,) = said.masks(np.array([2]), PseudoConfig(score_threshold=1.0))
    assert set(np.unique(shown.mask)) == {1, IGNORE}


def test_regions_are_coded_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (5, 7), (40, 30)):
        mask = rng.random(size) < 0.4
        expected = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert Region.of(mask).counts == expected["counts"].decode()
        assert np.array_equal(Region.of(mask).mask(), mask)


def test_newer_verdicts_take_the_place_of_older_ones_on_the_same_object() -> None:
    near = [1, 1, 9, 10]
    old = boxes_verdicts(
        judged(1, box("cat", "accept", [1, 1, 9, 9]), box("dog", "human", [1, 1, 9, 9])),
        judged(2, box("cat", "reject", [5, 5, 9, 9]), box("cat", "accept", [50, 50, 60, 60])),
        judged(3, box("cat", "accept", [1, 1, 2, 2])),
    )
    new = boxes_verdicts(judged(1, box("cat", "reject", near)), judged(2, reviewed=True), judged(7))
    both = {image.path: image for image in merge(old, new).images}
    assert list(both) == [f"pool/{row}.png" for row in (1, 2, 3, 7)]
    assert both["pool/1.png"].labels == (box("dog", "human", [1, 1, 9, 9]), box("cat", "reject", near))
    assert both["pool/2.png"].reviewed and [one.verdict for one in both["pool/2.png"].labels] == ["reject"]
    assert merge(old, old) == old


def test_newer_regions_take_the_pixels_of_older_ones() -> None:
    left, right = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    left[:, :4], right[:, 2:] = True, True

    def verdicts(*labels: Label) -> Verdicts:
        return Verdicts(
            annotation="masks",
            class_names=PIXEL_NAMES,
            images=(JudgedImage(path="a", size=(4, 6), labels=labels),),
        )

    old, new = region("road", "human", left), region("roof", "accept", right)
    assert merge(verdicts(old), verdicts(new)).images[0].labels == (region("road", "human", left & ~right), new)
    other = region("roof", "reject", right)
    assert merge(verdicts(old), verdicts(other)).images[0].labels == (old, other), "it is not about roads"


def plain() -> dict[str, Any]:
    image = {"path": "pool/1.png", "size": [101, 200], "reviewed": False}
    label = {"class": "cat", "xyxy": [1, 2, 3, 4], "verdict": "accept", "score": None, "teacher": None, "round": None}
    return {
        "format": "tutelage-verdicts-1",
        "annotation": "boxes",
        "class_names": list(NAMES),
        "images": [image | {"labels": [label]}],
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """`plain` with another value at a path of keys and numbers."""
    whole = part = plain()
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        part = part[step]
    part[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "holds no verdicts"),
        ("annotation", "classes", "annotation"),
        ("images.0.labels.0.class", "cow", "unknown class 'cow'"),
        ("images.0.labels.0.verdict", "maybe", "images.0.labels.0.verdict"),
        ("images.0.labels.0.verdict", None, "has no verdict"),
        ("images.0.labels.0.xyxy", [3, 2, 1, 4], "is empty"),
        ("images.0.labels.0.xyxy", [1, 2, 3], "xyxy"),
        ("images.0.labels.0.xyxy", [201, 2, 203, 4], "outside"),
        ("images.0.labels.0.xyxy", [1, 2, float("inf"), 4], "finite"),
        ("images.0.labels.0.xyxy", None, "either xyxy"),
        ("images.0.labels.0.rle", {"size": [2, 2], "counts": "4"}, "either xyxy"),
        ("images.0.labels.0.score", 2, "score"),
        ("images.0.labels.0.new", 2, "Extra inputs"),
        ("images.0.size", [0, 3], "size"),
        ("images", [{"path": "a", "size": [1, 1]}] * 2, "twice"),
        ("images", 3, "images"),
    ],
)
def test_malformed_verdicts_are_refused_in_words(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "verdicts.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(InputError, match=message):
        read_verdicts(file)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"a"', "[" * 100000, "1" * 5000])
def test_files_that_hold_no_verdicts_are_refused_in_words(tmp_path: Path, text: str) -> None:
    file = tmp_path / "verdicts.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"verdicts\.json"):
        read_verdicts(file)


@pytest.mark.parametrize("counts", ["", "5", "\u00e9", "~~~", "12", "P" * 12])
def test_runs_that_do_not_fill_their_picture_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match=r"damaged|add up"):
        Region(size=(2, 2), counts=counts)


def test_verdicts_on_another_pool_are_refused(store: PseudoStore) -> None:
    with pytest.raises(InputError, match="not in the pool"):
        store.with_verdicts(boxes_verdicts(JudgedImage(path="elsewhere.png", size=(4, 4))))
    with pytest.raises(InputError, match="101 x 200"):
        store.with_verdicts(boxes_verdicts(JudgedImage(path="pool/1.png", size=(4, 4))))
    with pytest.raises(InputError, match="masks"):
        store.with_verdicts(Verdicts(annotation="masks", class_names=NAMES))
    with pytest.raises(InputError, match="cow"):
        store.with_verdicts(
            Verdicts(
                annotation="boxes",
                class_names=("cow",),
                images=(JudgedImage(path="pool/1.png", size=(101, 200), labels=(box("cow", "accept", [1, 1, 2, 2]),)),),
            )
        )


def test_what_is_written_is_read_and_its_digest_tells_it(tmp_path: Path) -> None:
    said = boxes_verdicts(judged(1, box("cat", "human", [0.1, 1 / 3, 2, 3], score=0.25, teacher="ab", round=2)))
    write_verdicts(tmp_path / "said.json", said)
    assert read_verdicts(tmp_path / "said.json") == said
    assert json.loads((tmp_path / "said.json").read_text())["images"][0]["labels"][0]["class"] == "cat"
    other = boxes_verdicts(replace_label(said, verdict="accept"))
    assert said.digest() == read_verdicts(tmp_path / "said.json").digest() != other.digest()


def replace_label(said: Verdicts, **values: Any) -> JudgedImage:
    image = said.images[0]
    return image.model_copy(update={"labels": (image.labels[0].model_copy(update=values),)})


def of_boxes(store: PseudoStore) -> tuple[Verdicts, Label]:
    """A label of every kind, and the one that a person drew."""
    images = [image for image, _ in store.parts()]
    sizes = {
        path: (int(height), int(width))
        for part in images
        for path, height, width in zip(part["path"], part["height"], part["width"], strict=True)
    }
    origin = {"score": 0.25, "teacher": store.manifest.teacher, "round": store.manifest.round}
    names = store.manifest.class_names
    drawn = box(names[0], "human", [3, 4, 20.5, 21], **origin)
    labels = (drawn, box(names[1], "accept", [30, 30, 50, 55], **origin), box(names[0], "ignore", [40, 1, 60, 20]))
    paths = sorted(sizes)
    said = [
        JudgedImage(path=paths[0], size=sizes[paths[0]], labels=labels),
        JudgedImage(path=paths[1], size=sizes[paths[1]], reviewed=True, labels=labels[:1]),
    ]
    return Verdicts(annotation="boxes", class_names=names, images=tuple(said)), drawn


def of_masks(store: PseudoStore) -> tuple[Verdicts, Label]:
    """The same of regions."""
    boxes, _ = of_boxes(store)
    square = np.zeros((64, 64), bool)
    square[5:25, 10:30] = True
    origin = {"score": 0.25, "teacher": store.manifest.teacher, "round": store.manifest.round}
    drawn = region(boxes.class_names[1], "human", square, **origin)
    labels = (drawn, region(boxes.class_names[0], "ignore", square.T))
    images = [image.model_copy(update={"labels": labels}) for image in boxes.images]
    return boxes.model_copy(update={"annotation": "masks", "images": tuple(images)}), drawn


@pytest.mark.parametrize(
    ("fixture", "given_arguments", "spoken"),
    [
        ("finished", arguments, of_boxes),
        pytest.param("finished_masks", mask_arguments, of_masks, marks=pytest.mark.slow),
    ],
    ids=["boxes", "masks"],
)
def test_every_round_learns_from_people_and_knows_where_its_labels_are_from(
    request: pytest.FixtureRequest, scenes: Path, tmp_path: Path, fixture: str, given_arguments: Any, spoken: Any
) -> None:
    earlier: Path = request.getfixturevalue(fixture)
    store = open_store(next(earlier.glob("stages/pseudo-1-*")))
    verdicts, drawn = spoken(store)
    write_verdicts(tmp_path / "verdicts.json", verdicts)
    given = {"teacher": next(earlier.glob("stages/teacher-*")), "verdicts": tmp_path / "verdicts.json"}
    overrides = (*TINY, "rounds=2", "student.min_steps=2")
    call = given_arguments(scenes, tmp_path / "run", **given, overrides=overrides)
    record = tutelage.fit(**call)
    assert record["pseudo"]["counts"]["human"] == 2 and record["pseudo"]["counts"]["ignored"] >= 1
    for round_ in (1, 2):
        folder = tmp_path / "run" / record["stages"][f"pseudo-{round_}"]
        teacher = open_store(folder).manifest.teacher
        rows = pq.read_table(tmp_path / "run" / record["stages"][f"student-{round_}"] / "second-stream.parquet")
        plain = rows.to_pylist()
        own = [row for row in plain if row["verdict"] is None]
        assert own and {(row["teacher"], row["round"]) for row in own} == {(teacher, round_)}
        human = [row for row in plain if row["verdict"] == "human"]
        assert [(row["path"], row["score"], row["teacher"], row["round"]) for row in human] == [
            (image.path, 0.25, drawn.teacher, 1) for image in verdicts.images
        ], "what a person drew is known by what the teacher of round 1 had said"
        assert {row["path"] for row in own} & {verdicts.images[1].path} == set(), "reviewed as a whole"
        require_a_row_for_each_box(folder, verdicts, plain, call["unlabeled"])
    require_keys_and_pins(tmp_path, record, call, verdicts)


def require_a_row_for_each_box(folder: Path, verdicts: Verdicts, rows: list[dict[str, Any]], pool: Path) -> None:
    """Each box that is trained on has its row; for masks there are no boxes."""
    store = open_store(folder).with_verdicts(verdicts)
    if store.manifest.annotation == "masks":
        assert all(0 < row["share"] <= 1 for row in rows)
        return
    index = store_index(store, pool_of(pool, store), PseudoConfig(score_threshold=0.0))
    trained = [
        (index.relative_path(row), index.class_names[boxes.labels[at]], *boxes.xyxy[at].tolist())
        for row in range(len(index))
        for boxes in [index.boxes(row)]
        for at in range(len(boxes))
    ]
    told = [(row["path"], row["class"], row["x1"], row["y1"], row["x2"], row["y2"]) for row in rows]
    assert trained == told and all(row["teacher"] and row["score"] is not None for row in rows if row["x1"] != 40)


def pool_of(pool: Path, store: PseudoStore) -> Index:
    return open_index(str(pool), DataConfig(), unlabeled=True).with_classes(store.manifest.class_names)


def require_keys_and_pins(tmp_path: Path, record: dict[str, Any], call: dict[str, Any], verdicts: Verdicts) -> None:
    """Verdicts change the student alone, and a run goes on with its own."""
    stages = {
        name: json.loads((tmp_path / "run" / folder / "run.json").read_text())
        for name, folder in record["stages"].items()
    }
    assert stages["student-1"]["key"]["second"]["verdicts"] == verdicts.digest()
    assert verdicts.digest() not in json.dumps(stages["control-1"]["key"])
    write_verdicts(tmp_path / "verdicts.json", verdicts.model_copy(update={"images": verdicts.images[:1]}))
    with pytest.raises(InputError, match="other data for verdicts"):
        tutelage.fit(**call)


def test_verdicts_that_cannot_be_used_are_refused_at_once(scenes: Path, tmp_path: Path) -> None:
    write_verdicts(tmp_path / "said.json", boxes_verdicts(JudgedImage(path="elsewhere.png", size=(4, 4))))
    call = arguments(scenes, tmp_path / "run", verdicts=tmp_path / "said.json")
    with pytest.raises(InputError, match="is not in the pool"):
        tutelage.fit(**call)
    with pytest.raises(InputError, match="mode=online"):
        tutelage.fit(**call | {"out": tmp_path / "other", "overrides": (*TINY, "student.mode=online")})
    with pytest.raises(InputError, match="needs its store"):
        tutelage.train(**call | {"out": tmp_path / "third"})
