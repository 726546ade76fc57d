"""The precision of a run is measured once and then read from its config."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import tutelage
from tests.tiny import TINY, arguments
from tutelage.config import load_config
from tutelage.engine.precision import faster_precision
from tutelage.workflows import precision
from tutelage.workflows.precision import with_precision


class Timed(nn.Module):
    """A network whose passes take as long as they are told."""

    def __init__(self, seconds: dict[bool, float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds = seconds
        self.now = 0.0
        self.passes = {True: 0, False: 0}

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        reduced = torch.is_autocast_enabled("cpu")
        self.passes[reduced] += 1
        self.now += self.seconds[reduced]
        return self.weight * images.float().mean()


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(0.3, 0.1, "bfloat16"), (0.1, 0.3, "float32"), (0.1, 0.099, "float32")]
)
def test_the_faster_precision_is_taken_unless_both_are_alike(float32: float, bfloat16: float, chosen: str) -> None:
    network = Timed({False: float32, True: bfloat16})
    assert faster_precision(network, (8, 8), clock=lambda: network.now) == chosen
    assert 2.0 < network.now < 4.0
    assert min(network.passes.values()) >= 2


def test_a_given_precision_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "faster_precision", lambda *given: pytest.fail("measured"))
    for given in ("float32", "bfloat16"):
        config = load_config("detection-demo", [f"runtime.precision={given}", "runtime.device=cpu"])
        assert with_precision(config) == config


def test_a_measurement_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.engine.runtime._best_precision", lambda device: "bfloat16")
    monkeypatch.setattr("tutelage.engine.precision.PROBE_SECONDS", 0.0)
    config = load_config("detection-demo", [one for one in TINY if "precision" not in one])
    state = torch.get_rng_state()
    assert with_precision(config).runtime.precision in ("float32", "bfloat16")
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_goes_on_in_the_precision_it_was_begun_in(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter(["float32", "bfloat16"])
    monkeypatch.setattr("tutelage.workflows.precision.launch", lambda *given: next(measured))
    given = arguments(scenes, tmp_path / "run")
    given["overrides"] = tuple(one for one in TINY if "precision" not in one)
    tutelage.fit(**given)
    (tmp_path / "run" / "run.json").unlink()
    tutelage.fit(**given)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["runtime"]["precision"] == "float32"
    assert next(measured) == "bfloat16"  # nobody asked a second time
