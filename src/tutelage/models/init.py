"""How weights start, and how they are kept: initializations, foreign checkpoints, our own model folders.

A model folder holds `model.safetensors` and, written last, `model.json` with all that is needed to build the network
again. Foreign files are read by torch's restricted loader; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tutelage.config import ModelConfig
from tutelage.files import read_json, write_json
from tutelage.models.backbones import pretrained_weights
from tutelage.models.embedder import Embedder
from tutelage.models.model import Classifier, Network, build_classifier, build_detector, build_segmenter
from tutelage.models.tensors import save_tensors
from tutelage.types import InputError

TORCH_BEGINNINGS = (b"PK", b"\x80\x02")  # a zip archive, and what torch.save wrote before it
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
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "model_state", "net")
MAX_PREFIX_PARTS = 4
MADE_FOR_CLASSES = "head.class_predictor."
IMAGE_CLASSIFIER = "classifier."  # of joint training, which gives the model a new one


@dataclass(frozen=True)
class LoadReport:
    """What a load took, in tensor names; `missing` ones keep their random start, `unexpected` ones were not used."""

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Counts and names, for a run's record."""
        return {**asdict(self), "num_matched": len(self.matched)}

    def __str__(self) -> str:
        counts = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected tensors"
        return f"{self.source}: {counts if self.source != 'random' else 'nothing loaded'}"


def initialize(model: Model, init: str, *, backbone_name: str) -> LoadReport:
    """Loads what `init` says into a model with random weights, pixel statistics included.

    Args:
        model: changed in place.
        init: `random`; `imagenet` or `imagenet++` (the backbone); a model folder of ours (of
            this kind: all, the class predictor only where the number of classes is equal; of another kind: the
            backbone, and the pyramid where it has the same tensors); or a file with a state dict of the backbone, by
            timm's or torchvision's tensor names, with any prefix.
        backbone_name: timm's name of the model's backbone.

    Raises:
        InputError: the weights cannot be had, are unreadable, or belong to another network.
    """
    if init == "random":
        return LoadReport("random", missing=tuple(model.state_dict()))
    if init in ("imagenet", "imagenet++"):
        weights = pretrained_weights(backbone_name, cast(Literal["imagenet", "imagenet++"], init))
        report = _load_backbone(model, weights.state, weights.source)
        model.normalize.mean.copy_(torch.tensor(weights.mean))
        model.normalize.std.copy_(torch.tensor(weights.std))
        return report
    path = Path(init)
    if not path.exists():
        raise InputError(
            f"model.init: {init} does not exist; random, imagenet, imagenet++, or a checkpoint's file or folder is "
            "allowed. Change model.init."
        )
    if path.is_dir() or (path.name == WEIGHTS and (path.parent / CARD).exists()):
        return _load_ours(model, model_folder(path if path.is_dir() else path.parent))
    return _load_backbone(model, read_state(path), str(path))


def model_folder(folder: Path) -> Path:
    """Where the model of a run or stage folder lies: in its `model/`, or in the folder itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def init_digest(init: str) -> str:
    """What an initialization adds to a stage's hash: its name, or for a file or folder the digest of its weights."""
    path = Path(init)
    if not path.exists():
        return init
    file = model_folder(path) / WEIGHTS if path.is_dir() else path
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else init


