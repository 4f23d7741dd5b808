"""Clips of a data set as pooled features, read a few at a time.

W windows, F features of the audio encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.windows import Windowing, spans
from ..data.manifest import read_piece
from ..data.resample import resample
from ..types import SAMPLE_RATE


class Pooling(Protocol):
    """What pools the features of sounds.

    Attributes:
        windowing: what recordings are cut into, at which rate.
    """

    @property
    def windowing(self) -> Windowing: ...

    def pool_audio(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """Mono float32 waveforms at the windowing's rate -> pooled features (n, F)."""


def pooled_files(encoders: Pooling, files: Sequence[Path], windows: bool = False) -> list[Tensor]:
    """The pooled features of some clips, read together: of each (1, F), or (W, F) of its windows.

    Raises:
        AudioError: a clip is missing, or damaged.
    """
    waves = [resample(read_piece(file), SAMPLE_RATE, to=encoders.windowing.rate) for file in files]
    cuts = [spans(len(wave), encoders.windowing) if windows else [(0, len(wave))] for wave in waves]
    pooled = encoders.pool_audio([wave[a:b] for wave, some in zip(waves, cuts, strict=True) for a, b in some])
    return list(torch.split(pooled, [len(some) for some in cuts]))
