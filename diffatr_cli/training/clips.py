"""What phase one reads of clips, by the encoder that learns: crops of cached log-mels, crops of waveforms, or pooled vectors.

n clips, B clips of a batch, M mels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.audio_encoder import AudioEncoder
from ..core.logmel import N_MELS, SILENCE
from ..core.mixing import mix_logmels, mix_waveforms
from ..data.logmels import STEPS_PER_DB, LogMels, cached_logmels, padded_frames
from ..data.manifest import Dataset, read_piece
from ..data.resample import resample
from ..encoders import ClipEncoder
from ..evaluation.embedded_split import SplitEncoders, pooled_clips
from ..processes import first_alone
from ..progress import Progress
from ..recipe_schema import AudioSection
from ..types import SAMPLE_RATE
from .composition import Mixture
from .crops_on_gpu import PlacedCrops, SteppedCrops, table_on

Indices = Sequence[int] | NDArray[np.integer]
ALL = slice(None)


class Clips(Protocol):
    """The training clips as a source of batches.

    Attributes:
        offsets: (n + 1,) ascending; clip i is offsets[i + 1] - offsets[i] long, in whatever unit.
        longest: of a crop, in that unit.
    """

    offsets: np.ndarray
    longest: int

    def __len__(self) -> int: ...

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        """A random stretch of each of these clips, as the encoder's `pooled` takes them, or of a part of them, which does not
        depend on what the part is."""

    def mix(self, mixtures: Sequence[Mixture], rng: np.random.Generator, part: slice = ALL) -> Any:
        """The same of mixtures, of each of whose recordings a random stretch is taken, as long as the mixture says."""


class LogMelCrops:
    """Crops of cached log-mels: (B, frames, M) dB, or fewer frames where all clips are shorter.

    Args:
        gpu: where they are trained on, if that is a GPU: crops become decibels when they are sent there (`crops_on_gpu`).
    """

    def __init__(self, logmels: LogMels, frames: int, hop: int, gpu: torch.device | None = None) -> None:
        self.logmels, self.longest, self.offsets, self._hop = logmels, frames, logmels.offsets, hop
        self._gpu = gpu
        self._table = None if gpu is None else table_on(logmels.values, gpu)

    def on(self, device: torch.device) -> LogMelCrops:
        """The same crops, as suits a device."""
        return LogMelCrops(self.logmels, self.longest, self._hop, device) if device.type == "cuda" else self

    def __len__(self) -> int:
        return len(self.logmels)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        if self._gpu is None:
            return self.logmels.crop(indices, self.longest, rng)[part]
        places, frames = self.logmels.places(indices, self.longest, rng)
        if self._table is not None:
            return PlacedCrops(self._table, torch.from_numpy(places[part]), frames)
        return SteppedCrops(torch.from_numpy(self.logmels.cut(places[part], frames)))

    def mix(self, mixtures: Sequence[Mixture], rng: np.random.Generator, part: slice = ALL) -> Tensor:
        frames = min(self.longest, padded_frames(max(mixture.length for mixture in mixtures)))
        cuts = [self._cuts(mixture, rng) for mixture in mixtures]
        out = np.full((len(cuts[part]), frames, N_MELS), SILENCE, np.float32)
        for row, mixture, slices in zip(out, mixtures[part], cuts[part], strict=True):
            heard = [np.divide(self.logmels.values[each], STEPS_PER_DB, dtype=np.float32) for each in slices]
            row[: mixture.length] = (
                heard[0] if len(heard) == 1 else mix_logmels(heard, mixture.decibels, mixture.starts, mixture.length, self._hop)
            )
        return torch.from_numpy(out)

    def _cuts(self, mixture: Mixture, rng: np.random.Generator) -> list[slice]:
        """Which of all frames are taken of each recording."""
        return [
            slice(start := int(self.offsets[clip]) + int(rng.integers(0, self.logmels.frames(clip) - length + 1)), start + length)
            for clip, length in zip(mixture.clips, mixture.lengths, strict=True)
        ]


class WaveformCrops:
    """Crops of prepared clips, at the encoder's rate, as its feature extractor gives them.

    Args:
        seconds: of a crop, at most; no more than the encoder hears at a time.
    """

    def __init__(self, dataset: Dataset, split: str, encoder: ClipEncoder, seconds: float) -> None:
        self._root, self._clips, self._encoder = dataset.root, dataset.split(split), encoder
        self.longest = int(min(seconds, encoder.longest or seconds) * SAMPLE_RATE)
        self.offsets = np.concatenate([[0], np.cumsum([round(clip.seconds * SAMPLE_RATE) for clip in self._clips])])

    def __len__(self) -> int:
        return len(self._clips)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        starts = [self._start(index, rng) for index in indices]
        return self._inputs([self._piece(index, start) for index, start in zip(indices[part], starts[part], strict=True)])

    def mix(self, mixtures: Sequence[Mixture], rng: np.random.Generator, part: slice = ALL) -> Any:
        starts = [[self._start(clip, rng) for clip in mixture.clips] for mixture in mixtures]
        waves = []
        for mixture, begins in zip(mixtures[part], starts[part], strict=True):
            heard = [self._piece(clip, start) for clip, start in zip(mixture.clips, begins, strict=True)]
            alone = len(heard) == 1
            waves.append(heard[0] if alone else mix_waveforms(heard, mixture.decibels, mixture.starts, mixture.length))
        return self._inputs(waves)

    def _start(self, index: int, rng: np.random.Generator) -> int:
        """Where clip `index` is cut, in samples."""
        return int(rng.integers(0, max(int(self.offsets[index + 1] - self.offsets[index]) - self.longest, 0) + 1))

    def _piece(self, index: int, start: int) -> NDArray[np.float32]:
        return read_piece(self._root / self._clips[index].path, start, self.longest)

    def _inputs(self, waves: Sequence[NDArray[np.float32]]) -> Any:
        return self._encoder.inputs([resample(wave, SAMPLE_RATE, to=self._encoder.rate) for wave in waves])


class PooledClips:
    """Pooled vectors (n, F) that training does not change: of a frozen encoder, or of a model run elsewhere."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors, self.longest = vectors, 1
        self.offsets = np.arange(len(vectors) + 1)

    def __len__(self) -> int:
        return len(self.vectors)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Tensor:
        return self.vectors[torch.as_tensor(np.asarray(indices)[part])]

    def mix(self, mixtures: Sequence[Mixture], rng: np.random.Generator, part: slice = ALL) -> Tensor:
        raise TypeError("vectors of recordings do not tell what the recordings sound like together")


class SomeClips:
    """Some clips of a source, by their places in it."""

    def __init__(self, clips: Clips, places: NDArray[np.integer]) -> None:
        self._clips, self._places, self.longest = clips, places, clips.longest
        self.offsets = np.concatenate([[0], np.cumsum(np.diff(clips.offsets)[places])])

    def __len__(self) -> int:
        return len(self._places)

    def crop(self, indices: Indices, rng: np.random.Generator, part: slice = ALL) -> Any:
        return self._clips.crop(self._places[np.asarray(indices)], rng, part)

    def mix(self, mixtures: Sequence[Mixture], rng: np.random.Generator, part: slice = ALL) -> Any:
        placed = [replace(each, clips=tuple(self._places[list(each.clips)].tolist())) for each in mixtures]
        return self._clips.mix(placed, rng, part)


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
        return LogMelCrops(logmels, frames, section.hop)
    return WaveformCrops(dataset, "train", encoder, seconds)
