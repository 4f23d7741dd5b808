"""One loudness for all that an encoder hears: a recording made too quietly, or beside the zero line, is still the recording.

The level of a sound is that of its loudest tenth of a second, about its mean value, in dB below full scale: unlike the whole's
it does not depend on how much silence lies around. Most recordings that encoders learn from lie between -20 and -8 dB, and their
embeddings of a clip drift away from themselves outside of it. So all sounds are brought to one level, in the middle of these:
what is found of a recording does not depend on how loud it was made. To bring only those outside into that range is no better
for recordings as they are, and gives quiet ones other scores. `docs/model-card.md` tells what recordings of any level score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..types import SAMPLE_RATE

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = -14.0
"""dB, that all sounds are brought to."""
SILENT = -90.0
"""dB, one step of 16 bits: below it there is nothing to raise but the noise of the converter."""

_STRETCH = SAMPLE_RATE // 10


def levelled(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (S,) waveform at 32 kHz, brought to `LEVEL`, its offset taken out. Silent sounds stay as they are."""
    if not len(waveform):
        return waveform
    mean = float(waveform.mean(dtype=np.float64))
    now = level(waveform, mean)
    if now < SILENT:
        return waveform
    return ((waveform - np.float32(mean)) * np.float32(10 ** ((LEVEL - now) / 20))).astype(np.float32, copy=False)


def level(waveform: NDArray[np.float32], mean: float = 0.0) -> float:
    """The level of a (S,) waveform at 32 kHz about a mean value, in dB; -inf for silence.

    That of the loudest of its tenths of a second, one after the other from the beginning; of all of it, where it is shorter.
    """
    about = waveform - np.float32(mean)
    whole = len(about) // _STRETCH
    rows = about[: whole * _STRETCH].reshape(whole, _STRETCH) if whole else about[None]
    power = float(np.einsum("ij,ij->i", rows, rows).max() / rows.shape[1]) if rows.size else 0.0
    return 10 * float(np.log10(power)) if power > 0 else float("-inf")


def levelled_rows(waveforms: Tensor) -> Tensor:
    """`levelled`, of (B, S) waveforms at once and on their device; S is not 0."""
    import torch

    about = waveforms - waveforms.mean(1, keepdim=True, dtype=torch.float64).to(waveforms.dtype)
    stretch = min(_STRETCH, about.shape[1])
    rows = about[:, : about.shape[1] // stretch * stretch].reshape(len(about), -1, stretch)
    power = rows.square().mean(2).amax(1, keepdim=True)
    return torch.where(power < 10 ** (SILENT / 10), waveforms, about * (10 ** (LEVEL / 20) * power.rsqrt()))
