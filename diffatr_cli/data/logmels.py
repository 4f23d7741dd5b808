"""Log-mels of prepared clips, computed once and kept on disk, so that training epochs read no audio.

Values are 16-bit steps of 1/200 dB: half the size of float32 and 0.0025 dB from it at most, over -163..163 dB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.level import levelled
from ..core.logmel import N_MELS, SILENCE, LogMel
from ..errors import DiffATRError
from ..files import replacing
from ..progress import Progress, silent
from .manifest import Clip, Dataset, read_piece

STEPS_PER_DB = 200
FRAME_STEP = 32  # batches of short clips are padded to a multiple of so many frames

Indices = Sequence[int] | NDArray[np.integer]


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

        Shorter clips are padded with silence to the longest of them, rounded up to `FRAME_STEP`, so that few shapes occur.
        """
        longest = -(-max(map(self.frames, indices)) // FRAME_STEP) * FRAME_STEP
        frames = min(frames, longest)
        out = np.full((len(indices), frames, N_MELS), round(SILENCE * STEPS_PER_DB), np.int16)
        for row, index in enumerate(indices):
            length = self.frames(index)
            start = int(self.offsets[index]) + int(rng.integers(0, max(length - frames, 0) + 1))
            out[row, : min(length, frames)] = self.values[start : start + min(length, frames)]
        return torch.from_numpy(out).float().div_(STEPS_PER_DB)


@torch.inference_mode()
def cached_logmels(dataset: Dataset, split: str, hop: int, progress: Progress = silent) -> LogMels:
    """The log-mels of a split's clips in their order, from the cache or computed into it.

    Raises:
        DiffATRError: a prepared clip is gone, or the disk is full.
    """
    folder = dataset.root / ".cache"
    path = folder / f"logmel-levelled-{split}-hop{hop}-{dataset.fingerprint[:16]}.i16"
    index = path.with_suffix(".json")
    clips = dataset.split(split)
    if not (path.is_file() and index.is_file()):
        _room_for(folder, clips, hop)
        log_mel, offsets = LogMel(hop), [0]
        with replacing(path) as temporary, temporary.open("wb") as file:
            for done, clip in enumerate(clips):
                progress(done, len(clips), f"log-mels of {dataset.name} {split}")
                offsets.append(offsets[-1] + _append(file.fileno(), dataset.root / clip.path, log_mel))
            progress(len(clips), len(clips), f"log-mels of {dataset.name} {split}")
        with replacing(index) as temporary:
            temporary.write_text(json.dumps(offsets))
    return LogMels(np.memmap(path, np.int16, "r").reshape(-1, N_MELS), np.array(json.loads(index.read_text())))


def _append(descriptor: int, clip: Path, log_mel: LogMel) -> int:
    values = log_mel(torch.from_numpy(levelled(read_piece(clip))).unsqueeze(0))[0]
    data = memoryview(values.mul_(STEPS_PER_DB).round_().clamp_(-32768, 32767).to(torch.int16).numpy()).cast("B")
    while data:
        data = data[os.write(descriptor, data) :]
    return len(values)


def _room_for(folder: Path, clips: Sequence[Clip], hop: int) -> None:
    need = int(sum(clip.seconds for clip in clips) * 32000 / hop * N_MELS * 2)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiffATRError(
            f"{folder}: the log-mels need {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left. Free some."
        )
