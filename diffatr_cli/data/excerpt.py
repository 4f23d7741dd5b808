"""Reading a stretch of a sound file, and how long one is, without decoding the rest."""

from __future__ import annotations

from pathlib import Path

from .resample import Samples
from .sound import open_sound


def duration(path: Path) -> float | None:
    """Seconds of a sound file by its header; None where that does not say. Nothing is decoded, so damage goes unseen.

    Raises:
        AudioError: the file cannot be opened as a sound.
    """
    with open_sound(path) as sound:
        return sound.duration()


def read_excerpt(path: Path, start: float, end: float) -> Samples:
    """The sound from `start` to `end`, in seconds: mixed down as `Sound.blocks` does, 32 kHz, (samples,) float32.

    What lies beyond the file's end is missing from the result. For looking and listening: unlike `load_audio` it does not
    notice a file that was cut short.

    Raises:
        AudioError: the file is missing, no audio, or damaged there.
    """
    with open_sound(path) as sound:
        return sound.excerpt(start, end)
