"""What joint training adds to a training: classified images and their loss, or the control that takes their place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from tutelage.config import RunConfig
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.loader import classification_batches
from tutelage.data.readers import open_index
from tutelage.engine.loop import Stream, Training
from tutelage.engine.objectives import Joint, JointControl, Objective
from tutelage.models.model import Network
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import InputError

NOT_IN_KEY = {"weight", "student_weight", "required"}  # of `joint`: the weight in use is there by itself


def open_classified(config: RunConfig) -> Index | None:
    """The classified images of a joint training, joined by class name; None where none were given.

    Raises:
        InputError: the recipe needs them, an image is in no class, or there are fewer than two classes.
    """
    given = config.sources.classification
    if not given and config.joint.required:
        raise InputError(
            "--classification: was not given; this recipe trains the task and image classification together "
            "(joint.required). Add --classification FOLDER of class folders, or take a recipe without joint training."
        )
    if not given:
        return None
    index = join([open_index(source, config.data) for source in given])
    unclassified = int((index.image_classes() < 0).sum())
    if len(index.class_names) < 2 or unclassified:
        raise InputError(
            f"--classification {', '.join(given)}: {len(index.class_names)} classes were found, and {unclassified} "
            "images without one; joint training needs at least two classes and a class for every image. Give a folder "
            "of class folders, a csv of images and labels, or tars."
        )
    return index


def teachers(config: RunConfig, classified: Index | None) -> dict[str, RunConfig]:
    """The trainings of a fit on labels alone, by stage: the teacher's and, where it is joint, that of its control.

    Their configs differ in `joint.stream` and in nothing else.
    """
    control = config.model_copy(update={"joint": config.joint.model_copy(update={"stream": "labeled"})})
    return {"teacher": config} | ({"teacher-control": control} if classified is not None else {})


def joint_training(config: RunConfig, classified: Index | None, weight: float) -> JointTraining | None:
    """What joint training adds to a training; nothing where there are no classified images."""
    return None if classified is None else JointTraining(config, classified, weight)


@dataclass(frozen=True)
class JointTraining:
    """The part of a training that joint training adds, as `config.joint` says."""

    config: RunConfig
    classified: Index
    weight: float  # w: of the added loss

    @property
    def is_control(self) -> bool:
        """Whether labeled images of the task take the place of classified ones."""
        return self.config.joint.stream == "labeled"

    @property
    def stream(self) -> str:
        """The name of the added stream."""
        return (JointControl if self.is_control else Joint).added

    @property
    def image_classes(self) -> tuple[str, ...]:
        """What the network's classifier tells apart; none in the control."""
        return () if self.is_control else self.classified.class_names

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of the added images."""
        side = self.config.joint.size
        return self.config.model.canvas if self.is_control else (side, side)

    @property
    def key(self) -> dict[str, Any]:
        """What it adds to a stage's key: the control depends on no classified images."""
        own = self.config.joint.model_dump(mode="json", exclude=NOT_IN_KEY)
        content = {} if self.is_control else {"classification": self.classified.fingerprint}
        return {"joint": {**own, "weight": self.weight, **content}}

    def batch_size(self, labeled: int) -> int:
        """Added images a step beside `labeled` images."""
        return added_images(self.config, labeled, control=self.is_control)

    def objective(self, inner: Objective) -> Objective:
        """The inner objective with the added loss; its network gets a classifier unless it has one."""
        if self.is_control:
            return JointControl(inner, self.weight)
        network = cast(Network, inner.model)
        if network.classifier is None:  # a student keeps that of its teacher
            network.add_classifier(len(self.image_classes))
        joint = self.config.joint
        task = ClassificationTask(self.config.model, joint.label_smoothing, self.image_classes)
        return Joint(inner, task, self.weight, joint.update_norms)

    def added_to(self, training: Training) -> Training:
        """The training with the added loss and stream."""
        labeled = training.streams["labeled"]
        size = self.batch_size(labeled.batch_size)
        batches = partial(classification_batches, data=self.config.data, pretrain=self.config.joint)
        added = replace(labeled, batch_size=size) if self.is_control else Stream(self.classified, size, batches)
        objective = self.objective(training.objective)
        return replace(training, objective=objective, streams={**training.streams, self.stream: added})


def added_images(config: RunConfig, labeled: int, *, control: bool) -> int:
    """Images a step of a joint training beside `labeled` ones; the control's are as many as make the same pixels."""
    joint, (height, width) = config.joint, config.model.canvas
    size = joint.batch_size or labeled
    return max(1, round(size * joint.size**2 / (height * width))) if control else size
