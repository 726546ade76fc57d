"""Which image stands where in a training, and the randomness that it gets.

Both are pure functions of seeds, stream and position, so that batches are the same for any number of devices, workers
and micro-batches, a stopped training continues exactly, and two methods can be compared image by image.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.types import InputError

Key = tuple[int, int]
"""(epoch, row of the index)"""


def sample_rng(seed: int, round: int, stream: str, epoch: int, index: int) -> np.random.Generator:
    """The generator of everything drawn for one image in one epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, round, _stream_key(stream), epoch, index]))


def epoch_order(seed: int, stream: str, epoch: int, n: int) -> NDArray[np.int64]:
    """A permutation (n,): the order of the images in one epoch of a stream."""
    return np.random.default_rng(np.random.SeedSequence([seed, _stream_key(stream), epoch])).permutation(n)


def _stream_key(stream: str) -> int:
    return zlib.crc32(stream.encode())


@dataclass(frozen=True, slots=True)
class Order:
    """The images of a training stream.

    All epochs lie behind one another; step t of the whole training takes positions t * batch_size onwards, wherever
    epochs end. A rank takes its contiguous slice of a step, a micro-batch its slice of that.
    """

    stream: str
    seed: int
    batch_size: int  # over all ranks
    first_step: int
    num_steps: int  # of the whole training, steps before `first_step` included
    rank: int = 0
    world_size: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.world_size * self.micro_batches):
            raise InputError(
                f"batch of stream {self.stream!r}: found {self.batch_size} images a step; it must be divisible by "
                f"{self.world_size} devices x {self.micro_batches} micro-batches. Change batch_size, runtime.devices "
                "or runtime.device_batch_size."
            )

    def micro_batch_keys(self, n: int) -> Iterator[list[Key]]:
        """Keys of one micro-batch after the other, of an index of `n` images."""
        size = self.batch_size // (self.world_size * self.micro_batches)
        order_of = lru_cache(maxsize=2)(lambda epoch: epoch_order(self.seed, self.stream, epoch, n))
        for step in range(self.first_step, self.num_steps):
            for micro in range(self.micro_batches):
                first = step * self.batch_size + (self.rank * self.micro_batches + micro) * size
                places = (divmod(position, n) for position in range(first, first + size))
                yield [(epoch, int(order_of(epoch)[place])) for epoch, place in places]
