"""Sequences of different lengths, one behind the other: the token states of captions, the frames of clips.

n sequences, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .query_conditioned import Padded

HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences in half precision, in memory or mapped from a file: sequence i is the lengths[i] rows from starts[i] on.

    Attributes:
        values: (all rows, F) float16.
        starts, lengths: (n,).
    """

    values: NDArray[np.float16]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def features(self) -> int:
        """F."""
        return int(self.values.shape[1])

    @classmethod
    def of(cls, sequences: Sequence[Tensor], features: int | None = None) -> Ragged:
        """Sequences (L, F) of any type and on any device, as float16; what that cannot hold becomes the largest that it can.

        `features` is F where there may be no sequence to tell it; else that of the first.
        """
        if features is None:
            features = sequences[0].shape[1] if sequences else 0
        values = torch.cat([half(each) for each in sequences] or [torch.empty(0, features, dtype=torch.float16)])
        lengths = np.array([len(each) for each in sequences], dtype=np.int64)
        return cls(values.numpy(), np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def of_halves(cls, sequences: Sequence[NDArray[np.float16]]) -> Ragged:
        """Sequences (L, F), one at least, as they are."""
        lengths = np.array([len(each) for each in sequences], dtype=np.int64)
        return cls(np.concatenate(sequences), np.cumsum(lengths) - lengths, lengths)

    def take(self, indices: NDArray[np.integer]) -> Ragged:
        """Some sequences (m,), each as often as it is named; nothing is copied."""
        return Ragged(self.values, self.starts[indices], self.lengths[indices])

    def joined(self) -> Ragged:
        """All as one sequence, in their order."""
        bounds = zip(self.starts.tolist(), (self.starts + self.lengths).tolist(), strict=True)
        return Ragged.of_halves([np.concatenate([self.values[:0], *(self.values[start:end] for start, end in bounds)])])

    def padded(self, indices: Tensor | NDArray[np.integer]) -> Padded:
        """Some sequences (m,), each as often as it is named, up to the longest of them: float32 (m, L, F) on the CPU, L >= 1."""
        rows = np.asarray(indices)
        starts, lengths = self.starts[rows], self.lengths[rows]
        out = np.zeros((len(rows), int(max(lengths.max(initial=1), 1)), self.features), np.float32)
        for place, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            out[place, :length] = self.values[start : start + length]
        mask = np.arange(out.shape[1]) < lengths[:, None]
        return Padded(torch.from_numpy(out), torch.from_numpy(mask))


def half(values: Tensor) -> Tensor:
    """As float16 on the CPU; what that cannot hold becomes the largest that it can."""
    return values.detach().float().clamp(-HALF_MAX, HALF_MAX).half().cpu()
