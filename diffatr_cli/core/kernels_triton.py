"""The sum of maxima of `fused` on a CUDA device, in Triton. Imported only where tensors lie there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_of_maxima(candidate_hidden, negative_hidden, weight, out, t_end, n_end, h_end, T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tile of T queries by N candidates of a group; candidate_hidden (G, H, N), negative_hidden (G, H, T)."""
    g = tl.program_id(2).to(tl.int64)
    t, i = tl.program_id(1) * T + tl.arange(0, T), tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros((T, N), dtype=out.dtype.element_ty)
    for h in range(h_end):
        a = tl.load(candidate_hidden + (g * h_end + h) * n_end + i, mask=i < n_end, other=0.0)
        b = tl.load(negative_hidden + (g * h_end + h) * t_end + t, mask=t < t_end, other=0.0)
        total += tl.load(weight + h) * tl.maximum(a[None], b[:, None])
    entry = (g * t_end + t[:, None]) * n_end + i[None]
    tl.store(out + entry, total, mask=(t[:, None] < t_end) & (i[None] < n_end))


def sum_of_maxima_triton(candidate_hidden: Tensor, negative_hidden: Tensor, weight: Tensor) -> Tensor:
    """sum_h weight[h] max(candidate_hidden[g, i, h], negative_hidden[g, t, h]) -> (G, T, N).

    candidate_hidden (G, N, H), negative_hidden (G, T, H) and weight (H,), all of one type on one device.
    """
    (groups, n, hidden), queries = candidate_hidden.shape, negative_hidden.shape[1]
    out = torch.empty(groups, queries, n, dtype=candidate_hidden.dtype, device=candidate_hidden.device)
    tile = {"T": 32, "N": 128} if queries > 1 else {"T": 1, "N": 256}
    grid = (triton.cdiv(n, tile["N"]), triton.cdiv(queries, tile["T"]), groups)
    _sum_of_maxima[grid](
        candidate_hidden.mT.contiguous(), negative_hidden.mT.contiguous(), weight.contiguous(), out, queries, n, hidden, **tile
    )
    return out
