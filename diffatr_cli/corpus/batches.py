"""Windows on their way to their vectors, batch by batch. A GPU has some batches while the next windows are gathered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from ..errors import DiffATRError
from .examine import Vector
from .windows import Window

if TYPE_CHECKING:
    from ..model import Retriever

BATCH = 64
"""Windows embedded in one call."""
GPU_BATCH = 128
"""Windows embedded in one call by a GPU."""
AT_ONCE = 2
"""Batches that a GPU has at a time: with one, it has nothing to do before the first of its windows is there and after the last is
done."""

Owner = TypeVar("Owner")
Vectors = tuple[np.ndarray, Sequence[np.ndarray | None]]
"""Of windows: vectors (W, D), and their frames where they are wanted."""


class _Begun(NamedTuple, Generic[Owner]):
    """Windows that a GPU is at work on, what they are of, and what comes of them."""

    owners: Sequence[Owner]
    windows: Sequence[Window | Vector]
    found: Future[Vectors]


class Batches(Generic[Owner]):
    """Gathers windows, and embeds them. A context manager.

    On the processor nothing would be won by going on meanwhile, and whoever interrupts it would wait for the batch.

    Args:
        model: gives the vectors, and says where it is.
        frames: whether frames are wanted.
        take: gets the owners of a batch's windows, and what came of them; in the order in which they were added, and in the
            thread that added them.

    Attributes:
        on_gpu: whether the model is on one.
    """

    def __init__(self, model: Retriever, frames: bool, take: Callable[[Sequence[Owner], Vectors], None]) -> None:
        self._model, self._frames, self._take = model, frames, take
        self.on_gpu = str(model.device) != "cpu"
        self._size = GPU_BATCH if self.on_gpu else BATCH
        self._waiting: list[tuple[Owner, Window | Vector]] = []
        self._begun = deque[_Begun[Owner]]()
        # Batches that the GPU may be at work on when the next windows are gathered. The first is waited for: with it the model is
        # loaded and its kernels are compiled.
        self._at_once, self._most = 0, AT_ONCE

    def __enter__(self) -> Batches[Owner]:
        # Of torch's GPUs only CUDA's take work from two threads; on a Mac's, that ends the process.
        threads = AT_ONCE if str(self._model.device).startswith("cuda") else 1
        self._threads = ThreadPoolExecutor(threads, "embedding")
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def add(self, owner: Owner, window: Window | Vector) -> bool:
        """Take a window in; whether a batch was full with it, and is embedded now or begun.

        Raises:
            DiffATRError: the vectors are not finite.
        """
        self._waiting.append((owner, window))
        if len(self._waiting) < self._size:
            return False
        owners, windows = zip(*self._waiting, strict=True)
        self._waiting.clear()
        if self.on_gpu:
            self._begun.append(_Begun(owners, windows, self._threads.submit(self._vectors, windows)))
            self._end_begun(self._at_once)
            self._at_once = self._most
        else:
            self._take(owners, self._vectors(windows))
        return True

    def drop(self, owner: Owner) -> None:
        """Leave out the windows of an owner that are not begun."""
        self._waiting = [each for each in self._waiting if each[0] is not owner]

    def unfinished(self) -> set[int]:
        """The owners, by `id`, of windows that `take` has not got yet."""
        return {id(owner) for owner, _ in self._waiting} | {id(owner) for each in self._begun for owner in each.owners}

    def finish(self) -> None:
        """Embed what is left. Raises as `add`."""
        self._end_begun()
        if self._waiting:
            owners, windows = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self._take(owners, self._vectors(windows))

    def _end_begun(self, but: int = 0) -> None:
        """Wait for what a GPU is at work on, but for so many batches, the last ones."""
        while len(self._begun) > but:
            first = self._begun.popleft()
            try:
                found = first.found.result()
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not loaded for this
                    raise
                # It has no room for two batches, but perhaps for one at a time.
                self._most = self._at_once = but = 0
                wait(each.found for each in self._begun)
                found = self._vectors(first.windows)
            self._take(first.owners, found)

    def _vectors(self, windows: Sequence[Window | Vector]) -> Vectors:
        """What comes of windows; in an update all come from the same place."""
        here = [window.samples for window in windows if isinstance(window, Window)]
        if here:
            return _embed(self._model, here, frames=self._frames)
        elsewhere = [window for window in windows if isinstance(window, Vector)]
        return np.stack([each.vector for each in elsewhere]), [each.frames for each in elsewhere]


def _embed(model: Retriever, waveforms: Sequence[np.ndarray], *, frames: bool) -> tuple[np.ndarray, Sequence[np.ndarray | None]]:
    """Vectors (W, D) float32 of windows, and of each its frames (T, F) float16 where they are wanted.

    Raises:
        DiffATRError: the vectors are not finite.
    """
    found: Sequence[np.ndarray | None]
    if frames:
        vectors, of_windows = model.embed_with_frames(waveforms)
        found = [each.numpy() for each in of_windows]
    else:
        vectors, found = model.embed_audio(waveforms), [None] * len(waveforms)
    if not np.isfinite(vectors).all():
        raise DiffATRError(
            f"{model.name}: its embeddings are not finite: its training diverged, or its weights are damaged. Use "
            "another --run or --model."
        )
    return vectors, found
