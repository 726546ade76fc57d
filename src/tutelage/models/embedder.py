"""The network of contrastive pre-training: a backbone and a projection that is thrown away after it.

Sources: arXiv:2002.05709, sec. 2.1 and 4.2 (two layers); arXiv:2006.10029, sec. 2 (three); SimCLR code, model_util.py.
Legend: B images, H x W canvas pixels, C pooled features, D length of an embedding.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.model import Normalize, backbone_of, pooled


class Embedder(nn.Module):
    """Backbone, global average pool and a projection of `layers` linear layers, each with batch-norm.

    `num_classes` is the length of an embedding, by which model folders know it.
    """

    def __init__(self, config: ModelConfig, num_classes: int, layers: int) -> None:
        super().__init__()
        self.kind = f"embedder-{layers}"
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize()
        self.backbone = backbone_of(config)
        width = self.backbone.channels[-1]
        self.projection = _projection([*[width] * layers, num_classes])

    def features(self, images: Tensor, valid: Tensor) -> Tensor:
        """Pooled features (B, C) for uint8 images (B, 3, H, W) that cover `valid` (B, 2) = (height, width)."""
        return pooled(self.backbone(self.normalize(images, valid)))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Embeddings (B, D), of any length, for the same."""
        embeddings: Tensor = self.projection(self.features(images, valid))
        return embeddings


def _projection(widths: list[int]) -> nn.Sequential:
    """Linear layers between `widths`, each with batch-norm (torch's constants are SimCLR's), and ReLU between them."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        linear, norm = nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer)
        nn.init.normal_(linear.weight, std=0.01)
        layers += [linear, norm, nn.ReLU(inplace=True)]
    norm.bias.requires_grad_(False)  # the last one has no shift: it stays 0
    return nn.Sequential(*layers[:-1])
