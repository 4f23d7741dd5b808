"""Audio encoders at inference: the log-mel front end and the fast copies against plain PyTorch with the same weights.

Clips of ten seconds in batches of four, in turns on the same threads. The error is relative to the plain version's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffatr_cli.core.audio_encoder import AudioEncoder, SmallCnn
from diffatr_cli.core.inference import optimise_for_inference, pooled_features
from diffatr_cli.core.logmel import FLOOR, WINDOW, LogMel, mel_filters
from diffatr_cli.core.panns import Cnn14, ResNet38
from diffatr_cli.types import SAMPLE_RATE

from .common import Case, Row, Size, median, medians, pick

ENCODERS: dict[str, type[AudioEncoder]] = {"CNN14": Cnn14, "ResNet38": ResNet38, "small": SmallCnn}
GOALS = {
    "log-mel, FFT": "goal: at least 6 times torchlibrosa's",
    "CNN14, fast": "goal: at least 1.5 times",
}
GPU_GOALS = dict.fromkeys(("CNN14, fast, bf16", "ResNet38, fast, bf16"), "goal: at least 2.5 times")


class ConvolutionalLogMel(nn.Module):
    """The front end as PANNs publish it: the Fourier transform as two convolutions, written plainly."""

    def __init__(self, hop: int = 320) -> None:
        super().__init__()
        self.hop = hop
        angle = 2 * torch.pi * torch.arange(WINDOW // 2 + 1)[:, None] * torch.arange(WINDOW, dtype=torch.float64) / WINDOW
        window = torch.hann_window(WINDOW, dtype=torch.float64)
        self.register_buffer("real", (angle.cos() * window).float()[:, None])
        self.register_buffer("imaginary", (-angle.sin() * window).float()[:, None])
        self.register_buffer("filters", torch.from_numpy(mel_filters()).float())

    def forward(self, waveform: Tensor) -> Tensor:
        x = functional.pad(waveform[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")
        power = functional.conv1d(x, self.real, stride=self.hop) ** 2 + functional.conv1d(x, self.imaginary, stride=self.hop) ** 2
        return 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ self.filters, min=FLOOR))


def torchlibrosa_logmel() -> nn.Module:
    """The PANNs authors' own front end."""
    from torchlibrosa.stft import LogmelFilterBank, Spectrogram

    filters = LogmelFilterBank(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=64, fmin=50, fmax=14000, amin=FLOOR, top_db=None)
    return nn.Sequential(Spectrogram(n_fft=WINDOW, hop_length=320, win_length=WINDOW), filters, nn.Flatten(1, 2))


def lived_in(encoder: AudioEncoder) -> AudioEncoder:
    """Statistics and gains as after training, so that the errors mean something."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return encoder.eval()


@torch.inference_mode()
def compare(name: str, ways: dict[str, nn.Module], size: Size, device: str = "cpu") -> list[Row]:
    """Each way beside the first: clips a second of waveforms, and the error."""
    clips = pick(size, 1, 2, 4 if device == "cpu" else 64)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(clips, SAMPLE_RATE * pick(size, 1, 5, 10), generator=generator).to(device)
    calls = {way: partial(module.to(device), waveform) for way, module in ways.items()}
    times = medians(calls, pick(size, 1, 3, 7), device)
    first, *others = ways
    expected = calls[first]()
    rows = []
    for way in others:
        error = ((calls[way]().float() - expected).norm() / expected.norm()).item()
        goal = (GOALS if device == "cpu" else GPU_GOALS).get(f"{name}, {way}", "")
        plain = "float32" if device == "cpu" or not torch.backends.cudnn.allow_tf32 else "float32 by TF32, cuDNN's default"
        remark = f"plain: {first}, {plain}; relative error {error:.0e}"
        rows.append(Row(f"{name}, {way}", clips / times[way], clips / times[first], "clips/s", goal, remark))
    return rows


def log_mel(size: Size, device: str = "cpu") -> list[Row]:
    """The front end alone."""
    plain = {"torchlibrosa": torchlibrosa_logmel()} if find_spec("torchlibrosa") else {"convolution": ConvolutionalLogMel()}
    return compare("log-mel", {**plain, "FFT": LogMel()}, size, device)


def encoder(name: str, size: Size, device: str = "cpu") -> list[Row]:
    """A whole encoder, from waveform to pooled features."""
    torch.manual_seed(0)
    plain = lived_in(ENCODERS[name]()).to(device)
    fast = {"fast": optimise_for_inference(plain), "fast, bf16": optimise_for_inference(plain, torch.bfloat16)}
    return compare(name, {"PyTorch": plain, **fast}, size, device)


def made_up(clips: int, seconds: float) -> Iterator[Tensor]:
    """Clips (samples,) that differ as recordings do: a few tones that swell, in noise, of which each four share the tones."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    for number in range(clips):
        if number % 4 == 0:
            pitches = 60 * 2 ** (7 * torch.rand(3, generator=generator))
        rates, loudness = 6 * torch.rand(3, 1, generator=generator), 0.3 * torch.rand(2, generator=generator)
        tones = (2 * torch.pi * pitches[:, None] * time).sin() * (2 * torch.pi * rates * time).sin().square()
        yield loudness[0] * tones.mean(0) + loudness[1] * torch.randn(len(time), generator=generator)


def bf16_against_fp32(size: Size, device: str = "cpu") -> list[Row]:
    """What embedding in bf16 changes: cosines between clips, and which clip is nearest to each."""
    name, clips = pick(size, "small", "CNN14", "CNN14"), pick(size, 8, 64, 400)
    torch.manual_seed(0)
    plain, waves = lived_in(ENCODERS[name]()).to(device), list(made_up(clips, pick(size, 1, 5, 10)))
    took, cosines = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        embed = partial(pooled_features, optimise_for_inference(plain, dtype), waves)
        took[dtype] = median(embed, 1, device)
        features = embed().double()
        units = functional.normalize(features - features.mean(0), dim=1)  # what all share would hide what tells them apart
        cosines[dtype] = (units @ units.T).fill_diagonal_(-1)
    wide, low = cosines.values()
    changed = int((wide.argmax(1) != low.argmax(1)).sum())
    # An exchange of two clips that are equally near is none that anyone could notice.
    lost = (wide.amax(1) - wide.gather(1, low.argmax(1, keepdim=True)).squeeze(1)).max().item()
    remark = (
        f"plain: float32; cosines differ by {(wide - low).abs().max().item():.0e} at most; {changed} of {clips} nearest "
        f"clips change, to ones that are {lost:.0e} further at most"
    )
    what = f"{name} in bf16, {clips} clips"
    return [Row(what, clips / took[torch.bfloat16], clips / took[torch.float32], "clips/s", remark=remark)]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    names = pick(size, ("small",), tuple(ENCODERS), tuple(ENCODERS))  # the others differ in nothing but their weight
    return {"log-mel": log_mel, **{name: partial(encoder, name) for name in names}}
