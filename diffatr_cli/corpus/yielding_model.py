"""A model as indexing sees it where people search meanwhile: a few windows at a time, after whoever asks for something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .priority_lock import PriorityLock

if TYPE_CHECKING:
    from ..model import Retriever

_PIECE = 8  # windows that are embedded before a search goes first


class YieldingModel:
    """The model, whose sounds are embedded in pieces, each with the lock held patiently."""

    def __init__(self, model: Retriever, lock: PriorityLock) -> None:
        self._model, self._lock = model, lock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed_audio(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(self._in_pieces(self._model.embed_audio, waveforms))

    def embed_with_frames(self, waveforms: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Any]]:
        vectors, frames = zip(*self._in_pieces(self._model.embed_with_frames, waveforms), strict=True)
        return np.concatenate(vectors), [each for some in frames for each in some]

    def _in_pieces(self, embed: Callable[[Sequence[np.ndarray]], Any], waveforms: Sequence[np.ndarray]) -> list[Any]:
        parts = []
        for first in range(0, len(waveforms), _PIECE):
            with self._lock.take(patient=True):
                parts.append(embed(waveforms[first : first + _PIECE]))
        return parts
