"""What follows a convolution at inference on a CUDA device, in one pass over memory, in Triton. Imported only there.

B batch, C channels, T frames, M mels; maps are channels-last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # values that a program makes: with four warps, 16 bytes at a time of 16-bit ones


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rectify(  # type: ignore[no-untyped-def]
    x,
    bias,
    plus,
    out,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    HALVES: tl.constexpr,
    ADDS: tl.constexpr,
    N: tl.constexpr,
):
    """N values of a row (one frame of one clip, all mels and channels) of `out`; x, plus and out lie as (B, T, M, C)."""
    row = tl.program_id(0)
    place = tl.program_id(1) * N + tl.arange(0, N)
    end = out_width * C
    inside = place < end
    channel = place % C
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    to = row.to(tl.int64) * end + place
    if HALVES:
        above = (row // out_height).to(tl.int64) * height + 2 * (row % out_height)
        at = x + above * width * C + (place // C) * (2 * C) + channel
        value = tl.zeros((N,), dtype=tl.float32)
        for frame in tl.static_range(2):
            for mel in tl.static_range(2):
                heard = tl.load(at + (frame * width + mel) * C, mask=inside, other=0.0).to(tl.float32)
                value += tl.maximum(heard + shift, 0.0)
        value *= 0.25
    else:
        value = tl.load(x + to, mask=inside, other=0.0).to(tl.float32) + shift
        if ADDS:
            value += tl.load(plus + to, mask=inside, other=0.0).to(tl.float32)
        value = tl.maximum(value, 0.0)
    tl.store(out + to, value.to(out.dtype.element_ty), mask=inside)


def rectify_triton(x: Tensor, bias: Tensor, plus: Tensor | None = None, halve: bool = False) -> Tensor:
    """relu(x + bias + plus): (B, C, T, M) -> (B, C, T, M); or of relu(x + bias) each two by two's mean: (B, C, T // 2, M // 2).

    Args:
        x: may be written over.
        bias: (C,).
        plus: as x, or None; not with `halve`.
    """
    assert plus is None or not halve
    clips, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = x
    if halve:
        shape = clips, channels, height // 2, width // 2
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    out_height, out_width = out.shape[2:]
    if not out.numel():
        return out
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _rectify[(clips * out_height, triton.cdiv(out_width * channels, BLOCK))](
            x,
            bias,
            x if plus is None else plus.contiguous(memory_format=torch.channels_last),
            out,
            height,
            width,
            out_height,
            out_width,
            C=channels,
            HALVES=halve,
            ADDS=plus is not None,
            N=BLOCK,
        )
    return out
