"""Classification: sums, counts, probabilities."""

import math

import pytest
import torch

from tutelage.config import ModelConfig
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import Batch

MODEL = ModelConfig(backbone="resnet10t", canvas=(64, 64))


def batch(labels: list[int]) -> Batch:
    count = len(labels)
    images = torch.randint(256, (count, 1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = torch.full((count, 2), 64)
    return Batch(
        images,
        torch.eye(3).double().expand(count, 1, 3, 3),
        size[:, None],
        torch.arange(count),
        size,
        labels=torch.tensor(labels),
    )


def test_loss_is_a_smoothed_sum_by_hand() -> None:
    task = ClassificationTask(MODEL, 0.1, ("a", "b"))
    outputs = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # p = 0.75, 0.25 and 0.5, 0.5
    targets = task.assign(batch([0, 1]))
    # target 0.95 on the class, 0.05 on the other
    expected = -(0.95 * math.log(0.75) + 0.05 * math.log(0.25)) + math.log(2)
    assert task.loss_sums(outputs, batch([0, 1]), targets)["class"].item() == pytest.approx(expected)
    assert targets.num_positives.item() == 2 and targets.num_positives.dtype == torch.int64


def test_bfloat16_outputs_are_summed_in_float32() -> None:
    task = ClassificationTask(MODEL, 0.0, ("a", "b"))
    sums = task.loss_sums(torch.zeros(2, 2, dtype=torch.bfloat16), batch([0, 1]), task.assign(batch([0, 1])))
    assert sums["class"].dtype == torch.float32 and sums["class"].item() == pytest.approx(2 * math.log(2))


def test_correct_answers_are_counted() -> None:
    task = ClassificationTask(MODEL, 0.0, ("a", "b", "c"))
    outputs = torch.eye(3)[[0, 1, 1, 2]]
    assert task.correct(outputs, task.assign(batch([0, 1, 2, 2]))).tolist() == [True, True, False, True]


def test_a_network_learns_two_classes_and_predicts_probabilities() -> None:
    torch.manual_seed(0)
    task = ClassificationTask(
        MODEL.model_copy(update={"norm": MODEL.norm.model_copy(update={"momentum": 0.3})}), 0.1, ("dark", "light")
    )
    model = task.build_model()
    images = batch([0, 1, 0, 1])
    images.images[::2] //= 4
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(12):
        sums = task.loss_sums(model(images.images[:, 0], images.valid[:, 0]), images, task.assign(images))
        optimizer.zero_grad()
        (sums["class"] / len(images)).backward()
        optimizer.step()
    predictions = task.predict(model.eval(), images)
    assert [int(each.probabilities.argmax()) for each in predictions] == [0, 1, 0, 1]
    assert all(each.probabilities.sum() == pytest.approx(1, abs=1e-5) for each in predictions)
    assert predictions[3].image_id == 3 and predictions[3].size == (64, 64)
