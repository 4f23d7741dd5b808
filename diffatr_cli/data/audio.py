"""Reading any sound file as mono 32 kHz, and writing and reading back the 16-bit WAV files that prepared data consist of."""

from __future__ import annotations

import importlib.util
import os
import re
import wave
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import DiffATRError
from ..files import replacing
from ..types import SAMPLE_RATE
from .resample import DEFAULT, Resampler, Samples, choose_resampler, resample

SOUNDFILE_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
)
PYAV_SUFFIXES = frozenset(
    (".m4a", ".m4b", ".aac", ".ac3", ".wma", ".amr", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp", ".mpg", ".mpeg")
)
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | PYAV_SUFFIXES

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioError",
    "Resampler",
    "Samples",
    "choose_resampler",
    "load_audio",
    "resample",
    "to_pcm16",
    "wav_size",
    "write_wav",
]

_BLOCK = 1 << 20  # frames decoded at a time, so that the channels of a long recording are never in memory together
BARE_STREAMS = ("aac", "ac3", "eac3", "amr")
"""Formats without a container: FFmpeg guesses their length, many times too long, and where in them a second is."""
_WAV_HEADER = 44  # bytes that `wave` writes before the samples


class AudioError(DiffATRError):
    """A sound file cannot be used. `reason` is a few words without the path, for counting."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.path, self.reason)


def load_audio(path: Path | str, resampler: Resampler = DEFAULT) -> Samples:
    """Decode a whole sound file: channels averaged, 32 kHz, (samples,) float32, full scale +-1, not clipped.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, has no samples, or holds NaN or infinity.
        UsageError: the resampler is unknown.
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
            # libsndfile takes many times as long as numpy to make 16-bit samples floats; the result is the same.
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            while len(block := file.read(_BLOCK, dtype=kind, always_2d=True)):
                blocks.append(_mono(block) if kind == "float32" else _mono(block * np.float32(1 / 32768)))
        except soundfile.LibsndfileError as error:
            raise AudioError(path, _damaged(error)) from None
        samples = _joined(blocks)
        if _is_short(path, file, len(samples)):
            raise AudioError(path, "truncated")
        return samples, int(file.samplerate)


def _joined(blocks: list[Samples]) -> Samples:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


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


def need_pyav(path: Path) -> None:
    """Raise AudioError where the library that such a file needs is not installed."""
    if importlib.util.find_spec("av") is None:
        raise AudioError(path, "needs the extra `audio`: pip install 'diffatr[audio]'")


def _decode_pyav(path: Path) -> tuple[Samples, int]:
    need_pyav(path)
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
            if container.format.name in BARE_STREAMS:
                announced = 0.0
    except av.error.FFmpegError as error:
        raise AudioError(path, f"not audio, or damaged ({error.strerror})") from None
    samples = _joined(blocks)
    if len(samples) / rate < announced - 0.5:
        raise AudioError(path, "truncated")
    return samples, rate


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """float32 of full scale +-1 -> int16, clipped; what `read_piece` returns survives the way there and back unchanged."""
    scaled = samples * np.float32(32768)
    np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled)
    return scaled.astype(np.int16)


def write_wav(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write mono 16-bit samples as a 32 kHz WAV file, whole or not at all.

    Raises:
        DiffATRError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream_wav(stream, pcm)


def stream_wav(stream: BinaryIO, pcm: NDArray[np.int16]) -> None:
    """Write mono 16-bit samples as a 32 kHz WAV file to an open stream."""
    # Not by libsndfile, which reports a full disk as a short write.
    with wave.open(stream, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(np.ascontiguousarray(pcm, "<i2").data)


def wav_size(frames: int) -> int:
    """Bytes of a prepared WAV file of so many samples."""
    return _WAV_HEADER + 2 * frames
