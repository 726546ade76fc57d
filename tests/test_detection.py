"""Detection: targets against brute force, losses against hand-computed numbers, decoding, views."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import AnchorConfig, LabelConfig, LossConfig, ModelConfig, PostprocessConfig
from tutelage.models.model import DetectionOutputs, Normalize
from tutelage.ops.boxes import encode, pairwise_ioa, pairwise_iou
from tutelage.tasks.detection import DetectionTask, losses, matching
from tutelage.tasks.detection.losses import focal_sum, huber_sum
from tutelage.tasks.detection.matching import match_anchors
from tutelage.tasks.detection.views import outputs_from
from tutelage.tasks.views import VIEWS, view_of
from tutelage.types import IGNORE_BOX, IGNORE_REGION, Batch, InputError, PaddedBoxes

SMALL = ModelConfig(backbone="resnet10t", max_level=5, pyramid_width=16, head_width=16, head_depth=1, canvas=(64, 64))
ALL_VIEWS = tuple(VIEWS)


def task(model: ModelConfig = SMALL, **postprocess: object) -> DetectionTask:
    return DetectionTask(model, PostprocessConfig(**postprocess), ("cat", "dog", "emu"))


def batch_of(images: Tensor, boxes: PaddedBoxes | None = None, valid: Tensor | None = None) -> Batch:
    """Images (B, 3, H, W) that are their own originals."""
    size = torch.tensor(images.shape[-2:]).expand(len(images), 2)
    matrix = torch.eye(3, dtype=torch.float64).expand(len(images), 1, 3, 3)
    valid = size if valid is None else valid
    return Batch(images[:, None], matrix, valid[:, None], torch.arange(len(images)), size, boxes)


def padded(*images: list[tuple[list[float], int, int]], room: int = 0) -> PaddedBoxes:
    """Boxes (xyxy, label, ignore) of several images."""
    count = max([room, *(len(rows) for rows in images)])
    shape = (len(images), count)
    boxes = PaddedBoxes(
        torch.zeros(*shape, 4),
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.uint8),
        torch.zeros(shape, dtype=torch.bool),
    )
    for image, rows in enumerate(images):
        for number, (xyxy, label, ignore) in enumerate(rows):
            boxes.xyxy[image, number] = torch.tensor(xyxy)
            boxes.labels[image, number] = label
            boxes.ignore[image, number] = ignore
            boxes.valid[image, number] = True
    return boxes


def assigned(boxes: PaddedBoxes, ignored: str = "mask", side: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Matches, their count and the anchors."""
    blank = torch.zeros(len(boxes.labels), 3, side, side, dtype=torch.uint8)
    targets = task().assign(batch_of(blank, boxes), ignored)
    return targets.matched, targets.num_positives, task().anchors((side, side), torch.device("cpu"))


def random_boxes(seed: int, images: int, count: int, side: float) -> PaddedBoxes:
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(images, count, 2, generator=generator) * side * 0.8).round()
    size = (2 + torch.rand(images, count, 2, generator=generator) ** 2 * side * 0.7).round()
    kinds = torch.tensor([0, 0, 0, IGNORE_REGION, IGNORE_BOX])
    return PaddedBoxes(
        torch.cat([corner, corner + size], dim=-1),
        torch.randint(3, (images, count), generator=generator),
        torch.ones(images, count),
        kinds[torch.randint(5, (images, count), generator=generator)].to(torch.uint8),
        torch.rand(images, count, generator=generator) < 0.8,
    )


