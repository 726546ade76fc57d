"""Devices, cores and seeds of a run."""

from pathlib import Path

import pytest
import torch

from tests.toy_training import CPU
from tutelage.config import RuntimeConfig
from tutelage.cores import available_cores
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
    monkeypatch.setattr("tutelage.engine.runtime.available_cores", lambda: cores)
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


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [(8, None, 8), (8, "max 100000", 8), (8, "250000 100000", 2), (2, "400000 100000", 2), (8, "50000 100000", 1)],
)
def test_cores_are_those_of_affinity_and_quota(
    allowed: int, quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr("tutelage.cores.CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cores() == cores


def test_torchrun_is_refused_unless_it_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(processes: int) -> None:
        sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "RANK": "0"}
        for name, value in {**sizes, "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}.items():
            monkeypatch.setenv(name, value)

    pretend(2)
    with pytest.raises(InputError, match=r"torchrun: started 2 processes.*--devices 2 \(runtime\.devices=2\)"):
        launch(CPU, lambda _: None)
    pretend(1)
    assert launch(CPU, lambda runtime: runtime.world_size) == 1
