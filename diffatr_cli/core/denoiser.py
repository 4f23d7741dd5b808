"""The attention-based denoising module of section 2.2.1, one class for both directions.

B batch, N candidates, D embedding size, H hidden width of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .pairwise import pairwise_decode

Init = Literal["similarity", "random"]
AttentionScale = Literal["none", "sqrt_dim"]
InputScale = Literal["sqrt_dim", "none"]
Output = Literal["decoder", "add_weight", "add_logit"]


@dataclass(frozen=True)
class DenoiserConfig:
    """The arguments an `AttentionDenoiser` was built with; `AttentionDenoiser(**asdict(config))` builds its equal."""

    dim: int
    hidden: int
    temperature: float = 0.07
    init: Init = "similarity"
    attention_scale: AttentionScale = "none"
    output: Output = "decoder"
    input_scale: InputScale = "sqrt_dim"


class LevelEmbedding(nn.Module):
    """pj(k): noise level indices (B,) -> (B, D) by sinusoids, Linear, SiLU, Linear. Source: Ho et al. 2020."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = (dim + 1) // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * torch.arange(half) / half), persistent=False)
        self.inner = nn.Linear(2 * half, dim)
        self.outer = nn.Linear(dim, dim)

    def forward(self, level: Tensor) -> Tensor:
        angles = level[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(self.inner.weight.dtype)
        embedding: Tensor = self.outer(functional.silu(self.inner(waves)))
        return embedding


class AttentionDenoiser(nn.Module):
    """f_phi: predicts x_0 from x_k, a query and its candidates. Text queries audio or audio queries text, in the same way.

    Args:
        dim: D of the embeddings.
        hidden: H of the decoder.
        temperature: tau of phase one, where the `similarity` start puts the attention.
        init: `similarity` starts W_Q = W_K as the multiple of I that makes Q K^T the cosine / temperature; or `random`.
        attention_scale: `sqrt_dim` divides Q K^T by sqrt(D); the paper prints no division.
        output: `add_weight` adds the attention weights, `add_logit` what they are the softmax of, to the decoder's output.
        input_scale: `sqrt_dim` multiplies the unit embeddings by sqrt(D), so that their entries are of order one.
        generator: source of the initial weights; None takes torch's global one.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        temperature: float = 0.07,
        init: Init = "similarity",
        attention_scale: AttentionScale = "none",
        output: Output = "decoder",
        input_scale: InputScale = "sqrt_dim",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = DenoiserConfig(dim, hidden, temperature, init, attention_scale, output, input_scale)
        self.input_scale = math.sqrt(dim) if input_scale == "sqrt_dim" else 1.0
        self.attention_scale = 1 / math.sqrt(dim) if attention_scale == "sqrt_dim" else 1.0
        self.level = LevelEmbedding(dim)
        self.w_q = nn.Linear(dim, dim, bias=False)
        self.w_k = nn.Linear(dim, dim, bias=False)
        self.w_v = nn.Linear(dim, dim, bias=False)
        self.decoder = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):  # torch's own rule for linear layers, but from the given generator
                bound = 1 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
        # A level embedding of about one percent of the inputs, so that the attention starts where it is put below.
        self.level.outer.weight.mul_(0.05 * self.input_scale / math.sqrt(self.config.dim))
        self.level.outer.bias.zero_()
        if self.config.init == "similarity":
            gain = 1 / math.sqrt(self.config.temperature * self.attention_scale * self.input_scale**2)
            for projection in (self.w_q, self.w_k):
                nn.init.eye_(projection.weight).mul_(gain)

    def forward(self, x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor) -> Tensor:
        """Logits of x0_hat. Written as the paper prints it; `sampler.fast_ddim_sample` computes the same with less work.

        Q = W_Q (q + pj(k)), K = W_K (c + pj(k)), V = W_V (c + pj(k)), E = Softmax(Q K^T + x_k) V, logits = MLP([c, E]).

        Args:
            x_k: noisy distributions, (B, N).
            level: (B,) noise level indices, k - 1.
            query: (B, D) unit embeddings.
            candidates: (N, D) unit embeddings that all rows share, or (B, N, D), one set a row.

        Returns:
            (B, N); softmax over N makes them a distribution.
        """
        query, candidates = query * self.input_scale, candidates * self.input_scale
        if candidates.ndim == 2:
            candidates = candidates.expand(len(query), -1, -1)
        embedding = self.level(level)
        noisy = candidates + embedding[:, None]
        q, keys, values = self.w_q(query + embedding), self.w_k(noisy), self.w_v(noisy)
        attention = torch.einsum("bd,bnd->bn", q, keys) * self.attention_scale + x_k
        weights = attention.softmax(1)
        context = torch.einsum("bn,bnd->bd", weights, values)
        logits: Tensor = self.decoder(torch.cat([candidates, context[:, None].expand_as(candidates)], 2)).squeeze(2)
        if self.config.output == "add_weight":
            return logits + weights
        if self.config.output == "add_logit":
            return logits + attention
        return logits

    def factored_forward(self, x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor) -> Tensor:
        """`forward` with its linear layers applied to the terms of their sums: the same logits and gradients, for training.

        W_K (c + e) . Q = (W_K^T Q) . c + Q . W_K e; E = W_V (sum_i w_i c_i + e), since the weights w sum to one; and
        W1 [c, E] = W1_c c + W1_e E. So the D x D and D x H products are taken once a candidate or once a query, where
        `forward` takes them for every pair.
        """
        query, candidates = query * self.input_scale, candidates * self.input_scale
        embedding = self.level(level)
        q: Tensor = self.w_q(query + embedding)
        shared = candidates.ndim == 2
        to_candidates = q @ self.w_k.weight  # (B, D)
        similarity = to_candidates @ candidates.T if shared else (candidates @ to_candidates[..., None]).squeeze(2)
        of_level = (to_candidates * embedding).sum(1, keepdim=True)
        attention: Tensor = (similarity + of_level) * self.attention_scale + x_k
        weights = attention.softmax(1)
        mean = weights @ candidates if shared else (weights[:, None] @ candidates).squeeze(1)
        first, last = cast(nn.Linear, self.decoder[0]), cast(nn.Linear, self.decoder[2])
        w_candidate, w_context = first.weight.chunk(2, 1)
        of_context = functional.linear(self.w_v(mean + embedding), w_context, first.bias)  # (B, H)
        table = functional.linear(candidates, w_candidate)  # (N, H) or (B, N, H)
        grouped = (table[None], of_context[None]) if shared else (table, of_context[:, None])
        logits = pairwise_decode(*grouped, last.weight[0]).reshape(x_k.shape) + last.bias
        if self.config.output == "add_weight":
            return logits + weights
        if self.config.output == "add_logit":
            return logits + attention
        return logits
