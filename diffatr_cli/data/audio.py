"""Reading any sound file as mono 32 kHz, and writing and reading back the 16-bit WAV files that prepared data consist of."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import wave
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import DiffATRError, UsageError
from ..files import replacing

SAMPLE_RATE = 32_000
"""Hz, of every prepared clip and of everything the encoders hear."""

SOUNDFILE_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
)
PYAV_SUFFIXES = frozenset(
    (".m4a", ".m4b", ".aac", ".ac3", ".wma", ".amr", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp", ".mpg", ".mpeg")
)
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | PYAV_SUFFIXES

Samples = NDArray[np.float32]
Resampler = Literal["auto", "soxr", "resampy"]

_BLOCK = 1 << 20  # frames decoded at a time, so that the channels of a long recording are never in memory together
_WAV_HEADER = 44  # bytes that `wave` writes before the samples


class AudioError(DiffATRError):
    """A sound file cannot be used. `reason` is a few words without the path, for counting."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.path, self.reason)


def load_audio(path: Path | str, resampler: Resampler = "auto") -> Samples:
    """Decode a whole sound file: channels averaged, 32 kHz, (samples,) float32, full scale +-1, not clipped.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, has no samples, or holds NaN or infinity.
        UsageError: the resampler is unknown or not installed.
    """
    samples, rate = decode(path)
    return resample(samples, rate, resampler)


