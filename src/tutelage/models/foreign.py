"""Weights that others saved: reading files, finding a backbone's tensors in them, and saying what was found.

Files are read by torch's restricted loader and by numpy without objects; nothing is unpickled.
"""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.models.backbones import in_body_terms
from tutelage.types import InputError

TORCH_BEGINNINGS = (b"PK", b"\x80\x02")  # a zip archive, and what torch.save wrote before it
DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError),
    *(RuntimeError, MemoryError, SyntaxError, TokenError, SafetensorError, BadZipFile, zlib.error, struct.error),
)
"""What torch, numpy and safetensors raise on broken content: headers that lie, records that are not there."""
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "model_state", "net", "resnet")
MAX_PREFIX_PARTS = 4
HEADS = re.compile(r"(^|\.)(fc|head|heads|classifier|class_predictor|linear|last_linear|logits|dense)([./]|$)")
NAMED_HEADS = 6  # tensors of a head that a report names one by one

SIMCLR_V2 = re.compile(
    r"net\.(?P<stage>\d)(\.blocks\.(?P<block>\d+)\.(?P<part>net|projection))?\.(?P<layer>\d|shortcut|bn)(?P<norm>\.0)?"
    r"\.(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"
)
"""Names of github.com/Separius/SimCLRv2-Pytorch: a stem and four stages; even layers are convolutions."""
SHORTCUT = {"shortcut": "downsample.0", "bn": "downsample.1"}


