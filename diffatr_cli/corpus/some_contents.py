"""Some of the contents of a corpus: a fair sample of them, and their vectors a block at a time.

C contents, W windows, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .snapshot import Recordings

_WINDOWS = 4096  # whose vectors are in memory at a time


class Block(NamedTuple):
    """Some contents, (n,) by number, with their windows: `rows` (W,) in the whole, `vectors` (W, D), and where those of each
    begin, (n + 1,)."""

    contents: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    offsets: np.ndarray


def fair_sample(count: int, most: int) -> np.ndarray:
    """Numbers below `count`, ascending: all of them, or `most` of which each had the same chance. A smaller sample lies within a
    larger one of the same count."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def in_blocks(recordings: Recordings, contents: np.ndarray) -> Iterator[Block]:
    """The vectors of contents, (n,) ascending, a few thousand windows at a time. Raises Damaged."""
    lengths = recordings.offsets[contents + 1] - recordings.offsets[contents]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    first = 0
    while first < len(contents):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _WINDOWS, "right")) - 1)
        own, offsets = contents[first:last], ends[first : last + 1] - ends[first]
        rows = np.arange(offsets[-1]) + np.repeat(recordings.offsets[own] - offsets[:-1], lengths[first:last])
        yield Block(own, rows, recordings.vectors_at(rows), offsets)
        first = last
