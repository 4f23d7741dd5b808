"""Audio encoders: the log-mel front end and the fast copies against the plain versions, in one run on the same threads.

    python benchmarks/encoders.py [--seconds 10] [--clips 4] [--threads 2] [--device cpu] [--json]

All ways of doing a thing take turns, and each keeps its best time, so that other load on the machine meets them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from diffatr_cli.core.audio_encoder import AudioEncoder, SmallCnn
from diffatr_cli.core.inference import optimise_for_inference
from diffatr_cli.core.logmel import FLOOR, SAMPLE_RATE, WINDOW, LogMel, mel_filters
from diffatr_cli.core.panns import Cnn14, ResNet38

ENCODERS: dict[str, type[AudioEncoder]] = {"CNN14": Cnn14, "ResNet38": ResNet38, "small": SmallCnn}


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


def best_times(ways: dict[str, Callable[[], Tensor]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of each way's best of `rounds` turns, after one turn to warm up."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


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
def measure(seconds: float, clips: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """By part and way: clips a second, the ratio to the plain way, and the relative error against it."""
    torch.manual_seed(0)
    waveform = torch.randn(clips, int(seconds * SAMPLE_RATE), device=device) * 0.1
    parts: dict[str, dict[str, nn.Module]] = {"log-mel": {"convolution": ConvolutionalLogMel()}}
    if find_spec("torchlibrosa"):
        parts["log-mel"]["torchlibrosa"] = torchlibrosa_logmel()
    parts["log-mel"]["FFT"] = LogMel()
    result: dict[str, Any] = {}
    for name in ("log-mel", *ENCODERS):
        if name in ENCODERS:
            plain = lived_in(ENCODERS[name]()).to(device)
            ways: dict[str, nn.Module] = {"plain": plain, "fast": optimise_for_inference(plain)}
            ways["fast, bf16"] = optimise_for_inference(plain, torch.bfloat16)
        else:
            ways = {way: module.to(device) for way, module in parts[name].items()}
        times = best_times({way: (lambda module=module: module(waveform)) for way, module in ways.items()}, rounds, device)
        first = next(iter(ways))
        expected = ways[first](waveform)
        result[name] = {
            way: {
                "clips_per_second": clips / times[way],
                "ratio": times[first] / times[way],
                "relative_error": ((module(waveform) - expected).norm() / expected.norm()).item(),
            }
            for way, module in ways.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the audio encoders and their front end.")
    parser.add_argument("--seconds", type=float, default=10, help="length of a clip")
    parser.add_argument("--clips", type=int, default=4, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="turns, of which the best counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.seconds, options.clips, options.rounds, options.device)
    if options.json:
        setting = {"seconds": options.seconds, "clips": options.clips, "threads": options.threads, "device": str(options.device)}
        print(json.dumps(setting | {"encoders": result}))
        return
    print(f"{options.clips} clips of {options.seconds:g} s, {options.threads} threads, {options.device}")
    for name, ways in result.items():
        for way, row in ways.items():
            figures = f"{row['clips_per_second']:8.2f} clips/s  x{row['ratio']:5.2f}  error {row['relative_error']:.0e}"
            print(f"{name:9} {way:13} {figures}")


if __name__ == "__main__":
    main()