@dataclass(frozen=True)
class LoadReport:
    """What a load took, in tensor names; `missing` ones keep their random start, `unexpected` ones were not used."""

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    license: str = ""  # of trained weights, where it is known
    warnings: tuple[str, ...] = ()

    @property
    def left_over(self) -> tuple[str, ...]:
        """Tensors of a classifier or another head in the file, which the model has no use for."""
        return tuple(name for name in self.unexpected if HEADS.search(name))

    def as_dict(self) -> dict[str, Any]:
        """Counts and names, for a run's record."""
        return {**asdict(self), "left_over": self.left_over, "num_matched": len(self.matched)}

    def __str__(self) -> str:
        if self.source == "random":
            return "random: nothing loaded"
        counts = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected tensors"
        named = ", ".join(self.left_over[:NAMED_HEADS])
        more = len(self.left_over) - NAMED_HEADS
        heads = f"; a head was left over ({named}{f' and {more} more' if more > 0 else ''})" if named else ""
        license = f"; license {self.license}" if self.license else ""
        return "\n".join((f"{self.source}: {counts}{heads}{license}", *self.warnings))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch.save wrote, by name.

    Raises:
        InputError: unreadable, or it holds more than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as file:
            if file.read(2) not in TORCH_BEGINNINGS:
                raise InputError(f"{path}: is no checkpoint. Give a safetensors file, or what torch.save wrote.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and plain containers ({str(error).splitlines()[0][:160]}); only these "
            "are read, since anything else could run code. Save its state_dict() alone with torch.save."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist. Give a folder that was written to its end.") from None
    except DAMAGED as error:
        raise InputError(f"{path}: cannot be read as weights ({error}). Copy or download the file again.") from None
    return _tensors_of(content, path)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: unreadable, or it holds Python objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("a lone array without a name")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise InputError(
            f"{path}: cannot be read as arrays ({str(error)[:200]}); an .npz file without Python objects is allowed. "
            "Write it again with numpy.savez."
        ) from None


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(
            f"{path}: holds no tensors by name; a state dict is allowed, at the top or under one of "
            f"{', '.join(NESTED_UNDER)}. Save model.state_dict() with torch.save."
        )
    return tensors


def load_body(body: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Loads a state dict into a backbone's body, whole, under whatever prefix matches most of its tensors.

    Raises:
        InputError: the body lacks some of it, or it some of the body.
    """
    own = body.state_dict()
    prefix = _prefix(own, state)
    theirs = in_body_terms(
        body, {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    )
    renamed = {_canonical(name): name for name in theirs}
    pairs = {name: theirs[renamed[_canonical(name)]] for name in own if _canonical(name) in renamed}
    _refuse_lacking([name for name in own if name not in pairs], len(own), next(iter(state), "nothing"), source)
    used = {renamed[_canonical(name)] for name in pairs}
    _refuse_deeper({_any_block(name) for name in used}, set(theirs) - used, source)
    report = copy_tensors(own, pairs, {}, source)
    outside = {name for name in state if not name.startswith(prefix)}
    unexpected = {prefix + name for name in set(theirs) - used} | outside
    return LoadReport(source, report.matched, report.missing, tuple(sorted(unexpected)))


def _refuse_lacking(lacking: list[str], num_own: int, first: str, source: str) -> None:
    needed = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if needed:
        raise InputError(
            f"model.init: {source} shares {num_own - len(lacking)} of {num_own} tensors with this backbone (first that "
            f"it lacks: '{needed[0]}'; its own first: '{first}'); was it saved by another architecture? Set "
            "model.backbone to the network that the file holds, or give another file."
        )


def _refuse_deeper(known_blocks: set[str], unused: set[str], source: str) -> None:
    deeper = sorted(name for name in unused if _any_block(name) in known_blocks)
    if deeper:
        raise InputError(
            f"model.init: {source} holds {len(deeper)} tensors of blocks that this backbone lacks (first: "
            f"'{deeper[0]}'); it was saved by a deeper network. Set model.backbone to that network."
        )


def copy_tensors(
    own: Mapping[str, Tensor], taken: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> LoadReport:
    """Copies `taken`, a part of `state`, into a network's own tensors, and says what both have more.

    Raises:
        InputError: shapes differ, or values are no finite numbers where the network's are.
    """
    refuse_mismatches(own, taken, source)
    refuse_values(own, taken, source)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    missing = tuple(name for name in own if name not in taken)
    return LoadReport(source, tuple(taken), missing, tuple(name for name in state if name not in taken))


def refuse_mismatches(own: Mapping[str, Tensor], taken: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors of other shapes than the network's own ones of their names."""
    wrong = [name for name, tensor in taken.items() if name in own and own[name].shape != tensor.shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source}: {len(wrong)} tensors have other shapes than this model's (first: '{name}' is "
            f"{tuple(taken[name].shape)}, must be {tuple(own[name].shape)}); it was saved by another network. "
            "Make model.* equal to that network's, or give another file."
        )


def refuse_values(own: Mapping[str, Tensor], taken: Mapping[str, Tensor], source: str) -> None:
    """Refuses integers (a quantized network's), complex and infinite numbers in the place of weights."""
    for name, tensor in taken.items():
        if not own[name].is_floating_point():
            continue
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            found = f"is {tensor.dtype}" if not tensor.is_floating_point() else "holds infinite values or no numbers"
            raise InputError(
                f"{source}: '{name}' {found}; finite floating-point weights are allowed. Save the network in float32 "
                "before it was quantized or diverged, or give another file."
            )


def mean_kernel_norm(body: nn.Module) -> float:
    """The mean length of the convolutions' kernels."""
    norms = [module.weight.detach().norm() for module in body.modules() if isinstance(module, nn.Conv2d)]
    return float(torch.stack(norms).mean())


def from_simclr_v2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SimCLR v2's tensors (`SIMCLR_V2`) by torchvision's names; all others as they are."""
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def is_simclr_v2(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of the conversion of SimCLR v2."""
    return any(name.startswith("net.1.blocks.0.projection.") for name in state)


def _torchvision_name(name: str) -> str:
    found = SIMCLR_V2.fullmatch(name)
    if found is None:
        return name
    layer = SHORTCUT.get(found["layer"])
    if layer is None:
        number = int(found["layer"])
        layer = f"{'bn' if number % 2 else 'conv'}{number // 2 + 1}"
    block = f"layer{found['stage']}.{found['block']}." if found["block"] else ""
    return f"{block}{layer}.{found['tensor']}"


def _canonical(name: str) -> str:
    """The name with dots alone: when timm cuts a network, it joins the first two parts of some names by underscores."""
    return name.replace("_", ".")


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The prefix under which most tensors of `own` are found in `state`."""
    wanted = {_canonical(name) for name in own}
    votes: Counter[str] = Counter()
    for name in state:
        for prefix in _prefixes(name):
            votes[prefix] += _canonical(name.removeprefix(prefix)) in wanted
    return max(votes, key=lambda prefix: votes[prefix], default="")


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:count]) for count in range(min(len(parts), MAX_PREFIX_PARTS + 1))]


def _any_block(name: str) -> str:
    """'layer3.#.conv1.weight' of 'layer3.6.conv1.weight': equal for the same tensor of a stage's other blocks."""
    parts = name.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    return ".".join("#" if numbers and at == numbers[-1] else part for at, part in enumerate(parts))
