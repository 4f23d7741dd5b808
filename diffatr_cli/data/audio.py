"""Sound files for the rest of the package: whole ones as mono, and the names that all readers of sound share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ..types import SAMPLE_RATE
from .audio_error import NO_MEMORY, AudioError, as_audio_error
from .formats import AUDIO_SUFFIXES, PYAV_SUFFIXES, UNREADABLE_SUFFIXES
from .resample import DEFAULT, Resampler, Samples, choose_resampler
from .sound import Sound, open_sound

__all__ = [
    "AUDIO_SUFFIXES",
    "NO_MEMORY",
    "PYAV_SUFFIXES",
    "UNREADABLE_SUFFIXES",
    "AudioError",
    "Partial",
    "Resampler",
    "Samples",
    "Sound",
    "choose_resampler",
    "load_audio",
    "open_sound",
]

Partial = Literal["keep", "skip"]
"""What to do with a recording of which a part is missing: use what is there, or leave it out."""


def load_audio(path: Path | str, resampler: Resampler = DEFAULT, partial: Partial = "skip", rate: int = SAMPLE_RATE) -> Samples:
    """Decode a whole sound file: channels averaged, `rate` Hz, (samples,) float32, full scale +-1, not clipped.

    For what fits into memory; `open_sound` reads anything.

    Raises:
        AudioError: the file is missing, empty, no audio, has no samples, holds NaN or infinity, is too large for the memory,
            or a part of it is missing and `partial` is not "keep".
        UsageError: the resampler is unknown.
    """
    with as_audio_error(path), open_sound(path, resampler, rate) as sound:
        blocks = list(sound.blocks())
        if sound.partial and partial == "skip":
            raise AudioError(path, sound.partial)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