def decode(path: Path | str) -> tuple[Samples, int]:
    """Decode a whole sound file at its own rate: mono float32 samples and the rate in Hz. Raises as `load_audio`."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(path, "missing") from None
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror})") from None
    if path.is_dir():
        raise AudioError(path, "a folder, not a sound file")
    if not os.access(path, os.R_OK):
        raise AudioError(path, "cannot be read (no permission)")
    if size == 0:
        raise AudioError(path, "empty file")
    samples, rate = (_decode_pyav if path.suffix.lower() in PYAV_SUFFIXES else _decode_soundfile)(path)
    if len(samples) == 0:
        raise AudioError(path, "no samples")
    if not np.isfinite(samples).all():
        raise AudioError(path, "NaN or infinite samples")
    return samples, rate


def _decode_soundfile(path: Path) -> tuple[Samples, int]:
    try:
        # As bytes, so that names which are not UTF-8 work too; on Windows only text does.
        file = soundfile.SoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except soundfile.LibsndfileError as error:
        unknown = error.code == 1 or "does not exist" in error.error_string  # so says libsndfile of what is no MP3 after all
        raise AudioError(path, "not audio" if unknown else _damaged(error)) from None
    except TypeError:  # a headerless .raw file
        raise AudioError(path, "not audio (raw samples without a header)") from None
    with file:
        blocks: list[Samples] = []
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(_mono(block))
        except soundfile.LibsndfileError as error:
            raise AudioError(path, _damaged(error)) from None
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        if _is_short(path, file, len(samples)):
            raise AudioError(path, "truncated")
        return samples, int(file.samplerate)


def _damaged(error: soundfile.LibsndfileError) -> str:
    return f"truncated or damaged ({error.error_string.strip(' .')})"


def _mono(block: Samples) -> Samples:
    """(frames, channels) -> (frames,), the mean of the channels."""
    channels = block.shape[1]
    return block[:, 0] if channels == 1 else block @ np.full(channels, 1 / channels, np.float32)


def _is_short(path: Path, file: soundfile.SoundFile, frames: int) -> bool:
    """Whether fewer frames were decoded than the file announces; libsndfile reads what is there and says nothing.

    Formats of chunks: libsndfile cuts its frame count to what the file holds, but its log keeps the size that the header
    announces. Ogg: the last page must be whole and carry the end-of-stream bit. MP3: only a Xing, Info or VBRI header
    counts frames; without one the frame count is an estimate.
    """
    if file.format == "OGG":
        return not _ogg_ends(path)
    if file.format == "MP3":
        return _mp3_counts_frames(path) and frames < file.frames - 2 * 1152
    if frames < file.frames:
        return True
    length = path.stat().st_size
    for found in re.finditer(r"(?mi)^\s*(?:data|ssnd|data size)\s*:\s*(\d+)(?: \(should be (\d+)\))?", file.extra_info):
        announced, present = int(found[1]), int(found[2] or length)
        # Writers to a pipe cannot know the size and put the largest one; some count a few bytes of header.
        if present + 64 < announced < 0x7FFF_0000:
            return True
    return False


def _ogg_ends(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - (1 << 17)))  # a page has at most 65307 bytes
        tail = stream.read()
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]
    if page < 0 or len(header) < 27 or not header[5] & 4:
        return False
    segments = tail[page + 27 : page + 27 + header[26]]
    return len(segments) == header[26] and page + 27 + len(segments) + sum(segments) <= len(tail)


def _mp3_counts_frames(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(10)
        if head[:3] == b"ID3":
            stream.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        else:
            stream.seek(0)
        first = stream.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _decode_pyav(path: Path) -> tuple[Samples, int]:
    if importlib.util.find_spec("av") is None:
        raise AudioError(path, "needs the extra `audio`: pip install 'diffatr[audio]'")
    import av

    try:
        # Absolute, because a bare name with a colon would be taken for an address.
        with av.open(os.fspath(path.absolute())) as container:
            if not container.streams.audio:
                raise AudioError(path, "no sound in it")
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format="fltp")
            blocks = [
                _mono(np.ascontiguousarray(part.to_ndarray().T, dtype=np.float32))
                for frame in container.decode(stream)
                for part in planar.resample(frame)
            ]
            rate = int(stream.rate)
            announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    except av.error.FFmpegError as error:
        raise AudioError(path, f"not audio, or damaged ({error.strerror})") from None
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(samples) / rate < announced - 0.5:
        raise AudioError(path, "truncated")
    return samples, rate


def choose_resampler(resampler: Resampler = "auto") -> Literal["soxr", "resampy"]:
    """The resampler that a setting stands for: `auto` is soxr when it is installed (some 15 times faster), else resampy."""
    installed = importlib.util.find_spec("soxr") is not None
    if resampler == "auto":
        return "soxr" if installed else "resampy"
    if resampler not in ("soxr", "resampy"):
        raise UsageError(f"resampler: {resampler!r} is unknown; choose auto, soxr or resampy")
    if resampler == "soxr" and not installed:
        raise UsageError("resampler: soxr is not installed: pip install 'diffatr[soxr]', or choose resampy")
    return resampler


def resample(samples: Samples, rate: int, resampler: Resampler = "auto") -> Samples:
    """Bring mono samples from `rate` Hz to 32 kHz; at 32 kHz they come back as they are."""
    chosen = choose_resampler(resampler)
    if rate == SAMPLE_RATE:
        return samples
    if chosen == "soxr":
        import soxr

        out = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    else:
        import resampy

        if len(samples) * SAMPLE_RATE < rate:  # less than one sample would remain
            return samples[:0]
        out = resampy.resample(samples, rate, SAMPLE_RATE, filter=lambda: _sinc_filter(rate))
    return np.ascontiguousarray(out, dtype=np.float32)


@cache
def _sinc_filter(rate: int) -> tuple[NDArray[np.float64], int, float]:
    """A Kaiser-windowed sinc for resampy, as (right half, entries between zero crossings, rolloff).

    Downwards it is the fastest that loses less than 0.01 dB in every mel band (64 bands, 50-14000 Hz): 16 crossings lose at most
    0.0062 dB (44.1 kHz), 14 lose 0.008 and 12 0.018; `kaiser_best` has 50 and loses 0.005. Measured as the mel energies of 8 s
    of white noise at 44.1, 48, 96 and 192 kHz beside those of the same noise resampled without error by one FFT. What folds back
    below 14 kHz is 62 dB down. Upwards the last mel bands reach the source's own limit, and the filter has to be steep:
    64 crossings lose 0.013 dB there, `kaiser_best` 5 dB.
    """
    crossings, beta, rolloff = (16, 5.5, 0.985) if rate > SAMPLE_RATE else (64, 8.0, 0.99)
    # A table of rate / gcd entries between zero crossings holds exactly the phases that occur, so that resampy steps through it
    # by a whole number; in a table of any other size it cuts the step short, which costs level.
    step = rate // math.gcd(rate, SAMPLE_RATE)
    table = step * math.ceil(64 / step)
    positions = np.linspace(0, crossings, table * crossings + 1)
    taper = np.kaiser(2 * table * crossings + 1, beta)[table * crossings :]
    return taper * rolloff * np.sinc(rolloff * positions), table, rolloff


def warm_up(resampler: Resampler = "auto") -> None:
    """Do now what a process does once: import the resampler, and compile resampy (0.9 s)."""
    resample(np.zeros(4410, np.float32), 44_100, resampler)


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """float32 of full scale +-1 -> int16, clipped; what `read_piece` returns survives the way there and back unchanged."""
    pcm: NDArray[np.int16] = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    return pcm


def write_wav(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write mono 16-bit samples as a 32 kHz WAV file, whole or not at all.

    Raises:
        DiffATRError: the disk is full or the folder cannot be written.
    """
    # Not by libsndfile, which reports a full disk as a short write.
    with replacing(path) as temporary, temporary.open("wb") as stream, wave.open(stream, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(pcm.astype("<i2", copy=False).tobytes())


def wav_size(frames: int) -> int:
    """Bytes of a prepared WAV file of so many samples."""
    return _WAV_HEADER + 2 * frames
