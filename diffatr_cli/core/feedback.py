"""Candidates' similarities among themselves: their nearest neighbours, and what a random walk over those makes of scores.

N candidates, k neighbours, Q and T queries, G groups of queries that share candidates, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .losses import at_least_float32, posterior
from .threads import parallel_for

NEIGHBOURS = 10
"""k, of each candidate, at most."""
POWER = 3
"""To which a cosine is raised to make it a weight."""
RESTART = 0.2
"""Share of its steps at which the walk starts anew."""
BLOCK_ENTRIES = 2**20  # of the largest array that a block of work holds


@dataclass(frozen=True, eq=False)
class Neighbours:
    """W, (N, N), of the candidates of a group, as the few entries of each row that are not zero. Its rows sum to one.

    W_ij is max(cos(c_i, c_j), 0)^3, over its sum, for the `NEIGHBOURS` candidates j nearest to i by cosine, and 0 for others.
    Equal candidates are one in this: none is a neighbour of its copies, all have the same row, and they share evenly what belongs
    to them. A candidate whose cosine to no other is above 0 is, with its copies, its own neighbour.

    Attributes:
        places: (..., N, k) which candidates are neighbours, of equal ones the first.
        weights: (..., N, k) float, what those and their copies have of W together.
        first: (..., N) the first of the candidates that equal each; None where all differ.
    """

    places: Tensor
    weights: Tensor
    first: Tensor | None

    def spread(self, values: Tensor) -> Tensor:
        """W x: to each candidate the mean of its neighbours' values, (..., T, N) -> (..., T, N), differentiable in the values."""
        if self.first is not None:
            first = self.first.unsqueeze(-2).expand(values.shape)
            sums = torch.zeros_like(values).scatter_add(-1, first, values)
            values = sums / _copies(self.first).unsqueeze(-2)
        spread = torch.zeros_like(values)
        for places, weights in zip(self.places.unbind(-1), self.weights.to(values.dtype).unbind(-1), strict=True):
            spread = spread + weights.unsqueeze(-2) * values.gather(-1, places.unsqueeze(-2).expand(values.shape))
        return spread


