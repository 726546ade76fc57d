"""Trained weights that an initialization may mean: one table of what they reach, their source and their license.

Top-1 accuracy is ImageNet-1k validation, in percent: of supervised weights as timm measures it
(results/results-imagenet.csv of its repository), of self-supervised ones that of a linear classifier on the frozen
features, as their authors state it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Trained:
    """Weights of one backbone; `init` is what chooses them: a word, or their own full name."""

    init: str
    name: str  # timm's: model.tag
    top1: float | None  # percent; None: not stated
    paper: str
    license: str

    @property
    def backbone(self) -> str:
        """The model's name in timm."""
        return self.name.partition(".")[0]


class HubFile(NamedTuple):
    """A file of weights on the Hugging Face hub."""

    repository: str
    file: str

    @property
    def url(self) -> str:
        """The page that lists it."""
        return f"https://huggingface.co/{self.repository}"


def _trained(init: str, paper: str, license: str, top1: Mapping[str, float | None]) -> list[Trained]:
    """Weights of one origin; an empty `init` means that their full name chooses them."""
    return [Trained(init or name, name, accuracy, paper, license) for name, accuracy in top1.items()]


APACHE, BSD = "apache-2.0", "bsd-3-clause"
DINOV2 = "arXiv:2304.07193, with registers arXiv:2309.16588"

TRAINED: tuple[Trained, ...] = (
    *_trained("imagenet", "timm's test models", APACHE, {"test_resnet.r160_in1k": None}),
    *_trained("imagenet", "arXiv:2110.00476", APACHE, {"resnet10t.c3_in1k": 68.4}),
    *_trained(
        "imagenet",
        "arXiv:1512.03385",
        BSD,  # torchvision's
        {
            "resnet18.tv_in1k": 69.8,
            "resnet34.tv_in1k": 73.3,
            "resnet50.tv_in1k": 76.1,
            "resnet101.tv_in1k": 77.4,
            "resnet152.tv_in1k": 78.3,
        },
    ),
    *_trained(
        "imagenet",
        "arXiv:1905.11946",
        APACHE,
        {
            "efficientnet_b0.ra_in1k": 77.7,
            "efficientnet_b1.ft_in1k": 78.8,
            "efficientnet_b2.ra_in1k": 80.6,
            "efficientnet_b3.ra2_in1k": 82.2,
            "efficientnet_b4.ra2_in1k": 83.4,
        },
    ),
    *_trained(
        "imagenet",
        "arXiv:1905.11946, arXiv:1805.09501",
        APACHE,
        {
            "tf_efficientnet_b0.aa_in1k": 76.8,
            "tf_efficientnet_b1.aa_in1k": 78.8,
            "tf_efficientnet_b2.aa_in1k": 80.1,
            "tf_efficientnet_b3.aa_in1k": 81.6,
            "tf_efficientnet_b4.aa_in1k": 83.0,
            "tf_efficientnet_b5.aa_in1k": 83.7,
            "tf_efficientnet_b6.aa_in1k": 84.1,
            "tf_efficientnet_b7.aa_in1k": 84.4,  # the paper's ImageNet checkpoint
        },
    ),
    *_trained(
        "imagenet",
        "arXiv:2201.03545",
        APACHE,
        {
            "convnext_tiny.fb_in1k": 82.7,
            "convnext_small.fb_in1k": 83.7,
            "convnext_base.fb_in1k": 84.4,
            "convnext_large.fb_in1k": 84.8,
        },
    ),
    *_trained(
        "imagenet",
        "arXiv:2012.12877",
        APACHE,
        {"deit_tiny_patch16_224.fb_in1k": 72.2, "deit_small_patch16_224.fb_in1k": 79.8},
    ),
    *_trained(
        "imagenet",
        "arXiv:2106.10270",
        APACHE,
        {"vit_small_patch16_224.augreg_in1k": 78.8, "vit_base_patch16_224.augreg_in1k": 79.2},
    ),
    *_trained(
        "imagenet++",
        "arXiv:1911.04252",  # Noisy Student: ImageNet-1k with unlabeled JFT images
        APACHE,
        {
            "tf_efficientnet_b0.ns_jft_in1k": 78.7,
            "tf_efficientnet_b1.ns_jft_in1k": 81.4,
            "tf_efficientnet_b2.ns_jft_in1k": 82.4,
            "tf_efficientnet_b3.ns_jft_in1k": 84.1,
            "tf_efficientnet_b4.ns_jft_in1k": 85.2,
            "tf_efficientnet_b5.ns_jft_in1k": 86.1,
            "tf_efficientnet_b6.ns_jft_in1k": 86.5,
            "tf_efficientnet_b7.ns_jft_in1k": 86.8,  # the paper's ImageNet++ checkpoint
            "tf_efficientnet_l2.ns_jft_in1k": 88.4,
        },
    ),
    *_trained("simclr", "arXiv:2002.05709", APACHE, {"resnet50.simclrv1": 69.1}),
    *_trained(
        "",
        "arXiv:2104.14294",
        APACHE,
        {
            "vit_small_patch16_224.dino": 77.0,
            "vit_small_patch8_224.dino": 79.7,
            "vit_base_patch16_224.dino": 78.2,
            "vit_base_patch8_224.dino": 80.1,
        },
    ),
    *_trained(
        "",
        DINOV2,
        APACHE,
        {
            "vit_small_patch14_dinov2.lvd142m": 81.1,
            "vit_small_patch14_reg4_dinov2.lvd142m": 80.9,
            "vit_base_patch14_dinov2.lvd142m": 84.5,
            "vit_base_patch14_reg4_dinov2.lvd142m": 84.6,
            "vit_large_patch14_dinov2.lvd142m": 86.3,
            "vit_large_patch14_reg4_dinov2.lvd142m": 86.7,
        },
    ),
    *_trained(
        "",
        "arXiv:2508.10104",
        "dinov3-license",  # its own: conditions on use and on handing on, trained models included
        {
            "vit_small_patch16_dinov3.lvd1689m": None,
            "vit_small_plus_patch16_dinov3.lvd1689m": None,
            "vit_base_patch16_dinov3.lvd1689m": None,
            "vit_large_patch16_dinov3.lvd1689m": None,
            "convnext_tiny.dinov3_lvd1689m": None,
            "convnext_small.dinov3_lvd1689m": None,
            "convnext_base.dinov3_lvd1689m": None,
            "convnext_large.dinov3_lvd1689m": None,
        },
    ),
)
"""Where there is a choice, `imagenet` is ImageNet-1k alone with a plain recipe."""

SIMCLR_FILE = HubFile("lightly-ai/simclrv1-imagenet1k-resnet50-1x", "resnet50-1x.pth")
"""The authors' SimCLR v1 ResNet-50 as github.com/tonylins/simclr-converter converts it."""


def trained_for(backbone: str, init: str) -> Trained | None:
    """What an initialization means for a backbone; None where the table has nothing."""
    return next((row for row in TRAINED if row.init == init and row.backbone == backbone), None)


def backbones_with(init: str) -> list[str]:
    """The backbones that the table has such weights for."""
    return [row.backbone for row in TRAINED if row.init == init]
