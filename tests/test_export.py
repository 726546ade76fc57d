"""Exported models give what PyTorch gives, on real pictures, for any number of them; refusals and timing."""

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import tutelage
from tests.tiny import TINY
from tutelage.cli import main
from tutelage.config import DataConfig, load_config
from tutelage.data.loader import collate
from tutelage.deployment.graphs import interpolation
from tutelage.deployment.onnx_files import OnnxModel
from tutelage.deployment.pictures import sample_of
from tutelage.deployment.standalone import letterbox
from tutelage.deployment.timing import timed
from tutelage.files import read_json
from tutelage.models.init import load_model, save_model
from tutelage.models.model import RetinaNet, Segmenter
from tutelage.ops.anchors import make_anchors
from tutelage.ops.boxes import clip_boxes, decode
from tutelage.tasks.detection.postprocess import Detections, candidates, suppress
from tutelage.tasks.segmentation.pixels import Grid, classify
from tutelage.tasks.table import build_task
from tutelage.types import InputError

pytest.importorskip("onnxruntime")
CANVAS = (128, 256)
NAMES = ("one", "two", "three")
SHAPE = {
    "fpn": ("model.pyramid=fpn", "model.max_level=6"),
    "nas-fpn": ("model.pyramid=nas-fpn", "model.max_level=7", "model.pyramid_repeats=1"),
}
REAL = {"detection": "bccd", "segmentation": "dubai_aerial"}
Images = NDArray[np.uint8]


def batch_of(real_data: Path, task: str) -> tuple[Images, NDArray[np.int64]]:
    """Five real pictures on the canvas, (5, H, W, 3), one of them cut to a tall one, and what they cover."""
    paths = sorted((real_data / REAL[task] / "images" / "val").rglob("*.*"))[:5]
    assert len(paths) == 5
    batch = collate([sample_of(path, number, CANVAS, DataConfig()) for number, path in enumerate(paths)])
    images = batch.images[:, 0].permute(0, 2, 3, 1).contiguous().numpy()
    tall = images[4, : batch.valid[4, 0, 0], :80]
    images[4], valid = letterbox(tall, CANVAS)[0], batch.valid[:, 0].numpy()
    valid[4] = letterbox(tall, CANVAS)[1]
    return images, valid


def saved_model(folder: Path, task: str, pyramid: str, images: Images, *options: str) -> Path:
    """A network of random weights whose statistics are those of the pictures, and that is sure of some things."""
    levels = ("model.min_level=3", f"model.canvas={list(CANVAS)}", *SHAPE[pyramid], "postprocess.score_floor=0.05")
    config = load_config(f"{task}-demo", [*TINY, "postprocess.max_detections=60", *levels, *options])
    torch.manual_seed(0)
    model = build_task(config, NAMES).build_model()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    valid = torch.tensor([CANVAS] * len(images))
    with torch.no_grad():
        outputs = model.train()(torch.from_numpy(images).permute(0, 3, 1, 2), valid)
        predictor = model.head.class_predictor
        spread = outputs[0].std() if isinstance(model, RetinaNet) else outputs.std()
        predictor.weight.mul_(1.5 / spread)
        if isinstance(model, RetinaNet):
            predictor.bias.fill_(-3.0)  # type: ignore[operator]
            model.head.box_predictor.weight.mul_(0.2 / outputs[1].std())
    card = {part: getattr(config, part).model_dump(mode="json") for part in ("model", "postprocess")}
    save_model(folder, model, {"task": task, "class_names": list(NAMES), **card})
    return folder


def exported(folder: Path, task: str, pyramid: str, images: Images, **options: str) -> tuple[Path, Any]:
    """The export of such a model, and the network."""
    source = saved_model(folder / "model", task, pyramid, images)
    tutelage.export(source, out=folder / "out", **options)
    return folder / "out", load_model(source)[0].eval()


