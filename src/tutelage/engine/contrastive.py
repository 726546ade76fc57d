"""SimCLR: what a network is trained for when images have no labels (arXiv:2002.05709).

Two views of an image are to have embeddings that are more alike than those of any other image of the batch, over all
devices. Two figures say how the embeddings lie (arXiv:2005.10242): `alignment`, the mean squared distance of an
image's two views, and `uniformity`, log mean exp(-2 * squared distance) over pairs of images.

Legend: B images of a device, A = 2 B anchors (rows 2 i and 2 i + 1 are the views of image i), M embeddings of all
devices, D their length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from tutelage.engine.objectives import Objective, Sums
from tutelage.types import Batch

UNIFORMITY_IMAGES = 512  # whose pairs are enough to see how embeddings lie
COLLAPSED = -1.75
"""Uniformity above which embeddings have collapsed: all equal 0, at two opposite points -0.69, evenly on a circle
-1.57; on a sphere of three dimensions -2.08, of many -4."""


class Anchors(NamedTuple):
    """Views that are told from all others."""

    num_positives: Tensor  # () int64: every anchor has one positive


class SimCLR(Objective):
    """Images alone, in two views each, which pass the network as one batch.

    The contrast is over all devices, but not over micro-batches, which would each see fewer images.
    """

    streams = ("images",)

    def __init__(self, model: nn.Module, temperature: float) -> None:
        nn.Module.__init__(self)  # there is no task: nothing is labeled
        self.model = model
        self.temperature = temperature

    @torch.no_grad()
    def prepare(self, batches: Mapping[str, Batch], ema: nn.Module | None = None) -> dict[str, Anchors]:
        """The number of anchors."""
        images = batches["images"].images
        return {"images": Anchors(torch.tensor(2 * len(images), device=images.device))}

    def forward(self, batches: Mapping[str, Batch], targets: Mapping[str, Anchors]) -> Sums:
        """Sums over this device's anchors: the contrast, and the two figures."""
        batch = batches["images"]
        embeddings = self.model(batch.images.flatten(0, 1), batch.valid.flatten(0, 1))
        with torch.autocast(embeddings.device.type, enabled=False):
            return {"images": contrast(embeddings, self.temperature)}

    def total(self, sums: Sums, counts: Tensor) -> Tensor:
        """The mean contrast over all anchors."""
        return sums["images"]["contrast"] / counts[0]

    def report(self, sums: Sums, counts: Tensor) -> dict[str, Tensor]:
        """The loss and both figures."""
        spread = sums["images"]["spread"] / counts[0]
        alignment = sums["images"]["distance"] / counts[0]
        return {"loss": self.total(sums, counts), "images_alignment": alignment, "images_uniformity": spread.log()}

    def warning(self, figures: Mapping[str, float]) -> str | None:
        """What is wrong where embeddings have collapsed."""
        alignment, uniformity = figures["images_alignment"], figures["images_uniformity"]
        if uniformity < COLLAPSED:
            return None
        return (
            f"the embeddings of different images are almost the same (uniformity {uniformity:.2f}, alignment "
            f"{alignment:.2g}; all equal: 0 and 0, well spread: about -4): the network tells images apart by two "
            "directions at most. Lower train.lr, raise train.batch_size, or change pretrain.simclr.temperature "
            "(0.1 to 0.5)."
        )


def contrast(embeddings: Tensor, temperature: float) -> dict[str, Tensor]:
    """NT-Xent (arXiv:2002.05709, eq. 1) of this device's embeddings (A, D) against those of all devices, as sums.

    Returns:
        `contrast`, the loss summed over anchors; `distance`, squared, of an anchor and its positive; `spread`, the mean
        of exp(-2 * squared distance) over pairs of images, once for each anchor.
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    anchors = F.normalize(embeddings.to(dtype), eps=1e-6)  # 1e-6: the SimCLR code's 1e-12, of the squared length
    others, first = _of_all_devices(anchors)
    logits = (anchors / temperature) @ others.T  # (A, M)
    with torch.no_grad():  # an anchor's share of itself is 0, and so is its gradient
        logits.diagonal(first).fill_(-torch.inf)
    numbers = torch.arange(len(anchors), device=anchors.device)
    loss = F.cross_entropy(logits, first + (numbers ^ 1), reduction="sum")
    with torch.no_grad():
        distance = (anchors[::2] - anchors[1::2]).square().sum() * 2
        spread = _spread(others[: 2 * UNIFORMITY_IMAGES : 2]) * len(anchors)
    return {"contrast": loss, "distance": distance, "spread": spread}


def _spread(points: Tensor) -> Tensor:
    """Mean of exp(-2 * squared distance) over all pairs of points (N, D) of length 1, ()."""
    nearness = (4 * (points @ points.T - 1)).exp().fill_diagonal_(0)
    return nearness.sum() / (len(points) * (len(points) - 1))


def _of_all_devices(anchors: Tensor) -> tuple[Tensor, int]:
    """The embeddings (M, D) of all devices, and the row where this device's begin.

    Gradients pass the gather: the anchors of the other devices also move this device's embeddings. A backward pass of
    every device's part of a sum then gives each device the gradient of the whole sum by its own embeddings.
    """
    if not distributed.is_initialized():
        return anchors, 0
    return torch.cat(all_gather(anchors)), distributed.get_rank() * len(anchors)  # type: ignore[no-untyped-call]
