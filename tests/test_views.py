"""SimCLR's views: operations against torchvision, draws against the published numbers, two views of one decode."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from PIL import Image

from tutelage.augment.apply import apply
from tutelage.augment.ops import run_canvas_ops
from tutelage.augment.plan import ColorOperation
from tutelage.augment.policies import simclr_plan
from tutelage.config import DataConfig, PretrainConfig, SimCLRConfig
from tutelage.data.images import decode
from tutelage.data.index import Index
from tutelage.data.loader import sample_rng, view_batches
from tutelage.data.loader.pictures import Pictures
from tutelage.ops import affine
from tutelage.types import Batch

SIZE = (120, 160)


def photograph(seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Shades of all hues, some gray and some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    coarse[0, :2] = [[90], [200]]
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255), np.uint8)


REFERENCES = {
    "Brightness": (F.adjust_brightness, [0.0, 0.2, 0.9, 1.3, 1.8]),
    "Contrast": (F.adjust_contrast, [0.0, 0.2, 0.9, 1.3, 1.8]),
    "Color": (F.adjust_saturation, [0.0, 0.2, 0.9, 1.3, 1.8]),
    "Hue": (F.adjust_hue, [-0.5, -0.2, -0.07, 0.0, 0.03, 0.2, 0.5]),
    "GaussianBlur": (lambda image, sigma: F.gaussian_blur(image, [13, 13], [sigma, sigma]), [0.1, 0.5, 1.2, 2.0]),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_operations_equal_torchvision(name: str, seed: int) -> None:
    pixels = photograph(seed)
    reference, amounts = REFERENCES[name]
    for amount in amounts:
        expected = reference(torch.from_numpy(pixels).permute(2, 0, 1) / 255, amount).permute(1, 2, 0).numpy() * 255
        result = run_canvas_ops(pixels.copy(), [ColorOperation(name, amount)], None)
        # two roundings, of the mean and of the value, meet in contrast
        assert np.abs(result - expected).max() <= (1.5 if name == "Contrast" else 1.0), amount


def test_no_saturation_is_the_gray_image() -> None:
    pixels = photograph()
    gray = F.rgb_to_grayscale(torch.from_numpy(pixels).permute(2, 0, 1), 3).permute(1, 2, 0).numpy()
    result = run_canvas_ops(pixels.copy(), [ColorOperation("Color", 0.0)], None)
    assert np.abs(result.astype(int) - gray).max() <= 1
    assert np.ptp(result, axis=2).max() == 0


def test_the_kernel_of_the_blur_follows_the_height() -> None:
    dot = np.zeros((61, 61, 3), np.uint8)
    dot[30, 30] = 255
    reached = run_canvas_ops(dot.copy(), [ColorOperation("GaussianBlur", 2.0)], None)[..., 0] > 0
    assert np.flatnonzero(reached[30]).tolist() == list(range(27, 34))  # 61 // 10 = 6, that is 3 to each side
    small = dot[21:40, 21:40].copy()
    np.testing.assert_array_equal(run_canvas_ops(small.copy(), [ColorOperation("GaussianBlur", 2.0)], None), small)


def test_draws_follow_the_published_numbers() -> None:
    pretrain = PretrainConfig(size=96)
    plans = [simclr_plan(pretrain, np.random.default_rng(seed), SIZE) for seed in range(2000)]
    jitters = [[op for op in plan.drawn if op[0] != "GaussianBlur" and op != ("Color", 0.0)] for plan in plans]
    jittered = [jitter for jitter in jitters if jitter]
    assert len(jittered) / 2000 == pytest.approx(0.8, abs=0.03)
    assert sum(("Color", 0.0) in plan.drawn for plan in plans) / 2000 == pytest.approx(0.2, abs=0.03)
    blurs = [amount for plan in plans for name, amount in plan.drawn if name == "GaussianBlur"]
    assert len(blurs) / 2000 == pytest.approx(0.5, abs=0.035)
    assert 0.1 <= min(blurs) < 0.12 and 1.98 < max(blurs) <= 2.0
    orders = Counter(tuple(name for name, _ in jitter) for jitter in jittered)
    assert len(orders) == 24 and all(set(order) == {"Brightness", "Contrast", "Color", "Hue"} for order in orders)
    assert all(count / len(jittered) == pytest.approx(1 / 24, abs=0.025) for count in orders.values())
    for name, low, high in (("Brightness", 0.2, 1.8), ("Contrast", 0.2, 1.8), ("Color", 0.2, 1.8), ("Hue", -0.2, 0.2)):
        amounts = np.array([dict(jitter)[name] for jitter in jittered])
        assert low <= amounts.min() < low + 0.02 and high - 0.02 < amounts.max() <= high
        assert amounts.mean() == pytest.approx((low + high) / 2, abs=0.05)


def test_strength_scales_the_jitter_and_gray_and_blur_come_last() -> None:
    pretrain = PretrainConfig(size=96, simclr=SimCLRConfig(color_strength=0.5, blur=1.0))
    plans = [simclr_plan(pretrain, np.random.default_rng(seed), SIZE) for seed in range(300)]
    hues = [amount for plan in plans for name, amount in plan.drawn if name == "Hue"]
    assert 0.09 < max(np.abs(hues)) <= 0.1
    assert all(plan.drawn[-1][0] == "GaussianBlur" for plan in plans)
    assert all(plan.drawn[-2] == ("Color", 0.0) for plan in plans if ("Color", 0.0) in plan.drawn)
    strong = PretrainConfig(size=96, simclr=SimCLRConfig(color_strength=2.0, blur=0.0))
    drawn = [simclr_plan(strong, np.random.default_rng(seed), SIZE).drawn for seed in range(100)]
    assert min(amount for each in drawn for name, amount in each if name == "Brightness") >= 0
    assert "GaussianBlur" not in {name for each in drawn for name, _ in each}


def test_views_are_crops_of_8_percent_or_more_and_half_are_flipped() -> None:
    pretrain = PretrainConfig(size=96)
    matrices = [simclr_plan(pretrain, np.random.default_rng(seed), SIZE).matrix for seed in range(600)]
    areas = [1 / abs(np.linalg.det(matrix)) * 96 * 96 / (SIZE[0] * SIZE[1]) for matrix in matrices]
    assert 0.07 < min(areas) < 0.1 and 0.95 < max(areas) <= 1
    assert np.mean([matrix[0, 0] < 0 for matrix in matrices]) == pytest.approx(0.5, abs=0.06)
    region = affine.transform_points(affine.inverse(matrices[0]), np.array([[0.0, 0], [96, 96]]))
    assert (region >= -1e-6).all() and (region <= np.array(SIZE[::-1]) + 1e-6).all()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Seven JPEG images without labels."""
    folder = tmp_path_factory.mktemp("pool")
    for row in range(7):
        Image.fromarray(photograph(row, (140, 150 + 9 * row))).save(folder / f"{row}.jpg", quality=95)
    return Index.build(roots=[folder], paths=[f"{row}.jpg" for row in range(7)], class_names=[])


