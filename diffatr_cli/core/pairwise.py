"""The decoder's hidden layer over all pairs of query and candidate while training: its sum and gradients, no array of pairs.

G groups of queries that share candidates, T queries of a group, N candidates of a group, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 2**16  # hidden values below which loading numba takes longer than the work


def pairwise_decode(table: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """sum_h weight[h] relu(table[g, i, h] + hidden[g, t, h]), differentiable: (G, N, H), (G, T, H), (H,) -> (G, T, N).

    On the CPU compiled, in float32 whatever autocast says: the (G, T, N, H) values are never written down. To go through them
    once for each operation and its gradient took a third of a training step.
    """
    if table.device.type != "cpu" or weight.dtype != torch.float32 or table.numel() * hidden.shape[1] <= SMALL:
        return (table[:, None] + hidden[:, :, None]).relu_() @ weight
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _PairwiseDecode.apply(table.float(), hidden.float(), weight)  # type: ignore[no-untyped-call]
    return result


class _PairwiseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        from .kernels import decode_numba

        ctx.save_for_backward(table, hidden, weight)
        return decode_numba(table, -hidden, weight).add_((hidden @ weight)[..., None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from .kernels import decode_gradients_numba

        table, hidden, weight = ctx.saved_tensors
        return decode_gradients_numba(table, hidden, weight, *gradients)
