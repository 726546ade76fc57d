"""Devices, cores and seeds of a run."""

import pytest
import torch

from tests.toy_training import CPU
from tutelage.config import RuntimeConfig
from tutelage.engine.runtime import Runtime, _choose_device, launch, resolve
from tutelage.types import InputError


@pytest.mark.parametrize(
    ("cores", "device", "given", "expected"),
    [
        (2, "cpu", {}, (0, 2)),
        (8, "cpu", {}, (2, 6)),
        (8, "cpu", {"devices": 4}, (0, 2)),
        (2, "cpu", {"workers": 1}, (1, 1)),
        (8, "cpu", {"threads": 7}, (1, 7)),
        (1, "cpu", {}, (0, 1)),
        (8, "cuda", {}, (7, 1)),
        (64, "cuda", {"devices": 2}, (16, 1)),
    ],
)
def test_threads_and_workers_share_the_cores(
    cores: int, device: str, given: dict[str, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.engine.runtime._available_cores", lambda: cores)
    chosen = resolve(RuntimeConfig(precision="float32", **given), device)  # type: ignore[arg-type]
    assert (chosen.workers, chosen.threads) == expected
    assert (chosen.workers + chosen.threads) * chosen.devices <= cores


@pytest.mark.parametrize(
    ("device", "gpus", "devices", "chosen"),
    [("auto", 0, 2, "cpu"), ("auto", 2, 2, "cuda"), ("cpu", 2, 4, "cpu"), ("auto", 2, 4, None), ("cuda", 0, 1, None)],
)
def test_devices_are_chosen_or_refused(
    device: str, gpus: int, devices: int, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    config = RuntimeConfig(device=device, devices=devices)  # type: ignore[arg-type]
    if chosen:
        assert _choose_device(config) == chosen
        return
    with pytest.raises(InputError, match=rf"runtime\.devices={devices}: there are {gpus} cuda devices"):
        _choose_device(config)


def test_seeds_decide_all_that_torch_draws() -> None:
    def draw(runtime: Runtime) -> list[list[float]]:
        drawn = []
        for seed in ((1, 2), (1, 2), (2, 1)):
            runtime.seed_everything(*seed)
            drawn.append(torch.rand(4).tolist())
        return drawn

    first, again, other = launch(CPU, draw)
    assert first == again != other
