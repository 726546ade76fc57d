"""Joint training: the objective and its control, and train and fit with classified images."""

import copy
import json
import os
import shutil
import signal
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tutelage
from tests.conftest import fitted
from tests.tiny import TINY, annotation, arguments
from tests.toy_task import CANVAS, toy_batch
from tests.toy_training import CPU
from tutelage.config import EvalConfig, ModelConfig, PostprocessConfig, RunConfig, StudentConfig, changed_keys
from tutelage.config import load_config as load
from tutelage.data.demo import draw_class_crops
from tutelage.data.loader import classification_batches
from tutelage.data.readers import open_index
from tutelage.engine.guard import StreamSize, rehearse
from tutelage.engine.loop import Interrupted, accumulate
from tutelage.engine.objectives import Joint, JointControl, Objective, Student, Supervised
from tutelage.engine.runtime import Runtime, launch
from tutelage.models.init import initialize, load_model, save_model
from tutelage.models.model import Network
from tutelage.reporting.models import role_of
from tutelage.stats import Interval, joint_verdict
from tutelage.tasks.classification import ClassificationTask
from tutelage.tasks.detection import DetectionTask
from tutelage.tasks.segmentation import SegmentationTask
from tutelage.tasks.task import Task
from tutelage.types import Batch, InputError
from tutelage.workflows import training
from tutelage.workflows.joint import JointTraining, open_classified, teachers
from tutelage.workflows.prepare import prepare
from tutelage.workflows.stages import Place, Stage

JOINT = (*TINY, "joint.size=64")
NAMES = ("a", "b", "c")
MODEL = ModelConfig(backbone="test_resnet", canvas=CANVAS, max_level=5, pyramid_width=8, head_width=8, head_depth=1)
TASKS: dict[str, Task] = {
    "detection": DetectionTask(MODEL, PostprocessConfig(), NAMES),
    "segmentation": SegmentationTask(MODEL, EvalConfig(metric="miou"), NAMES),
}


def network_of(task: str) -> Network:
    torch.manual_seed(0)
    network = TASKS[task].build_model()
    network.add_classifier(5)
    return network


def joint(inner: Objective, weight: float = 0.5, **options: Any) -> Joint:
    return Joint(inner, ClassificationTask(MODEL, 0.0, tuple("abcde")), weight, **options)


def pictures(seed: int, size: int = 4) -> Batch:
    """Classified images of another canvas than the task's."""
    batch = toy_batch(seed, size)
    larger = torch.nn.functional.interpolate(batch.images[:, 0].float(), scale_factor=2.0).byte()
    labels = torch.arange(size) % 5
    return replace(batch, images=larger[:, None], valid=batch.valid * 2, labels=labels, boxes=None, masks=None)


def trained(objective: Objective, steps: int = 3) -> dict[str, Tensor]:
    def train(runtime: Runtime) -> None:
        wrapped = runtime.setup(objective)
        optimizer = torch.optim.SGD(objective.model.parameters(), 0.05, momentum=0.9)
        for step in range(steps):
            whole = {"labeled": toy_batch(step), "classification": pictures(step), "extra": toy_batch(50 + step)}
            accumulate(wrapped, objective, [{name: whole[name] for name in objective.streams}], None, runtime)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    launch(CPU, train)
    return objective.model.state_dict()


@pytest.mark.parametrize("task", TASKS)
def test_weight_zero_equals_supervised_training(task: str) -> None:
    network = network_of(task).eval()
    start = copy.deepcopy(network.state_dict())
    alone = trained(Supervised(TASKS[task], copy.deepcopy(network), "mask"))
    passes: list[int] = []
    beside = joint(Supervised(TASKS[task], network, "mask"), 0.0)
    network.classifier.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    found = trained(beside)
    assert len(passes) == 3, "no pass is skipped"
    assert max(float((found[name] - start[name]).abs().max()) for name in found if "head" in name) > 1e-3
    for name in found:
        torch.testing.assert_close(found[name], alone[name], rtol=0, atol=1e-6)


def step_of(objective: Objective, batches: dict[str, Batch]) -> tuple[Any, Tensor]:
    targets = objective.prepare(batches)
    return objective(batches, targets), objective.counts(targets)


