"""From the variables of a file to the tensors of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.tensorflow.names import BACKBONES, PARTS, Part
from tutelage.types import InputError

AVERAGED = "/ExponentialMovingAverage"
"""Ends the name of a variable's average, with which the authors evaluate (TPU code, efficientnet/utils.py)."""
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
LAYOUTS = {
    "kernel": (3, 2, 0, 1),  # from height, width, input, output
    "pointwise_kernel": (3, 2, 0, 1),
    "depthwise_kernel": (2, 3, 0, 1),  # from height, width, channel, 1 (outputs a channel)
}
VARIABLES = {*NORM.values(), *LAYOUTS, "bias"}
"""Last parts of the names that are weights; all others are a training's own (Momentum, RMSProp, global_step)."""

CLASS_PREDICTOR, BOX_PREDICTOR = "head.class_predictor", "head.box_predictor"
FROM_YXHW = [1, 0, 3, 2]
"""Their order (ty, tx, th, tw) to ours (dx, dy, dw, dh); anchors are in the same order (TPU code, anchor.py)."""


class Mapped(NamedTuple):
    """What a file gives a model."""

    tensors: dict[str, Tensor]  # float32, by the model's names
    unused: tuple[str, ...]  # names in the file


def from_tensorflow(arrays: Mapping[str, NDArray[Any]], model: nn.Module, backbone: str) -> Mapped:
    """The tensors of a model that a checkpoint of the authors' holds.

    The backbone must be there. Pyramid and head are taken where the file has one of the kind, the class predictor where
    it has as many classes. Averages are preferred. Batch-norm's step counts have no counterpart.

    Args:
        arrays: the checkpoint's variables by name.
        model: a RetinaNet, a Segmenter or a Classifier; only its tensors' names and shapes are looked at.
        backbone: the name of its backbone.

    Raises:
        InputError: names are of no known network, or the file's network is another one (shapes, number of blocks).
    """
    variables, own = _variables(arrays), model.state_dict()
    names: dict[str, str] = {}
    for place, part in _parts(model, backbone).items():
        held = {variable for variable in variables if variable.startswith(part.scopes)}
        if held:
            of_part = _names(model.get_submodule(place), part, variables)
            _refuse_differences(place, set(of_part.values()), held)
            names |= {f"{place}.{ours}": variable for ours, variable in of_part.items()}
        elif place == "backbone":
            raise _of_another(arrays, backbone, part)
    tensors = {ours: _in_our_layout(variable, arrays[variables[variable]]) for ours, variable in names.items()}
    taken = {
        ours: _fitting(tensor, own[ours], ours, names[ours])
        for ours, tensor in tensors.items()
        if len(tensor) == len(own[ours]) or not ours.startswith(CLASS_PREDICTOR)
    }
    used = {variables[names[ours]] for ours in taken}
    return Mapped(taken, tuple(name for name in arrays if name not in used))


def _variables(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Weights -> name in the file, that of the average where there is one."""
    averages_last = sorted(arrays, key=lambda name: name.endswith(AVERAGED))
    names = {name.removesuffix(AVERAGED): name for name in averages_last}
    return {variable: name for variable, name in names.items() if variable.rpartition("/")[2] in VARIABLES}


def _parts(model: nn.Module, backbone: str) -> dict[str, Part]:
    """The parts of a model that the authors have too, by their place in it."""
    make = next((make for pattern, make in BACKBONES.items() if re.fullmatch(pattern, backbone)), None)
    if make is None:
        raise InputError(
            f"model.init: no TensorFlow names are known for {backbone}; the authors' release has EfficientNets, "
            "SpineNets, and ResNets of 50 or more layers. Choose one of them as model.backbone, or give another file."
        )
    config = cast(ModelConfig, model.config)
    children = {place: module for place, module in model.named_children() if type(module) in PARTS}
    return {
        "backbone": make(model.get_submodule("backbone"), backbone),
        **{place: PARTS[type(module)](module, config) for place, module in children.items()},
    }


def _names(module: nn.Module, part: Part, variables: Mapping[str, str]) -> dict[str, str]:
    """Our tensors in a part -> their variables."""
    names: dict[str, str] = {}
    for ours, theirs in part.layers.items():
        layer = module.get_submodule(ours)
        kinds = NORM if isinstance(layer, nn.BatchNorm2d) else _of_a_conv(cast(nn.Conv2d, layer), theirs, variables)
        names |= {f"{ours}.{kind}": f"{theirs}/{variable}" for kind, variable in kinds.items()}
    return names


def _of_a_conv(conv: nn.Conv2d, theirs: str, variables: Mapping[str, str]) -> dict[str, str]:
    """A separable convolution is one layer of theirs with two kernels, and two layers of ours."""
    separable = f"{theirs}/depthwise_kernel" in variables
    kernel = "depthwise_kernel" if conv.groups > 1 else "pointwise_kernel" if separable else "kernel"
    return {"weight": kernel} if conv.bias is None else {"weight": kernel, "bias": "bias"}


def _in_our_layout(variable: str, array: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(np.asarray(array, dtype=np.float32))
    layout = LAYOUTS.get(variable.rpartition("/")[2])
    return tensor.permute(layout) if layout and tensor.ndim == len(layout) else tensor


def _fitting(tensor: Tensor, own: Tensor, ours: str, variable: str) -> Tensor:
    """A tensor that has the shape of the model's, in our order of box coordinates."""
    if tensor.shape != own.shape:
        raise InputError(
            f"model.init: '{variable}' of the file is {tuple(tensor.shape)} in PyTorch's layout, '{ours}' of this "
            f"model {tuple(own.shape)}; it was saved by another network. Make model.* equal to that network's, or give "
            "another file."
        )
    if not ours.startswith(BOX_PREDICTOR):
        return tensor
    by_anchor = tensor.reshape(-1, len(FROM_YXHW), *tensor.shape[1:])
    return by_anchor[:, FROM_YXHW].flatten(0, 1)


def _of_another(arrays: Mapping[str, NDArray[Any]], backbone: str, part: Part) -> InputError:
    found = sorted({name.partition("/")[0] for name in arrays})
    return InputError(
        f"model.init: the names in the file begin with {', '.join(found[:5]) or 'nothing'}; the TensorFlow names of "
        f"{backbone} begin with {part.scopes[0].partition('/')[0]}. Set model.backbone to the network that the file "
        "holds, or give another file."
    )


def _refuse_differences(place: str, wanted: set[str], held: set[str]) -> None:
    """Refuses a part of the file that has less or more than the model's, if it has any of it."""
    for verb, names in (("lacks", wanted - held), ("has besides", held - wanted)):
        if held and names:
            raise InputError(
                f"model.init: beside this model's {place}, the file's {verb} {len(names)} of {len(wanted | held)} "
                f"variables (first: '{min(names)}'); it was saved by another network. Make model.* equal to that "
                "network's, or give another file."
            )
