"""Log-mels of prepared clips, computed once and kept on disk, so that training epochs read no audio.

Values are 16-bit steps of 1/200 dB: half the size of float32 and 0.0025 dB from it at most, over -163..163 dB.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.level import levelled
from ..core.logmel import N_MELS, SILENCE, LogMel
from ..errors import DiffATRError
from ..files import replacing
from ..interrupts import interrupts_wait
from ..progress import Progress, silent
from .manifest import Clip, Dataset, read_piece

STEPS_PER_DB = 200
_FRAME = 2 * N_MELS  # bytes
FRAME_STEP = 32  # batches of short clips are padded to a multiple of so many frames

Indices = Sequence[int] | NDArray[np.integer]


def padded_frames(frames: int) -> int:
    """How many frames a batch has whose longest clip has `frames`: a multiple of `FRAME_STEP`, so that few shapes occur."""
    return -(-frames // FRAME_STEP) * FRAME_STEP


class LogMels:
    """The log-mels of one split: `values` (all frames, M) int16, clip i in rows offsets[i]..offsets[i + 1]."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def frames(self, index: int) -> int:
        """How many frames clip `index` has."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def whole(self, indices: Indices, at_least: int = 1) -> Tensor:
        """Clips of one length, whole, padded with silence to `at_least` frames: (B, T, M) dB float32."""
        clips = np.stack([self.values[self.offsets[i] : self.offsets[i + 1]] for i in indices])
        short = max(0, at_least - clips.shape[1])
        padded = np.pad(clips, ((0, 0), (0, short), (0, 0)), constant_values=round(SILENCE * STEPS_PER_DB))
        return torch.from_numpy(padded).float().div_(STEPS_PER_DB)

    def crop(self, indices: Indices, frames: int, rng: np.random.Generator) -> Tensor:
        """A random stretch of at most `frames` frames of each clip: (B, T, M) dB.

        Shorter clips are padded with silence to the longest of them (`padded_frames`).
        """
        return torch.from_numpy(self.cut(*self.places(indices, frames, rng))).float().div_(STEPS_PER_DB)

    def places(self, indices: Indices, frames: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
        """Where the stretches of `crop` begin among all frames and how many they are, (B, 2); and T."""
        frames = min(frames, padded_frames(max(map(self.frames, indices))))
        found = []
        for index in indices:
            length = self.frames(index)
            found.append((int(self.offsets[index]) + int(rng.integers(0, max(length - frames, 0) + 1)), min(length, frames)))
        return np.array(found, np.int64), frames

    def cut(self, places: NDArray[np.int64], frames: int) -> NDArray[np.int16]:
        """What lies at `places`, (B, T, M) steps, padded with silence."""
        out = np.full((len(places), frames, N_MELS), round(SILENCE * STEPS_PER_DB), np.int16)
        for row, (start, length) in zip(out, places.tolist(), strict=True):
            row[:length] = self.values[start : start + length]
        return out


@torch.inference_mode()
def cached_logmels(dataset: Dataset, split: str, hop: int, progress: Progress = silent) -> LogMels:
    """The log-mels of a split's clips in their order, from the cache or computed into it.

    The cache keeps a checksum of each clip, and all are verified here, which takes 0.6 s of one core for 1 GB; training reads
    every byte of it anyway. Clips that are damaged are computed again.

    Raises:
        DiffATRError: a prepared clip is gone, or the disk is full.
    """
    path = _place(dataset, split, hop)
    clips = dataset.split(split)
    note = f"log-mels of {dataset.name} {split}"
    index = _read_index(path, len(clips))
    if index is None:
        _room_for(path.parent, clips, hop)
        log_mel = LogMel(hop)
        offsets = write_logmels(dataset, split, hop, (_content(dataset.root / clip.path, log_mel) for clip in clips), progress)
    else:
        offsets, known = index
        checksums = _checksums(path, offsets, progress, note)
        damaged = [number for number, checksum in enumerate(checksums) if known is not None and checksum != known[number]]
        log_mel = LogMel(hop)
        for done, number in enumerate(damaged):
            progress(done, len(damaged), f"{note}: damaged ones again")
            content = _content(dataset.root / clips[number].path, log_mel)
            if len(content) != (offsets[number + 1] - offsets[number]) * _FRAME:
                path.unlink()  # it is of other recordings
                return cached_logmels(dataset, split, hop, progress)
            with path.open("r+b", buffering=0) as file:
                file.seek(offsets[number] * _FRAME)
                _write(file.fileno(), content)
            checksums[number] = zlib.crc32(content)
        if damaged or known is None:
            _write_index(path, offsets, checksums)
    return LogMels(np.memmap(path, np.int16, "r").reshape(-1, N_MELS), np.array(offsets))


def write_logmels(
    dataset: Dataset, split: str, hop: int, logmels: Iterable[memoryview | NDArray[np.int16]], progress: Progress = silent
) -> list[int]:
    """Write the cache that `cached_logmels` reads, from what it would compute: of each clip (T, M) int16 steps.

    Returns:
        Where each clip begins, and the end: frames.
    """
    path, clips, offsets, checksums = _place(dataset, split, hop), len(dataset.split(split)), [0], []
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f"log-mels of {dataset.name} {split}"
    with replacing(path) as temporary, temporary.open("wb") as file:
        for done, each in enumerate(logmels):
            progress(done, clips, note)
            content = memoryview(each).cast("B")  # type: ignore[arg-type]
            _write(file.fileno(), content)
            offsets.append(offsets[-1] + len(content) // _FRAME)
            checksums.append(zlib.crc32(content))
        progress(clips, clips, note)
    _write_index(path, offsets, checksums)
    return offsets


def _place(dataset: Dataset, split: str, hop: int) -> Path:
    return dataset.root / ".cache" / f"logmel-levelled-{split}-hop{hop}-{dataset.fingerprint[:16]}.i16"


def _content(clip: Path, log_mel: LogMel) -> memoryview:
    """The bytes of a prepared clip's log-mel: (T, M) int16 steps."""
    values = log_mel(torch.from_numpy(levelled(read_piece(clip))).unsqueeze(0))[0]
    steps: Any = values.mul_(STEPS_PER_DB).round_().clamp_(-32768, 32767).to(torch.int16).numpy()
    return memoryview(steps).cast("B")


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _checksums(path: Path, offsets: list[int], progress: Progress, note: str) -> list[int]:
    """The checksum of each clip in the cache."""
    content: Any = np.memmap(path, np.uint8, "r")
    data = memoryview(content)
    pieces = [data[start * _FRAME : end * _FRAME] for start, end in pairwise(offsets)]
    checksums = []
    with interrupts_wait() as raise_interrupt:
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for done, checksum in enumerate(pool.map(zlib.crc32, pieces)):
                progress(done, len(pieces), f"{note}: checking")
                checksums.append(checksum)
                raise_interrupt()
        finally:
            pool.shutdown(cancel_futures=True)
    return checksums


