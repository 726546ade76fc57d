"""Backbones: timm networks behind one interface, and their trained weights. timm's only door.

Sources: TPU detection code (resnet.py, efficientnet.py), arXiv:2006.06882 sec. 3.1 for the initializations,
arXiv:2203.16527 for plain vision transformers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.layers.patch_embed import PatchEmbed
from timm.models import Eva, FeatureInfo, VisionTransformer, eva, load_state_dict_from_hf, vision_transformer
from torch import Tensor, nn

from tutelage.config import NormConfig
from tutelage.models.plain_vit import PATCH, PATCH_LEVEL, LayerNorm2d, SimpleFeaturePyramid
from tutelage.models.trained import SIMCLR_FILE, TRAINED, backbones_with, trained_for
from tutelage.types import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

EFFICIENTNET = re.compile(r"(tf_)?efficientnet_")
EFFICIENTNET_NORM = NormConfig(momentum=0.01, eps=1e-3)  # 1 - 0.99 (TPU code, efficientnet_builder.py); timm says 0.1

OTHER_DATA = re.compile(r"in12k|in21k|in22k|jft|ig\d|yfcc|laion|bamboo|openai|dfn|fb_|lvd")


class Backbone(nn.Module):
    """A timm network cut to the stage outputs that a pyramid needs; `channels` and `strides`, finest first.

    The stages of a network with layer normalization alone (ConvNeXt) hand on sums that nothing has normalized; each
    output then gets a normalization of its own, as in the detection code of arXiv:2201.03545.
    """

    def __init__(self, name: str, stages: tuple[int, ...], drop_path: float) -> None:
        super().__init__()
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}  # not all networks have it
        self.name = name
        self.body = timm.create_model(name, features_only=True, out_indices=stages, **options)
        self.channels: list[int] = _info(self.body).channels()
        self.strides: list[int] = _info(self.body).reduction()
        found = {kind for module in self.body.modules() for kind in NORMS if isinstance(module, kind)}
        self.normalizes_by_batch = NORMS[0] in found
        self.norms = nn.ModuleList(
            LayerNorm2d(count, eps=1e-6) if found == {nn.LayerNorm} else nn.Identity() for count in self.channels
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, H / stride_l, W / stride_l), finest first, of normalized images (B, 3, H, W).

        Raises:
            InputError: in training, a pass whose coarsest map has one value a channel and so no variance.
        """
        count, _, height, width = images.shape
        if self.training and self.normalizes_by_batch and count == 1 and max(height, width) <= self.strides[-1]:
            raise InputError(
                f"model.backbone: {self.name} normalizes by batch, and a pass of one image of {height} x {width} px "
                "gives its coarsest map one value a channel; at least two are needed. Raise train.batch_size, "
                "joint.batch_size or runtime.device_batch_size, or enlarge model.canvas (pretrain.size, joint.size)."
            )
        return [norm(feature) for norm, feature in zip(self.norms, self.body(images), strict=True)]


class PlainViT(nn.Module):
    """A plain vision transformer of timm at stride 16 and a simple feature pyramid; an interface as `Backbone`'s.

    Position embeddings keep the grid that they are trained with and are resampled to that of the images.
    """

    def __init__(self, name: str, levels: Sequence[int], drop_path: float, width: int) -> None:
        super().__init__()
        self.body = _plain_body(name, drop_path_rate=drop_path)
        self.pyramid = SimpleFeaturePyramid(self.body.embed_dim, levels, width)
        self.channels = [width for _ in levels]
        self.strides = [2**level for level in levels]
        self.name = name

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels (B, width, H / stride, W / stride), finest first, of normalized images (B, 3, H, W).

        Raises:
            InputError: sides that are no multiples of the coarsest stride.
        """
        height, width = images.shape[-2:]
        if height % self.strides[-1] or width % self.strides[-1]:
            raise InputError(
                f"model.backbone: {self.name} reaches stride {self.strides[-1]} and images are {height} x {width}; "
                "both sides must be multiples of it. Change model.canvas (pretrain.size, joint.size), or take another "
                "backbone."
            )
        maps = self.body.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        levels: list[Tensor] = self.pyramid(cast(list[Tensor], maps)[0])
        return levels


NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
PLAIN: dict[type[nn.Module], Callable[[dict[str, Tensor], Any], dict[str, Tensor]]] = {
    VisionTransformer: vision_transformer.checkpoint_filter_fn,
    Eva: eva.checkpoint_filter_fn,
}
"""timm's plain transformers, and what brings weights to their names and sizes; Eva holds the DINOv3 ones."""


