"""Scores of queries against candidates by diffusion, in blocks of queries, and their sum with the cosine.

Q queries, N candidates, D embedding size, S noise draws. Cosines are `losses.cosine_similarity` (Eq. 7).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..types import Direction
from .algebra import Factors
from .chain import OnStep
from .denoiser import AttentionDenoiser
from .factored import FactoredDenoiser, PreparedCandidates
from .losses import cosine_similarity
from .noise import query_noise
from .query_conditioned import QueryConditioner
from .querybank import Prior
from .sampler import ddim_levels, fast_ddim_sample
from .sampling import Sampling
from .schedule import NoiseSchedule
from .sight import Sight, States

BLOCK_ENTRIES = 2**24  # of the largest array that a block of queries needs, 64 MB in float32

Shape = Literal["sum", "log"]
"""How x0_hat joins the cosine (`fuse`)."""

LOG_FLOOR = 1e-6
"""Probability below which `log` tells candidates apart no more; one that was not sampled at all keeps its cosine."""


@torch.no_grad()
def diffusion_score_blocks(
    queries: Tensor,
    prepared: PreparedCandidates,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    query_ids: Sequence[int] | None = None,
    chunk: int | None = None,
    on_step: OnStep | None = None,
    sight: Sight | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """x0_hat of every query over the candidates, a block of queries at a time, so that (Q, N) is never held.

    A query's result does not depend on its block, up to rounding: its noise follows from (seed, its id, the candidate's
    place, draw and step), with a shortlist or without. With a shortlist a query is sampled over its candidates as if there were
    no others.

    Args:
        queries: (Q, D) unit embeddings.
        prepared: N candidates that all queries share, by the denoiser of the direction that the queries ask in.
        schedule: of K levels.
        sampling: steps, noise, draws and shortlist.
        query_ids: an integer a query that its noise follows; None takes the row numbers.
        chunk: queries a block; None chooses by memory.
        on_step: as in `ddim_sample`, at every level of each block and draw; with a shortlist it sees those candidates alone.
        sight: what the queries see in their candidates; None leaves all candidates as they are.

    Yields:
        The rows, and their x0_hat (rows, N), zero outside the shortlist, on the device of the queries; the work is done on
        that of the candidates.

    Raises:
        ValueError: more steps than the chain has, or query_ids of another length.
    """
    ids = range(len(queries)) if query_ids is None else query_ids
    if len(ids) != len(queries):
        raise ValueError(f"{len(queries)} queries need as many query_ids, got {len(ids)}")
    embeddings = prepared.candidates[0]
    n, dim = embeddings.shape
    shortlist = sampling.shortlist if sampling.shortlist is not None and sampling.shortlist < n else None
    if sight is not None and shortlist is None:
        shortlist = n  # each query has its own, be they all
    if chunk is None:
        own = 0 if shortlist is None else max(shortlist * dim, sight.entries(shortlist) if sight else 0)
        chunk = max(1, BLOCK_ENTRIES // max(n, own))
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        query = queries[rows].to(embeddings)
        listed = None if shortlist is None else shortlisted(query, embeddings, shortlist)
        candidates, shift = None if listed is None else embeddings[listed], None
        if sight is not None and listed is not None and candidates is not None:
            candidates, shift = sight(rows, listed, candidates)
        x0_hat = torch.zeros(len(query), n, dtype=embeddings.dtype, device=embeddings.device)
        for draw in range(sampling.draws):
            noise = _start(sampling, ids[rows], n, draw, embeddings.device, listed)
            if listed is None or candidates is None:
                x0_hat += _sample(prepared.factors, query, prepared, schedule, sampling, noise, on_step)
            else:
                x0_hat_own = _sample(prepared.factors, query, candidates, schedule, sampling, noise, on_step, shift)
                x0_hat.scatter_add_(1, listed, x0_hat_own)
        yield rows, x0_hat.div_(sampling.draws).to(queries.device)


def shortlisted(queries: Tensor, candidates: Tensor, shortlist: int | None) -> Tensor:
    """The places of the candidates that queries are sampled over, (Q, S), the best cosine first: all at most."""
    n = len(candidates)
    return cosine_similarity(queries, candidates).topk(n if shortlist is None else min(shortlist, n), dim=1).indices


def diffusion_scores(
    queries: Tensor,
    prepared: PreparedCandidates,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    query_ids: Sequence[int] | None = None,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    sight: Sight | None = None,
) -> Tensor:
    """All blocks of `diffusion_score_blocks` as one matrix (Q, N); `progress` is called with (queries done, Q)."""
    parts = [queries.new_zeros(0, prepared.candidates.shape[1])]
    how: dict[str, Any] = {"query_ids": query_ids, "chunk": chunk, "sight": sight}
    for rows, x0_hat in diffusion_score_blocks(queries, prepared, schedule, sampling, **how):
        parts.append(x0_hat)
        if progress is not None:
            progress(rows.stop, len(queries))
    return torch.cat(parts)


@torch.no_grad()
def diffusion_draws(
    query: Tensor,
    prepared: PreparedCandidates,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    query_id: int = 0,
    on_step: OnStep | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What one query's distribution becomes from each noise draw: (S, N), whose mean is `diffusion_scores`' row.

    Args:
        query: (D,) unit vector.
        prepared: N candidates that all draws share, all of which are sampled over: they are a shortlist already.
        query_id: of the noise.
        on_step: as in `ddim_sample`, with all draws as its rows.
        seen: the candidates as the query sees them, (1, N, D), and what is added to their logits, (1, N): of a `Sight`.

    Raises:
        ValueError: more steps than the chain has.
    """
    n = prepared.candidates.shape[1]
    of_draw = [_start(sampling, [query_id], n, draw, prepared.candidates.device) for draw in range(sampling.draws)]
    queries = query.to(prepared.candidates).expand(sampling.draws, -1)

    def noise(step: int) -> Tensor:
        return torch.cat([draw(step) for draw in of_draw])

    if seen is None:
        return _sample(prepared.factors, queries, prepared, schedule, sampling, noise, on_step)
    own, shift = (each.expand(sampling.draws, *each.shape[1:]) for each in seen)
    return _sample(prepared.factors, queries, own, schedule, sampling, noise, on_step, shift)


