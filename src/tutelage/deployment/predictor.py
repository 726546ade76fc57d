"""A finished model that is asked for predictions from Python: `tutelage.load_model(path).predict(images)`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from tutelage.config import RunConfig
from tutelage.data.loader import collate
from tutelage.deployment.found import Found
from tutelage.deployment.pictures import Picture, sample_of
from tutelage.engine.runtime import Runtime
from tutelage.tasks.task import Task
from tutelage.types import Batch, Prediction


@dataclass(frozen=True)
class Predictor:
    """A model on its device; `workflows.exporting.load_model` makes it."""

    task: Task
    model: nn.Module
    config: RunConfig
    runtime: Runtime

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return self.task.class_names

    def predict(self, images: Picture | Iterable[Picture], *, batch_size: int = 8) -> list[Found]:
        """What is in each picture, in its own pixels: boxes, best first, or a class and confidence for every pixel.

        Args:
            images: one picture or several: paths, Pillow images, or uint8 arrays (height, width, 3) of RGB values.
            batch_size: pictures that pass through the network at once.

        Raises:
            InputError: a picture that cannot be read.
        """
        several = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        numbered, found = enumerate(several), list[Found]()
        while part := list(islice(numbered, batch_size)):
            found += self._predict(part)
        return found

    def _predict(self, numbered: Iterable[tuple[int, Picture]]) -> list[Found]:
        canvas, data = self.config.model.canvas, self.config.data
        return self.predict_batch(collate([sample_of(picture, number, canvas, data) for number, picture in numbered]))

    def predict_batch(self, batch: Batch) -> list[Found]:
        """The same of pictures that lie on the canvas already."""
        with self.runtime.autocast():
            found = self.task.predict(self.model, batch.to(self.runtime.device), self.config.label)
        return [self._named(one) for one in found]

    def _named(self, prediction: Prediction) -> Found:
        values = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
        return Found(**values, class_names=self.class_names)
