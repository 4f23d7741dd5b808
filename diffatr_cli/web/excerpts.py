"""The part of a recording that the page shows and plays: its bounds, its pictures, and its sound as WAV."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from ..corpus.session import Clip
from ..data.audio import AudioError
from ..data.excerpt import read_excerpt
from ..data.resample import Samples
from ..data.write_wav import stream_wav, to_pcm16
from ..errors import UsageError
from .spectrogram import levels, outline

VIEW = 60.0
"""Seconds of a recording that a picture shows at most; longer recordings are shown around the hit."""

_COLUMNS = 720  # of a picture
_PICTURES = 256  # kept in memory, about 100 kB each


def view(start: float, end: float, seconds: float) -> tuple[float, float]:
    """The part of a recording that is shown for a hit in it: all of it up to `VIEW`, else so much around the hit."""
    if seconds <= VIEW:
        return 0.0, seconds
    first = min(max(0.0, (start + end - VIEW) / 2), seconds - VIEW)
    return first, first + VIEW


def _bounded(start: float, end: float) -> tuple[float, float]:
    """Bounds that are no more than the page asks for: nobody makes the server decode hours. Raises UsageError if empty."""
    if not start < end:
        raise UsageError("A part of a sound ends after its start.")
    return start, min(end, start + VIEW + 1)


def _read(clip: Clip, start: float, end: float) -> Samples:
    """The samples of a part. Raises AudioError as `read_excerpt`, and where there is no sound in it: it lies behind the end."""
    samples = read_excerpt(clip.path, start, end)
    if not len(samples):
        raise AudioError(clip.path, "no sound in this stretch")
    return samples


class Picture(NamedTuple):
    """`levels` as of `spectrogram.levels`, `outline` as of `spectrogram.outline`."""

    levels: np.ndarray
    outline: np.ndarray


class Pictures:
    """The pictures shown last, each made once, for its PNG and its outline and in both themes."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Any, ...], Picture] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, clip: Clip, start: float, end: float) -> Picture:
        """The picture of a clip from `start` to `end`, in seconds. Raises UsageError and AudioError: there is no such part."""
        start, end = _bounded(start, end)
        stat = clip.real.stat()
        key = (clip.real, stat.st_size, stat.st_mtime_ns, start, end)
        with self._lock:  # one at a time: a page asks for ten at once, and each of them twice
            picture = self._made.pop(key, None)
            if picture is None:
                samples = _read(clip, start, end)
                picture = Picture(levels(samples, _COLUMNS), outline(samples, _COLUMNS))
            self._made[key] = picture
            if len(self._made) > _PICTURES:
                self._made.popitem(last=False)
        return picture


def as_wav(clip: Clip, start: float, end: float) -> bytes:
    """A clip from `start` to `end`, in seconds, as a WAV file. Raises as `Pictures.of`."""
    out = io.BytesIO()
    stream_wav(out, to_pcm16(_read(clip, *_bounded(start, end))))
    return out.getvalue()
