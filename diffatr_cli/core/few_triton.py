"""A sampler's step for few queries on a CUDA device, in Triton. Imported only where tensors lie there.

A step over one query reads tables of all candidates once each, and is done when they are read. So whole rows go through the
registers in vectors, many at a time, and what is between the tables is split over the whole device too, since torch gives a
softmax of one row to one of its processors.

Tables may be read in half precision. What that loses matters where a candidate has a share of the whole that can be seen, so
the rows of those few are read again in full.

G groups of queries that share candidates, T queries of a group, N candidates of a group, H width of a table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

SEEN = 1e-4  # share of a softmax above which a candidate's row is read in full: at most 10,000 of them
SEEN_IN_CHUNK = 1 / 256  # the same within a chunk of the mean, whose share of the whole is not known yet
SPLITS = 2048  # chunks of a mean, about: several for each processor of the device
CHUNKS = 32, 4096  # candidates of a chunk of the mean, at least and at most
JOINED = 256  # chunks that are joined at a time
BLOCK = 4096  # numbers of a chunk of a softmax
REFINED = 256  # candidates that a program looks through for those to read in full
LANES = 512  # numbers of a row that are read at a time, at most

# Rows at a time, numbers of a row at a time, warps: all of a row, or a part of more rows.
TILES = [
    triton.Config({"ROWS": rows, "H_STEP": step}, num_warps=warps)
    for rows, step, warps in ((8, 128, 1), (4, 512, 1), (8, 512, 2), (16, 512, 4), (32, 128, 4))
]
MEANS = [triton.Config({"ROWS": rows}, num_warps=warps) for rows, warps in ((4, 2), (8, 4), (16, 4), (16, 8))]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sums(table, negative_hidden, weight, out, t_end, n_end, h_end, size, ROWS: tl.constexpr, H_STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """ROWS candidates of one query; table (G, N, H), negative_hidden (G, T, H), out (G, T, N)."""
    g, t = tl.program_id(1).to(tl.int64), tl.program_id(0) % t_end  # neighbouring programs read the same rows
    i = tl.program_id(0) // t_end * ROWS + tl.arange(0, ROWS)
    rows = table + (g * n_end + i.to(tl.int64))[:, None] * h_end
    query = negative_hidden + (g * t_end + t) * h_end
    sums = tl.zeros((ROWS, H_STEP), dtype=out.dtype.element_ty)
    for start in range(0, h_end, H_STEP):
        h = start + tl.arange(0, H_STEP)
        inside = h < h_end
        a = tl.load(rows + h[None, :], mask=(i < n_end)[:, None] & inside[None, :], other=0.0).to(out.dtype.element_ty)
        b, w = tl.load(query + h, mask=inside, other=0.0), tl.load(weight + h, mask=inside, other=0.0)
        sums += w[None, :] * tl.maximum(a, b[None, :])
    tl.store(out + (g * t_end + t) * n_end + i, tl.sum(sums, axis=1), mask=i < n_end)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _safe_exp(x, high):  # type: ignore[no-untyped-def]
    """exp(x - high), 0 where both are minus infinity."""
    return tl.exp(x - tl.where(high == float("-inf"), 0.0, high))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _together(highs, totals, row, parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row's highest logit and its sum of exp(logits - highest), from those of its chunks."""
    part = tl.arange(0, PARTS)
    highest = tl.load(highs + row * parts + part, mask=part < parts, other=float("-inf"))
    high = tl.max(highest, axis=0)
    total = tl.sum(_safe_exp(highest, high) * tl.load(totals + row * parts + part, mask=part < parts, other=0.0), axis=0)
    return high, total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _parts_of_mean(  # type: ignore[no-untyped-def]
    attention,
    table,
    exact,
    means,
    highs,
    totals,
    t_end,
    n_end,
    d_end,
    parts,
    size,
    seen,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of one query, one chunk and D numbers of the rows: the sum of the rows, weighted by exp(attention - the chunk's highest).

    attention (G, T, N), table and exact (G, N, D), means (G, T, parts, D), highs and totals (G, T, parts).
    """
    g, t, part = tl.program_id(2).to(tl.int64), tl.program_id(0) % t_end, tl.program_id(0) // t_end
    query = g * t_end + t
    shown = attention + query * n_end
    all_of_it = part * CHUNK + tl.arange(0, CHUNK)
    whole = tl.load(shown + all_of_it, mask=all_of_it < n_end, other=float("-inf"))
    high = tl.max(whole, axis=0)
    total = tl.sum(_safe_exp(whole, high), axis=0)
    d = tl.program_id(1) * D + tl.arange(0, D)
    sums = tl.zeros((ROWS, D), dtype=means.dtype.element_ty)
    for start in range(0, CHUNK, ROWS):
        i = part * CHUNK + start + tl.arange(0, ROWS)
        weight = _safe_exp(tl.load(shown + i, mask=i < n_end, other=float("-inf")), high)
        entry = (g * n_end + i.to(tl.int64))[:, None] * d_end + d[None, :]
        inside = (i < n_end)[:, None] & (d < d_end)[None, :]
        rows = tl.load(table + entry, mask=inside, other=0.0).to(means.dtype.element_ty)
        if HALF:
            large = (weight > seen * total)[:, None]
            rows = tl.where(large, tl.load(exact + entry, mask=inside & large, other=0.0), rows)
        sums += weight[:, None] * rows
    tl.store(means + (query * parts + part) * d_end + d, tl.sum(sums, axis=0), mask=d < d_end)
    tl.store(highs + query * parts + part, high)  # every program of the chunk writes the same
    tl.store(totals + query * parts + part, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _whole_mean(means, highs, totals, out, parts, d_end, PARTS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """D numbers of one query's mean, out (G, T, D), from those of its chunks."""
    query = tl.program_id(1).to(tl.int64)
    high, total = _together(highs, totals, query, parts, PARTS)
    d = tl.program_id(0) * D + tl.arange(0, D)
    sums = tl.zeros((ROWS, D), dtype=out.dtype.element_ty)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)
        share = _safe_exp(tl.load(highs + query * parts + part, mask=part < parts, other=float("-inf")), high)
        entry = (query * parts + part)[:, None] * d_end + d[None, :]
        sums += share[:, None] * tl.load(means + entry, mask=(part < parts)[:, None] & (d < d_end)[None, :], other=0.0)
    tl.store(out + query * d_end + d, tl.sum(sums, axis=0) / total, mask=d < d_end)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _chunk_sums(logits, highs, totals, n_end, parts, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of BLOCK numbers of a row of logits (R, N): the highest, and the sum of exp(logits - highest); (R, parts) each."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * n_end + i, mask=i < n_end, other=float("-inf"))
    high = tl.max(x, axis=0)
    tl.store(highs + row * parts + part, high)
    tl.store(totals + row * parts + part, tl.sum(_safe_exp(x, high), axis=0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _shares(logits, highs, totals, out, n_end, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """BLOCK numbers of a row's softmax, out (R, N)."""
    row = tl.program_id(1).to(tl.int64)
    high, total = _together(highs, totals, row, parts, PARTS)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * n_end + i, mask=i < n_end, other=float("-inf"))
    tl.store(out + row * n_end + i, tl.exp(x - high) / total, mask=i < n_end)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _refine(  # type: ignore[no-untyped-def]
    sums,
    highs,
    totals,
    exact,
    negative_hidden,
    weight,
    t_end,
    n_end,
    h_end,
    parts,
    seen,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    H_STEP: tl.constexpr,
):
    """`_sums` anew from the exact table, in place, for those of BLOCK candidates whose share of the softmax is seen."""
    g, t = tl.program_id(1).to(tl.int64), tl.program_id(0) % t_end
    high, total = _together(highs, totals, g * t_end + t, parts, PARTS)
    to = sums + (g * t_end + t) * n_end
    query = negative_hidden + (g * t_end + t) * h_end
    for first in range(0, BLOCK, ROWS):
        i = tl.program_id(0) // t_end * BLOCK + first + tl.arange(0, ROWS)
        large = tl.exp(tl.load(to + i, mask=i < n_end, other=float("-inf")) - high) > seen * total
        if tl.max(large.to(tl.int32), axis=0) > 0:
            rows = exact + (g * n_end + i.to(tl.int64))[:, None] * h_end
            found = tl.zeros((ROWS, H_STEP), dtype=sums.dtype.element_ty)
            for start in range(0, h_end, H_STEP):
                h = start + tl.arange(0, H_STEP)
                a = tl.load(rows + h[None, :], mask=large[:, None] & (h < h_end)[None, :], other=0.0)
                b, w = tl.load(query + h, mask=h < h_end, other=0.0), tl.load(weight + h, mask=h < h_end, other=0.0)
                found += w[None, :] * tl.maximum(a, b[None, :])
            tl.store(to + i, tl.sum(found, axis=1), mask=large)


COMPILES = isinstance(_sums, triton.runtime.JITFunction)
"""Whether Triton compiles here. Its interpreter (TRITON_INTERPRET=1) takes the first tile, since it can time none."""


def fastest(kernel: Any, tiles: list[Any], key: list[str]) -> Any:
    """The kernel in the fastest of these tiles, looked for at the first call with new values of the key, in some milliseconds."""
    return triton.autotune(tiles, key=key, do_bench=partial(do_bench, warmup=2, rep=8))(kernel) if COMPILES else kernel


_tuned_sums = fastest(_sums, TILES, ["size", "h_end", "t_end"])
_tuned_means = fastest(_parts_of_mean, MEANS, ["size", "d_end", "t_end"])


def _first(tiles: list[Any]) -> dict[str, int]:
    return {} if COMPILES else tiles[0].kwargs


def _power(n: int) -> int:
    """The smallest power of two that is n or more."""
    return 1 << max(n - 1, 0).bit_length()


def sums_of_few(table: Tensor, negative_hidden: Tensor, weight: Tensor, exact: Tensor | None = None) -> Tensor:
    """`kernels_triton.sum_of_maxima_triton` for few queries, which takes what reading the table takes.

    Args:
        table: (G, N, H), in half precision if `exact` is given.
        exact: the same in the type of the others. From it are the sums of candidates whose share of the softmax of the sums
            is above `SEEN`.
    """
    (groups, n, hidden), queries = table.shape, negative_hidden.shape[1]
    table, negative_hidden, weight = table.contiguous(), negative_hidden.contiguous(), weight.contiguous()
    out = torch.empty(groups, queries, n, dtype=weight.dtype, device=table.device)
    if not out.numel():
        return out
    size = n.bit_length() // 2 * 2 + (table.dtype == torch.float16)
    _tuned_sums[lambda used: (triton.cdiv(n, used["ROWS"]) * queries, groups)](
        table, negative_hidden, weight, out, queries, n, hidden, size, **_first(TILES)
    )
    if exact is not None:
        highs, totals = _chunks(out.view(-1, n))
        grid = triton.cdiv(n, REFINED) * queries, groups
        places = queries, n, hidden, highs.shape[1]
        _refine[grid](
            *(out, highs, totals, exact.contiguous(), negative_hidden, weight),
            *places,
            SEEN,
            PARTS=_power(highs.shape[1]),
            BLOCK=REFINED,
            ROWS=8,
            H_STEP=128,
        )
    return out


def mean_of_few(attention: Tensor, table: Tensor, exact: Tensor | None = None) -> Tensor:
    """softmax(attention) @ table for few queries, (G, T, N), (G, N, D) -> (G, T, D), which takes what reading the table takes.

    Args:
        table: in half precision if `exact` is given.
        exact: the same in the type of the attention. From it are the rows with large weights.
    """
    (groups, queries, n), dim = attention.shape, table.shape[2]
    chunk = min(max(_power(triton.cdiv(n, SPLITS)), CHUNKS[0]), CHUNKS[1])
    parts, lanes = triton.cdiv(n, chunk), min(_power(dim), LANES)
    attention, table = attention.contiguous(), table.contiguous()
    means = attention.new_empty(groups, queries, parts, dim)
    highs, totals = attention.new_empty(2, groups, queries, parts)
    half = exact is not None
    _tuned_means[parts * queries, triton.cdiv(dim, lanes), groups](
        *(attention, table, table if exact is None else exact.contiguous(), means, highs, totals),
        *(queries, n, dim, parts),
        n.bit_length() // 2 * 2 + half,
        SEEN_IN_CHUNK,
        CHUNK=chunk,
        D=lanes,
        HALF=half,
        **_first(MEANS),
    )
    out = attention.new_empty(groups, queries, dim)
    _whole_mean[triton.cdiv(dim, 16), groups * queries](
        means, highs, totals, out, parts, dim, PARTS=_power(parts), ROWS=JOINED, D=16
    )
    return out


def softmax_of_few(logits: Tensor) -> Tensor:
    """softmax over the last dimension, (..., N), of few rows that are long."""
    rows = logits.contiguous().view(-1, logits.shape[-1])
    highs, totals = _chunks(rows)
    out = torch.empty_like(rows)
    parts, n = highs.shape[1], rows.shape[1]
    _shares[parts, len(rows)](rows, highs, totals, out, n, parts, PARTS=_power(parts), BLOCK=BLOCK)
    return out.view(logits.shape)


def _chunks(rows: Tensor) -> Tensor:
    """The highest of each chunk of rows (R, N), and its sum of exp(rows - highest): (2, R, parts)."""
    parts = triton.cdiv(rows.shape[1], BLOCK)
    found = rows.new_empty(2, len(rows), parts)
    _chunk_sums[parts, len(rows)](rows, found[0], found[1], rows.shape[1], parts, BLOCK=BLOCK)
    return found
