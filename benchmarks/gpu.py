"""The same on a CUDA GPU: sampling, the encoders in bf16 beside float32, and epochs of phase one. Peak memory is the GPU's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from . import encoders, sampler, training
from .common import Case, Row, Size, Skip


def on_gpu(measure: Callable[..., list[Row]], size: Size) -> list[Row]:
    """Run a benchmark of another topic on the GPU."""
    if not torch.cuda.is_available():
        raise Skip("no CUDA GPU here")
    return measure(size=size, device="cuda")


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    measured: dict[str, Callable[..., list[Row]]] = {
        "AudioCaps": sampler.audiocaps,
        "operations": sampler.operations,
        **{name: partial(encoders.encoder, name) for name in encoders.ENCODERS},
        "phase one": training.phase_one,
        "phase one, CNN14": partial(training.phase_one, overrides=training.CNN14),
    }
    return {name: partial(on_gpu, measure) for name, measure in measured.items()}
