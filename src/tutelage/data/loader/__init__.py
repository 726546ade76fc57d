"""From files to batches: seeded, resumable streams for training, and a plain pass for evaluation."""

from tutelage.data.loader.order import epoch_order, sample_rng
from tutelage.data.loader.pictures import shown_boxes, shown_mask
from tutelage.data.loader.samples import collate
from tutelage.data.loader.streams import (
    classification_batches,
    classification_evaluation_batches,
    classification_pool_batches,
    evaluation_batches,
    labeled_pair_batches,
    pool_pair_batches,
    train_batches,
    view_batches,
)

__all__ = [
    "classification_batches",
    "classification_evaluation_batches",
    "classification_pool_batches",
    "collate",
    "epoch_order",
    "evaluation_batches",
    "labeled_pair_batches",
    "pool_pair_batches",
    "sample_rng",
    "shown_boxes",
    "shown_mask",
    "train_batches",
    "view_batches",
]
