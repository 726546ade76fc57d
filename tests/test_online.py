"""A teacher that learns on: when its labels count, how it follows, what the control ignores, and when it is lost."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy_online import ALL, PlantedTask, online_student, two_views
from tests.toy_task import CANVAS, ToyTask, toy_batch, toy_network, toy_stream
from tests.toy_training import CPU, OPTIONS, log_of, run, stop_at, training_in
from tutelage.config import ModelConfig, PostprocessConfig, PseudoConfig, StudentConfig, TrainConfig
from tutelage.engine.guard import StreamSize, rehearse
from tutelage.engine.loop import Interrupted, Stream, Training, accumulate
from tutelage.engine.objectives import Joint, Objective, Student, Supervised
from tutelage.engine.online import OnlineStudent, teacher_decay
from tutelage.engine.optim import averaged_copy
from tutelage.engine.runtime import Runtime, launch
from tutelage.engine.watch import TrainingWatch
from tutelage.tasks.classification import ClassificationTask
from tutelage.tasks.detection import DetectionTask
from tutelage.types import Batch, Boxes, InputError, Prediction

NAMES = ("a", "b", "c")


def test_the_decay_by_hand() -> None:
    decays = {0: 0.0, 9: 0.0, 10: 1 / 11, 19: 0.5, 99: 0.9, 999: 0.99, 24_999: 0.9996, 10**6: 0.9996}
    assert {step: teacher_decay(0.9996, 0, step) for step in decays} == pytest.approx(decays)
    assert {step: teacher_decay(0.9996, 7, step - 7) for step in decays if step > 7} == pytest.approx(
        {step: decay for step, decay in decays.items() if step > 7}
    )
    assert teacher_decay(0.0, 0, 10**6) == 0


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


def online_training(folder: Path, **changes: Any) -> Training:
    def in_two_views(*args: Any, **options: Any) -> Any:
        return ([two_views(batch) for batch in micro] for micro in toy_stream(*args, **options))

    plain = training_in(folder)
    objective = online_student(toy_network(seed=3), PlantedTask(), burn_in=3, **OPTIONS)
    streams = {**plain.streams, "second": Stream(None, 4, in_two_views)}  # type: ignore[arg-type]
    return replace(plain, objective=objective, streams=streams, average=partial(teacher_decay, 0.9996, 0), **changes)


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


class Fading(PlantedTask):
    """Sees less and less: one box in four images after 30 looks, and nothing after 45."""

    def boxes_of(self, number: int) -> Boxes:
        boxes = super().boxes_of(number)
        looks = len(self.looks)
        return boxes if looks <= 30 or (looks <= 45 and number == 0) else Boxes.empty()


def test_a_teacher_that_sees_less_and_less_is_told_of_early_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def training(name: str, task: PlantedTask, num_steps: int = 76, arm: str = "pool", **changes: Any) -> Training:
        options = {**OPTIONS, "clip_norm": 0.0}
        objective = online_student(toy_network(seed=3), task, burn_in=3, second_stream=arm, **options)
        plain = online_training(tmp_path / name, num_steps=num_steps, **changes)
        return replace(plain, objective=objective, config=TrainConfig(**options))

    assert not run(training("steady", PlantedTask(), 40)).alarms
    alarms = {alarm.cause: alarm for alarm in run(training("fading", Fading())).alarms}
    assert (alarms["fading"].lost, alarms["collapse"].lost) == (False, True)
    assert "pseudo.unsure=ignore pseudo.empty=drop" in alarms["fading"].text
    first = next(line["step"] for line in log_of(tmp_path / "fading") if line["second_left"] < 0.5)
    assert 30 < first <= 45, "before nothing is left"
    shown = capsys.readouterr().err
    assert shown.count("as much from the pool") == shown.count("reaches pseudo.score_threshold any more") == 1
    with pytest.raises(InputError, match=r"toy: nothing that the teacher sees .*guard=stop ends the run here"):
        run(training("stopped", Fading(), guard="stop"))
    assert 45 < run(training("stopped", PlantedTask())).resumed_from < 76
    run(training("control", Fading(), 4, arm="labeled"))
    assert "second_left" not in log_of(tmp_path / "control")[-1], "people say what it learns"


class Swelling(PlantedTask):
    """Sees one box in each image, and after 30 looks one in every corner."""

    def boxes_of(self, number: int) -> Boxes:
        corners = np.array([[0.0, 0], [0, 24], [24, 0], [24, 24]])
        everywhere = Boxes.build(np.hstack([corners, corners + 6]), np.zeros(4, int), np.ones(4))
        return super().boxes_of(0) if len(self.looks) <= 30 else everywhere


def test_a_teacher_that_sees_more_and_more_is_told_of(tmp_path: Path) -> None:
    objective = online_student(toy_network(seed=3), Swelling(), burn_in=3, **OPTIONS)
    training = replace(online_training(tmp_path, num_steps=48), objective=objective)
    alarms = {alarm.cause: alarm for alarm in run(training).alarms}
    assert not alarms["swelling"].lost and "times as much from the pool" in alarms["swelling"].text


@pytest.mark.parametrize(
    ("left", "positives", "causes"),
    [(1.4, 40.0, []), (1.6, 40.0, ["swelling"]), (1.6, 4.0, []), (0.4, 40.0, ["fading"]), (0.01, 1.0, ["collapse"])],
)
def test_when_a_teacher_that_learns_on_is_called_swelling_fading_or_gone(
    left: float, positives: float, causes: list[str]
) -> None:
    figures = {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0, "second_left": left, "second_positives": positives}
    assert [alarm.cause for alarm in TrainingWatch().look(figures, TrainConfig())] == causes


@pytest.mark.parametrize(("share", "causes"), [(0.3, []), (0.2, ["few"])])
def test_when_a_teacher_that_learns_on_is_said_to_find_few(share: float, causes: list[str]) -> None:
    figures = {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0, "second_share": share}
    assert [alarm.cause for alarm in TrainingWatch().look(figures, TrainConfig())] == causes


def test_the_share_that_a_teacher_finds_is_that_of_an_image() -> None:
    """Four positives in eight images, beside forty in four: a twentieth."""
    objective = online_student(toy_network(), PlantedTask())
    targets = objective.prepare(batches_of_two(), None)
    sums = objective(batches_of_two(), targets)
    assert objective.counts(targets)[2:].tolist() == [4, 4, 8, 4], "drawn, unreadable, copies, labeled"
    shares = {}
    for human in (40.0, 4.0):
        counts = torch.tensor([human, 4, 8, 0, 0, 4])
        for _ in range(60):
            objective.update(sums, counts)
        shares[human] = float(objective.report(sums, counts)["second_share"])
    assert shares == pytest.approx({40.0: 0.05, 4.0: 1.0}), "of so few labels nothing is said"
    for lenient in (PseudoConfig(unsure="ignore"), PseudoConfig(empty="drop")):
        other = online_student(toy_network(), PlantedTask(), lenient)
        assert "second_share" not in other.report(sums, counts), "what it misses is not in the loss"


class Sparse(PlantedTask):
    """Sees one box in four images."""

    def boxes_of(self, number: int) -> Boxes:
        return super().boxes_of(number) if number == 0 else Boxes.empty()


def test_a_teacher_that_takes_little_is_told_of_early(tmp_path: Path) -> None:
    objective = online_student(toy_network(seed=3), Sparse(), burn_in=3, **OPTIONS)
    alarms = run(replace(online_training(tmp_path), objective=objective)).alarms
    (text,) = [alarm.text for alarm in alarms if alarm.cause == "few"]
    assert f"takes {log_of(tmp_path)[1]['second_share']:.2g} times as much from a pool image" in text


def test_a_teacher_of_which_nothing_is_ever_taken_is_told_of(tmp_path: Path) -> None:
    nothing = PseudoConfig(score_threshold=1.0)
    objective = online_student(toy_network(seed=3), PlantedTask(), nothing, **OPTIONS)
    alarms = run(replace(online_training(tmp_path, num_steps=24), objective=objective)).alarms
    assert [alarm.lost for alarm in alarms if alarm.cause == "collapse"] == [True]


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
    assert counts.shape == (7,) and counts[1] > 0 and counts[2:6].tolist() == [4, 4, 8, 4]
    assert all(weight.grad is not None for weight in network.parameters())
    assert objective.record()["second_stream"]["images"] == 4
