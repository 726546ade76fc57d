"""Pseudo-classes in a store: the probability of every class for the whole image, its first class apart.

`classes` is small and says what was found; `probabilities`, in half precision, is read for soft targets alone. Half
precision keeps three digits, and what is below 6e-8 becomes zero.

Legend: K classes, m predictions, n images used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index
from tutelage.data.pseudo.tables import Columns, Found, Layout, Limits, table_path
from tutelage.data.pseudo.verdicts import People
from tutelage.types import Prediction


class ClassKind:
    """Stores of image classes (see `Kind`)."""

    unit = "predictions"
    table = "classes"
    layouts: Mapping[str, Layout] = {
        "classes": Layout(
            pa.schema(
                {
                    "image_id": pa.int64(),
                    "label": pa.int32(),  # place in the manifest's class names
                    "score": pa.float32(),  # its probability, the highest
                }
            )
        ),
        "probabilities": Layout(pa.schema({"image_id": pa.int64(), "values": pa.list_(pa.float16())})),
    }

    def scale(self, prediction: Prediction) -> float:
        """The whole image has the class."""
        return 1.0

    def rows(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """The row of each table."""
        assert prediction.probabilities is not None, "a prediction of classes"
        values = prediction.probabilities
        first = int(values.argmax())
        return {
            "classes": {"image_id": [prediction.image_id], "label": [first], "score": values[first : first + 1]},
            "probabilities": {
                "image_id": [prediction.image_id],
                "values": pa.array([values.astype(np.float16)], pa.list_(pa.float16())),
            },
        }

    def found(self, table: Columns) -> Found:
        """Each image's first class with its probability."""
        return Found(table["image_id"], table["label"], table["score"], np.ones(len(table["label"]), np.int64))

    def judged(self, folder: Path, part: int, images: Columns, table: Columns, people: People) -> Columns:
        """`classes`, of which people say nothing."""
        return table

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Of one part: classes (n,), -1 below the threshold."""
        classes = np.where(self.found(table).kept(limits), table["label"], -1)
        return {"classes": classes[np.isin(table["image_id"], images["image_id"][used])]}

    def index(
        self, images: Index, targets: Columns, store: Path, limits: Limits, people: People, **described: Any
    ) -> Index:
        """The images with their first classes."""
        return Index.build(
            roots=images.roots,
            paths=images.relative_paths(),
            root_of=images.root_numbers(),
            image_class=targets["classes"],
            **described,
        )


def stored_probabilities(folder: Path, num_parts: int) -> NDArray[np.float16]:
    """(m, K) probabilities of all images that could be read, in the pool's order."""
    parts = [_probabilities(table_path(folder, part, "probabilities")) for part in range(num_parts)]
    return np.concatenate([part for part in parts if len(part)])


def _probabilities(path: Path) -> NDArray[np.float16]:
    """(m, K) of one part; (0, 0) where none of its images could be read."""
    column = pq.read_table(path, columns=["values"]).column("values").combine_chunks()
    values: NDArray[np.float16] = column.flatten().to_numpy()
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 0)
