"""Options of everything that trains on classified images: pre-training and joint training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tutelage.config.part import Fraction, Part, PositiveInt


class SimCLRConfig(Part):
    """Contrastive pre-training on images without labels (arXiv:2002.05709)."""

    color_strength: float = Field(1.0, ge=0, description="strength of the color jitter of both views")
    blur: Fraction = Field(0.5, description="probability that a view is blurred")
    projection_layers: Literal[2, 3] = Field(2, description="layers of the projection head (3: SimCLR v2)")
    projection_width: PositiveInt = Field(128, description="length of the vectors that are compared")
    temperature: float = Field(0.1, gt=0, description="of the softmax over similarities")
    probe_fraction: Fraction = Field(0.1, description="share of each class held out to measure the linear probe")


class NoisyStudentConfig(Part):
    """Noisy Student for classification (arXiv:1911.04252): a teacher's classes of a pool, balanced, and a student."""

    rounds: PositiveInt = Field(1, description="teacher-student rounds; a student is the next round's teacher")
    backbone: str = Field("", description="the students' backbone, which may be larger; the teacher's when empty")
    soft: bool = Field(True, description="pool targets: the teacher's probabilities, or its first class")
    floor: Fraction = Field(0.3, description="least probability of the first class that a pool image is used with")
    per_class: int = Field(
        0, ge=0, description="pool images a class after thinning and duplicating (paper: 130000); 0 is the median class"
    )
    ratio: PositiveInt = Field(3, description="pool images for each labeled image of a batch (paper: 1 for B0, else 3)")


Policy = Literal["randaugment", "autoaugment", "none"]


class ClassifiedConfig(Part):
    """What a classified image undergoes in training."""

    size: int = Field(description="side of the square images")
    least_area: Fraction = Field(0.08, description="least share of an image that a random crop takes")
    policy: Policy = Field(description="what follows crop and flip")
    layers: int = Field(2, ge=0, description="RandAugment operations an image")
    magnitude: float = Field(9.0, ge=0, le=30, description="RandAugment magnitude")
    label_smoothing: Fraction = Field(description="share of the target spread over all classes")


class PretrainConfig(ClassifiedConfig):
    """Pre-training of a backbone; the training itself is `train`."""

    method: Literal["supervised", "simclr", "noisy-student"] = Field("supervised", description="how it is trained")
    size: int = Field(128, ge=8, le=4096, description="side of the square training images")
    policy: Policy = Field(
        "randaugment", description="what follows crop and flip (AutoAugment: the ImageNet policy v0)"
    )
    label_smoothing: Fraction = Field(0.1, description="share of the target spread over all classes")
    dropout: Fraction = Field(0.0, description="dropout before the classifier (EfficientNet-B7: 0.5)")
    test_fraction: Fraction = Field(0.1, description="share of each class held out to measure accuracy")
    simclr: SimCLRConfig = Field(default_factory=SimCLRConfig, description="contrastive pre-training")
    noisy_student: NoisyStudentConfig = Field(default_factory=NoisyStudentConfig, description="Noisy Student")


class JointConfig(ClassifiedConfig):
    """Image classification beside the task in one model (arXiv:2006.06882, sec. 5); used where --classification is."""

    required: bool = Field(False, description="refuse to train without --classification (the joint recipes)")
    weight: float = Field(0.5, ge=0, description="weight w of the classification loss beside supervised training")
    student_weight: float = Field(0.2, ge=0, description="weight w of it beside self-training (student and control)")
    stream: Literal["classification", "labeled"] = Field(
        "classification", description="what is drawn: classified images, or (control) the task's, with equal compute"
    )
    batch_size: int = Field(0, ge=0, description="classified images a step, over all devices; 0 is the labeled batch")
    size: int = Field(224, ge=8, le=4096, description="side of the square classified images")
    policy: Policy = Field("none", description="what follows crop and flip")
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
    update_norms: bool = Field(True, description="whether classified images enter the batch-norm statistics")
