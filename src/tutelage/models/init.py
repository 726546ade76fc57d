"""How weights start, and how they are kept: initializations, foreign checkpoints, our own model folders.

A model folder holds `model.safetensors` and, written last, `model.json` with all that is needed to build the network
again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, ValidationError
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.config import ModelConfig
from tutelage.files import make_folder, read_json, write_json
from tutelage.models.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIMCLR_INPUTS,
    Normalization,
    TrainedWeights,
    in_bytes,
    pretrained_weights,
    published_simclr,
)
from tutelage.models.embedder import Embedder
from tutelage.models.foreign import (
    LoadReport,
    copy_tensors,
    from_simclr_v2,
    is_simclr_v2,
    load_body,
    mean_kernel_norm,
    read_arrays,
    read_state,
    refuse_mismatches,
    refuse_values,
)
from tutelage.models.model import Classifier, Network, build_classifier, build_detector, build_segmenter
from tutelage.models.tensorflow import from_tensorflow
from tutelage.models.tensors import save_tensors
from tutelage.types import InputError

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = 1
Model = Network | Classifier | Embedder
BUILDERS: dict[str, Callable[[ModelConfig, int], Model]] = {
    "detector": build_detector,
    "segmenter": build_segmenter,
    "classifier": build_classifier,
    "embedder-2": partial(Embedder, layers=2),
    "embedder-3": partial(Embedder, layers=3),
}
BODY = "backbone.body."
MAX_CLASSES = 1_000_000
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SIMCLR = "simclr:"  # before the path of a file
LARGEST_SCALE = 4.0  # of kernels against a random start's, either way, that SGD's usual rates are fit for
MADE_FOR_CLASSES = "head.class_predictor."
IMAGE_CLASSIFIER = "classifier."  # of joint training, which gives the model a new one


class Statistics(BaseModel):
    """Pixel statistics in a card."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[Positive, Positive, Positive]
    eps: Positive = 1e-5


class Card(BaseModel):
    """What every `model.json` holds beside what verbs add."""

    num_classes: Annotated[int, Field(strict=True, ge=0, le=MAX_CLASSES)]
    class_names: tuple[str, ...] = ()
    image_classes: tuple[str, ...] | None = None
    steps: Annotated[int, Field(strict=True, ge=0)] = 0  # of the training that made it
    model: dict[str, Any]
    canvas: tuple[PositiveInt, PositiveInt]
    normalization: Statistics


def initialize(model: Model, init: str, *, backbone_name: str) -> LoadReport:
    """Loads what `init` says into a model with random weights, pixel statistics included.

    Args:
        model: changed in place.
        init: `random`; `imagenet`, `imagenet++`, `simclr` or the full name (model.tag) of weights in timm (the
            backbone); a model folder of ours (of this kind: all, the class predictor only where the number of classes
            is equal; of another kind: the backbone, and the pyramid where it has the same tensors); a file with a state
            dict of the backbone, by timm's, torchvision's or its authors' tensor names, with any prefix; such a file
            of SimCLR's authors as `simclr:FILE`; or an .npz of the paper's TensorFlow release.
        backbone_name: timm's name of the model's backbone.

    Raises:
        InputError: the weights cannot be had, are unreadable, or belong to another network.
    """
    if init == "random":
        return LoadReport("random", missing=tuple(model.state_dict()))
    _refuse_student_starts(init)
    if init == "simclr":
        return _load_trained(model, published_simclr(backbone_name))
    path = Path(init.removeprefix(SIMCLR))
    if init in ("imagenet", "imagenet++") or not (path.exists() or init.startswith(SIMCLR)):
        return _load_trained(model, pretrained_weights(backbone_name, init))
    if path.is_dir() or (path.name == WEIGHTS and (path.parent / CARD).exists()):
        return _load_ours(model, model_folder(path if path.is_dir() else path.parent))
    if path.suffix == ".npz":
        return _load_tensorflow(model, path, backbone_name)
    return _load_trained(model, _weights_of_file(path, simclr=init.startswith(SIMCLR)))


def _refuse_student_starts(init: str) -> None:
    if init in ("teacher", "model"):
        raise InputError(
            f"model.init: {init} is a start of the student alone; random, imagenet, imagenet++, simclr, weights of "
            f"timm, or a checkpoint's file or folder is allowed here. Set student.init={init} instead."
        )


