"""Labels for all recordings of a folder: which captions of a list fit each, judged as `describe` judges one sound.

C contents, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..progress import Progress, silent
from .describe import Choices, Described, describe

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever
    from .snapshot import Recordings

_WINDOWS = 4096  # whose vectors are in memory at a time, where they stay in the tables


def tag(
    retriever: Retriever,
    recordings: Recordings,
    choices: Choices,
    sampling: Sampling | None = None,
    *,
    top: int = 10,
    min_score: float | None = None,
    progress: Progress = silent,
) -> list[Described]:
    """What fits each recording, in the order of `recordings.paths`; files of equal content share it.

    Args:
        choices: the captions, embedded for this retriever.
        progress: told of contents.

    Raises:
        UsageError, ValueError: as `describe`.
        Damaged: vectors or frames do not fit their checksums.
    """
    described: list[Described] = []
    total = len(recordings.offsets) - 1
    heard = retriever.sees_frames and retriever.reranker is not None and retriever.reranker.counts("a2t")
    for rows, vectors in _sounds(recordings):
        frames = recordings.frames(rows).joined() if heard and recordings.frames else None
        described.append(describe(retriever, vectors, choices, sampling, frames=frames, top=top, min_score=min_score))
        progress(len(described), total, "labelling")
    return [described[content] for content in recordings.content.tolist()]


def _sounds(recordings: Recordings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows (W,) of each content and their vectors (W, D), in the order of contents."""
    offsets, first = recordings.offsets, 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _WINDOWS, "right")) - 1)
        rows = np.arange(offsets[first], offsets[end])
        vectors = recordings.vectors_at(rows)
        for content in range(first, end):
            own = slice(int(offsets[content] - offsets[first]), int(offsets[content + 1] - offsets[first]))
            yield rows[own], vectors[own]
        first = end
