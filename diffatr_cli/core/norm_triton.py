"""Batch norm, ReLU and halving while training on a CUDA device, in one pass forward and two back, in Triton. Imported only there.

B batch, C channels, T frames, M mels, P = B T M places of a channel; maps are channels-last.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 2048  # values of a row that a program makes going forward
ROWS, COLUMNS = 32, 64  # places and channels of a tile going back
PARTS = 1024  # programs that sum over places, at most


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _forward(  # type: ignore[no-untyped-def]
    x, scale, shift, out, height, width, out_height, out_width, C: tl.constexpr, HALVES: tl.constexpr, N: tl.constexpr
):
    """N values of a row (one frame of one clip) of relu(x scale + shift), or of the mean of each two by two of it."""
    row = tl.program_id(0)
    place = tl.program_id(1) * N + tl.arange(0, N)
    end = out_width * C
    inside = place < end
    channel = place % C
    a = tl.load(scale + channel, mask=inside, other=0.0)
    b = tl.load(shift + channel, mask=inside, other=0.0)
    to = row.to(tl.int64) * end + place
    if HALVES:
        above = (row // out_height).to(tl.int64) * height + 2 * (row % out_height)
        at = x + above * width * C + (place // C) * (2 * C) + channel
        value = tl.zeros((N,), dtype=tl.float32)
        for frame in tl.static_range(2):
            for mel in tl.static_range(2):
                heard = tl.load(at + (frame * width + mel) * C, mask=inside, other=0.0).to(tl.float32)
                value += tl.maximum(heard * a + b, 0.0)
        value *= 0.25
    else:
        value = tl.maximum(tl.load(x + to, mask=inside, other=0.0).to(tl.float32) * a + b, 0.0)
    tl.store(out + to, value.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _passed_on(  # type: ignore[no-untyped-def]
    heard, gradient, a, b, place, channel, inside, height, width, out_height, out_width, C: tl.constexpr, HALVES: tl.constexpr
):
    """The gradient of x scale + shift at a tile (R, N) of places and channels."""
    if HALVES:
        mel = place % width
        frame = (place // width) % height
        clip = (place // width) // height
        kept = (frame // 2 < out_height) & (mel // 2 < out_width)  # an odd frame or mel at the end is left out
        source = (clip.to(tl.int64) * out_height + frame // 2) * out_width + mel // 2
        taken = inside & kept[:, None]
        given = 0.25 * tl.load(gradient + source[:, None] * C + channel[None, :], mask=taken, other=0.0).to(tl.float32)
    else:
        at = place.to(tl.int64)[:, None] * C + channel[None, :]
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(heard * a[None, :] + b[None, :] > 0, given, 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sums(  # type: ignore[no-untyped-def]
    x,
    gradient,
    scale,
    shift,
    mean,
    deviation,
    sums,
    places,
    steps,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    HALVES: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    """Of some places, the sums of the gradient and of its products with the normalised values: sums (parts, 2, C)."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * N + tl.arange(0, N)
    is_channel = channel < C
    a, b = tl.load(scale + channel, mask=is_channel, other=0.0), tl.load(shift + channel, mask=is_channel, other=0.0)
    m, d = tl.load(mean + channel, mask=is_channel, other=0.0), tl.load(deviation + channel, mask=is_channel, other=0.0)
    plain, weighted = tl.zeros((R, N), dtype=tl.float32), tl.zeros((R, N), dtype=tl.float32)
    for step in range(steps):
        place = (part * steps + step) * R + tl.arange(0, R)
        inside = (place < places)[:, None] & is_channel[None, :]
        at = place.to(tl.int64)[:, None] * C + channel[None, :]
        heard = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        passed = _passed_on(heard, gradient, a, b, place, channel, inside, height, width, out_height, out_width, C, HALVES)
        plain += passed
        weighted += passed * (heard - m[None, :]) * d[None, :]
    to = sums + part.to(tl.int64) * 2 * C + channel
    tl.store(to, tl.sum(plain, axis=0), mask=is_channel)
    tl.store(to + C, tl.sum(weighted, axis=0), mask=is_channel)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _backward(  # type: ignore[no-untyped-def]
    x,
    gradient,
    scale,
    shift,
    mean,
    deviation,
    sums,
    out,
    places,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    HALVES: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    """The gradient of x at a tile of places and channels; sums (2, C) over all places."""
    place = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.program_id(1) * N + tl.arange(0, N)
    is_channel = channel < C
    inside = (place < places)[:, None] & is_channel[None, :]
    a, b = tl.load(scale + channel, mask=is_channel, other=0.0), tl.load(shift + channel, mask=is_channel, other=0.0)
    m, d = tl.load(mean + channel, mask=is_channel, other=0.0), tl.load(deviation + channel, mask=is_channel, other=0.0)
    plain = tl.load(sums + channel, mask=is_channel, other=0.0) / places
    weighted = tl.load(sums + C + channel, mask=is_channel, other=0.0) / places
    at = place.to(tl.int64)[:, None] * C + channel[None, :]
    heard = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    passed = _passed_on(heard, gradient, a, b, place, channel, inside, height, width, out_height, out_width, C, HALVES)
    normalised = (heard - m[None, :]) * d[None, :]
    value = a[None, :] * (passed - plain[None, :] - normalised * weighted[None, :])
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


class _NormRectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor, halve: bool) -> Tensor:
        clips, channels, height, width = x.shape
        scale = weight.float() * deviation
        shift = bias.float() - mean * scale
        out_height, out_width = (height // 2, width // 2) if halve else (height, width)
        out = torch.empty(
            (clips, channels, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        sizes = height, width, out_height, out_width
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _forward[(clips * out_height, triton.cdiv(out_width * channels, BLOCK))](
                x, scale, shift, out, *sizes, C=channels, HALVES=halve, N=BLOCK
            )
        ctx.save_for_backward(x, scale, shift, mean, deviation)
        ctx.sizes, ctx.halve = sizes, halve
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, deviation = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        channels, places = x.shape[1], x.numel() // x.shape[1]
        tiles = triton.cdiv(places, ROWS)
        steps = triton.cdiv(tiles, PARTS)
        parts, columns = triton.cdiv(tiles, steps), triton.cdiv(channels, COLUMNS)
        of_parts = torch.empty(parts, 2, channels, device=x.device)
        out = torch.empty_like(x)
        shape = {"C": channels, "HALVES": ctx.halve, "R": ROWS, "N": COLUMNS}
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _sums[(parts, columns)](x, gradient, scale, shift, mean, deviation, of_parts, places, steps, *ctx.sizes, **shape)
            sums = of_parts.sum(0)
            _backward[(tiles, columns)](x, gradient, scale, shift, mean, deviation, sums, out, places, *ctx.sizes, **shape)
        return out, sums[1], sums[0], None, None, None


def norm_rectified_triton(x: Tensor, norm: nn.BatchNorm2d, halve: bool = False) -> Tensor:
    """relu(norm(x)) in training mode, or the mean of each two by two of it: (B, C, T, M) -> the same, or (B, C, T // 2, M // 2).

    Statistics are those of the batch, and go into the norm's as `nn.BatchNorm2d` has it.
    """
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    x = x.contiguous(memory_format=torch.channels_last)
    places = x.numel() // x.shape[1]
    with torch.no_grad():
        mean, deviation = _statistics(x, norm.eps)
        variance = deviation.square().reciprocal() - norm.eps
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (places / (places - 1)), norm.momentum)
    out: Tensor = _NormRectified.apply(x, norm.weight, norm.bias, mean, deviation, halve)  # type: ignore[no-untyped-call]
    return out


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of each channel the mean and 1 / sqrt(variance + eps), float32 (C,)."""
    if x.device.type == "cuda":
        mean, deviation = torch.batch_norm_stats(x, eps)
        return mean, deviation
    variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()
