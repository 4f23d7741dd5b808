"""Long recordings in windows: where they lie, and which of a recording's windows fits best.

W windows, N recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import SAMPLE_RATE


@dataclass(frozen=True)
class Windowing:
    """What an encoder wants recordings cut into.

    Attributes:
        rate: Hz of the samples.
        length: samples of a window; a recording up to this long is one window, embedded whole.
        hop: samples from one window to the next.
    """

    rate: int = SAMPLE_RATE
    length: int = 10 * SAMPLE_RATE
    hop: int = 5 * SAMPLE_RATE

    @classmethod
    def of(cls, rate: int, longest: float | None = None) -> Windowing:
        """Windows of ten seconds, or of `longest` where an encoder hears no more at a time, each half beside the next."""
        length = int(min(10.0, longest or 10.0) * rate)
        return cls(rate, length, length // 2)


OURS = Windowing()
"""At the rate of prepared clips: 10 s, every 5 s."""


def spans(samples: int, windowing: Windowing = OURS) -> list[tuple[int, int]]:
    """The windows of a recording, as first sample and end, the last one moved to end with the recording.

    A recording no longer than a window is one; one without samples has none.
    """
    return spans_of(samples, windowing.length, windowing.hop)


def spans_of(samples: int, length: int, hop: int) -> list[tuple[int, int]]:
    """`spans` for any length of windows and any number of samples from one to the next."""
    if samples <= length:
        return [(0, samples)] if samples else []
    starts = [*range(0, samples - length, hop), samples - length]
    return [(start, start + length) for start in starts]


def best_windows(
    scores: np.ndarray, offsets: np.ndarray, depth: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` best recordings by their best windows, best first; of equal ones the one that comes first.

    Args:
        scores: (W,) of every window.
        offsets: (N + 1,): the windows of recording i are offsets[i]..offsets[i + 1]; each has one at least.
        allowed: (N,) bool, which recordings are looked at; None for all.

    Returns:
        The recordings' numbers and the rows of their best windows, both (min(depth, N),), or as many as are allowed.
    """
    if allowed is not None:
        scores, depth = np.where(np.repeat(allowed, np.diff(offsets)), scores, -np.inf), min(depth, int(allowed.sum()))
    best = np.argsort(-np.maximum.reduceat(scores, offsets[:-1]), kind="stable")[:depth]
    bounds = zip(offsets[best], offsets[best + 1], strict=True)
    return best, np.array([a + int(scores[a:b].argmax()) for a, b in bounds], dtype=np.int64)


def mean_direction(vectors: np.ndarray) -> np.ndarray:
    """A recording as one query: the direction of the mean over its windows' unit vectors, (W, D) -> (D,)."""
    mean = vectors.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))
