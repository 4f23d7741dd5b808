"""What phase one reads of clips, by the encoder that learns: crops of cached log-mels, crops of waveforms, or pooled vectors.

n clips, B clips of a batch, M mels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.audio_encoder import AudioEncoder
from ..data.logmels import LogMels, cached_logmels
from ..data.manifest import Dataset, read_piece
from ..data.resample import resample
from ..encoders import ClipEncoder
from ..evaluation.embedded_split import SplitEncoders, pooled_clips
from ..processes import first_alone
from ..progress import Progress
from ..recipe_schema import AudioSection
from ..types import SAMPLE_RATE

Indices = Sequence[int] | NDArray[np.integer]
ALL = slice(None)


class Clips(Protocol):
    """The training clips as a source of batches.

    Attributes:
        offsets: (n + 1,) ascending; clip i is offsets[i + 1] - offsets[i] long, in whatever unit.
    """

    offsets: np.ndarray

    def __len__(self) -> int: ...

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        """A random stretch of each of these clips, as the encoder's `pooled` takes them, or of a part of them, which does not
        depend on what the part is."""


class LogMelCrops:
    """Crops of cached log-mels: (B, frames, M) dB, or fewer frames where all clips are shorter."""

    def __init__(self, logmels: LogMels, frames: int) -> None:
        self.logmels, self.frames, self.offsets = logmels, frames, logmels.offsets

    def __len__(self) -> int:
        return len(self.logmels)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Tensor:
        return self.logmels.crop(indices, self.frames, rng)[part]


class WaveformCrops:
    """Crops of prepared clips, at the encoder's rate, as its feature extractor gives them.

    Args:
        seconds: of a crop, at most; no more than the encoder hears at a time.
    """

    def __init__(self, dataset: Dataset, split: str, encoder: ClipEncoder, seconds: float) -> None:
        self._root, self._clips, self._encoder = dataset.root, dataset.split(split), encoder
        self._samples = int(min(seconds, encoder.longest or seconds) * SAMPLE_RATE)
        self.offsets = np.concatenate([[0], np.cumsum([round(clip.seconds * SAMPLE_RATE) for clip in self._clips])])

    def __len__(self) -> int:
        return len(self._clips)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        lengths = [int(self.offsets[index + 1] - self.offsets[index]) for index in indices]
        starts = [int(rng.integers(0, max(length - self._samples, 0) + 1)) for length in lengths]
        waves = []
        for index, start in zip(indices[part], starts[part], strict=True):
            piece = read_piece(self._root / self._clips[index].path, start, self._samples)
            waves.append(resample(piece, SAMPLE_RATE, to=self._encoder.rate))
        return self._encoder.inputs(waves)


class PooledClips:
    """Pooled vectors (n, F) that training does not change: of a frozen encoder, or of a model run elsewhere."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.offsets = np.arange(len(vectors) + 1)

    def __len__(self) -> int:
        return len(self.vectors)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Tensor:
        return self.vectors[torch.as_tensor(np.asarray(indices)[part])]


class SomeClips:
    """Some clips of a source, by their places in it."""

    def __init__(self, clips: Clips, places: NDArray[np.integer]) -> None:
        self._clips, self._places = clips, places
        self.offsets = np.concatenate([[0], np.cumsum(np.diff(clips.offsets)[places])])

    def __len__(self) -> int:
        return len(self._places)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        return self._clips.crop(self._places[np.asarray(indices)], rng, part)


def some_clips(clips: Clips, places: NDArray[np.integer]) -> Clips:
    """Some clips of a source, by their places in it, as a source."""
    if isinstance(clips, PooledClips):
        return PooledClips(clips.vectors[torch.from_numpy(places)])
    return SomeClips(clips, places)


def training_clips(
    dataset: Dataset, encoder: ClipEncoder, section: AudioSection, seconds: float, encoders: SplitEncoders, progress: Progress
) -> Clips:
    """The training clips of a data set for an audio encoder: what it learns from, or, if it is frozen, what it made of them.

    Args:
        seconds: of a crop.
        encoders: for a frozen one: what embeds, in evaluation mode while it does.
    """
    if (pooled := pooled_clips(encoders, dataset, "train", progress)) is not None:
        return PooledClips(pooled)
    if isinstance(encoder, AudioEncoder):
        frames = int(seconds * SAMPLE_RATE) // section.hop + 1
        logmels = first_alone(lambda: cached_logmels(dataset, "train", section.hop, progress))
        return LogMelCrops(logmels, frames)
    return WaveformCrops(dataset, "train", encoder, seconds)
