"""The noise of `noise` on a CUDA device, in Triton. Imported only where tensors lie there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .noise import ANGLE, COSINE, LN2, LOG, ROOT_HALF, ROUNDS, SINE

BLOCK = 256  # counters of a program

_ROUNDS = tl.constexpr(ROUNDS)
_ROOT_HALF = tl.constexpr(ROOT_HALF)
_ANGLE = tl.constexpr(ANGLE)
_L0, _L1, _L2, _L3 = (tl.constexpr(value) for value in LOG)
_LN2_HIGH, _LN2_LOW = (tl.constexpr(value) for value in LN2)
_S0, _S1, _S2 = (tl.constexpr(value) for value in SINE)
_C0, _C1, _C2 = (tl.constexpr(value) for value in COSINE)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _box_muller(a, b):  # type: ignore[no-untyped-def]
    """Two normals of two words, as `noise` says."""
    u = ((a >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608)
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _ROOT_HALF) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    half = 0.5 * f * f
    e = exponent.to(tl.float32)
    log = s * (half + z * (_L0 + w * _L2) + w * (_L1 + w * _L3)) + e * _LN2_LOW - half + f + e * _LN2_HIGH
    r = tl.sqrt_rn(-2.0 * log)

    quarter = (b + 536870912) >> 30
    x = (b - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _ANGLE
    z = x * x
    sine = x + x * z * (_S0 + z * (_S1 + z * _S2))
    cosine = 1.0 - 0.5 * z + z * z * (_C0 + z * (_C1 + z * _C2))
    odd = (quarter & 1) == 1
    along, across = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return r * tl.where((quarter == 1) | (quarter == 2), -along, along), r * tl.where(quarter >= 2, -across, across)


@triton.jit(do_not_specialize=["seed", "stream"])  # type: ignore[untyped-decorator, unused-ignore]
def _normals(ids, places, out, seed, stream, row_end, LISTED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """BLOCK counters of a row of out (Q, row_end): of as many listed places, or of four times as many candidates in order."""
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query = tl.load(ids + row)
    if LISTED:
        place = tl.load(places + row * row_end + i, mask=i < row_end, other=0)
        block = (place >> 2).to(tl.uint32)
    else:
        place = i
        block = i.to(tl.uint32)
    zero = block * 0
    low, high = query.to(tl.uint32), (query >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, block, zero + stream.to(tl.uint32), zero + low, zero + high, n_rounds=_ROUNDS)
    first, second = _box_muller(a, b)
    third, fourth = _box_muller(c, d)
    to = out + row * row_end
    if LISTED:
        lane = place & 3
        tl.store(
            to + i, tl.where(lane < 2, tl.where(lane == 0, first, second), tl.where(lane == 2, third, fourth)), mask=i < row_end
        )
    else:
        i = i.to(tl.int64) * 4
        tl.store(to + i, first, mask=i < row_end)
        tl.store(to + i + 1, second, mask=i + 1 < row_end)
        tl.store(to + i + 2, third, mask=i + 2 < row_end)
        tl.store(to + i + 3, fourth, mask=i + 3 < row_end)


def normals_triton(seed: int, ids: Tensor, n: int, stream: int, places: Tensor | None = None) -> Tensor:
    """(Q, n) float32, or (Q, S) of the places, on the device of the ids; the arguments are those of `noise.normals_eager`."""
    width = n if places is None else places.shape[1]
    out = torch.empty(len(ids), width, device=ids.device)
    if out.numel():
        listed = places is not None
        grid = (triton.cdiv(width if listed else triton.cdiv(width, 4), BLOCK), len(ids))
        signed = seed - 2**64 if seed >= 2**63 else seed
        where = ids if places is None else places.contiguous()
        _normals[grid](ids, where, out, signed, stream, width, LISTED=listed, BLOCK=BLOCK)
    return out
