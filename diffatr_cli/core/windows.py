"""Long recordings in windows: where they lie, and which of a recording's windows fits best.

W windows, N recordings.
"""

from __future__ import annotations

import numpy as np

from ..types import SAMPLE_RATE

WINDOW = 10 * SAMPLE_RATE
"""Samples of a window; a recording up to this long is one window, embedded whole."""
HOP = 5 * SAMPLE_RATE
"""Samples from one window to the next."""


def spans(samples: int) -> list[tuple[int, int]]:
    """The windows of a recording, as first sample and end: 10 s, every 5 s, the last one moved to end with the recording.

    A recording of at most 10 s is one window; one without samples has none.
    """
    if samples <= WINDOW:
        return [(0, samples)] if samples else []
    starts = [*range(0, samples - WINDOW, HOP), samples - WINDOW]
    return [(start, start + WINDOW) for start in starts]


def best_windows(scores: np.ndarray, offsets: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` best recordings by their best windows, best first; of equal ones the one that comes first.

    Args:
        scores: (W,) of every window.
        offsets: (N + 1,): the windows of recording i are offsets[i]..offsets[i + 1]; each has one at least.

    Returns:
        The recordings' numbers and the rows of their best windows, both (min(depth, N),).
    """
    best = np.argsort(-np.maximum.reduceat(scores, offsets[:-1]), kind="stable")[:depth]
    bounds = zip(offsets[best], offsets[best + 1], strict=True)
    return best, np.array([a + int(scores[a:b].argmax()) for a, b in bounds], dtype=np.int64)


def mean_direction(vectors: np.ndarray) -> np.ndarray:
    """A recording as one query: the direction of the mean over its windows' unit vectors, (W, D) -> (D,)."""
    mean = vectors.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))