def looped_match(anchors: Tensor, xyxy: Tensor, normal: Tensor, ignored: Tensor) -> list[int]:
    """One image, anchor by anchor and box by box."""
    iou, ioa = pairwise_iou(xyxy, anchors), pairwise_ioa(anchors, xyxy).T
    result = []
    for anchor in range(len(anchors)):
        rows = [(iou[box, anchor].item(), -box) for box in range(len(xyxy)) if normal[box]]
        overlap, box = max(rows, default=(0.0, 0))
        result.append(-box if overlap >= 0.5 else -1)
    claims = {box: int(iou[box].argmax()) for box in range(len(xyxy)) if iou[box].max() > 0}
    for box in reversed(range(len(xyxy))):
        if normal[box] and box in claims:
            result[claims[box]] = box
    for box, anchor in itertools.product(range(len(xyxy)), range(len(anchors))):
        near = iou[box, anchor] >= 0.5 or claims.get(box) == anchor
        inside = ioa[box, anchor] >= 0.5
        if result[anchor] == -1 and (near if ignored[box] == IGNORE_BOX else inside and ignored[box] == IGNORE_REGION):
            result[anchor] = -2
    return result


@pytest.mark.parametrize("match", [match_anchors, matching._match])  # a few images at a time, as on a CPU, or all
@pytest.mark.parametrize("pairs", [1, 5000, 1 << 22])  # one image at a time, two, all
@pytest.mark.parametrize("seed", range(3))
def test_matching_equals_brute_force(
    seed: int, pairs: int, match: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", {"cpu": pairs})
    boxes = random_boxes(seed, images=5, count=9, side=64)
    boxes.valid[3] = False
    whole = AnchorConfig(octaves=1, aspect_ratios=(1.0, 4.0, 0.25))  # with whole numbers equal overlaps are equal
    anchors = task(SMALL.model_copy(update={"anchors": whole})).anchors((64, 64), torch.device("cpu"))
    normal, ignored = boxes.valid & (boxes.ignore == 0), boxes.ignore * boxes.valid
    matched = match(anchors, boxes.xyxy, normal, ignored)
    assert matched.dtype == torch.int32
    assert {-2, -1} < set(matched.unique().tolist())
    for image in range(5):
        expected = looped_match(anchors, boxes.xyxy[image], normal[image], ignored[image])
        assert matched[image].tolist() == expected


def test_a_box_too_small_for_the_threshold_claims_its_best_anchor() -> None:
    matched, positives, anchors = assigned(padded([([30.0, 30, 34, 34], 1, 0)]))
    assert positives.item() == 1
    overlap = pairwise_iou(torch.tensor([[30.0, 30, 34, 34]]), anchors)[0]
    assert matched[0].argmax() == overlap.argmax() and overlap.max() < 0.5


def test_of_two_boxes_that_claim_one_anchor_the_first_wins() -> None:
    small, same = ([30.0, 30, 34, 34], 1, 0), ([30.0, 30, 34, 34], 2, 0)
    matched, positives, _ = assigned(padded([small, same]))
    assert positives.item() == 1 and matched.max() == 0


def test_a_claim_wins_over_a_higher_overlap() -> None:
    anchor = (4 * 8 + 4) * 9  # level 3, y 4, x 4, the square one: 32 px around (36, 36)
    matched, _, anchors = assigned(padded([([20.0, 20, 52, 51], 0, 0), ([20.0, 20, 52, 52], 1, 0)]))
    assert anchors[anchor].tolist() == [20, 20, 52, 52]
    assert matched[0, anchor] == 0  # both claim it, though the second overlaps it more


def test_a_box_beyond_all_anchors_claims_none() -> None:
    matched, positives, _ = assigned(padded([([5000.0, 5000, 5010, 5010], 1, 0)]))
    assert positives.item() == 0 and (matched == -1).all()


@pytest.mark.parametrize("room", [0, 8])
def test_images_without_boxes_are_background(room: int) -> None:
    boxes = padded([], [], room=room)
    matched, positives, _ = assigned(boxes)
    assert positives.item() == 0 and positives.dtype == torch.int64 and (matched == -1).all()
    sums = task().loss_sums(
        DetectionOutputs(torch.zeros(2, matched.shape[1], 3), torch.ones(2, matched.shape[1], 4)),
        batch_of(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes),
        task().assign(batch_of(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes), "mask"),
    )
    assert sums["box"].item() == 0
    # p = 0.5 everywhere: 0.75 * 0.5^1.5 * ln 2 each
    assert sums["class"].item() == pytest.approx(matched.numel() * 3 * 0.75 * 0.5**1.5 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", [IGNORE_REGION, IGNORE_BOX])
def test_ignored_boxes_are_masked_or_dropped(kind: int) -> None:
    normal, other = ([0.0, 0, 32, 32], 0, 0), ([32.0, 32, 64, 64], 1, kind)
    alone = assigned(padded([normal]))[0]
    masked, positives, anchors = assigned(padded([normal, other]))
    dropped = assigned(padded([normal, other]), "drop")[0]
    assert torch.equal(dropped, alone)
    out = masked[0] == -2
    assert out.any() and positives == (alone >= 0).sum()
    assert torch.equal(masked[0][~out], alone[0][~out])
    region = torch.tensor([[32.0, 32, 64, 64]])
    overlap = pairwise_ioa(anchors, region)[:, 0] if kind == IGNORE_REGION else pairwise_iou(anchors, region)[:, 0]
    assert torch.equal(out, overlap >= 0.5)


def test_positives_inside_an_ignored_region_stay() -> None:
    inside, crowd = ([16.0, 16, 48, 48], 0, 0), ([0.0, 0, 64, 64], 0, IGNORE_REGION)
    alone, with_crowd = assigned(padded([inside]))[0], assigned(padded([inside, crowd]))[0]
    assert torch.equal(alone >= 0, with_crowd >= 0) and (with_crowd == -2).sum() > 100


def test_padding_changes_nothing() -> None:
    rows = [([4.0, 8, 40, 50], 0, 0), ([30.0, 2, 60, 33], 1, 0)]
    assert torch.equal(assigned(padded(rows))[0], assigned(padded(rows, room=8))[0])


def naive_focal(logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """arXiv:1708.02002, eq. 5, written down plainly, in float64."""
    wide = logits.double()
    target = F.one_hot(classes.clamp(min=0), logits.shape[-1]) * (classes >= 0)[..., None]
    p = wide.sigmoid()
    p_t = torch.where(target > 0, p, 1 - p)
    weight = torch.where(target > 0, alpha, 1 - alpha)
    return (-weight * (1 - p_t) ** gamma * p_t.log() * (classes > -2)[..., None]).sum()


@pytest.mark.parametrize("values", [7, 1 << 17])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.5, 0.0), (0.25, 2.0)])
def test_focal_loss_and_gradient_equal_the_plain_formula(
    alpha: float, gamma: float, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "VALUES_AT_ONCE", {"cpu": values})
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 50, 5, generator=generator) * 4).requires_grad_()
    classes = torch.randint(-2, 5, (2, 50), generator=generator)
    total = focal_sum(logits, classes, alpha=alpha, gamma=gamma)
    expected = naive_focal(logits, classes, alpha, gamma)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(3 * total, logits)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert (gradient[classes == -2] == 0).all()


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [-math.log(3), 5.0]]])  # p = 0.5, 0.75; 0.25, ignored anchor
    classes = torch.tensor([[1, -2]])
    # negative at p = 0.5: 0.75 * 0.5^1.5 * ln 2 = 0.183801; positive at p = 0.75: 0.25 * 0.25^1.5 * ln(4/3) = 0.008990
    assert focal_sum(logits, classes, alpha=0.25, gamma=1.5).item() == pytest.approx(0.192791, abs=1e-5)


