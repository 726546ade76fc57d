"""Several data sets as one, by class name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tutelage.data.index import Index
from tutelage.data.masks import MaskCoding


def join(indexes: Sequence[Index]) -> Index:
    """One index of several, joined by class name: names of the first, then new ones of the others.

    Raises:
        ValueError: no index at all.
    """
    if len(indexes) == 1:
        return indexes[0]
    names = tuple(dict.fromkeys(name for index in indexes for name in index.class_names))
    views = [index.with_classes(names) for index in indexes]
    columns = [view.box_columns() for view in views]
    counts = [np.diff(view.labels_per_image()[0]) for view in views]
    roots = list(dict.fromkeys(root for view in views for root in view.roots))
    root_places = [np.array([roots.index(root) for root in view.roots]) for view in views]
    masks = _masks(views) if any(view.has_masks for view in views) else {}
    return Index.build(
        roots=roots,
        paths=pa.concat_arrays([view.relative_paths() for view in views]),
        root_of=np.concatenate([places[view.root_numbers()] for view, places in zip(views, root_places, strict=True)]),
        class_names=names,
        sizes=np.concatenate([view.sizes() for view in views]),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        xyxy=np.concatenate([part.xyxy for part in columns]),
        labels=np.concatenate([part.labels for part in columns]),
        area=np.concatenate([part.area for part in columns]),
        ignore=np.concatenate([part.ignore for part in columns]),
        scores=np.concatenate([part.scores for part in columns]),
        relative=np.concatenate([view.units() for view in views]),
        image_class=np.concatenate([view.image_classes() for view in views]),
        **masks,
        description=" + ".join(dict.fromkeys(view.origin.replace("; ", ", ") for view in views)),
        counts=sum((Counter(view.counts) for view in views), Counter[str]()),
        declared=all(view.declared for view in views),
        annotated=all(view.annotated for view in views),
    )


def _masks(views: Sequence[Index]) -> dict[str, Any]:
    """Mask columns of views that share their class names; equal codings are one."""
    codings: list[MaskCoding] = []
    for view in views:
        codings += [coding for coding in view.codings if coding not in codings]
    columns = [view.mask_columns() for view in views]
    places = [np.array([*map(codings.index, view.codings), -1]) for view in views]
    return {
        "masks": [path for paths, _, _ in columns for path in paths],
        "coding_of": np.concatenate([own[numbers] for own, (_, numbers, _) in zip(places, columns, strict=True)]),
        "codings": codings,
        "digests": np.concatenate([digests for _, _, digests in columns]),
    }
