"""Log-mel spectrograms as PANNs define them, by FFT, and SpecAugment.

B batch, S samples, T frames, M mels. Frames are centred with reflection, so T = S // hop + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 32000  # Hz
WINDOW = 1024  # samples, 32 ms
N_MELS = 64
F_MIN = 50.0  # Hz
F_MAX = 14000.0  # Hz
BINS = int(F_MAX * WINDOW / SAMPLE_RATE) + 1  # of the spectrum that any filter takes in
FLOOR = 1e-10  # power below which the logarithm is cut: -100 dB


def mel_filters() -> np.ndarray:
    """Slaney-style triangular mel filters of unit area, as librosa's default, (WINDOW // 2 + 1, M) float64.

    Source: Slaney's Auditory Toolbox (1998): linear below 1 kHz, logarithmic above, area-normalised.
    """
    linear_step, knee = 200.0 / 3, 1000.0
    log_step = np.log(6.4) / 27

    def to_mel(hz: float) -> float:
        return hz / linear_step if hz < knee else knee / linear_step + np.log(hz / knee) / log_step

    mels = np.linspace(to_mel(F_MIN), to_mel(F_MAX), N_MELS + 2)
    corners = np.where(mels < knee / linear_step, mels * linear_step, knee * np.exp(log_step * (mels - knee / linear_step)))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left))


class LogMel(nn.Module):
    """Waveform (B, S) at 32 kHz -> log-mel power in dB (B, T, M).

    Equal to the convolutional front end of the PANNs authors, computed by FFT. Holds no learnt or stored state.
    Source: Kong et al. 2020 (PANNs), and their published front-end settings.
    """

    def __init__(self, hop: int = 320) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=True, dtype=torch.float64).float(), persistent=False)
        # Each bin's weights twice, for the squares of its real and of its imaginary part.
        weights = torch.from_numpy(mel_filters()[:BINS]).repeat_interleave(2, 0)
        self.register_buffer("weights", weights.float(), persistent=False)

    window: Tensor
    weights: Tensor

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, S // hop + 1, M) dB. Raises ValueError for clips too short to reflect (S <= WINDOW / 2)."""
        if waveform.shape[-1] <= WINDOW // 2:
            raise ValueError(f"a clip needs more than {WINDOW // 2} samples, this one has {waveform.shape[-1]}")
        # One clip at a time on the CPU: its spectrum is summed up while it still is in the cache.
        parts = torch.split(waveform, 1) if waveform.device.type == "cpu" else (waveform,)
        with torch.autocast(waveform.device.type, enabled=False):  # decibels need float32
            return torch.cat([self._decibels(part) for part in parts])

    def _decibels(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform, WINDOW, self.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )  # (B, F, T)
        parts = torch.view_as_real(spectrum.transpose(1, 2)[:, :, :BINS])  # (B, T, BINS, 2)
        return 10 * torch.log10((parts.square().flatten(2) @ self.weights).clamp_min(FLOOR))


def spec_augment(
    logmel: Tensor, time_stripe: int, mel_stripe: int, stripes: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Zero `stripes` random stripes of frames and of mels, drawn for each clip of (B, T, M); a new tensor.

    Widths are uniform in [0, time_stripe) frames and [0, mel_stripe) bins. Source: Park et al. 2019, as in PANNs.
    """
    masked = torch.ones_like(logmel, dtype=torch.bool)
    for axis, widest in ((1, time_stripe), (2, mel_stripe)):
        size = logmel.shape[axis]
        place = torch.arange(size)
        for _ in range(stripes):
            width = (torch.rand(len(logmel), 1, generator=generator) * min(widest, size)).long()
            start = (torch.rand(len(logmel), 1, generator=generator) * (size - width)).long()
            keep = (place < start) | (place >= start + width)  # (B, size)
            masked &= keep.to(logmel.device).unsqueeze(3 - axis)
    return logmel * masked
