"""The stages of a run by what they compute: which networks, how often, on how many images.

Multiply-adds are of the forward pass; the backward pass takes twice as many, and activation checkpointing one forward
pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tutelage.config import RunConfig, StudentConfig, TrainConfig
from tutelage.data.apart import Division
from tutelage.engine.optim import num_steps_for
from tutelage.workflows.costing.images import Images, pretrains
from tutelage.workflows.costing.network import DryNetwork, classifier_network, main_network
from tutelage.workflows.joint import added_images
from tutelage.workflows.modes import MODES
from tutelage.workflows.pretraining.probe import MOST_IMAGES

FLOPS = 2  # of a multiply-add


@dataclass(frozen=True)
class Stage:
    """What a kind of stage costs; `times` of them all together, but memory, which is one device's."""

    name: str
    times: int
    parameters: int
    multiply_adds: int  # of one image of the task, all its views together
    images_seen: int
    flops: int
    memory_bytes: int


@dataclass(frozen=True)
class Pass:
    """Images that pass a network in each step of a training."""

    network: DryNetwork
    images: int
    views: int = 1  # of every image
    looks: int = 0  # at every image, by a teacher: forward passes alone


def stages_of(config: RunConfig, images: Images) -> list[Stage]:
    """What `tutelage fit` does with a recipe, or `tutelage pretrain` where it is for that."""
    return PRETRAININGS[config.pretrain.method](config, images) if pretrains(config) else _fit(config, images)


def _fit(config: RunConfig, images: Images) -> list[Stage]:
    """Teacher, labeling, control, student, and what is certified and measured on."""
    network = main_network(config, images.num_classes)
    certifying, images = _certifying(config, network, images)
    student, ratio = config.student.batch_size, config.pseudo.ratio
    chains = config.rounds * config.repeats
    stages = []
    for name, added in _joint_arms(config, network).items():
        streams = [Pass(network, config.teacher.batch_size), *added]
        stages.append(_training(name, 1, config, config.teacher, images.labeled, streams))
    models = len(stages) + (3 if config.hidden_arm else 2) * chains
    stages += certifying
    stores, mode = 1 + (config.rounds - 1) * config.repeats, MODES[config.student.mode]
    labeled = images.pool if mode.needs_store else min(config.student.online.sample, images.pool)
    stages.append(_labeling(config, network, stores, labeled))
    for arm in ("control", "student", *(["hidden"] if config.hidden_arm else [])):
        second = Pass(network, student * ratio, looks=mode.views - 1)
        streams = [Pass(network, student), second, *_classified(config, student)]
        stages.append(_training(arm, chains, config, _student(config), images.labeled, streams))
    if images.test:
        stages.append(_inference("evaluate", models, config, network, images.test))
    return stages