def _load_trained(model: Model, weights: TrainedWeights) -> LoadReport:
    """Loads a backbone's body and sets the normalization that belongs to it."""
    body, normalization = model.backbone.body, weights.normalization
    before = mean_kernel_norm(body)
    report = load_body(body, weights.state, weights.source)
    model.normalize.mean.copy_(torch.tensor(normalization.mean))
    model.normalize.std.copy_(torch.tensor(normalization.std))
    warnings: tuple[str, ...] = ()
    if normalization.eps is not None:
        _set_eps(model, normalization.eps)
        warnings = _scale_warning(mean_kernel_norm(body) / before)
    loaded = {f"{BODY}{name}" for name in report.matched}
    missing = tuple(name for name in model.state_dict() if name not in loaded and not name.startswith("normalize."))
    return replace(report, missing=missing, license=weights.license, warnings=warnings)


def _scale_warning(ratio: float) -> tuple[str, ...]:
    """SimCLR v1's kernels are on average 16.8 times as long as v2's (google-research/simclr, README, known issues)."""
    if 1 / LARGEST_SCALE < ratio < LARGEST_SCALE:
        return ()
    return (
        f"kernels are {ratio:.2g} times as long as those of a random start: batch-norm hides their length from the "
        f"outputs, but a step of SGD turns them {ratio**2:.2g} times less. Search train.lr and train.weight_decay for "
        "them, or set train.optimizer=lars.",
    )


def _set_eps(model: Model, eps: float) -> None:
    """Gives the backbone's batch-norms the epsilon that belongs to its weights; the model's card keeps it."""
    model.normalize.eps = eps
    for module in model.backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eps = eps


def _weights_of_file(path: Path, *, simclr: bool) -> TrainedWeights:
    if not path.exists():
        raise InputError(
            f"model.init: {path} does not exist; after simclr: the file of a conversion of the authors' weights is "
            "allowed. Change model.init."
        )
    state = read_state(path)
    if is_simclr_v2(state):
        return TrainedWeights(str(path), from_simclr_v2(state), SIMCLR_INPUTS)
    return TrainedWeights(str(path), state, SIMCLR_INPUTS if simclr else _statistics_beside(path))


def _statistics_beside(path: Path) -> Normalization:
    """Pixel statistics of timm's config.json, if the file lies beside one; else ImageNet's.

    Raises:
        InputError: they are no statistics of pixels.
    """
    config = path.with_name("config.json")
    content = read_json(config) if config.exists() else {}
    told = content.get("pretrained_cfg") if isinstance(content, dict) else None
    told = told if isinstance(told, dict) else {}
    mean, std = told.get("mean", IMAGENET_MEAN), told.get("std", IMAGENET_STD)
    if not (_is_color(mean) and _is_color(std) and min(std) > 0):
        raise InputError(
            f"{config}: pretrained_cfg has mean {mean} and std {std}; three numbers each, of pixels in [0, 1], are "
            "allowed. Fetch the file again, or remove it if ImageNet's are right."
        )
    return in_bytes(mean, std)


def _is_color(values: object) -> bool:
    """Whether it is three finite numbers."""
    is_three = isinstance(values, Sequence) and len(values) == 3
    return is_three and all(isinstance(value, int | float) and math.isfinite(value) for value in cast(Any, values))


def _load_tensorflow(model: Model, path: Path, backbone_name: str) -> LoadReport:
    mapped = from_tensorflow(read_arrays(path), model, backbone_name)
    report = copy_tensors(model.state_dict(), mapped.tensors, {}, str(path))
    return replace(report, unexpected=mapped.unused)


def model_folder(folder: Path) -> Path:
    """Where the model of a run or stage folder lies: in its `model/`, or in the folder itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def init_digest(init: str) -> str:
    """What an initialization adds to a stage's hash: its name, or for a file or folder the digest of its weights."""
    path = Path(init.removeprefix(SIMCLR))
    file = model_folder(path) / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        return init
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{SIMCLR}{digest}" if init.startswith(SIMCLR) else digest


