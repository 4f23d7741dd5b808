"""The PANNs encoders CNN14 and ResNet38 as their authors published them.

B batch, S samples at 32 kHz, T frames of the log-mel, M mels, T' frames after pooling (T // 32), F = 2048 features.
Source: Kong et al. 2020, "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition", and the
authors' released code. Names of parameters are theirs, so that their checkpoints load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .audio_encoder import AudioEncoder, ConvBlock, pool_frames
from .norm import norm_rectified

FEATURES = 2048
HOP = 320  # samples; the authors' weights know no other
# The front end is computed by FFT here and has nothing to learn; the two heads classify AudioSet's 527 sounds after the
# pooled values that retrieval projects.
NOT_LOADED = ("spectrogram_extractor.", "logmel_extractor.", "fc1.", "fc_audioset.")


@dataclass(frozen=True)
class Published:
    """A checkpoint of the authors: where it comes from and how to recognise it."""

    name: str
    md5: str
    size: int | None  # bytes, where known

    def __str__(self) -> str:
        size = f", {self.size} bytes" if self.size else ""
        address = f"https://zenodo.org/records/3987831/files/{self.name.replace('=', '%3D')}?download=1"
        return f"{self.name} (md5 {self.md5}{size}) from {address}"


class _Panns(AudioEncoder):
    """What CNN14 and ResNet38 share: 2048 features at hop 320, and the pooled values as they are."""

    published: Published
    reduction = 32

    def __init__(self, dropout: float = 0.2, stripes: tuple[int, int] | None = None, perturbed: bool = False) -> None:
        super().__init__(FEATURES, HOP, dropout, stripes, perturbed)

    def pool(self, frames: Tensor) -> Tensor:
        # The last block's dropout came before the pooling; the authors' further dropout belongs to the head left out.
        return pool_frames(frames)

    def _xavier(self) -> None:
        """Xavier-uniform convolutions; batch norms start at the identity by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)


class Cnn14(_Panns):
    """Six ConvBlocks of 64 to 2048 channels, each but the last halving time and frequency; dropout after each.

    `forward(waveform (B, S)) -> (B, 2048)`, S >= 9920 (32 frames). `dropout` 0.2 and `stripes` (64, 8) are the authors'.
    """

    published = Published("Cnn14_mAP=0.431.pth", "541141fa2ee191a88f24a3219fff024e", 327428481)

    def __init__(self, dropout: float = 0.2, stripes: tuple[int, int] | None = None, perturbed: bool = False) -> None:
        super().__init__(dropout, stripes, perturbed)
        self.conv_block1 = ConvBlock(1, 64)
        self.conv_block2 = ConvBlock(64, 128)
        self.conv_block3 = ConvBlock(128, 256)
        self.conv_block4 = ConvBlock(256, 512)
        self.conv_block5 = ConvBlock(512, 1024)
        self.conv_block6 = ConvBlock(1024, FEATURES)
        self._xavier()

    def feature_map(self, x: Tensor) -> Tensor:
        for block in (self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4, self.conv_block5):
            x = self.drop(block(x, halve=True))
        return self.drop(self.conv_block6(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, T, M) -> (B, C_out, T, M), halved in time and frequency if `halve`.

    Where torchvision's ResNet strides, PANNs average-pool: before the first convolution and in the shortcut. Between the
    convolutions lies a dropout of half the encoder's rate (the authors' 0.1 beside 0.2).
    """

    def __init__(self, in_channels: int, out_channels: int, halve: bool, dropout: float) -> None:
        super().__init__()
        self.halve = halve
        self.dropout = dropout
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn2.weight)  # each block starts as its shortcut
        self.downsample: nn.Module = nn.Identity()
        if halve:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(nn.AvgPool2d(2), shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.avg_pool2d(x, 2) if self.halve else x
        out = norm_rectified(self.conv1(out), self.bn1)
        out = self.bn2(self.conv2(functional.dropout(out, self.dropout / 2, self.training)))
        return functional.relu_(out + self.downsample(x))


def _layer(in_channels: int, out_channels: int, blocks: int, halve: bool, dropout: float) -> nn.Sequential:
    """`blocks` BasicBlocks of which only the first changes the shape."""
    first = BasicBlock(in_channels, out_channels, halve, dropout)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, False, dropout) for _ in range(blocks - 1)))


class ResNet38(_Panns):
    """A ConvBlock, a residual network of 3 + 4 + 6 + 3 BasicBlocks without a stem, and a ConvBlock of 2048 channels.

    `forward(waveform (B, S)) -> (B, 2048)`, S >= 9920 (32 frames). `dropout` 0.2 and `stripes` (64, 8) are the authors'.
    """

    published = Published("ResNet38_mAP=0.434.pth", "bf12f36aaabac4e0855e22d3c3239c1b", None)

    def __init__(self, dropout: float = 0.2, stripes: tuple[int, int] | None = None, perturbed: bool = False) -> None:
        super().__init__(dropout, stripes, perturbed)
        self.conv_block1 = ConvBlock(1, 64)
        self.resnet = nn.Sequential()
        self.resnet.add_module("layer1", _layer(64, 64, 3, False, dropout))
        self.resnet.add_module("layer2", _layer(64, 128, 4, True, dropout))
        self.resnet.add_module("layer3", _layer(128, 256, 6, True, dropout))
        self.resnet.add_module("layer4", _layer(256, 512, 3, True, dropout))
        self.conv_block_after1 = ConvBlock(512, FEATURES)
        self._xavier()

    def feature_map(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv_block1(x, halve=True))
        x = self.drop(functional.avg_pool2d(self.resnet(x), 2))
        return self.drop(self.conv_block_after1(x))


def __getattr__(name: str) -> Any:
    """Finds `load_panns` here too, the name that other programs call; it reads files and so lives in `pretrained`."""
    if name == "load_panns":
        from ..pretrained import load_panns

        return load_panns
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
