"""The sum of maxima of `fused` on a CUDA device, in Triton. Imported only where tensors lie there.

G groups of queries that share candidates, T queries of a group, N candidates of a group, H hidden width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .few_triton import COMPILES, fastest, sums_of_few
from .fused import FEW

BUCKETS = 2  # the fastest tile is looked for anew where the amount of work has two more bits
ROW = 16  # numbers of which a row of the operands is a multiple, so that it is read in vectors

# Tiles of T queries by N candidates that go through the hidden width H_STEP at a time. A warp reads a tile's candidates straight
# into its registers, four for each thread (two in a tile of 64), and each thread meets all of the tile's queries: so none of the
# H_STEP values of a pair leaves its thread. On an H200 the first was the fastest of six at 1,000 x 1,000 and at 4,785 x 957
# (7.1e12 and 8.7e12 terms a second); narrower steps and tiles of two warps were slower.
_TILES = ((32, 64, 4), (16, 128, 8), (8, 128, 8))
TILES = [triton.Config({"T": t, "N": n, "H_STEP": step}, num_warps=1) for t, n, step in _TILES]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_of_maxima(  # type: ignore[no-untyped-def]
    candidate_hidden,
    negative_hidden,
    weight,
    out,
    t_end,
    n_end,
    h_end,
    t_row,
    n_row,
    size,
    T: tl.constexpr,
    N: tl.constexpr,
    H_STEP: tl.constexpr,
):
    """One tile of T queries by N candidates of a group; candidate_hidden (G, H, n_row), negative_hidden (G, H, t_row), out
    (G, T, N). What a row of the operands has beyond N or T is not stored.

    A step's operands are read while the step before is summed. `size` is what tiles are chosen by, and nothing else.
    """
    g = tl.program_id(2).to(tl.int64)
    i, t = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1) * T + tl.arange(0, T)
    h = tl.arange(0, H_STEP)
    of_candidate = candidate_hidden + g * h_end * n_row + h.to(tl.int64)[:, None] * n_row + i[None, :]
    of_query = negative_hidden + g * h_end * t_row + h.to(tl.int64)[:, None] * t_row + t[None, :]
    is_candidate, is_query = (i < n_row)[None, :], (t < t_row)[None, :]
    total = tl.zeros((T, N), dtype=out.dtype.element_ty)
    a = tl.load(of_candidate, mask=(h < h_end)[:, None] & is_candidate, other=0.0)
    b = tl.load(of_query, mask=(h < h_end)[:, None] & is_query, other=0.0)
    for start in range(0, h_end, H_STEP):
        of_candidate += H_STEP * n_row.to(tl.int64)
        of_query += H_STEP * t_row.to(tl.int64)
        following = (h < h_end - start - H_STEP)[:, None]
        w = tl.load(
            weight + start + h, mask=h < h_end - start, other=0.0
        )  # beyond the width it is zero, and so is what it weighs
        next_a = tl.load(of_candidate, mask=following & is_candidate, other=0.0)
        next_b = tl.load(of_query, mask=following & is_query, other=0.0)
        total += tl.sum(w[:, None, None] * tl.maximum(a[:, None, :], b[:, :, None]), axis=0)
        a, b = next_a, next_b
    entry = (g * t_end + t.to(tl.int64)[:, None]) * n_end + i[None, :]
    tl.store(out + entry, total, mask=(t[:, None] < t_end) & (i[None, :] < n_end))


_tuned = fastest(_sum_of_maxima, TILES, ["size", "h_end"])


def sum_of_maxima_triton(
    candidate_hidden: Tensor, negative_hidden: Tensor, weight: Tensor, coarse: Tensor | None = None
) -> Tensor:
    """sum_h weight[h] max(candidate_hidden[g, i, h], negative_hidden[g, t, h]) -> (G, T, N).

    candidate_hidden (G, N, H), negative_hidden (G, T, H) and weight (H,), all of one type on one device. The first call at a new
    order of size tries some tiles, and the fastest is kept for this process.

    Args:
        coarse: candidate_hidden in half precision, for few queries (`sums_of_few`).
    """
    (groups, n, hidden), queries = candidate_hidden.shape, negative_hidden.shape[1]
    if queries <= FEW:
        if coarse is not None:
            return sums_of_few(coarse, negative_hidden, weight, candidate_hidden)
        return sums_of_few(candidate_hidden, negative_hidden, weight)
    out = torch.empty(groups, queries, n, dtype=candidate_hidden.dtype, device=candidate_hidden.device)
    if not out.numel():
        return out
    of_candidates, of_queries = by_unit(candidate_hidden), by_unit(negative_hidden)
    _tuned[lambda used: (triton.cdiv(n, used["N"]), triton.cdiv(queries, used["T"]), groups)](
        of_candidates,
        of_queries,
        weight.contiguous(),
        out,
        queries,
        n,
        hidden,
        of_queries.shape[2],
        of_candidates.shape[2],
        (groups * queries * n).bit_length() // BUCKETS,
        **({} if COMPILES else TILES[0].kwargs),
    )
    return out


def by_unit(table: Tensor) -> Tensor:
    """A table (G, N, H) as it is laid out here, (G, H, N and a few more): a unit's values of all rows together, of which a warp
    reads four for each thread.

    A view that was made of such a table (`laid_out`) is taken as it lies.
    """
    groups, n, hidden = table.shape
    row = triton.cdiv(n, ROW) * ROW
    if table.stride() == (hidden * row, 1, row):
        return table.as_strided((groups, hidden, row), (hidden * row, row, 1))
    turned = table.new_empty(groups, hidden, row)
    turned[..., :n].copy_(table.mT)
    turned[..., n:].zero_()
    return turned


def laid_out(table: Tensor) -> Tensor:
    """A copy of a table (G, N, H) that `sum_of_maxima_triton` of many queries need not lay out anew at each call."""
    return by_unit(table)[..., : table.shape[1]].mT