def test_focal_loss_is_finite_for_extreme_logits_and_exact_in_float64() -> None:
    logits = torch.tensor([[[-200.0, 200.0, 80.0], [200.0, -200.0, -90.0]]], requires_grad=True)
    total = focal_sum(logits, torch.tensor([[1, 1]]), alpha=0.25, gamma=1.5)
    total.backward()
    assert total.item() == pytest.approx(0.75 * (80 + 200) + 0.25 * 200) and logits.grad.isfinite().all()
    double = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    classes = torch.tensor([[0, 1, -1, -2, 2, -1]])
    assert torch.autograd.gradcheck(lambda x: focal_sum(x, classes, alpha=0.25, gamma=1.5), double)


def test_bfloat16_outputs_are_summed_in_float32() -> None:
    logits = torch.full((1, 5000, 20), -4.595, dtype=torch.bfloat16)
    total = focal_sum(logits, torch.full((1, 5000), -1), alpha=0.25, gamma=1.5)
    assert total.dtype == torch.float32
    expected = naive_focal(logits, torch.full((1, 5000), -1), 0.25, 1.5)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_huber_by_hand() -> None:
    deltas = torch.tensor([[[0.05, 0.3, 0.0, -0.1], [9.0, 9, 9, 9]]])
    total = huber_sum(deltas, torch.zeros(1, 2, 4), torch.tensor([[True, False]]), delta=0.1)
    # 0.5 * 0.05^2 + 0.1 * 0.3 - 0.5 * 0.1^2 + 0 + 0.5 * 0.1^2
    assert total.item() == pytest.approx(0.00125 + 0.025 + 0.005)


