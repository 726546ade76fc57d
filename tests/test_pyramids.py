"""Feature pyramids: the wiring of a NAS-FPN against a literal one, sizes of the paper's, levels and canvases."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tutelage.config import ModelConfig
from tutelage.models.cost import count_multiply_adds, count_parameters
from tutelage.models.model import build_detector, build_segmenter
from tutelage.models.nasfpn import NASFPN
from tutelage.types import InputError

WIDTH = 8
SMALL = ModelConfig(backbone="resnet10t", pyramid="nas-fpn", pyramid_repeats=2, pyramid_width=WIDTH, canvas=(128, 256))
CHANNELS = (5, WIDTH, 12)

# arXiv:1904.07392, fig. 6, as the TPU code lists it: level, attention, offsets of the two inputs, whether an output.
SEARCHED = [
    (4, True, (1, 3), False),
    (4, False, (1, 5), False),
    (3, False, (0, 6), True),
    (4, False, (6, 7), True),
    (5, True, (7, 8), True),
    (7, True, (6, 9), True),
    (6, True, (9, 10), True),
]


def literal_resample(node: Tensor, level: int, target: int) -> Tensor:
    batch, width, height, columns = node.shape
    if level > target:
        factor = 2 ** (level - target)
        return node.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    size = 2 ** (target - level)
    blocks = node.reshape(batch, width, height // size, size, columns // size, size)
    return blocks.max(dim=5).values.max(dim=3).values


def literal_cell(levels: list[Tensor], convs: nn.ModuleList, activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """One cell by the counting rule: an output also sums earlier nodes of its level that nobody has consumed."""
    nodes, node_levels, consumers = list(levels), [3, 4, 5, 6, 7], [0] * 5
    for (level, attends, offsets, is_output), conv in zip(SEARCHED, convs, strict=True):
        first, second = (literal_resample(nodes[at], node_levels[at], level) for at in offsets)
        for at in offsets:
            consumers[at] += 1
        if attends and node_levels[offsets[0]] < node_levels[offsets[1]]:
            first, second = second, first
        gate = torch.sigmoid(first.flatten(2).max(dim=2).values)[:, :, None, None] if attends else 1.0
        total = first + second * gate
        for at, node in enumerate(nodes):
            if is_output and consumers[at] == 0 and node_levels[at] == level:
                total = total + node
                consumers[at] += 1
        nodes.append(conv(activation(total)))
        node_levels.append(level)
        consumers.append(0)
    return [node for _, node in sorted(zip(node_levels[-5:], nodes[-5:], strict=True), key=lambda pair: pair[0])]


def features(*, seed: int = 0, last: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, count, 16 >> at, 32 >> at, generator=generator) for at, count in enumerate(CHANNELS)]
    return [each.contiguous(memory_format=torch.channels_last) for each in maps] if last else maps


def pyramid(**changes: object) -> NASFPN:
    torch.manual_seed(0)
    return NASFPN(CHANNELS, SMALL.model_copy(update=changes))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda values: values.clamp(min=0),
    "silu": lambda values: values * values.sigmoid(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_nas_fpn_is_wired_as_the_literal_one(activation: str, separable: bool, training: bool) -> None:
    model = pyramid(pyramid_separable=separable, activation=activation).train(training)
    with torch.no_grad():
        got = model(features())
        levels = [narrow(each) for narrow, each in zip(model.inputs, features(), strict=True)]
        levels += [literal_resample(levels[2], 5, 6), literal_resample(levels[2], 5, 7)]
        for cell in model.cells:
            levels = literal_cell(levels, cell.convs, ACTIVATIONS[activation])
    assert [tuple(level.shape) for level in got] == [(2, WIDTH, 16 >> at, 32 >> at) for at in range(5)]
    for ours, literal in zip(got, levels, strict=True):
        torch.testing.assert_close(ours, literal)


def plain_cell() -> nn.Module:
    """A cell whose convolutions and norms hand on what they are given."""
    cell = pyramid().cells[0].eval()
    for conv, norm in cell.convs:
        nn.init.dirac_(conv.weight)
        norm.eps = 1e-30  # lost beside a variance of one; zero is not taken
    return cell


def test_merges_by_hand() -> None:
    p3, p4, p5, p6, p7 = given = [torch.tensor(value) for value in (0.3, 0.5, 1.1, 0.7, 1.3)]
    with torch.no_grad():
        got = plain_cell()([value.expand(1, WIDTH, 16 >> at, 16 >> at) for at, value in enumerate(given)])
    n5 = p6 + p4 * p6.sigmoid()
    n6 = p4 + n5
    n7 = p3 + n6
    n8 = n6 + n7
    n9 = n8 + n7 * n8.sigmoid() + p5
    n10 = n9 + n6 * n9.sigmoid() + p7
    n11 = n10 + n9 * n10.sigmoid()
    for level, value in zip(got, (n7, n8, n9, n11, n10), strict=True):
        torch.testing.assert_close(level, value.expand_as(level))


@pytest.mark.parametrize(("incoming", "reached"), [(2, (5, 6, 7)), (4, (6, 7))])
def test_incoming_5_and_7_enter_through_the_extra_sums_alone(incoming: int, reached: tuple[int, ...]) -> None:
    cell = pyramid().cells[0].eval()
    levels = [torch.rand(1, WIDTH, 16 >> at, 16 >> at).requires_grad_() for at in range(5)]
    for level, out in enumerate(cell(levels), start=3):
        (gradient,) = torch.autograd.grad(out.sum(), levels[incoming], retain_graph=True, allow_unused=True)
        assert (gradient is not None and bool((gradient != 0).any())) == (level in reached)


def test_the_gate_is_the_sigmoid_of_the_coarse_maximum() -> None:
    levels = [torch.zeros(1, WIDTH, 16 >> at, 16 >> at) for at in range(5)]
    levels[1][0, 0] = 1.0  # the fine input of the first merge
    levels[3][0, 0, 1, 0] = 2.0  # its coarse one, in one pixel of 2 x 2
    with torch.no_grad():
        level_3 = plain_cell()(levels)[0][0, 0]
    gate = 1 / (1 + torch.tensor(-2.0).exp())
    assert level_3[0, 0].item() == pytest.approx(1 + gate.item())  # p4 + p4 x gate, where the coarse map itself is 0
    assert level_3[15, 0].item() == pytest.approx(3 + gate.item())


def test_the_output_is_linear() -> None:
    for level in pyramid()(features()):
        means = level.mean(dim=(0, 2, 3))  # batch-norm comes last, so an activation would make all of it positive
        torch.testing.assert_close(means, torch.zeros(WIDTH), atol=1e-5, rtol=0)
        assert (level < 0).any()


def test_only_levels_of_another_width_are_convolved_on_entry() -> None:
    inputs = pyramid().inputs
    assert [type(each) for each in inputs] == [nn.Sequential, nn.Identity, nn.Sequential]
    assert [type(part) for part in inputs[0]] == [nn.Conv2d, nn.BatchNorm2d]
    assert inputs[0][0].kernel_size == (1, 1) and inputs[0][0].bias is not None


def test_separable_convolutions_are_depthwise_then_pointwise_with_the_bias() -> None:
    model = pyramid(pyramid_separable=True)
    for block, kernel in ((model.inputs[0], 1), (model.cells[1].convs[6], 3)):
        depthwise, pointwise, _ = block
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
        assert depthwise.kernel_size == (kernel, kernel) and depthwise.bias is None
        assert pointwise.kernel_size == (1, 1) and pointwise.groups == 1 and pointwise.bias is not None


@pytest.mark.parametrize("repeats", [1, 7])
def test_repeats_have_weights_of_their_own(repeats: int) -> None:
    cells = pyramid(pyramid_repeats=repeats).cells
    assert len({id(cell.convs[0][0].weight) for cell in cells}) == repeats


@pytest.mark.parametrize("separable", [False, True])
def test_channels_last_stays_and_changes_nothing(separable: bool) -> None:
    model = pyramid(pyramid_separable=separable).eval()
    with torch.no_grad():
        plain = model(features())
        last = model.to(memory_format=torch.channels_last)(features(last=True))
    for one, other in zip(plain, last, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in last)


def test_half_precision_gradients_are_those_of_full() -> None:
    model, gradients = pyramid(pyramid_separable=True), []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = model([each[..., : each.shape[2]] for each in features()])  # level 7 is one pixel wide
        torch.autograd.backward([level.float().square().sum() for level in outputs])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize(("repeats", "millions", "billions"), [(7, 60.1, 140.6), (5, 51.8, None)])
def test_parameters_of_the_papers_nas_fpn_detector(repeats: int, millions: float, billions: float | None) -> None:
    with torch.device("meta"):
        model = build_detector(ModelConfig(backbone="resnet50", pyramid="nas-fpn", pyramid_repeats=repeats), 91)
    assert round(count_parameters(model) / 1e6, 1) == millions
    if billions:  # as the TPU code's model zoo states, for 640 x 640
        assert count_multiply_adds(model, (640, 640)) / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_nas_fpn_is_part_of_a_detector() -> None:
    model = build_detector(SMALL.model_copy(update={"head_width": 8, "head_depth": 1, "pyramid_repeats": 1}), 3)
    outputs = model(torch.zeros(1, 3, 128, 256, dtype=torch.uint8), torch.tensor([[128, 200]]))
    assert outputs.logits.shape == (1, 9 * (16 * 32 + 8 * 16 + 4 * 8 + 2 * 4 + 1 * 2), 3)
    assert isinstance(model.pyramid, NASFPN)


@pytest.mark.parametrize("build", [build_detector, build_segmenter])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_level": 5}, r"model\.pyramid: a nas-fpn is wired for levels 3 to 7; .* are 3 and 5.*model\.pyramid=fpn"),
        ({"min_level": 4}, r"are 4 and 7"),
        ({"canvas": (128, 160)}, r"model\.canvas: 128 x 160; both sides must be multiples of 128.*\[128, 256\]"),
        ({"pyramid": "fpn", "canvas": (128, 80)}, r"multiples of 32, the stride of the backbone.*\[128, 96\]"),
        ({"min_level": 5, "max_level": 4}, r"model\.min_level: 5 is above model\.max_level 4"),
    ],
)
def test_what_a_pyramid_cannot_have_is_refused(build: object, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(SMALL.model_copy(update=changes), 3)


def test_an_fpn_takes_canvases_that_its_coarse_levels_do_not_divide() -> None:
    model = build_detector(SMALL.model_copy(update={"pyramid": "fpn", "canvas": (96, 160)}), 3).eval()
    with torch.no_grad():
        levels = model.pyramid(model.backbone(torch.zeros(1, 3, 96, 160)))
    assert [tuple(level.shape[-2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
