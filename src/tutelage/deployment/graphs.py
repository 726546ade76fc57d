"""The networks as they leave: pictures in, boxes or masks out, in plain tensor operations that an exporter can follow.

Legend: B pictures, H x W canvas pixels, A anchors, K classes, h x w cells of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.config import PostprocessConfig
from tutelage.models.model import RetinaNet, Segmenter
from tutelage.ops.anchors import make_anchors
from tutelage.ops.boxes import decode


class DetectorGraph(nn.Module):
    """Boxes and scores of every anchor."""

    anchors: Tensor

    def __init__(self, network: RetinaNet, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("anchors", make_anchors(canvas, network.levels, network.config.anchors))

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, A, 4) in canvas pixels, clipped to the picture, and scores (B, A, K) in [0, 1].

        Args:
            images: (B, H, W, 3) uint8 RGB.
            valid: (B, 2) int64 covered (height, width).
        """
        outputs = self.network(images.permute(0, 3, 1, 2), valid)
        limit = valid[:, None, [1, 0, 1, 0]].float()
        boxes = torch.minimum(decode(outputs.deltas, self.anchors).clamp(min=0), limit)
        return boxes, outputs.logits.sigmoid()


class CandidateGraph(nn.Module):
    """The same with scores of 0 for what does not enter suppression, as `tasks.detection.postprocess.candidates`."""

    def __init__(self, detector: DetectorGraph, postprocess: PostprocessConfig) -> None:
        super().__init__()
        self.detector = detector
        self.postprocess = postprocess

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, A, 4) and scores (B, A, K): 0 below the floor, of empty boxes, and beyond a class's `top_k`."""
        boxes, scores = self.detector(images, valid)
        seen = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1, keepdim=True)
        least: Tensor | float = self.postprocess.score_floor
        if scores.shape[1] > self.postprocess.top_k:
            best = scores.topk(self.postprocess.top_k, dim=1).values[:, -1:]
            least = best.clamp(min=self.postprocess.score_floor)
        return boxes, torch.where(seen & (scores >= least), scores, 0.0)


class LogitsGraph(nn.Module):
    """Logits at the center of every canvas pixel, interpolated as `tasks.segmentation.pixels` does it."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, K, H, W); beyond the picture they repeat its border.

        Args:
            images: (B, H, W, 3) uint8 RGB.
            valid: (B, 2) int64 covered (height, width).
        """
        logits = self.network(images.permute(0, 3, 1, 2), valid)
        rows = interpolation(images.shape[1], logits.shape[2], valid[:, 0])
        columns = interpolation(images.shape[2], logits.shape[3], valid[:, 1])
        wide: Tensor = rows[:, None] @ logits @ columns[:, None].transpose(2, 3)
        return wide


class ClassesGraph(nn.Module):
    """The class of every canvas pixel."""

    def __init__(self, pixels: LogitsGraph) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (B, H, W) uint8 and their confidence (B, H, W) in [0, 1]."""
        confidence, classes = self.pixels(images, valid).softmax(dim=1).max(dim=1)
        return classes.to(torch.uint8), confidence


def interpolation(pixels: int, cells: int, covered: Tensor) -> Tensor:
    """Weights (B, pixels, cells) of linear interpolation from the centers of cells to those of pixels.

    Cells whose center lies beyond `covered` (B,), in the padding, have no say.
    """
    scale = cells / pixels
    last = ((covered * scale - 0.5).ceil() - 1).clamp(min=0)
    centers = (torch.arange(pixels, device=covered.device) + 0.5) * scale - 0.5
    places = torch.minimum(centers.clamp(min=0), last[:, None])
    distance = places[..., None] - torch.arange(cells, device=covered.device)
    return (1 - distance.abs()).clamp(min=0)
