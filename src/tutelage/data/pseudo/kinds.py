"""The kinds of stores: what differs between pseudo-boxes, -masks and -classes, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.config import PseudoConfig
from tutelage.data.index import Index
from tutelage.data.pseudo.boxes import BoxKind
from tutelage.data.pseudo.classes import ClassKind
from tutelage.data.pseudo.masks import MaskKind
from tutelage.data.pseudo.tables import Columns, Found, Layout, Limits, Stored
from tutelage.data.pseudo.verdicts import People
from tutelage.types import Prediction


class Kind(Protocol):
    """How predictions become tables of a part, and these become targets. Legend: n images used."""

    @property
    def unit(self) -> str:
        """What is counted, in the plural."""
        ...

    @property
    def table(self) -> str:
        """The one of `layouts` that says what was found, for counting and thresholds."""
        ...

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Tables of a part besides its images, by name."""
        ...

    def scale(self, prediction: Prediction) -> float:
        """Stored over original pixels."""
        ...

    def rows(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Columns of each of `layouts`, of one image."""
        ...

    def found(self, table: Columns) -> Found:
        """What `table` says."""
        ...

    def judged(self, folder: Path, part: int, images: Columns, table: Columns, people: People) -> Columns:
        """`table` of a part of the store in `folder`, with what people said laid over it."""
        ...

    def targets(
        self, part: int, images: Columns, table: Columns, used: NDArray[np.bool_], limits: Limits, pseudo: PseudoConfig
    ) -> Columns:
        """Columns of targets for those images of a part that are `used`; parts are then joined column by column."""
        ...

    def index(
        self, images: Index, targets: Columns, store: Path, limits: Limits, people: People, **described: Any
    ) -> Index:
        """The images (n) with the joined targets, as a data set; `store` is the folder, `described` goes along."""
        ...


KINDS: Mapping[Stored, Kind] = {"boxes": BoxKind(), "masks": MaskKind(), "classes": ClassKind()}
