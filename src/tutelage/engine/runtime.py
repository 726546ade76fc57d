"""Devices, processes, precision and seeds: the only place that knows Lightning Fabric.

`launch` runs a function with a `Runtime` in one process a device. Whatever the function needs from devices and other
processes it asks of its `Runtime`; with one device every answer is the trivial one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from tutelage.config import RuntimeConfig
from tutelage.cores import available_cores
from tutelage.data.storage import cache_folder
from tutelage.files import atomic, mendable, unfinished
from tutelage.processes import end_with
from tutelage.types import InputError

P = ParamSpec("P")
Result = TypeVar("Result")
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # one process may measure or write while the others wait
MAX_AUTO_WORKERS = 16


class Interrupted(Exception):  # noqa: N818 (it is no error: the command line exits with 130)
    """SIGINT or SIGTERM came; what was done is on disk, and the message says how to continue."""


class Call(NamedTuple):
    """A function to be called with a `Runtime` and these arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Runtime:
    """What one process of a run knows of devices and of the other processes."""

    def __init__(self, fabric: Fabric, config: RuntimeConfig) -> None:
        self._fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.world_size: int = fabric.world_size
        self.config = resolve(config, self.device.type)
        torch.set_num_threads(self.config.threads)
        torch.backends.cudnn.benchmark = self.device.type == "cuda"  # the canvas is fixed

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """float32 or bfloat16, never auto."""
        return self.config.precision

    @property
    def workers(self) -> int:
        """Loader processes of this process."""
        return self.config.workers

    @property
    def threads(self) -> int:
        """Compute threads of this process."""
        return self.config.threads

    def setup(self, module: nn.Module) -> nn.Module:
        """The module wrapped for data-parallel training, on this process's device."""
        wrapped: nn.Module = self._fabric.setup_module(module)
        return wrapped

    def accumulating(self, wrapped: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        """A context in which the backward pass leaves gradients unreduced, for all micro-batches but the last."""
        context: AbstractContextManager[None] = self._fabric.no_backward_sync(wrapped, enabled=enabled)  # type: ignore[arg-type]
        return context

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`; data-parallel training averages them over the processes."""
        self._fabric.backward(loss)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes: bfloat16 where that is the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes."""
        if self.world_size == 1:
            return tensor
        total = self._fabric.all_reduce(tensor.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def barrier(self) -> None:
        """Waits for all processes."""
        self._fabric.barrier()

    def broadcast(self, value: Result) -> Result:
        """The main process's value, in every process."""
        return self._fabric.broadcast(value)

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def seed_everything(self, *entropy: int) -> None:
        """Seeds torch's default generators (weights, drop-path) from whole numbers."""
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


def launch(
    config: RuntimeConfig, function: Callable[Concatenate[Runtime, P], Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    """Runs `function(runtime, *args, **kwargs)` in one process a device and returns what rank 0's call returned.

    With one device it runs in this process; else `config.devices` processes are spawned, and the function and its
    arguments must be picklable.

    Raises:
        InputError: the device is absent, torchrun started several processes, or what the function raised.
        Interrupted: what the function raised.
    """
    _refuse_torchrun()
    fabric = _build_fabric(config)
    call = Call(function, args, kwargs)
    if config.devices == 1:
        return cast(Result, fabric.launch(partial(_enter, config=config, call=call)))
    with unfinished(cache_folder().with_name("launches") / "results", folder=True) as folder:
        return cast(Result, _spawn(fabric, config, call, folder))


def resolve(config: RuntimeConfig, device: str) -> RuntimeConfig:
    """The config with `auto` precision, workers and threads chosen for a device kind (cpu, cuda, mps).

    Threads and workers of all processes together take no more than the cores there are: two busy threads on one core
    slow each other down many times. On a GPU all cores but one load. On a CPU the network outweighs the loading by
    far, so one core in four loads, and with fewer than four cores a process loads between its steps.
    """
    cores = max(1, available_cores() // config.devices)
    if config.workers >= 0:
        workers = config.workers
    elif device == "cpu":
        workers = max(0, min(cores // 4, cores - config.threads))
    else:
        workers = min(cores - 1, MAX_AUTO_WORKERS)
    idle = max(1, cores - workers)
    threads = config.threads or (idle if device == "cpu" else 1)
    precision = config.precision if config.precision != "auto" else _best_precision(device)
    return config.model_copy(update={"device": device, "workers": workers, "threads": threads, "precision": precision})


def _best_precision(device: str) -> str:
    """bfloat16 on devices that multiply in it; emulated, it is slower than float32."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not in every torch release
    fast = device == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bfloat16" if fast else "float32"


def _refuse_torchrun() -> None:
    """Each of its processes would run the whole verb, and all would write the same files."""
    if TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1:
        raise InputError(
            f"torchrun: started {os.environ['WORLD_SIZE']} processes; one, which starts the others itself, is allowed. "
            f"Leave torchrun out and give --devices {os.environ['LOCAL_WORLD_SIZE']} "
            f"(runtime.devices={os.environ['LOCAL_WORLD_SIZE']})."
        )


def _build_fabric(config: RuntimeConfig) -> Fabric:
    device = _choose_device(config)
    if config.devices == 1:
        return Fabric(accelerator=device, devices=1)
    spawned = DDPStrategy(start_method="spawn", timeout=COLLECTIVE_TIMEOUT)
    return Fabric(accelerator=device, devices=config.devices, strategy=spawned)


def _choose_device(config: RuntimeConfig) -> str:
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    device: str = config.device
    if device == "auto":
        device = next((name for name, count in present.items() if count), "cpu")
    if config.devices > present.get(device, config.devices):
        raise InputError(
            f"runtime.devices={config.devices}: there are {present[device]} {device} devices here. "
            "Lower runtime.devices, or set runtime.device=cpu."
        )
    return device


def _enter(fabric: Fabric, config: RuntimeConfig, call: Call) -> Any:
    """What the function returns; faults of disks become what a user is told of them."""
    try:
        return call.function(Runtime(fabric, config), *call.args, **call.kwargs)
    except OSError as error:
        raise mendable(error) or error from error


def _spawn(fabric: Fabric, config: RuntimeConfig, call: Call, folder: Path) -> Any:
    """Results and mendable errors travel through files: a queue's pipe would block on large ones."""
    with _signals_passed_to_children() as passed:
        try:
            fabric.launch(partial(_enter_spawned, parent=os.getpid(), config=config, call=call, folder=folder))
        except (ProcessRaisedException, ProcessExitedException):
            for path in folder.glob("error-*"):
                raise pickle.loads(path.read_bytes()) from None
            if passed:
                raise Interrupted("stopped. Run the same command again to continue.") from None
            raise
    return pickle.loads((folder / "result").read_bytes())


def _enter_spawned(fabric: Fabric, parent: int, config: RuntimeConfig, call: Call, folder: Path) -> None:
    end_with(parent)
    try:
        result = _enter(fabric, config, call)
    except (InputError, Interrupted) as error:
        with atomic(folder / f"error-{fabric.global_rank}") as temporary:
            temporary.write_bytes(pickle.dumps(error))
        raise
    if fabric.global_rank == 0:
        (folder / "result").write_bytes(pickle.dumps(result))


@contextmanager
def _signals_passed_to_children() -> Iterator[list[int]]:
    """While spawned processes work, SIGINT and SIGTERM are theirs to answer; yields those that came."""
    passed: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed.append(number)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield passed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
