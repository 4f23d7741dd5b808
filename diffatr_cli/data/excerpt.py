"""Reading a stretch of a sound file, and how long one is, without decoding the rest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile

from .audio import BARE_STREAMS, PYAV_SUFFIXES, AudioError, Samples, need_pyav, resample

_BLOCK = 1 << 18  # frames decoded at a time, so that many channels are never in memory together


def duration(path: Path) -> float | None:
    """Seconds of a sound file by its header; None where that does not say. Nothing is decoded, so damage goes unseen.

    Raises:
        AudioError: the file cannot be opened as a sound.
    """
    if path.suffix.lower() in PYAV_SUFFIXES:
        need_pyav(path)
        import av

        try:
            with av.open(os.fspath(path.absolute())) as container:
                known = None if container.format.name in BARE_STREAMS else container.duration
                return known / av.time_base if known else None
        except av.error.FFmpegError as error:
            raise AudioError(path, f"not audio, or damaged ({error.strerror})") from None
    with _open(path) as file:
        return float(file.frames / file.samplerate)


def read_excerpt(path: Path, start: float, end: float) -> Samples:
    """The sound from `start` to `end`, in seconds: channels averaged, 32 kHz, (samples,) float32, full scale +-1.

    What lies beyond the file's end is missing from the result. For looking and listening: unlike `load_audio` it does not
    notice a file that was cut short.

    Raises:
        AudioError: the file is missing, no audio, or damaged there.
    """
    samples, rate = (_excerpt_pyav if path.suffix.lower() in PYAV_SUFFIXES else _excerpt_soundfile)(path, start, end)
    return resample(np.nan_to_num(samples, posinf=0.0, neginf=0.0), rate)


def _open(path: Path) -> soundfile.SoundFile:
    try:
        # As bytes, so that names which are not UTF-8 work too; on Windows only text does.
        return soundfile.SoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a headerless .raw file
        raise AudioError(path, "not audio" if path.is_file() else "missing") from None


def _excerpt_soundfile(path: Path, start: float, end: float) -> tuple[Samples, int]:
    with _open(path) as file:
        rate = int(file.samplerate)
        first = min(round(start * rate), file.frames)
        left = max(0, round(end * rate) - first)
        blocks = [np.zeros(0, np.float32)]
        try:
            file.seek(first)
            while left and len(block := file.read(min(left, _BLOCK), dtype="float32", always_2d=True)):
                blocks.append(block.mean(1, dtype=np.float32))
                left -= len(block)
        except soundfile.LibsndfileError as error:
            raise AudioError(path, f"truncated or damaged ({error.error_string.strip(' .')})") from None
        return np.concatenate(blocks), rate


def _excerpt_pyav(path: Path, start: float, end: float) -> tuple[Samples, int]:
    need_pyav(path)
    import av

    try:
        with av.open(os.fspath(path.absolute())) as container:
            if not container.streams.audio:
                raise AudioError(path, "no sound in it")
            stream = container.streams.audio[0]
            rate, origin, tick = int(stream.rate), stream.start_time or 0, float(stream.time_base or 1)
            if start > 0 and container.format.name not in BARE_STREAMS:
                container.seek(origin + int(start / tick), stream=stream)  # to a packet at or before it
            planar = av.AudioResampler(format="fltp")
            blocks, reached = [np.zeros(0, np.float32)], None
            for frame in container.decode(stream):
                at = 0.0 if frame.pts is None else (frame.pts - origin) * tick
                if at >= end:
                    break
                reached = at if reached is None else reached
                blocks += [part.to_ndarray().mean(0, dtype=np.float32) for part in planar.resample(frame)]
    except av.error.FFmpegError as error:
        raise AudioError(path, f"not audio, or damaged ({error.strerror})") from None
    skipped = round(max(0.0, start - (reached or 0.0)) * rate)
    return np.concatenate(blocks)[skipped : skipped + round((end - start) * rate)], rate
