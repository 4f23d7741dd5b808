"""Sounds by audio models of `transformers`: each with its own feature extractor, sample rate and window. `encoders` loads them.

B batch, S samples at the model's rate, T' frames, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from .wave_encoder import Inputs, WaveEncoder, pool_counted

FramePooling = Literal["panns", "mean", "max", "model"]


class Frames(NamedTuple):
    """What a model makes of a batch: `states` (B, T', F), of which the first `counts` (B,) of each are of its sound, and not of
    what the extractor padded it with; and the model's own pooled vectors (B, F'), None where it has none."""

    states: Tensor
    counts: Tensor
    own: Tensor | None


class Family:
    """How one architecture is asked. A subclass says what `frames` are.

    Args:
        model: of `transformers`.
        extractor: its feature extractor.

    Attributes:
        rate: Hz that the model hears.
        longest: seconds that it hears at a time; None for any length.
        fixed: whether the extractor brings all sounds to one length, so that any may share a batch.
        features: F of frames, `own_features` of the model's own vectors (0: it has none).
    """

    fixed = True
    own_features = 0

    def __init__(self, model: Any, extractor: Any) -> None:
        self.extractor = extractor
        self.rate = int(extractor.sampling_rate)
        self.longest: float | None = None
        self.features = int(model.config.hidden_size)

    def extract(self, waveforms: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Sounds of at most `longest` seconds -> what the model takes."""
        return dict(self.extractor(list(waveforms), sampling_rate=self.rate, return_tensors="pt"))

    def frames(self, model: Any, inputs: Inputs) -> Frames:
        """What the model makes of a batch."""
        raise NotImplementedError


class SpectrogramTransformer(Family):
    """AST: patches of a log-mel of fixed length, of which a frame is the mean over frequency."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.longest = extractor.max_length * 0.01  # frames of 10 ms
        self.own_features = self.features
        config = model.config
        self._across = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self._shortest = round(0.025 * self.rate)  # a frame of Kaldi's filter bank

    def extract(self, waveforms: Sequence[np.ndarray]) -> dict[str, Tensor]:
        return super().extract([np.pad(wave, (0, max(0, self._shortest - len(wave)))) for wave in waveforms])

    def frames(self, model: Any, inputs: Inputs) -> Frames:
        out = model(**inputs.arrays)
        patches = out.last_hidden_state[:, 2:]  # behind the class and the distillation token; frequency by frequency
        states = patches.unflatten(1, (self._across, -1)).mean(1)
        assert self.longest is not None
        share = inputs.lengths / (self.longest * self.rate)
        return Frames(states, (share * states.shape[1]).ceil().long(), out.pooler_output)


class ClapAudio(Family):
    """CLAP's audio tower with its projection. Short sounds are repeated to its window, so all frames are of the sound.

    The extractor would take a random piece of a longer sound, and at random call one of a batch longer; neither happens here:
    it is given no longer ones, and none is called so.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        Family.__init__(self, model.audio_model, extractor)
        self.longest = float(extractor.max_length_s)
        self.own_features = int(model.config.projection_dim)

    def extract(self, waveforms: Sequence[np.ndarray]) -> dict[str, Tensor]:
        inputs = super().extract(waveforms)
        return inputs | {"is_longer": torch.zeros_like(inputs["is_longer"])}

    def frames(self, model: Any, inputs: Inputs) -> Frames:
        out = model.audio_model(**inputs.arrays)
        states = out.last_hidden_state.mean(2).transpose(1, 2)  # over bands of frequency
        counts = torch.full_like(inputs.lengths, states.shape[1])
        return Frames(states, counts, model.audio_projection(out.pooler_output))


class WhisperEncoder(Family):
    """Whisper's encoder: the extractor pads with silence to its 30 s, and the frames of that are left out."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.longest = float(extractor.chunk_length)

    def frames(self, model: Any, inputs: Inputs) -> Frames:
        states = model.encoder(inputs.arrays["input_features"]).last_hidden_state
        samples = self.extractor.n_samples / states.shape[1]
        return Frames(states, (inputs.lengths / samples).ceil().long(), None)


class WaveformEncoder(Family):
    """wav2vec 2.0 and its kin (HuBERT, WavLM, data2vec): frames of the waveform, as many as it is long."""

    fixed = False

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.longest = 30.0  # attention grows with the square of it
        kernels, strides = model.config.conv_kernel, model.config.conv_stride
        shortest = 1
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            shortest = (shortest - 1) * stride + kernel
        self._shortest = shortest

    def extract(self, waveforms: Sequence[np.ndarray]) -> dict[str, Tensor]:
        padded = [np.pad(wave, (0, max(0, self._shortest - len(wave)))) for wave in waveforms]
        return dict(self.extractor(padded, sampling_rate=self.rate, padding=True, return_tensors="pt"))

    def frames(self, model: Any, inputs: Inputs) -> Frames:
        states = model(**inputs.arrays).last_hidden_state
        share = inputs.lengths / inputs.lengths.max()
        return Frames(states, (share * states.shape[1]).ceil().long(), None)


class TransformersAudio(WaveEncoder):
    """An audio model of `transformers` as an encoder of clips.

    Args:
        model: of `transformers`.
        make_family: how it is asked.
        pooling: over frames: max plus mean as PANNs, `mean`, `max`; or `model`, its own pooled vector.
        dropout: of pooled features while training.

    Raises:
        ValueError: pooling is `model`, and the model has none of its own.
    """

    def __init__(
        self, model: nn.Module, make_family: Callable[[Any], Family], pooling: FramePooling = "panns", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.family = make_family(model)
        self.pooling, self.dropout = pooling, dropout
        self.rate, self.longest, self.fixed = self.family.rate, self.family.longest, self.family.fixed
        if pooling == "model" and not self.family.own_features:
            raise ValueError("the model brings no pooling of its own; use mean, max or panns")
        self.features = self.family.own_features if pooling == "model" else self.family.features

    def inputs(self, waveforms: Sequence[np.ndarray]) -> Inputs:
        """Mono float32 waveforms of at most `longest` seconds, none empty -> a batch as the model takes it."""
        return Inputs(self.family.extract(waveforms), torch.tensor([len(wave) for wave in waveforms]))

    def pooled(self, inputs: Inputs) -> Tensor:
        """A batch -> pooled features (B, F)."""
        frames = self.family.frames(self.model, inputs)
        pooled = cast(Tensor, frames.own) if self.pooling == "model" else pool_counted(frames.states, frames.counts, self.pooling)
        return nn.functional.dropout(pooled.float(), self.dropout, self.training)


def trainable_layers(model: nn.Module, count: int) -> None:
    """Freeze a model but for its last `count` transformer layers and what comes after them.

    Raises:
        ValueError: it has no list of layers, or fewer.
    """
    lists = [
        each
        for name, each in model.named_modules()
        if isinstance(each, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "layers", "blocks")
    ]
    innermost = [each for each in lists if not any(other is not each and other in list(each.modules()) for other in lists)]
    layers = [layer for each in innermost for layer in each]
    if not layers:
        raise ValueError("no list of layers was found in this model")
    if count > len(layers):
        raise ValueError(f"this model has {len(layers)} layers, not {count}")
    model.requires_grad_(False)
    kept = layers[-count:]
    parameters = [id(parameter) for parameter in model.parameters()]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    last = max(number for number, parameter in enumerate(parameters) if parameter in inside)
    behind = set(parameters[last + 1 :])
    tuned = {id(parameter) for layer in kept for parameter in layer.parameters()} | behind
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in tuned)