def test_the_losses_add_with_a_plain_weight_and_the_log_names_them() -> None:
    network = network_of("detection").eval()
    batches = {"labeled": toy_batch(1), "second": toy_batch(2), "classification": pictures(3)}
    inner = Student(TASKS["detection"], network, StudentConfig(alpha=2.0))
    objective = joint(inner, 0.25)
    sums, counts = step_of(objective, batches)
    alone, own_counts = step_of(inner, batches)
    images, labels = batches["classification"].images[:, 0], batches["classification"].labels
    logits = network.classify(images, batches["classification"].valid[:, 0])
    cross_entropy = -logits.log_softmax(1)[torch.arange(4), labels].sum() / (4 + 1)
    torch.testing.assert_close(objective.total(sums, counts), inner.total(alone, own_counts) + 0.25 * cross_entropy)
    figures = objective.report(sums, counts)
    torch.testing.assert_close(figures["classification_class"], cross_entropy)
    torch.testing.assert_close(figures["loss"], objective.total(sums, counts))
    assert set(figures) - set(inner.report(alone, own_counts)) == {"classification_class"}


def test_the_inner_averages_are_kept_and_the_network_is_saved_once() -> None:
    objectives = [joint(Student(TASKS["detection"], network_of("detection"), StudentConfig())) for _ in range(2)]
    batches = {"labeled": toy_batch(1), "second": toy_batch(2), "classification": pictures(3)}
    objectives[0].update(*step_of(objectives[0], batches))
    objectives[1].load_state_dict(objectives[0].state_dict())
    ratios = [objective.inner.ratio() for objective in objectives]  # type: ignore[operator]
    assert ratios[0] == ratios[1] != 1
    assert len(objectives[0].state_dict()) == len(objectives[0].model.state_dict()) + 2


@pytest.mark.parametrize("update_norms", [True, False])
def test_classified_images_enter_the_running_statistics_where_they_should(update_norms: bool) -> None:
    network = network_of("detection").train()
    batches = {"labeled": toy_batch(1), "classification": pictures(2)}
    alone, both = (Supervised(TASKS["detection"], copy.deepcopy(network), "mask") for _ in range(2))
    step_of(alone, batches)
    sums, _ = step_of(joint(both, update_norms=update_norms), batches)
    before, after = (dict(one.model.named_buffers()) for one in (alone, both))
    moved = [name for name in before if "running" in name and not torch.equal(before[name], after[name])]
    assert bool(moved) is update_norms
    assert all(name.startswith("backbone.") for name in moved)
    assert int(after["backbone.body.bn1.num_batches_tracked"]) == 1 + update_norms
    images = pictures(2)
    by_batch = network.classify(images.images[:, 0], images.valid[:, 0])  # batch-norm on the batch, either way
    wanted = torch.nn.functional.cross_entropy(by_batch, images.labels, reduction="sum")
    torch.testing.assert_close(sums["classification"]["class"], wanted)


def test_the_control_passes_more_labeled_images_together_with_the_others() -> None:
    network = TASKS["detection"].build_model().eval()
    sizes: list[int] = []
    network.backbone.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    objective = JointControl(Supervised(TASKS["detection"], network, "mask"), 0.5)
    batches = {"labeled": toy_batch(1), "extra": toy_batch(2, size=2)}
    sums, counts = step_of(objective, batches)
    assert sizes == [6]
    alone = Supervised(TASKS["detection"], network, "mask")
    losses = [alone.total(*step_of(alone, {"labeled": batch})) for batch in batches.values()]
    torch.testing.assert_close(objective.total(sums, counts), losses[0] + 0.5 * losses[1])
    assert {"extra_class", "extra_box", "labeled_class"} < set(objective.report(sums, counts))


