"""Log-mel spectrograms as PANNs define them, by FFT, and SpecAugment.

B batch, S samples, T frames, M mels. Frames are centred with reflection, so T = S // hop + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..types import SAMPLE_RATE
from .sending import send

WINDOW = 1024  # samples, 32 ms
N_MELS = 64
F_MIN = 50.0  # Hz
F_MAX = 14000.0  # Hz
BINS = int(F_MAX * WINDOW / SAMPLE_RATE) + 1  # of the spectrum that any filter takes in
FLOOR = 1e-10  # power below which the logarithm is cut: -100 dB
SILENCE = 10 * float(np.log10(FLOOR))  # dB, what zero padding of the waveform gives


def mel_corners() -> np.ndarray:
    """Where each filter begins, peaks and ends, Hz: (M + 2,) float64; filter m has corners m, m + 1 and m + 2.

    Source: Slaney's Auditory Toolbox (1998): linear below 1 kHz, logarithmic above.
    """
    linear_step, knee = 200.0 / 3, 1000.0
    log_step = np.log(6.4) / 27

    def to_mel(hz: float) -> float:
        return hz / linear_step if hz < knee else knee / linear_step + np.log(hz / knee) / log_step

    mels = np.linspace(to_mel(F_MIN), to_mel(F_MAX), N_MELS + 2)
    return np.asarray(
        np.where(mels < knee / linear_step, mels * linear_step, knee * np.exp(log_step * (mels - knee / linear_step)))
    )


def mel_filters() -> np.ndarray:
    """Triangular mel filters of unit area, as librosa's default, (WINDOW // 2 + 1, M) float64."""
    corners = mel_corners()
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
    clips, frames, mels = logmel.shape
    ends = draw_stripes(clips, frames, mels, time_stripe, mel_stripe, stripes, generator)
    return without_stripes(logmel, send(ends, logmel.device))


def draw_stripes(
    clips: int,
    frames: int,
    mels: int,
    time_stripe: int,
    mel_stripe: int,
    stripes: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The stripes of `spec_augment`: (B, 2, stripes, 2) int64, of time and of mels each one's first and the one behind its last.

    They are drawn on the CPU, so that every device masks the same, and go to the device as one small table.
    """
    ends = torch.empty(clips, 2, stripes, 2, dtype=torch.int64)
    for axis, (size, widest) in enumerate(((frames, time_stripe), (mels, mel_stripe))):
        for stripe in range(stripes):
            width = (torch.rand(clips, generator=generator) * min(widest, size)).long()
            start = (torch.rand(clips, generator=generator) * (size - width)).long()
            ends[:, axis, stripe, 0], ends[:, axis, stripe, 1] = start, start + width
    return ends


def without_stripes(logmel: Tensor, ends: Tensor) -> Tensor:
    """(B, T, M) with zeros in the stripes that `draw_stripes` gave; a new tensor."""
    masked = torch.ones_like(logmel, dtype=torch.bool)
    for axis in (1, 2):
        start, end = ends[:, axis - 1].unsqueeze(3).unbind(2)  # (B, stripes, 1)
        place = torch.arange(logmel.shape[axis], device=logmel.device)
        masked &= ((place < start) | (place >= end)).all(1).unsqueeze(3 - axis)  # (B, size)
    return logmel * masked


STRETCH = 0.2  # a clip becomes up to so much slower or faster
SHIFT = 2.0  # mel bins, up or down
GAIN = 12.0  # dB, up or down
COLOUR = 4.0  # dB, standard deviation at each of the equaliser's knots
KNOTS = 5  # of the equaliser, evenly spaced over the mels
BACKGROUND = (8.0, 30.0)  # dB that another clip of the batch lies below, where it is put behind


def perturb(logmel: Tensor) -> Tensor:
    """What else the same sound might have been, drawn for each clip of (B, T, M) dB from torch's global generator.

    In this order: speed (within 1 +- STRETCH) and pitch (within SHIFT bins) by interpolation; for half of the clips the
    one before it in the batch as a background; loudness (within GAIN) and a random equaliser. Silence stays silence.
    """
    clips, _, mels = logmel.shape
    return perturbed_by(logmel, send(draw_perturbation(clips, mels), logmel.device))


def draw_perturbation(clips: int, mels: int) -> Tensor:
    """What `perturb` draws, on the CPU as one small table: (B, 3 + M), speed, shift, the background's power, dB of each mel."""
    speed = 1 + STRETCH * (2 * torch.rand(clips, 1) - 1)
    shift = SHIFT * (2 * torch.rand(clips, 1) - 1)
    low, high = BACKGROUND
    below = 10 ** (-(low + (high - low) * torch.rand(clips, 1)) / 10) * (torch.rand(clips, 1) < 0.5)
    gain = GAIN * (2 * torch.rand(clips, 1) - 1)
    knots = functional.interpolate(COLOUR * torch.randn(clips, 1, KNOTS), mels, mode="linear", align_corners=True)
    return torch.cat([speed, shift, below, gain + knots.squeeze(1)], 1)


def perturbed_by(logmel: Tensor, drawn: Tensor) -> Tensor:
    """`perturb` of (B, T, M) dB by what `draw_perturbation` gave."""
    clips, frames, mels = logmel.shape
    device = logmel.device
    speed, shift, below, change = torch.split(drawn, [1, 1, 1, mels], 1)
    # Coordinates of `grid_sample`: -1 is the outer edge of the first frame or bin, 1 that of the last.
    at_frame = (2 * torch.arange(frames, device=device) + 1) / frames * speed - 1
    at_bin = ((2 * (torch.arange(mels, device=device) + shift) + 1) / mels - 1).clamp(-1 + 1 / mels, 1 - 1 / mels)
    shape = (clips, frames, mels)
    grid = torch.stack([at_bin[:, None].expand(shape), at_frame[:, :, None].expand(shape)], 3).to(logmel)
    heard = functional.grid_sample(logmel.unsqueeze(1) - SILENCE, grid, align_corners=False).squeeze(1)

    power = heard.mul_(np.log(10) / 10).expm1_()  # in units of silence's, and silence's taken off
    loudness = power.mean((1, 2)).clamp_min(1)
    scale = below.squeeze(1).to(power) * loudness / loudness.roll(1)
    heard = (power + power.roll(1, 0) * scale[:, None, None]).log1p_().mul_(10 / np.log(10))
    change = change.to(heard).unsqueeze(1)
    return torch.where(heard > 1, (heard + change).clamp_min(0), heard) + SILENCE
