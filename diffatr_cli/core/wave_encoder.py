"""Base of the audio encoders that hear waveforms, at a rate of their own: those of transformers, and those of others.

B batch, S samples at the encoder's rate, T' frames, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .windows import spans_of


class Inputs(NamedTuple):
    """A batch as an encoder takes it: `arrays` by name, and how many samples each sound had, (B,)."""

    arrays: dict[str, Tensor]
    lengths: Tensor

    def to(self, device: torch.device) -> Inputs:
        """The same on a device."""
        return Inputs({name: array.to(device) for name, array in self.arrays.items()}, self.lengths.to(device))


class WaveEncoder(nn.Module):
    """An encoder of waveforms. A subclass says what `features`, `rate` and `pooled` are, and more where it likes.

    Attributes:
        features: F of pooled features.
        rate: Hz of the waveforms that it takes.
        longest: seconds that it hears at a time, None for any length; longer sounds are the mean over windows.
        fixed: whether `inputs` brings all sounds to one length, so that any may share a batch of `embed`.
    """

    features: int
    rate: int
    longest: float | None = None
    fixed = False

    def inputs(self, waveforms: Sequence[np.ndarray]) -> Inputs:
        """Mono float32 waveforms of at most `longest` seconds, none empty -> a batch as `pooled` takes it.

        Here `waveforms` (B, S), with zeros behind the shorter ones.
        """
        tensors = [torch.tensor(wave) for wave in waveforms]
        return Inputs({"waveforms": pad_sequence(tensors, batch_first=True)}, torch.tensor([len(wave) for wave in waveforms]))

    def pooled(self, inputs: Inputs) -> Tensor:
        """A batch -> pooled features (B, F), whatever stands behind the `lengths` of its sounds."""
        raise NotImplementedError

    @torch.inference_mode()
    def embed(self, waveforms: Sequence[np.ndarray], seconds: float = 320.0) -> Tensor:
        """Waveforms (S,) of any lengths, none empty -> (n, F) float32 on the CPU, each whatever else is in the batch.

        A sound longer than the encoder hears at a time is the mean over windows of that length, which do not overlap but for the
        last one.

        Args:
            seconds: of sound in a batch.
        """
        length = int(self.longest * self.rate) if self.longest else 1 << 62
        pieces = [(row, wave[a:b]) for row, wave in enumerate(waveforms) for a, b in spans_of(len(wave), length, length)]
        vectors = torch.empty(len(pieces), self.features)
        device = next(chain(self.parameters(), self.buffers()), vectors).device
        for batch in self._batches([len(piece) for _, piece in pieces], seconds):
            with torch.autocast(device.type, enabled=False):  # extractors of others hand tensors to numpy, which has no bf16
                inputs = self.inputs([pieces[i][1] for i in batch])
            vectors[batch] = self.pooled(inputs.to(device)).float().cpu()
        rows = torch.tensor([row for row, _ in pieces])
        sums = torch.zeros(len(waveforms), self.features).index_add_(0, rows, vectors)
        return sums / torch.bincount(rows, minlength=len(waveforms)).unsqueeze(1)

    def _batches(self, lengths: Sequence[int], seconds: float) -> Iterator[list[int]]:
        """Which pieces share a batch: all of any lengths where the encoder evens them out, else only equally long ones."""
        key = (lambda i: 0) if self.fixed else lengths.__getitem__
        for _, group in groupby(sorted(range(len(lengths)), key=key), key=key):
            members = list(group)
            each = (self.longest or 0) * self.rate if self.fixed else lengths[members[0]]
            size = max(1, int(seconds * self.rate / each))
            yield from (members[start : start + size] for start in range(0, len(members), size))


def pool_counted(states: Tensor, counts: Tensor, pooling: str) -> Tensor:
    """Frames (B, T', F) -> (B, F) over the first `counts` (B,) of each, at least one: max, mean, or their sum (`panns`)."""
    inside = torch.arange(states.shape[1], device=states.device) < counts.clamp(1).unsqueeze(1)
    inside = inside.unsqueeze(-1)
    best = states.masked_fill(~inside, float("-inf")).amax(1)
    mean = (states * inside).sum(1) / inside.sum(1)
    return best if pooling == "max" else mean if pooling == "mean" else best + mean