def test_loss_sums_put_targets_weights_and_constants_together() -> None:
    constants = LossConfig(focal_alpha=0.3, focal_gamma=2.0, huber_delta=0.2, box_weight=40.0)
    this = task(SMALL.model_copy(update={"loss": constants}))
    boxes = padded([([4.0, 8, 40, 50], 2, 0), ([30.0, 2, 60, 33], 1, 0)], [([10.0, 10, 30, 60], 0, IGNORE_BOX)])
    batch = batch_of(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes)
    targets = this.assign(batch, "mask")
    generator = torch.Generator().manual_seed(0)
    count = targets.matched.shape[1]
    outputs = DetectionOutputs(
        torch.randn(2, count, 3, generator=generator), torch.randn(2, count, 4, generator=generator)
    )
    sums = this.loss_sums(outputs, batch, targets)
    classes = targets.matched.long().clone()
    box = 0.0
    anchors = this.anchors((64, 64), torch.device("cpu"))
    for image, anchor in (targets.matched >= 0).nonzero().tolist():
        number = targets.matched[image, anchor]
        classes[image, anchor] = boxes.labels[image, number]
        wanted = encode(boxes.xyxy[image, number], anchors[anchor])
        box += F.huber_loss(outputs.deltas[image, anchor], wanted, reduction="sum", delta=0.2).item()
    assert sums["class"].item() == pytest.approx(naive_focal(outputs.logits, classes, 0.3, 2.0).item(), rel=1e-5)
    assert sums["box"].item() == pytest.approx(10 * box, rel=1e-5)


def test_losses_of_slices_add_up() -> None:
    boxes = random_boxes(0, images=4, count=6, side=64)
    batch = batch_of(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), boxes)
    targets = task().assign(batch, "mask")
    count = targets.matched.shape[1]
    outputs = DetectionOutputs(torch.randn(4, count, 3), torch.randn(4, count, 4))
    whole = task().loss_sums(outputs, batch, targets)
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        parts = PaddedBoxes(*(getattr(boxes, name)[rows] for name in ("xyxy", "labels", "scores", "ignore", "valid")))
        half = batch_of(batch.images[rows, 0], parts)
        halves.append(
            task().loss_sums(DetectionOutputs(*(each[rows] for each in outputs)), half, task().assign(half, "mask"))
        )
    for term in ("class", "box"):
        torch.testing.assert_close(halves[0][term] + halves[1][term], whole[term])


def test_losses_compile_whole() -> None:
    boxes = random_boxes(0, images=2, count=4, side=64)
    batch = batch_of(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes)
    this = task()
    targets = this.assign(batch, "mask")
    count = targets.matched.shape[1]
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(2, count, 3, generator=generator), torch.randn(2, count, 4, generator=generator)

    def total(logits: Tensor, deltas: Tensor) -> Tensor:
        return sum(this.loss_sums(DetectionOutputs(logits, deltas), batch, targets).values())  # type: ignore[return-value]

    def gradients(function: object) -> tuple[Tensor, ...]:
        leaves = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
        return torch.autograd.grad(function(*leaves), leaves)  # type: ignore[operator]

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    for mine, expected in zip(gradients(compiled), gradients(total), strict=True):
        torch.testing.assert_close(mine, expected)


