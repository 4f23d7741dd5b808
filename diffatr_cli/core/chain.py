"""What every way of sampling a chain shares: its levels and coefficients, and what a denoiser makes of the levels.

D embedding size, H hidden width, S sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .algebra import Factors
from .sampling import X0

OnStep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Chain:
    """What a sampler follows: the levels (S), the DDIM coefficients between them (S - 1), and the caller's wishes."""

    levels: list[int]
    coefficients: list[tuple[float, float, float]]
    x0: X0
    on_step: OnStep | None


@dataclass(frozen=True)
class Levels:
    """What a denoiser makes of the levels of a chain, the same for all queries.

    embeddings: l, (S, D). attended: A l, (S, D). dropped: A l . l, (S,). contexts: `Factors.context` of l, (S, H).
    """

    embeddings: Tensor
    attended: Tensor
    dropped: Tensor
    contexts: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return self.embeddings, self.attended, self.dropped, self.contexts

    @classmethod
    def of(cls, factors: Factors, levels: list[int], device: torch.device) -> Levels:
        """Of noise level indices."""
        embeddings = factors.embed_level(torch.tensor(levels, device=device))
        attended = factors.attend(embeddings)
        return cls(embeddings, attended, (attended * embeddings).sum(1), factors.context(embeddings))


def predicted_x0(logits: Tensor, x0: X0) -> Tensor:
    """x0_hat from logits (..., N): their softmax, a distribution as x_0 is, or the logits clipped to [-1, 1]."""
    return logits.softmax(-1) if x0 == "softmax" else logits.clamp(-1, 1)