def test_rehearsal_passes_every_stream_at_its_own_canvas() -> None:
    network = network_of("detection")
    shapes: list[tuple[int, ...]] = []
    network.backbone.register_forward_hook(lambda module, inputs, outputs: shapes.append(tuple(inputs[0].shape)))
    objective = joint(Student(TASKS["detection"], network, StudentConfig()))
    sizes = {
        "labeled": StreamSize(4, CANVAS),
        "second": StreamSize(8, CANVAS),
        "classification": StreamSize(6, (64, 96)),
    }
    assert launch(CPU, lambda runtime: rehearse(objective, sizes, runtime)) > 0
    assert shapes[-2:] == [(12, 3, *CANVAS), (6, 3, 64, 96)]


def test_the_head_travels_with_the_model_folder_and_an_init_leaves_it_behind(tmp_path: Path) -> None:
    network = network_of("detection")
    save_model(tmp_path, network, {"task": "detection", "image_classes": list("abcde")})
    restored, card = load_model(tmp_path)
    assert card["image_classes"] == list("abcde")
    for name, tensor in network.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name
    plain = TASKS["detection"].build_model()
    report = initialize(plain, str(tmp_path), backbone_name="test_resnet")
    assert plain.classifier is None and not report.missing
    assert {"classifier.weight", "classifier.bias"} == {*report.unexpected, *report.left_over}
    assert torch.equal(
        plain.state_dict()["head.class_predictor.bias"], network.state_dict()["head.class_predictor.bias"]
    )


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen classes of two pictures."""
    return draw_class_crops(tmp_path_factory.mktemp("crops"), images_per_class=2, size=48)


def test_classified_images_are_drawn_at_their_own_size(crops: Path) -> None:
    config = load("detection-demo", JOINT)
    stream = classification_batches(
        open_index(crops, config.data), data=config.data, pretrain=config.joint, stream="classification", seed=0,
        round=0, batch_size=6, first_step=0, num_steps=1, rank=0, world_size=1, micro_batches=1, workers=0,
        cache_megabytes=0, pin=False,
    )  # fmt: skip
    (batch,) = next(stream)
    assert batch.images.shape == (6, 1, 3, 64, 64) and batch.labels is not None


@pytest.mark.parametrize(
    ("options", "images"),
    [
        (("model.canvas=[64,64]", "joint.size=64"), 4),
        (("model.canvas=[128,64]", "joint.size=64"), 2),
        (("model.canvas=[128,128]", "joint.size=64", "joint.batch_size=24"), 6),
        (("model.canvas=[512,512]", "joint.size=64"), 1),  # at least one
    ],
)
def test_the_control_has_the_pixels_of_the_classified_images(
    crops: Path, options: tuple[str, ...], images: int
) -> None:
    config = load("detection-demo", (*TINY, *options))
    index = open_index(crops, config.data)
    configs = teachers(config, index)
    assert changed_keys(configs["teacher"], configs["teacher-control"]) == ["joint.stream: classification -> labeled"]
    control = JointTraining(configs["teacher-control"], index, 0.5)
    assert control.batch_size(4) == images and control.canvas == config.model.canvas
    assert JointTraining(config, index, 0.5).batch_size(4) == (config.joint.batch_size or 4)
    assert list(teachers(config, None)) == ["teacher"]


@pytest.fixture(scope="module")
def finished_joint(scenes: Path, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny joint fit."""
    return fitted(
        tmp_path_factory,
        lambda out: arguments(scenes, out, classification=crops, overrides=(*JOINT, "student.alpha=2")),
    )


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def test_a_joint_fit_says_what_joint_training_gave(finished_joint: Path) -> None:
    record = record_of(finished_joint)
    found = record["differences"]["teacher_minus_teacher_control"]
    means = [record[arm]["metrics"]["ap"] for arm in ("teacher", "teacher_control")]
    assert found["mean"] == pytest.approx(means[0] - means[1])
    assert "teacher minus teacher control" in record["joint_verdict"]
    assert record["data"]["classification"]["images"] == 32
    page = (finished_joint / "report.html").read_text()
    assert "Teacher control" in page and "Joint training: " in page and "jointly, on classified ones" in page
    assert record["recommended"] in ("teacher", "control", "student")


