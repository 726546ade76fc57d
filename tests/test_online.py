"""A teacher that learns on: what it sees is carried over exactly, the control ignores it, and runs can be continued."""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tutelage
from tests.tiny import TINY, annotation, arguments, mask_arguments
from tests.toy_online import ALL, PlantedTask, online_student, two_views
from tests.toy_task import CANVAS, ToyTask, toy_batch, toy_network, toy_stream
from tests.toy_training import CPU, OPTIONS, run, stop_at, training_in
from tutelage.augment.policies import strong_plan, weak_plan
from tutelage.config import AugmentConfig, DataConfig, ModelConfig, PostprocessConfig, PseudoConfig, StudentConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.loader import pool_pair_batches
from tutelage.data.pseudo.carrying import carried, weak_views
from tutelage.data.readers import open_index
from tutelage.engine.guard import StreamSize, rehearse
from tutelage.engine.loop import Interrupted, Stream, Training, accumulate
from tutelage.engine.objectives import Joint, Objective, Student, Supervised
from tutelage.engine.online import OnlineStudent, teacher_decay
from tutelage.engine.optim import averaged_copy
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import read_json
from tutelage.models.model import DetectionOutputs
from tutelage.tasks.classification import ClassificationTask
from tutelage.tasks.detection import DetectionTask
from tutelage.types import IGNORE, IGNORE_BOX, IGNORE_REGION, Batch, Boxes, InputError, Prediction

S4 = AugmentConfig(level="s4")
LARGE_S4 = AugmentConfig(level="s4", jitter=(0.9, 1.6))
SIZE, WIDE = (90, 120), (64, 96)  # of an original, of its canvas
NAMES = ("a", "b", "c")
ONLINE = ("student.mode=online", "student.online.burn_in=1", "student.online.sample=9", "teacher.min_steps=2")
Floats = NDArray[np.float64]


def pair_of_views(count: int, config: AugmentConfig = S4, size: tuple[int, int] = SIZE) -> Batch:
    """Both views of `count` images as the loader lays them out, their pixels left black."""
    matrices, valid = [], []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        plans = [draw(config, rng, size, WIDE) for draw in (strong_plan, weak_plan)]
        matrices.append([plan.matrix for plan in plans])
        valid.append([plan.valid for plan in plans])
    return Batch(
        images=torch.zeros(count, 2, 3, *WIDE, dtype=torch.uint8),
        matrix=torch.tensor(np.array(matrices)),
        valid=torch.tensor(valid),
        image_ids=torch.arange(count),
        sizes=torch.tensor([size] * count),
    )


def moved(matrix: Floats, points: Any) -> Floats:
    """Points (n, 2) one by one, in homogeneous coordinates."""
    return np.array([(matrix @ [x, y, 1.0])[:2] for x, y in points])


def clipped(polygon: Floats, size: Sequence[float]) -> Floats:
    """What of a convex polygon lies in (0, 0, width, height): one side after the other (Sutherland and Hodgman)."""
    points = [tuple(point) for point in polygon]
    for axis, limit, sign in ((0, 0.0, 1), (1, 0.0, 1), (0, size[1], -1), (1, size[0], -1)):
        kept = []
        for one, two in zip(points, points[1:] + points[:1], strict=True):
            inside, following = (sign * (point[axis] - limit) >= 0 for point in (one, two))
            if inside:
                kept.append(one)
            if inside != following:
                share = (limit - one[axis]) / (two[axis] - one[axis])
                kept.append(tuple(a + share * (b - a) for a, b in zip(one, two, strict=True)))
        points = kept
    return np.array(points).reshape(-1, 2)


class OneAnchor(nn.Module):
    """A detector that is sure of one anchor of each image."""

    def __init__(self, chosen: Tensor, num_anchors: int) -> None:
        super().__init__()
        self.chosen, self.num_anchors = chosen, num_anchors

    def normalize(self, images: Tensor, valid: Tensor) -> Tensor:
        return images.float()

    def raw(self, normalized: Tensor) -> DetectionOutputs:
        logits = torch.full((len(normalized), self.num_anchors, len(NAMES)), -20.0)
        logits[torch.arange(len(normalized)), self.chosen, 1] = 3.0
        return DetectionOutputs(logits, torch.zeros(len(normalized), self.num_anchors, 4))


