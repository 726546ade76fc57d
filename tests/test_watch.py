"""The guard: planted causes are named, healthy runs are left alone, and what is lost can be stopped and continued."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.tiny import TINY, annotation, masks
from tests.toy_task import ToyTask
from tests.toy_training import log_of, run, training_in
from tutelage.config import PseudoConfig, RunConfig, TrainConfig, changed_keys, load_config
from tutelage.data.index import Index
from tutelage.data.masks import read_mask
from tutelage.data.pseudo import open_store
from tutelage.data.readers import open_index
from tutelage.engine.labelwatch import LabelWatch
from tutelage.engine.runtime import launch
from tutelage.engine.trial import Trial
from tutelage.engine.watch import Alarm, TrainingWatch
from tutelage.stats.amounts import Amounts, class_distance, empty_excess, mean_ratio, rarer_than
from tutelage.tasks.table import build_task
from tutelage.types import Annotation, Boxes, InputError, Prediction, Skipped
from tutelage.workflows import labeling
from tutelage.workflows.stages import Place, Stage, result_hash
from tutelage.workflows.watching import label_alarms

STEADY = {"lr": 0.1, "loss": 1.0, "gradient_norm": 2.0, "ratio": 0.8}
CAUSES = {"skipped", "few", "many", "empty", "classes", "missing"}


def causes(alarms: list[Alarm]) -> dict[str, str]:
    return {alarm.cause: alarm.text for alarm in alarms}


# Amounts: numbers against brute force.


def test_amounts_add_up_and_their_errors_are_those_of_many_draws() -> None:
    rng = np.random.default_rng(0)

    def images(count: int) -> NDArray[np.float64]:
        return rng.poisson(rng.gamma(2, 0.5, (count, 1)) * [3.0, 1.0, 0.2]).astype(float)

    whole = images(60)
    parts, at_once = Amounts.of(whole[:25]) + Amounts.of(whole[25:]), Amounts.of(whole)
    assert parts.mean == pytest.approx(whole.sum() / 60) and parts.images == 60
    np.testing.assert_allclose(parts.share_errors(), at_once.share_errors())
    np.testing.assert_allclose(parts.shares, whole.sum(0) / whole.sum())
    assert parts.mean_error() * parts.mean == pytest.approx(whole.sum(1).std(ddof=1) / np.sqrt(60))
    drawn = [Amounts.of(images(60)) for _ in range(2000)]
    spread = np.std([one.shares for one in drawn], axis=0)
    np.testing.assert_allclose(np.mean([one.share_errors() for one in drawn], axis=0), spread, rtol=0.1)


def test_comparisons_by_hand() -> None:
    prior = Amounts.of(np.tile([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]], (20, 1)))
    found = Amounts.of(np.tile([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], (20, 1)))
    ratio = mean_ratio(prior, found)
    assert ratio.value == pytest.approx(1 / 4)
    error = np.sqrt((2 - 1) / 39)  # of the mean 1: squares average 2
    assert (ratio.low, ratio.high) == pytest.approx((0.25 / np.exp(3 * error), 0.25 * np.exp(3 * error)))
    assert class_distance(prior, found).value == pytest.approx(0.5)  # 1/2, 1/2, 0 against 0, 1/2, 1/2
    assert class_distance(prior, found, in_order=False).value == pytest.approx(0)
    assert empty_excess(prior, found) == pytest.approx(0.5 - 3 * np.sqrt(0.25 * 0.75 * 2 / 40))
    assert rarer_than(prior, found, 0.18).tolist() == [True, False, False]  # 0 of 40 images: 7 / 40 at most
    assert rarer_than(prior, found, 0.17).tolist() == [False, False, False]
    nothing = mean_ratio(prior, Amounts.of(np.zeros((30, 3))))
    assert nothing == (0.0, 0.0, pytest.approx(7 / 30 / 4))


# Healthy pools: drawn like the labeled images, found by a teacher that misses some.


def healthy_boxes(rng: np.random.Generator, labeled: int, pool: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rates = rng.dirichlet(np.ones(rng.integers(1, 9))) * rng.uniform(0.8, 12)
    crowding, recall = rng.choice([0.7, 2.0, 10.0]), rng.uniform(0.6, 1.05, len(rates))

    def images(count: int, rates: NDArray[Any]) -> NDArray[Any]:
        return rng.poisson(rng.gamma(crowding, 1 / crowding, (count, 1)) * rates).astype(float)

    return images(labeled, rates), images(pool, rates * recall)


def healthy_masks(rng: np.random.Generator, labeled: int, pool: int) -> tuple[NDArray[Any], NDArray[Any]]:
    classes = int(rng.integers(2, 9))
    layout = rng.dirichlet([8.0, *np.ones(classes - 1)]) * rng.choice([2.0, 5.0]) + 0.02
    recall = rng.uniform(0.6, 1, classes)
    shares = rng.dirichlet(layout, labeled + pool)
    shares[shares < 0.02] = 0  # a class is not in every image
    return shares[:labeled], shares[labeled:] * recall


@pytest.mark.parametrize(("annotation", "draw"), [("boxes", healthy_boxes), ("masks", healthy_masks)])
def test_healthy_pools_raise_no_alarm(annotation: Annotation, draw: Callable[..., Any]) -> None:
    rng = np.random.default_rng(5)
    alarmed = Counter[str]()
    for _ in range(1000):
        labeled, pool = draw(rng, int(rng.choice([10, 20, 60, 200])), int(rng.integers(20, 1001)))
        names = tuple(f"class {label}" for label in range(labeled.shape[1]))
        prior, kept = Amounts.of(labeled), Amounts.of(pool)
        watch = LabelWatch(names, annotation, PseudoConfig(), prior, kept=kept, seen=len(pool))
        alarmed.update(watch.alarms() and ["any"])
        alarmed.update(alarm.cause for alarm in watch.alarms())
    assert alarmed["any"] < 10, alarmed


# Labeling with planted faults: the whole label stage, its teacher replaced by one that knows the truth.


class Oracle:
    """In the place of a teacher: what it says of the images of labeled sets, and of those that it never saw."""

    def __init__(self, *, score: float = 0.8, shift: int = 0, blind: bool = False, foreign: str = "") -> None:
        self.score, self.shift, self.blind, self.foreign = score, shift, blind, foreign

    def __call__(
        self, config: RunConfig, task: Any, model: Any, index: Index, held_out: Any, runtime: Any, rows: NDArray[Any]
    ) -> Iterator[Any]:
        for row in rows.tolist():
            name = index.relative_path(row)
            lost = self.blind or (self.foreign and self.foreign in str(index.path(row)))
            if name.endswith("broken.png"):
                yield Skipped(row, "broken")
            elif task.annotation == "boxes":
                yield Prediction(row, (64, 64), self._boxes(index, row, len(task.class_names), bool(lost)))
            else:
                yield self._mask(index, row, len(task.class_names), bool(lost))

    def _boxes(self, index: Index, row: int, classes: int, lost: bool) -> Boxes:
        truth = index.boxes(row)
        xyxy = np.tile(np.float32([[0, 0, 3, 3]]), (len(truth), 1)) if lost else truth.xyxy
        scores = np.full(len(truth), 0.06 if lost else self.score)
        return Boxes.build(xyxy, (truth.labels + self.shift) % classes, scores)

    def _mask(self, index: Index, row: int, classes: int, lost: bool) -> Prediction:
        file = index.mask_file(row)
        assert file is not None
        truth = np.zeros((64, 64), np.uint8) if lost else read_mask(file)
        shifted = ((truth.astype(np.int64) + self.shift) % classes).astype(np.uint8)
        levels = np.full(shifted.shape, int(256 * self.score), np.uint8)
        return Prediction(row, (64, 64), mask=shifted, levels=levels)


@pytest.fixture(params=["detection", "segmentation"])
def labeled_by(
    request: pytest.FixtureRequest, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Alarm]]:
    """Labels 8 times 20 scenes by an oracle, beside 24 labeled ones; returns what the finished store's guard says."""
    place_of: Callable[[Path, str], Path] = {"detection": annotation, "segmentation": masks}[request.param]

    def label(oracle: Oracle, *options: str) -> list[Alarm]:
        config = load_config(f"{request.param}-demo", [*TINY, "pseudo.score_threshold=0.5", *options])
        kind: Annotation = "boxes" if request.param == "detection" else "masks"
        labeled, pool = (open_index(place_of(scenes, name), config.data, annotation=kind) for name in ("test", "val"))
        pool = pool.select(np.tile(np.arange(20), 8))
        monkeypatch.setattr(labeling, "label_images", oracle)
        monkeypatch.setattr(labeling, "load_trained", lambda *_: None)
        task = build_task(config, labeled.class_names)
        made = launch(
            config.runtime,
            lambda runtime: labeling.label_stage(
                Place(tmp_path), "pseudo-1", config, task, Stage("teacher", "t", tmp_path), pool, (), runtime,
                round_=1, labeled=labeled,
            ),
        )  # fmt: skip
        return label_alarms(open_store(made.folder), config, labeled)

    return label


