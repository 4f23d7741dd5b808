"""Metrics of ranking an embedded split, by cosine and by diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.losses import cosine_similarity
from ..core.metrics import Measure, MetricAccumulator
from ..core.sampling import Sampling
from ..core.schedule import NoiseSchedule
from ..core.scoring import Reranker, diffusion_score_blocks, diffusion_scores
from ..core.sight import Sight
from ..processes import count, shared_rows
from ..progress import Progress, silent
from ..types import Direction, System
from .embedded_split import EmbeddedSplit

QUERIES_AT_ONCE = 1024

OnScores = Callable[[System, slice, Tensor], None]
"""Called with what a system scores a block of queries: the rows, and (rows, candidates)."""


def score_blocks(
    queries: Tensor,
    prepared: Any,
    schedule: NoiseSchedule,
    sampling: Sampling,
    query_ids: Sequence[int] | None = None,
    sight: Sight | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """x0_hat of blocks of queries, as `diffusion_score_blocks` has it. Several processes take a share of each block."""
    if count() == 1:
        yield from diffusion_score_blocks(queries, prepared, schedule, sampling, query_ids=query_ids, sight=sight)
        return
    ids = list(range(len(queries))) if query_ids is None else list(query_ids)

    def score(places: Sequence[int]) -> Tensor:
        own, seen = [ids[place] for place in places], sight and sight.of(places)
        return diffusion_scores(queries[places], prepared, schedule, sampling, query_ids=own, sight=seen)

    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
        yield rows, shared_rows(score, range(rows.start, rows.stop))


def rank(
    split: EmbeddedSplit,
    direction: Direction,
    reranker: Reranker | None = None,
    sampling: Sampling | None = None,
    progress: Progress = silent,
) -> dict[System, dict[str, float]]:
    """Metrics of each system in one direction over the whole split, as `rank_queries` has them."""
    queries, candidates, relevant = split.task(direction)
    ranked = rank_queries(queries, candidates, relevant, direction, reranker, sampling, progress)
    return {system: accumulator.result() for system, accumulator in ranked.items()}


def rank_corrected(
    queries: Tensor,
    candidates: Tensor,
    relevant: Sequence[np.ndarray],
    system: System,
    correct: Callable[[Tensor], Tensor],
    *,
    measure: Measure | None = None,
    on_scores: OnScores | None = None,
) -> MetricAccumulator:
    """What each query got of a system whose scores follow from the cosines of a block of queries: `correct` makes them.

    The other arguments are those of `rank_queries`.
    """
    found = MetricAccumulator(measure)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
        scores = correct(cosine_similarity(queries[rows], candidates))
        found.update(scores, relevant[rows])
        if on_scores is not None:
            on_scores(system, rows, scores)
    return found


def rank_queries(
    queries: Tensor,
    candidates: Tensor,
    relevant: Sequence[np.ndarray],
    direction: Direction,
    reranker: Reranker | None = None,
    sampling: Sampling | None = None,
    progress: Progress = silent,
    *,
    query_ids: Sequence[int] | None = None,
    measure: Measure | None = None,
    on_scores: OnScores | None = None,
    sight: Sight | None = None,
) -> dict[System, MetricAccumulator]:
    """What each query got of each system: `baseline` by cosine, `diff` by the reranker's final score.

    `sampling` is the reranker's own if None. A reranker that does not fuse belongs to a model without a contrastive space
    (strategy `gen`): there is no baseline. Where x0_hat has the weight 0, nothing is sampled, and `diff` is the cosine, less what
    the prior takes if the reranker has one. Blocks of queries pass through, so the full matrix is never held.

    Args:
        queries, candidates: unit vectors (Q, D) and (C, D).
        relevant: for each query the indices of the candidates that it is to find.
        query_ids: an integer a query that its noise follows; None takes the row numbers.
        measure: the definitions of the metrics; None takes the paper's.
        sight: what the queries see in their candidates (`Reranker.sight`), of a reranker whose candidates depend on the query.

    Raises:
        ValueError: such a reranker, and no sight.
    """
    systems: dict[System, MetricAccumulator] = {}

    def count(system: System, rows: slice, scores: Tensor) -> None:
        systems.setdefault(system, MetricAccumulator(measure)).update(scores, relevant[rows])
        if on_scores is not None:
            on_scores(system, rows, scores)

    offsets = reranker.offsets(direction, candidates) if reranker else torch.zeros(len(candidates))
    if reranker is None or not reranker.counts(direction):
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
            cosine = cosine_similarity(queries[rows], candidates)
            count("baseline", rows, cosine)
            if reranker is not None:
                count("diff", rows, cosine - offsets)
        return systems
    if reranker.conditioners and sight is None:
        raise ValueError("the candidates of this reranker depend on the query: pass what it sees of them")
    prepared = reranker.prepare(direction, candidates)
    blocks = score_blocks(queries, prepared, reranker.schedule, sampling or reranker.sampling, query_ids, sight)
    for rows, x0_hat in blocks:
        cosine = cosine_similarity(queries[rows], candidates)
        if reranker.fuses:
            count("baseline", rows, cosine)
        count("diff", rows, reranker.final_score(direction, cosine - offsets, x0_hat))
        progress(rows.stop, len(queries), f"diffusion, {direction}")
    return systems
