"""NT-Xent and its figures against loops over pairs; collapse is warned of, a healthy run is not."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toy_training import CPU, log_of, run
from tests.toy_views import contrastive_step, toy_embedder, view_stream, views
from tutelage.config import TrainConfig
from tutelage.engine.contrastive import COLLAPSED, SimCLR, contrast
from tutelage.engine.loop import Stream, Training
from tutelage.engine.optim import build_optimizer
from tutelage.engine.runtime import launch


def unit(embedding: Tensor) -> Tensor:
    return embedding / embedding.norm()


def looped(embeddings: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of arXiv:2002.05709, summed over anchors; rows 2 i and 2 i + 1 are a pair."""
    points = [unit(embedding) for embedding in embeddings]
    total = torch.zeros((), dtype=embeddings.dtype)
    for number, anchor in enumerate(points):
        positive = points[number + 1 if number % 2 == 0 else number - 1]
        others = [torch.exp(anchor @ point / temperature) for k, point in enumerate(points) if k != number]
        total = total - torch.log(torch.exp(anchor @ positive / temperature) / torch.stack(others).sum())
    return total


def drawn(count: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_the_loss_and_its_gradient_are_the_loops(temperature: float) -> None:
    ours, theirs = drawn(10, 5).requires_grad_(), drawn(10, 5).requires_grad_()
    found, expected = contrast(ours, temperature)["contrast"], looped(theirs, temperature)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert float(ours.grad.abs().max()) > 1e-2


def test_a_pair_by_hand() -> None:
    # two images whose views are equal and that are at right angles: each anchor sees e^(1/t), 1, 1
    embeddings = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    sums = contrast(embeddings, 0.5)
    assert float(sums["contrast"]) == pytest.approx(4 * math.log((math.e**2 + 2) / math.e**2))
    assert float(sums["distance"]) == 0
    assert float(sums["spread"]) == pytest.approx(4 * math.exp(-4))


def test_a_small_temperature_neither_over_nor_underflows() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # positives are opposite
    found = contrast(embeddings, 0.005)["contrast"]
    assert float(found) == pytest.approx(4 * (200 + math.log(2)))  # -(-1) / 0.005 and two others at 0


def test_both_figures_are_the_loops() -> None:
    embeddings = drawn(12, 4)
    sums = {"images": contrast(embeddings, 0.1)}
    figures = SimCLR(nn.Identity(), 0.1).report(sums, torch.tensor([12.0]))
    points = [unit(embedding) for embedding in embeddings]
    distances = [(points[2 * k] - points[2 * k + 1]).square().sum() for k in range(6)]
    pairs = [torch.exp(-2 * (points[2 * k] - points[2 * j]).square().sum()) for k in range(6) for j in range(k)]
    torch.testing.assert_close(figures["images_alignment"], torch.stack(distances).mean())
    torch.testing.assert_close(figures["images_uniformity"], torch.stack(pairs).mean().log())


def test_similarities_are_of_full_precision_under_autocast() -> None:
    objective = SimCLR(toy_embedder(), 0.1)
    batches = {"images": views(0, 6)}
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = objective.model(batches["images"].images.flatten(0, 1), batches["images"].valid.flatten(0, 1))
        found = objective(batches, objective.prepare(batches))["images"]["contrast"]
    assert embeddings.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, looped(embeddings.float(), 0.1))


def test_one_process_has_the_gradient_of_the_mean_of_the_loop() -> None:
    found = launch(CPU, contrastive_step)
    network, batch = toy_embedder().double().eval(), views(1, 8)
    loss = looped(network(batch.images.flatten(0, 1), batch.valid.flatten(0, 1)), 0.2) / 16
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach())
    for name, weight in network.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)


def training_of(folder: Path, model: nn.Module, **options: object) -> Training:
    config = TrainConfig(batch_size=16, lr_rule="fixed", optimizer="sgd", warmup_steps=0, **{"lr": 0.1, **options})
    return Training(
        name="simclr",
        run_hash="0123",
        folder=folder,
        objective=SimCLR(model, 0.2),
        streams={"images": Stream(None, 16, view_stream)},  # type: ignore[arg-type]  # it makes its images itself
        config=config,
        num_steps=30,
        seed=0,
        round=0,
    )


def test_a_healthy_training_learns_and_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(training_of(tmp_path, toy_embedder()), CPU.model_copy(update={"log_every": 10}))
    lines = log_of(tmp_path)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"] < 0.7 * math.log(31)
    assert all(line["images_uniformity"] < COLLAPSED for line in lines)
    assert "almost the same" not in capsys.readouterr().err


def test_a_collapsed_training_is_warned_of_once_with_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = toy_embedder()
    nn.init.zeros_(network.out.weight)  # every embedding is the bias
    run(training_of(tmp_path, network, lr=1e-9), CPU.model_copy(update={"log_every": 10}))
    said = capsys.readouterr().err
    assert said.count("almost the same (uniformity -0.00, alignment 0;") == 1
    assert said.index("simclr, 10/30 steps: ") < said.index("Lower train.lr")


@pytest.mark.parametrize(("width", "collapsed"), [(1, True), (2, True), (3, False), (64, False)])
def test_one_and_two_dimensions_are_a_collapse(width: int, collapsed: bool) -> None:
    objective = SimCLR(toy_embedder(), 0.1)
    counts = torch.tensor([2048.0])
    figures = objective.report({"images": contrast(drawn(2048, width), 0.1)}, counts)
    warned = objective.warning({name: float(value) for name, value in figures.items()})
    assert (warned is not None) == collapsed


def test_a_rate_that_kills_the_network_is_warned_of() -> None:
    network = toy_embedder()
    network.norm = nn.Identity()
    objective = SimCLR(network, 0.2).train()
    optimizer = build_optimizer(network, TrainConfig(optimizer="sgd", lr=100.0, lr_rule="fixed", warmup_steps=0))
    for step in range(20):
        batches = {"images": views(step, 16)}
        targets = objective.prepare(batches)
        sums = objective(batches, targets)
        optimizer.zero_grad()
        objective.total(sums, objective.counts(targets)).backward()
        optimizer.step()
    figures = objective.report(sums, objective.counts(targets))
    assert objective.warning({name: value.item() for name, value in figures.items()}) is not None