def test_a_good_teacher_is_left_alone(labeled_by: Callable[..., list[Alarm]], capsys: Any) -> None:
    assert labeled_by(Oracle()) == []
    assert "at fault" not in capsys.readouterr().err


def test_permuted_class_names_are_named_before_the_pool_is_labeled(
    labeled_by: Callable[..., list[Alarm]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"star is called heart \(100%\).*class names .* are permuted.*guard=warn"):
        labeled_by(Oracle(shift=1), "guard=stop")
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.parquet")) and not (folder / "run.json").exists()
    alarms = labeled_by(Oracle(shift=1))  # the same folder, with guard=warn
    assert alarms[0].cause == "class names" and alarms[0].lost
    assert capsys.readouterr().err.count("names it otherwise") == 2  # once for each call
    assert all("class names are at fault" in alarm.text for alarm in alarms[1:] if alarm.cause == "classes")


def test_permuted_class_names_are_guessed_from_the_histogram_where_no_teacher_was_tried() -> None:
    rng = np.random.default_rng(1)
    labeled = rng.poisson([8.0, 1.0, 0.5], (30, 3)).astype(float)
    pool = rng.poisson([8.0, 1.0, 0.5], (200, 3))[:, [2, 0, 1]].astype(float)
    watch = LabelWatch(
        ("RBC", "WBC", "Platelets"), "boxes", PseudoConfig(), Amounts.of(labeled), kept=Amounts.of(pool), seen=200
    )
    (alarm,) = watch.alarms()
    assert alarm.cause == "classes" and alarm.lost
    assert "RBC 4.6% (labels 87.0%), WBC 85.1% (labels 9.7%)" in alarm.text
    assert "the class names may be permuted" in alarm.text


def test_an_untrained_teacher_is_named(labeled_by: Callable[..., list[Alarm]]) -> None:
    found = causes(labeled_by(Oracle(blind=True)))
    assert "untrained" in found["teacher"]
    others = [text for cause, text in found.items() if cause in ("few", "missing", "classes")]
    assert others and all("The teacher is at fault" in text for text in others)


def test_a_pool_of_another_domain_is_named(labeled_by: Callable[..., list[Alarm]], tmp_path: Path) -> None:
    alarms = labeled_by(Oracle(foreign="/val/"))
    (record,) = tmp_path.glob("*/run.json")
    assert json.loads(record.read_text())["warnings"] == [alarm.as_dict() for alarm in alarms]
    found = causes(alarms)
    assert set(found) <= CAUSES  # the teacher itself is fine
    named = [text for cause, text in found.items() if cause in ("few", "missing", "classes")]
    assert named and all("The pool seems to be of another domain" in text for text in named)


def test_a_threshold_out_of_reach_is_named_early_and_with_one_that_fits(
    labeled_by: Callable[..., list[Alarm]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"pseudo\.score_threshold=0\.99 .*The threshold is at fault.*=0\.7\d "):
        labeled_by(Oracle(), "pseudo.score_threshold=0.99", "guard=stop")
    (folder,) = tmp_path.iterdir()
    assert 0 < len(list(folder.glob("*.images.parquet"))) < 20 and not (folder / "manifest.json").exists()
    assert "pseudo-1, 8/160 images" in capsys.readouterr().err
    alarms = labeled_by(Oracle(), "pseudo.score_threshold=0.99")  # goes on from there
    assert {"few", "empty"} <= set(causes(alarms)) and alarms[0].lost
    assert labeled_by(Oracle()) == [], "the finished store is judged by the threshold it is read with"


def test_skipped_images_are_counted() -> None:
    watch = LabelWatch(("a",), "boxes", PseudoConfig(), seen=20, skipped=3)
    (alarm,) = watch.alarms()
    assert "3 of 20 pool images could not be read" in alarm.text
    assert replace(watch, skipped=2).alarms() == []


@pytest.mark.parametrize(("rate", "cause"), [(0.1, "few"), (40.0, "many"), (4.0, "")])
def test_amounts_far_from_the_labeled_ones_are_said_with_their_numbers(rate: float, cause: str) -> None:
    rng = np.random.default_rng(2)
    labeled, pool = (Amounts.of(rng.poisson([mean, mean], (100, 2)).astype(float)) for mean in (2.0, rate / 2))
    watch = LabelWatch(("a", "b"), "boxes", PseudoConfig(empty="drop"), labeled, kept=pool, seen=100)
    found = causes(watch.alarms())
    assert set(found) == ({cause} if cause else set())
    if cause:
        assert f"{pool.mean:.3g} boxes an image reach pseudo.score_threshold=0.5 in 100 pool images" in found[cause]
        assert f"people labeled {labeled.mean:.3g} boxes an image" in found[cause]


@pytest.mark.parametrize("rate", [0.1, 40.0])
def test_a_trial_on_images_without_labels_blames_nobody(rate: float) -> None:
    rng = np.random.default_rng(2)
    labeled, pool = (Amounts.of(rng.poisson([mean, mean], (100, 2)).astype(float)) for mean in (2.0, rate / 2))
    trial = Trial("", 4, np.zeros((2, 3)), np.ones((2, 65)))
    watch = LabelWatch(("a", "b"), "boxes", PseudoConfig(empty="drop"), labeled, trial, kept=pool, seen=100)
    assert watch.alarms() == replace(watch, trial=None).alarms() != []


def test_few_images_raise_no_alarm() -> None:
    labeled, pool = Amounts.of(np.full((4, 2), 5.0)), Amounts.of(np.zeros((7, 2)))
    watch = LabelWatch(("a", "b"), "boxes", PseudoConfig(), labeled, kept=pool, seen=7)
    assert watch.alarms() == []


def test_a_tiny_fit_keeps_its_warnings_and_shows_them(finished: Path, finished_masks: Path) -> None:
    for folder in (finished, finished_masks):
        record = json.loads((folder / "run.json").read_text())
        stage = json.loads((folder / record["stages"]["pseudo-1"] / "run.json").read_text())
        assert [{"stage": "pseudo-1", **one} for one in stage["warnings"]] == record["warnings"]
        assert record["warnings"][0]["cause"] == "teacher"  # six steps teach nothing
        page = (folder / "report.html").read_text()
        assert "pseudo-1 is lost:" in page and "it is untrained" in page


# Training.


def looked(lines: list[dict[str, float]], **config: Any) -> list[Alarm]:
    watch = TrainingWatch(start=torch.tensor(1.0))
    for line in lines:
        watch.look({**STEADY, **line}, TrainConfig(**config))
    return list(watch.alarms.values())


@pytest.mark.parametrize(
    ("lines", "cause", "lost", "text"),
    [
        (
            [{"loss": 30.0, "lr": 100.0}],
            "divergence",
            True,
            r"loss is 30 and began at 1: .*Lower train\.lr \(now 100\)",
        ),
        ([{"ratio": 120.0}], "contradiction", False, r"human labels cost 120 times.*class names"),
        ([{"ratio": 0.02}], "misfit", False, r"pseudo-labels cost 50 times"),
        ([{}] * 5 + [{"gradient_norm": 30.0}], "gradient", False, r"norm is 30 and was 2 until now.*train\.lr"),
        ([{"gradient_norm": 25.0}] * 5, "clipping", False, r"cut to train\.clip_norm=10 at nearly every step"),
    ],
)
def test_a_figure_out_of_hand_is_named(lines: list[dict[str, float]], cause: str, lost: bool, text: str) -> None:
    (alarm,) = looked(lines, clip_norm=10.0)
    assert (alarm.cause, alarm.lost) == (cause, lost)
    assert re.search(text, alarm.text), alarm.text
    assert looked(lines[:-1], clip_norm=10.0) == []


def test_steady_and_converging_trainings_raise_no_alarm() -> None:
    rng = np.random.default_rng(3)
    for _ in range(1000):
        falling = np.geomspace(rng.uniform(0.5, 1.5), 0.05, 20) * rng.lognormal(0, 0.3, 20)
        norms = np.geomspace(rng.uniform(1, 8), rng.uniform(0.3, 3), 20) * rng.lognormal(0, 0.4, 20)
        ratios = rng.uniform(0.2, 3, 20)
        lines = [
            {"loss": loss, "gradient_norm": norm, "ratio": ratio}
            for loss, norm, ratio in zip(falling.tolist(), norms.tolist(), ratios.tolist(), strict=True)
        ]
        assert looked(lines, clip_norm=10.0) == []


def test_a_batch_without_labels_does_not_count_as_the_start() -> None:
    watch = TrainingWatch()
    watch.begin(torch.tensor(0.0))
    assert watch.look({**STEADY, "loss": 2.0}, TrainConfig()) == []
    watch.begin(torch.tensor(1.5))
    watch.begin(torch.tensor(9.0))
    assert watch.began_at() == 1.5


def test_what_the_watch_knows_survives_a_checkpoint() -> None:
    watch = TrainingWatch(start=torch.tensor(0.5))
    watch.look({**STEADY, "loss": 20.0}, TrainConfig())
    again = TrainingWatch.from_dict(json.loads(json.dumps(watch.as_dict())))
    assert again.as_dict() == watch.as_dict() and again.alarms["divergence"].lost


@pytest.mark.parametrize("method", ["supervised", "student"])
def test_a_learning_rate_of_100_is_named_stopped_and_continued(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wild(folder: str, **changes: Any) -> Any:
        training = training_in(tmp_path / folder, method=method, **changes)
        config = training.config.model_copy(update={"lr": 100.0, "optimizer": "sgd", "warmup_steps": 0})
        return replace(training, config=config)

    with pytest.raises(InputError, match=r"toy: the loss is .* and began at .*train\.lr \(now .*guard=warn goes on"):
        run(wild("a", guard="stop"))
    assert (tmp_path / "a" / "checkpoint").is_dir()
    resumed, whole = run(wild("a")), run(wild("b"))
    assert resumed.resumed_from == 2  # the first line of the log
    assert resumed.as_dict()["warnings"] == whole.as_dict()["warnings"]
    assert whole.as_dict()["warnings"][0]["cause"] == "divergence"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert [line["step"] for line in log_of(tmp_path / "a")] == [2, 4, 6, 8]
    assert capsys.readouterr().err.count("the training diverges") == 3  # once for each call


def test_a_loss_that_is_not_finite_names_how_it_began(tmp_path: Path) -> None:
    training = training_in(tmp_path)

    def break_it(_model: Any, _runtime: Any) -> dict[str, float]:
        training.objective.task = ToyTask(scale=float("inf"))
        return {}

    with pytest.raises(
        InputError, match=r"is not finite .*it began with a loss of \d.* and diverges\. Lower train\.lr"
    ):
        run(replace(training, validate=break_it, validate_steps=(3,)))


def test_the_guard_enters_no_hash_and_may_change_between_calls() -> None:
    warn, stop = (load_config("detection-demo", [f"guard={guard}"]) for guard in ("warn", "stop"))
    assert changed_keys(warn, stop) == []
    assert result_hash(warn) == result_hash(stop)
    assert changed_keys(warn, load_config("detection-demo", ["student.alpha=2"])) == ["student.alpha: 1.0 -> 2.0"]