def _write_index(path: Path, offsets: list[int], checksums: list[int]) -> None:
    content = [offsets, checksums]
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps([*content, zlib.crc32(json.dumps(content).encode())]))


def _read_index(path: Path, clips: int) -> tuple[list[int], list[int] | None] | None:
    """The offsets of a cache and its clips' checksums, or None in their place for one of an earlier revision.

    None if there is no cache, or it is damaged beyond single clips.
    """
    try:
        found = json.loads(path.with_suffix(".json").read_bytes())
        size = path.stat().st_size
        offsets, checksums = (found[0], found[1]) if isinstance(found[0], list) else (found, None)
        if checksums is not None and (len(checksums) != clips or found[2:] != [zlib.crc32(json.dumps(found[:2]).encode())]):
            return None
        whole = len(offsets) == clips + 1 and all(type(offset) is int for offset in offsets)
        ordered = whole and offsets[0] == 0 and all(before < after for before, after in pairwise(offsets))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return (offsets, checksums) if ordered and offsets[-1] * _FRAME == size else None


def _room_for(folder: Path, clips: Sequence[Clip], hop: int) -> None:
    need = int(sum(clip.seconds for clip in clips) * 32000 / hop * N_MELS * 2)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiffATRError(
            f"{folder}: the log-mels need {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left. Free some."
        )