class Told(nn.Module):
    """A network that answers with given raw outputs."""

    def __init__(self, outputs: dict[tuple[int, int], DetectionOutputs]) -> None:
        super().__init__()
        self.outputs = outputs
        self.normalize = Normalize()

    def raw(self, normalized: Tensor) -> DetectionOutputs:
        return self.outputs[tuple(normalized.shape[-2:])]


def told(this: DetectionTask, canvas: tuple[int, int], *found: tuple[list[float], int, float]) -> DetectionOutputs:
    """Raw outputs of one image that decode to these (xyxy, label, score), each on the nearest anchor left."""
    anchors = this.anchors(canvas, torch.device("cpu"))
    used: list[int] = []
    logits, deltas = torch.full((1, len(anchors), 3), -20.0), torch.zeros(1, len(anchors), 4)
    for xyxy, label, score in found:
        anchor = int(
            pairwise_iou(torch.tensor([xyxy]), anchors)[0].index_fill(0, torch.tensor(used, dtype=int), 0).argmax()
        )
        used.append(anchor)
        logits[0, anchor, label] = torch.tensor(score).logit()
        deltas[0, anchor] = encode(torch.tensor(xyxy), anchors[anchor])
    return DetectionOutputs(logits, deltas)


BLANK = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)


def test_predictions_come_back_in_original_pixels() -> None:
    this = task()
    net = Told({(64, 64): told(this, (64, 64), ([8.0, 8, 24, 40], 2, 0.9), ([40.0, 20, 90, 40], 0, 0.3))})
    matrix = torch.tensor([[[[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]]]], dtype=torch.float64)
    valid = torch.tensor([[48, 60]])
    batch = Batch(BLANK[:, None], matrix, valid[:, None], torch.tensor([7]), torch.tensor([[96, 120]]))
    (prediction,) = this.predict(net, batch)
    assert prediction.image_id == 7 and prediction.size == (96, 120)
    assert prediction.boxes.labels.tolist() == [2, 0]
    np.testing.assert_allclose(prediction.boxes.scores, [0.9, 0.3], rtol=1e-5)
    np.testing.assert_allclose(prediction.boxes.xyxy, [[16, 16, 48, 80], [80, 40, 120, 80]], atol=1e-3)


def test_boxes_in_the_padding_and_below_the_floor_are_dropped() -> None:
    this = task(score_floor=0.2)
    outputs = told(
        this, (64, 64), ([4.0, 50, 20, 60], 0, 0.9), ([8.0, 8, 24, 24], 1, 0.19), ([30.0, 8, 50, 24], 1, 0.21)
    )
    batch = batch_of(BLANK, valid=torch.tensor([[48, 64]]))
    (prediction,) = this.predict(Told({(64, 64): outputs}), batch)
    np.testing.assert_allclose(prediction.boxes.xyxy, [[30, 8, 50, 24]], atol=1e-3)


@pytest.mark.parametrize(
    ("nms", "scores"), [("hard", [0.9, 0.7]), ("soft", [0.9, 0.7, 0.8 * math.exp(-(0.8**2) / 0.3)])]
)
def test_hard_and_soft_suppression(nms: str, scores: list[float]) -> None:
    this = task(nms=nms)
    found = ([0.0, 0, 20, 20], 0, 0.9), ([0.0, 0, 20, 16], 0, 0.8), ([0.0, 0, 22, 22], 1, 0.7)
    (prediction,) = this.predict(Told({(64, 64): told(this, (64, 64), *found)}), batch_of(BLANK))
    np.testing.assert_allclose(prediction.boxes.scores, scores, rtol=1e-4)


