"""The sums over all pairs of query and candidate, each done in the way that suits the device, the type and the amount.

numba on the CPU (`kernels`), Triton on a CUDA device (`kernels_triton`, `few_triton`), and plain torch ("eager") everywhere
else: on other devices, in other types, and for work so small that loading a compiler takes longer.

G groups of queries that share candidates, T queries of a group, N candidates of a group, D embedding size, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 2**20  # multiply-adds of one call up to which loading numba takes longer than the work
SMALL_TRAINING = 2**16  # the same of a training step, which thousands follow
EAGER_ENTRIES = 2**24  # of the (G, T, N, H) array that the eager way holds at a time
FEW = 4  # queries that a CUDA device is done with when it has read the tables of candidates
LONG = 2**13  # candidates from which on it pays to share one query's softmax out over a CUDA device
COARSE = 2**24  # entries of a table that does not fit into a CUDA device's cache, and is read in half the time in half precision

Maxima = Callable[..., Tensor]


def decode(candidate_hidden: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, coarse: Tensor | None = None) -> Tensor:
    """sum_h weight[h] relu(candidate_hidden[g, i, h] + hidden[g, t, h]) + bias -> (G, T, N), differentiable.

    relu(a + b) = max(a, -b) + b, and the second term does not depend on the candidate. So the compiled ways take one maximum
    and one multiply-add for each h, and never write down the (G, T, N, H) values. They compute in the type of `weight`, whatever
    autocast says.

    Args:
        candidate_hidden: (G, N, H).
        hidden: (G, T, H).
        weight: (H,).
        bias: (1,).
        coarse: candidate_hidden in half precision, where `takes_coarse`. Candidates that matter to the softmax of the result, and
            that alone, are read in full.
    """
    differentiated = _differentiated(candidate_hidden, hidden, weight, bias)
    maxima = _compiled_maxima(candidate_hidden, hidden, weight, differentiated)
    if maxima is None:
        block = max(1, EAGER_ENTRIES // max(1, hidden.numel()))  # candidates
        parts = [(part[:, None] + hidden[:, :, None]).relu_() @ weight for part in torch.split(candidate_hidden, block, 1)]
        return torch.cat(parts, 2) + bias
    if coarse is not None:
        maxima = partial(maxima, coarse=coarse)
    with torch.autocast(candidate_hidden.device.type, enabled=False):
        inputs = candidate_hidden.to(weight.dtype), hidden.to(weight.dtype), weight, bias
        result: Tensor = _Decode.apply(maxima, *inputs) if differentiated else _decode(maxima, *inputs)  # type: ignore[no-untyped-call]
    return result


def attended_mean(attention: Tensor, values: Tensor, coarse: Tensor | None = None) -> Tensor:
    """softmax(attention) @ values: (G, T, N), (G, N, D) -> (G, T, D), differentiable.

    Attention is peaked as a rule: unscaled, as the paper prints it, some two candidates in a hundred matter. The way compiled for
    the CPU sums over those alone.

    Args:
        coarse: values in half precision, where `takes_coarse`. Those with large weights are read in full.
    """
    if attention.shape[1] <= FEW and _shared_out(attention, values):
        from .few_triton import mean_of_few

        return mean_of_few(attention, values) if coarse is None else mean_of_few(attention, coarse, values)
    work = attention.numel() * values.shape[2]
    if work <= SMALL or _differentiated(attention, values) or not _numba_takes(attention, values):
        return attention.softmax(2) @ values
    from .kernels import mean_numba

    return mean_numba(attention, values)


def distribution(logits: Tensor) -> Tensor:
    """softmax over the last dimension of (G, T, N), differentiable."""
    if logits.shape[0] * logits.shape[1] <= FEW and _shared_out(logits):
        from .few_triton import softmax_of_few

        return softmax_of_few(logits)
    return logits.softmax(2)


def laid_out(candidate_hidden: Tensor) -> Tensor:
    """A copy of the table (G, N, H) in the order in memory that `decode` of many queries takes on a CUDA device, or itself."""
    if not _on_triton(candidate_hidden) or _differentiated(candidate_hidden):
        return candidate_hidden
    from .kernels_triton import laid_out

    return laid_out(candidate_hidden)


def takes_coarse(table: Tensor, queries: int) -> bool:
    """Whether `decode` and `attended_mean` of this many queries are faster with tables (G, N, H) in half precision beside it."""
    return table.numel() >= COARSE and queries <= FEW and table.dtype == torch.float32 and _on_triton(table)


def _shared_out(scores: Tensor, *others: Tensor) -> bool:
    """Whether (G, T, N) scores are so long that a CUDA device is to share each query's out, and can."""
    return scores.shape[2] >= LONG and not _differentiated(scores, *others) and _on_triton(scores, *others)


def _on_triton(*tensors: Tensor) -> bool:
    """Whether these lie on a CUDA device, in one type, and there is Triton for it."""
    if any(each.device.type != "cuda" or each.dtype != tensors[0].dtype for each in tensors):
        return False
    return tensors[0].dtype in (torch.float32, torch.float64) and _has_triton()


@cache
def _has_triton() -> bool:
    """Whether torch came with Triton."""
    try:
        from . import few_triton  # noqa: F401
    except ImportError:
        return False
    return True


def _differentiated(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the gradient of one of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _numba_takes(*tensors: Tensor) -> bool:
    """Whether all lie where numba computes, in one type that it computes in."""
    first = tensors[0].dtype
    return first in (torch.float32, torch.float64) and all(t.device.type == "cpu" and t.dtype == first for t in tensors)


def _compiled_maxima(candidate_hidden: Tensor, hidden: Tensor, weight: Tensor, differentiated: bool) -> Maxima | None:
    """The compiled sum of maxima for these; None where the eager way is to be taken."""
    if candidate_hidden.device.type == "cuda" and not differentiated:  # of the Triton kernel there is no gradient
        try:
            from .kernels_triton import sum_of_maxima_triton
        except ImportError:  # torch without Triton
            return None
        return sum_of_maxima_triton
    small = SMALL_TRAINING if differentiated else SMALL
    if candidate_hidden.numel() * hidden.shape[1] <= small or not _numba_takes(weight):
        return None
    from .kernels import sum_of_maxima_numba

    return sum_of_maxima_numba


def _decode(maxima: Maxima, candidate_hidden: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`decode` by a compiled sum of maxima, all tensors of one type."""
    return maxima(candidate_hidden, -hidden, weight).add_((hidden @ weight + bias)[..., None])


class _Decode(torch.autograd.Function):
    """`_decode` on the CPU with its gradient."""

    @staticmethod
    def forward(ctx: Any, maxima: Maxima, candidate_hidden: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(candidate_hidden, hidden, weight)
        return _decode(maxima, candidate_hidden, hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor]:
        from .kernels import decode_gradients_numba

        candidate_hidden, hidden, weight = ctx.saved_tensors
        return None, *decode_gradients_numba(candidate_hidden, hidden, weight, *gradients), gradients[0].sum().view(1)
