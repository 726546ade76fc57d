"""Checkpoints of the authors, made up by their names and shapes (tests/tpu_variables.py), in our networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tests.tpu_variables import (
    Graph,
    efficientnet,
    fpn,
    nas_fpn,
    resnet50,
    retinanet_head,
    segmentation_head,
    spinenet,
)
from tutelage.config import ModelConfig
from tutelage.models.init import initialize
from tutelage.models.model import Classifier, RetinaNet, Segmenter, build_classifier, build_detector, build_segmenter
from tutelage.models.tensorflow import from_tensorflow
from tutelage.ops.boxes import decode
from tutelage.types import InputError

Model = RetinaNet | Segmenter | Classifier


def network(backbone: str, pyramid: str, build: Callable[..., Model], num_classes: int, **changed: Any) -> Model:
    """A network without storage: only names and shapes are asked for."""
    small = {"pyramid_width": 16, "head_width": 8, "head_depth": 2, "pyramid_repeats": 2}
    config = ModelConfig.model_validate({"backbone": backbone, "pyramid": pyramid, **small, **changed})
    with torch.device("meta"):
        return build(config, num_classes)


def efficientnet_segmenter() -> tuple[Graph, Model]:
    graph = Graph()
    efficientnet(graph)
    nas_fpn(graph, (40, 112, 320), 40, 2, separable=True)  # level 3 has the width already
    segmentation_head(graph, 40, 2, 21)
    changed = {"pyramid_width": 40, "head_width": 40, "pyramid_separable": True}
    return graph, network("tf_efficientnet_b0", "nas-fpn", build_segmenter, 21, **changed)


def resnet_detector() -> tuple[Graph, Model]:
    graph = Graph()
    resnet50(graph)
    fpn(graph, (512, 1024, 2048), 16)
    retinanet_head(graph, 16, 8, 2, 5)
    return graph, network("resnet50", "fpn", build_detector, 5)


def nas_fpn_detector() -> tuple[Graph, Model]:
    graph = Graph()
    efficientnet(graph)
    nas_fpn(graph, (40, 112, 320), 16, 2, separable=False)
    retinanet_head(graph, 16, 8, 2, 5)
    return graph, network("efficientnet_b0", "nas-fpn", build_detector, 5)


def spinenet_detector(name: str, scale: float, alpha: float, repeats: int) -> tuple[Graph, Model]:
    graph = Graph()
    spinenet(graph, scale, alpha, repeats, 16)
    retinanet_head(graph, 16, 8, 2, 5)
    return graph, network(name, "none", build_detector, 5)


def spinenet_classifier() -> tuple[Graph, Model]:
    graph = Graph()
    spinenet(graph, 0.65, 0.5, 1, 16)
    return graph, network("spinenet49s", "none", build_classifier, 5)


NETWORKS: dict[str, Callable[[], tuple[Graph, Model]]] = {
    "efficientnet": efficientnet_segmenter,
    "efficientnet nas-fpn": nas_fpn_detector,
    "resnet": resnet_detector,
    "spinenet49": partial(spinenet_detector, "spinenet49", 1.0, 0.5, 1),
    "spinenet143": partial(spinenet_detector, "spinenet143", 1.0, 1.0, 3),
    "spinenet190": partial(spinenet_detector, "spinenet190", 1.3, 1.0, 4),
    "spinenet49s": spinenet_classifier,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_tensor_comes_from_one_variable_of_its_shape(make: Callable[[], tuple[Graph, Model]]) -> None:
    graph, model = make()
    arrays = graph.zeros()
    tensors, unused = from_tensorflow(arrays, model, model.config.backbone)
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if "num_batches" not in name}
    ours_alone = ("normalize.", "linear.")
    expected = {name: shape for name, shape in own.items() if not name.startswith(ours_alone)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert len(tensors) == len(arrays) - len(unused)
    assert all("/head/" in name for name in unused)  # an EfficientNet's classifier


def mapped(make: Callable[[], tuple[Graph, Model]], changed: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of zeros with some variables changed."""
    graph, model = make()
    arrays = graph.zeros()
    assert set(changed) <= set(arrays)
    return from_tensorflow(arrays | changed, model, model.config.backbone).tensors


def test_layers_without_a_name_are_counted_in_the_order_of_creation() -> None:
    rng = np.random.default_rng(0)
    # The stem is number 0; of a group's first block the shortcut comes first: 1, then 2 to 4; two blocks more: 5 to 10.
    kernels = {1: (64, 256), 2: (64, 64), 11: (256, 512), 12: (256, 128)}
    changed = {f"resnet50/conv2d_{at}/kernel": rng.random((1, 1, *shape)) for at, shape in kernels.items()}
    changed["resnet50/batch_normalization_12/moving_variance"] = rng.random(128)
    tensors = mapped(resnet_detector, changed)
    for at, ours in {1: "layer1.0.downsample.0", 2: "layer1.0.conv1", 11: "layer2.0.downsample.0"}.items():
        theirs = changed[f"resnet50/conv2d_{at}/kernel"][0, 0]
        np.testing.assert_allclose(tensors[f"backbone.body.{ours}.weight"][:, :, 0, 0], theirs.T, rtol=1e-6)
    variance = changed["resnet50/batch_normalization_12/moving_variance"]
    np.testing.assert_allclose(tensors["backbone.body.layer2.0.bn1.running_var"], variance, rtol=1e-6)


