"""Learning rates against hand-computed numbers, parameter groups, optimizers against references, weight averaging."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn

from tests.toy_task import toy_network
from tests.toy_training import run, stop_at, training_in
from tutelage.config import TrainConfig
from tutelage.engine.loop import Interrupted, Training
from tutelage.engine.optim import (
    averaged_copy,
    build_optimizer,
    lr_at,
    num_steps_for,
    parameter_groups,
    peak_lr,
    ramped_decay,
    update_average,
)
from tutelage.engine.optimizers import LARS, RMSpropTF

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


def test_exponential_schedule_falls_in_stairs() -> None:
    config = TrainConfig(
        batch_size=2048, lr=0.016, lr_batch_size=256, schedule="exponential", decay_every=2.4 / 350, warmup_steps=0
    )
    epoch = 626  # 1.28 million images by 2048, rounded up
    rates = [lr_at(step, config, 350 * epoch) for step in (0, int(2.4 * epoch), int(2.4 * epoch) + 1, 350 * epoch - 1)]
    assert rates == pytest.approx([0.128, 0.128, 0.128 * 0.97, 0.128 * 0.97**145])


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


def test_embeddings_of_a_plain_vit_do_not_decay() -> None:
    vit = timm.create_model("test_vit", num_classes=0)
    decayed, others = (group["params"] for group in parameter_groups(vit, TrainConfig()))
    kernels = {id(module.weight) for module in vit.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert {id(weight) for weight in decayed} == kernels
    assert {id(vit.pos_embed), id(vit.cls_token)} <= {id(weight) for weight in others}


def steps_of(optimizer: torch.optim.Optimizer, weights: list[Tensor], rates: tuple[float, ...]) -> list[Tensor]:
    """The weights after a step at each rate down a bowl that is steeper in some directions."""
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        sum((0.1 * (1 + torch.arange(weight.numel())) * weight.flatten() ** 3).sum() for weight in weights).backward()
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (5,))]


def test_rmsprop_is_timms() -> None:
    ours, theirs, rates = start(), start(), (0.1, 0.05, 0.05, 0.2)
    found = steps_of(RMSpropTF([{"params": ours, "weight_decay": 0.01}], 0.1, momentum=0.9), ours, rates)
    options = {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9, "weight_decay": 0.01}
    torch.testing.assert_close(found, steps_of(timm.optim.RMSpropTF(theirs, 0.1, **options), theirs, rates))


def test_lars_by_hand() -> None:
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight], "weight_decay": 0.5, "trust": 0.001}, {"params": [bias]}]
    optimizer = LARS(groups, 2.0, momentum=0.9)
    for _ in range(2):
        weight.grad, bias.grad = torch.tensor([[-1.5, 10.0]]), torch.tensor([0.25])
        optimizer.step()
    # first: u = (-1.5, 10) + 0.5 (3, 4) = (0, 12); |w| = 5, |u| = 12; v = 2 * 0.001 * 5 / 12 * u = (0, 0.01)
    second = torch.tensor([3.0, 3.99])
    update = torch.tensor([-1.5, 10.0]) + 0.5 * second
    velocity = 0.9 * torch.tensor([0, 0.01]) + 2 * 0.001 * second.norm() / update.norm() * update
    torch.testing.assert_close(weight.data[0], second - velocity)
    torch.testing.assert_close(bias.data, torch.tensor([1 - 0.5 - (0.45 + 0.5)]))  # plain momentum


def test_lars_moves_a_weight_that_is_zero_at_the_plain_rate() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([{"params": [weight], "trust": 0.001}], 0.1, momentum=0.0).step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), -0.1))


def test_lars_adapts_what_decays() -> None:
    network = toy_network()
    optimizer = build_optimizer(network, TrainConfig(optimizer="lars", weight_decay=0.0))
    assert [(group["trust"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.001, 0.0), (0.0, 0.0)]
    assert all(weight.ndim > 1 for weight in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("optimizer", ["rmsprop", "lars"])
def test_a_stopped_and_continued_training_equals_one_never_stopped(optimizer: str, tmp_path: Path) -> None:
    def make(folder: str) -> Training:
        training = training_in(tmp_path / folder)
        return replace(
            training, config=training.config.model_copy(update={"optimizer": optimizer, "schedule": "cosine"})
        )

    whole = run(make("whole")).model.state_dict()
    with pytest.raises(Interrupted):
        run(replace(make("parts"), **stop_at(5)))
    parts = run(make("parts"))
    assert parts.resumed_from == 5
    assert all(torch.equal(tensor, whole[name]) for name, tensor in parts.model.state_dict().items())
    initial = training_in(tmp_path / "start").objective.model.state_dict()
    assert not any(torch.equal(whole[name], initial[name]) for name in ("stem.0.weight", "stem.1.weight"))


def test_the_average_warms_up_and_covers_batch_norm() -> None:
    network = toy_network()
    ema = averaged_copy(network)
    before = ema.stem[1].running_mean.clone()
    network.stem[1].running_mean.add_(1.0)
    network.stem[1].num_batches_tracked.add_(5)
    update_average(ema, network, ramped_decay(0.999, 0))  # decay (1 + 0) / (10 + 0)
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.9)
    assert ema.stem[1].num_batches_tracked == 5
    update_average(ema, network, ramped_decay(0.999, 8))  # decay 0.5
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.95)
    update_average(ema, network, ramped_decay(0.25, 10**6))  # the decay itself
    torch.testing.assert_close(ema.stem[1].running_mean, before + 0.9875)
    assert not ema.training
