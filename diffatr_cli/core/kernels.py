"""`fused` on the CPU, in numba.

The decoder's sum of maxima, sum_h weight[h] max(candidate_hidden[i, h], negative_hidden[t, h]); for training the gradients of
the decoder, sum_h weight[h] relu(candidate_hidden[i, h] + hidden[t, h]); and the attention's mean, softmax(attention) @ values.
G groups of queries that share candidates, T queries of a group, N candidates of a group, H hidden width.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .compiled import compiled
from .threads import parallel_for

CACHED_BYTES = 2**18  # of rows of candidate_hidden that stay in a core's second-level cache while every query passes over them
QUERIES = 256  # a block
SMALL = 2**22  # maxima below which starting threads costs more than it saves
MANY = 2**18  # the same of attention logits
DENSE = 4  # one candidate in so many may count before a matrix product is faster
TILE = 64  # queries, and candidates, that are gone through together
LANES = 16  # logits whose maximum is taken together


def sum_of_maxima_numba(candidate_hidden: Tensor, negative_hidden: Tensor, weight: Tensor) -> Tensor:
    """sum_h weight[h] max(candidate_hidden[g, i, h], negative_hidden[g, t, h]) -> (G, T, N), on as many threads as torch uses.

    candidate_hidden (G, N, H), negative_hidden (G, T, H) and weight (H,), all float32 or all float64.
    """
    (groups, n, hidden), queries = candidate_hidden.shape, negative_hidden.shape[1]
    out = torch.empty(groups, queries, n, dtype=candidate_hidden.dtype)
    arrays = candidate_hidden.contiguous().numpy(), negative_hidden.contiguous().numpy(), weight.contiguous().numpy(), out.numpy()
    rows = max(4, CACHED_BYTES // (hidden * candidate_hidden.element_size()) // 4 * 4)
    blocks = groups * -(-n // rows) * -(-queries // QUERIES)
    _share_out(lambda start, stop: _sum_of_maxima(*arrays, rows, start, stop), blocks, out.numel() * hidden > SMALL)
    return out


def maxima_of_one(table: Tensor, negative_hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out[i] = sum_h weight[h] max(table[i, h], negative_hidden[h]), for one query, on this thread.

    table (N, H), of any type that is exact in that of the others; negative_hidden (H,), weight (H,), out (N,), contiguous.
    """
    if len(table):
        _row(table.numpy(), negative_hidden.numpy(), weight.numpy(), out.numpy())


