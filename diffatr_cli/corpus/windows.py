"""A recording as the windows that are embedded, the last one moved to end with the recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.windows import OURS, Windowing
from ..data.audio import AudioError, Samples, open_sound

_LOUDEST = 1e9  # full scale is 1; the power of louder samples overflows float32 and would make the embedding NaN


class Window(NamedTuple):
    """A stretch of a recording, from sample `start` to `end`; `samples` are mono float32."""

    start: int
    end: int
    samples: Samples


class Missing(NamedTuple):
    """What is missing of a recording whose windows are of the rest of it."""

    what: str


def cut(blocks: Iterable[Samples], windowing: Windowing = OURS) -> Iterator[Window]:
    """The windows of a recording that comes in blocks, as `spans` gives them, without holding more than one and a block."""
    held = np.zeros(0, np.float32)  # the end of what came, from which the next windows are cut
    total = start = 0
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        total += len(block)
        while start + windowing.length < total:
            first = start - (total - len(held))
            yield Window(start, start + windowing.length, held[first : first + windowing.length])
            start += windowing.hop
        held = held[-windowing.length :]
    if total:
        yield Window(total - len(held), total, held)


def windows_of(path: Path, windowing: Windowing = OURS) -> Iterator[Window | Missing]:
    """Decode a sound file and cut it, window by window; in the end tell what is missing, if anything.

    Raises:
        AudioError: the file cannot be used; windows that came before are of no use either.
    """
    with open_sound(path, rate=windowing.rate) as sound:
        for window in cut(sound.blocks(), windowing):
            if max(window.samples.max(), -window.samples.min()) > _LOUDEST:
                raise AudioError(path, "samples beyond any scale")
            yield window
        if sound.partial:
            yield Missing(sound.partial)
