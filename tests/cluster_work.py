"""What the workers of `--engine ray` load in the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fake_retriever import FakeRetriever

CRASH = 12_345
"""Samples of a recording that ends the process that embeds it."""


class Embedder(FakeRetriever):
    """A model that notes each batch in a file, takes its time, and does not survive one recording. It waits until so many
    processes have noted something, `together`."""

    def __init__(self, notes: Path | None, seconds: float, together: int) -> None:
        super().__init__()
        self.notes, self.seconds, self.together = notes, seconds, together

    def embed_audio(self, waveforms):
        if any(len(each) == CRASH for each in waveforms):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.notes is not None:
            with self.notes.open("a") as notes:
                notes.write(f"{os.getpid()} {len(waveforms)}\n")
            while len(begun(self.notes)) < self.together:
                time.sleep(0.05)
        time.sleep(self.seconds * len(waveforms))
        return super().embed_audio(waveforms)


def begun(notes: Path) -> set[str]:
    """The processes that have noted something, by their numbers."""
    return {line.split()[0] for line in notes.read_text().splitlines()} if notes.exists() else set()


def load(notes: Path | None, seconds: float, together: int, device: str) -> Embedder:
    model = Embedder(notes, seconds, together)
    model.device = device
    return model


def loader(notes: Path | None = None, seconds: float = 0.0, together: int = 0):
    """What `Elsewhere` takes."""
    return partial(load, notes, seconds, together)


@dataclass(frozen=True)
class Count:
    """Of each number n as many pieces, (n, 0) to (n, n - 1)."""

    batch: int = 3

    def open(self):
        return self._pieces

    def _pieces(self, items: Sequence[int]) -> Iterator[tuple[int, tuple[int, int]]]:
        for place, item in enumerate(items):
            for piece in range(item):
                yield place, (item, piece)