def _certifying(config: RunConfig, network: DryNetwork, images: Images) -> tuple[list[Stage], Images]:
    """Teachers of folds and what is looked at to certify, where that is asked for; and the images that are left."""
    if not config.certifies:
        return [], images
    fraction, folds, _ = Division.of(config.certify, images.labeled)
    if folds:
        streams = [Pass(network, config.teacher.batch_size), *_classified(config, config.teacher.batch_size)]
        fold = _training("fold", folds, config, config.teacher, images.labeled - images.labeled // folds, streams)
        return [fold, _labeling(config, network, 1, images.labeled, name="certify")], images
    aside, rounds = round(fraction * images.labeled), 1 + (config.rounds - 1) * config.repeats
    looks = _labeling(config, network, rounds, aside, name="certify")
    return [looks], replace(images, labeled=images.labeled - aside)


def largest_pass(config: RunConfig) -> tuple[TrainConfig, int]:
    """The training that needs the most memory, and the images of its network that pass a device at once."""
    part = config.train if pretrains(config) else _student(config)
    views = {"supervised": 1, "simclr": 2, "noisy-student": 1 + config.pretrain.noisy_student.ratio}
    factor = views[config.pretrain.method] if pretrains(config) else 1 + config.pseudo.ratio
    return part, factor * images_a_pass(config, part.batch_size)


def _student(config: RunConfig) -> StudentConfig:
    """The student's training part with the averaged weights that its mode keeps."""
    student = config.student
    averages = MODES[student.mode].average(student, before=0) is not None
    return student.model_copy(update={"ema_decay": student.online.decay}) if averages else student


def _supervised(config: RunConfig, images: Images) -> list[Stage]:
    network = main_network(config, images.num_classes)
    streams = [Pass(network, config.train.batch_size)]
    return [
        _training("pretrain", 1, config, config.train, images.labeled, streams),
        *_measured(config, network, 1, images),
    ]


def _simclr(config: RunConfig, images: Images) -> list[Stage]:
    """Two views of every image; the projection head, a small part of the work, is left out.

    The probe sees images with the network as it started and as it ended.
    """
    network = main_network(config, images.num_classes)
    streams = [Pass(network, config.train.batch_size, views=2)]
    stage = _training("pretrain", 1, config, config.train, images.labeled + images.pool, streams)
    probed = min(images.labeled, MOST_IMAGES) + images.test
    return [stage, _inference("probe", 2, config, network, probed)]


def _noisy_student(config: RunConfig, images: Images) -> list[Stage]:
    noisy, teacher = config.pretrain.noisy_student, main_network(config, images.num_classes)
    backbone = noisy.backbone or config.model.backbone
    student = teacher if backbone == config.model.backbone else main_network(config, images.num_classes, backbone)
    batch = config.train.batch_size
    own = [Pass(teacher, batch)]
    both = [Pass(student, batch * (1 + noisy.ratio))]
    stages = [
        _training("teacher", 1, config, config.train, images.labeled, own),
        _inference("label", 1, config, teacher, images.pool),
    ]
    if noisy.rounds > 1:
        stages.append(_inference("label-again", noisy.rounds - 1, config, student, images.pool))
    for arm, times in {"control": 1, "student": noisy.rounds}.items():
        stages.append(_training(arm, times, config, config.train, images.labeled, both))
    return stages + _measured(config, student, 2 + noisy.rounds, images)


PRETRAININGS: dict[str, Callable[[RunConfig, Images], list[Stage]]] = {
    "supervised": _supervised,
    "simclr": _simclr,
    "noisy-student": _noisy_student,
}


def _training(
    name: str, times: int, config: RunConfig, part: TrainConfig, num_labeled: int, streams: Sequence[Pass]
) -> Stage:
    """A training; the first of its streams is the task's, and its network the one that is trained."""
    steps = num_steps_for(part, num_labeled)
    flops = sum(
        stream.images
        * (stream.views * flops_an_image(config, stream.network) + stream.looks * FLOPS * stream.network.multiply_adds)
        for stream in streams
    )
    share = images_a_pass(config, part.batch_size) / part.batch_size
    activations = sum(stream.images * stream.views * stream.network.activations for stream in streams)
    first = streams[0]
    return Stage(
        name=name,
        times=times,
        parameters=first.network.parameters,
        multiply_adds=first.views * first.network.multiply_adds,
        images_seen=times * steps * sum(stream.images for stream in streams),
        flops=times * steps * flops,
        memory_bytes=first.network.step_memory(part, round(share * activations)).total,
    )


def _labeling(config: RunConfig, network: DryNetwork, times: int, num_images: int, name: str = "label") -> Stage:
    """Every image passes in every view and at every scale, whose pixels grow with its square."""
    label = config.label
    views = len(label.views) * sum(scale**2 for scale in label.scales)
    return _inference(name, times, config, network, num_images, views=views, largest=max(label.scales) ** 2)


def _measured(config: RunConfig, network: DryNetwork, times: int, images: Images) -> list[Stage]:
    return [_inference("evaluate", times, config, network, images.test)] if images.test else []


def _inference(
    name: str,
    times: int,
    config: RunConfig,
    network: DryNetwork,
    num_images: int,
    *,
    views: float = 1.0,
    largest: float = 1.0,
) -> Stage:
    """Forward passes alone, of so many canvases an image, the largest with so many times a canvas's pixels."""
    multiply_adds = round(views * network.multiply_adds)
    images = min(images_a_pass(config, config.teacher.batch_size), config.label.part_size)
    activations = round(images * largest * network.inference)
    return Stage(
        name=name,
        times=times,
        parameters=network.parameters,
        multiply_adds=multiply_adds,
        images_seen=times * num_images,
        flops=times * FLOPS * multiply_adds * num_images,
        memory_bytes=network.weight_bytes + activations,
    )


def _joint_arms(config: RunConfig, network: DryNetwork) -> dict[str, list[Pass]]:
    """What the trainings on labels alone pass besides: classified images and, in the control, labeled ones."""
    batch_size = config.teacher.batch_size
    classified = _classified(config, batch_size)
    if not classified:
        return {"teacher": []}
    labeled = Pass(network, added_images(config, batch_size, control=True))
    return {"teacher": classified, "teacher-control": [labeled]}


def _classified(config: RunConfig, labeled: int) -> list[Pass]:
    """The classified images of a joint training beside `labeled` images a step."""
    if not (config.joint.required or config.sources.classification):
        return []
    return [Pass(classifier_network(config, config.joint.size), added_images(config, labeled, control=False))]


def flops_an_image(config: RunConfig, network: DryNetwork) -> int:
    """Of a training step: forward, backward by inputs and by weights, and forward again with checkpointing."""
    return FLOPS * (4 if config.runtime.activation_checkpointing else 3) * network.multiply_adds


def images_a_pass(config: RunConfig, batch_size: int) -> int:
    """Labeled images that a device passes at once."""
    own = max(1, batch_size // config.runtime.devices)
    return min(own, config.runtime.device_batch_size or own)
