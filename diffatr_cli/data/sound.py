"""Any sound file as mono at one sample rate, block by block: what it takes in memory does not grow with the recording."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..printable import are, counted
from ..types import SAMPLE_RATE
from .audio_error import NEEDS_PYAV, AudioError, as_audio_error
from .decoder import Block, CannotDecode, Decoder
from .formats import PYAV_SUFFIXES
from .mixdown import Mixdown
from .parts import By, Mark, Part, looks_like_media, parts_of
from .pyav_decoder import PyAVDecoder, has_pyav
from .resample import DEFAULT, Resampler, Samples, choose_resampler, resampling_stream
from .soundfile_decoder import SoundFileDecoder
from .spliced_file import SplicedFile

MOST_SAMPLES = 1 << 20
"""Of a block."""

_OFFSET = 0.01  # of full scale
_OVERLOAD = 16.0  # floats as loud as that, 24 dB over full scale, are on the scale of integers, or glitches
_GLITCHES = 0.001  # share of the samples that are not zero; where no more are beyond full scale, the others are no integers
_MOST_DAMAGED = 8
"""Recordings one behind the other that cannot be read; then what follows in the file is no sound, however it looks."""
_SCALES = (2.0**15, 2.0**23, 2.0**31)


def open_sound(path: Path | str, resampler: Resampler = DEFAULT, rate: int = SAMPLE_RATE) -> Sound:
    """Open a sound file of any kind, to be read in blocks at `rate` Hz.

    Raises:
        AudioError: the file is missing, empty, no audio, or its header asks for the impossible.
        UsageError: the resampler is unknown.
    """
    return Sound(Path(path), choose_resampler(resampler), rate)


class Sound:
    """An open sound file. Close it, or use it in a `with` block.

    Attributes:
        path: of the file.
        rate: Hz of what is read.
        notes: short remarks on what was put right or left out; complete after the last block.
        partial: None, or why not all of the recording can be read; final after the last block.
    """

    def __init__(self, path: Path, resampler: Resampler, rate: int) -> None:
        self.path = path
        self.rate = rate
        self.notes: list[str] = []
        self.partial: str | None = None
        self._resampler = resampler
        self._ready: tuple[By, Decoder] | None = None
        with as_audio_error(path):
            stat = path.stat()
            if path.is_dir():
                raise AudioError(path, "a folder, not a sound file")
            if not os.access(path, os.R_OK):
                raise AudioError(path, "cannot be read (no permission)")
            if stat.st_size == 0:
                raise AudioError(path, "empty file")
            self._mark = Mark(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            self._parts = parts_of(path, self._mark)
            self._ready = next(self._openings(self._parts[0], []))

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._ready is not None:
            self._ready[1].close()
            self._ready = None

    def duration(self) -> float | None:
        """Seconds by the file's own words; None where it says nothing. Nothing is decoded for it, so damage goes unseen."""
        total = 0.0
        with as_audio_error(self.path):
            for part in self._parts:
                if (seconds := self._seconds(part)) is None:
                    return None
                total += seconds
        return total

    def blocks(self) -> Iterator[Samples]:
        """The sound as blocks of (samples,) float32 at `rate` Hz, at most MOST_SAMPLES each: full scale +-1, not clipped.

        Channels are averaged, or the louder one is taken while they cancel. Can be had once.

        Raises:
            AudioError: there are no samples, or NaN or infinite ones, or the system refuses.
        """
        with as_audio_error(self.path):
            mono = _Mono(self.path, self._resampler, self.rate)
            done, damaged = 0.0, 0
            for number, part in enumerate(self._parts):
                if damaged == _MOST_DAMAGED:
                    left = len(self._parts) - number
                    self.notes.append(f"{counted(left, 'recording')} behind these {are(left)} not read")
                    break
                self._note(part)
                seconds, decoded = 0.0, self._decoded(number)
                while True:
                    try:
                        block = next(decoded, None)
                    except AudioError as error:
                        if not done and not seconds:
                            raise
                        self.partial = self.partial or error.reason
                        self.notes.append(f"from {done + seconds:.1f} s on: {error.reason}")
                        damaged += 1
                        break
                    if block is None:
                        damaged = 0
                        break
                    yield from mono(block.samples, block.rate)
                    seconds = block.start + len(block.samples) / block.rate
                done += seconds
            yield from mono.rest()
            if not done:
                raise AudioError(self.path, self.partial or "no samples")

    def excerpt(self, start: float, end: float) -> Samples:
        """What sounds from second `start` to `end`, as `blocks` would give it; what lies beyond the end is missing.

        Raises:
            AudioError: it cannot be decoded there.
        """
        with as_audio_error(self.path):
            mono = _Mono(self.path, self._resampler, self.rate, strict=False)
            out = [np.zeros(0, np.float32)]
            for block in self.stretch(start, end):
                out += mono(block.samples, block.rate)
            return np.concatenate([*out, *mono.rest()])

    def stretch(self, start: float, end: float) -> Iterator[Block]:
        """The blocks from second `start` to `end` as the file holds them: all channels, at its own rate, which may change.

        What lies beyond the end is missing. A block may be empty.

        Raises:
            AudioError: it cannot be decoded there.
        """
        with as_audio_error(self.path):
            offset = 0.0
            for number, part in enumerate(self._parts):
                seconds = self._seconds(part)
                if seconds is not None and number + 1 < len(self._parts) and offset + seconds <= start:
                    offset += seconds
                    continue
                decoded = 0.0
                for block in self._decoded(number, max(0.0, start - offset)):
                    at = offset + block.start
                    first, last = (max(0, round((second - at) * block.rate)) for second in (start, end))
                    yield Block(block.samples[first:last], block.rate, at + first / block.rate)
                    decoded = block.start + len(block.samples) / block.rate
                    if offset + decoded >= end:
                        break
                offset += seconds if seconds is not None else decoded
                if offset >= end:
                    break

    def _note(self, part: Part) -> None:
        self.notes += part.notes
        self.partial = self.partial or part.partial

    def _seconds(self, part: Part) -> float | None:
        if part.seconds is not None:
            return part.seconds
        if self._ready is not None and part is self._parts[0]:
            return self._ready[1].seconds
        _, decoder = next(self._openings(part, []))
        decoder.close()
        return decoder.seconds

    def _decoded(self, number: int, start: float = 0.0) -> Iterator[Block]:
        """The blocks of a part, by the first decoder that brings one, from about second `start` on.

        Raises:
            AudioError: none does.
        """
        part, failures, offset = self._parts[number], list[CannotDecode](), 0.0
        if start and part.run is not None:
            pieces, offset = part.run.pieces_from(start)
            part = replace(part, pieces=tuple(pieces))
        for by, decoder in self._openings(part, failures):
            try:
                floats = _floats(self.path, self._mark, number, by) if decoder.floats else _FULL_SCALE
                if start and part.run is None:
                    decoder.seek(start)
                blocks = decoder.blocks()
                block = next(blocks, None)
                while block is not None:
                    yield Block(floats.brought_to_scale(block.samples), block.rate, block.start + offset)
                    block = next(blocks, None)
                self.notes += [*floats.notes, *decoder.notes]
                self.partial = self.partial or decoder.partial
                return
            except CannotDecode as failure:
                failures.append(failure)
            finally:
                decoder.close()
        raise AudioError(self.path, self._refusal(part, failures))

    def _openings(self, part: Part, failures: list[CannotDecode]) -> Iterator[tuple[By, Decoder]]:
        """The decoders that open a part, each with its name; failures are added to the list, and raised where none opens."""
        opened = False
        for by in part.by:
            if self._ready is not None and part is self._parts[0] and self._ready[0] == by:
                ready, self._ready, opened = self._ready, None, True
                yield ready
                continue
            if by == "PyAV" and not has_pyav():
                continue
            try:
                decoder = _open(self.path, part, by)
            except CannotDecode as failure:
                failures.append(failure)
                continue
            opened = True
            yield by, decoder
        if not opened:
            raise AudioError(self.path, self._refusal(part, failures))

    def _refusal(self, part: Part, failures: list[CannotDecode]) -> str:
        """Why no decoder reads a part, in a few words."""
        media = looks_like_media(self.path)
        if not has_pyav() and (media or self.path.suffix.lower() in PYAV_SUFFIXES):
            return NEEDS_PYAV
        if part.partial:
            return part.partial
        if known := [failure.reason for failure in failures if not failure.unknown]:
            return known[0]
        return failures[-1].reason if failures and media else "not audio"