def batches(index: Index, **changed: int) -> list[Batch]:
    options = {"first_step": 0, "num_steps": 3, "workers": 0, "micro_batches": 1, "cache_megabytes": 0, **changed}
    stream = view_batches(
        index,
        data=DataConfig(),
        pretrain=PretrainConfig(size=48),
        stream="images",
        seed=3,
        round=0,
        batch_size=4,
        rank=0,
        world_size=1,
        pin=False,
        **options,
    )
    return [batch for step in stream for batch in step]


def test_batches_hold_two_different_views(pool: Index) -> None:
    found = batches(pool)
    assert len(found) == 3
    for batch in found:
        assert batch.images.shape == (4, 2, 3, 48, 48) and batch.images.dtype == torch.uint8
        assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert batch.matrix.shape == (4, 2, 3, 3) and batch.valid.tolist() == [[[48, 48]] * 2] * 4
        assert batch.labels is None and batch.boxes is None and batch.masks is None
        assert not torch.equal(batch.images[:, 0], batch.images[:, 1])
        assert (batch.matrix[:, 0] != batch.matrix[:, 1]).any(-1).any(-1).all()


def test_views_do_not_depend_on_how_they_are_loaded(pool: Index) -> None:
    pixels = torch.cat([batch.images for batch in batches(pool)])
    assert torch.equal(pixels, torch.cat([batch.images for batch in batches(pool, workers=2)]))
    assert torch.equal(pixels, torch.cat([batch.images for batch in batches(pool, micro_batches=2)]))
    assert torch.equal(pixels, torch.cat([batch.images for batch in batches(pool, cache_megabytes=64)]))
    assert torch.equal(pixels[8:], torch.cat([batch.images for batch in batches(pool, first_step=2)]))


def test_an_image_is_decoded_once_for_both_views(pool: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[float] = []

    def counted(path: Path, data: DataConfig, needed_scale: float = 1.0) -> object:
        decoded.append(needed_scale)
        return decode(path, data, needed_scale=needed_scale)

    monkeypatch.setattr("tutelage.data.loader.pictures.decode", counted)
    (batch,) = batches(pool, num_steps=1)
    assert len(decoded) == 4
    for row, image, views, scale in zip(batch.image_ids.tolist(), range(4), batch.images, decoded, strict=True):
        rng = sample_rng(3, 0, "images", 0, row)
        size = Pictures(pool, DataConfig()).info(row).shown_size
        plans = [simclr_plan(PretrainConfig(size=48), rng, size) for _ in range(2)]
        assert scale >= max(plan.min_scale for plan in plans) or scale == 1
        pixels = decode(pool.path(row), DataConfig(), needed_scale=scale).pixels
        for view, plan in zip(views, plans, strict=True):
            np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), apply(plan, pixels, size).pixels, str(image))
