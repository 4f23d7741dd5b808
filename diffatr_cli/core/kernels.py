"""The fused decoder term of `factored` on the CPU, in numba: sum_h weight[h] max(table[i, h], floor[t, h]).

G groups of queries that share candidates, T queries of a group, N candidates of a group, H hidden width.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch
from torch import Tensor

CACHED_BYTES = 2**18  # of table rows that stay in a core's second-level cache while every query passes over them
QUERIES = 256  # a block
SMALL = 2**22  # maxima below which starting threads costs more than it saves


def decode_numba(table: Tensor, floor: Tensor, weight: Tensor) -> Tensor:
    """The term for table (G, N, H), floor (G, T, H) and weight (H,) -> (G, T, N), on as many threads as torch uses.

    All float32 or all float64.
    """
    (groups, n, hidden), queries = table.shape, floor.shape[1]
    out = torch.empty(groups, queries, n, dtype=table.dtype)
    arrays = table.contiguous().numpy(), floor.contiguous().numpy(), weight.contiguous().numpy(), out.numpy()
    rows = max(4, CACHED_BYTES // (hidden * table.element_size()) // 4 * 4)
    blocks = groups * -(-n // rows) * -(-queries // QUERIES)
    threads = min(torch.get_num_threads(), blocks) if out.numel() * hidden > SMALL else 1
    if threads <= 1:
        _decode(*arrays, rows, 0, blocks)
        return out
    parts = min(blocks, 8 * threads)  # several a thread, in case something else slows one of them
    ends = [blocks * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(threads) as pool:  # own threads: numba's parallel=True aborts when two threads enter it at once
        list(pool.map(lambda part: _decode(*arrays, rows, ends[part], ends[part + 1]), range(parts)))
    return out


def jit(function: Callable[..., None]) -> Any:
    """Compile for this processor on the first call, without the GIL, and remember it on disk.

    numba keeps the compiled code beside this file, or in the user's cache folder if that place is read-only; where neither
    can be written it compiles anew in each process.
    """
    try:
        return numba.njit(function, fastmath=True, nogil=True, cache=True)
    except RuntimeError:
        return numba.njit(function, fastmath=True, nogil=True)


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
    """Whether this processor has 32 vector registers: x86 with AVX-512, and 64-bit ARM."""
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512f")) or platform.machine().lower() in ("aarch64", "arm64")


_block = _block_of_sixteen if many_registers() else _block_of_nine


@jit
def _row(a: Any, b: Any, weight: Any, out: Any) -> None:
    """`_block` for a single query b (H,), out (n,): tiles of 8 candidates."""
    n, last, zero = len(a), len(a) - 1, weight.dtype.type(0)
    for i in range(0, n, 8):
        i1, i2, i3, i4 = min(i + 1, last), min(i + 2, last), min(i + 3, last), min(i + 4, last)
        i5, i6, i7 = min(i + 5, last), min(i + 6, last), min(i + 7, last)
        a0, a1, a2, a3, a4, a5, a6, a7 = a[i], a[i1], a[i2], a[i3], a[i4], a[i5], a[i6], a[i7]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for h in range(len(weight)):
            w, y = weight[h], b[h]
            s0, s1, s2, s3 = s0 + w * max(a0[h], y), s1 + w * max(a1[h], y), s2 + w * max(a2[h], y), s3 + w * max(a3[h], y)
            s4, s5, s6, s7 = s4 + w * max(a4[h], y), s5 + w * max(a5[h], y), s6 + w * max(a6[h], y), s7 + w * max(a7[h], y)
        out[i], out[i1], out[i2], out[i3], out[i4], out[i5], out[i6], out[i7] = s0, s1, s2, s3, s4, s5, s6, s7


@jit
def _decode(table: Any, floor: Any, weight: Any, out: Any, rows: int, start: int, stop: int) -> None:
    """The blocks start..stop, of `rows` table rows by QUERIES queries each, counted through all groups."""
    down, across = -(-table.shape[1] // rows), -(-floor.shape[1] // QUERIES)
    for block in range(start, stop):
        g, i, t = block // (down * across), block // across % down * rows, block % across * QUERIES
        if floor.shape[1] == 1:
            _row(table[g, i : i + rows], floor[g, 0], weight, out[g, 0, i : i + rows])
        else:
            _block(table[g, i : i + rows], floor[g, t : t + QUERIES], weight, out[g, t : t + QUERIES, i : i + rows])
