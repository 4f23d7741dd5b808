"""Decoding with libsndfile: what is there of a file, without trust in its header's count of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from .audio_error import TRUNCATED, check_rate
from .decoder import BLOCK_FRAMES, BLOCK_SAMPLES, Block, CannotDecode
from .quiet import quiet_c_stderr
from .spliced_file import SplicedFile

_UNKNOWN = 1  # libsndfile's error for a format that it does not recognise
_NO_MEMORY = 17
_PLAIN = frozenset(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"))
_FLOATS = frozenset(("FLOAT", "DOUBLE"))
_GUESSED = frozenset(("MP3",))  # formats whose count of frames is a guess from the file's length


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks after every read and reads no further than the header's count, unless a file cannot be sought in.

    The seeking costs time in compressed files, and ends in an error in a FLAC stream that does not know its length.
    """

    def seekable(self) -> bool:
        return False


class SoundFileDecoder:
    """A file, or a spliced one, opened by libsndfile. See `Decoder`. `furthest` is the last frame to which it can seek.

    Raises:
        CannotDecode: libsndfile does not read it.
        AudioError: its sample rate is beyond reason.
        MemoryError: libsndfile asked for more than there is.
    """

    def __init__(self, path: Path, spliced: SplicedFile | None = None, furthest: int | None = None) -> None:
        self._spliced, self._furthest = spliced, furthest
        if spliced is None and path.suffix.lower() == ".raw":  # which soundfile would take for samples without a header
            self._spliced = SplicedFile(path, [(0, path.stat().st_size)])
        # As bytes, so that names which are not UTF-8 work too; on Windows only text does.
        name = os.fspath(path) if os.name == "nt" else os.fsencode(path)
        try:
            with quiet_c_stderr():
                self._file = _Stream(self._spliced or name)
        except soundfile.LibsndfileError as error:
            if error.code == _NO_MEMORY:
                raise MemoryError from None
            # "does not exist" is what it says of a file that begins like an MP3 and is none.
            unknown = error.code == _UNKNOWN or "does not exist" in error.error_string
            raise CannotDecode("not audio" if unknown else _damaged(error), unknown) from None
        self.rate = check_rate(path, self._file.samplerate)
        self.floats = self._file.subtype in _FLOATS
        known = 0 <= self._file.frames < 1 << 62 and self._file.format not in _GUESSED
        self.seconds = self._file.frames / self.rate if known else None
        self.notes: list[str] = []
        self.partial: str | None = None
        self._at = 0

    def seek(self, seconds: float) -> None:
        frame = min(round(seconds * self.rate), self._file.frames)
        frame = max(0, frame if self._furthest is None else min(frame, self._furthest - 1))
        try:
            with quiet_c_stderr():
                self._at = self._file.seek(frame)
        except soundfile.LibsndfileError as error:
            raise CannotDecode(_damaged(error)) from None

    def blocks(self) -> Iterator[Block]:
        channels = self._file.channels
        frames = max(1, min(BLOCK_FRAMES, BLOCK_SAMPLES // channels))
        # libsndfile takes many times as long as numpy to make plain 16-bit samples floats; the result is the same.
        integers = self._file.subtype == "PCM_16" and self._file.format in _PLAIN
        first = self._at
        while True:
            try:
                if integers:
                    samples = self._file.read(frames, dtype="int16", always_2d=True) * np.float32(1 / 32768)
                else:
                    # Where it fails in the middle, it does not say how far it came: no decoder writes this NaN.
                    samples = np.full((frames, channels), np.nan, np.float32)
                    with quiet_c_stderr():
                        samples = self._file.read(out=samples)
            except soundfile.LibsndfileError as error:
                if error.code == _NO_MEMORY:
                    raise MemoryError from None
                # Behind the last frame by its header it writes zeros, where it failed too.
                count = 0 if integers else int(np.isfinite(samples).all(1).cumprod().sum())
                samples = samples[: min(count, max(0, self._file.frames - self._at))]
                self.partial = _damaged(error)
            if self._spliced is not None and self._spliced.trouble is not None:
                raise self._spliced.trouble
            if len(samples):
                yield Block(samples, self.rate, self._at / self.rate)
                self._at += len(samples)
            elif self.partial and self._at == first == 0:
                raise CannotDecode(self.partial)
            if self.partial or not len(samples):
                break
        if self.seconds is not None and not self.partial and self._at < self._file.frames:
            self.partial = TRUNCATED
        if self.partial and self.seconds is not None:
            self.notes.append(f"{self._at / self.rate:.1f} s of {self.seconds:.1f} s can be read")

    def close(self) -> None:
        self._file.close()
        if self._spliced is not None:
            self._spliced.close()


def _damaged(error: soundfile.LibsndfileError) -> str:
    said = error.error_string.strip(" .\n")
    if "unimplemented" in said:
        return "samples of a kind that cannot be read"
    return f"truncated or damaged ({said})" if said else "truncated or damaged"
