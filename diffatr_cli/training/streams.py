"""Named streams of random numbers: each random choice of training depends on the seed, its stream's name and its counters alone.

So an interrupted training goes on with the same numbers, and no two choices share any.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import torch

Stream = Literal[
    "weights",  # the first weights of what is trained
    "order",  # (epoch): which items a batch of phase one holds
    "composition",  # (epoch): which items are composed, and of which recordings
    "mixture",  # (step): levels, places and words of what is composed
    "crop",  # (step): where clips are cut
    "augmentation",  # (step): dropout and SpecAugment
    "view crop",  # (view): where clips are cut for a view
    "view augmentation",  # (view)
    "heads",  # (step): batches and noise of refitting the heads
    "heads dropout",  # (step)
    "pair order",  # (epoch): which captions a batch of phase two holds
    "fold order",  # (epoch): from which fold each batch of phase two is
    "candidates",  # (epoch, batch): views, candidates and jitter
    "diffusion",  # (step): noise levels and noise
    "calibration",
    "query bank",  # which training queries are kept as a bank
]


def numpy_stream(seed: int, name: Stream, *counters: int) -> np.random.Generator:
    """The numbers of a stream for these counters, each at least 0."""
    return np.random.default_rng(_sequence(seed, name, counters))


def torch_seed(seed: int, name: Stream, *counters: int) -> int:
    """The same as a seed for torch, for what takes its numbers from torch's global generator."""
    return int(_sequence(seed, name, counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_stream(seed: int, name: Stream, *counters: int) -> torch.Generator:
    """The same as a generator of torch, on the CPU."""
    return torch.Generator().manual_seed(torch_seed(seed, name, *counters))


def _sequence(seed: int, name: Stream, counters: tuple[int, ...]) -> np.random.SeedSequence:
    # A spawn key is kept apart from the seed, and its length counts: [5] and [5, 0] are two streams.
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), len(counters), *counters))