def _open(path: Path, part: Part, by: By) -> Decoder:
    spliced = None if part.pieces is None else SplicedFile(path, part.pieces)
    try:
        return SoundFileDecoder(path, spliced, part.furthest) if by == "libsndfile" else PyAVDecoder(path, spliced)
    except BaseException:
        if spliced is not None:
            spliced.close()
        raise


@dataclass(frozen=True)
class _Floats:
    """What is to be done with samples that are floats.

    Attributes:
        scale: what they are to be divided by.
        glitches: how many are no numbers, or far beyond full scale where the others are not: no sound is so loud. The first are
            silenced, the others clipped.
    """

    scale: float = 1.0
    glitches: int = 0

    def brought_to_scale(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(frames, channels) at the scale of +-1."""
        if self.glitches:
            samples = np.where(np.abs(samples) > _OVERLOAD, np.sign(samples), samples)
            return np.nan_to_num(samples, copy=False)
        return samples if self.scale == 1 else samples / np.float32(self.scale)

    @property
    def notes(self) -> list[str]:
        """What was put right."""
        if self.glitches:
            return [f"samples that are no numbers or far beyond full scale were silenced or clipped, {self.glitches} of them"]
        return [] if self.scale == 1 else [f"its samples are on the scale of integers, and were divided by {self.scale:.0f}"]


_FULL_SCALE = _Floats()


@lru_cache(maxsize=256)
def _floats(path: Path, mark: Mark, number: int, by: By) -> _Floats:
    """Of a part. It takes a look at all of its samples: a quiet beginning proves nothing, and a peak alone neither."""
    decoder = _open(path, parts_of(path, mark)[number], by)
    peak, (heard, over, far) = 0.0, (0, 0, 0)
    try:
        for block in decoder.blocks():
            size = np.abs(block.samples)
            if not (highest := float(size.max())) <= 1:  # NaN is not either
                size[~np.isfinite(size)] = np.inf
                over += int(np.count_nonzero(size > 1))
                far += int(np.count_nonzero(size > _OVERLOAD))
                highest = float(size.max())
            peak = max(peak, highest)
            heard += int(np.count_nonzero(size))
    finally:
        decoder.close()
    if peak <= _OVERLOAD:
        return _FULL_SCALE
    if over <= _GLITCHES * heard:
        return _Floats(glitches=far)
    if np.isinf(peak):  # which is refused where it is decoded
        return _FULL_SCALE
    scale = next((scale for scale in _SCALES if peak <= scale * 1.001), None)
    if scale is None:
        raise AudioError(path, "samples beyond any scale")
    return _Floats(scale)


class _Mono:
    """Blocks of any rates and channels to mono at one rate, each change from where it happens on."""

    def __init__(self, path: Path, resampler: Resampler, to: int, strict: bool = True) -> None:
        self._path, self._resampler, self._to, self._strict = path, resampler, to, strict
        self._kind: tuple[int, int] | None = None
        self._offset: np.float32 | None = None

    def __call__(self, samples: NDArray[np.float32], rate: int) -> Iterator[Samples]:
        """Take (frames, channels) at `rate` Hz; give what is finished."""
        kind = (rate, samples.shape[1])
        if kind != self._kind:
            yield from self.rest()
            self._kind = kind
            self._mixdown, self._stream = Mixdown(*kind), resampling_stream(rate, self._resampler, self._to)
            self._offset = np.float32(0) if rate == self._to else None
        yield from self._through(samples, last=False)

    def rest(self) -> Iterator[Samples]:
        """What was held back."""
        if self._kind is not None:
            yield from self._through(np.zeros((0, self._kind[1]), np.float32), last=True)
            self._kind = None

    def _through(self, samples: NDArray[np.float32], last: bool) -> Iterator[Samples]:
        mono = self._mixdown(samples, last)
        if not np.isfinite(mono).all():
            if self._strict:
                raise AudioError(self._path, "NaN or infinite samples")
            mono = np.nan_to_num(mono, posinf=0.0, neginf=0.0)
        if self._offset is None and len(mono):
            # A recording beside the zero line begins and ends with a step, which would ring: it is resampled about its own line.
            mean = float(mono.mean(dtype=np.float64))
            self._offset = np.float32(mean if abs(mean) > _OFFSET else 0)
        out = self._stream(mono - self._offset, last) + self._offset if self._offset else self._stream(mono, last)
        for first in range(0, len(out), MOST_SAMPLES):
            yield out[first : first + MOST_SAMPLES]
