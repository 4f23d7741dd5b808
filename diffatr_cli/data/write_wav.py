"""The 32 kHz mono 16-bit WAV files that prepared data consist of: to 16 bits, and to disk."""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..files import replacing
from ..types import SAMPLE_RATE
from .resample import Samples

MOST_FRAMES = (0xFFFF_FFFF - 36) // 2
"""Of a WAV file, whose sizes are 32-bit numbers: some 18 hours."""

_WAV_HEADER = 44  # bytes that `wave` writes before the samples


class PcmCounter:
    """Turns float32 blocks of full scale +-1 into int16, clipped, and keeps account of them.

    What `read_piece` returns survives the way there and back unchanged.

    Attributes:
        frames: samples so far.
        clipped: of these, louder than full scale.
    """

    def __init__(self) -> None:
        self.frames = self.clipped = 0
        self._md5 = hashlib.md5()
        self._lowest, self._highest = 32767, -32768

    def __call__(self, samples: Samples) -> NDArray[np.int16]:
        scaled = samples * np.float32(32768)
        if len(scaled) and max(scaled.max(), -scaled.min()) > 32768:
            self.clipped += int(np.count_nonzero(np.abs(scaled) > 32768.5))
        np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled)
        pcm = scaled.astype(np.int16)
        self.frames += len(pcm)
        self._md5.update(pcm.data)
        if len(pcm):
            self._lowest, self._highest = min(self._lowest, int(pcm.min())), max(self._highest, int(pcm.max()))
        return pcm

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    @property
    def silent(self) -> bool:
        """Whether all samples are one value."""
        return self._lowest >= self._highest


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """float32 of full scale +-1 -> int16, clipped."""
    return PcmCounter()(samples)


def write_wav(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write mono 16-bit samples as a 32 kHz WAV file, whole or not at all.

    Raises:
        DiffATRError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream_wav(stream, [pcm])


def stream_wav(stream: BinaryIO, blocks: Iterable[NDArray[np.int16]]) -> None:
    """Write blocks of mono 16-bit samples as one 32 kHz WAV file to an open stream, each as it comes."""
    # Not by libsndfile, which reports a full disk as a short write.
    with wave.open(stream, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        for pcm in blocks:
            out.writeframes(np.ascontiguousarray(pcm, "<i2").data)


def wav_size(frames: int) -> int:
    """Bytes of a prepared WAV file of so many samples."""
    return _WAV_HEADER + 2 * frames
