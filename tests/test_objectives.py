"""How losses add (arXiv:2006.06882, app. B), and that parts over a global count make up the whole."""

import copy

import pytest
import torch
from torch import Tensor

from tests.toy_task import ToyTask, rows_of, toy_batch, toy_network
from tutelage.config import RuntimeConfig, StudentConfig
from tutelage.engine.loop import accumulate
from tutelage.engine.objectives import Objective, Student, Sums, Supervised
from tutelage.engine.runtime import Runtime, launch

ONE_PROCESS = RuntimeConfig(device="cpu", precision="float32", threads=1, workers=0)


def sums_of(human: float, pseudo: float) -> Sums:
    """Sums whose losses are the arguments at a count of 0 positives (the divisor is 1)."""
    parts = {"class": 0.25, "box": 0.75}
    both = {"labeled": human, "second": pseudo}
    return {
        name: {term: torch.tensor(part * loss).double() for term, part in parts.items()} for name, loss in both.items()
    }


def student(alpha: float = 1.0, **options: object) -> Student:
    return Student(ToyTask(), toy_network(double=True), StudentConfig(alpha=alpha, **options))


def positives(human: float, pseudo: float) -> Tensor:
    return torch.tensor([human, pseudo], dtype=torch.float64)


NONE = positives(0, 0)


def test_the_first_step_adds_both_losses_as_they_are() -> None:
    total = student(alpha=3.0).total(sums_of(2.0, 6.0), NONE)
    assert total == pytest.approx((2 + 3 * 6) / 4)


def test_the_ratio_is_that_of_bias_corrected_averages_before_the_step() -> None:
    objective = student(alpha=1.0, average_decay=0.5)
    objective.update(sums_of(2.0, 7.0), positives(1, 1))  # losses 1 and 3.5
    objective.update(sums_of(8.0, 2.0), positives(1, 1))  # losses 4 and 1
    human = (0.5 * 1 + 1 * 4) / 1.5  # weights 0.25, 0.5 over 0.75
    pseudo = (0.5 * 3.5 + 1 * 1) / 1.5
    assert objective.ratio() == pytest.approx(human / pseudo)
    assert objective.total(sums_of(5.0, 7.0), NONE) == pytest.approx((5 + human / pseudo * 7) / 2)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 3.0])
def test_losses_equal_to_their_averages_give_the_labeled_loss(alpha: float) -> None:
    objective = student(alpha)
    for _ in range(3):
        objective.update(sums_of(2.0, 50.0), positives(1, 1))
    assert objective.total(sums_of(1.0, 25.0), NONE) == pytest.approx(1.0)


def test_a_constant_factor_on_the_pseudo_loss_changes_nothing_in_the_steady_state() -> None:
    plain, scaled = student(alpha=2.0), student(alpha=2.0)
    for step in range(5):
        plain.update(sums_of(1.0 + step, 2.0 + step), positives(1, 1))
        scaled.update(sums_of(1.0 + step, 100 * (2.0 + step)), positives(1, 1))
    assert scaled.total(sums_of(3.0, 400.0), NONE) == pytest.approx(float(plain.total(sums_of(3.0, 4.0), NONE)))


def test_a_pseudo_batch_without_positives_gives_its_gradient_but_stays_out_of_the_average() -> None:
    objective = student()
    objective.update(sums_of(2.0, 9.0), positives(1, 0))
    assert objective.ratio() == 1
    objective.update(sums_of(2.0, 4.0), positives(1, 1))
    known = objective.ratio()
    objective.update(sums_of(2.0, 1000.0), positives(1, 0))
    assert known == pytest.approx(0.5)
    assert objective.ratio() == pytest.approx(0.5)
    batches = {"labeled": toy_batch(1), "second": toy_batch(2, boxes=0)}
    targets = objective.prepare(batches)
    sums = objective(batches, targets)
    assert objective.counts(targets)[1] == 0
    alone = torch.autograd.grad(sums["second"]["class"], objective.model.logits.weight)[0]
    assert alone.abs().max() > 0


def test_no_gradient_flows_through_the_averages() -> None:
    objective = student()
    batches = {"labeled": toy_batch(1), "second": toy_batch(2)}
    targets = objective.prepare(batches)
    sums = objective(batches, targets)
    objective.update(sums, objective.counts(targets))
    assert not objective.ratio().requires_grad


def test_the_plain_sum_is_an_option() -> None:
    objective = student(alpha=3.0, loss="sum")
    objective.update(sums_of(2.0, 7.0), positives(1, 1))
    assert objective.total(sums_of(2.0, 7.0), NONE) == pytest.approx(2 + 3 * 7)


def gradients(objective: Objective, batches: dict[str, object]) -> list[Tensor]:
    def step(runtime: Runtime) -> None:
        accumulate(runtime.setup(objective), objective, [batches], None, runtime)  # type: ignore[list-item]

    launch(ONE_PROCESS, step)
    found = [weight.grad for weight in objective.model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def test_alpha_zero_equals_supervised_training() -> None:
    network = toy_network(double=True).eval()
    alone = Supervised(ToyTask(), copy.deepcopy(network), "mask")
    joined = Student(ToyTask(), network, StudentConfig(alpha=0.0))
    batches = {"labeled": toy_batch(1), "second": toy_batch(2)}
    for one, other in zip(gradients(alone, batches), gradients(joined, batches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_both_streams_share_one_pass_and_its_statistics() -> None:
    network = toy_network(double=True).train()
    both = toy_batch(1, size=8)
    halves = {"labeled": rows_of(both, slice(0, 4)), "second": rows_of(both, slice(4, 8))}
    joined = Student(ToyTask(), copy.deepcopy(network), StudentConfig())
    whole = Supervised(ToyTask(), network, "mask")
    sums = joined(halves, joined.prepare(halves))
    expected = whole({"labeled": both}, whole.prepare({"labeled": both}))["labeled"]
    for term, value in expected.items():
        torch.testing.assert_close(sums["labeled"][term] + sums["second"][term], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(joined.model.stem[1].running_mean, network.stem[1].running_mean)


def test_the_log_shows_each_stream_and_term_normalized() -> None:
    figures = student().report(sums_of(2.0, 4.0), positives(1, 3))
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(
        {
            "loss": (1 + 1) / 2,
            "labeled_class": 0.25,
            "labeled_box": 0.75,
            "second_class": 0.25,
            "second_box": 0.75,
            "ratio": 1.0,
        }
    )


def test_averages_travel_with_the_state() -> None:
    objective, other = student(), student()
    objective.update(sums_of(2.0, 7.0), positives(1, 1))
    other.load_state_dict(objective.state_dict())
    assert other.ratio() == objective.ratio() == pytest.approx(2 / 7)