@torch.no_grad()
def neighbours_of(candidates: Tensor, count: int = NEIGHBOURS) -> Neighbours:
    """The neighbours of candidates among themselves, found a block at a time; no gradient flows through them.

    Args:
        candidates: (N, D), or (G, N, D), one set a group, of any norm.
        count: k, where there are so many others.
    """
    grouped = at_least_float32(candidates if candidates.ndim == 3 else candidates[None])
    groups, n, _ = grouped.shape
    first = _first_equals(grouped)
    k = max(1, min(count, n - 1))
    places = torch.zeros(groups, n, k, dtype=torch.long, device=grouped.device)
    weights = grouped.new_zeros(groups, n, k)
    is_copy = first != torch.arange(n, device=grouped.device)
    with torch.autocast(grouped.device.type, enabled=False):
        unit = functional.normalize(grouped, dim=2)
        at_once, rows = max(1, BLOCK_ENTRIES // max(1, n * n)), max(1, BLOCK_ENTRIES // max(1, n))
        for group in range(0, groups, at_once):
            some = slice(group, group + at_once)
            for row in range(0, n, rows):
                part = slice(row, row + rows)
                cosine = unit[some, part] @ unit[some].mT
                cosine.masked_fill_(is_copy[some, None], -torch.inf)
                cosine.scatter_(2, first[some, part, None], -torch.inf)
                nearest, places[some, part] = cosine.topk(k, 2)
                weights[some, part] = nearest.clamp(min=0) ** POWER
    total = weights.sum(2, keepdim=True)
    alone = total[..., 0] == 0
    weights = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    weights[..., 0].masked_fill_(alone, 1)
    places[..., 0] = torch.where(alone, first, places[..., 0])
    places, weights = (each.gather(1, first[..., None].expand_as(each)) for each in (places, weights))
    copies = first if bool(is_copy.any()) else None
    if candidates.ndim == 3:
        return Neighbours(places, weights, copies)
    return Neighbours(places[0], weights[0], None if copies is None else copies[0])


@torch.no_grad()
def random_walk(start: Tensor, neighbours: Neighbours, restart: float = RESTART) -> Tensor:
    """Where a walker is found in the long run, (Q, N): p = restart s + (1 - restart) W^T p, as exact as the type is.

    From each candidate it goes on to a neighbour, to j from i with the probability W_ij, or, with the probability `restart`,
    starts anew from one of the candidates, drawn by s. It is computed as s W-times over, restart sum_n (1 - restart)^n (W^T)^n s.

    Args:
        start: s, (Q, N) distributions. Equal candidates share theirs evenly first, so that they are equals in the end too.
        neighbours: of N candidates, without groups.
        restart: above 0, at most 1.

    Raises:
        ValueError: `restart` is neither.
    """
    if not 0 < restart <= 1:
        raise ValueError(f"restart must be above 0 and at most 1, got {restart}")
    n, k = neighbours.places.shape
    from_where = torch.arange(n, device=start.device)
    first = from_where if neighbours.first is None else neighbours.first
    own = (first == from_where).nonzero()[:, 0]  # copies are where their first is, until the end
    where = torch.stack([neighbours.places[own].flatten(), own.repeat_interleave(k)])
    odds = neighbours.weights[own].flatten().to(start.dtype)
    step = torch.sparse_coo_tensor(where, odds, (n, n), check_invariants=False).coalesce()  # W^T
    steps = 0 if restart == 1 else math.ceil(math.log(torch.finfo(start.dtype).eps) / math.log1p(-restart))
    shares = _copies(first)[first].to(start.dtype)
    out = torch.empty_like(start)

    def walk(rows: slice) -> None:
        found = torch.zeros_like(start[rows]).scatter_add_(1, first.expand_as(start[rows]), start[rows]).T
        anew = restart * found
        for _ in range(steps):
            found = anew + (1 - restart) * torch.sparse.mm(step, found)
        out[rows] = (found[first] / shares[:, None]).T

    at_once = max(1, BLOCK_ENTRIES // max(1, n))
    parallel_for(walk, [slice(i, i + at_once) for i in range(0, len(start), at_once)])
    return out


def walk_scores(cosine: Tensor, neighbours: Neighbours, temperature: float) -> Tensor:
    """The random walk that starts from what the cosines (Q, N) make likely, softmax(cosine / temperature) as in Eq. 1: (Q, N)."""
    return random_walk(posterior(cosine, temperature), neighbours)


def _copies(first: Tensor) -> Tensor:
    """(..., N) how many candidates equal each first one; 1 for those that are none."""
    return torch.zeros_like(first).scatter_add(-1, first, torch.ones_like(first)).clamp(min=1)


def _first_equals(candidates: Tensor) -> Tensor:
    """(G, N) for each of (G, N, D) float vectors the place of the first in its group that equals it in every number.

    Sums of integers are the same in whatever order they are taken, so equal vectors have equal keys. Vectors that only share a
    key are told apart.
    """
    groups, n, dim = candidates.shape
    bits = (candidates + 0.0).contiguous().view(torch.int32 if candidates.dtype == torch.float32 else torch.int64)  # one zero
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (dim + 1,), generator=generator).mul_(2).add_(1).to(candidates.device)
    keys = (bits.long() * factors[:-1]).sum(2) + torch.arange(groups, device=bits.device)[:, None] * factors[-1]
    distinct, number = torch.unique(keys.flatten(), return_inverse=True)
    place = torch.arange(n, device=bits.device).expand(groups, n)
    first_of = torch.full_like(distinct, n).scatter_reduce_(0, number, place.flatten(), "amin")
    first = first_of[number].view(groups, n)
    same = (candidates == candidates.gather(1, first[..., None].expand_as(candidates))).all(2)
    return torch.where(same, first, place)
