"""Fingerprints of sounds: what stays of a recording in another format, at another level, or cut out of a longer one.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002. The power of each frame is summed in 33
bands, spaced evenly by the logarithm of frequency. Each frame is 32 bits: whether the difference of two neighbouring bands is
larger than it was in the frame before (their Eq. 1). Signs of differences know nothing of the level, and change little with what
codecs do. Theirs are made for music: frames of 0.37 s every 11.6 ms, bands from 300 to 2000 Hz. Sound effects are shorter, and
birds and bells lie higher: frames here are of 0.256 s, every 12 ms, and bands reach from 200 to 3400 Hz, which recordings at
8 kHz still have.

A sound is taken to lie in silence, of which frames at its edges hold a part: silence that is added to it changes nothing.

N frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RATE = 8000
"""Hz of the samples that are heard."""
FRAME = 2048
"""Samples of a frame."""
HOP = 96
"""Samples from one frame to the next."""
SILENT = -90.0
"""dB below full scale: a frame that has less in its bands is silent, whatever the rest of the recording is like."""
DEPTH = 50.0
"""dB below the loudest frame of a recording, beyond which a frame is silent."""

_BANDS = 33
_LOWEST, _HIGHEST = 200.0, 3400.0  # Hz
_NOTHING = -300.0  # dB of no sound at all
_AT_ONCE = 512  # frames


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The fingerprint of a recording. Frame n has its middle at second n * HOP / RATE.

    Attributes:
        bits: (N,) uint32.
        levels: (N,) float16, dB about full scale, of what lies in the bands.
        seconds: of the recording.
    """

    bits: NDArray[np.uint32]
    levels: NDArray[np.float16]
    seconds: float

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def heard(self) -> NDArray[np.bool_]:
        """(N,): the frames that are not silent. The bits of others mean nothing."""
        if not len(self):
            return np.zeros(0, bool)
        return np.asarray(self.levels > max(SILENT, float(self.levels.max()) - DEPTH))


def fingerprint(blocks: Iterable[NDArray[np.float32]]) -> Fingerprint:
    """The fingerprint of a mono recording at RATE Hz that comes in blocks (samples,), full scale +-1.

    It takes the memory of a block and of the fingerprint.
    """
    held = np.zeros(FRAME // 2 + HOP, np.float32)  # the frame before the first has its middle a hop before the beginning
    before: NDArray[np.float32] | None = None
    bits, levels, samples, frames = [np.zeros(0, np.uint32)], [np.zeros(0, np.float16)], 0, 0
    for block in blocks:
        samples += len(block)
        held = np.concatenate([held, block])
        while len(held) >= FRAME + HOP * (_AT_ONCE - 1):
            before = _take(held, _AT_ONCE, before, bits, levels)
            held, frames = held[HOP * _AT_ONCE :], frames + _AT_ONCE
    # The last frame has its middle at the end or up to a hop before it.
    if samples:
        held = np.concatenate([held, np.zeros(FRAME, np.float32)])
        _take(held, samples // HOP + 2 - frames, before, bits, levels)
    return Fingerprint(np.concatenate(bits), np.concatenate(levels), samples / RATE)


def _take(
    samples: NDArray[np.float32],
    count: int,
    before: NDArray[np.float32] | None,
    bits: list[NDArray[np.uint32]],
    levels: list[NDArray[np.float16]],
) -> NDArray[np.float32] | None:
    """Add what the first `count` frames of some samples give; the powers of the last, (bands,)."""
    if count <= 0:
        return before
    window, edges = _frame()
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[: count * HOP : HOP] * window
    spectrum = np.fft.rfft(frames)
    powers = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, edges, axis=1)[:, :_BANDS]
    rows = powers if before is None else np.concatenate([before[None], powers])
    slopes = rows[:, :-1] - rows[:, 1:]
    larger = slopes[1:] > slopes[:-1]
    bits.append(np.packbits(larger, axis=1).view(">u4")[:, 0].astype(np.uint32))
    levels.append(
        (10 * np.log10(np.maximum(powers[len(powers) - len(larger) :].sum(1), 10 ** (_NOTHING / 10)))).astype(np.float16)
    )
    return np.asarray(powers[-1])


@lru_cache(maxsize=1)
def _frame() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The window, scaled so that the powers of a spectrum's lines add up to the mean square, and the first line of each band
    and of what follows."""
    window = np.hanning(FRAME + 1)[:-1]
    window *= np.sqrt(2 / (FRAME * (window**2).sum()))
    edges = np.round(np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1) * FRAME / RATE).astype(np.int64)
    return window.astype(np.float32), edges
