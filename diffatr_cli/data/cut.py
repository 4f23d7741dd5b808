"""A stretch of a sound file as a WAV file of its own: its rate, its channels, and as many bits as its samples need."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from .audio_error import AudioError
from .sound import open_sound

LONGEST = 3600.0
"""Seconds of a cut at most: it is held in memory."""

_MOST_SAMPLES = 1 << 28  # of all channels together, 1 GiB


def cut_wav(path: Path, start: float, end: float) -> bytes:
    """The sound from second `start` to `end` as WAV, nothing mixed, resampled or dithered.

    Samples of up to 24 bits are kept to the last bit, as 16 or 24 bits; louder or finer ones are written as 32-bit floats.
    The same stretch gives the same bytes. What lies beyond the file's end is missing.

    Raises:
        AudioError: the file is missing, no audio, damaged there, or has no sound there; or the stretch is too long, or the number
            of channels or the rate changes in it.
    """
    if end - start > LONGEST:
        raise AudioError(path, f"a stretch of more than {LONGEST:.0f} s; take the whole file")
    blocks, kind, size = list[NDArray[np.float32]](), (0, 0), 0
    with open_sound(path) as sound:
        for block in sound.stretch(start, end):
            if not len(block.samples):
                continue
            own = block.rate, block.samples.shape[1]
            if blocks and kind != own:
                raise AudioError(path, "its rate or channels change in this stretch; take the whole file")
            kind, size = own, size + block.samples.size
            if size > _MOST_SAMPLES:
                raise AudioError(path, "a stretch too large for the memory; take the whole file")
            blocks.append(block.samples)
    if not blocks:
        raise AudioError(path, "no sound in this stretch")
    samples, out = np.nan_to_num(np.concatenate(blocks), posinf=0.0, neginf=0.0), io.BytesIO()
    soundfile.write(out, samples, kind[0], format="WAV", subtype=_subtype(samples))
    content = bytearray(out.getvalue())
    if (peak := content.find(b"PEAK", 0, 256)) >= 0:  # libsndfile adds it to floats, with the time of day in it
        content[peak + 12 : peak + 16] = bytes(4)
    return bytes(content)


def _subtype(samples: NDArray[np.float32]) -> Literal["PCM_16", "PCM_24", "FLOAT"]:
    """The least that holds the samples. Whole numbers do not reach full scale, so it needs floats."""
    if samples.max() >= 1 or samples.min() < -1:
        return "FLOAT"
    if _whole(samples, 15):
        return "PCM_16"
    return "PCM_24" if _whole(samples, 23) else "FLOAT"


def _whole(samples: NDArray[np.float32], bits: int) -> bool:
    scaled = samples * np.float32(2**bits)
    return bool((scaled == np.rint(scaled)).all())
