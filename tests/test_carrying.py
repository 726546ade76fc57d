"""What a teacher sees in one view is carried over exactly to another, and images of no use give their places up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.tiny import annotation
from tests.toy_online import spoiled_pool
from tutelage.augment.policies import strong_plan, weak_plan
from tutelage.config import AugmentConfig, DataConfig, ModelConfig, PostprocessConfig, PseudoConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.loader import pool_pair_batches
from tutelage.data.pseudo.carrying import carried, weak_views
from tutelage.data.readers import open_index
from tutelage.models.model import DetectionOutputs
from tutelage.tasks.detection import DetectionTask
from tutelage.types import IGNORE, IGNORE_BOX, IGNORE_REGION, Batch, Boxes, InputError, Prediction

S4 = AugmentConfig(level="s4")
LARGE_S4 = AugmentConfig(level="s4", jitter=(0.9, 1.6))
SIZE, WIDE = (90, 120), (64, 96)  # of an original, of its canvas
NAMES = ("a", "b", "c")
Floats = NDArray[np.float64]


def pair_of_views(count: int, config: AugmentConfig = S4, size: tuple[int, int] = SIZE) -> Batch:
    """Both views of `count` images as the loader lays them out, their pixels left black."""
    matrices, valid = [], []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        plans = [draw(config, rng, size, WIDE) for draw in (strong_plan, weak_plan)]
        matrices.append([plan.matrix for plan in plans])
        valid.append([plan.valid for plan in plans])
    return Batch(
        images=torch.zeros(count, 2, 3, *WIDE, dtype=torch.uint8),
        matrix=torch.tensor(np.array(matrices)),
        valid=torch.tensor(valid),
        image_ids=torch.arange(count),
        sizes=torch.tensor([size] * count),
    )


def moved(matrix: Floats, points: Any) -> Floats:
    """Points (n, 2) one by one, in homogeneous coordinates."""
    return np.array([(matrix @ [x, y, 1.0])[:2] for x, y in points])


def clipped(polygon: Floats, size: Sequence[float]) -> Floats:
    """What of a convex polygon lies in (0, 0, width, height): one side after the other (Sutherland and Hodgman)."""
    points = [tuple(point) for point in polygon]
    for axis, limit, sign in ((0, 0.0, 1), (1, 0.0, 1), (0, size[1], -1), (1, size[0], -1)):
        kept = []
        for one, two in zip(points, points[1:] + points[:1], strict=True):
            inside, following = (sign * (point[axis] - limit) >= 0 for point in (one, two))
            if inside:
                kept.append(one)
            if inside != following:
                share = (limit - one[axis]) / (two[axis] - one[axis])
                kept.append(tuple(a + share * (b - a) for a, b in zip(one, two, strict=True)))
        points = kept
    return np.array(points).reshape(-1, 2)


class OneAnchor(nn.Module):
    """A detector that is sure of one anchor of each image."""

    def __init__(self, chosen: Tensor, num_anchors: int) -> None:
        super().__init__()
        self.chosen, self.num_anchors = chosen, num_anchors

    def normalize(self, images: Tensor, valid: Tensor) -> Tensor:
        return images.float()

    def raw(self, normalized: Tensor) -> DetectionOutputs:
        logits = torch.full((len(normalized), self.num_anchors, len(NAMES)), -20.0)
        logits[torch.arange(len(normalized)), self.chosen, 1] = 3.0
        return DetectionOutputs(logits, torch.zeros(len(normalized), self.num_anchors, 4))


def test_boxes_of_the_weak_view_are_carried_over_as_their_corners_say() -> None:
    network = ModelConfig(backbone="test_resnet", canvas=WIDE, max_level=5, pyramid_width=8, head_width=8)
    task = DetectionTask(network, PostprocessConfig(), NAMES)
    anchors = task.anchors(WIDE, torch.device("cpu"))
    batch, seen = pair_of_views(40), 0
    chosen = torch.from_numpy(np.random.default_rng(0).integers(0, len(anchors), 40))
    predictions = task.predict(OneAnchor(chosen, len(anchors)), weak_views(batch))  # type: ignore[arg-type]
    boxes = carried(predictions, batch, "boxes", np.full(3, 0.5, np.float32), PseudoConfig()).boxes
    assert boxes is not None
    for row in range(40):
        strong, weak = batch.matrix[row].numpy()
        x1, y1, x2, y2 = np.clip(anchors[chosen[row]].tolist(), 0, np.array(batch.valid[row, 1].tolist() * 2)[::-1])
        corners = moved(strong @ np.linalg.inv(weak), [(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
        shown = clipped(corners, batch.valid[row, 0].tolist())
        area = len(shown) and (shown.max(0) - shown.min(0)).min() > 1e-2 and min(x2 - x1, y2 - y1) > 0
        assert int(boxes.valid[row].sum()) == int(bool(area))
        if area:
            seen += 1
            wanted = np.concatenate([shown.min(0), shown.max(0)])
            np.testing.assert_allclose(boxes.xyxy[row, 0].numpy(), wanted, atol=1e-3)
            assert boxes.labels[row, 0] == 1 and boxes.scores[row, 0] == pytest.approx(torch.tensor(3.0).sigmoid())
    assert 15 < seen < 40


def test_masks_of_the_weak_view_are_carried_over_pixel_by_pixel() -> None:
    batch, rng, right, compared = pair_of_views(3, LARGE_S4), np.random.default_rng(1), 0, 0
    predictions = []
    for row, (height, width) in enumerate(batch.valid[:, 1].tolist()):
        mask, levels = (rng.integers(0, high, (height, width), dtype=np.uint8) for high in (3, 256))
        predictions.append(Prediction(row, SIZE, mask=mask, levels=levels))
    thresholds = np.array([0.25, 0.5, 0.75], np.float32)
    masks = carried(predictions, batch, "masks", thresholds, PseudoConfig()).masks
    assert masks is not None
    for row, prediction in enumerate(predictions):
        strong, weak = batch.matrix[row].numpy()
        height, width = batch.valid[row, 1].tolist()
        back = np.linalg.inv(strong @ np.linalg.inv(weak))
        for y, x in np.ndindex(*WIDE):
            u, v = moved(back, [(x + 0.5, y + 0.5)])[0]
            near = [abs(place - round(place)) < 0.02 for place in (u, v)]
            outside = u < 0 or v < 0 or u > width or v > height or y >= batch.valid[row, 0, 0]
            if any(near) or min(abs(u), abs(v), abs(u - width), abs(v - height)) < 0.6:  # rounding; half-covered edges
                continue
            compared += 1
            wanted = IGNORE
            if not outside:
                label = prediction.mask[int(v), int(u)]  # type: ignore[index]
                wanted = label if prediction.levels[int(v), int(u)] / 256 >= thresholds[label] else IGNORE  # type: ignore[index]
            right += int(masks[row, y, x] == wanted)
    assert compared > 12_000 and right == compared
    assert 0.2 < float((masks == IGNORE).float().mean()) < 0.9


def test_thresholds_by_class_unsure_boxes_and_empty_images() -> None:
    batch = pair_of_views(2, AugmentConfig(level="none"), size=WIDE)
    some = Boxes.build([[8, 8, 24, 24], [40, 8, 60, 30], [8, 30, 30, 60]], [0, 1, 1], [0.6, 0.6, 0.9])
    none = Boxes.build([[8, 8, 24, 24]], [1], [0.5])
    predictions = [Prediction(0, WIDE, some), Prediction(1, WIDE, none)]
    limits = np.array([0.5, 0.8], np.float32)

    def targets(**options: Any) -> list[list[tuple[list[float], int]]]:
        boxes = carried(predictions, batch, "boxes", limits, PseudoConfig(**options)).boxes
        assert boxes is not None
        rows = [zip(boxes.xyxy[row][known].tolist(), boxes.ignore[row][known].tolist(), strict=True)
                for row, known in enumerate(boxes.valid)]  # fmt: skip
        return [list(row) for row in rows]

    sure = [([8, 8, 24, 24], 0), ([8, 30, 30, 60], 0)]
    assert targets() == [sure, []]
    excused = [sure[0], ([40, 8, 60, 30], IGNORE_BOX), sure[1]]
    assert targets(unsure="ignore") == [excused, [([8, 8, 24, 24], IGNORE_BOX)]]
    (first, ((_, ignored),)) = targets(empty="drop")
    assert first == sure and ignored == IGNORE_REGION
    task = DetectionTask(ModelConfig(backbone="test_resnet", canvas=WIDE), PostprocessConfig(), NAMES)
    dropped = carried(predictions, batch, "boxes", limits, PseudoConfig(empty="drop"))
    matched = task.assign(dropped, "mask").matched
    assert (matched[1] == -2).all() and (matched[0] == -1).any(), "no anchor of the empty image is trained on"


@pytest.mark.parametrize("level", ["none", "s1", "s3", "s4"])
def test_the_weak_view_shows_the_whole_image_unturned_and_in_its_colors(level: str) -> None:
    flips = 0
    for seed in range(200):
        plan = weak_plan(AugmentConfig.model_validate({"level": level}), np.random.default_rng(seed), SIZE, WIDE)
        x, y = moved(plan.matrix, [(0, 0), (SIZE[1], 0), (0, SIZE[0]), (SIZE[1], SIZE[0])]).T
        assert min(x.min(), y.min()) > -1e-9
        np.testing.assert_allclose([y.max(), x.max()], plan.valid)
        assert not plan.canvas_ops and not plan.source_ops and not plan.matrix[[0, 1], [1, 0]].any()
        assert 0.88 < max(plan.valid[0] / WIDE[0], plan.valid[1] / WIDE[1]) <= 1
        flips += plan.matrix[0, 0] < 0
    assert (flips == 0) if level == "none" else 70 < flips < 130


def pool_stream(pool: Path, held_out: HashBook | None, **changed: Any) -> list[Batch]:
    options: dict[str, Any] = {
        "stream": "second", "seed": 1, "round": 1, "batch_size": 4, "first_step": 0, "num_steps": 5, "rank": 0,
        "world_size": 1, "micro_batches": 1, "workers": 0, "cache_megabytes": 0, "pin": False, **changed,
    }  # fmt: skip
    index = open_index(pool, DataConfig(), unlabeled=True)
    how = {"data": DataConfig(), "canvas": (64, 64), "augment": S4, "annotation": None, "held_out": held_out}
    return [batch for step in pool_pair_batches(index, **how, **options) for batch in step]


def test_images_of_no_use_give_their_places_to_others_however_they_are_loaded(scenes: Path, tmp_path: Path) -> None:
    pool = spoiled_pool(scenes, tmp_path / "pool")
    book = HashBook.build(open_index(annotation(scenes, "test"), DataConfig()), DataConfig())
    whole = pool_stream(pool, book)
    ids = torch.cat([batch.image_ids for batch in whole])
    assert not {3, 7} & set(ids.tolist()) and len(ids) == 20
    passed_over = torch.cat([batch.passed_over for batch in whole if batch.passed_over is not None])
    assert passed_over.sum(0).tolist() == [2, 2], "two epochs: each met both"
    assert 7 in torch.cat([batch.image_ids for batch in pool_stream(pool, None)]).tolist()
    assert all(batch.boxes is None and batch.masks is None and batch.images.shape[1] == 2 for batch in whole)
    for changed in ({"workers": 1, "cache_megabytes": 64}, {"first_step": 3}):
        again = pool_stream(pool, book, **changed)
        for one, other in zip(again, whole[-len(again) :], strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.matrix, other.matrix)
    for path in pool.iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(InputError, match=r"--unlabeled: of 10 images .* 10 cannot be read and 0 are held out"):
        pool_stream(pool, book)
