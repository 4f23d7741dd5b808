"""From one sample rate to another, block by block: what it takes in memory does not grow with the recording."""

from __future__ import annotations

import math
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..types import SAMPLE_RATE

Samples = NDArray[np.float32]
Resampler = Literal["soxr", "resampy"]
DEFAULT: Resampler = "soxr"


class ResamplingStream(Protocol):
    """Takes mono samples at the old rate, gives those at the new one that are finished; all are, once `last` is told.

    The joined results are samples * new / old, rounded (a half up), but one at least where there was any input, however that
    was cut.
    """

    def __call__(self, block: Samples, last: bool = False) -> Samples: ...


def choose_resampler(resampler: str) -> Resampler:
    """The resampler of that name. Raises UsageError when there is none."""
    for known in get_args(Resampler):
        if resampler == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"resampler: {resampler!r} is unknown; choose soxr or resampy")


def resampling_stream(rate: int, resampler: Resampler = DEFAULT, to: int = SAMPLE_RATE) -> ResamplingStream:
    """A stream from `rate` Hz to `to` Hz; where they are equal, samples pass as they are."""
    if rate == to:
        return _pass
    return _Something((_Soxr if choose_resampler(resampler) == "soxr" else _Resampy)(rate, to))


def resample(samples: Samples, rate: int, resampler: Resampler = DEFAULT, to: int = SAMPLE_RATE) -> Samples:
    """Bring mono samples from `rate` Hz to `to` Hz at once; where they are equal, they come back as they are."""
    return resampling_stream(rate, resampler, to)(samples, last=True)


def _pass(block: Samples, last: bool = False) -> Samples:
    return block


class _Something:
    """A stream that leaves something of a sound which is shorter than a sample at the new rate: one sample, its mean. So a file
    that holds a sound holds one for models of every rate."""

    def __init__(self, stream: ResamplingStream) -> None:
        self._stream = stream
        self._heard: list[Samples] | None = []  # None once the stream has given something

    def __call__(self, block: Samples, last: bool = False) -> Samples:
        out = self._stream(block, last)
        if self._heard is None:
            return out
        if len(out):
            self._heard = None
            return out
        if len(block):
            self._heard.append(block)
        return np.array([np.concatenate(self._heard).mean()], np.float32) if last and self._heard else out


class _Soxr:
    def __init__(self, rate: int, to: int) -> None:
        import soxr

        self._stream = soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")

    def __call__(self, block: Samples, last: bool = False) -> Samples:
        out: Samples = self._stream.resample_chunk(np.ascontiguousarray(block, dtype=np.float32), last=last)
        return out


class _Resampy:
    """resampy knows no streams. Its filter reaches `_context` inputs to either side, so pieces that overlap by as much and
    begin where an input and an output fall together, every `_period` inputs, give the same samples as the whole would."""

    _AT_ONCE = 1 << 16  # inputs, about

    def __init__(self, rate: int, to: int) -> None:
        from resampy.filters import get_filter

        half_window, precision, _ = get_filter("kaiser_best")
        reach = math.ceil(len(half_window) / precision * max(1.0, rate / to)) + 1
        self._rate, self._to = rate, to
        self._period = rate // math.gcd(rate, to)
        self._context = -(-reach // self._period) * self._period
        self._step = max(1, self._AT_ONCE // self._period) * self._period
        self._waiting = np.zeros(self._context, np.float32)  # silence before the first sample
        self._taken = self._given = 0  # inputs and outputs

    def __call__(self, block: Samples, last: bool = False) -> Samples:
        self._taken += len(block)
        padding = np.zeros(self._context + self._period if last else 0, np.float32)  # and behind the last
        self._waiting = np.concatenate([self._waiting, block, padding])
        finished = []
        while len(self._waiting) >= self._step + 2 * self._context:
            finished.append(self._piece(self._step))
        if last and (rest := (len(self._waiting) - 2 * self._context) // self._period * self._period) > 0:
            finished.append(self._piece(rest))
        out = np.concatenate([np.zeros(0, np.float32), *finished])
        if last:
            total = (2 * self._taken * self._to + self._rate) // (2 * self._rate)
            out = out[: max(0, total - self._given)]
        self._given += len(out)
        return out

    def _piece(self, inputs: int) -> Samples:
        import resampy

        piece = self._waiting[: inputs + 2 * self._context]
        out = resampy.resample(piece, self._rate, self._to, filter="kaiser_best")
        first, last = (count * self._to // self._rate for count in (self._context, self._context + inputs))
        self._waiting = self._waiting[inputs:]
        return np.asarray(out[first:last], np.float32)