def build_backbone(
    name: str,
    *,
    levels: Sequence[int] = (3, 4, 5),
    drop_path: float = 0.0,
    norm: NormConfig | None = None,
    width: int = 256,
) -> Backbone | PlainViT:
    """A backbone with random weights and outputs at strides 2^level.

    Args:
        name: a timm model.
        levels: which outputs; each stride must be one of the model's, or the model a plain vision transformer.
        drop_path: stochastic depth at the last block, growing linearly from 0.
        norm: batch-norm constants; None gives the model's own: an EfficientNet its authors', all others timm's.
        width: channels of each output of a plain vision transformer (arXiv:2203.16527: 256).

    Raises:
        InputError: timm knows no such model, or the model has no such strides, one size of images, or channels last.
    """
    if is_plain(name):
        if max(levels) < PATCH_LEVEL:
            raise InputError(
                f"model.max_level: {max(levels)}, but {name} works on patches of {PATCH} pixels; it must be at least "
                f"{PATCH_LEVEL}. Set model.max_level={PATCH_LEVEL} or more."
            )
        return PlainViT(name, levels, drop_path, width)
    backbone = Backbone(name, _stages_at(name, [2**level for level in levels]), drop_path)
    _refuse_unfit(name, backbone.body)
    if norm is None and EFFICIENTNET.match(name):
        norm = EFFICIENTNET_NORM
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # also the last one of a residual block, unlike timm (TPU code, nn_blocks.py)
            if norm is not None:
                module.momentum, module.eps = norm.momentum, norm.eps
    return backbone


def _info(body: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, body.feature_info)


def _plain_body(full: str, **options: Any) -> VisionTransformer:
    """A plain transformer without its classifier, of any patch size, on patches of 16 pixels and their native grid."""
    rows, columns = _native_grid(full.partition(".")[0])
    body = timm.create_model(
        full,
        num_classes=0,
        patch_size=PATCH,
        img_size=(PATCH * rows, PATCH * columns),
        dynamic_img_size=True,
        **options,
    )
    plain = cast(VisionTransformer, body)
    plain.prune_intermediate_layers(1, prune_norm=False)
    return plain


def _native_grid(name: str) -> tuple[int, int]:
    grid: tuple[int, int] = cast(VisionTransformer, _skeleton(name)).patch_embed.grid_size
    return grid


def _skeleton(name: str, **options: Any) -> nn.Module:
    """A network to look at, without storage; timm before 1.0.22 makes ConvNeXts and transformers with storage alone."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, **options)
    except RuntimeError:  # it reads values while it makes them
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(name, **options)


@cache
def is_plain(name: str) -> bool:
    """Whether a timm model is a plain vision transformer, which has patches of one size and no stages.

    Raises:
        InputError: timm knows no such model, or it cannot give features.
    """
    if len(set(_feature_strides(name))) > 1:
        return False
    model = _skeleton(name)
    return isinstance(model, tuple(PLAIN)) and isinstance(model.patch_embed, PatchEmbed)


def _stages_at(name: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the stage outputs that have these strides."""
    found = _feature_strides(name)
    if not set(strides) <= set(found) or len(set(found)) < len(found):
        raise InputError(
            f"model.backbone: {name} has features at strides {list(found)}; one at each of {list(strides)} is needed. "
            "Choose a network with stages (resnet50, convnext_tiny) or a plain vision transformer "
            "(vit_small_patch14_dinov2), or other model.min_level and model.max_level."
        )
    return tuple(found.index(stride) for stride in strides)


def _refuse_unfit(name: str, body: nn.Module) -> None:
    fixed, layout = body.pretrained_cfg["fixed_input_size"], str(getattr(body, "output_fmt", "NCHW"))  # type: ignore[index]
    if fixed or not layout.endswith("NCHW"):
        found = "takes images of one size alone" if fixed else "gives its features with the channels last"
        raise InputError(
            f"model.backbone: {name} {found}; a network for images of any size, with channels before height and width, "
            "is needed. Choose a convolutional network (resnet50, convnext_tiny) or a plain vision transformer "
            "(vit_small_patch14_dinov2)."
        )


@cache
def _feature_strides(name: str) -> tuple[int, ...]:
    _refuse_unknown(name)
    try:
        return tuple(_info(_skeleton(name, features_only=True)).reduction())
    except (RuntimeError, AssertionError, AttributeError) as error:  # timm's answers for models without stages
        raise InputError(
            f"model.backbone: {name} cannot give stage features ({error}); choose a network with stages, for example "
            "resnet50 or efficientnet_b0."
        ) from None