def test_classified_copies_of_held_out_images_are_not_trained_on(
    scenes: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = shutil.copytree(crops, tmp_path / "crops")
    held_out = [sorted((scenes / split / "images").iterdir())[0] for split in ("test", "val")]
    for number, path in enumerate([*held_out, held_out[0]]):
        with Image.open(path) as picture:  # the same picture in another file
            picture.save(next(one for one in sorted(classes.iterdir()) if one.is_dir()) / f"copy-{number}.png")
    settings = {"classification": classes, "val": annotation(scenes, "val"), "overrides": JOINT}
    tutelage.fit(**arguments(scenes, tmp_path / "run", **settings, plan=True))
    found = capsys.readouterr().err
    assert "--classification: 3 of 35 images are also held out" in " ".join(found.split())


def test_teacher_and_its_control_differ_in_one_key(finished_joint: Path) -> None:
    stages = {name: record_of(finished_joint / path) for name, path in record_of(finished_joint)["stages"].items()}
    teacher, control = stages["teacher"], stages["teacher-control"]
    assert teacher["config"] == control["config"] and teacher["steps"] == control["steps"]
    assert {key for key in teacher["joint"] if teacher["joint"][key] != control["joint"][key]} == {"stream"}
    assert teacher["key"]["init"] == control["key"]["init"] and teacher["seed"] == control["seed"]
    assert control["num_images"] == {"labeled": 8, "extra": 8}
    assert teacher["losses_last"]["classification_class"] > 0
    student, its_control = stages["student-1"], stages["control-1"]
    assert student["key"]["joint"] == its_control["key"]["joint"] and student["key"]["joint"]["weight"] == 0.2
    assert teacher["key"]["joint"]["weight"] == 0.5
    assert {key for key in student["config"] if student["config"][key] != its_control["config"][key]} == {
        "second_stream"
    }
    assert set(student["num_images"]) == {"labeled", "second", "classification"}


def model_of(finished: Path, stage: str) -> tuple[Any, dict[str, Any]]:
    return load_model(finished / record_of(finished)["stages"][stage] / "model")


def test_students_keep_the_head_and_the_control_of_the_teacher_has_none(finished_joint: Path) -> None:
    models = {name: model_of(finished_joint, name) for name in ("teacher", "student-1", "teacher-control")}
    assert len(models["teacher"][1]["image_classes"]) == 16
    assert models["teacher"][1]["image_classes"] == models["student-1"][1]["image_classes"]
    assert models["teacher-control"][1]["image_classes"] == [] and models["teacher-control"][0].classifier is None
    weights = [model.classifier.weight for model, _ in (models["teacher"], models["student-1"])]
    drawn = float(weights[0].detach().std())
    assert 0 < float((weights[0] - weights[1]).abs().max()) < drawn, "started from it, not drawn anew"


def test_a_student_without_joint_training_drops_the_head(finished_joint: Path, scenes: Path, tmp_path: Path) -> None:
    stages = record_of(finished_joint)["stages"]
    given = {"teacher": finished_joint / stages["teacher"], "pseudo": finished_joint / stages["pseudo-1"]}
    record = tutelage.train(**arguments(scenes, tmp_path / "run", **given))
    assert set(record["num_images"]) == {"labeled", "second"} and record["joint"] is None
    assert load_model(tmp_path / "run" / "model")[1]["image_classes"] == []


def test_a_stopped_joint_training_continues_and_equals_the_one_of_the_fit(
    finished_joint: Path, scenes: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> Callable[[nn.Module, Runtime], dict[str, float]]:
        def validate(_model: nn.Module, _runtime: Runtime) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGINT)
            return {}

        return validate

    settings = (*JOINT, "student.alpha=2", "eval.points=2")
    given = arguments(scenes, tmp_path / "run", classification=crops, val=annotation(scenes, "val"), overrides=settings)
    del given["unlabeled"]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "_validation", stop)
        tutelage.train(**given)
    record = tutelage.train(**given)
    assert record["resumed_from"] == 3 and record["steps"] == 6
    teacher = finished_joint / record_of(finished_joint)["stages"]["teacher"]
    assert record["hash"] == record_of(teacher)["hash"]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path / "run", teacher)]
    assert weights[0] == weights[1]
    with pytest.raises(InputError, match=r"other data for classification"):
        tutelage.train(**given | {"classification": ()})


