"""A teacher whose predictions are known, and toy batches in two views, for tests of the online mode."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tests.toy_task import NUM_CLASSES, ToyTask
from tutelage.config import PseudoConfig, StudentConfig
from tutelage.engine.online import OnlineStudent
from tutelage.types import Annotation, Batch, Boxes, Prediction

ALL = PseudoConfig(score_threshold=0.0)


@dataclass(frozen=True)
class PlantedTask(ToyTask):
    """Sees in each image what the image's number says, whatever the network; notes how many images it looked at."""

    annotation: ClassVar[Annotation] = "boxes"
    class_names: ClassVar[tuple[str, ...]] = tuple("abc"[:NUM_CLASSES])

    salt: int = 0
    looks: list[int] = field(default_factory=list)

    def predict(self, model: Any, batch: Batch, label: Any = None) -> list[Prediction]:
        assert batch.images.shape[1] == 1 and batch.boxes is None, "a teacher sees weak views and no labels"
        assert model is None or not model.training
        self.looks.append(len(batch))
        return [Prediction(number, (32, 32), self.boxes_of(number)) for number in batch.image_ids.tolist()]

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlantedTask":
        return self  # so that looks at copies are noted too

    def boxes_of(self, number: int) -> Boxes:
        rng = np.random.default_rng((self.salt, number))
        corners = rng.uniform(0, 24, (1 + number % 3, 2))
        scores = rng.uniform(0.3, 1, len(corners))
        return Boxes.build(np.hstack([corners, corners + 6]), rng.integers(0, NUM_CLASSES, len(corners)), scores)


def two_views(batch: Batch) -> Batch:
    """The batch with a mirrored copy of each image as its second view."""
    mirror = torch.tensor([[-1.0, 0.0, 32.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return replace(
        batch,
        images=torch.cat([batch.images, batch.images.flip(-1)], 1),
        matrix=torch.cat([batch.matrix, mirror.expand(len(batch), 1, 3, 3)], 1),
        valid=batch.valid.expand(-1, 2, -1),
        passed_over=torch.tensor([[1, 2]]).expand(len(batch), 2),
    )


def online_student(network: nn.Module, task: PlantedTask, pseudo: PseudoConfig = ALL, **options: Any) -> OnlineStudent:
    online = {"burn_in": options.pop("burn_in", 0)}
    return OnlineStudent(task, network, StudentConfig(online=online, **options), pseudo)  # type: ignore[arg-type]


def spoiled_pool(scenes: Path, folder: Path) -> Path:
    """Half of a pool, with a broken image and a copy of a test image that was saved anew."""
    shutil.copytree(scenes / "pool" / "images", folder)
    names = sorted(folder.iterdir())
    for path in names[10:]:
        path.unlink()
    names[3].write_bytes(b"\x89PNG, but not for long")
    shutil.copy(sorted((scenes / "test" / "images").iterdir())[5], names[7])
    return folder