def _refuse_unknown(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f" Did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
        raise InputError(
            f"model.backbone: timm {timm.__version__} knows no model {name!r}; any of its convolutional models with "
            f"stages at strides 8, 16, 32 and its plain vision transformers are allowed.{hint} Change model.backbone."
        )


class Normalization(NamedTuple):
    """What images undergo before weights meet them; it belongs to the weights."""

    mean: tuple[float, ...]  # pixel values 0 .. 255
    std: tuple[float, ...]
    eps: float | None = None  # of the backbone's batch-norms; None: as the config says


SIMCLR_INPUTS = Normalization((0.0,) * 3, (255.0,) * 3, eps=1e-5)
"""Pixels in [0, 1] as they are, and the batch-norms' epsilon (google-research/simclr, data_util.py and resnet.py)."""


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a backbone's body or of the network that it is cut from, and what belongs to them."""

    source: str
    state: Mapping[str, Tensor]
    normalization: Normalization
    license: str = ""


def weights_name(name: str, init: str) -> str:
    """The full name (model.tag) in timm of the weights that `init` means for a backbone.

    Args:
        name: the backbone.
        init: `imagenet`, `imagenet++`, or such a full name itself.

    Raises:
        InputError: there are none, or none in the installed timm.
    """
    if init not in ("imagenet", "imagenet++"):
        return _full_name(name, init)
    row = trained_for(name, init)
    if row is not None:
        return _full_name(name, row.name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")] if init == "imagenet" else []
    tag = next((tag for tag in tags if tag.endswith("in1k") and not OTHER_DATA.search(tag)), None)
    if tag is None:
        others = f" timm has other weights for it: {', '.join(tags)}." if tags else ""
        raise InputError(
            f"model.init: {init} has no weights for {name}; there are some for {', '.join(backbones_with(init))}."
            f"{others} Choose one of these as model.backbone, or give model.init=random, the full name of weights "
            f"of timm ({name}.TAG) or a file."
        )
    return f"{name}.{tag}"


def _full_name(backbone: str, full: str) -> str:
    name = full.partition(".")[0]
    if not timm.is_model(name) or name == full:
        raise InputError(
            f"model.init: {full} does not exist; random, imagenet, imagenet++, simclr, simclr:FILE, the full name of "
            f"weights of timm ({backbone}.TAG), or a checkpoint's file or folder is allowed. Change model.init."
        )
    if name != backbone:
        raise InputError(
            f"model.init: {full} holds weights of {name}; this model's backbone is {backbone}. "
            f"Set model.backbone={name}, or give another model.init."
        )
    known = timm.list_pretrained(f"{name}.*")
    if full not in known:
        raise InputError(
            f"model.init: {full} is neither a file nor one of the weights that timm {timm.__version__} has for {name} "
            f"({', '.join(known) or 'none'}). Give one of these, or update timm."
        )
    return full


def pretrained_weights(name: str, init: str) -> TrainedWeights:
    """Trained weights through timm's own download and cache.

    Args:
        name: the backbone.
        init: `imagenet`, `imagenet++`, or the full name (model.tag) of weights in timm.

    Raises:
        InputError: no such weights, or they cannot be downloaded here; the message says how to hand over a file.
    """
    full = weights_name(name, init)
    try:
        if is_plain(name):
            body: nn.Module = _plain_body(full, pretrained=True)
        else:
            body = timm.create_model(full, pretrained=True, features_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.init: the weights {full} are not in timm's cache and could not be downloaded "
            f"({_first_line(error)}). Fetch model.safetensors and config.json of https://huggingface.co/timm/{full} "
            "on a machine with network access and give model.init=PATH/model.safetensors, or start from "
            "model.init=random."
        ) from None
    cfg = timm.get_pretrained_cfg(full)
    assert cfg is not None, "timm made this model"
    row = next((row for row in TRAINED if row.name == full), None)
    return TrainedWeights(
        full, body.state_dict(), in_bytes(cfg.mean, cfg.std), row.license if row else cfg.license or ""
    )


def published_simclr(name: str) -> TrainedWeights:
    """The SimCLR weights that its authors published, in a PyTorch conversion on the Hugging Face hub.

    Raises:
        InputError: there are none for this backbone, or they cannot be downloaded here.
    """
    row = trained_for(name, "simclr")
    if row is None:
        raise InputError(
            f"model.init: simclr has no weights for {name}; there are some for {', '.join(backbones_with('simclr'))}. "
            "Choose that as model.backbone, or make some from images of your own: tutelage pretrain IMAGES --recipe "
            "pretrain-simclr-r50 --out OUT, then model.init=OUT."
        )
    try:
        content = load_state_dict_from_hf(*SIMCLR_FILE, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.init: the simclr weights are not in the cache and could not be downloaded ({_first_line(error)}). "
            f"Fetch {SIMCLR_FILE.file} of {SIMCLR_FILE.url} on a machine with network access and give "
            f"model.init=simclr:PATH/{SIMCLR_FILE.file}, or start from model.init=random."
        ) from None
    return TrainedWeights(row.name, content["state_dict"], SIMCLR_INPUTS, row.license)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def in_bytes(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Pixel statistics of the range 0 .. 1 in that of bytes."""
    return Normalization(tuple(255 * value for value in mean), tuple(255 * value for value in std))


def in_body_terms(body: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A transformer's weights in timm's names (from its authors' too), patches and positions resampled to a body's."""
    for kind, adapted in PLAIN.items():
        if isinstance(body, kind):
            return adapted(dict(state), body)
    return state


def to_sync_batchnorm(module: nn.Module) -> nn.Module:
    """The module with batch statistics shared by all devices; timm's converter keeps timm's fused activations."""
    converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
