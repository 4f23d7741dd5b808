"""A bank of training queries: candidates that lie near to every query, hubs, are held back by how near they lie to those.

N candidates, B queries of the bank, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import cosine_similarity

BLOCK_ENTRIES = 2**23  # of the (bank, candidates) similarities held at a time


def querybank_offsets(candidates: Tensor, bank: Tensor, beta: float) -> Tensor:
    """What the inverted softmax takes away from each candidate's cosine, (N,) float64.

    The inverted softmax (Smith et al. 2017; the form that Bogolin et al. 2022, "Cross Modal Retrieval with Querybank
    Normalisation", give for a bank of queries b other than those asked):

        score(q, c) = exp(beta s(q, c)) / sum_b exp(beta s(b, c))

    Its logarithm over beta ranks the same, overflows nowhere and is a cosine again:

        s(q, c) - offset(c),   offset(c) = log(1/B sum_b exp(beta s(b, c))) / beta

    The mean in place of the sum shifts all candidates alike. For a small beta the offset is the mean cosine to the bank, for a
    large one the greatest.

    Args:
        candidates: (N, D) of any norm.
        bank: (B, D); none at all normalise nothing.
        beta: the inverse temperature, above 0.

    Raises:
        ValueError: beta is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if not len(bank):
        return torch.zeros(len(candidates), dtype=torch.float64)
    # Equal candidates once, so that they stay tied whichever block and lane they would fall into.
    distinct, place = torch.unique(candidates, dim=0, return_inverse=True)
    parts = []
    for block in distinct.split(max(1, BLOCK_ENTRIES // len(bank))):
        similarity = cosine_similarity(block, bank).double()
        parts.append((torch.logsumexp(beta * similarity, 1) - math.log(len(bank))) / beta)
    return torch.cat([*parts, torch.zeros(0, dtype=torch.float64, device=candidates.device)])[place]


@dataclass(frozen=True)
class Prior:
    """A bank, and how much of what it says of a candidate is taken from that candidate's cosine: weight * offset(candidate).

    With the weight 1 it is querybank normalisation; a smaller one trusts the bank less, whose queries may be of another world
    than those asked.

    Attributes:
        queries: (B, D): captions for text-to-audio, clips for audio-to-text.
        beta: the inverse temperature of `querybank_offsets`.
        weight: from 0, nothing, to 1.
    """

    queries: Tensor
    beta: float
    weight: float

    def offsets(self, candidates: Tensor) -> Tensor:
        """What each of the candidates (N, D) loses, (N,), in their type and on their device."""
        bank = self.queries.to(candidates)
        return (self.weight * querybank_offsets(candidates, bank, self.beta)).to(candidates)