def test_endpoints_of_a_spinenet_are_counted_on_from_its_stem() -> None:
    # 7x7; shortcut and 3 of the first block; 3 of the second: endpoint of level 3 is number 8, of level 7 number 12.
    changed = {f"spinenet/batch_normalization_{8 + at}/beta": np.full(16, 1.0 + at) for at in range(5)}
    changed["spinenet/sub_policy1/resample_with_alpha_resample_1_0/batch_normalization_1/gamma"] = np.full(20, 7.0)
    tensors = mapped(spinenet_classifier, changed)
    assert [tensors[f"backbone.endpoints.{at}.1.bias"][0].item() for at in range(5)] == [1, 2, 3, 4, 5]
    assert tensors["backbone.merges.1.first.halve.1.weight"].eq(7).all()


def test_averages_are_taken_before_what_they_average() -> None:
    graph, model = nas_fpn_detector()
    gamma = "efficientnet-b0/blocks_15/tpu_batch_normalization_2/gamma"  # the last block, after its projection
    extra = {f"{gamma}/ExponentialMovingAverage": np.full(320, 3.0), f"{gamma}/RMSProp": np.ones(320)}
    extra["global_step"] = np.array(7)
    tensors, unused = from_tensorflow(extra | graph.zeros(), model, "efficientnet_b0")
    assert tensors["backbone.body.blocks.6.0.bn3.weight"].eq(3).all()
    assert {gamma, f"{gamma}/RMSProp", "global_step"} <= set(unused)
    assert f"{gamma}/ExponentialMovingAverage" not in unused


