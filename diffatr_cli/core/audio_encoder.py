"""What all audio encoders share: the log-mel front end, the normalisation of mel bins, the pooling; and the small encoder.

B batch, S samples at 32 kHz, T frames of the log-mel, M mels, T' frames after the encoder's own pooling, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .convolution import FirstConv
from .logmel import N_MELS, WINDOW, LogMel, draw_perturbation, draw_stripes, perturbed_by, without_stripes
from .norm import norm_rectified
from .sending import send


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU: (B, C_in, T, M) -> (B, C_out, T, M), or halved, (B, C_out, T // 2, M // 2).

    Source: PANNs' CNN14.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = FirstConv(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, halve: bool = False) -> Tensor:
        x = norm_rectified(self.conv1(x), self.bn1)
        return norm_rectified(self.conv2(x), self.bn2, halve)


def pool_frames(frames: Tensor) -> Tensor:
    """Max over time plus mean over time: (B, T', F) -> (B, F). Source: PANNs."""
    return frames.amax(1) + frames.mean(1)


class AudioEncoder(nn.Module):
    """Base of the audio encoders. A subclass sets `features` and turns normalised log-mels into a feature map.

    Attributes:
        reduction: log-mel frames a feature frame stands for; clips of fewer frames leave nothing to pool.
        heavy: whether a clip costs so much that code compiled for it repays its seconds of compiling and loading.

    Args:
        features: F, the size of the pooled output.
        hop: samples between log-mel frames.
        dropout: probability, used by subclasses while training.
        stripes: (time, mel) widths of SpecAugment while training, or None for none.
        perturbed: whether clips go through `perturb` while training.
    """

    reduction: int
    heavy = True

    def __init__(
        self,
        features: int,
        hop: int = 320,
        dropout: float = 0.2,
        stripes: tuple[int, int] | None = None,
        perturbed: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.hop = hop
        self.dropout = dropout
        self.stripes = stripes
        self.perturbed = perturbed
        self.log_mel = LogMel(hop)
        self.bn0 = nn.BatchNorm2d(N_MELS)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def min_samples(self) -> int:
        """The shortest clip that gives a feature frame."""
        return max((self.reduction - 1) * self.hop, WINDOW // 2 + 1)

    def feature_map(self, x: Tensor) -> Tensor:
        """Normalised log-mels (B, 1, T, M) -> (B, F, T', M'), before any pooling over what is left of frequency and time."""
        raise NotImplementedError

    def augmentation(self, clips: int, frames: int) -> tuple[Tensor, ...]:
        """What is drawn for a batch before its features while training, as tables on the CPU; none in evaluation mode."""
        drawn = []
        if self.training and self.perturbed:
            drawn.append(draw_perturbation(clips, N_MELS))
        if self.training and self.stripes is not None:
            drawn.append(draw_stripes(clips, frames, N_MELS, *self.stripes))
        return tuple(drawn)

    def frames(self, logmel: Tensor, drawn: Sequence[Tensor] | None = None) -> Tensor:
        """Log-mels (B, T, M) in dB -> frame features (B, T', F).

        Args:
            drawn: what `augmentation` gave, on the device; None draws it now.
        """
        if drawn is None:
            drawn = [send(table, logmel.device) for table in self.augmentation(*logmel.shape[:2])]
        if self.training and self.perturbed:
            logmel = perturbed_by(logmel, drawn[0])
        x = self.bn0(logmel.unsqueeze(1).transpose(1, 3)).transpose(1, 3)
        if self.training and self.stripes is not None:
            x = without_stripes(x.squeeze(1), drawn[-1]).unsqueeze(1)
        return self.feature_map(x).float().mean(3).transpose(1, 2)  # whatever precision the convolutions have

    def pooled(self, logmel: Tensor, drawn: Sequence[Tensor] | None = None) -> Tensor:
        """Log-mels (B, T, M) in dB -> pooled features (B, F). `drawn` as of `frames`."""
        return self.pool(self.frames(logmel, drawn))

    def pool(self, frames: Tensor) -> Tensor:
        """Frame features (B, T', F) -> pooled features (B, F), with the dropout that belongs there."""
        return self.drop(pool_frames(frames))

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (B, S) at 32 kHz, S >= min_samples -> pooled features (B, F)."""
        return self.pooled(self.log_mel(waveform))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout at the encoder's rate while it trains."""
        return functional.dropout(x, self.dropout, self.training)


class SmallCnn(AudioEncoder):
    """A slim CNN of the PANNs family for machines without a GPU: a strided convolution, then ConvBlocks with halvings between.

    (B, 1, T, M) -> (B, F, T / 2^n, M / 2^n), F the last width, n blocks. At full resolution the first block of PANNs would
    cost more than all the others together, hence the stride.
    """

    heavy = False

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        hop: int = 640,
        dropout: float = 0.2,
        stripes: tuple[int, int] | None = None,
        perturbed: bool = False,
    ) -> None:
        super().__init__(channels[-1], hop, dropout, stripes, perturbed)
        self.reduction = 2 ** len(channels)
        self.stem = FirstConv(1, channels[0], 3, stride=2, padding=1, bias=False)
        self.bn_stem = nn.BatchNorm2d(channels[0])
        self.blocks = nn.ModuleList(ConvBlock(a, b) for a, b in zip((channels[0], *channels[:-1]), channels, strict=True))

    def feature_map(self, x: Tensor) -> Tensor:
        x = norm_rectified(self.stem(x.contiguous(memory_format=torch.channels_last)), self.bn_stem)
        for i, block in enumerate(self.blocks, 1):
            x = block(x, halve=i < len(self.blocks))
        return x


class SideBySide(AudioEncoder):
    """Encoders that share nothing but what they hear, as one: the features of a frame are those of all its members, joined.

    What is drawn for a batch while training is the same for all. Members have the same front end and reduction.

    Raises:
        ValueError: members that differ in these, or fewer than two.
    """

    def __init__(self, members: Sequence[AudioEncoder]) -> None:
        kinds = {(each.hop, each.reduction, each.dropout, each.stripes, each.perturbed) for each in members}
        if len(members) < 2 or len(kinds) > 1:
            raise ValueError("encoders side by side are two at least, with one hop, reduction, dropout and augmentation")
        first = members[0]
        features = sum(each.features for each in members)
        super().__init__(features, first.hop, first.dropout, first.stripes, first.perturbed)
        self.reduction, self.heavy = first.reduction, first.heavy
        self.members = nn.ModuleList(members)
        del self.bn0  # each member has its own

    def frames(self, logmel: Tensor, drawn: Sequence[Tensor] | None = None) -> Tensor:
        if drawn is None:
            drawn = [send(table, logmel.device) for table in self.augmentation(*logmel.shape[:2])]
        found = []
        for member in self.members:
            assert isinstance(member, AudioEncoder)
            found.append(member.frames(logmel, drawn))
        return torch.cat(found, 2)
