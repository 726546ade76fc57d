"""The parts of a detector that are not its network, each beside a peer: matching, focal loss, suppression.

- Matching of 640 px anchors with the boxes of a batch: torchvision's `box_iou` and `Matcher` (low-quality matches
  allowed), image by image as its RetinaNet does. Also of a batch of small pictures with one crowded among them.
- Focal loss with its gradient over the anchors of a batch, 80 classes: torchvision's `sigmoid_focal_loss`, summed.
- Suppression of 2 000 boxes of 80 classes: `supervision`'s, by class; torchvision's is what ours calls.

One thread. Aim: at least as fast as the peer in each.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from supervision.detection.utils.iou_and_nms import box_non_max_suppression
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from tutelage.config import AnchorConfig
from tutelage.ops.anchors import make_anchors
from tutelage.ops.nms import hard_nms
from tutelage.tasks.detection.losses import focal_sum
from tutelage.tasks.detection.matching import match_anchors

CANVAS, LEVELS, BATCH, BOXES, CLASSES, DETECTIONS, ROUNDS = (640, 640), range(3, 8), 4, 8, 80, 2000, 7
SMALL, SMALL_LEVELS, CROWD, OTHERS = (256, 256), range(3, 7), 56, 15


def made_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * 500
    return torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 120], dim=1)


def matching(generator: torch.Generator) -> tuple[Callable[[], object], Callable[[], object]]:
    boxes = torch.stack([made_boxes(BOXES, generator) for _ in range(BATCH)])
    return ours_and_the_peers(make_anchors(CANVAS, LEVELS, AnchorConfig()), boxes, torch.full((BATCH,), BOXES))


def matching_beside_a_crowd(generator: torch.Generator) -> tuple[Callable[[], object], Callable[[], object]]:
    boxes = torch.stack([made_boxes(CROWD, generator) / 2.5 for _ in range(1 + OTHERS)])
    counts = torch.cat([torch.tensor([CROWD]), torch.randint(1, 20, (OTHERS,), generator=generator)])
    return ours_and_the_peers(make_anchors(SMALL, SMALL_LEVELS, AnchorConfig()), boxes, counts)


def ours_and_the_peers(
    anchors: Tensor, boxes: Tensor, counts: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    normal = torch.arange(boxes.shape[1]) < counts[:, None]
    ignored = torch.zeros_like(normal, dtype=torch.uint8)
    matcher = Matcher(0.5, 0.5, allow_low_quality_matches=True)
    images = [image[:count] for image, count in zip(boxes, counts.tolist(), strict=True)]
    return (
        lambda: match_anchors(anchors, boxes, normal, ignored),
        lambda: [matcher(box_iou(image, anchors)) for image in images],
    )


def focal_loss(generator: torch.Generator) -> tuple[Callable[[], object], Callable[[], object]]:
    logits = torch.randn(BATCH, 76_725, CLASSES, generator=generator) - 4
    classes = torch.full((BATCH, 76_725), -1)
    classes[:, ::500] = 3
    wanted = torch.zeros_like(logits)
    wanted[:, ::500, 3] = 1

    def ours() -> None:
        focal_sum(logits.requires_grad_(), classes, alpha=0.25, gamma=1.5).backward()

    def peer() -> None:
        sigmoid_focal_loss(logits.requires_grad_(), wanted, alpha=0.25, gamma=1.5, reduction="sum").backward()

    return ours, peer


def suppression(generator: torch.Generator) -> tuple[Callable[[], object], Callable[[], object]]:
    boxes, scores = made_boxes(DETECTIONS, generator), torch.rand(DETECTIONS, generator=generator)
    labels = torch.randint(CLASSES, (DETECTIONS,), generator=generator)
    columns = np.column_stack([boxes.numpy(), scores.numpy(), labels.numpy()])
    return (
        lambda: hard_nms(boxes, scores, labels, iou=0.5, max_detections=100),
        lambda: box_non_max_suppression(columns, iou_threshold=0.5),
    )


def fastest(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for part in (matching, focal_loss, suppression, matching_beside_a_crowd):
        ours, peer = part(generator)
        pairs = [(fastest(ours), fastest(peer)) for _ in range(ROUNDS)][1:]
        own, other = (min(column) for column in zip(*pairs, strict=True))
        print(
            f"{part.__name__.replace('_', ' ')}: {1e3 * own:.1f} ms, peer {1e3 * other:.1f} ms, ratio {other / own:.2f}"
        )


if __name__ == "__main__":
    main()