def windows(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The neighborhoods (H', W', C, size, size) of an image (H, W, C)."""
    return sliding_window_view(image, (size, size), axis=(0, 1))


def channels_first(image: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def test_convolutions_give_what_theirs_give() -> None:
    rng = np.random.default_rng(1)
    stem, depthwise = "stem/conv2d/kernel", "blocks_0/depthwise_conv2d/depthwise_kernel"
    shapes = {stem: (3, 3, 3, 32), depthwise: (3, 3, 32, 1)}
    theirs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    tensors = mapped(nas_fpn_detector, {f"efficientnet-b0/{name}": array for name, array in theirs.items()})
    image, wide = (rng.standard_normal((6, 7, count), dtype=np.float32) for count in (3, 32))
    ours = F.conv2d(channels_first(image), tensors["backbone.body.conv_stem.weight"])
    reference = np.einsum("hwcij,ijco->ohw", windows(image, 3), theirs[stem])
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)
    ours = F.conv2d(channels_first(wide), tensors["backbone.body.blocks.0.0.conv_dw.weight"], groups=32)
    reference = np.einsum("hwcij,ijcm->cmhw", windows(wide, 3), theirs[depthwise])[:, 0]
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_a_separable_convolution_is_two_of_ours() -> None:
    rng = np.random.default_rng(2)
    scope = "fpn_cells/cell_1/sub_policy2/op_after_combine7/conv"
    shapes = {"depthwise_kernel": (3, 3, 40, 1), "pointwise_kernel": (1, 1, 40, 40), "bias": (40,)}
    theirs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    tensors = mapped(efficientnet_segmenter, {f"{scope}/{name}": array for name, array in theirs.items()})
    image = rng.standard_normal((5, 5, 40), dtype=np.float32)
    ours = "pyramid.cells.1.convs.2"
    spread = F.conv2d(channels_first(image), tensors[f"{ours}.0.weight"], groups=40)
    out = F.conv2d(spread, tensors[f"{ours}.1.weight"], tensors[f"{ours}.1.bias"])
    depthwise = np.einsum("hwcij,ijcm->hwc", windows(image, 3), theirs["depthwise_kernel"])
    reference = depthwise @ theirs["pointwise_kernel"][0, 0] + theirs["bias"]
    np.testing.assert_allclose(out, reference.transpose(2, 0, 1), rtol=1e-4, atol=1e-4)


def test_boxes_come_out_as_theirs() -> None:
    """Their predictor's output at one place, decoded by their rule in their order (y, x), is our decoded box."""
    rng = np.random.default_rng(3)
    scope = "retinanet/box_net/box-predict"
    kernel, bias = rng.standard_normal((3, 3, 8, 36)) / 20, rng.standard_normal(36) / 20
    tensors = mapped(resnet_detector, {f"{scope}/kernel": kernel, f"{scope}/bias": bias})
    feature = rng.standard_normal((3, 3, 8))
    ty, tx, th, tw = (np.einsum("ijc,ijco->o", feature, kernel) + bias).reshape(9, 4).T
    anchors = np.sort(rng.random((9, 2, 2)), axis=1).reshape(9, 4)  # x1, y1, x2, y2
    x1, y1, x2, y2 = anchors.T
    y, x = ty * (y2 - y1) + (y1 + y2) / 2, tx * (x2 - x1) + (x1 + x2) / 2
    height, width = np.exp(th) * (y2 - y1), np.exp(tw) * (x2 - x1)
    theirs = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    predictor = tensors["head.box_predictor.weight"], tensors["head.box_predictor.bias"]
    deltas = F.conv2d(channels_first(feature.astype(np.float32)), *predictor).reshape(9, 4)
    np.testing.assert_allclose(decode(deltas, torch.from_numpy(anchors)), theirs, rtol=1e-4, atol=1e-5)


def test_class_channels_keep_their_order() -> None:
    bias = np.arange(45.0)
    tensors = mapped(resnet_detector, {"retinanet/class_net/class-predict/bias": bias})
    np.testing.assert_array_equal(tensors["head.class_predictor.bias"], bias)


def test_a_class_predictor_of_other_classes_is_left_out() -> None:
    graph, _ = resnet_detector()
    tensors, unused = from_tensorflow(graph.zeros(), network("resnet50", "fpn", build_detector, 3), "resnet50")
    assert set(unused) == {f"retinanet/class_net/class-predict/{kind}" for kind in ("kernel", "bias")}
    assert "head.class_predictor.weight" not in tensors
    assert "head.box_predictor.weight" in tensors


def test_a_file_of_a_backbone_alone_leaves_the_rest() -> None:
    graph = Graph()
    efficientnet(graph)
    tensors, _ = from_tensorflow(graph.zeros(), nas_fpn_detector()[1], "efficientnet_b0")
    assert {name.partition(".")[0] for name in tensors} == {"backbone"}


def refusal(arrays: dict[str, Any], model: Model, backbone: str) -> str:
    with pytest.raises(InputError) as caught:
        from_tensorflow(arrays, model, backbone)
    return str(caught.value)


def test_files_of_other_networks_are_refused() -> None:
    graph, model = resnet_detector()
    arrays = graph.zeros()
    assert "begin with fpn, resnet50, retinanet" in refusal(arrays, nas_fpn_detector()[1], "efficientnet_b0")
    assert "begin with nothing" in refusal({}, model, "resnet50")
    assert "no TensorFlow names are known for convnext_tiny" in refusal(arrays, model, "convnext_tiny")
    short = {name: array for name, array in arrays.items() if "conv2d_52" not in name}
    assert "lacks 1 of 265 variables (first: 'resnet50/conv2d_52/kernel')" in refusal(short, model, "resnet50")
    deep = arrays | {"retinanet/box_net/box-2/kernel": np.zeros((3, 3, 8, 8))}
    assert "has besides 1 of" in refusal(deep, model, "resnet50")
    wide = arrays | {"fpn/l4/kernel": np.zeros((1, 1, 1024, 32), dtype=np.float32)}
    assert "'fpn/l4/kernel' of the file is (32, 1024, 1, 1)" in refusal(wide, model, "resnet50")
    flat = arrays | {"fpn/l4/kernel": np.zeros((1024, 16), dtype=np.float32)}
    assert "(1024, 16) in PyTorch's layout" in refusal(flat, model, "resnet50")


def test_a_separable_pyramid_is_not_one_of_plain_convolutions() -> None:
    graph, _ = efficientnet_segmenter()
    plain = network("tf_efficientnet_b0", "nas-fpn", build_segmenter, 21, pyramid_width=40, head_width=40)
    assert "it was saved by another network" in refusal(graph.zeros(), plain, "tf_efficientnet_b0")


def test_a_file_is_a_start(tmp_path: Path) -> None:
    graph = Graph()
    spinenet(graph, 0.125, 0.5, 1, 16)
    retinanet_head(graph, 16, 8, 2, 5)
    arrays = graph.zeros() | {"global_step": np.array(3)}
    arrays["spinenet/conv2d_12/kernel"][0, 0, 5, 3] = 2.0
    np.savez(tmp_path / "model.npz", **arrays)  # type: ignore[arg-type]
    config = ModelConfig(backbone="spinenet-tiny", pyramid="none", pyramid_width=16, head_width=8, head_depth=2)
    model = build_detector(config, 5)
    report = initialize(model, str(tmp_path / "model.npz"), backbone_name="spinenet-tiny")
    state = model.state_dict()
    assert state["backbone.endpoints.4.0.weight"][3, 5].item() == 2.0
    assert state["head.box_tower.norms.4.1.running_var"].eq(0).all()  # of random starts it is 1
    assert report.unexpected == ("global_step",)
    assert {name for name in report.missing if "num_batches" not in name} == {"normalize.mean", "normalize.std"}