def in_batches(onnx: OnnxModel, images: Images, valid: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Outputs for five pictures, asked for as 5, as 1 + 1 + ... and as 2 + 2 + 1, which must be the same."""
    whole = onnx(images, valid)
    for size in (1, 2):
        parts = [onnx(images[start : start + size], valid[start : start + size]) for start in range(0, 5, size)]
        for name, values in whole.items():
            joined = np.concatenate([part[name] for part in parts])
            assert joined.shape == values.shape
            np.testing.assert_allclose(joined, values, atol=1e-3 if name != "boxes" else 0.1)
    return whole


def torch_detections(
    network: RetinaNet, images: Images, valid: NDArray[np.int64], folder: Path
) -> tuple[list[Detections], Any, Any]:
    config = load_config("detection-demo", [*TINY])
    postprocess = type(config.postprocess).model_validate(read_json(folder / "model.json")["postprocess"])
    anchors = make_anchors(CANVAS, network.levels, network.config.anchors)
    covered = torch.from_numpy(valid)
    with torch.no_grad():
        logits, deltas = network(torch.from_numpy(images).permute(0, 3, 1, 2), covered)
    found = [
        suppress(candidates(one, moves, anchors, size, postprocess), postprocess)
        for one, moves, size in zip(logits, deltas, covered, strict=True)
    ]
    boxes = torch.stack([clip_boxes(decode(moves, anchors), size) for moves, size in zip(deltas, covered, strict=True)])
    return found, boxes.numpy(), logits.sigmoid().numpy()


def assert_same_detections(found: dict[str, NDArray[Any]], row: int, expected: Detections) -> None:
    count = int(found["counts"][row])
    assert count == len(expected.labels)
    assert (found["labels"][row, count:] == -1).all() and not found["scores"][row, count:].any()
    assert (np.diff(found["scores"][row]) <= 0).all()
    free = set(range(count))
    for box, label, score in zip(*(part.numpy() for part in expected), strict=True):
        fits = [
            at
            for at in free
            if found["labels"][row, at] == label
            and abs(found["scores"][row, at] - score) < 1e-3
            and np.abs(found["boxes"][row, at] - box).max() < 0.1
        ]
        assert fits, (label, score, box)
        free.remove(fits[0])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("pyramid", ["fpn", pytest.param("nas-fpn", marks=SLOW)])
def test_a_detector_with_suppression_inside(
    pyramid: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, valid = batch_of(real_data, "detection")
    out, network = exported(tmp_path, "detection", pyramid, images)
    found = in_batches(OnnxModel(out / "model.onnx", 1), images, valid)
    expected, _, _ = torch_detections(network, images, valid, out)
    assert sum(len(one.labels) for one in expected) > 50 and len({*expected[0].labels.tolist()}) > 1
    for row, one in enumerate(expected):
        assert_same_detections(found, row, one)
    nothing = OnnxModel(out / "model.onnx", 1)(np.zeros((1, *CANVAS, 3), np.uint8), np.array([[1, 1]]))
    assert nothing["boxes"].shape == (1, 60, 4)

    check_description(out, "detection", {"boxes", "scores", "labels", "counts"})
    check_script(out, real_data, capsys, monkeypatch)
    check_benchmark(out, capsys)
    with pytest.raises(InputError, match=r"earlier export\. .*--overwrite"):
        tutelage.export(tmp_path / "model", out=out)


def check_description(out: Path, task: str, outputs: set[str]) -> None:
    told = read_json(out / "export.json")
    assert (told["task"], told["class_names"], told["canvas"]) == (task, list(NAMES), list(CANVAS))
    assert set(told["outputs"]) == outputs and set(told["inputs"]) == {"images", "valid"}
    assert told["license"] == "not stated" and told["normalization"]["inside"]
    assert {path.name for path in out.iterdir()} == {
        "export.json", "model.json", "model.onnx", "model.safetensors", "run.py"
    }  # fmt: skip


def check_script(
    out: Path, real_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script beside the model finds what `load_model` finds, in pixels of the picture."""
    path = out.parent / "picture.png"  # of which nothing is decoded at less than its size
    Image.open(sorted((real_data / "bccd" / "images" / "val").rglob("*.*"))[0]).save(path)
    monkeypatch.setattr("tutelage.engine.runtime._best_precision", lambda device: "float32")
    monkeypatch.setattr(sys, "argv", ["run.py", str(path)])
    capsys.readouterr()
    runpy.run_path(str(out / "run.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (found,) = tutelage.load_model(out, device="cpu").predict(path)
    assert found.boxes is not None and len(lines) == len(found.boxes) > 3
    printed = np.array([[float(value) for value in line[3:]] for line in lines])
    distance = np.abs(printed[:, None] - found.boxes.xyxy[None]).max(-1)
    assert (distance.min(0) < 0.3).all() and (distance.min(1) < 0.3).all()


def check_benchmark(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    file = out.parent / "times.json"
    arguments = ["--batch-sizes", "1,2", "--runs", "3", "--warmup", "1", "--json", "--device", "cpu"]
    assert main(["benchmark", str(out), *arguments, "--out", str(file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == read_json(file)
    assert [(row["runtime"], row["batch_size"]) for row in told["rows"]] == [
        ("torch", 1), ("onnxruntime", 1), ("torch", 2), ("onnxruntime", 2)
    ]  # fmt: skip
    for row in told["rows"]:
        assert (row["runs"], row["warmup"]) == (3, 1)
        assert 0 < row["median_ms"] <= row["p95_ms"] and row["images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("pyramid", ["fpn", "nas-fpn"])
def test_a_detector_with_suppression_outside(pyramid: str, real_data: Path, tmp_path: Path) -> None:
    images, valid = batch_of(real_data, "detection")
    out, network = exported(tmp_path, "detection", pyramid, images, nms="outside")
    found = in_batches(OnnxModel(out / "model.onnx", 1), images, valid)
    _, boxes, scores = torch_detections(network, images, valid, out)
    assert scores.max() > 0.5 and boxes.max() > 100
    np.testing.assert_allclose(found["boxes"], boxes, atol=0.1)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-3)


def torch_pixels(network: Segmenter, images: Images, valid: NDArray[np.int64]) -> Any:
    """Logits (5, K, h, w) and, for each picture, class and confidence of the pixels that it covers."""
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(valid))
    found = []
    for one, (height, width) in zip(logits, valid.tolist(), strict=True):
        rows, columns = Grid.of_canvas((height, width)).taps(CANVAS, (one.shape[1], one.shape[2]))
        found.append(classify([one], [rows], [columns]))
    return logits, found


@pytest.mark.parametrize("pyramid", [pytest.param("fpn", marks=SLOW), "nas-fpn"])
def test_a_segmenter_that_gives_classes(pyramid: str, real_data: Path, tmp_path: Path) -> None:
    images, valid = batch_of(real_data, "segmentation")
    out, network = exported(tmp_path, "segmentation", pyramid, images)
    found = in_batches(OnnxModel(out / "model.onnx", 1), images, valid)
    _, expected = torch_pixels(network, images, valid)
    for row, ((height, width), (classes, levels)) in enumerate(zip(valid.tolist(), expected, strict=True)):
        confidence = found["confidence"][row, :height, :width]
        assert np.abs(confidence - (levels.numpy() + 0.5) / 256).max() < 0.5 / 256 + 1e-3
        sure = confidence > 0.51  # else two classes may be equal but for rounding
        assert sure.mean() > 0.3 and len(np.unique(classes)) > 1
        assert (found["classes"][row, :height, :width] == classes.numpy())[sure].all()


@pytest.mark.slow
@pytest.mark.parametrize("pyramid", ["fpn", "nas-fpn"])
def test_a_segmenter_that_gives_logits(pyramid: str, real_data: Path, tmp_path: Path) -> None:
    images, valid = batch_of(real_data, "segmentation")
    out, network = exported(tmp_path, "segmentation", pyramid, images, masks="logits")
    found = in_batches(OnnxModel(out / "model.onnx", 1), images, valid)["logits"]
    logits, _ = torch_pixels(network, images, valid)
    for row, covered in enumerate(valid.tolist()):
        rows, columns = (max(1, math.ceil(side / 4 - 0.5)) for side in covered)  # cells whose center is covered
        cells = logits[row : row + 1, :, :rows, :columns]
        wide = torch.nn.functional.interpolate(cells, scale_factor=4.0, mode="bilinear", align_corners=False)[0]
        height, width = min(covered[0], 4 * rows), min(covered[1], 4 * columns)
        np.testing.assert_allclose(found[row][:, :height, :width], wide[:, :height, :width].numpy(), atol=1e-3)


def test_weights_of_interpolation_are_those_of_torch() -> None:
    values = torch.arange(7.0).square()
    weights = interpolation(28, 7, torch.tensor([28, 13]))
    expected = torch.nn.functional.interpolate(values[None, None], scale_factor=4.0, mode="linear")[0, 0]
    torch.testing.assert_close(weights[0] @ values, expected)
    shorter = torch.nn.functional.interpolate(values[None, None, :3], scale_factor=4.0, mode="linear")[0, 0]
    torch.testing.assert_close((weights[1] @ values)[:12], shorter)  # of 13 pixels, 3 centers of cells are covered
    assert torch.allclose(weights.sum(-1), torch.ones(()))


@pytest.mark.parametrize("size", [(30, 40), (100, 150), (301, 517), (1000, 333), (128, 256), (257, 512), (5, 999)])
def test_the_scripts_letterbox_is_ours(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    sample = sample_of(picture, 0, CANVAS, DataConfig())
    image, fitted = letterbox(picture, CANVAS)
    assert fitted == tuple(sample.valid[0])
    assert np.array_equal(image, sample.images[0])


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *CANVAS, 3), dtype=np.uint8)
    soft = saved_model(tmp_path / "soft", "detection", "fpn", images, "postprocess.nms=soft")
    masks = saved_model(tmp_path / "masks", "segmentation", "nas-fpn", images)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--nms inside: .*Soft-NMS.*--nms outside.*postprocess\.nms=hard"):
        tutelage.export(soft, out=out)
    for options, message in (
        ({"nms": "inside"}, r"--nms: has no meaning for segmentation; --masks"),
        ({"masks": "raw"}, r"--masks: unknown value 'raw'; choose one of classes, logits"),
        ({"format": "tflite"}, r"--format: unknown format 'tflite'; onnx"),
        ({"overrides": ("train.lr=1",)}, r"train\.lr=1: has no meaning for an export"),
        ({"overrides": ("model.canvas=[100,128]",)}, r"model\.canvas: 100 x 128; .*multiples of 128.*\[128, 128\]"),
    ):
        with pytest.raises(InputError, match=message):
            tutelage.export(masks, out=out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    with pytest.raises(InputError, match="holds other files"):
        tutelage.export(masks, out=masks, overwrite=True)
    with pytest.raises(InputError, match=r"--batch-sizes: found '0'"):
        tutelage.benchmark(masks, batch_sizes="0")
    with pytest.raises(InputError, match=r"absent\.onnx: does not exist.*tutelage export"):
        tutelage.benchmark(masks, onnx=tmp_path / "absent.onnx", device="cpu")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx: is not installed.*pip install '\.\[onnx\]'"):
        tutelage.export(masks, out=out)


def test_every_timed_run_is_counted_and_no_other() -> None:
    calls: list[int] = []
    ticks = iter([0.0, 1.0, 5.0, 7.0, 10.0, 13.0])
    found = timed(lambda: calls.append(1), 4, warmup=2, runs=3, clock=lambda: next(ticks))
    assert len(calls) == 5
    assert found["median_ms"] == 2000 and found["images_per_second"] == 12 / 6
    assert found["p95_ms"] == pytest.approx(2900)
