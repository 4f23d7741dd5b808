"""The algebra that makes sampling over a whole corpus cheap: an `AttentionDenoiser` multiplied out.

G groups of queries that share candidates, T queries of a group, N candidates of a group, D embedding size, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .denoiser import AttentionDenoiser


@dataclass(frozen=True, eq=False)
class PreparedCandidates:
    """Candidates and what one denoiser needs of them, computed once for any number of queries.

    candidates: (G, N, D) unit embeddings; G is 1 where all queries share them.
    table: (G, N, H), the candidates' part of the decoder's hidden layer.
    """

    factors: FactoredDenoiser
    candidates: Tensor
    table: Tensor

    @cached_property
    def contexts(self) -> Tensor:
        """The candidates' own contexts (G, N, H), for those who need them: `FactoredDenoiser.context` of each."""
        return self.factors.context(self.candidates)


class FactoredDenoiser:
    """The weights of an `AttentionDenoiser`, copied and multiplied out; later changes to the denoiser do not reach it.

    Exact up to rounding. With s the input scale, e = pj(k), Q = W_Q (s q + e) and w the attention weights:

    - Q . W_K (s c_i + e) = (W_K^T Q) . s c_i + Q . W_K e, and the softmax drops the last term, the same for every i.
    - w sums to one, so E = sum_i w_i W_V (s c_i + e) = W_V (s sum_i w_i c_i + e).
    - W1 [s c_i, E] = W1_c s c_i + W1_e E: the first part is the table of `prepare`, the second one vector a query.

    A step over Q queries and N candidates costs 3QNH for the decoder, at most 2QND for the context, and little else.
    """

    @torch.no_grad()
    def __init__(self, denoiser: AttentionDenoiser) -> None:
        first, last = denoiser.decoder[0], denoiser.decoder[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.dtype = torch.promote_types(first.weight.dtype, torch.float32)
        self.output = denoiser.config.output
        self.input_scale = denoiser.input_scale
        self.embed_level = denoiser.level
        self.weight = last.weight[0].to(self.dtype, copy=True)  # w2, (H,)
        self._b1, self._b2 = first.bias.to(self.dtype, copy=True), last.bias.to(self.dtype, copy=True)
        w_q, w_k, w_v = (layer.weight.double() for layer in (denoiser.w_q, denoiser.w_k, denoiser.w_v))
        w1_c, w1_e = first.weight.double().chunk(2, 1)
        self._attention = (denoiser.attention_scale * w_q.T @ w_k).to(self.dtype)  # (D, D), from s q + e to W_K^T Q
        self._candidate = (self.input_scale * w1_c.T).to(self.dtype)  # (D, H)
        self._context = (self.input_scale * w1_e @ w_v).T.to(self.dtype)  # (D, H)

    @torch.no_grad()
    def prepare(self, candidates: Tensor) -> PreparedCandidates:
        """The tables of unit embeddings (N, D) that all queries share, or of (G, N, D), one set a group."""
        grouped = candidates.to(self.dtype) if candidates.ndim == 3 else candidates.to(self.dtype)[None]
        return PreparedCandidates(self, grouped, grouped @ self._candidate)

    def attend(self, noisy_query: Tensor) -> Tensor:
        """s q + e, or either term alone, (..., D) -> the vectors (..., D) whose product with c is their part of Q K^T."""
        return self.input_scale * (noisy_query @ self._attention)

    def dropped_logit(self, noisy_query: Tensor, embedding: Tensor) -> Tensor:
        """Q . W_K e, which the softmax drops: s q + e (..., D), e (D,) -> (...)."""
        return noisy_query @ self._attention @ embedding

    def context(self, vectors: Tensor) -> Tensor:
        """W1_e W_V s v of candidates, or of a weighted mean of candidates: (..., D) -> (..., H)."""
        return vectors @ self._context

    def context_of_level(self, embedding: Tensor) -> Tensor:
        """W1_e W_V e + b1, what else the query's part of the hidden layer holds: (..., D) -> (..., H)."""
        return embedding @ self._context / self.input_scale + self._b1

    def decode(self, table: Tensor, hidden: Tensor) -> Tensor:
        """The decoder's output w2 . relu(table + hidden) + b2: (G, N, H), (G, T, H) -> (G, T, N).

        relu(a + b) = max(a, -b) + b, whose second term does not depend on the candidate: a maximum and a multiply-add are
        left for each of the H.
        """
        return fused_term(table, -hidden, self.weight).add_((hidden @ self.weight + self._b2)[..., None])


def attended_mean(attention: Tensor, values: Tensor) -> Tensor:
    """softmax(attention) @ values: (G, T, N), (G, N, H) -> (G, T, H).

    Attention is peaked as a rule: unscaled, as the paper prints it, some two candidates in a hundred matter.
    """
    if attention.is_cuda or attention.numel() * values.shape[2] <= SMALL_TERM:
        return attention.softmax(2) @ values
    from .kernels import mean_numba

    return mean_numba(attention, values)


SMALL_TERM = 2**20  # T x N x H below which loading numba takes longer than the work
EAGER_ENTRIES = 2**24  # of the (G, T, N, H) array that `eager_term` holds at a time


def fused_term(table: Tensor, negative_hidden: Tensor, weight: Tensor) -> Tensor:
    """sum_h weight[h] max(table[g, i, h], negative_hidden[g, t, h]) -> (G, T, N), without an array of all its terms.

    Args:
        table: (G, N, H).
        negative_hidden: (G, T, H).
        weight: (H,).
    """
    if table.is_cuda:
        try:
            from .kernels_triton import decode_triton
        except ImportError:  # torch without Triton
            return eager_term(table, negative_hidden, weight)
        return decode_triton(table, negative_hidden, weight)
    if table.numel() * negative_hidden.shape[1] <= SMALL_TERM:
        return eager_term(table, negative_hidden, weight)
    from .kernels import decode_numba

    return decode_numba(table, negative_hidden, weight)


def eager_term(table: Tensor, negative_hidden: Tensor, weight: Tensor) -> Tensor:
    """`fused_term` in plain torch on any device, in blocks of candidates."""
    block = max(1, EAGER_ENTRIES // max(1, negative_hidden.numel()))
    return torch.cat(
        [torch.maximum(part[:, None], negative_hidden[:, :, None]) @ weight for part in torch.split(table, block, 1)], 2
    )
