"""Learning rates against hand-computed numbers, parameter groups, weight averaging."""

import math

import pytest
import torch
from torch import nn

from tests.toy_task import toy_network
from tutelage.config import TrainConfig
from tutelage.engine.optim import (
    averaged_copy,
    build_optimizer,
    lr_at,
    num_steps_for,
    parameter_groups,
    peak_lr,
    update_average,
)

PAPER = TrainConfig(batch_size=256, lr=0.32, lr_batch_size=256, warmup_steps=1000, warmup_start=0.01)


def test_the_paper_schedule() -> None:
    steps = 90_000
    assert lr_at(0, PAPER, steps) == pytest.approx(0.0032)
    assert lr_at(500, PAPER, steps) == pytest.approx((0.0032 + 0.32) / 2)
    assert lr_at(1000, PAPER, steps) == pytest.approx(0.32)
    assert lr_at(1000 + 89_000 // 2, PAPER, steps) == pytest.approx(0.16)
    assert 0 < lr_at(steps - 1, PAPER, steps) < 1e-8


def test_warmup_takes_at_most_a_tenth() -> None:
    rates = [lr_at(step, PAPER, 200) for step in range(200)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(0.32)


def test_step_schedule_and_constant() -> None:
    config = PAPER.model_copy(update={"schedule": "step", "decay_at": (0.94, 0.98), "warmup_steps": 0})
    rates = [lr_at(step, config, 1000) for step in (0, 939, 940, 979, 980, 999)]
    assert rates == pytest.approx([0.32, 0.32, 0.032, 0.032, 0.0032, 0.0032])
    assert lr_at(999, config.model_copy(update={"schedule": "constant"}), 1000) == pytest.approx(0.32)


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.02), ("sqrt", 0.08), ("fixed", 0.32)])
def test_the_rate_follows_the_labeled_batch(rule: str, rate: float) -> None:
    config = PAPER.model_copy(update={"batch_size": 16, "lr_rule": rule})
    assert peak_lr(config) == pytest.approx(rate)


def test_length_in_passes_with_a_floor() -> None:
    config = TrainConfig(batch_size=16, passes=10, min_steps=100)
    assert num_steps_for(config, 1001) == math.ceil(10 * 1001 / 16)
    assert num_steps_for(config, 20) == 100


@pytest.mark.parametrize("decay_norms", [False, True])
def test_kernels_alone_decay_unless_norms_are_asked_for(decay_norms: bool) -> None:
    network = toy_network()
    decayed, others = parameter_groups(network, TrainConfig(decay_norms=decay_norms, weight_decay=0.1))
    names = {id(weight): name for name, weight in network.named_parameters()}
    in_decay = {names[id(weight)] for weight in decayed["params"]}  # type: ignore[attr-defined]
    kernels = {"stem.0.weight", "body.down.weight", "body.mix.weight", "logits.weight", "deltas.weight"}
    norms = {"stem.1.weight", "stem.1.bias", "body.norm.weight", "body.norm.bias"}
    assert in_decay == (kernels | norms if decay_norms else kernels)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(names) == len(in_decay) + len(others["params"])  # type: ignore[arg-type]


def test_sgd_follows_the_textbook() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    config = TrainConfig(optimizer="sgd", lr=0.1, lr_rule="fixed", momentum=0.9, weight_decay=0.5, warmup_steps=0)
    optimizer = build_optimizer(layer, config)
    weight, velocity = 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 1)).sum().backward()  # gradient 1
        optimizer.step()
        velocity = 0.9 * velocity + 1 + 0.5 * weight
        weight -= 0.1 * velocity
    assert float(layer.weight) == pytest.approx(weight, rel=1e-5)


def test_the_average_warms_up_and_covers_batch_norm() -> None:
    network = toy_network()
    ema = averaged_copy(network)
    before = ema.stem[1].running_mean.clone()
    network.stem[1].running_mean.add_(1.0)
    network.stem[1].num_batches_tracked.add_(5)
    update_average(ema, network, 0.999, step=0)  # decay (1 + 0) / (10 + 0)
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.9)
    assert ema.stem[1].num_batches_tracked == 5
    update_average(ema, network, 0.999, step=8)  # decay 0.5
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.95)
    update_average(ema, network, 0.25, step=10**6)  # the decay itself
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.9875)
    assert not ema.training
