"""SpineNet against a literal second construction and a count from its table; what stands on it; its recipes."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.test_detection import batch_of, padded
from tutelage.config import ModelConfig, NormConfig, PostprocessConfig, load_config
from tutelage.engine.objectives import Supervised
from tutelage.engine.optim import peak_lr
from tutelage.engine.recompute import blocks, recomputed_activations
from tutelage.models.backbones import to_sync_batchnorm
from tutelage.models.cost import count_parameters
from tutelage.models.init import initialize
from tutelage.models.model import build_classifier, build_detector, build_segmenter, pooled
from tutelage.models.spinenet import NODES, SPINENETS, Layers, Merge, SpineNet, SpineNetShape
from tutelage.tasks.detection import DetectionTask
from tutelage.types import InputError

TINY = ModelConfig(
    backbone="spinenet-tiny",
    pyramid="none",
    activation="silu",
    pyramid_width=16,
    head_width=16,
    head_depth=1,
    canvas=(128, 128),
)

# arXiv:1912.05027, fig. 3, as the TPU code lists it: level, kind, offsets of the two parents, whether an output.
SEARCHED = [
    (2, "bottleneck", (0, 1), False),
    (4, "residual", (0, 1), False),
    (3, "bottleneck", (2, 3), False),
    (4, "bottleneck", (2, 4), False),
    (6, "residual", (3, 5), False),
    (4, "bottleneck", (3, 5), False),
    (5, "residual", (6, 7), False),
    (7, "residual", (6, 8), False),
    (5, "bottleneck", (8, 9), False),
    (5, "bottleneck", (8, 10), False),
    (4, "bottleneck", (5, 10), True),
    (3, "bottleneck", (4, 10), True),
    (5, "bottleneck", (7, 12), True),
    (7, "bottleneck", (5, 14), True),
    (6, "bottleneck", (12, 14), True),
]
FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda values: values.clamp(min=0),
    "silu": lambda values: values * values.sigmoid(),
}


def spinenet(name: str = "spinenet-tiny", *, drop_path: float = 0.0, activation: str = "silu") -> SpineNet:
    torch.manual_seed(0)
    return SpineNet(name, endpoint_width=16, drop_path=drop_path, activation=activation, norm=NormConfig())


def normalized(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Literal:
    """A forward pass read off the published table, map by map, with the weights of a network."""

    def __init__(self, model: SpineNet, activation: str) -> None:
        self.model, self.act = model, ACTIVATIONS[activation]

    def conv(self, layer: nn.Sequential, feature: Tensor) -> Tensor:
        kernel, norm, stride = layer[0].weight, layer[1], layer[0].stride[0]
        assert layer[0].bias is None
        if stride > 1:  # the same border on all sides, whatever the size
            feature = F.pad(feature, [(kernel.shape[-1] - 1) // 2] * 4)
        feature = F.conv2d(feature, kernel, stride=stride, padding="same" if stride == 1 else 0)
        mean, var = norm.running_mean, norm.running_var
        if self.model.training:
            mean, var = feature.mean(dim=(0, 2, 3)), feature.var(dim=(0, 2, 3), unbiased=False)
        scale = norm.weight / (var + 1e-4).sqrt()
        return feature * scale[:, None, None] + (norm.bias - mean * scale)[:, None, None]

    def pool(self, feature: Tensor, window: int, stride: int) -> Tensor:
        lines = feature
        for _ in range(2):  # columns, then rows
            size = lines.shape[-1]
            total = max(0, (math.ceil(size / stride) - 1) * stride + window - size)
            lines = F.pad(lines, (total // 2, total - total // 2), value=-math.inf)
            lines = lines.unfold(-1, window, stride).amax(dim=-1).transpose(2, 3)
        return lines

    def nearest(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (
            torch.tensor([cell * before // after for cell in range(after)])
            for before, after in zip(feature.shape[-2:], size, strict=True)
        )
        return feature[:, :, rows][..., columns]

    def resample(self, part: nn.Module, feature: Tensor, size: tuple[int, int]) -> Tensor:
        width, target = feature.shape[-1], size[1]
        feature = self.act(self.conv(part.reduce, feature))
        if width > target:
            feature = self.act(self.conv(part.halve, feature))
            if width // target > 2:
                stride = 2 if width % target else width // target // 2
                feature = self.pool(feature, 3 if width / target <= 4 else 5, stride)
        return self.conv(part.expand, self.nearest(feature, size))

    def group(self, parts: nn.Sequential, feature: Tensor) -> Tensor:
        for block in parts:
            branch = feature
            for at, layer in enumerate(block.branch):
                branch = self.conv(layer, branch)
                branch = self.act(branch) if at + 1 < len(block.branch) else branch
            projects = not isinstance(block.shortcut, nn.Identity)
            feature = self.act(branch + (self.conv(block.shortcut, feature) if projects else feature))
        return feature

    def __call__(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        stem, second = self.model.stem
        maps = [self.group(stem.blocks, self.pool(self.act(self.conv(stem.conv, images)), 3, 2))]
        maps.append(self.group(second, maps[0]))
        consumers, outputs = [0, 0], {}
        for (level, _, offsets, is_output), part in zip(SEARCHED, self.model.merges, strict=True):
            size = math.ceil(height / 2**level), math.ceil(width / 2**level)
            total = sum(
                self.resample(way, maps[at], size) for way, at in zip((part.first, part.second), offsets, strict=True)
            )
            for at in offsets:
                consumers[at] += 1
            for at, each in enumerate(maps):
                if is_output and consumers[at] == 0 and each.shape == total.shape:
                    total = total + each
                    consumers[at] += 1
            maps.append(self.group(part.blocks, self.act(total)))
            consumers.append(0)
            if is_output:
                outputs[level] = maps[-1]
        ends = zip(self.model.endpoints, sorted(outputs), strict=True)
        return [self.act(self.conv(endpoint, outputs[level])) for endpoint, level in ends]


@pytest.mark.parametrize(
    ("shape", "activation", "training", "size"),
    [
        (SPINENETS["spinenet-tiny"], "silu", True, (128, 256)),
        (SpineNetShape(0.0625, 1.0, 2), "relu", True, (128, 128)),
        (SPINENETS["spinenet-tiny"], "silu", False, (224, 224)),  # sizes that are no multiples of one another
        (SPINENETS["spinenet-tiny"], "relu", False, (100, 130)),
    ],
)
def test_it_is_wired_as_the_literal_one(
    shape: SpineNetShape, activation: str, training: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPINENETS, "spinenet-tiny", shape)
    model = spinenet(activation=activation).train(training).double()
    images = normalized(2, 3, *size).double()
    with torch.no_grad():
        got, literal = model(images), Literal(model, activation)(images)
    assert [tuple(level.shape) for level in got] == [
        (2, 16, math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (8, 16, 32, 64, 128)
    ]
    for ours, other in zip(got, literal, strict=True):
        torch.testing.assert_close(ours, other)


def counted(scale: float, alpha: float, repeats: int, endpoint: int) -> int:
    """Parameters of a backbone by the published table alone."""

    def conv(before: int, after: int, kernel: int = 1) -> int:
        return before * after * kernel**2 + 2 * after  # and batch-norm's two

    def block(width: int, kind: str) -> int:
        return 2 * conv(width, width, 3) if kind == "residual" else bottleneck(4 * width, width)

    def bottleneck(before: int, width: int) -> int:
        return conv(before, width) + conv(width, width, 3) + conv(width, 4 * width)

    nodes = [(2, "bottleneck")] * 2 + [(level, kind) for level, kind, _, _ in SEARCHED]
    widths = [int(FILTERS[level] * scale) for level, _ in nodes]
    channels = [width * (4 if kind == "bottleneck" else 1) for width, (_, kind) in zip(widths, nodes, strict=True)]
    total = conv(3, 64, 7) + conv(64, channels[0]) - block(widths[0], "bottleneck") + bottleneck(64, widths[0])
    total += sum(repeats * block(width, kind) for width, (_, kind) in zip(widths, nodes, strict=True))
    for node, (level, _, parents, is_output) in enumerate(SEARCHED, start=2):
        for parent in parents:
            inner = int(widths[parent] * alpha)
            total += conv(channels[parent], inner) + conv(inner, channels[node])
            total += conv(inner, inner, 3) if nodes[parent][0] < level else 0
        total += conv(channels[node], endpoint) if is_output else 0
    return total


@pytest.mark.parametrize(
    ("backbone", "endpoint", "head", "depth", "millions"),
    [
        ("spinenet49s", 128, 128, 4, 11.3),
        ("spinenet49s", 256, 128, 4, 11.9),  # the released one; its heads are those of the other
        ("spinenet49", 256, 256, 4, 28.5),
        ("spinenet96", 256, 256, 4, 43.0),
        ("spinenet143", 256, 256, 4, 67.0),
        ("spinenet143l", 256, 256, 4, 107.5),
        ("spinenet190", 512, 512, 7, 163.6),
    ],
)
def test_parameters_of_the_published_networks(
    backbone: str, endpoint: int, head: int, depth: int, millions: float
) -> None:
    sizes = {"pyramid_width": endpoint, "head_width": head, "head_depth": depth}
    with torch.device("meta"):
        model = build_detector(ModelConfig(backbone=backbone, pyramid="none", **sizes), 91)
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert count_parameters(model.backbone) == counted(*SPINENETS[backbone], endpoint)


def test_node_11_enters_the_output_of_level_5_alone() -> None:
    """Without its extra sum, node 11 would reach nothing."""
    model = spinenet().eval()
    captured: list[Tensor] = []
    model.merges[9].register_forward_hook(lambda _, __, out: captured.append(out))
    levels = model(normalized(1, 3, 128, 128))
    gradients = [
        torch.autograd.grad(level.sum(), captured[0], retain_graph=True, allow_unused=True)[0] for level in levels
    ]
    assert [gradient is not None for gradient in gradients] == [False, False, True, True, True]  # 15, 16 follow 14


def test_stochastic_depth_grows_by_node_and_drops_whole_images() -> None:
    model = spinenet(drop_path=0.3)
    rates = [{block.drop_path.p for block in part.blocks} for part in model.merges]
    torch.testing.assert_close([list(rate) for rate in rates], [[0.3 * number / 15] for number in range(1, 16)])
    assert {block.drop_path.p for block in (*model.stem[0].blocks, *model.stem[1])} == {0.0}
    block = spinenet(drop_path=0.5).eval().merges[-1].blocks[0]
    feature = normalized(64, 128, 2, 2)
    with torch.no_grad():
        branch = block.branch(feature)
        block.drop_path.train()
        out = block(feature)
    dropped = (out - F.silu(feature)).flatten(1).abs().amax(dim=1) < 1e-6
    assert 12 < dropped.sum() < 52
    torch.testing.assert_close(out[~dropped], F.silu(feature + branch / 0.5)[~dropped])


def test_kernels_start_by_variance_scaling() -> None:
    for part in spinenet("spinenet-tiny").modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 4000:
            std = part.weight[0].numel() ** -0.5
            assert part.weight.std().item() == pytest.approx(std, rel=0.05)
            assert part.weight.abs().max() <= 2 * std / 0.8796


def test_norms_follow_the_options() -> None:
    norm = NormConfig(momentum=0.02, eps=1e-3)
    model = build_detector(TINY.model_copy(update={"norm": norm, "backbone_norm": "own"}), 3)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) > 100 and {(part.momentum, part.eps) for part in norms} == {(0.02, 1e-3)}
    converted = to_sync_batchnorm(model)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == len(norms)


def test_pooling_is_that_of_all_levels_enlarged_to_the_finest() -> None:
    levels = spinenet().eval()(normalized(2, 3, 128, 128))
    enlarged = [F.interpolate(level, scale_factor=2.0**at) for at, level in enumerate(levels)]
    torch.testing.assert_close(pooled(levels), torch.stack(enlarged).mean(dim=(0, 3, 4)))
    torch.testing.assert_close(pooled(levels[:3]), levels[2].mean(dim=(2, 3)))


def test_detector_segmenter_and_classifier_stand_on_it() -> None:
    images, valid = torch.zeros(2, 3, 128, 256, dtype=torch.uint8), torch.tensor([[128, 256]] * 2)
    canvas = {"canvas": (128, 256)}
    detector, segmenter = (build(TINY.model_copy(update=canvas), 5) for build in (build_detector, build_segmenter))
    assert detector(images, valid).logits.shape == (2, 9 * (16 * 32 + 8 * 16 + 4 * 8 + 2 * 4 + 1 * 2), 5)
    assert segmenter(images, valid).shape == (2, 5, 32, 64)
    classifier = build_classifier(TINY.model_copy(update={"pyramid": "fpn"}), 7)  # it has no pyramid
    assert classifier(images[..., :96, :96], torch.tensor([[96, 96]] * 2)).shape == (2, 7)
    detector.add_classifier(4)
    assert detector.classify(images, valid).shape == (2, 4)


def test_foreign_weights_go_to_all_of_it(tmp_path: object) -> None:
    given = spinenet()
    save_file(given.state_dict(), f"{tmp_path}/spinenet.safetensors")
    model = build_detector(TINY, 3)
    report = initialize(model, f"{tmp_path}/spinenet.safetensors", backbone_name="spinenet-tiny")
    assert len(report.matched) == len(given.state_dict()) and not report.unexpected
    assert torch.equal(model.backbone.endpoints[0][0].weight, given.endpoints[0][0].weight)


@pytest.mark.parametrize("build", [build_detector, build_segmenter])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid": "fpn"}, r"model\.pyramid: fpn on spinenet-tiny; .*model\.pyramid=none"),
        ({"pyramid": "nas-fpn"}, r"model\.pyramid: nas-fpn on spinenet-tiny"),
        ({"backbone": "resnet10t"}, r"model\.pyramid: none on resnet10t; .*fpn"),
        ({"max_level": 6}, r"a SpineNet is wired for levels 3 to 7; .* are 3 and 6"),
        ({"min_level": 4}, r"are 4 and 7"),
        ({"canvas": (128, 160)}, r"multiples of 128, the stride of the coarsest level of a SpineNet.*\[128, 256\]"),
    ],
)
def test_impossible_networks_are_refused(build: object, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(TINY.model_copy(update=changes), 3)


def test_images_too_small_for_it_are_refused() -> None:
    with pytest.raises(InputError, match=r"images are 64 x 128; both sides must be above 64"):
        spinenet()(torch.zeros(1, 3, 64, 128))


def test_a_tiny_one_trains() -> None:
    task = DetectionTask(TINY, PostprocessConfig(), ("cat", "dog"))
    torch.manual_seed(0)
    objective = Supervised(task, task.build_model(), "mask")
    images = torch.full((2, 3, 128, 128), 40, dtype=torch.uint8)
    images[0, :, 20:60, 30:90], images[1, :, 50:110, 10:60] = 220, 130
    boxes = padded([([30, 20, 90, 60], 0, 0)], [([10, 50, 60, 110], 1, 0)])
    batches = {"labeled": batch_of(images, boxes)}
    optimizer = torch.optim.AdamW(objective.parameters(), 0.003)
    losses = []
    for _ in range(8):
        targets = objective.prepare(batches)
        loss = objective.total(objective(batches, targets), objective.counts(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], [round(loss, 2) for loss in losses]


def test_its_nodes_recompute_their_activations_with_equal_gradients() -> None:
    results = []
    for enabled in (False, True):
        model = build_detector(TINY.model_copy(update={"drop_path": 0.5}), 3)
        model.backbone = spinenet(drop_path=0.5)
        names = [type(block).__name__ for block in blocks(model.backbone)]
        assert names == ["Stem", "Sequential", *["Merge"] * 15]
        with recomputed_activations(model.backbone, enabled), torch.random.fork_rng(devices=[]):
            sum(level.square().sum() for level in model.backbone(normalized(2, 3, 128, 128))).backward()
        gradients = {name: each.grad for name, each in model.backbone.named_parameters()}
        results.append({**gradients, **{f"{name} (buffer)": each for name, each in model.backbone.named_buffers()}})
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, msg=name)


@pytest.mark.parametrize(("name", "kept"), [("spinenet96", 5), ("spinenet190", 6)])
def test_deeper_ones_are_recomputed_in_parts(name: str, kept: int) -> None:
    with torch.device("meta"):
        model = spinenet(name)
    kernels, recomputed = (
        sum(isinstance(part, nn.Conv2d) for root in roots for part in root.modules())
        for roots in ([model], list(blocks(model)))
    )
    assert kernels - recomputed == kept  # the endpoints, and the first convolution of large ones


def test_channels_last_stays_and_changes_nothing() -> None:
    model, images = spinenet().eval(), normalized(2, 3, 128, 128)
    with torch.no_grad():
        plain = model(images)
        last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    for one, other in zip(plain, last, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in last)


def test_half_precision_gradients_are_those_of_full() -> None:
    model, gradients = spinenet().eval(), []  # level 7 is one pixel, of which there are no statistics
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = model(normalized(2, 3, 128, 128))
        torch.autograd.backward([level.float().square().sum() for level in outputs])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


def test_a_node_compiles_whole() -> None:
    node, shape = 15, SPINENETS["spinenet-tiny"]  # maxima over 4 and 8; all nodes at once would take 5 s
    merge = Merge(Layers("silu", NormConfig()), shape, NODES[node], 0.0).eval()
    parents = [NODES[parent] for parent in NODES[node].parents]
    maps = [normalized(1, shape.channels(parent), 128 >> parent.level, 256 >> parent.level) for parent in parents]
    size = 128 >> NODES[node].level, 256 >> NODES[node].level
    with torch.no_grad():
        compiled = torch.compile(merge, fullgraph=True, backend="eager")(*maps, size)
        torch.testing.assert_close(compiled, merge(*maps, size))


@pytest.mark.parametrize(
    ("recipe", "batch", "peak", "steps", "decays", "first", "eps"),
    [  # TPU detection code, configs/spinenet; arXiv:2006.06882, app. H
        ("detection-spinenet49", 256, 0.28, 231_500, (217_610, 226_870), 0.0067, 1e-4),
        ("detection-spinenet143", 128, 0.14, 472_000, (0.94 * 472_000, 0.98 * 472_000), 0.00335, 1e-3),
        ("detection-spinenet190", 128, 0.15, 370_000, (0.925 * 370_000, 0.975 * 370_000), 0.00335, 1e-3),
    ],
)
def test_recipes_have_the_published_schedules(
    recipe: str, batch: int, peak: float, steps: int, decays: tuple[float, float], first: float, eps: float
) -> None:
    config = load_config(recipe)
    for part in (config.teacher, config.student):
        assert (part.batch_size, part.min_steps, part.passes, part.schedule) == (batch, steps, 0, "step")
        assert peak_lr(part) == pytest.approx(peak)
        assert peak_lr(part) * part.warmup_start == pytest.approx(first, rel=0.005)
        assert [share * steps for share in part.decay_at] == pytest.approx(decays)
        assert (part.warmup_steps, part.weight_decay, part.clip_norm) == (2000, 4e-5, 10)
    large = recipe != "detection-spinenet49"
    assert config.model.norm == NormConfig(momentum=0.003, eps=eps)
    assert config.model.canvas == ((1280, 1280) if large else (640, 640))
    assert config.model.anchors.size == (4.0 if large else 3.0)
    assert config.teacher.augment.level == "s1"
    assert config.teacher.augment.jitter == ((0.1, 1.9) if large else (0.5, 2.0))
    assert config.postprocess.nms == ("soft" if large else "hard")
    if large:
        assert (config.student.augment.level, config.student.augment.jitter) == ("s3", (0.5, 2.0))
    with torch.device("meta"):
        build_detector(config.model, config.model.num_classes)