def test_boxes_of_the_weak_view_are_carried_over_as_their_corners_say() -> None:
    network = ModelConfig(backbone="test_resnet", canvas=WIDE, max_level=5, pyramid_width=8, head_width=8)
    task = DetectionTask(network, PostprocessConfig(), NAMES)
    anchors = task.anchors(WIDE, torch.device("cpu"))
    batch, seen = pair_of_views(40), 0
    chosen = torch.from_numpy(np.random.default_rng(0).integers(0, len(anchors), 40))
    predictions = task.predict(OneAnchor(chosen, len(anchors)), weak_views(batch))  # type: ignore[arg-type]
    boxes = carried(predictions, batch, "boxes", np.full(3, 0.5, np.float32), PseudoConfig()).boxes
    assert boxes is not None
    for row in range(40):
        strong, weak = batch.matrix[row].numpy()
        x1, y1, x2, y2 = np.clip(anchors[chosen[row]].tolist(), 0, np.array(batch.valid[row, 1].tolist() * 2)[::-1])
        corners = moved(strong @ np.linalg.inv(weak), [(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
        shown = clipped(corners, batch.valid[row, 0].tolist())
        area = len(shown) and (shown.max(0) - shown.min(0)).min() > 1e-2 and min(x2 - x1, y2 - y1) > 0
        assert int(boxes.valid[row].sum()) == int(bool(area))
        if area:
            seen += 1
            wanted = np.concatenate([shown.min(0), shown.max(0)])
            np.testing.assert_allclose(boxes.xyxy[row, 0].numpy(), wanted, atol=1e-3)
            assert boxes.labels[row, 0] == 1 and boxes.scores[row, 0] == pytest.approx(torch.tensor(3.0).sigmoid())
    assert 15 < seen < 40


def test_masks_of_the_weak_view_are_carried_over_pixel_by_pixel() -> None:
    batch, rng, right, compared = pair_of_views(3, LARGE_S4), np.random.default_rng(1), 0, 0
    predictions = []
    for row, (height, width) in enumerate(batch.valid[:, 1].tolist()):
        mask, levels = (rng.integers(0, high, (height, width), dtype=np.uint8) for high in (3, 256))
        predictions.append(Prediction(row, SIZE, mask=mask, levels=levels))
    thresholds = np.array([0.25, 0.5, 0.75], np.float32)
    masks = carried(predictions, batch, "masks", thresholds, PseudoConfig()).masks
    assert masks is not None
    for row, prediction in enumerate(predictions):
        strong, weak = batch.matrix[row].numpy()
        height, width = batch.valid[row, 1].tolist()
        back = np.linalg.inv(strong @ np.linalg.inv(weak))
        for y, x in np.ndindex(*WIDE):
            u, v = moved(back, [(x + 0.5, y + 0.5)])[0]
            near = [abs(place - round(place)) < 0.02 for place in (u, v)]
            outside = u < 0 or v < 0 or u > width or v > height or y >= batch.valid[row, 0, 0]
            if any(near) or min(abs(u), abs(v), abs(u - width), abs(v - height)) < 0.6:  # rounding; half-covered edges
                continue
            compared += 1
            wanted = IGNORE
            if not outside:
                label = prediction.mask[int(v), int(u)]  # type: ignore[index]
                wanted = label if prediction.levels[int(v), int(u)] / 256 >= thresholds[label] else IGNORE  # type: ignore[index]
            right += int(masks[row, y, x] == wanted)
    assert compared > 12_000 and right == compared
    assert 0.2 < float((masks == IGNORE).float().mean()) < 0.9


def test_thresholds_by_class_unsure_boxes_and_empty_images() -> None:
    batch = pair_of_views(2, AugmentConfig(level="none"), size=WIDE)
    some = Boxes.build([[8, 8, 24, 24], [40, 8, 60, 30], [8, 30, 30, 60]], [0, 1, 1], [0.6, 0.6, 0.9])
    none = Boxes.build([[8, 8, 24, 24]], [1], [0.5])
    predictions = [Prediction(0, WIDE, some), Prediction(1, WIDE, none)]
    limits = np.array([0.5, 0.8], np.float32)

    def targets(**options: Any) -> list[list[tuple[list[float], int]]]:
        boxes = carried(predictions, batch, "boxes", limits, PseudoConfig(**options)).boxes
        assert boxes is not None
        rows = [zip(boxes.xyxy[row][known].tolist(), boxes.ignore[row][known].tolist(), strict=True)
                for row, known in enumerate(boxes.valid)]  # fmt: skip
        return [list(row) for row in rows]

    sure = [([8, 8, 24, 24], 0), ([8, 30, 30, 60], 0)]
    assert targets() == [sure, []]
    excused = [sure[0], ([40, 8, 60, 30], IGNORE_BOX), sure[1]]
    assert targets(unsure="ignore") == [excused, [([8, 8, 24, 24], IGNORE_BOX)]]
    (first, ((_, ignored),)) = targets(empty="drop")
    assert first == sure and ignored == IGNORE_REGION
    task = DetectionTask(ModelConfig(backbone="test_resnet", canvas=WIDE), PostprocessConfig(), NAMES)
    dropped = carried(predictions, batch, "boxes", limits, PseudoConfig(empty="drop"))
    matched = task.assign(dropped, "mask").matched
    assert (matched[1] == -2).all() and (matched[0] == -1).any(), "no anchor of the empty image is trained on"


@pytest.mark.parametrize("level", ["none", "s1", "s3", "s4"])
def test_the_weak_view_shows_the_whole_image_unturned_and_in_its_colors(level: str) -> None:
    flips = 0
    for seed in range(200):
        plan = weak_plan(AugmentConfig.model_validate({"level": level}), np.random.default_rng(seed), SIZE, WIDE)
        x, y = moved(plan.matrix, [(0, 0), (SIZE[1], 0), (0, SIZE[0]), (SIZE[1], SIZE[0])]).T
        assert min(x.min(), y.min()) > -1e-9
        np.testing.assert_allclose([y.max(), x.max()], plan.valid)
        assert not plan.canvas_ops and not plan.source_ops and not plan.matrix[[0, 1], [1, 0]].any()
        assert 0.88 < max(plan.valid[0] / WIDE[0], plan.valid[1] / WIDE[1]) <= 1
        flips += plan.matrix[0, 0] < 0
    assert (flips == 0) if level == "none" else 70 < flips < 130


def test_the_decay_by_hand() -> None:
    decays = {0: 0.0, 9: 0.0, 10: 1 / 11, 19: 0.5, 99: 0.9, 999: 0.99, 24_999: 0.9996, 10**6: 0.9996}
    assert {step: teacher_decay(0.9996, step) for step in decays} == pytest.approx(decays)
    assert teacher_decay(0.0, 10**6) == 0


def stepped(objective: Objective, batches: dict[str, Batch]) -> list[Tensor]:
    """The gradients of one step."""

    def step(runtime: Runtime) -> None:
        accumulate(runtime.setup(objective), objective, [batches], None, runtime)

    launch(CPU, step)
    return [weight.grad.clone() for weight in objective.model.parameters() if weight.grad is not None]


def batches_of_two() -> dict[str, Batch]:
    return {"labeled": toy_batch(1), "second": two_views(toy_batch(2))}


def test_the_control_asks_the_teacher_as_often_and_ignores_what_it_says() -> None:
    network = toy_network(double=True).eval()
    gradients = {}
    for arm in ("pool", "labeled", "hidden"):
        for salt in (0, 1):
            task = PlantedTask(salt=salt)
            objective = online_student(copy.deepcopy(network), task, second_stream=arm)
            gradients[arm, salt] = torch.cat([one.flatten() for one in stepped(objective, batches_of_two())])
            assert task.looks == [4], "one look at each image, in every arm"
    supervised = stepped(
        Student(ToyTask(), network, StudentConfig()), batches_of_two()
    )  # people's labels, both streams
    wanted = torch.cat([one.flatten() for one in supervised])
    for arm in ("labeled", "hidden"):
        for salt in (0, 1):
            torch.testing.assert_close(gradients[arm, salt], wanted, rtol=1e-12, atol=0)
    assert not torch.allclose(gradients["pool", 0], gradients["pool", 1])
    assert not torch.allclose(gradients["pool", 0], wanted)


def test_during_the_burn_in_labeled_images_alone_count() -> None:
    network = toy_network(double=True).eval()
    objective = online_student(copy.deepcopy(network), PlantedTask(), burn_in=2, average_decay=0.5)
    alone = stepped(Supervised(ToyTask(), copy.deepcopy(network), "mask"), batches_of_two())
    for one, other in zip(stepped(objective, batches_of_two()), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    targets = objective.prepare(batches_of_two(), None)
    sums, counts = objective(batches_of_two(), targets), objective.counts(targets)
    ratios, totals = [], []
    for _ in range(4):
        totals.append(float(objective.total(sums, counts).detach()))
        ratios.append(float(objective.ratio()))
        objective.update(sums, counts)
    human, pseudo = objective.stream_losses(sums, counts).tolist()
    assert totals == pytest.approx([human, human, (human + pseudo) / 2, human])  # losses equal to their averages
    assert ratios == pytest.approx([1, 1, 1, human / pseudo])
    assert objective.record() == {"second_stream": {"images": 16, "skipped": 16, "leaks": 32}}


def test_a_teacher_of_which_nothing_is_taken_is_told_of() -> None:
    for threshold, arm, told in ((0.0, "pool", False), (1.0, "pool", True), (1.0, "labeled", False)):
        pseudo = PseudoConfig(score_threshold=threshold)
        objective = online_student(toy_network(double=True), PlantedTask(), pseudo, second_stream=arm)
        targets = objective.prepare(batches_of_two(), None)
        sums, counts = objective(batches_of_two(), targets), objective.counts(targets)
        figures = {name: float(value) for name, value in objective.report(sums, counts).items()}
        assert ("pseudo.score_threshold" in str(objective.warning(figures))) == told


def online_training(folder: Path, **changes: Any) -> Training:
    def in_two_views(*args: Any, **options: Any) -> Any:
        return ([two_views(batch) for batch in micro] for micro in toy_stream(*args, **options))

    plain = training_in(folder)
    objective = online_student(toy_network(seed=3), PlantedTask(), burn_in=3, **OPTIONS)
    streams = {**plain.streams, "second": Stream(None, 4, in_two_views)}  # type: ignore[arg-type]
    return replace(plain, objective=objective, streams=streams, average=partial(teacher_decay, 0.9996), **changes)


def test_a_stopped_and_continued_training_equals_one_never_stopped(tmp_path: Path) -> None:
    states = {}
    for name, stops in {"whole": (), "in the burn-in": (2,), "later": (5, 14)}.items():
        for at in stops:
            with pytest.raises(Interrupted):
                run(online_training(tmp_path / name, num_steps=16, **stop_at(at)))
        training = online_training(tmp_path / name, num_steps=16)
        states[name] = {**run(training).model.state_dict(), **training.objective.state_dict()}
    assert int(states["whole"]["steps"]) == 16 and states["whole"]["drawn"].tolist() == [64, 64, 128]
    for name in ("in the burn-in", "later"):
        assert all(torch.equal(tensor, states["whole"][key]) for key, tensor in states[name].items())


def test_the_averaged_weights_follow_the_decay_and_are_what_labels_and_is_reported(tmp_path: Path) -> None:
    weights, asked = [], []

    class Watching(PlantedTask):
        def predict(self, model: Any, batch: Batch, label: Any = None) -> list[Prediction]:
            asked.append(model.logits.bias.clone())
            return super().predict(model, batch, label)

    def note(_model: nn.Module, _runtime: Runtime) -> dict[str, float]:
        weights.append(training.objective.model.logits.bias.detach().clone())
        return {}

    training = online_training(tmp_path, num_steps=14, validate=note, validate_steps=tuple(range(1, 15)))
    training.objective.task = Watching()
    expected = [training.objective.model.logits.bias.detach().clone()]
    result = run(training)
    for step, new in enumerate(weights):
        decay = max(0.0, 1 - 10 / (step + 1))
        expected.append(decay * expected[-1] + (1 - decay) * new)
    for found, wanted in zip([*asked, result.model.logits.bias], expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.equal(result.model.logits.bias, weights[-1])


def test_the_rehearsal_and_the_plan_count_what_the_teacher_looks_at() -> None:
    task = PlantedTask()
    sizes = {"labeled": StreamSize(4, CANVAS), "second": StreamSize(8, CANVAS, views=2)}
    objective = online_student(toy_network(), task)
    launch(CPU, lambda runtime: rehearse(objective, sizes, runtime))
    assert 8 in task.looks
    assert sizes["second"].pixels == pytest.approx(8 * 32 * 32 * (1 + 1 / 3))


def test_joint_training_takes_a_teacher_that_learns_on() -> None:
    model = ModelConfig(backbone="test_resnet", canvas=CANVAS, max_level=5, pyramid_width=8, head_width=8, head_depth=1)
    task = DetectionTask(model, PostprocessConfig(score_floor=0.0, max_detections=5), NAMES)
    torch.manual_seed(0)
    network = task.build_model()
    network.add_classifier(3)
    inner = OnlineStudent(task, network, StudentConfig(online={"burn_in": 0}), ALL)  # type: ignore[arg-type]
    objective = Joint(inner, ClassificationTask(model, 0.1, NAMES), 0.5)
    assert objective.needs_ema
    batches = {**batches_of_two(), "classification": toy_batch(3)}
    ema = averaged_copy(network)

    def step(runtime: Runtime) -> Tensor:
        return accumulate(runtime.setup(objective), objective, [batches], ema, runtime)[1]

    counts = launch(CPU, step)
    objective.update(*(objective(batches, targets := objective.prepare(batches, ema)), objective.counts(targets)))
    assert counts.shape == (6,) and counts[1] > 0 and counts[2:5].tolist() == [4, 4, 8]
    assert all(weight.grad is not None for weight in network.parameters())
    assert objective.record()["second_stream"]["images"] == 4


def spoiled_pool(scenes: Path, folder: Path) -> Path:
    """Half of a pool, with a broken image and a copy of a test image that was saved anew."""
    shutil.copytree(scenes / "pool" / "images", folder)
    names = sorted(folder.iterdir())
    for path in names[10:]:
        path.unlink()
    names[3].write_bytes(b"\x89PNG, but not for long")
    shutil.copy(sorted((scenes / "test" / "images").iterdir())[5], names[7])
    return folder


def pool_stream(pool: Path, held_out: HashBook | None, **changed: Any) -> list[Batch]:
    options: dict[str, Any] = {
        "stream": "second", "seed": 1, "round": 1, "batch_size": 4, "first_step": 0, "num_steps": 5, "rank": 0,
        "world_size": 1, "micro_batches": 1, "workers": 0, "cache_megabytes": 0, "pin": False, **changed,
    }  # fmt: skip
    index = open_index(pool, DataConfig(), unlabeled=True)
    how = {"data": DataConfig(), "canvas": (64, 64), "augment": S4, "annotation": None, "held_out": held_out}
    return [batch for step in pool_pair_batches(index, **how, **options) for batch in step]


def test_images_of_no_use_give_their_places_to_others_however_they_are_loaded(scenes: Path, tmp_path: Path) -> None:
    pool = spoiled_pool(scenes, tmp_path / "pool")
    book = HashBook.build(open_index(annotation(scenes, "test"), DataConfig()), DataConfig())
    whole = pool_stream(pool, book)
    ids = torch.cat([batch.image_ids for batch in whole])
    assert not {3, 7} & set(ids.tolist()) and len(ids) == 20
    passed_over = torch.cat([batch.passed_over for batch in whole if batch.passed_over is not None])
    assert passed_over.sum(0).tolist() == [2, 2], "two epochs: each met both"
    assert 7 in torch.cat([batch.image_ids for batch in pool_stream(pool, None)]).tolist()
    assert all(batch.boxes is None and batch.masks is None and batch.images.shape[1] == 2 for batch in whole)
    for changed in ({"workers": 1, "cache_megabytes": 64}, {"first_step": 3}):
        again = pool_stream(pool, book, **changed)
        for one, other in zip(again, whole[-len(again) :], strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.matrix, other.matrix)
    for path in pool.iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(InputError, match=r"--unlabeled: of 10 images .* 10 cannot be read and 0 are also"):
        pool_stream(pool, book)


def stages_of(out: Path) -> dict[str, dict[str, Any]]:
    paths = read_json(out / "run.json")["stages"]
    return {name: read_json(out / path / "run.json") for name, path in paths.items()}


def check_arms(out: Path) -> None:
    """Student, control and upper reference differ in one key; the store is one of a sample."""
    stages = stages_of(out)
    student = stages["student-1"]
    for name in ("control-1", "hidden-1") if "hidden-1" in stages else ("control-1",):
        arm = stages[name]
        assert {key for key in student["config"] if student["config"][key] != arm["config"][key]} == {"second_stream"}
        assert arm["key"]["init"] == student["key"]["init"] == stages["teacher"]["hash"]
        assert (arm["steps"], arm["seed"], arm["batch_size"]) == (student["steps"], student["seed"], 4)
        assert arm["second_stream"]["images"] == student["second_stream"]["images"] == 4 * student["steps"]
    assert stages["pseudo-1"]["key"]["teacher"] == student["hash"]
    record = json.loads((out / "run.json").read_text())
    assert record["pseudo"]["counts"]["images"] == 9
    assert any("running average labeled the pool" in note for note in record["notes"])
    assert "running average labeled the pool" in (out / "report.html").read_text()


def test_a_fit_online_of_boxes(scenes: Path, tmp_path: Path) -> None:
    pool = spoiled_pool(scenes, tmp_path / "pool")
    out = tmp_path / "run"
    tutelage.fit(**arguments(scenes, out, unlabeled=pool, overrides=(*TINY, *ONLINE)))
    check_arms(out)
    stages = stages_of(out)
    drawn = stages["student-1"]["second_stream"]
    assert drawn["skipped"] > 0 and drawn["leaks"] > 0
    assert stages["control-1"]["second_stream"] | {"images": 0} == {"images": 0, "skipped": 0, "leaks": 0}
    counts = stages["pseudo-1"]["counts"]
    assert (counts["skipped"], counts["leaks"]) != (0, 0) and counts["boxes_kept"] > 0


def test_a_fit_online_of_masks_with_the_upper_reference(scenes: Path, tmp_path: Path) -> None:
    hidden = ("hidden_arm=true", "data.labeled_fraction=0.5", "data.rest_as_pool=true", "student.min_steps=2")
    pool = {"labeled": scenes / "pool" / "masks", "unlabeled": ()}
    out = tmp_path / "run"
    tutelage.fit(**mask_arguments(scenes, out, **pool, overrides=(*TINY, *ONLINE, *hidden)))
    check_arms(out)


def test_three_rounds_offline_are_three_chains(scenes: Path, tmp_path: Path) -> None:
    short = ("rounds=3", "student.min_steps=1", "teacher.min_steps=1")
    tutelage.fit(**arguments(scenes, tmp_path / "run", overrides=(*TINY, *short)))
    stages = stages_of(tmp_path / "run")
    for arm in ("control", "student"):
        starts = [stages[f"{arm}-{number}"]["key"]["init"] for number in (1, 2, 3)]
        assert starts == [stages[name]["hash"] for name in ("teacher", f"{arm}-1", f"{arm}-2")]
    labelers = [stages[f"pseudo-{number}"]["key"]["teacher"] for number in (1, 2, 3)]
    assert labelers == [stages[name]["hash"] for name in ("teacher", "student-1", "student-2")]
    stores = [stages[f"student-{number}"]["key"]["second"]["store"] for number in (1, 2, 3)]
    assert stores == [stages[f"pseudo-{number}"]["hash"] for number in (1, 2, 3)]
    assert {"evaluate-student-3", "evaluate-control-3"} <= set(stages)


def test_train_takes_a_teacher_that_learns_on(finished: Path, scenes: Path, tmp_path: Path) -> None:
    given = arguments(scenes, tmp_path / "run", test=(), teacher=finished, overrides=(*TINY, *ONLINE))
    record = tutelage.train(**given)
    assert record["name"] == "student" and record["second_stream"]["images"] == 16
    with pytest.raises(InputError, match=r"with student\.mode=online all but the store"):
        tutelage.train(**given | {"out": tmp_path / "other", "unlabeled": ()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"overrides": (*TINY, *ONLINE, "rounds=2")}, r"rounds=2: .*1 is allowed"),
        ({"pseudo": "store"}, r"--pseudo store: .*no store is allowed"),
        ({"overrides": (*TINY, *ONLINE, "pseudo.empty=drop", "student.ignored=drop")}, r"student\.ignored=mask"),
    ],
)
def test_what_the_mode_cannot_do_is_said(changed: dict[str, Any], message: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        tutelage.fit(**arguments(scenes, tmp_path / "run", **{"overrides": (*TINY, *ONLINE), **changed}))


def test_plan_and_cost_of_a_teacher_that_learns_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tutelage.config import load_config
    from tutelage.workflows.costing.images import Images
    from tutelage.workflows.costing.stages import stages_of as costs

    tutelage.fit(**arguments(scenes, tmp_path / "run", plan=True, overrides=(*TINY, *ONLINE)))
    assert "label    1 x 9 images" in capsys.readouterr().err
    images = Images(labeled=8, pool=20, test=0, num_classes=4, origin="given")
    offline, online = ({stage.name: stage for stage in costs(load_config("detection-demo", (*TINY, *mode)), images)}
                       for mode in ((), ONLINE))  # fmt: skip
    added = online["student"].flops - offline["student"].flops
    assert added == 2 * offline["student"].multiply_adds * 4 * 4, "a forward pass of four images in each of four steps"
    weights = 4 * online["student"].parameters
    assert online["student"].memory_bytes - offline["student"].memory_bytes == weights, "the averaged ones"
    assert online["control"] == replace(online["student"], name="control")
    assert (offline["label"].images_seen, online["label"].images_seen) == (20, 9)