def keys_of(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of a teacher's and a student's stage."""
    keys: list[str] = []

    def note(place: Place, name: str, key: dict[str, Any], runtime: object, work: object) -> Stage:
        keys.append(place.stage(name, key).hash)
        return place.stage(name, key)

    monkeypatch.setattr(training, "run_stage", note)
    runtime: Any = types.SimpleNamespace(is_main=False)
    prepared, place = prepare(config), Place(Path("none"))
    teacher = training.train_teacher(place, "teacher", config, prepared, runtime)
    training.train_student(
        place, "student", config, prepared, runtime,
        second_stream="labeled", init=teacher, pseudo=None, round_=1, repeat=0,
    )  # fmt: skip
    return keys


def test_hashes_hold_joint_options_only_where_training_is_joint(
    scenes: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(*overrides: str, joint: bool = False) -> list[str]:
        sources = {"labeled": [str(annotation(scenes, "labeled"))], "test": [str(annotation(scenes, "test"))]}
        given = {**sources, "classification": [str(crops)] if joint else []}
        return keys_of(load("detection-demo", (*TINY, *overrides), sources=given), monkeypatch)

    plain = keys()
    assert keys("joint.weight=0.9", "joint.size=32", "joint.update_norms=false") == plain
    together = keys(joint=True)
    assert not set(together) & set(plain)
    heavier = keys("joint.student_weight=0.9", joint=True)
    assert heavier[0] == together[0] and heavier[1] != together[1]
    assert keys("student.init=model")[1] == keys("student.init=random")[1], "model.init is random here"
    assert keys("student.init=random")[1] != plain[1]


def test_what_cannot_be_trained_jointly_is_said_before_any_work(scenes: Path, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--classification: was not given.*joint\.required"):
        tutelage.fit(**arguments(scenes, tmp_path / "a", recipe="detection-joint"))
    with pytest.raises(InputError, match=r"joint\.stream=labeled: is the control"):
        tutelage.fit(
            **arguments(scenes, tmp_path / "b", classification=crops, overrides=(*JOINT, "joint.stream=labeled"))
        )
    config = load("detection-demo", TINY, sources={"classification": [str(annotation(scenes, "labeled"))]})
    with pytest.raises(
        InputError, match=r"--classification .*scenes\.json: 4 classes were found, and 8 images without"
    ):
        open_classified(config)


def test_a_student_that_cannot_start_is_refused_before_the_teacher_trains(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student\.init"):
        tutelage.fit(**arguments(scenes, tmp_path / "run", plan=True, overrides=(*TINY, "student.init=no/such/model")))


def test_a_plan_counts_the_classified_images(
    scenes: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*JOINT, "joint.batch_size=8", "model.canvas=[128,64]")
    tutelage.fit(**arguments(scenes, tmp_path / "run", classification=crops, plan=True, overrides=settings))
    lines = {
        line.split()[0]: line for line in capsys.readouterr().err.splitlines() if " x " in line and "about" in line
    }
    assert "6 steps of 4 + 8 images" in lines["teacher"] and "6 steps of 4 + 4 images" in lines["teacher-control"]
    assert "4 steps of 4 + 4 + 8 images" in lines["student"]
    assert "4 x 24 test images" in lines["evaluate"]
    odd = (*settings, "joint.batch_size=6", "runtime.device_batch_size=2")
    with pytest.raises(InputError, match=r"stream 'extra': its 3 images"):
        tutelage.fit(**arguments(scenes, tmp_path / "run", classification=crops, plan=True, overrides=odd))


def test_the_verdict_claims_no_more_than_one_training_each_shows() -> None:
    shown, hidden = Interval(0.02, 0.01, 0.03, 100, ""), Interval(0.02, -0.01, 0.05, 100, "")
    assert joint_verdict(shown, metric="AP").endswith(
        "(teacher minus teacher control, interval +1.0 to +3.0); one training each does not show what joint training "
        "does."
    )
    assert joint_verdict(hidden, metric="AP").startswith("Not shown: these two trained models differ by +2.0 AP")
    assert joint_verdict(None, metric="AP").startswith("Not measured")
    assert role_of("evaluate-val-teacher-control") == "teacher_control" and role_of("control-1") == "control"
