"""Every option, defined once: frozen models, one for each part of a run.

`teacher` and `student` are whole training parts made by laying their own keys over `train`, so that nothing is left to
be filled in once a `RunConfig` exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from tutelage.config.classified import JointConfig, PretrainConfig
from tutelage.config.part import Fraction, Part, PositiveInt

TaskName = Literal["detection", "segmentation"]
METRICS_OF_TASK: dict[str, tuple[str, ...]] = {
    "detection": ("ap", "ap50", "ap75"),
    "segmentation": ("miou", "pixel_accuracy", "boundary_iou"),
}
JITTER_OF_LEVEL: dict[str, tuple[float, float]] = {
    "none": (1.0, 1.0),
    "s1": (0.8, 1.2),  # arXiv:2006.06882, table 1
    "s2": (0.8, 1.2),
    "s3": (0.5, 2.0),
    "s4": (0.5, 2.0),
}


class SourcesConfig(Part):
    """Where the data lies; outside the hash, which takes the content instead."""

    labeled: tuple[str, ...] = Field((), description="labeled data: files or folders in any known format")
    labeled_list: str = Field("", description="text file of paths, names or stems: only these images stay labeled")
    unlabeled: tuple[str, ...] = Field((), description="the pool: folders of images, lists of paths, or data sets")
    val: tuple[str, ...] = Field((), description="selection split; only what is chosen is chosen on it")
    test: tuple[str, ...] = Field((), description="test split; only measured on, never chosen on")
    classification: tuple[str, ...] = Field((), description="classified images for joint training: class folders")
    teacher: str = Field("", description="finished model that takes the teacher's place")
    pseudo: str = Field("", description="finished store that takes the place of the first round's labeling")
    verdicts: str = Field("", description="what people said of pseudo-labels: a file that review wrote or imported")
    stages: str = Field("", description="folder of stages shared between runs; the run's own when empty")
    images: str = Field("", description="folder that image paths in annotations are relative to; found when empty")


class DataConfig(Part):
    """How data is read."""

    bad_boxes: Literal["error", "clip", "drop"] = Field(
        "error", description="boxes that are empty, infinite or outside their image"
    )
    boxes_in: Literal["shown", "stored"] = Field(
        "shown",
        description="pixels that boxes and masks of EXIF-rotated images refer to, where the annotated size is silent",
    )
    classes: tuple[str, ...] | str = Field(
        "", description="names of the mask classes in the order of their values, or a file that lists them"
    )
    ignore_values: tuple[int | str, ...] = Field(
        (255,), description="mask values, or colors as #RRGGBB, of pixels without a label"
    )
    background: Literal["class", "ignore"] = Field(
        "class", description="pixels that no polygon covers: a class of that name, or without a label"
    )
    range: tuple[float, float] = Field((0.0, 65535.0), description="16-bit values that become 0 and 255")
    truncated: Literal["error", "accept"] = Field("error", description="a JPEG that ends early in labeled or test data")
    max_pixels: PositiveInt = Field(178_956_970, description="larger images are refused as decompression bombs")
    unlisted: Literal["error", "negative", "pool"] = Field(
        "error", description="an image file beside the annotations that has no entry in them"
    )
    labeled_fraction: float = Field(1.0, gt=0, le=1, description="share of the labeled images that keeps its labels")
    rest_as_pool: bool = Field(False, description="images without labels by `labeled_fraction` or a list join the pool")
    group: str = Field(
        "none", description="images that belong together in splits: none, parent, or a pattern with one group"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the labels that is test when none is given")
    val_fraction: Fraction = Field(
        0.0, description="share of the labels set aside as selection split when none is given"
    )


class AugmentConfig(Part):
    """What a training image undergoes."""

    level: Literal["none", "s1", "s2", "s3", "s4"] = Field("s1", description="augmentation level of the paper")
    jitter: tuple[float, float] = Field(
        (0.8, 1.2), description="image size over canvas size, drawn uniformly; follows from the level unless given"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    policy: Literal["v0", "v1", "v2", "v3"] = Field("v0", description="AutoAugment policy of s2 and s3")
    layers: int = Field(2, ge=0, description="RandAugment operations an image, in s4")
    magnitude: float = Field(10.0, ge=0, le=30, description="RandAugment magnitude, in s4 (paper: 10; ResNet-101 15)")
    pixel_scale: float = Field(
        1.0,
        gt=0,
        description="factor on the policies' pixel distances, which are meant for photographs of about 640 px",
    )

    @model_validator(mode="before")
    @classmethod
    def _jitter_follows_level(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "jitter" not in raw:
            return {**raw, "jitter": JITTER_OF_LEVEL.get(str(raw.get("level", "s1")), (0.8, 1.2))}
        return raw


class AnchorConfig(Part):
    """Anchors of a RetinaNet (facts: TPU detection code, anchor.py)."""

    size: Annotated[float, Field(gt=0)] | Literal["fit"] = Field(
        4.0, description="side of the base anchor in strides; fit: what overlaps the labeled boxes most"
    )
    octaves: PositiveInt = Field(3, description="scales a level: 2^(0/n) .. 2^((n-1)/n)")
    aspect_ratios: tuple[float, ...] = Field((1.0, 2.0, 0.5), description="width over height")

    @property
    def side(self) -> float:
        """`size`; that of the original where it is still to be fitted."""
        return 4.0 if self.size == "fit" else self.size


class NormConfig(Part):
    """Batch normalization of pyramid and heads (and of the backbone where `backbone_norm` says so)."""

    momentum: float = Field(
        0.003, gt=0, lt=1, description="share of the new batch in the running statistics (1 - 0.997)"
    )
    eps: float = Field(1e-4, gt=0, description="added to the variance")


class LossConfig(Part):
    """Detection losses (facts 1.6)."""

    focal_alpha: Fraction = Field(0.25, description="weight of positives in the focal loss")
    focal_gamma: float = Field(1.5, ge=0, description="focusing exponent")
    huber_delta: float = Field(0.1, gt=0, description="where the box loss turns linear")
    box_weight: float = Field(50.0, ge=0, description="weight of the box loss, which is normalized by 4 x positives")


class ModelConfig(Part):
    """The network."""

    backbone: str = Field(
        "resnet10t",
        description="a timm model with stages at strides 8, 16, 32, a plain ViT of timm, or spinenet49 and its like",
    )
    init: str = Field(
        "random",
        description="random, imagenet, imagenet++, simclr, simclr:FILE, MODEL.TAG of timm, or a checkpoint: a file "
        "(TensorFlow's as .npz) or folder",
    )
    num_classes: PositiveInt = Field(91, description="classes where no data says so (`show`)")
    min_level: int = Field(3, ge=2, le=5, description="finest pyramid level; its stride is 2^level")
    max_level: int = Field(7, ge=3, le=8, description="coarsest pyramid level")
    pyramid: Literal["fpn", "nas-fpn", "none"] = Field("fpn", description="feature pyramid; a SpineNet needs none")
    pyramid_width: PositiveInt = Field(256, description="channels of the pyramid, or of a SpineNet's endpoints")
    pyramid_repeats: int = Field(7, ge=1, le=7, description="cells of a nas-fpn, one after the other")
    pyramid_separable: bool = Field(False, description="depthwise-separable convolutions in a nas-fpn")
    head_width: PositiveInt = Field(256, description="channels of the heads' towers")
    head_depth: int = Field(4, ge=0, description="convolutions of each tower")
    activation: Literal["relu", "silu"] = Field(
        "relu", description="activation of pyramid and heads, and of a SpineNet"
    )
    drop_path: Fraction = Field(0.0, description="stochastic depth of the backbone (EfficientNet, SpineNet: 0.2)")
    norm: NormConfig = Field(default_factory=NormConfig, description="batch-norm of pyramid and heads")
    backbone_norm: Literal["own", "shared"] = Field(
        "shared",
        description="own: the backbone keeps its own batch-norm constants (EfficientNet); shared: takes `norm`",
    )
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="anchor boxes")
    loss: LossConfig = Field(default_factory=LossConfig, description="loss constants")
    canvas: tuple[PositiveInt, PositiveInt] = Field((640, 640), description="network input (height, width) in pixels")


class TrainConfig(Part):
    """One training."""

    batch_size: PositiveInt = Field(16, description="labeled images a step, over all devices")
    passes: float = Field(100.0, ge=0, description="length in passes over the labeled images")
    min_steps: PositiveInt = Field(100, description="least number of steps")
    optimizer: Literal["sgd", "adamw", "rmsprop", "lars"] = Field("sgd", description="optimizer")
    lr: float = Field(0.32, gt=0, description="peak learning rate at `lr_batch_size` labeled images a step")
    lr_batch_size: PositiveInt = Field(256, description="batch size that `lr` is meant for")
    lr_rule: Literal["linear", "sqrt", "fixed"] = Field("linear", description="how the rate follows `batch_size`")
    momentum: Fraction = Field(0.9, description="momentum (SGD, RMSprop, LARS) or beta1 (AdamW)")
    weight_decay: float = Field(1e-4, ge=0, description="decay of kernels")
    decay_norms: bool = Field(False, description="decay batch-norm weights and biases too (ResNet-101 study)")
    schedule: Literal["cosine", "step", "exponential", "constant"] = Field(
        "cosine", description="learning rate after warm-up"
    )
    decay_at: tuple[Fraction, ...] = Field(
        (0.94, 0.98), description="where `step` multiplies the rate by 0.1, of the length"
    )
    decay_rate: float = Field(0.97, gt=0, le=1, description="factor of `exponential` (EfficientNet: 0.97)")
    decay_every: float = Field(
        2.4 / 350,
        gt=0,
        le=1,
        description="share of the length after which `exponential` multiplies (2.4 of 350 epochs)",
    )
    warmup_steps: int = Field(1000, ge=0, description="steps of linear warm-up; at most a tenth of the training")
    warmup_start: Fraction = Field(0.01, description="first rate over the peak rate (0.0032 / 0.32)")
    clip_norm: float = Field(0.0, ge=0, description="largest global norm of the gradient; 0 is off")
    ema_decay: Fraction = Field(0.0, description="decay of the averaged weights, which are then reported; 0 is off")
    ignored: Literal["mask", "drop"] = Field(
        "mask", description="anchors in ignored regions: out of the loss, or negatives"
    )
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="augmentation")


class OnlineConfig(Part):
    """A teacher that is the running average of the student and labels the pool as training goes."""

    burn_in: int = Field(100, ge=0, description="steps on labeled images alone before pseudo-labels count")
    decay: Fraction = Field(
        0.9996,
        description="largest decay of the running average, min(decay, 1 - 10 / steps), the teacher's steps counted",
    )
    sample: PositiveInt = Field(256, description="pool images whose pseudo-labels are stored to be looked at")


class StudentConfig(TrainConfig):
    """The student's training, and the control's, which differs in `second_stream` alone."""

    init: str = Field("teacher", description="teacher: its weights; model: what `model.init` says; or as `model.init`")
    second_stream: Literal["pool", "labeled", "hidden"] = Field(
        "pool",
        description="second half of a batch: pseudo-labeled pool; labeled images (control); pool with human labels",
    )
    alpha: float = Field(1.0, ge=0, description="weight of the second stream's loss")
    loss: Literal["normalized", "sum"] = Field("normalized", description="how both losses add (paper, app. B)")
    average_decay: float = Field(
        0.9997, ge=0, lt=1, description="decay of the losses' running averages (paper, app. B)"
    )
    mode: Literal["offline", "online"] = Field(
        "offline",
        description="who labels: the teacher once before training, or the student's running average during it",
    )
    online: OnlineConfig = Field(default_factory=OnlineConfig, description="a teacher that learns on")


class PostprocessConfig(Part):
    """From raw outputs to boxes (facts 1.7)."""

    top_k: PositiveInt = Field(5000, description="scores a class that enter suppression")
    score_floor: Fraction = Field(0.05, description="detections below are dropped")
    nms: Literal["hard", "soft"] = Field("hard", description="non-maximum suppression: hard, or Gaussian Soft-NMS")
    nms_iou: Fraction = Field(0.5, description="overlap above which hard NMS drops a box")
    nms_sigma: float = Field(0.3, gt=0, description="width of Soft-NMS")
    max_detections: PositiveInt = Field(100, description="detections an image")


View = Literal["identity", "hflip", "vflip", "rot180", "transpose", "antitranspose", "rot90", "rot270"]


class LabelConfig(Part):
    """How the teacher labels the pool."""

    views: tuple[View, ...] = Field(
        ("identity",), description="views whose outputs are averaged: raw ones of boxes, probabilities of pixels"
    )
    scales: tuple[float, ...] = Field((1.0,), min_length=1, description="canvas scales that every view is seen at")
    size: Literal["network", "original"] = Field("network", description="size that pseudo-masks are stored at")
    part_size: PositiveInt = Field(256, description="pool images a part of the store")


class PseudoConfig(Part):
    """How stored pseudo-labels become targets."""

    score_threshold: Fraction | dict[str, Fraction] | Literal["certified"] = Field(
        0.5, description="least score of a pseudo-label; one number, one for each class name, or what `certify` found"
    )
    class_share: float = Field(
        1.0, gt=0, le=1, description="share of each class's pseudo-labels above its threshold that is kept, the surest"
    )
    ratio: PositiveInt = Field(1, description="second-stream images for each labeled image of a batch")
    empty: Literal["background", "drop"] = Field(
        "background",
        description="pool images without a confident box or pixel: background (masks: without a label), or not used",
    )
    unsure: Literal["negative", "ignore"] = Field(
        "negative", description="boxes between floor and threshold: background as in the paper, or out of the loss"
    )

    @field_validator("score_threshold", mode="wrap")
    @classmethod
    def _one_message(cls, given: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validated(given)
        except ValidationError:  # of each of the three
            raise ValueError(
                "a number from 0 to 1, such numbers by class name ({cat: 0.5, dog: 0.7}), or certified is allowed"
            ) from None


class CertifyConfig(Part):
    """What precision the pseudo-labels have, shown on human labels that the teacher did not train on."""

    fraction: Fraction = Field(
        0.0, description="share of the labeled images set aside to certify on; 0 sets none aside"
    )
    folds: int = Field(0, ge=0, description="teachers that each leave a fold out, where labels are few; 0 is none")
    precision: float = Field(
        0.9, gt=0, lt=1, description="precision that the threshold of each class has to be shown to meet"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="of the promise, and of the intervals")
    iou: float = Field(0.5, gt=0, le=1, description="least overlap of a right box with a human one")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.fraction and self.folds:
            raise ValueError("certify.fraction and certify.folds: only one of them is allowed; set the other to 0")
        if self.folds == 1:
            raise ValueError("certify.folds=1: a fold must leave labels to train on; 0, or 2 and more, are allowed")
        return self


class EvalConfig(Part):
    """How results are measured."""

    metric: Literal["ap", "ap50", "ap75", "miou", "pixel_accuracy", "boundary_iou"] = Field(
        "ap", description="figure that verdict and recommendation go by; miou for segmentation unless given"
    )
    size: int = Field(
        0, ge=0, description="long side in pixels that masks are measured at; 0 is each image's own (paper: 512)"
    )
    resamples: PositiveInt = Field(
        1000, description="bootstrap resamples, where there are enough test images for a bootstrap"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    points: int = Field(5, ge=0, description="selection-split measurements along a training; none without such a split")


class RuntimeConfig(Part):
    """What changes speed, not results."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    devices: PositiveInt = Field(1, description="processes, one a device")
    device_batch_size: int = Field(0, ge=0, description="labeled images a forward on one device; 0 is all at once")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type; auto is measured on a CPU when a run is begun, and bfloat16 on GPUs that have it",
    )
    channels_last: bool = Field(True, description="memory layout of images and kernels")
    compile: bool = Field(False, description="compile the training step")
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    workers: int = Field(-1, ge=-1, description="loader processes; -1 chooses by the cores")
    threads: int = Field(0, ge=0, description="compute threads a process; 0 chooses by the cores")
    cache_megabytes: int = Field(512, ge=0, description="sets that fit are kept decoded in memory")
    log_every: PositiveInt = Field(50, description="steps between lines of the log")
    checkpoint_seconds: float = Field(120.0, ge=0, description="time between checkpoints")


