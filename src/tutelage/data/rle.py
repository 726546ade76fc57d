"""Masks as runs: COCO's run-length coding in both forms, and what can be computed without drawing pixels.

Legend: positions count pixels down the columns, y + x * h. *Counts* are COCO's run lengths, the first of zeros. *Spans*
(r, 2) are the runs of ones: first position and the one past the last, in order, without touching each other.
Source of the coding: cocoapi, maskApi.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (n,)
Spans = NDArray[np.int64]  # (r, 2)

MAX_GROUPS = 7  # groups of 5 bits of one value: enough for 2^34 pixels


def decode_counts(text: str) -> Counts:
    """Counts of a compressed mask: base-32 groups from character '0', each value a difference to the one two before.

    Raises:
        ValueError: a character that is none of the coding, or the text ends within a value.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("the compressed counts are damaged")
    ends = np.flatnonzero(last)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - firsts + 1
    if lengths.max() > MAX_GROUPS:
        raise ValueError("the compressed counts are damaged")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(firsts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, firsts)
    values -= np.where(codes[ends] & 16, np.left_shift(1, 5 * lengths), 0)  # the highest bit is the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])  # the third value is no difference yet, as in cocoapi
    return values


def encode_counts(counts: Counts) -> str:
    """The compressed form of counts, character by character as cocoapi writes it."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    left = values[:, None] >> 5 * np.arange(MAX_GROUPS + 1)  # (n, groups): what is left of a value at each group
    codes = left[:, :-1] & 31
    rest = left[:, 1:]
    more = np.where(codes & 16, rest != -1, rest != 0)
    written = np.ones_like(more)
    written[:, 1:] = np.logical_and.accumulate(more, axis=1)[:, :-1]
    characters: NDArray[np.uint8] = (codes + 32 * more + 48)[written].astype(np.uint8)
    return characters.tobytes().decode()


def spans_of(counts: Counts) -> Spans:
    """Spans of counts."""
    edges = np.cumsum(counts)
    spans = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    return np.asarray(spans[spans[:, 1] > spans[:, 0]])


def counts_of(spans: Spans, pixels: int) -> Counts:
    """Counts of spans in an image of so many pixels."""
    counts = np.diff(np.concatenate([[0], spans.ravel(), [pixels]]))
    return counts if counts[-1] else counts[:-1]


def num_pixels(spans: Spans) -> int:
    """Number of pixels that spans cover."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def union(parts: Sequence[Spans]) -> Spans:
    """The spans that cover what any of the parts covers."""
    if len(parts) == 1:
        return parts[0]
    both = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    both = both[np.argsort(both[:, 0], kind="stable")]
    ends = np.maximum.accumulate(both[:, 1])
    apart = both[1:, 0] > ends[:-1]
    firsts, lasts = np.concatenate([[True], apart]), np.concatenate([apart, [True]])
    return np.stack([both[firsts[: len(both)], 0], ends[lasts[: len(both)]]], axis=1)


def class_spans(mask: NDArray[np.uint8]) -> Iterator[tuple[int, Spans]]:
    """Each value of a mask (h, w) and its spans, from the lowest value."""
    pixels = cv2.transpose(mask).ravel()
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    spans = np.stack([starts, np.append(starts[1:], pixels.size)], axis=1)
    values = pixels[starts]
    for value in np.unique(values):
        yield int(value), spans[values == value]


def box_of(spans: Spans, height: int) -> list[float]:
    """COCO box x, y, width, height around spans in an image of this height; zeros where there are none."""
    if not len(spans):
        return [0.0, 0.0, 0.0, 0.0]
    starts, ends = spans[:, 0], spans[:, 1] - 1
    left, right = starts // height, ends // height
    top, bottom = starts % height, ends % height
    wrapped = left < right  # a run that passes a column's end covers both borders
    x, y = left.min(), 0 if wrapped.any() else top.min()
    high = height - 1 if wrapped.any() else bottom.max()
    return [float(x), float(y), float(right.max() - x + 1), float(high - y + 1)]
