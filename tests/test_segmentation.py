"""Segmentation: targets and loss against plain formulas, masks against torch's and numpy's own interpolation."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tutelage.config import METRICS_OF_TASK, AugmentConfig, DataConfig, EvalConfig, LabelConfig, ModelConfig
from tutelage.data.index import Index
from tutelage.data.loader import evaluation_batches, shown_mask, train_batches
from tutelage.data.masks import MaskCoding, decode_png
from tutelage.models.model import Normalize
from tutelage.tasks.segmentation import SegmentationTask, pixels
from tutelage.tasks.segmentation.measuring import JudgedMask, resized_mask
from tutelage.tasks.task import Task
from tutelage.tasks.views import VIEWS
from tutelage.types import IGNORE, Batch, InputError, Prediction

SMALL = ModelConfig(backbone="test_resnet", max_level=5, pyramid_width=16, head_width=16, head_depth=1, canvas=(64, 64))
ALL_VIEWS = tuple(VIEWS)


def task(classes: int = 3, *, size: int = 0, model: ModelConfig = SMALL) -> SegmentationTask:
    return SegmentationTask(model, EvalConfig(size=size), tuple(f"class {label}" for label in range(classes)))


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(
    sizes: Sequence[tuple[int, int]], canvas: tuple[int, int] = (64, 64), masks: Tensor | None = None
) -> Batch:
    """Gray pictures of original sizes, each resized to fit the canvas, at its top left."""
    matrices, covered = [], []
    for height, width in sizes:
        scale = min(canvas[0] / height, canvas[1] / width)
        covered.append((round(height * scale), round(width * scale)))
        matrices.append(np.diag([covered[-1][1] / width, covered[-1][0] / height, 1.0]))
    return Batch(
        images=torch.full((len(sizes), 1, 3, *canvas), 128, dtype=torch.uint8),
        matrix=torch.from_numpy(np.stack(matrices))[:, None],
        valid=torch.tensor(covered)[:, None],
        image_ids=10 + torch.arange(len(sizes)),
        sizes=torch.tensor(sizes),
        masks=masks,
    )


class Told(nn.Module):
    """A network that answers with given logits, by the size of its input."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = {(4 * each.shape[2], 4 * each.shape[3]): each for each in logits}
        self.normalize = Normalize()

    def raw(self, normalized: Tensor) -> Tensor:
        return self.logits[tuple(normalized.shape[-2:])]


def probability(*values: float, size: int = 16) -> Tensor:
    """Logits (1, K, h, w) of the same probabilities everywhere."""
    return torch.tensor(values).log()[None, :, None, None].expand(1, len(values), size, size)


# Targets and loss


def masks_of(seed: int, images: int = 2, side: int = 64) -> Tensor:
    drawn = torch.randint(5, (images, side, side), generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn > 2, IGNORE, drawn).to(torch.uint8)


def test_targets_are_the_pixels_nearest_to_the_cells_centers() -> None:
    masks = masks_of(0)
    targets = task().assign(batch_of([(64, 64)] * 2, masks=masks))
    assert targets.classes.shape == (2, 16, 16) and targets.classes.dtype == torch.int64
    for row, column in ((0, 0), (3, 15), (15, 7)):
        y, x = 4 * row + 2, 4 * column + 2  # its center is half a pixel beyond the cell's, along both axes
        assert targets.classes[:, row, column].tolist() == masks[:, y, x].tolist()
    assert targets.num_positives.dtype == torch.int64 and targets.num_positives.shape == ()
    assert targets.num_positives.item() == (masks[:, 2::4, 2::4] != IGNORE).sum().item()


def test_targets_learned_by_heart_do_not_move_outlines() -> None:
    moved = []
    for edge in range(20, 40):
        masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
        masks[:, :, edge:] = 1
        batch = batch_of([(64, 64)], masks=masks)
        logits = 20.0 * F.one_hot(task(2).assign(batch).classes, 2).permute(0, 3, 1, 2)
        (prediction,) = task(2).predict(Told(logits), batch)
        assert prediction.mask is not None
        moved.append(64 - int(prediction.mask[30].sum()) - edge)
    assert abs(np.mean(moved)) <= 0.5 and np.abs(moved).max() <= 2