class RunConfig(Part):
    """A complete run."""

    task: TaskName = Field("detection", description="what a label means")
    seed: int = Field(0, ge=0, description="seed of everything drawn")
    rounds: PositiveInt = Field(1, description="teacher-student rounds; a student is the next round's teacher")
    repeats: PositiveInt = Field(1, description="seeds that control and student are trained with")
    guard: Literal["warn", "stop"] = Field("warn", description="what happens to a run that is lost: said, or ended")
    hidden_arm: bool = Field(False, description="also train on the pool's hidden human labels, where they exist")
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    teacher: TrainConfig = Field(default_factory=TrainConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    postprocess: PostprocessConfig = Field(default_factory=PostprocessConfig)
    label: LabelConfig = Field(default_factory=LabelConfig)
    pseudo: PseudoConfig = Field(default_factory=PseudoConfig)
    certify: CertifyConfig = Field(default_factory=CertifyConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    joint: JointConfig = Field(default_factory=JointConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

    @model_validator(mode="before")
    @classmethod
    def _parts_follow_train(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        train = raw.get("train", {})
        over = {part: raw.get(part, {}) for part in ("teacher", "student")}
        mappings = isinstance(train, Mapping)
        laid = {part: merge(train, own) for part, own in over.items() if mappings and isinstance(own, Mapping)}
        return {**raw, **laid}

    @model_validator(mode="before")
    @classmethod
    def _metric_follows_task(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("eval", {}), Mapping):
            return raw
        metrics = METRICS_OF_TASK.get(str(raw.get("task", "detection")), ("ap",))
        return {**raw, "eval": {"metric": metrics[0], **raw.get("eval", {})}}

    @model_validator(mode="after")
    def _metric_is_of_the_task(self) -> Self:
        if self.eval.metric not in METRICS_OF_TASK[self.task]:
            allowed = ", ".join(METRICS_OF_TASK[self.task])
            raise ValueError(f"eval.metric={self.eval.metric} is no figure of {self.task}, which has {allowed}")
        return self

    @model_validator(mode="after")
    def _unsure_boxes_can_be_ignored(self) -> Self:
        if self.pseudo.unsure == "ignore" and self.student.ignored == "drop":
            raise ValueError("pseudo.unsure=ignore needs student.ignored=mask: drop would make the boxes negatives")
        return self

    @property
    def certifies(self) -> bool:
        """Whether pseudo-labels are certified on labeled images."""
        return bool(self.certify.fraction or self.certify.folds or self.pseudo.score_threshold == "certified")

    def to_yaml(self) -> str:
        """The whole resolved config as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
