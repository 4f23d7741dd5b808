"""Audio encoders at inference: a faster copy that gives the same numbers, and features of clips of any lengths.

n clips, S samples at 32 kHz, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..types import SAMPLE_RATE
from .audio_encoder import AudioEncoder, ConvBlock, pool_frames
from .convolution import rectified_conv, widened
from .level import levelled, levelled_rows
from .logmel import N_MELS
from .panns import BasicBlock
from .sending import Fetched, one_ahead, send_aside, stacked
from .winograd import WinogradConv

BATCH_SAMPLES = 40 * SAMPLE_RATE  # of a batch, and of a piece of a long clip: some 300 MB inside CNN14
GPU_SAMPLES = 320 * SAMPLE_RATE  # the same on a GPU, which small batches leave idle
MARGIN = 16  # feature frames beyond a piece that an encoder sees; ResNet38 reaches furthest, not quite 10
WINOGRAD_CHANNELS = 128  # with fewer, transforming costs about what multiplying saves


class FoldedConv(nn.Module):
    """A convolution that holds its batch norm, channels-last; casts its input to the type of its weight."""

    def __init__(self, conv: nn.Conv2d, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.to(self.conv.weight.dtype, memory_format=torch.channels_last))
        return functional.relu_(x) if self.relu else x


class RectifiedConv(nn.Module):
    """relu(convolution + bias + plus), or the halved map of it, for GPUs: a folded convolution with what follows it.

    Its input of one channel is widened by zeros, as `core.convolution.widened` says.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.alone = conv.in_channels == 1
        if self.alone:
            self.conv.weight = nn.Parameter(widened(self.conv.weight), requires_grad=False)

    def forward(self, x: Tensor, plus: Tensor | None = None, halve: bool = False) -> Tensor:
        x = x.to(self.conv.weight.dtype, memory_format=torch.channels_last)
        return rectified_conv(widened(x) if self.alone else x, self.conv, plus, halve)


