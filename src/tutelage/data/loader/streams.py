"""Streams of batches; the training loop and the predicting workflows iterate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from tutelage.augment.plan import Plan
from tutelage.augment.policies import (
    classification_evaluation_plan,
    classification_plan,
    draw_plan,
    evaluation_plan,
    simclr_plan,
    strong_plan,
    weak_plan,
)
from tutelage.config import AugmentConfig, ClassifiedConfig, DataConfig, PretrainConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.loader.order import Order, sample_rng
from tutelage.data.loader.pictures import Pictures
from tutelage.data.loader.samples import (
    DrawPlan,
    EvaluationSamples,
    FixedPlan,
    PoolSamples,
    Size,
    Targets,
    TrainSamples,
    collate_evaluation,
    collate_training,
)
from tutelage.data.loader.workers import loaded
from tutelage.types import Annotation, Batch, Boxes, InputError, Skipped


class StreamOptions(TypedDict):
    """What the training loop tells every stream."""

    stream: str  # name; streams of one index differ in order and augmentation
    seed: int
    round: int
    batch_size: int  # images a step, over all ranks
    first_step: int  # to begin at; earlier steps are not loaded
    num_steps: int  # of the whole training
    rank: int
    world_size: int
    micro_batches: int  # of each rank
    workers: int  # processes; 0 loads in this one
    cache_megabytes: int  # sets that fit are kept decoded
    pin: bool  # page-locked memory, for a GPU


def train_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation = "boxes",
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """For each step from `first_step` on this rank's micro-batches, augmented, with boxes or masks.

    Order and every byte depend on seed, round, stream, epoch and row alone: never on ranks, workers, micro-batches or
    where the training was continued.

    Raises:
        InputError: no images; a batch that cannot be divided; while iterating, an image or mask that cannot be read.
    """
    mask_size = (
        canvas if annotation == "masks" else None
    )  # pseudo-masks are as large as that, human ones as their image
    samples = _train_samples(index, data, [partial(_task_plan, augment, canvas)], annotation, mask_size, options)
    return _train_stream(samples, **options)


def labeled_pair_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation,
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """The same in two views (B, 2, 3, H, W): the strong one, which boxes or masks are of, and a weak one."""
    mask_size = canvas if annotation == "masks" else None
    return _train_stream(
        _train_samples(index, data, _pair_of_plans(augment, canvas), annotation, mask_size, options), **options
    )


def pool_pair_batches(
    index: Index,
    *,
    data: DataConfig,
    canvas: Size,
    augment: AugmentConfig,
    annotation: Annotation | None,
    held_out: HashBook | None,
    **options: Unpack[StreamOptions],
) -> Iterator[list[Batch]]:
    """The same two views of a pool, whose images that are of no use give their places to others (`PoolSamples`).

    Args:
        index: the pool.
        data: how it is decoded.
        canvas: (height, width).
        augment: of the strong view.
        annotation: the pool's own labels where they shall be the targets; None gives no targets.
        held_out: what must not be trained on.
        options: what the training loop tells every stream.

    Raises:
        InputError: as `train_batches`; while iterating, that no image of a long row can be used.
    """
    mask_size = canvas if annotation == "masks" else None
    plans = _pair_of_plans(augment, canvas)
    samples = _train_samples(index, data, plans, annotation or "none", mask_size, options)
    return _train_stream(PoolSamples(samples, held_out), **options)


def classification_batches(
    index: Index, *, data: DataConfig, pretrain: ClassifiedConfig, **options: Unpack[StreamOptions]
) -> Iterator[list[Batch]]:
    """The same of a set of classified images, with `Batch.labels`."""
    samples = _train_samples(index, data, [partial(_classification_plan, pretrain)], "label", None, options)
    return _train_stream(samples, **options)


def view_batches(
    index: Index, *, data: DataConfig, pretrain: PretrainConfig, **options: Unpack[StreamOptions]
) -> Iterator[list[Batch]]:
    """The same of images without labels: two of SimCLR's views of each, (B, 2, 3, S, S), no targets."""
    samples = _train_samples(index, data, [partial(_simclr_plan, pretrain)] * 2, "none", None, options)
    return _train_stream(samples, **options)


