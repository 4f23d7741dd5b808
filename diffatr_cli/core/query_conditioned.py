"""Candidates as the query sees them: what a caption's tokens find in a clip's frames changes the candidate's vector.

In the paper C_a is one vector a candidate, whatever the query. Here a query has its own: s C_a + e, with e from the pair of
token states and frames, as DiffusionRet (Jin et al. 2023, the paper's [17]) lets a text look at a video's frames. Attention,
decoder and sampler stay the paper's. Audio-to-text has the same pairs, with the clip as the query.

Q queries, B captions, N clips or candidates, G groups of captions and clips that meet, L tokens, T frames, H features of a token
state, F of a frame, W width of a pair's projections, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..types import Direction

WIDTH = 256
GOT_ENTRIES = 2**18  # of what tokens get of frames, in memory at a time: small enough for a processor's caches
GOT_ENTRIES_OF_DEVICES = 2**26  # where each step costs a start


class Padded(NamedTuple):
    """Token states or frames, padded to one length: `states` (..., L, H), and `mask` (..., L) bool, what is no padding."""

    states: Tensor
    mask: Tensor


class Tokens(NamedTuple):
    """Captions as `QueryConditioner` takes them: `query` and `value` (..., L, W); `weight` (..., L), of sum one over a caption's
    own tokens, all zero where it has none."""

    query: Tensor
    value: Tensor
    weight: Tensor


class Frames(NamedTuple):
    """Clips as `QueryConditioner` takes them: `key` and `value` (..., T, W); `mask` (..., T) bool, what is no padding."""

    key: Tensor
    value: Tensor
    mask: Tensor


Parts = TypeVar("Parts", Padded, Tokens, Frames, Tokens | Frames)


def each_of(parts: Parts, change: Callable[[Tensor], Tensor]) -> Parts:
    """The same change made to every tensor of a batch."""
    return type(parts)(*map(change, parts))


class QueryConditioner(nn.Module):
    """e of pairs of a caption and a clip, and what it adds to the logits. It starts at nothing: both are zero.

    With u_l a caption's token states and f_t a clip's frames: q_l = W_q u_l, v_l = W_u u_l, k_t = W_k f_t,
    s_lt = q_l . k_t / sqrt(W), got_l = sum_t softmax_t(s_lt) W_v f_t, and w_l the softmax over l of a linear map of u_l:

        h = [sum_l w_l v_l * got_l,  sum_l w_l got_l,  sum_l w_l max_t(s_lt) v_l]
        e = Linear(ReLU(Linear(LayerNorm(h))))

    A caption without tokens and a clip without frames find nothing in one another: e is zero.

    Args:
        token_features: H.
        frame_features: F.
        dim: D.
        width: W.
        generator: source of the initial weights; None takes torch's global one.
    """

    def __init__(
        self, token_features: int, frame_features: int, dim: int, width: int = WIDTH, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.token_features, self.frame_features = token_features, frame_features
        self.w_q = nn.Linear(token_features, width, bias=False)
        self.w_u = nn.Linear(token_features, width, bias=False)
        self.weigh = nn.Linear(token_features, 1, bias=False)
        self.w_k = nn.Linear(frame_features, width, bias=False)
        self.w_v = nn.Linear(frame_features, width, bias=False)
        self.norm = nn.LayerNorm(3 * width)
        self.inner = nn.Linear(3 * width, dim)
        self.outer = nn.Linear(dim, dim)
        self.logit = nn.Linear(dim, 1, bias=False)
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for linear in (self.w_q, self.w_u, self.weigh, self.w_k, self.w_v, self.inner):  # torch's own rule
            bound = 1 / math.sqrt(linear.in_features)
            linear.weight.uniform_(-bound, bound, generator=generator)
        self.inner.bias.zero_()
        for last in (self.outer, self.logit):
            nn.init.zeros_(last.weight)
        self.outer.bias.zero_()

    def project_tokens(self, tokens: Padded) -> Tokens:
        """Token states (..., L, H) -> what any number of clips meet of them; what stands in the padding does not matter."""
        states = tokens.states.masked_fill(~tokens.mask.unsqueeze(-1), 0)
        logits = self.weigh(states).squeeze(-1)
        weight = _softmax(logits, tokens.mask) * tokens.mask
        return Tokens(self.w_q(states) / math.sqrt(self.w_q.out_features), self.w_u(states), weight)

    def project_frames(self, frames: Padded) -> Frames:
        """Frames (..., T, F) -> what any number of captions meet of them; what stands in the padding does not matter."""
        states = frames.states.masked_fill(~frames.mask.unsqueeze(-1), 0)
        return Frames(self.w_k(states), self.w_v(states), frames.mask)

    def forward(self, tokens: Tokens, frames: Frames) -> Tensor:
        """e of every caption with every clip of its group: (G, B, L, ...), (G, N, T, ...) -> (G, B, N, D)."""
        groups, captions, length, _ = tokens.query.shape
        clips, times = frames.mask.shape[1:]
        met = tokens.query.flatten(1, 2) @ frames.key.flatten(1, 2).mT  # (G, B L, N T)
        met = met.view(groups, captions * length, clips, times)
        inside = frames.mask[:, None]
        shares = _softmax(met, inside)  # (G, B L, N, T)
        weight = tokens.weight.unsqueeze(-1)  # (G, B, L, 1)
        weighted = (weight * tokens.value).to(frames.value.dtype)
        products = weighted_products(shares.to(frames.value.dtype), frames.value, weighted)
        by_time = (shares.view(groups, captions, length, clips, times) * weight.unsqueeze(-1)).sum(2)  # (G, B, N, T)
        mean = (by_time.transpose(1, 2).to(frames.value.dtype) @ frames.value).transpose(1, 2)
        best = met.masked_fill(~inside, _lowest(met)).amax(3).masked_fill(~inside.any(3), 0)
        best = best.view(groups, captions, length, clips).transpose(2, 3) @ weighted.to(best.dtype)
        hidden = self.norm(torch.cat([products.to(best.dtype), mean.to(best.dtype), best], 3))
        e: Tensor = self.outer(self.inner(hidden).relu())
        there = (tokens.weight.sum(2) > 0)[:, :, None] & frames.mask.any(2)[:, None]  # (G, B, N)
        return e.masked_fill(~there.unsqueeze(-1), 0)

    def see(
        self, direction: Direction, query: Tokens | Frames, candidates: Tokens | Frames, vectors: Tensor, input_scale: float
    ) -> tuple[Tensor, Tensor]:
        """The candidates of each query as it sees them, for a denoiser with `input_scale` s, which takes vectors c as s c.

        Args:
            direction: captions are the queries of `t2a`, and the candidates of `a2t`; clips are the others.
            query: projected, (Q, ...).
            candidates: projected, (N, ...) that all queries share, or (Q, N, ...), a set of each query's own.
            vectors: their unit embeddings, (N, D) or (Q, N, D).

        Returns:
            c + e / s, (Q, N, D), so that the denoiser has s c + e; and what is added to the logits, (Q, N).
        """
        shared = vectors.ndim == 2
        query = each_of(query, lambda part: part.unsqueeze(0 if shared else 1))
        if shared:
            candidates = each_of(candidates, lambda part: part.unsqueeze(0))
        tokens, frames = (query, candidates) if direction == "t2a" else (candidates, query)
        assert isinstance(tokens, Tokens)
        assert isinstance(frames, Frames)
        e = self(tokens, frames)
        if direction == "a2t":
            e = e.transpose(1, 2)
        e = e.squeeze(0 if shared else 1)
        shift: Tensor = self.logit(e).squeeze(2)
        return vectors + e / input_scale, shift

    def project(self, direction: Direction, query: Padded, candidates: Padded) -> tuple[Tokens | Frames, Tokens | Frames]:
        """Both sides of a direction as `see` takes them."""
        if direction == "t2a":
            return self.project_tokens(query), self.project_frames(candidates)
        return self.project_frames(query), self.project_tokens(candidates)


def weighted_products(shares: Tensor, values: Tensor, weighted: Tensor) -> Tensor:
    """sum_l weighted[g, b, l] * got[g, b, l, n], with got = sum_t shares[g, b l, n, t] values[g, n, t], differentiable.

    `got`, of a token, a clip and W, would be the largest array of all by far. It is made for a few clips at a time, and again for
    the gradient, so that it stays where the processor has it at hand.

    Args:
        shares: (G, B L, N, T).
        values: (G, N, T, W).
        weighted: (G, B, L, W), all of one type.

    Returns:
        (G, B, N, W).
    """
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = _WeightedProducts.apply(shares, values, weighted)  # type: ignore[no-untyped-call]
    return result


class _WeightedProducts(torch.autograd.Function):
    """`weighted_products` with its gradient."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, values: Tensor, weighted: Tensor) -> Tensor:
        ctx.save_for_backward(shares, values, weighted)
        groups, captions, length, width = weighted.shape
        out = values.new_empty(groups, captions, values.shape[1], width)
        for part in _clips_at_once(shares, values):
            got = shares[:, :, part].transpose(1, 2) @ values[:, part]  # (G, n, B L, W)
            products = got.view(groups, -1, captions, length, width).mul_(weighted[:, None])
            out[:, :, part] = products.sum(3).transpose(1, 2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shares, values, weighted = ctx.saved_tensors
        groups, captions, length, width = weighted.shape
        of_shares, of_values = torch.empty_like(shares), torch.empty_like(values)
        of_weighted = torch.zeros_like(weighted, dtype=torch.promote_types(weighted.dtype, torch.float32))
        for part in _clips_at_once(shares, values):
            own, value = shares[:, :, part].transpose(1, 2), values[:, part]
            gradient = gradients[0][:, :, part].transpose(1, 2).unsqueeze(3)  # (G, n, B, 1, W)
            of_weighted += (own @ value).view(groups, -1, captions, length, width).mul_(gradient).sum(1)
            of_got = (gradient * weighted[:, None]).flatten(2, 3)  # (G, n, B L, W)
            of_shares[:, :, part] = (of_got @ value.mT).transpose(1, 2)
            of_values[:, part] = own.mT @ of_got
        return of_shares, of_values, of_weighted.to(weighted.dtype)


def _clips_at_once(shares: Tensor, values: Tensor) -> Iterator[slice]:
    each = max(1, shares.shape[0] * shares.shape[1] * values.shape[3])
    size = max(1, (GOT_ENTRIES if values.device.type == "cpu" else GOT_ENTRIES_OF_DEVICES) // each)
    return (slice(start, start + size) for start in range(0, values.shape[1], size))


def _lowest(like: Tensor) -> float:
    return torch.finfo(like.dtype).min


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` allows; uniform, not NaN, where it allows nothing."""
    return logits.masked_fill(~mask, _lowest(logits)).softmax(-1)