def decode_gradients_numba(
    candidate_hidden: Tensor, hidden: Tensor, weight: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum_h weight[h] relu(candidate_hidden[g, i, h] + hidden[g, t, h]) for its inputs, from the sum's (G, T, N).

    All float32 or all float64; shapes as the inputs'.
    """
    outs = torch.zeros_like(candidate_hidden), torch.zeros_like(hidden), torch.zeros_like(weight)
    arrays = [tensor.contiguous().numpy() for tensor in (candidate_hidden, hidden, weight, gradient)] + [
        out.numpy() for out in outs
    ]
    # Each thread takes some of the H, whose gradients nothing else adds to.
    _share_out(lambda start, stop: _gradients(*arrays, start, stop), len(weight), gradient.numel() * len(weight) > SMALL)
    return outs


def mean_numba(attention: Tensor, values: Tensor) -> Tensor:
    """softmax(attention) @ values for attention (G, T, N) and values (G, N, H) -> (G, T, H), from the entries that count.

    The smallest weights are left out, which together are less than what rounding loses of the largest. Queries for which more
    than one candidate in DENSE counts are done by torch, as a matrix product.
    """
    groups, queries, n = attention.shape
    out = torch.empty(groups, queries, values.shape[2], dtype=values.dtype)
    dense = torch.empty(groups, queries, dtype=torch.bool)
    tensors = attention.contiguous().view(-1, n), values.contiguous(), out.view(-1, out.shape[2]), dense.view(-1)
    arrays = [tensor.numpy() for tensor in tensors]
    margin = arrays[0].dtype.type(math.log(n / torch.finfo(attention.dtype).eps))
    _share_out(lambda start, stop: _mean(*arrays, margin, start, stop), groups * queries, attention.numel() > MANY)
    if dense.all():
        return attention.softmax(2) @ values
    for g in dense.any(1).nonzero()[:, 0].tolist():
        out[g, dense[g]] = attention[g, dense[g]].softmax(1) @ values[g]
    return out


def _share_out(work: Callable[[int, int], None], count: int, worth_it: bool) -> None:
    """Do `work(start, stop)` for all of 0..count, on as many threads as torch uses if that is worth it."""
    parts = max(1, min(count, 8 * torch.get_num_threads()) if worth_it else 1)  # several a thread, in case one is slowed
    ends = [count * part // parts for part in range(parts + 1)]
    parallel_for(lambda span: work(*span), list(pairwise(ends)))


def jit(function: Callable[..., Any]) -> Any:
    """`compiled`, with sums in any order."""
    return compiled(function, fastmath=True)


@jit
def _block_of_nine(a: Any, b: Any, weight: Any, out: Any) -> None:
    """out[t, i] = sum_h weight[h] max(a[i, h], b[t, h]), in tiles of 3 queries by 3 candidates: 9 sums and their operands fit
    into 16 vector registers.

    A tile that reaches over the edge repeats the last row, which writes the same value again.
    """
    n, queries, hidden = len(a), len(b), len(weight)
    zero = weight.dtype.type(0)
    for t in range(0, queries, 3):
        t1, t2 = min(t + 1, queries - 1), min(t + 2, queries - 1)
        b0, b1, b2 = b[t], b[t1], b[t2]
        for i in range(0, n, 3):
            i1, i2 = min(i + 1, n - 1), min(i + 2, n - 1)
            a0, a1, a2 = a[i], a[i1], a[i2]
            s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = zero
            for h in range(hidden):
                w, x0, x1, x2 = weight[h], a0[h], a1[h], a2[h]
                y = b0[h]
                s00, s01, s02 = s00 + w * max(x0, y), s01 + w * max(x1, y), s02 + w * max(x2, y)
                y = b1[h]
                s10, s11, s12 = s10 + w * max(x0, y), s11 + w * max(x1, y), s12 + w * max(x2, y)
                y = b2[h]
                s20, s21, s22 = s20 + w * max(x0, y), s21 + w * max(x1, y), s22 + w * max(x2, y)
            out[t, i], out[t, i1], out[t, i2] = s00, s01, s02
            out[t1, i], out[t1, i1], out[t1, i2] = s10, s11, s12
            out[t2, i], out[t2, i1], out[t2, i2] = s20, s21, s22


@jit
def _block_of_sixteen(a: Any, b: Any, weight: Any, out: Any) -> None:
    """`_block_of_nine` in tiles of 4 by 4, for processors with 32 vector registers."""
    n, queries, hidden = len(a), len(b), len(weight)
    zero = weight.dtype.type(0)
    for t in range(0, queries, 4):
        t1, t2, t3 = min(t + 1, queries - 1), min(t + 2, queries - 1), min(t + 3, queries - 1)
        b0, b1, b2, b3 = b[t], b[t1], b[t2], b[t3]
        for i in range(0, n, 4):
            i1, i2, i3 = min(i + 1, n - 1), min(i + 2, n - 1), min(i + 3, n - 1)
            a0, a1, a2, a3 = a[i], a[i1], a[i2], a[i3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
            for h in range(hidden):
                w, x0, x1, x2, x3 = weight[h], a0[h], a1[h], a2[h], a3[h]
                y = b0[h]
                s00, s01, s02, s03 = s00 + w * max(x0, y), s01 + w * max(x1, y), s02 + w * max(x2, y), s03 + w * max(x3, y)
                y = b1[h]
                s10, s11, s12, s13 = s10 + w * max(x0, y), s11 + w * max(x1, y), s12 + w * max(x2, y), s13 + w * max(x3, y)
                y = b2[h]
                s20, s21, s22, s23 = s20 + w * max(x0, y), s21 + w * max(x1, y), s22 + w * max(x2, y), s23 + w * max(x3, y)
                y = b3[h]
                s30, s31, s32, s33 = s30 + w * max(x0, y), s31 + w * max(x1, y), s32 + w * max(x2, y), s33 + w * max(x3, y)
            out[t, i], out[t, i1], out[t, i2], out[t, i3] = s00, s01, s02, s03
            out[t1, i], out[t1, i1], out[t1, i2], out[t1, i3] = s10, s11, s12, s13
            out[t2, i], out[t2, i1], out[t2, i2], out[t2, i3] = s20, s21, s22, s23
            out[t3, i], out[t3, i1], out[t3, i2], out[t3, i3] = s30, s31, s32, s33


def many_registers() -> bool:
    """Whether numba compiles for 32 vector registers: x86 with AVX-512, and 64-bit ARM.

    It compiles for this processor, unless NUMBA_CPU_FEATURES asks for another.
    """
    import llvmlite.binding as llvm

    told: str | None = getattr(numba.config, "CPU_FEATURES", None)
    if told is not None:
        return "+avx512f" in told.split(",")
    return bool(llvm.get_host_cpu_features().get("avx512f")) or platform.machine().lower() in ("aarch64", "arm64")


_block = _block_of_sixteen if many_registers() else _block_of_nine


@jit
def _row(a: Any, b: Any, weight: Any, out: Any) -> None:
    """`_block` for a single query b (H,), out (n,): tiles of 8 candidates, whose a (n, H) may be integers."""
    n, last, real, zero = len(a), len(a) - 1, weight.dtype.type, weight.dtype.type(0)
    for i in range(0, n, 8):
        i1, i2, i3, i4 = min(i + 1, last), min(i + 2, last), min(i + 3, last), min(i + 4, last)
        i5, i6, i7 = min(i + 5, last), min(i + 6, last), min(i + 7, last)
        a0, a1, a2, a3, a4, a5, a6, a7 = a[i], a[i1], a[i2], a[i3], a[i4], a[i5], a[i6], a[i7]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for h in range(len(weight)):
            w, y = weight[h], b[h]
            s0, s1 = s0 + w * max(real(a0[h]), y), s1 + w * max(real(a1[h]), y)
            s2, s3 = s2 + w * max(real(a2[h]), y), s3 + w * max(real(a3[h]), y)
            s4, s5 = s4 + w * max(real(a4[h]), y), s5 + w * max(real(a5[h]), y)
            s6, s7 = s6 + w * max(real(a6[h]), y), s7 + w * max(real(a7[h]), y)
        out[i], out[i1], out[i2], out[i3], out[i4], out[i5], out[i6], out[i7] = s0, s1, s2, s3, s4, s5, s6, s7


@jit
def _sum_of_maxima(candidate_hidden: Any, negative_hidden: Any, weight: Any, out: Any, rows: int, start: int, stop: int) -> None:
    """The blocks start..stop, of `rows` rows of candidate_hidden by QUERIES queries each, counted through all groups."""
    down, across = -(-candidate_hidden.shape[1] // rows), -(-negative_hidden.shape[1] // QUERIES)
    for block in range(start, stop):
        g, i, t = block // (down * across), block // across % down * rows, block % across * QUERIES
        if negative_hidden.shape[1] == 1:
            _row(candidate_hidden[g, i : i + rows], negative_hidden[g, 0], weight, out[g, 0, i : i + rows])
        else:
            _block(
                candidate_hidden[g, i : i + rows],
                negative_hidden[g, t : t + QUERIES],
                weight,
                out[g, t : t + QUERIES, i : i + rows],
            )


@jit
def _gradients(
    candidate_hidden: Any,
    hidden: Any,
    weight: Any,
    gradient: Any,
    d_candidate_hidden: Any,
    d_hidden: Any,
    d_weight: Any,
    start: int,
    stop: int,
) -> None:
    """`decode_gradients_numba` for start..stop of the H, added to zeros."""
    w, d_w, zero = weight[start:stop], d_weight[start:stop], weight.dtype.type(0)
    for g in range(len(candidate_hidden)):
        for t in range(hidden.shape[1]):
            b, d_b = hidden[g, t, start:stop], d_hidden[g, t, start:stop]
            for i in range(candidate_hidden.shape[1]):
                a, d_a, slope = candidate_hidden[g, i, start:stop], d_candidate_hidden[g, i, start:stop], gradient[g, t, i]
                for h in range(len(w)):
                    value = a[h] + b[h]
                    passed = slope * w[h] if value > zero else zero
                    d_a[h] += passed
                    d_b[h] += passed
                    d_w[h] += slope * max(value, zero)


@jit
def _heaviest(row: Any, margin: Any, peaks: Any, where: Any, weights: Any) -> int:
    """The entries of a row of attention within `margin` of the largest: their places, ascending, and their softmax.

    Returns:
        How many there are, or -1 for more than `where` holds.
    """
    n = len(row)
    for j in range(n // LANES):
        peak = row[j * LANES]
        for i in range(1, LANES):
            peak = max(peak, row[j * LANES + i])
        peaks[j] = peak
    if n % LANES:
        peaks[n // LANES] = row[n // LANES * LANES :].max()
    top = peaks.max()
    count = 0
    for j in range(len(peaks)):
        if peaks[j] >= top - margin:
            if count + LANES > len(where):
                return -1
            for i in range(j * LANES, min(j * LANES + LANES, n)):
                if row[i] >= top - margin:
                    where[count], weights[count] = i, row[i] - top
                    count += 1
    total = weights.dtype.type(0)
    for c in range(count):
        weights[c] = math.exp(weights[c])
        total += weights[c]
    for c in range(count):
        weights[c] /= total
    return count


@jit
def _mean(attention: Any, values: Any, out: Any, dense: Any, margin: Any, start: int, stop: int) -> None:
    """Rows start..stop of attention (G T, N), out (G T, H) and dense (G T,), for values (G, N, H).

    A row that a matrix product does faster is marked dense. For the others the entries that count are found, TILE rows at a
    time, then summed TILE candidates after TILE candidates, so that these stay in the second-level cache beside the sums.
    """
    n, hidden, queries = attention.shape[1], values.shape[2], len(attention) // len(values)
    rows = min(TILE, stop - start)
    peaks = np.empty(-(-n // LANES), attention.dtype)
    where, weights = np.empty((rows, n // DENSE), np.int64), np.empty((rows, n // DENSE), out.dtype)
    counts, done = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for tile in range(start, stop, TILE):
        rows = min(TILE, stop - tile)
        for r in range(rows):
            counts[r], done[r] = _heaviest(attention[tile + r], margin, peaks, where[r], weights[r]), 0
            dense[tile + r] = counts[r] < 0
            out[tile + r] = 0
        for end in range(TILE, n + TILE, TILE):
            for r in range(rows):
                while done[r] < counts[r] and where[r, done[r]] < end:
                    value = values[(tile + r) // queries, where[r, done[r]]]
                    weight, mean = weights[r, done[r]], out[tile + r]
                    for h in range(hidden):
                        mean[h] += weight * value[h]
                    done[r] += 1