def save_model(folder: Path, model: Model, card: Mapping[str, Any]) -> None:
    """Writes a model folder; `card` (class names, task, ...) joins what rebuilding needs in model.json.

    Raises:
        InputError: the disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(folder / WEIGHTS, state)
    rebuild = {
        "format": FORMAT,
        "kind": model.kind,
        "num_classes": model.num_classes,
        "model": model.config.model_dump(mode="json"),
        "canvas": list(model.config.canvas),
        "normalization": {name: getattr(model.normalize, name).tolist() for name in ("mean", "std")},
    }
    write_json(folder / CARD, {**card, **rebuild})


def load_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """The model of a folder, in float32 on the CPU, and its card; leaves torch's random state alone.

    Raises:
        InputError: no such folder, an incomplete one, or one of another version.
    """
    card = read_card(folder)
    with torch.random.fork_rng(devices=[]):
        model = BUILDERS[card["kind"]](_model_config(card, folder), card["num_classes"])
        if card.get("image_classes"):
            cast(Network, model).add_classifier(len(card["image_classes"]))
    state = read_state(folder / WEIGHTS)
    _refuse_mismatches(model.state_dict(), state, str(folder))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: {WEIGHTS} does not fit {CARD} ({str(error).splitlines()[-1].strip()}); they must be written "
            "together. Save the model again."
        ) from None
    return model, card


def read_card(folder: Path) -> dict[str, Any]:
    """What `model.json` says of a model folder.

    Raises:
        InputError: no such folder, an incomplete one, or one of another version.
    """
    if not (folder / CARD).exists():
        raise InputError(f"{folder}: holds no {CARD}, which is written last. Give the folder of a finished model.")
    card: dict[str, Any] = read_json(folder / CARD)
    if card.get("format") != FORMAT or card.get("kind") not in BUILDERS:
        raise InputError(
            f"{folder / CARD}: format {card.get('format')}, kind {card.get('kind')!r}; this version reads format "
            f"{FORMAT} and the kinds {', '.join(BUILDERS)}. Use the version of Tutelage that wrote it."
        )
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
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and plain containers ({str(error).splitlines()[0][:160]}); only these "
            "are read, since anything else could run code. Save its state_dict() alone with torch.save."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist. Give a folder that was written to its end.") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as weights ({error}). Copy or download the file again.") from None
    return _tensors_of(content, path)


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
    return _copy(own, taken, state, str(folder))


def _same_pyramid(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The pyramid's prefix if two networks of different kinds have one of the same tensors, else nothing."""
    prefix = "pyramid."
    ours, theirs = (
        {name: tensor.shape for name, tensor in each.items() if name.startswith(prefix)} for each in (own, state)
    )
    return (prefix,) if ours == theirs else ()


def _load_backbone(model: Model, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Loads a foreign state dict into the backbone's body, under whatever prefix matches most of its tensors."""
    own = model.backbone.body.state_dict()
    renamed = _without_prefix(own, state)
    pairs = {name: state[renamed[_canonical(name)]] for name in own if _canonical(name) in renamed}
    lacking = [name for name in own if name not in pairs and not name.endswith("num_batches_tracked")]
    if lacking:
        first, other = lacking[0], next(iter(state), "nothing")
        raise InputError(
            f"model.init: {source} shares {len(pairs)} of {len(own)} tensors with this backbone (first that it lacks: "
            f"'{first}'; its own first: '{other}'); was it saved by another architecture? Set model.backbone to the "
            "network that the file holds, or give another file."
        )
    used = {renamed[_canonical(name)] for name in pairs}
    known_blocks = {_any_block(name) for name in used}
    deeper = sorted(name for name in set(state) - used if _any_block(name) in known_blocks)
    if deeper:
        raise InputError(
            f"model.init: {source} holds {len(deeper)} tensors of blocks that this backbone lacks (first: "
            f"'{deeper[0]}'); it was saved by a deeper network. Set model.backbone to that network."
        )
    report = _copy(own, pairs, {}, source)
    missing = tuple(name for name in model.state_dict() if not name.startswith("backbone."))
    return LoadReport(source, report.matched, report.missing + missing, tuple(sorted(set(state) - used)))


def _copy(
    own: Mapping[str, Tensor], taken: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> LoadReport:
    _refuse_mismatches(own, taken, source)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    missing = tuple(name for name in own if name not in taken)
    return LoadReport(source, tuple(taken), missing, tuple(name for name in state if name not in taken))


def _refuse_mismatches(own: Mapping[str, Tensor], taken: Mapping[str, Tensor], source: str) -> None:
    wrong = [name for name, tensor in taken.items() if name in own and own[name].shape != tensor.shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source}: {len(wrong)} tensors have other shapes than this model's (first: '{name}' is "
            f"{tuple(taken[name].shape)}, must be {tuple(own[name].shape)}); it was saved by another network. "
            "Make model.* equal to that network's, or give another file."
        )


def _canonical(name: str) -> str:
    """The name with dots alone: when timm cuts a network, it joins the first two parts of some names by underscores."""
    return name.replace("_", ".")


def _without_prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Canonical name -> name in `state`, for the prefix under which most tensors of `own` are found."""
    wanted = {_canonical(name) for name in own}
    votes: Counter[str] = Counter()
    for name in state:
        for prefix in _prefixes(name):
            votes[prefix] += _canonical(name.removeprefix(prefix)) in wanted
    best = max(votes, key=lambda prefix: votes[prefix], default="")
    return {_canonical(name.removeprefix(best)): name for name in state if name.startswith(best)}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:count]) for count in range(min(len(parts), MAX_PREFIX_PARTS + 1))]


def _any_block(name: str) -> str:
    """'layer3.#.conv1.weight' of 'layer3.6.conv1.weight': equal for the same tensor of a stage's other blocks."""
    parts = name.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    return ".".join("#" if numbers and at == numbers[-1] else part for at, part in enumerate(parts))
