"""The sum of maxima of `fused` on a CUDA device, in Triton. Imported only where tensors lie there.

G groups of queries that share candidates, T queries of a group, N candidates of a group, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW = 4  # queries up to which a tile is one query high
BUCKETS = 2  # the fastest tile is looked for anew where the amount of work has two more bits

# Tiles of T queries by N candidates that go through the hidden width H_STEP at a time. What a thread holds of one, its sums and a
# step's operands, fits into its registers; the operands come from shared memory, where a step puts them once for all threads.
_ONE = {"T": 1, "N": 128, "H_STEP": 32}
_MANY = {"T": 16, "N": 64, "H_STEP": 8}
TILES = [
    triton.Config({"T": t, "N": n, "H_STEP": step}, num_warps=warps)
    for t, n, step, warps in (
        (1, 128, 32, 4),
        (1, 256, 16, 8),
        (1, 256, 32, 8),
        (16, 64, 8, 4),
        (32, 64, 8, 4),
        (32, 128, 8, 8),
        (64, 64, 4, 8),
        (64, 64, 8, 4),
        (64, 128, 4, 8),
    )
]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_of_maxima(  # type: ignore[no-untyped-def]
    candidate_hidden,
    negative_hidden,
    weight,
    out,
    t_end,
    n_end,
    h_end,
    few,
    size,
    T: tl.constexpr,
    N: tl.constexpr,
    H_STEP: tl.constexpr,
):
    """One tile of T queries by N candidates of a group; candidate_hidden (G, N, H), negative_hidden (G, T, H), out (G, T, N).

    Both operands are read as tables of H_STEP by N or T, whose rows are contiguous in memory, so in vectors. `few` and `size` are
    what tiles are chosen by, and nothing else.
    """
    g = tl.program_id(2).to(tl.int64)
    i, t = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1) * T + tl.arange(0, T)
    of_candidate = candidate_hidden + (g * n_end + i.to(tl.int64)[None, :]) * h_end
    of_query = negative_hidden + (g * t_end + t.to(tl.int64)[None, :]) * h_end
    is_candidate, is_query = i[None, :] < n_end, t[None, :] < t_end
    total = tl.zeros((T, N), dtype=out.dtype.element_ty)
    for start in range(0, h_end, H_STEP):
        h = start + tl.arange(0, H_STEP)
        inside = h < h_end
        a = tl.load(of_candidate + h[:, None], mask=inside[:, None] & is_candidate, other=0.0)
        b = tl.load(of_query + h[:, None], mask=inside[:, None] & is_query, other=0.0)
        w = tl.load(weight + h, mask=inside, other=0.0)  # beyond the width it is zero, and so is what it weighs
        total += tl.sum(w[:, None, None] * tl.maximum(a[:, None, :], b[:, :, None]), axis=0)
    entry = (g * t_end + t.to(tl.int64)[:, None]) * n_end + i[None, :]
    tl.store(out + entry, total, mask=(t[:, None] < t_end) & (i[None, :] < n_end))


def _suits(configs: list[Any], named: dict[str, Any], **_: Any) -> list[Any]:
    """The tiles to try: of one query where there are few, of many where there are many."""
    return [config for config in configs if (config.kwargs["T"] == 1) == bool(named["few"])]


COMPILES = isinstance(_sum_of_maxima, triton.runtime.JITFunction)
"""Whether Triton compiles here. Its interpreter (TRITON_INTERPRET=1) takes one tile, since it can time none."""

_tuned = (
    triton.autotune(TILES, key=["few", "size", "h_end"], prune_configs_by={"early_config_prune": _suits})(_sum_of_maxima)
    if COMPILES
    else _sum_of_maxima
)


def sum_of_maxima_triton(candidate_hidden: Tensor, negative_hidden: Tensor, weight: Tensor) -> Tensor:
    """sum_h weight[h] max(candidate_hidden[g, i, h], negative_hidden[g, t, h]) -> (G, T, N).

    candidate_hidden (G, N, H), negative_hidden (G, T, H) and weight (H,), all of one type on one device. The first call at a new
    order of size tries some tiles, and the fastest is kept for this process.
    """
    (groups, n, hidden), queries = candidate_hidden.shape, negative_hidden.shape[1]
    out = torch.empty(groups, queries, n, dtype=candidate_hidden.dtype, device=candidate_hidden.device)
    if not out.numel():
        return out
    few = queries <= FEW
    tile = {} if COMPILES else (_ONE if few else _MANY)
    _tuned[lambda used: (triton.cdiv(n, used["N"]), triton.cdiv(queries, used["T"]), groups)](
        candidate_hidden.contiguous(),
        negative_hidden.contiguous(),
        weight.contiguous(),
        out,
        queries,
        n,
        hidden,
        int(few),
        (groups * queries * n).bit_length() // BUCKETS,
        **tile,
    )
    return out
