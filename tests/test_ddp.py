"""Two gloo processes, one process and accumulated micro-batches give the same gradients; what goes wrong comes home."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toy_online import PlantedTask, online_student, two_views
from tests.toy_task import CANVAS, ToyTask, rows_of, toy_batch, toy_network
from tests.toy_training import training_in
from tests.toy_views import contrastive_step
from tutelage.config import EvalConfig, ModelConfig, PostprocessConfig, RuntimeConfig, StudentConfig
from tutelage.engine.loop import Interrupted, accumulate, train
from tutelage.engine.objectives import Joint, JointControl, Objective, Student, Supervised
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import read_json
from tutelage.tasks.classification import ClassificationTask
from tutelage.tasks.detection import DetectionTask
from tutelage.tasks.segmentation import SegmentationTask
from tutelage.tasks.task import Task
from tutelage.types import Batch

ONE = RuntimeConfig(device="cpu", precision="float32", threads=1, workers=0)
TWO = ONE.model_copy(update={"devices": 2})
METHODS = ("supervised", "student", "online", "detection", "segmentation", "joint", "joint-control")
STEPS = 2
TINY_MODEL = ModelConfig(
    backbone="test_resnet", canvas=CANVAS, max_level=5, pyramid_width=8, head_width=8, head_depth=1
)
Gradients = dict[str, list[list[Tensor]]]  # by method; of each step, by parameter


def build(method: str) -> Objective:
    network = toy_network(double=True).eval()  # batch-norm by its running statistics
    nn.init.constant_(network.stem[1].running_mean, 0.1)
    if method == "supervised":
        return Supervised(ToyTask(), network, "mask")
    config = StudentConfig(alpha=2.0, average_decay=0.5)
    if method == "student":
        return Student(ToyTask(), network, config)
    if method == "online":
        return online_student(network, PlantedTask(), alpha=2.0, average_decay=0.5)
    names = ("a", "b", "c")
    task: Task = DetectionTask(TINY_MODEL, PostprocessConfig(), names)
    if method == "segmentation":
        task = SegmentationTask(TINY_MODEL, EvalConfig(metric="miou"), names)
    torch.manual_seed(0)
    model = task.build_model()
    if method == "joint":
        model.add_classifier(3)
    student = Student(task, model.double().eval(), config)
    if method == "joint":
        return Joint(student, ClassificationTask(TINY_MODEL, 0.1, names), 0.5)
    return JointControl(student, 0.5) if method == "joint-control" else student


def share_of(batches: Mapping[str, Batch], part: int, parts: int) -> dict[str, Batch]:
    sizes = {stream: len(batch) // parts for stream, batch in batches.items()}
    return {
        stream: rows_of(batch, slice(part * sizes[stream], (part + 1) * sizes[stream]))
        for stream, batch in batches.items()
    }


def gradients(runtime: Runtime, micro_batches: int) -> Gradients:
    found: Gradients = {}
    for method in METHODS:
        objective = build(method)
        wrapped = runtime.setup(objective)
        optimizer = torch.optim.SGD(objective.model.parameters(), 0.05)
        found[method] = []
        for step in range(STEPS):
            every = {"labeled": toy_batch(step, size=8), "second": toy_batch(10 + step, size=16, boxes=5)}
            every |= {"classification": toy_batch(20 + step, size=8), "extra": toy_batch(30 + step, size=4)}
            whole = {stream: every[stream] for stream in objective.streams}
            if method == "online":
                whole["second"] = two_views(whole["second"])
            parts = runtime.world_size * micro_batches
            mine = [share_of(whole, runtime.rank * micro_batches + part, parts) for part in range(micro_batches)]
            sums, counts = accumulate(wrapped, objective, mine, None, runtime)
            weights = list(objective.model.parameters())
            found[method].append([weight.grad.clone() for weight in weights if weight.grad is not None])
            assert len(found[method][-1]) == len(weights)
            objective.update(sums, counts)
            optimizer.step()
            optimizer.zero_grad()
    return found


def one_and_two_micro_batches(runtime: Runtime) -> tuple[Gradients, Gradients]:
    assert runtime.gather(runtime.rank) == list(range(runtime.world_size))
    assert runtime.broadcast(f"from {runtime.rank}") == "from 0"
    assert float(runtime.all_reduce_sum(torch.tensor(1.0 + runtime.rank))) == sum(range(1, runtime.world_size + 1))
    return gradients(runtime, 1), gradients(runtime, 2)


def assert_equal(found: Gradients, expected: Gradients) -> None:
    for method in METHODS:
        for one, other in zip(found[method], expected[method], strict=True):
            scale = max(float(gradient.abs().max()) for gradient in other)
            assert scale > 1e-3
            for gradient, wanted in zip(one, other, strict=True):
                torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9 * scale)


def all_in_one_spawn(runtime: Runtime, folder: Path) -> None:
    """Importing torch in two processes takes seconds: gradients first, then a training that a signal stops."""
    found, contrastive = one_and_two_micro_batches(runtime), contrastive_step(runtime)
    if runtime.is_main:
        torch.save(found, folder / "gradients.pt")
        torch.save(contrastive, folder / "contrastive.pt")

    def signal_parent(_model: nn.Module, runtime: Runtime) -> dict[str, float]:
        if runtime.is_main:
            os.kill(os.getppid(), signal.SIGTERM)
        return {}

    train(training_in(folder, num_steps=10**6, validate=signal_parent, validate_steps=(3,)), runtime)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of two processes' results, and what they said when they were stopped."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(Interrupted) as stopped:
        launch(TWO, all_in_one_spawn, folder)
    return folder, str(stopped.value)


def test_gradients_do_not_depend_on_processes_and_micro_batches(two_processes: tuple[Path, str]) -> None:
    whole, accumulated = launch(ONE, one_and_two_micro_batches)
    divided, divided_and_accumulated = torch.load(two_processes[0] / "gradients.pt")
    for found in (accumulated, divided, divided_and_accumulated):
        assert_equal(found, whole)
    first, second = whole["student"]
    assert any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_contrast_is_over_all_processes(two_processes: tuple[Path, str]) -> None:
    whole, divided = launch(ONE, contrastive_step), torch.load(two_processes[0] / "contrastive.pt")
    assert whole.keys() == divided.keys() >= {"out.weight", "loss", "images_alignment", "images_uniformity"}
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_signal_to_the_parent_stops_all_processes_with_a_checkpoint(two_processes: tuple[Path, str]) -> None:
    folder, message = two_processes
    step = read_json(folder / "checkpoint" / "checkpoint.json")["step"]
    assert step >= 3
    assert message.startswith(f"toy: stopped after step {step} of 1000000; ")
    result = launch(ONE, lambda runtime: train(training_in(folder, num_steps=step + 1), runtime))
    assert result.resumed_from == step
