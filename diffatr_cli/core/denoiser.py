"""The attention-based denoising module of section 2.2.1, one class for both directions.

B batch, N candidates, D embedding size, H hidden width of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .algebra import Factors, LinearMap, Output
from .feedback import neighbours_of

Init = Literal["similarity", "random"]
AttentionScale = Literal["none", "sqrt_dim"]
InputScale = Literal["sqrt_dim", "none"]
Feedback = Literal["none", "neighbours"]


class DenoiserOptions(TypedDict, total=False):
    """The types of `DenoiserConfig`'s options, so that a type checker sees those passed by keyword."""

    temperature: float
    init: Init
    attention_scale: AttentionScale
    output: Output
    input_scale: InputScale
    self_conditioning: bool
    feedback: Feedback


@dataclass(frozen=True)
class DenoiserConfig:
    """What an `AttentionDenoiser` is made of; `AttentionDenoiser(**asdict(config))` makes one.

    Attributes:
        dim: D of the embeddings.
        hidden: H of the decoder.
        temperature: tau of phase one, where the `similarity` start puts the attention.
        init: `similarity` starts W_Q = W_K as the multiple of I that makes Q K^T the cosine / temperature; or `random`.
        attention_scale: `sqrt_dim` divides Q K^T by sqrt(D); the paper prints no division.
        output: `add_weight` adds the attention weights, `add_logit` what they are the softmax of, to the decoder's output.
        input_scale: `sqrt_dim` multiplies the unit embeddings by sqrt(D), so that their entries are of order one.
        self_conditioning: whether the denoiser is told its x0_hat of the step before (`AttentionDenoiser.feedback`).
        feedback: `neighbours` adds to x_k what the candidates' neighbours have of it (`AttentionDenoiser.neighbour_feedback`).
    """

    dim: int
    hidden: int
    temperature: float = 0.07
    init: Init = "similarity"
    attention_scale: AttentionScale = "none"
    output: Output = "decoder"
    input_scale: InputScale = "sqrt_dim"
    self_conditioning: bool = False
    feedback: Feedback = "none"


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
        dim, hidden, options: the fields of a `DenoiserConfig`.
        generator: source of the initial weights; None takes torch's global one.
    """

    def __init__(
        self, dim: int, hidden: int, *, generator: torch.Generator | None = None, **options: Unpack[DenoiserOptions]
    ) -> None:
        super().__init__()
        self.config = DenoiserConfig(dim, hidden, **options)
        self.input_scale = math.sqrt(dim) if self.config.input_scale == "sqrt_dim" else 1.0
        self.attention_scale = 1 / math.sqrt(dim) if self.config.attention_scale == "sqrt_dim" else 1.0
        self.level = LevelEmbedding(dim)
        self.w_q = nn.Linear(dim, dim, bias=False)
        self.w_k = nn.Linear(dim, dim, bias=False)
        self.w_v = nn.Linear(dim, dim, bias=False)
        self.decoder = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.feedback_gain = nn.Parameter(torch.zeros(())) if self.config.self_conditioning else None
        self.neighbour_gain = nn.Parameter(torch.zeros(())) if self.config.feedback == "neighbours" else None
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

    @property
    def feedback(self) -> Tensor | None:
        """Self-conditioning (Chen et al. 2022, "Analog Bits"): what x0_hat of the step before is multiplied by before it is added
        to x_k; None without. It is learned, starts at zero, and is counted in the attention's own size, 1 / tau."""
        return None if self.feedback_gain is None else self.feedback_gain / self.config.temperature

    @property
    def neighbour_feedback(self) -> Tensor | None:
        """The corpus as context: what W x_k (`feedback.Neighbours`) is multiplied by before it is added to x_k; None without. It
        is learned, starts at zero, and is counted in the attention's own size, 1 / tau."""
        return None if self.neighbour_gain is None else self.neighbour_gain / self.config.temperature

    def forward(self, x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor, shift: Tensor | None = None) -> Tensor:
        """Logits of x0_hat. Written as the paper prints it: what `factored_forward` and `sampler.fast_ddim_sample` must equal.

        Q = W_Q (q + pj(k)), K = W_K (c + pj(k)), V = W_V (c + pj(k)), E = Softmax(Q K^T + x_k) V, logits = MLP([c, E]).
        With `neighbour_feedback` g, x_k + g W x_k stands for x_k, with W of the candidates of each row as they are given.

        Args:
            x_k: noisy distributions, (B, N).
            level: (B,) noise level indices, k - 1.
            query: (B, D) unit embeddings.
            candidates: (N, D) unit embeddings that all rows share, or (B, N, D), one set a row.
            shift: (B, N) is added to the logits (`query_conditioned`); None adds nothing.

        Returns:
            (B, N); softmax over N makes them a distribution.
        """
        if self.neighbour_feedback is not None:
            own = x_k if candidates.ndim == 2 else x_k[:, None]
            x_k = x_k + self.neighbour_feedback * neighbours_of(candidates).spread(own).view_as(x_k)
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
        if shift is not None:
            logits = logits + shift
        if self.config.output == "add_weight":
            return logits + weights
        if self.config.output == "add_logit":
            return logits + attention
        return logits

    def factors(self) -> Factors:
        """The layers as the algebra takes them, to be gone through in turn: gradients flow, nothing is multiplied together."""
        first, last = cast(nn.Linear, self.decoder[0]), cast(nn.Linear, self.decoder[2])
        w_candidate, w_context = first.weight.chunk(2, 1)
        return Factors(
            attend=LinearMap((self.w_q.weight, self.w_k.weight.T), self.attention_scale * self.input_scale**2),
            tabulate=LinearMap((w_candidate,), self.input_scale, first.bias),
            context=LinearMap((self.w_v.weight, w_context), self.input_scale),
            weight=last.weight[0],
            bias=last.bias,
            level_embedding=self.level,
            input_scale=self.input_scale,
            output=self.config.output,
            feedback=0.0 if self.feedback is None else self.feedback.item(),
            neighbour_feedback=self.neighbour_feedback,
        )

    def factored_forward(
        self, x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor, shift: Tensor | None = None
    ) -> Tensor:
        """`forward` by the algebra of `Factors`: the same logits and gradients with less work, for training.

        Arguments and result are those of `forward`.
        """
        factors = self.factors()
        axis = 0 if candidates.ndim == 2 else 1  # all rows are one group, or each is a group of its own
        prepared = factors.prepare(candidates, None if shift is None else shift.unsqueeze(axis))
        query, embedding, x_k = (rows.unsqueeze(axis) for rows in (query, factors.embed_level(level), x_k))
        attended = factors.attend(query + embedding)
        attention = attended @ prepared.candidates.mT + prepared.fed_back(x_k)
        logits = prepared.logits(attention, (attended * embedding).sum(2), embedding)
        return logits.squeeze(axis)