def evaluation_batches(
    index: Index,
    *,
    canvas: Size,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
    tolerant: bool,
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    """The images of `rows` (all when None) in their order, resized to fit the canvas, without targets.

    Each batch stands beside what was skipped among its rows; it is None where nothing else was left.

    Args:
        index: the images.
        canvas: (height, width).
        data: how they are decoded.
        device_batch_size: rows a batch.
        rows: of the index.
        workers: loader processes; 0 loads in this one.
        tolerant: skip what cannot be read (a pool) instead of raising.

    Raises:
        InputError: while iterating, an image that cannot be read, unless `tolerant`.
    """
    samples = EvaluationSamples(Pictures(index, data), partial(_evaluation_plan, canvas), "none", tolerant)
    return _evaluation_stream(samples, rows, device_batch_size, workers)


def classification_evaluation_batches(
    index: Index,
    *,
    pretrain: ClassifiedConfig,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
) -> Iterator[Batch]:
    """The images of `rows` (all when None) in their order, center-cropped, with `Batch.labels`."""
    plan: FixedPlan = partial(classification_evaluation_plan, pretrain)
    samples = EvaluationSamples(Pictures(index, data), plan, "label", tolerant=False)
    for batch, _ in _evaluation_stream(samples, rows, device_batch_size, workers):
        assert batch is not None, "an intolerant stream skips nothing"
        yield batch


def classification_pool_batches(
    index: Index,
    *,
    pretrain: ClassifiedConfig,
    data: DataConfig,
    device_batch_size: int,
    rows: NDArray[np.int64] | None = None,
    workers: int,
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    """The same of a pool, without labels, each batch beside what could not be read among its rows."""
    plan: FixedPlan = partial(classification_evaluation_plan, pretrain)
    samples = EvaluationSamples(Pictures(index, data), plan, "none", tolerant=True)
    return _evaluation_stream(samples, rows, device_batch_size, workers)


def _task_plan(augment: AugmentConfig, canvas: Size, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return draw_plan(augment, rng, size, canvas, boxes)


def _pair_of_plans(augment: AugmentConfig, canvas: Size) -> list[DrawPlan]:
    """Of the strong and of the weak view: neither knows the boxes, which in a pool are yet to be found."""
    return [partial(_unboxed_plan, draw, augment, canvas) for draw in (strong_plan, weak_plan)]


def _unboxed_plan(
    draw: Callable[[AugmentConfig, np.random.Generator, Size, Size], Plan],
    augment: AugmentConfig,
    canvas: Size,
    rng: np.random.Generator,
    size: Size,
    boxes: Boxes | None,
) -> Plan:
    return draw(augment, rng, size, canvas)


def _classification_plan(pretrain: ClassifiedConfig, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return classification_plan(pretrain, rng, size)


def _simclr_plan(pretrain: PretrainConfig, rng: np.random.Generator, size: Size, boxes: Boxes | None) -> Plan:
    return simclr_plan(pretrain, rng, size)


def _evaluation_plan(canvas: Size, size: Size) -> Plan:
    return evaluation_plan(size, canvas)


def _train_samples(
    index: Index,
    data: DataConfig,
    draw_plans: Sequence[DrawPlan],
    targets: Targets,
    mask_size: Size | None,
    options: StreamOptions,
) -> TrainSamples:
    if not len(index):
        raise InputError(f"stream {options['stream']!r}: there are no images in it. Give data that has some.")
    rng_of = partial(sample_rng, options["seed"], options["round"], options["stream"])
    return TrainSamples(Pictures(index, data, options["cache_megabytes"], mask_size), draw_plans, rng_of, targets)


def _train_stream(samples: TrainSamples | PoolSamples, **options: Unpack[StreamOptions]) -> Iterator[list[Batch]]:
    order = Order(**{name: options[name] for name in Order.__dataclass_fields__})  # type: ignore[literal-required]
    keys = order.micro_batch_keys(len(samples))
    batches = loaded(samples, keys, collate_training, options["workers"], pin=options["pin"])
    return _grouped(batches, options["micro_batches"])


def _grouped(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    while group := [batch for _, batch in zip(range(count), batches, strict=False)]:
        yield group


def _evaluation_stream(
    samples: EvaluationSamples, rows: NDArray[np.int64] | None, size: int, workers: int
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    chosen = np.arange(len(samples.pictures.index)) if rows is None else rows
    keys = Slices(chosen, size)
    return loaded(samples, keys, collate_evaluation, min(workers, len(keys)))


@dataclass(frozen=True)
class Slices:
    """Consecutive slices of rows, made as they are asked for."""

    rows: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.rows), self.size):
            yield self.rows[first : first + self.size].tolist()
