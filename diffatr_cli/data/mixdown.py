"""Many channels to one, block by block: their mean, or the louder one while they cancel in the mean.

A balanced line recorded as stereo, or one wire swapped, gives two channels of opposite sign, whose mean is silence. Whether
channels cancel is decided for each half second, counted from the beginning, so that it does not depend on how the file was
cut into blocks. The decision looks at the energies of that half second and of those before, which fade with a half-life of
ten seconds: what is loud decides, a quiet passage between does not. One loud half second that cancels is enough to take a
channel, since its sound would be lost; back to the mean it goes when both that half second and those before speak for it.
Where it changes, one mix fades into the other within ten milliseconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .resample import Samples

_STRETCH = 0.5  # seconds that are decided on at once
_HALF_LIFE = 10.0  # seconds
_FADE = 0.01  # seconds
_CANCELS, _ADDS = 0.1, 0.4
"""Energy of the mean, in parts of what unrelated channels would leave of theirs, below which channels cancel, and above which
they no longer do. For two equal channels of correlation r it is 1 + r."""
_MATTERS = 0.01  # a half second with less than this share of the usual energy decides nothing by itself
_CLEARLY = 1.6  # times the energy of the channel in use, that another needs to take its place


class Mixdown:
    """Mixes (frames, channels) blocks of one recording down to (frames,)."""

    def __init__(self, rate: int, channels: int) -> None:
        self._channels = channels
        self._stretch, self._fade = max(1, round(rate * _STRETCH)), max(1, round(rate * _FADE))
        self._fading = 0.5 ** (_STRETCH / _HALF_LIFE)
        self._energies, self._mixed = np.zeros(channels), 0.0
        self._chosen: int | None = None  # the channel that is taken alone
        self._weights: NDArray[np.float32] | None = None
        self._waiting: list[NDArray[np.float32]] = []
        self._frames = 0

    def __call__(self, block: NDArray[np.float32], last: bool = False) -> Samples:
        """Take (frames, channels); give the mono samples that are decided: all of them at the `last`."""
        if self._channels == 1:
            return block[:, 0]
        self._waiting.append(block)
        self._frames += len(block)
        if self._frames < self._stretch and not last:
            return np.zeros(0, np.float32)
        frames = np.concatenate(self._waiting) if len(self._waiting) > 1 else block
        end = len(frames) if last else len(frames) // self._stretch * self._stretch
        self._waiting, self._frames = [frames[end:]], len(frames) - end
        with np.errstate(over="ignore", invalid="ignore"):  # whoever takes the result looks whether it is finite
            parts = [self._mix(frames[first : min(first + self._stretch, end)]) for first in range(0, end, self._stretch)]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _mix(self, frames: NDArray[np.float32]) -> Samples:
        rows = np.ascontiguousarray(frames.T)  # channel by channel, which numpy does ten times as fast
        mean: Samples = np.full(self._channels, 1 / self._channels, np.float32) @ rows
        before = self._weights
        self._decide(rows, mean)
        weights = np.zeros(self._channels, np.float32)
        if self._chosen is None:
            weights[:] = 1 / self._channels
        else:
            weights[self._chosen] = 1
        self._weights = weights
        out = mean if self._chosen is None else rows[self._chosen].copy()
        if before is not None and not np.array_equal(before, weights):
            count = min(self._fade, len(frames))
            share = np.arange(1, count + 1, dtype=np.float32) / count
            out[:count] = share * out[:count] + (1 - share) * (before @ rows[:, :count])
        return out

    def _decide(self, rows: NDArray[np.float32], mean: Samples) -> None:
        """Whether the mean of these (channels, frames) holds their sound, or which channel does."""
        rows = rows - rows.mean(1, keepdims=True)  # an offset is no sound
        energies = np.array([np.dot(row, row) for row in rows], np.float64)
        rest = mean - mean.mean()
        mixed = float(np.dot(rest, rest))
        if not np.isfinite(energies).all():
            return
        usual = self._energies.sum() * (1 - self._fading)
        self._energies = self._energies * self._fading + energies
        self._mixed = self._mixed * self._fading + mixed
        memory = self._share(self._mixed, self._energies)
        now = self._share(mixed, energies) if energies.sum() > _MATTERS * usual else None
        if self._chosen is None:
            if memory < _CANCELS or (now is not None and now < _CANCELS):
                self._chosen = int(self._energies.argmax())
        elif memory > _ADDS and now is not None and now > _ADDS:
            self._chosen = None
        elif self._energies.max() > _CLEARLY * self._energies[self._chosen]:
            self._chosen = int(self._energies.argmax())

    def _share(self, mixed: float, energies: NDArray[np.float64]) -> float:
        """The mean's energy, in parts of what unrelated channels would leave; 1 in silence."""
        expected = float(energies.sum()) / self._channels**2
        return mixed / expected if expected > 0 else 1.0
