"""What the two decoders have in common: blocks of samples as the file holds them, all channels, at the file's rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_FRAMES = 1 << 16
BLOCK_SAMPLES = 1 << 18  # of all channels together


class CannotDecode(Exception):
    """A decoder gives up on a file before the first sample."""

    def __init__(self, reason: str, unknown: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unknown = unknown
        """Whether it does not even know what kind of file it is."""


class Block(NamedTuple):
    """A stretch of sound."""

    samples: NDArray[np.float32]
    """(frames, channels), full scale +-1 in files of integers."""
    rate: int
    """Hz."""
    start: float
    """Seconds from the beginning of what the decoder was opened on."""


class Decoder(Protocol):
    """An open sound file, or one of the recordings in it.

    Attributes:
        rate: Hz, at the beginning.
        seconds: how long it is as it says itself; None where it does not say, or guesses.
        floats: whether it holds floating-point samples, whose full scale is a matter of agreement.
        notes: short remarks on what is not as it should be, filled in while decoding.
        partial: why not all of it came, or None; final after the last block.
    """

    rate: int
    seconds: float | None
    floats: bool
    notes: list[str]
    partial: str | None

    def seek(self, seconds: float) -> None:
        """Let the next block begin there or before, as near as the format allows."""

    def blocks(self) -> Iterator[Block]:
        """What there is from here on, in blocks of at most BLOCK_FRAMES frames and about BLOCK_SAMPLES samples.

        Raises:
            CannotDecode: not one sample can be decoded.
        """

    def close(self) -> None:
        """Let go of the file."""