def test_top_k_and_max_detections_bound_the_number() -> None:
    this = task(score_floor=0.0, nms_iou=1.0, top_k=10, max_detections=1000)
    count = len(this.anchors((64, 64), torch.device("cpu")))
    outputs = DetectionOutputs(torch.randn(1, count, 3), torch.zeros(1, count, 4))
    (prediction,) = this.predict(Told({(64, 64): outputs}), batch_of(BLANK))
    assert np.bincount(prediction.boxes.labels).tolist() == [10, 10, 10]
    fewer = task(score_floor=0.0, nms_iou=1.0, max_detections=7)
    (prediction,) = fewer.predict(Told({(64, 64): outputs}), batch_of(BLANK))
    assert len(prediction.boxes) == 7
    np.testing.assert_allclose(prediction.boxes.scores, outputs.logits.flatten().sigmoid().topk(7).values, rtol=1e-6)


class Equivariant(nn.Module):
    """A detector that turns with its picture: what it says of a cell comes from the cell's color and gradient."""

    def __init__(self, this: DetectionTask) -> None:
        super().__init__()
        self.config, self.normalize = this.model, Normalize()

    def raw(self, normalized: Tensor) -> DetectionOutputs:
        levels = [
            self._level(normalized, 2**level) for level in range(self.config.min_level, self.config.max_level + 1)
        ]
        return DetectionOutputs(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))

    def _level(self, images: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        color = F.avg_pool2d(images, stride)
        left, right = F.avg_pool2d(images, (stride, stride // 2)).sum(1).unflatten(-1, (-1, 2)).unbind(-1)
        top, bottom = F.avg_pool2d(images, (stride // 2, stride)).sum(1).unflatten(-2, (-1, 2)).unbind(-2)
        dx, dy = right - left, bottom - top  # (B, h, w); their signs flip with the picture
        logits, deltas = [], []
        for octave, ratio in itertools.product(range(self.config.anchors.octaves), self.config.anchors.aspect_ratios):
            along = dx.abs() * ratio + dy.abs() / ratio  # wide anchors look along x, tall ones along y
            logits.append(color + along[:, None] - octave)
            deltas.append(torch.stack([dx * ratio, dy / ratio, dx.abs() * ratio, dy.abs() / ratio], dim=1) * 0.3)
        return tuple(torch.stack(each, 1).permute(0, 3, 4, 1, 2).flatten(1, 3) for each in (logits, deltas))  # type: ignore[return-value]


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ALL_VIEWS)
def test_outputs_of_a_view_come_back_to_their_anchors(name: str) -> None:
    this, images = task(), noise(2, 3, 64, 64)
    net = Equivariant(this)
    normalized = net.normalize(images, torch.tensor([[64, 64], [40, 50]]))
    seen = view_of(normalized, VIEWS[name])
    turned = net.raw(seen)
    back = outputs_from(turned, VIEWS[name], (64, 64), (3, 4, 5), SMALL.anchors)
    expected = net.raw(normalized)
    for mine, wanted, raw in zip(back, expected, turned, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
        assert name == "identity" or (raw - wanted).abs().max() > 0.1


def test_views_are_named_after_what_numpy_does() -> None:
    picture = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    turns = {"rot90": 1, "rot180": 2, "rot270": 3}
    for name, times in turns.items():
        assert torch.equal(view_of(picture, VIEWS[name]), torch.rot90(picture, times, (2, 3)))
    assert torch.equal(view_of(picture, VIEWS["hflip"]), picture.flip(3))
    assert torch.equal(view_of(picture, VIEWS["vflip"]), picture.flip(2))
    assert torch.equal(view_of(picture, VIEWS["transpose"]), picture.transpose(2, 3))
    assert torch.equal(view_of(picture, VIEWS["antitranspose"]), torch.rot90(picture, 2, (2, 3)).transpose(2, 3))


@pytest.mark.parametrize(
    ("canvas", "views"), [((64, 64), ALL_VIEWS), ((64, 96), ("identity", "hflip", "vflip", "rot180"))]
)
def test_averaged_views_of_an_equivariant_network_change_nothing(
    canvas: tuple[int, int], views: tuple[str, ...]
) -> None:
    this = task(SMALL.model_copy(update={"canvas": canvas}))
    batch = batch_of(noise(2, 3, *canvas), valid=torch.tensor([canvas, (40, 50)]))
    net = Equivariant(this)
    for one, many in zip(this.predict(net, batch), this.predict(net, batch, LabelConfig(views=views)), strict=True):
        assert len(one.boxes) > 20
        np.testing.assert_allclose(one.boxes.scores, many.boxes.scores, atol=1e-5)
        np.testing.assert_array_equal(one.boxes.labels, many.boxes.labels)
        np.testing.assert_allclose(one.boxes.xyxy, many.boxes.xyxy, atol=1e-2)


def test_raw_outputs_of_views_are_averaged_before_the_sigmoid() -> None:
    this = task()
    outputs = told(this, (64, 64), ([8.0, 8, 24, 24], 0, 0.9))
    (prediction,) = this.predict(Told({(64, 64): outputs}), batch_of(BLANK), LabelConfig(views=("identity", "hflip")))
    # the other view has logit -20 there: (2.197 - 20) / 2 is below the floor
    assert len(prediction.boxes) == 0


def test_boxes_of_all_scales_enter_suppression_together() -> None:
    this = task()
    small, large = ([8.0, 8, 24, 24], 0, 0.6), ([16.0, 16, 48, 48], 0, 0.9)  # the same box, seen at twice the size
    other = ([80.0, 80, 120, 120], 1, 0.5)
    net = Told({(64, 64): told(this, (64, 64), small), (128, 128): told(this, (128, 128), large, other)})
    (prediction,) = this.predict(net, batch_of(BLANK), LabelConfig(scales=(1.0, 2.0)))
    np.testing.assert_allclose(prediction.boxes.xyxy, [[8, 8, 24, 24], [40, 40, 60, 60]], atol=1e-3)
    np.testing.assert_allclose(prediction.boxes.scores, [0.9, 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "label", "message"),
    [
        ({"canvas": (64, 96)}, {"views": ("identity", "rot90")}, "rot90 need a square canvas, this one is 64 x 96"),
        ({"max_level": 7}, {"views": ("identity", "hflip")}, "no multiple of the coarsest stride 128"),
        ({"anchors": AnchorConfig(aspect_ratios=(1.0, 2.0))}, {"views": ("transpose",)}, "need the inverse of each"),
        ({}, {"scales": (0.0,)}, "scales above 0"),
        ({}, {"views": ()}, "at least one of each"),
    ],
)
def test_impossible_views_are_refused(changes: dict[str, object], label: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(SMALL.model_copy(update=changes)).check_label(LabelConfig(**label))


def test_a_small_detector_learns_two_boxes_by_heart() -> None:
    torch.manual_seed(0)
    norm = SMALL.norm.model_copy(update={"momentum": 0.2})
    this = task(SMALL.model_copy(update={"norm": norm, "pyramid_width": 32, "head_width": 32}))
    boxes = padded([([6.0, 8, 40, 44], 2, 0)], [([30.0, 20, 62, 62], 1, 0)])
    images = noise(2, 3, 64, 64)
    images[0, :, 8:44, 6:40], images[1, :, 20:62, 30:62] = 250, 5
    batch, net = batch_of(images, boxes), this.build_model()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    targets = this.assign(batch, "mask")
    for _ in range(30):
        sums = this.loss_sums(net(batch.images[:, 0], batch.valid[:, 0]), batch, targets)
        optimizer.zero_grad()
        (sum(sums.values()) / (targets.num_positives + 1)).backward()  # type: ignore[union-attr]
        optimizer.step()
    predictions = this.predict(net.eval(), batch)
    for prediction, expected, label in zip(predictions, boxes.xyxy[:, 0], (2, 1), strict=True):
        assert prediction.boxes.labels[0] == label and prediction.boxes.scores[0] > 0.5
        best = torch.from_numpy(prediction.boxes.xyxy[:1])
        assert pairwise_iou(best, expected[None]).item() > 0.8