class FoldedConvBlock(nn.Module):
    """A `ConvBlock` at inference."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv1, conv2

    def forward(self, x: Tensor, halve: bool = False) -> Tensor:
        x = self.conv1(x)
        if isinstance(self.conv2, RectifiedConv):
            out: Tensor = self.conv2(x, halve=halve)
            return out
        x = self.conv2(x)
        return functional.avg_pool2d(x, 2) if halve else x


class FoldedBasicBlock(nn.Module):
    """A `BasicBlock` at inference on a GPU: halved once for both ways, and summed with the shortcut in no pass of its own."""

    def __init__(self, block: BasicBlock, conv1: RectifiedConv, conv2: RectifiedConv, shortcut: nn.Module) -> None:
        super().__init__()
        self.halve = block.halve
        self.conv1, self.conv2, self.shortcut = conv1, conv2, shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x, 2) if self.halve else x
        rectified: Tensor = self.conv2(self.conv1(x), self.shortcut(x))
        return rectified


def optimise_for_inference(encoder: AudioEncoder, dtype: torch.dtype = torch.float32) -> AudioEncoder:
    """A frozen copy of `encoder` in evaluation mode, for the device that it is on, that gives the same features faster.

    Batch norms that follow a convolution are folded into it and maps are channels-last. On the CPU in float32, wide 3x3
    convolutions of heavy encoders become `WinogradConv`s: features stay within 1e-5 relative, and the weights take up to three
    times the memory. On a GPU a convolution's bias, its ReLU, the sum with a shortcut and the halving are one pass over memory,
    which bounds the wide maps of the first blocks. `bn0` stays: it comes before a padding with zeros, which folding would change.

    Args:
        dtype: of the convolutions. bfloat16 is off by about 0.4 %; it pays on GPUs and on processors with matrix units
            (AMX), while with AVX512_BF16 alone it is no faster than float32.
    """
    copy = deepcopy(encoder).eval().requires_grad_(False)
    copy.zero_grad(set_to_none=True)
    on_gpu = _fuses(copy.device)
    blocks = [block for block in copy.modules() if isinstance(block, ConvBlock | BasicBlock if on_gpu else ConvBlock)]
    before_relu = {conv for block in blocks for conv in (block.conv1, block.conv2)}
    faster: dict[nn.Module, nn.Module] = {}
    for conv, norm, mels in _normalised_convs(copy):
        fused = fuse_conv_bn_eval(conv, norm)
        assert fused.bias is not None
        if copy.heavy and not on_gpu and dtype == torch.float32 and _suits_winograd(fused):
            faster[conv] = WinogradConv(fused.weight, fused.bias, conv in before_relu, mels)
        elif on_gpu and conv in before_relu:
            faster[conv] = RectifiedConv(fused, dtype)
        else:
            faster[conv] = FoldedConv(fused, conv in before_relu, dtype)
        faster[norm] = nn.Identity()
    for name, child in copy.named_children():
        setattr(copy, name, _rebuilt(child, faster))
    return copy


def _fuses(device: torch.device) -> bool:
    """Whether convolutions are to be fused with what follows them there."""
    return device.type == "cuda"


def _levels(device: torch.device) -> bool:
    """Whether sounds are to be brought to one level there, rather than before they are sent. Not all have float64."""
    return device.type == "cuda"


def _suits_winograd(conv: nn.Conv2d) -> bool:
    """Whether `WinogradConv` can stand for this convolution, and is faster."""
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    return plain and conv.in_channels >= WINOGRAD_CHANNELS and conv.weight.device.type == "cpu"


def _rebuilt(module: nn.Module, faster: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in faster:
        return faster[module]
    if isinstance(module, ConvBlock):
        return FoldedConvBlock(faster[module.conv1], faster[module.conv2])
    if isinstance(module, BasicBlock) and isinstance(conv2 := faster[module.conv2], RectifiedConv):
        conv1 = faster[module.conv1]
        assert isinstance(conv1, RectifiedConv)
        shortcut = faster[module.downsample[1]] if isinstance(module.downsample, nn.Sequential) else nn.Identity()
        return FoldedBasicBlock(module, conv1, conv2, shortcut)
    for name, child in module.named_children():
        setattr(module, name, _rebuilt(child, faster))
    return module


def _normalised_convs(encoder: AudioEncoder) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, int]]:
    """Each convolution whose output a batch norm takes, that norm, and the map's width, as a dry run shows them."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []

    def after_conv(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        outputs.append((conv, output))

    def before_norm(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        found.extend((conv, norm, output.shape[3]) for conv, output in outputs if output is inputs[0])

    hooks = [module.register_forward_hook(after_conv) for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    hooks += [module.register_forward_pre_hook(before_norm) for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        encoder.frames(torch.zeros(1, encoder.reduction, N_MELS, device=encoder.device))
    for hook in hooks:
        hook.remove()
    return found


def pooled_features(
    encoder: AudioEncoder, waveforms: Sequence[Tensor], batch_samples: int | None = None, *, level: bool = False
) -> Tensor:
    """Waveforms (S,) of any lengths -> (n, F) float32 on the CPU, each as if it were embedded alone and whole.

    Only clips of equal length share a batch, so that no padding enters. Clips shorter than `encoder.min_samples` are padded
    with zeros up to it. Memory is bounded by `batch_samples`, by default what suits the device: a longer clip goes through in
    overlapping pieces. `level` has the encoder hear them at one level (`core.level.levelled`).
    Raises ValueError if the encoder is in training mode, where clips of a batch depend on one another.
    """
    out = torch.empty(len(waveforms), encoder.features)
    for part, pooled in _fetched(encoder, waveforms, batch_samples, level, pool_frames):
        out[part] = pooled
    return out


def frame_features(
    encoder: AudioEncoder, waveforms: Sequence[Tensor], batch_samples: int | None = None, *, level: bool = False
) -> list[Tensor]:
    """Waveforms (S,) of any lengths -> of each its frames (T', F) float32 on the CPU, at least one, of which `pooled_features`
    has the maximum and the mean. The arguments and the error are the same."""
    found: dict[int, Tensor] = {}
    for part, frames in _fetched(encoder, waveforms, batch_samples, level, lambda frames: frames):
        found.update(zip(part, frames, strict=True))
    return [found[i] for i in range(len(waveforms))]


def _fetched(
    encoder: AudioEncoder,
    waveforms: Sequence[Tensor],
    batch_samples: int | None,
    level: bool,
    work: Callable[[Tensor], Tensor],
) -> Iterator[tuple[list[int], Tensor]]:
    """What `work` makes of `_batched_frames`, on the CPU; a GPU is at work on the next batch while the one before is fetched."""
    on_cpu = encoder.device.type == "cpu"
    batches = _batched_frames(encoder, waveforms, batch_samples or (BATCH_SAMPLES if on_cpu else GPU_SAMPLES), level)
    begun = ((part, Fetched(work(frames))) for part, frames in batches)
    for part, made in begun if on_cpu else one_ahead(begun):
        yield part, made.values()


@torch.inference_mode()
def _batched_frames(
    encoder: AudioEncoder, waveforms: Sequence[Tensor], batch_samples: int, level: bool
) -> Iterator[tuple[list[int], Tensor]]:
    """The places of clips of one length, and their frames (B, T', F)."""
    if encoder.training:
        raise ValueError("features of clips need the encoder in evaluation mode")
    device = encoder.device
    lengths = [max(encoder.min_samples, len(wave)) for wave in waveforms]
    for length, group in groupby(sorted(range(len(lengths)), key=lengths.__getitem__), key=lengths.__getitem__):
        members, size = list(group), max(1, batch_samples // length)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            batch = _sent([waveforms[i] for i in part], length, device, level)
            yield part, torch.cat(list(_frames_in_pieces(encoder, batch, batch_samples)), 1)


def _sent(waveforms: Sequence[Tensor], length: int, device: torch.device, level: bool) -> Tensor:
    """Waveforms (S,) with zeros behind them, (B, length) on a device; with `level` brought to one level, where there are no zeros
    to confuse: a GPU has them all at once, and the processor each while it is in its cache."""
    there = level and _levels(device) and all(len(each) == length for each in waveforms)
    if level and not there:
        waveforms = [torch.from_numpy(levelled(each.numpy())) for each in waveforms]
    batch = send_aside(stacked(waveforms, length, device), device)
    return levelled_rows(batch) if there else batch


def _frames_in_pieces(encoder: AudioEncoder, waveform: Tensor, samples: int) -> Iterator[Tensor]:
    """The frames (B, T', F) of a batch (B, S) along time, computed from at most about `samples` a clip at a time.

    Exact: to each side of its piece the encoder sees `MARGIN` feature frames, more than any of its outputs depends on.
    """
    if waveform.shape[1] <= samples:
        yield encoder.frames(encoder.log_mel(waveform))
        return
    stride = encoder.reduction * encoder.hop  # samples a feature frame
    step = max(MARGIN, samples // stride - 2 * MARGIN)
    total = (waveform.shape[1] // encoder.hop + 1) // encoder.reduction
    for start in range(0, total, step):
        first, end = max(0, start - MARGIN), start + step + MARGIN
        piece = waveform[:, first * stride : end * stride if end < total else None]
        yield encoder.frames(encoder.log_mel(piece))[:, start - first : start - first + step]
