"""One loudness for all that an encoder hears: a recording made too quietly, or beside the zero line, is still the recording.

The level of a sound is that of its loudest tenth of a second, about its mean value, in dB below full scale: unlike the whole's
it does not depend on how much silence lies around. Most recordings that encoders learn from lie in the range that is given here,
and their embeddings of a clip drift away from themselves outside of it. So sounds below `QUIETEST` are raised to it, those above
`LOUDEST` lowered to it, and all between are left as they are. Of the ranges tried, from -30..-5 dB to one single level, this one
was best for recordings as they are, and narrower ones gained little for recordings 40 dB below. `docs/model-card.md` tells what
recordings of any level score by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import SAMPLE_RATE

QUIETEST, LOUDEST = -20.0, -8.0
"""dB: the range that levels are brought into."""
SILENT = -90.0
"""dB, one step of 16 bits: below it there is nothing to raise but the noise of the converter."""
OFFSET = 0.01
"""Of full scale: a mean value beyond it is taken out of sounds of any level."""

_STRETCH = SAMPLE_RATE // 10


def levelled(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (S,) waveform at 32 kHz, its level within the range and its offset taken out; the same array where both were right.

    Silent sounds stay as they are.
    """
    if not len(waveform):
        return waveform
    mean = float(waveform.mean(dtype=np.float64))
    now = level(waveform, mean)
    if now < SILENT:
        return waveform
    gain = float(np.clip(now, QUIETEST, LOUDEST)) - now
    if gain == 0 and abs(mean) <= OFFSET:
        return waveform
    return ((waveform - np.float32(mean)) * np.float32(10 ** (gain / 20))).astype(np.float32, copy=False)


def level(waveform: NDArray[np.float32], mean: float = 0.0) -> float:
    """The level of a (S,) waveform at 32 kHz about a mean value, in dB; -inf for silence.

    That of the loudest of its tenths of a second, one after the other from the beginning; of all of it, where it is shorter.
    """
    about = waveform - np.float32(mean)
    whole = len(about) // _STRETCH
    rows = about[: whole * _STRETCH].reshape(whole, _STRETCH) if whole else about[None]
    power = float(np.einsum("ij,ij->i", rows, rows).max() / rows.shape[1]) if rows.size else 0.0
    return 10 * float(np.log10(power)) if power > 0 else float("-inf")