def save_model(folder: Path, model: Model, card: Mapping[str, Any]) -> None:
    """Writes a model folder; `card` (class names, task, ...) joins what rebuilding needs in model.json.

    Raises:
        InputError: the disk is full or not writable.
    """
    make_folder(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(folder / WEIGHTS, state)
    rebuild = {
        "format": FORMAT,
        "kind": model.kind,
        "num_classes": model.num_classes,
        "model": model.config.model_dump(mode="json"),
        "canvas": list(model.config.canvas),
        "normalization": _normalization_of(model),
    }
    write_json(folder / CARD, {**card, **rebuild})


def _normalization_of(model: Model) -> dict[str, Any]:
    statistics = {name: getattr(model.normalize, name).tolist() for name in ("mean", "std")}
    return statistics if model.normalize.eps is None else {**statistics, "eps": model.normalize.eps}


def load_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """The model of a folder, in float32 on the CPU, and its card; leaves torch's random state alone.

    Raises:
        InputError: no such folder, an incomplete one, or one of another version.
    """
    card = read_card(folder)
    with torch.random.fork_rng(devices=[]):
        model = _built(card, folder)
    state = read_state(folder / WEIGHTS)
    refuse_mismatches(model.state_dict(), state, str(folder))
    refuse_values(model.state_dict(), {name: state[name] for name in model.state_dict() if name in state}, str(folder))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: {WEIGHTS} does not fit {CARD} ({str(error).splitlines()[-1].strip()}); they must be written "
            "together. Save the model again."
        ) from None
    _take_eps(model, card)
    return model, card


def _built(card: Mapping[str, Any], folder: Path) -> Model:
    try:
        model = BUILDERS[card["kind"]](_model_config(card, folder), card["num_classes"])
        if card.get("image_classes"):
            cast(Network, model).add_classifier(len(card["image_classes"]))
    except (RuntimeError, MemoryError) as error:  # absurd widths
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{folder / CARD}: its network cannot be built ({reason}). Restore the file.") from None
    return model


def read_card(folder: Path) -> dict[str, Any]:
    """What `model.json` says of a model folder.

    Raises:
        InputError: no such folder, an incomplete one, or one of another version.
    """
    if not (folder / CARD).exists():
        raise InputError(f"{folder}: holds no {CARD}, which is written last. Give the folder of a finished model.")
    card = read_json(folder / CARD)
    if not isinstance(card, dict):
        raise InputError(f"{folder / CARD}: is no card of a model. Save the model again.")
    if card.get("format") != FORMAT or card.get("kind") not in tuple(BUILDERS):
        raise InputError(
            f"{folder / CARD}: format {card.get('format')}, kind {card.get('kind')!r}; this version reads format "
            f"{FORMAT} and the kinds {', '.join(BUILDERS)}. Use the version of Tutelage that wrote it."
        )
    try:
        Card.model_validate(card)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{folder / CARD}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}. Restore the file, or save the "
            "model again."
        ) from None
    return card


def _model_config(card: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(card["model"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise InputError(
            f"{folder / CARD}: its model part has keys or values that this version does not know ({keys}). "
            "Use the version of Tutelage that wrote it."
        ) from None


def _load_ours(model: Model, folder: Path) -> LoadReport:
    card = read_card(folder)
    theirs, ours = card["model"]["backbone"], model.config.backbone
    if theirs != ours:
        raise InputError(
            f"model.init: {folder} holds a {card['kind']} with backbone {theirs}; this model's is {ours}. "
            f"Set model.backbone={theirs}, or give another model.init."
        )
    state, own = read_state(folder / WEIGHTS), model.state_dict()
    whole = model.kind == card["kind"] != Classifier.kind
    parts = ("",) if whole else ("backbone.", "normalize.", *_same_pyramid(own, state))
    left = (IMAGE_CLASSIFIER,) if card["num_classes"] == model.num_classes else (IMAGE_CLASSIFIER, MADE_FOR_CLASSES)
    taken = {name: tensor for name, tensor in state.items() if name.startswith(parts) and not name.startswith(left)}
    odd = [name for name in taken if name not in own]
    odd += [name for name in own if whole and name not in state]
    if odd:
        raise InputError(
            f"model.init: {folder} shares {len(set(own) & set(taken))} of {len(own)} tensors with this model (first "
            f"that only one has: '{odd[0]}'); it was saved by another network. Make model.* equal to its {CARD}'s."
        )
    _take_eps(model, card)
    return copy_tensors(own, taken, state, str(folder))


def _take_eps(model: Model, card: Mapping[str, Any]) -> None:
    if "eps" in card["normalization"]:
        _set_eps(model, card["normalization"]["eps"])


def _same_pyramid(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The pyramid's prefix if two networks of different kinds have one of the same tensors, else nothing."""
    prefix = "pyramid."
    ours, theirs = (
        {name: tensor.shape for name, tensor in each.items() if name.startswith(prefix)} for each in (own, state)
    )
    return (prefix,) if ours == theirs else ()