def _start(
    sampling: Sampling, query_ids: Sequence[int], n: int, draw: int, device: torch.device, listed: Tensor | None = None
) -> Callable[[int], Tensor]:
    """What the chain starts from: `query_noise` of all candidates or of the listed ones (Q, S), or nothing at all."""
    if sampling.noise:
        return query_noise(sampling.seed, query_ids, n, draw, listed, device)
    return lambda step: torch.zeros(len(query_ids), n if listed is None else listed.shape[1])


def _sample(
    factors: Factors,
    queries: Tensor,
    candidates: Tensor | PreparedCandidates,
    schedule: NoiseSchedule,
    sampling: Sampling,
    noise: Callable[[int], Tensor],
    on_step: OnStep | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`fast_ddim_sample` by these settings."""
    how: dict[str, Any] = {"x0": sampling.x0, "on_step": on_step, "shift": shift}
    return fast_ddim_sample(factors, queries, candidates, schedule, sampling.steps, sampling.eta, noise, **how)


def fuse(cosine: Tensor, x0_hat: Tensor, weight: float | None, shape: Shape = "sum") -> Tensor:
    """The final score, (Q, N): cosine + weight * x0_hat, or with `log` cosine + weight * log(1 + x0_hat / LOG_FLOOR).

    x0_hat alone where there is no weight (strategy `gen`).
    """
    if weight is None:
        return x0_hat
    return cosine + weight * (x0_hat if shape == "sum" else (x0_hat.clamp(min=0) / LOG_FLOOR).log1p())


def reach(weight: float, shape: Shape) -> float:
    """The most by which x0_hat can lift a score: by it weights of different shapes compare."""
    return float(fuse(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), weight, shape))


class Reranker:
    """The denoisers of both directions with all that scoring by them takes.

    Args:
        denoisers: in evaluation mode, on the device that does the work. Later changes to their weights do not reach what was
            prepared before.
        schedule: of K levels.
        sampling: how x_0 is sampled, where a call does not say otherwise.
        fusion_weights: of x0_hat beside the cosine, by direction; none for a model that ranks by x0_hat alone (strategy `gen`).
        fusion_shapes: how it joins the cosine, by direction; where one is missing, as a sum.
        conditioners: what makes candidates depend on the query, by direction; none where they do not. As `denoisers` else.
        priors: what is known of candidates before any query, by direction; none where nothing is.

    Raises:
        ValueError: the settings visit more steps than the chain has.
    """

    def __init__(
        self,
        denoisers: Mapping[Direction, AttentionDenoiser],
        schedule: NoiseSchedule,
        sampling: Sampling,
        fusion_weights: Mapping[Direction, float],
        fusion_shapes: Mapping[Direction, Shape] | None = None,
        conditioners: Mapping[Direction, QueryConditioner] | None = None,
        priors: Mapping[Direction, Prior] | None = None,
    ) -> None:
        ddim_levels(len(schedule), sampling.steps)
        self.denoisers = denoisers
        self.schedule = schedule
        self.sampling = sampling
        self.fusion_weights = fusion_weights
        self.fusion_shapes = fusion_shapes or {}
        self.conditioners = conditioners or {}
        self.priors = priors or {}
        self._factors: dict[Direction, FactoredDenoiser] = {}

    @property
    def fuses(self) -> bool:
        """Whether the final score is the cosine with x0_hat added, and not x0_hat alone."""
        return bool(self.fusion_weights)

    def counts(self, direction: Direction) -> bool:
        """Whether x0_hat has any part in the ranking. Where validation gave it none, there is nothing to sample for."""
        return self.fusion_weights.get(direction) != 0

    def offsets(self, direction: Direction, candidates: Tensor) -> Tensor:
        """What the cosines of candidates (N, D) lose by the prior, (N,): zeros where there is none."""
        prior = self.priors.get(direction)
        return candidates.new_zeros(len(candidates)) if prior is None else prior.offsets(candidates)

    def with_weight(self, weight: float) -> Self:
        """The same denoisers beside the cosine with another weight, in both directions. Raises ValueError without a cosine."""
        if not self.fuses:
            raise ValueError("this model ranks by x0_hat alone: there is no cosine to weigh it against")
        other = copy.copy(self)
        other.fusion_weights = dict.fromkeys(self.fusion_weights, weight)
        return other

    def prepare(self, direction: Direction, candidates: Tensor) -> PreparedCandidates:
        """What any number of queries of a direction need of their candidates (N, D)."""
        if direction not in self._factors:  # multiplied out once, not at every search, where it would take most of the time
            self._factors[direction] = FactoredDenoiser(self.denoisers[direction])
        factors = self._factors[direction]
        return factors.prepare(candidates.to(factors.weight.device))

    def sight(self, direction: Direction, states: States | None, rows: Sequence[int] | np.ndarray | None = None) -> Sight | None:
        """What the queries of a direction see in their candidates; None for a model whose candidates do not depend on the query.

        Args:
            states: of the captions and clips that are queries and candidates.
            rows: the places of the queries among them; None takes all.

        Raises:
            ValueError: this model needs states, and there are none.
        """
        if not self.conditioners:
            return None
        if states is None:
            raise ValueError("this model re-ranks by frames: it needs the states of captions and clips")
        queries, candidates = states if direction == "t2a" else (states.frames, states.tokens)
        places = np.arange(len(queries)) if rows is None else np.asarray(rows)
        scale = self.denoisers[direction].input_scale
        return Sight(self.conditioners[direction], direction, queries, candidates, places, scale)

    def draws(
        self,
        direction: Direction,
        query: Tensor,
        candidates: Tensor,
        sampling: Sampling,
        on_step: OnStep | None = None,
        states: States | None = None,
    ) -> Tensor:
        """`diffusion_draws` of one query (D,) over a shortlist (N, D): (S, N).

        Args:
            states: of that query and of those candidates, in their order, for a model whose candidates depend on the query.

        Raises:
            ValueError: such a model, and there are none.
        """
        prepared, sight = self.prepare(direction, candidates), self.sight(direction, states)
        seen = None if sight is None else sight.whole(prepared.candidates[0])
        return diffusion_draws(query, prepared, self.schedule, sampling, on_step=on_step, seen=seen)

    def final_score(self, direction: Direction, cosine: Tensor, x0_hat: Tensor) -> Tensor:
        """What candidates are ranked by, from their cosines, less `offsets`, and x0_hat of one shape."""
        return fuse(cosine, x0_hat, self.fusion_weights.get(direction), self.fusion_shapes.get(direction, "sum"))

    def shortlist_scores(self, direction: Direction, base: np.ndarray, x0_hat: np.ndarray | None) -> np.ndarray:
        """What N candidates are ranked by, (N,), the first of which were sampled over.

        Args:
            base: their cosines less `offsets`, (N,) float64.
            x0_hat: (n,) of the first n; None where it has no part in the ranking.
        """
        if x0_hat is None:
            return base
        near = torch.from_numpy(base[: len(x0_hat)]), torch.from_numpy(x0_hat.astype(np.float64))
        return np.concatenate([self.final_score(direction, *near).numpy(), base[len(x0_hat) :]])
