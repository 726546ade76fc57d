"""Label Studio's run-length coding of brush strokes: bits of an RGBA picture, packed.

A stream of bits: 32 of the number of values, 5 of the bits a value has less one, four times 4 of the bits of a run's
length less one (the four *lengths*). Then runs: one bit (1: all values are equal), two that choose a length, the run's
length less one, and its value or, of unequal ones, its values. The values are the bytes of the picture, row by row,
four a pixel; a pixel is marked where its last byte, the opacity, is above 0. Source: thi.ng/umbrella, rle-pack, as
used by label-studio-converter (brush.py).

Legend: h, w pixels; n runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CHANNELS = 4
WORD = 8  # bits of a value
LENGTHS = (3, 4, 8, 16)  # bits of the lengths of a run
HEAD = 32 + 5 + 4 * len(LENGTHS)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask (h, w), as runs of equal values with lengths of 16 bits."""
    values = np.repeat(mask.ravel(), CHANNELS)
    longest = 1 << LENGTHS[-1]
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1, [values.size]])
    pieces = [np.arange(first, end, longest) for first, end in pairwise(starts.tolist())]
    firsts = np.concatenate(pieces)
    runs = np.diff(np.append(firsts, values.size))
    head = _bits(np.array([values.size]), 32) + _bits(np.array([WORD - 1]), 5)
    rows = np.concatenate(
        [
            np.tile([1, 1, 1], (len(runs), 1)),  # equal values; the fourth length
            _bit_rows(runs - 1, LENGTHS[-1]),
            _bit_rows(np.where(values[firsts], 255, 0), WORD),
        ],
        axis=1,
    )
    bits = np.array([*head, *(bit for length in LENGTHS for bit in _bits(np.array([length - 1]), 4))], np.uint8)
    packed: list[int] = np.packbits(np.concatenate([bits, rows.ravel().astype(np.uint8)])).tolist()
    return packed


def decode_brush(packed: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (h, w) of a picture of `size`.

    Raises:
        ValueError: the bytes are damaged, or of a picture of another size.
    """
    bits = np.unpackbits(np.array(packed, np.uint8))
    wanted = size[0] * size[1] * CHANNELS
    if len(bits) < HEAD or _number(bits[:32]) != wanted:
        raise ValueError(f"the strokes are not on a picture of {size[0]} x {size[1]} pixels")
    word = _number(bits[32:37]) + 1
    lengths = [_number(bits[at : at + 4]) + 1 for at in range(37, HEAD, 4)]
    values = np.zeros(wanted, bool)
    done, at = 0, HEAD
    while done < wanted:
        equal, length = bits[at : at + 1], lengths[_number(bits[at + 1 : at + 3])]
        at += 3
        run = _number(bits[at : at + length]) + 1
        at += length
        stored = 1 if equal.any() else run
        if at + stored * word > len(bits) or done + run > wanted:
            raise ValueError("the strokes are damaged: they end early, or run over the picture")
        values[done : done + run] = bits[at : at + stored * word].reshape(stored, word).any(axis=1)
        done, at = done + run, at + stored * word
    return np.ascontiguousarray(values.reshape(*size, CHANNELS)[..., -1])


def _number(bits: NDArray[np.uint8]) -> int:
    return int("".join(map(str, bits.tolist())) or "0", 2)


def _bits(numbers: NDArray[np.integer], width: int) -> list[int]:
    bits: list[int] = _bit_rows(numbers, width).ravel().tolist()
    return bits


def _bit_rows(numbers: NDArray[np.integer], width: int) -> NDArray[np.int64]:
    """(n, width) the bits of numbers (n,), the highest first."""
    return np.asarray(numbers[:, None] >> np.arange(width - 1, -1, -1) & 1, np.int64)