def naive_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cell by cell, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for image, row, column in (classes != IGNORE).nonzero().tolist():
        scores = logits[image, :, row, column].double()
        total = total + scores.exp().sum().log() - scores[classes[image, row, column]]
    return total


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_loss_and_gradient_equal_the_plain_formula(layout: torch.memory_format) -> None:
    batch = batch_of([(64, 64)] * 2, masks=masks_of(1))
    targets = task().assign(batch)
    logits = (2 * noise(2, 3, 16, 16)).contiguous(memory_format=layout).requires_grad_()
    (total,) = task().loss_sums(logits, batch, targets).values()
    expected = naive_loss(logits, targets.classes)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(3 * total, logits)
    (wanted,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(gradient, wanted.to(gradient.dtype), rtol=1e-4, atol=1e-6)
    ignored = (targets.classes == IGNORE)[:, None].expand_as(gradient)
    assert ignored.any() and (gradient[ignored] == 0).all()


def test_loss_by_hand_is_named_and_normalized_by_pixels() -> None:
    masks = torch.full((1, 64, 64), IGNORE, dtype=torch.uint8)
    masks[0, 2, 2], masks[0, 2, 6] = 0, 1
    batch = batch_of([(64, 64)], masks=masks)
    targets = task(2).assign(batch)
    sums = task(2).loss_sums(probability(0.25, 0.75), batch, targets)
    assert list(sums) == ["pixel"] and targets.num_positives.item() == 2
    assert sums["pixel"].item() == pytest.approx(-math.log(0.25) - math.log(0.75))
    assert task().normalizer(torch.tensor([0, 1, 7])).tolist() == [1, 1, 7]


def test_a_batch_without_labels_gives_no_loss_and_no_gradient() -> None:
    batch = batch_of([(64, 64)], masks=torch.full((1, 64, 64), IGNORE, dtype=torch.uint8))
    targets, logits = task().assign(batch), noise(1, 3, 16, 16).requires_grad_()
    loss = task().loss_sums(logits, batch, targets)["pixel"] / task().normalizer(targets.num_positives)
    loss.backward()
    assert loss.item() == 0 and targets.num_positives.item() == 0
    assert logits.grad is not None and (logits.grad == 0).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    batch = batch_of([(64, 64)] * 2, masks=masks_of(2))
    targets, logits = task().assign(batch), noise(2, 3, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total = task().loss_sums(logits, batch, targets)["pixel"]
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(naive_loss(logits, targets.classes).item(), rel=1e-5)


def test_the_loss_compiles_whole() -> None:
    batch = batch_of([(64, 64)] * 2, masks=masks_of(4))
    this, logits = task(), noise(2, 3, 16, 16)

    def total(logits: Tensor) -> Tensor:
        targets = this.assign(batch)
        return this.loss_sums(logits, batch, targets)["pixel"] / this.normalizer(targets.num_positives)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    gradients = [torch.autograd.grad(each(leaf), leaf) for each, leaf in zip((compiled, total), leaves, strict=True)]
    torch.testing.assert_close(*gradients)


# Masks of pixels


def only(predictions: list[Prediction]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    (prediction,) = predictions
    assert prediction.mask is not None and prediction.levels is not None
    return prediction.mask, prediction.levels


def check_against(probabilities: Tensor, mask: NDArray[np.uint8], levels: NDArray[np.uint8]) -> None:
    """Equal to the argmax and the floor of 256ths, but where two classes or two levels are equal up to rounding."""
    highest, label = probabilities.max(dim=0)
    second = probabilities.topk(2, dim=0).values[1]
    clear = (highest - second > 1e-5).numpy()
    assert mask.shape == tuple(label.shape) and clear.mean() > 0.99
    np.testing.assert_array_equal(mask[clear], label.numpy()[clear])
    exact = 256 * highest.numpy()
    off_edge = abs(exact - exact.round()) > 1e-3
    assert off_edge.mean() > 0.9
    np.testing.assert_array_equal(levels[off_edge], np.minimum(exact[off_edge], 255).astype(np.uint8))


def test_masks_of_whole_canvases_are_torchs_bilinear_upsampling() -> None:
    logits = 3 * noise(1, 5, 16, 24)
    found = only(task(5).predict(Told(logits), batch_of([(64, 96)], (64, 96))))
    check_against(F.interpolate(logits, scale_factor=4, mode="bilinear")[0].softmax(0), *found)


def looped_mask(logits: Tensor, size: tuple[int, int], covered: tuple[int, int]) -> Tensor:
    """(K, H, W) probabilities: each pixel's center looked up between the centers of covered cells, in float64."""
    num_classes, rows, columns = logits.shape
    last = [
        sum(4 * cell + 2 < side for cell in range(cells)) - 1
        for side, cells in zip(covered, (rows, columns), strict=True)
    ]
    found = torch.zeros(num_classes, *size, dtype=torch.float64)
    for y, x in np.ndindex(*size):
        on_canvas = (y + 0.5) * covered[0] / size[0], (x + 0.5) * covered[1] / size[1]
        cell = [min(max(place / 4 - 0.5, 0), end) for place, end in zip(on_canvas, last, strict=True)]
        for corner in np.ndindex(2, 2):
            at = [min(int(place) + step, end) for place, step, end in zip(cell, corner, last, strict=True)]
            share = [place % 1 if step else 1 - place % 1 for place, step in zip(cell, corner, strict=True)]
            found[:, y, x] += share[0] * share[1] * logits[:, at[0], at[1]].double()
    return found.softmax(0)


@pytest.mark.parametrize(("size", "long_side"), [((33, 48), 0), ((70, 51), 0), ((60, 90), 40), ((20, 9), 30)])
def test_masks_come_back_in_original_pixels_whatever_the_padding_says(size: tuple[int, int], long_side: int) -> None:
    logits, batch = 3 * noise(1, 4, 16, 16), batch_of([size])
    covered = tuple(batch.valid[0, 0].tolist())
    poisoned = logits.clone()
    poisoned[:, 3, math.ceil(covered[0] / 4) :] = 1e4
    poisoned[:, 3, :, math.ceil(covered[1] / 4) :] = 1e4
    shown = tuple(round(side * long_side / max(size)) for side in size) if long_side else size
    mask, levels = only(task(4, size=long_side).predict(Told(poisoned), batch))
    check_against(looped_mask(logits[0], shown, covered), mask, levels)
    assert not long_side or max(mask.shape) == long_side


def test_predictions_name_their_images_and_sizes() -> None:
    logits = torch.cat([probability(0.9, 0.1), probability(0.2, 0.8)])
    found = task(2, size=20).predict(Told(logits), batch_of([(30, 40), (50, 25)]))
    assert [(each.image_id, each.size) for each in found] == [(10, (30, 40)), (11, (50, 25))]
    assert [each.mask.shape for each in found] == [(15, 20), (20, 10)]
    assert [each.mask.max() for each in found] == [0, 1] and [each.mask.min() for each in found] == [0, 1]


@pytest.mark.parametrize(
    ("highest", "low", "high"),
    [(0.49, 125, 127), (0.499, 127, 127), (0.501, 128, 128), (0.51, 128, 130), (1, 255, 255)],
)
def test_levels_have_an_exact_edge_at_one_half(highest: float, low: int, high: int) -> None:
    rest = (1 - highest) / 2 + 1e-30
    _, levels = only(task().predict(Told(probability(highest, rest, rest)), batch_of([(64, 64)])))
    assert low <= levels.min() and levels.max() <= high
    _, even = only(task(2).predict(Told(torch.zeros(1, 2, 16, 16)), batch_of([(64, 64)])))
    assert (even == 128).all()


@pytest.mark.parametrize("at_once", [1, 1000])
def test_strips_change_nothing_and_bound_the_memory(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = Told(3 * noise(2, 6, 16, 16)), batch_of([(90, 70), (41, 64)])
    label = LabelConfig(views=("identity", "hflip"), size="original")
    whole = task(6).predict(net, batch, label)
    sizes: list[int] = []
    mean = pixels._mean_softmax
    monkeypatch.setattr(pixels, "VALUES_AT_ONCE", {"cpu": at_once})
    monkeypatch.setattr(pixels, "_mean_softmax", lambda *given: sizes.append(mean(*given).numel()) or mean(*given))
    for one, other in zip(whole, task(6).predict(net, batch, label), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.levels, other.levels)
    assert max(sizes) <= max(at_once, 6 * 70)


def test_autocast_does_not_coarsen_probabilities() -> None:
    net, batch = Told(3 * noise(1, 6, 16, 16)), batch_of([(48, 64)])
    plain = only(task(6).predict(net, batch))
    with torch.autocast("cpu", torch.bfloat16):
        found = only(task(6).predict(net, batch))
    np.testing.assert_array_equal(plain, found)


# Views and scales


class Equivariant(nn.Module):
    """What it says of a cell comes from the cell's colors alone, and so turns with the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.seen: list[tuple[int, ...]] = []

    def raw(self, normalized: Tensor) -> Tensor:
        self.seen.append(tuple(normalized.shape[-2:]))
        return 3 * F.avg_pool2d(normalized, 4)


@pytest.mark.parametrize("canvas", [(64, 64), (64, 96)])
@pytest.mark.parametrize("name", ALL_VIEWS)
def test_every_view_comes_back_to_its_place(name: str, canvas: tuple[int, int]) -> None:
    images = torch.randint(256, (1, 1, 3, *canvas), generator=torch.Generator().manual_seed(0))
    batch = Batch(images.to(torch.uint8), *(getattr(batch_of([canvas], canvas), key) for key in FIELDS))
    net = Equivariant()
    plain = only(task().predict(net, batch))
    turned = only(task().predict(net, batch, LabelConfig(views=(name,), size="original")))
    np.testing.assert_array_equal(plain[0], turned[0])
    np.testing.assert_allclose(plain[1].astype(int), turned[1].astype(int), atol=1)
    assert net.seen[1] == (canvas[::-1] if VIEWS[name].transpose else canvas)
    assert len(np.unique(plain[0])) == 3


FIELDS = ("matrix", "valid", "image_ids", "sizes")


def test_scales_are_averaged_as_probabilities_on_the_canvas() -> None:
    parts = [3 * noise(1, 4, side, side, seed=side) for side in (8, 16, 24)]
    found = only(task(4).predict(Told(*parts), batch_of([(200, 100)]), LabelConfig(scales=(0.5, 1.0, 1.5))))
    half = [part[..., : part.shape[-1] // 2] for part in parts]  # the picture covers the left half: 64 x 32
    wide = [F.interpolate(part, size=(64, 32), mode="bilinear")[0].softmax(0) for part in half]
    check_against(torch.stack(wide).mean(0), *found)


def test_the_paper_s_scales_by_hand() -> None:
    net = Told(*(probability(share, 1 - share, size=side) for side, share in ((32, 0.9), (64, 0.3), (96, 0.55))))
    model = SMALL.model_copy(update={"canvas": (256, 256)})
    label = LabelConfig(scales=(0.5, 1.0, 1.5), views=("identity", "hflip"))
    mask, levels = only(task(2, model=model).predict(net, batch_of([(256, 256)], (256, 256)), label))
    assert (mask == 0).all() and (levels == math.floor(256 * (0.9 + 0.3 + 0.55) / 3)).all()


@pytest.mark.parametrize(
    ("changed", "sides"),
    [
        ({"canvas": (512, 512), "max_level": 7, "pyramid": "nas-fpn"}, (256, 384, 512, 640, 768, 896)),
        ({"canvas": (256, 256), "max_level": 7}, (128, 192, 256, 320, 384, 448)),
        ({"canvas": (64, 64)}, (32, 64, 64, 64, 96, 128)),  # 1.5 and 2.5 strides round to 2, 3.5 to 4
    ],
)
def test_scaled_canvases_are_multiples_of_the_stride_that_the_network_needs(
    changed: dict[str, object], sides: tuple[int, ...]
) -> None:
    net, model = Equivariant(), SMALL.model_copy(update=changed)
    batch = batch_of([model.canvas], model.canvas)
    task(model=model).predict(net, batch, LabelConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)))
    assert net.seen == [(side, side) for side in sides]


@pytest.mark.parametrize(("size", "shape"), [("network", (64, 32)), ("original", (200, 100))])
def test_pseudo_masks_are_of_network_or_original_size(size: str, shape: tuple[int, int]) -> None:
    label = LabelConfig(size=size)  # type: ignore[arg-type]
    mask, levels = only(task(2, size=50).predict(Told(probability(0.6, 0.4)), batch_of([(200, 100)]), label))
    assert mask.shape == levels.shape == shape


@pytest.mark.parametrize("label", [{"scales": (0.0,)}, {"views": ()}])
def test_looking_not_at_all_is_refused(label: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at least one of each"):
        task().check_label(LabelConfig(**label))  # type: ignore[arg-type]


# Beside the truth


class ReadsGray(nn.Module):
    """A network that takes a cell's gray for its class: class k is painted 80 k."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()

    def raw(self, normalized: Tensor) -> Tensor:
        std, mean = (part[:, None, None] for part in (self.normalize.std, self.normalize.mean))
        gray = F.avg_pool2d(normalized * std + mean, 4).mean(dim=1)
        return -0.1 * torch.stack([(gray - 80 * label).abs() for label in range(3)], dim=1)


SIZES = ((60, 90), (128, 100), (40, 40))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three pictures painted in the colors of their masks; a strip of each mask is without label."""
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    for row, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 3, (4, 4), dtype=np.uint8)
        mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(80), 3, axis=2)).save(folder / f"{row}.png")
        mask[-7:] = IGNORE
        Image.fromarray(mask).save(folder / f"{row}.mask.png")
    coding = MaskCoding("values", folder, {0: 0, 1: 1, 2: 2, IGNORE: -1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(folder / "cache"))
        return Index.build(
            roots=[folder],
            paths=[f"{row}.png" for row in range(4)],
            class_names=["class 0", "class 1", "class 2"],
            sizes=[*SIZES, SIZES[0]],
            masks=["0.mask.png", "1.mask.png", "2.mask.png", ""],
            coding_of=[0, 0, 0, -1],
            codings=[coding],
        )


def judged_of(this: SegmentationTask, index: Index, net: nn.Module) -> list[JudgedMask]:
    batches = evaluation_batches(
        index, canvas=(64, 64), data=DataConfig(), device_batch_size=2, rows=np.arange(3), workers=0, tolerant=False
    )
    found = [each for batch, _ in batches for each in this.predict(net, batch)]  # type: ignore[arg-type]
    return [this.judge(each, index, DataConfig()) for each in found]


@pytest.mark.parametrize("long_side", [0, 50])
def test_what_is_predicted_is_judged_beside_the_truth(painted: Index, long_side: int) -> None:
    this: Task = task(size=long_side)
    judged = judged_of(task(size=long_side), painted, ReadsGray())
    assert [(one.image_id, one.size) for one in judged] == list(enumerate(SIZES))
    tables = this.tables(judged)
    truth, found = ([decode_png(png) for png in tables[name]["mask"]] for name in ("truth", "predictions"))
    assert [list(table["image_id"]) for table in tables.values()] == [[0, 1, 2]] * 2
    assert [max(mask.shape) for mask in found] == ([long_side] * 3 if long_side else [90, 128, 40])
    confusion = np.zeros((3, 3), np.int64)
    for one, other in zip(truth, found, strict=True):
        np.add.at(confusion, (one[one != IGNORE], other[one != IGNORE]), 1)
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    figures = this.metrics(judged)
    assert figures["miou"] == pytest.approx(iou.mean()) and figures["miou"] > 0.8  # between 0 and 160 it sees 80
    assert figures["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert list(figures["per_class"]) == list(this.class_names)
    assert {*METRICS_OF_TASK["segmentation"], "per_class"} == set(figures)
    assert this.class_metric in figures["per_class"]["class 0"]
    resampled = this.tally(judged).resample(np.ones((1, 3), np.int16))
    assert resampled["miou"][0] == figures["miou"]
    assert resampled["class_iou"][0].tolist() == [one["iou"] for one in figures["per_class"].values()]


def test_truth_without_resizing_is_the_mask_itself(painted: Index) -> None:
    for one in judged_of(task(), painted, ReadsGray()):
        np.testing.assert_array_equal(decode_png(one.truth), shown_mask(painted, one.image_id, DataConfig()))


def test_an_image_without_a_mask_cannot_be_measured_on(painted: Index) -> None:
    prediction = Prediction(3, SIZES[0], mask=np.zeros(SIZES[0], np.uint8), levels=np.zeros(SIZES[0], np.uint8))
    with pytest.raises(InputError, match=r"3\.png: has no mask"):
        task().judge(prediction, painted, DataConfig())


def test_truth_is_resized_to_the_nearest_pixel() -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert resized_mask(mask, (8, 8)) is mask
    small = resized_mask(mask, (2, 4))
    expected = [[mask[int((y + 0.5) * 4), int((x + 0.5) * 2)] for x in range(4)] for y in range(2)]
    assert small.tolist() == expected


def test_a_small_segmenter_learns_pictures_by_heart(painted: Index) -> None:
    torch.manual_seed(0)
    norm = SMALL.norm.model_copy(update={"momentum": 0.2})
    this = task(model=SMALL.model_copy(update={"norm": norm}))
    net = this.build_model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    ((batch,),) = train_batches(
        painted.select(np.arange(3)),
        canvas=(64, 64),
        augment=AugmentConfig(level="none", flip=0, jitter=(1, 1)),
        annotation="masks",
        data=DataConfig(),
        stream="labeled",
        seed=0,
        round=1,
        batch_size=3,
        first_step=0,
        num_steps=1,
        rank=0,
        world_size=1,
        micro_batches=1,
        workers=0,
        cache_megabytes=0,
        pin=False,
    )
    targets = this.assign(batch)
    for _ in range(60):
        sums = this.loss_sums(net(batch.images[:, 0], batch.valid[:, 0]), batch, targets)
        optimizer.zero_grad()
        (sums["pixel"] / this.normalizer(targets.num_positives)).backward()
        optimizer.step()
    figures = this.metrics(judged_of(this, painted, net.eval()))
    assert figures["pixel_accuracy"] > 0.9 and figures["miou"] > 0.8
