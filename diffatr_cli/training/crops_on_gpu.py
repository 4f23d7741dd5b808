"""Crops of log-mels as 16-bit steps until they are on a GPU: half of what travels; and where they fit, all of them lie there.

n clips, B clips of a batch, T frames of a crop, M mels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.logmel import SILENCE
from ..core.sending import pinned, send
from ..data.logmels import STEPS_PER_DB

SHARE = 0.25  # of a GPU's free memory that log-mels may take: the rest is for training
ROWS = 2**18  # frames that are brought there at a time, 34 MB


@dataclass(frozen=True)
class SteppedCrops:
    """Crops (B, T, M) int16 in steps of `1 / STEPS_PER_DB` dB, which become decibels where they are sent."""

    steps: Tensor

    def pin_memory(self) -> SteppedCrops:
        """The same in pinned memory."""
        return SteppedCrops(pinned(self.steps))

    def to(self, device: torch.device) -> Tensor:
        """(B, T, M) dB float32 there; a GPU is not waited for."""
        decibels: Tensor = send(self.steps, device).float().div_(STEPS_PER_DB)
        return decibels


@dataclass(frozen=True)
class PlacedCrops:
    """Crops as places in a table of log-mels on a device.

    Attributes:
        table: (all frames, M) int16.
        places: (B, 2) int64 on the CPU, where each begins in the table, and its frames.
        frames: T; shorter ones have silence behind them.
    """

    table: Tensor
    places: Tensor
    frames: int

    def pin_memory(self) -> PlacedCrops:
        """The same with the places in pinned memory."""
        return PlacedCrops(self.table, pinned(self.places), self.frames)

    def to(self, device: torch.device) -> Tensor:
        """(B, T, M) dB float32, gathered where the table lies."""
        start, length = send(self.places, self.table.device).unsqueeze(2).unbind(1)
        frame = torch.arange(self.frames, device=self.table.device)
        inside = frame < length  # (B, T)
        steps = self.table[torch.where(inside, start + frame, 0)]
        silent = steps.new_full((), round(SILENCE * STEPS_PER_DB))
        return torch.where(inside.unsqueeze(2), steps, silent).float().div_(STEPS_PER_DB).to(device)


def table_on(values: np.ndarray, device: torch.device) -> Tensor | None:
    """All log-mels (frames, M) int16 on a GPU, or None where they would take more than `SHARE` of what is free there."""
    if values.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return copied(values, device)


def copied(values: np.ndarray, device: torch.device) -> Tensor:
    """Values on a device, a part at a time: of a file, no more than that is in memory at once."""
    table = torch.empty(values.shape, dtype=torch.int16, device=device)
    for start in range(0, len(values), ROWS):
        table[start : start + ROWS] = torch.from_numpy(np.array(values[start : start + ROWS]))
    return table
