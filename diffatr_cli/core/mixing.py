"""Recordings sounding together: what an encoder would hear of them, from what it hears of each.

k recordings of T_i frames or S_i samples each, T frames, S samples, M mels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import SAMPLE_RATE
from .level import LEVEL, SILENT, level, levelled
from .logmel import FLOOR, SILENCE, WINDOW, mel_corners

_NEPERS = np.float32(np.log(10) / 10)  # a decibel of power as an exponent of e
_CORNERS = mel_corners()
_SHARES = ((_CORNERS[2:] - _CORNERS[:-2]) / (WINDOW * 3 / 8 * WINDOW)).astype(np.float32)
"""(M,): mel power times these, summed, is the mean power of the frame's samples, as far as it lies between `F_MIN` and `F_MAX`.

The filters have unit area; times half of their width they are one high and neighbours add up to one. Each bin stands for its
mirror image too, and the window's mean square is 3 / 8.
"""


def mix_logmels(
    parts: Sequence[NDArray[np.float32]], decibels: Sequence[float], starts: Sequence[int], frames: int, hop: int
) -> NDArray[np.float32]:
    """The log-mel of recordings mixed, brought to the level that all sounds are heard at (`core.level`): (T, M) dB.

    Powers are added. That is exact up to the cross terms of the waveforms, which are zero in the mean: against waveforms mixed, a
    value is 1.5 dB off in the mean over two noises of one level, and 1.3 dB over pairs of recordings. The level is that of the
    loudest tenth of a second as the mels hold it, without what lies below 50 Hz and above 14 kHz: half of those pairs come out
    within 0.5 dB of their true level, and one of twenty, of machines that rumble, more than 3 dB above it.

    Args:
        parts: k of (T_i, M) dB, `SILENCE` where there is none.
        decibels: that each is raised by before they are mixed.
        starts: the frame at which each begins.
        frames: T, of the mixture; what stands out behind it is left out.
        hop: samples between frames.
    """
    power = np.zeros((frames, parts[0].shape[1]), np.float32)
    for part, gain, start in zip(parts, decibels, starts, strict=True):
        heard = np.where(part > SILENCE, np.exp((part + np.float32(gain)) * _NEPERS), np.float32(0))
        power[start : start + len(part)] += heard[: frames - start]
    now = _band_level(power, hop)
    if now >= SILENT:
        power *= np.float32(10 ** ((LEVEL - now) / 10))
    return (np.log(np.maximum(power, np.float32(FLOOR))) / _NEPERS).astype(np.float32, copy=False)


def mix_waveforms(
    parts: Sequence[NDArray[np.float32]], decibels: Sequence[float], starts: Sequence[int], samples: int
) -> NDArray[np.float32]:
    """Waveforms at 32 kHz mixed, and brought to the level of the first of them: (S,).

    Args:
        parts: k of (S_i,), at any levels: each is brought to the same one first. Silent ones stay as they are.
        decibels: that each is raised by then.
        starts: the sample at which each begins.
        samples: S, of the mixture; what stands out behind it is left out.
    """
    mixed = np.zeros(samples, np.float32)
    for part, gain, start in zip(parts, decibels, starts, strict=True):
        mixed[start : start + len(part)] += np.float32(10 ** (gain / 20)) * levelled(part)[: samples - start]
    wanted, now = (level(wave, float(wave.mean(dtype=np.float64))) for wave in (parts[0], mixed))
    if min(wanted, now) >= SILENT:
        mixed *= np.float32(10 ** ((wanted - now) / 20))
    return mixed


def _band_level(power: NDArray[np.float32], hop: int) -> float:
    """`core.level.level` of mel powers (T, M), of what lies in their band; -inf for silence."""
    of_frames = power @ _SHARES
    each = max(1, round(SAMPLE_RATE / 10 / hop))
    tenths = len(of_frames) // each
    means = of_frames[: tenths * each].reshape(tenths, each).mean(1) if tenths else of_frames.mean(keepdims=True)
    loudest = float(means.max(initial=0.0))
    return 10 * float(np.log10(loudest)) if loudest > 0 else float("-inf")
