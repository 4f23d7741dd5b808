"""Scores of queries against candidates by diffusion, in blocks of queries, and their sum with the cosine.

Q queries, N candidates, D embedding size. Cosines are `losses.cosine_similarity` (Eq. 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .denoiser import AttentionDenoiser
from .factored import FactoredDenoiser, PreparedCandidates
from .losses import cosine_similarity
from .sampler import X0, OnStep, fast_ddim_sample
from .schedule import NoiseSchedule

BLOCK_ENTRIES = 2**24  # of the largest array that a block of queries needs, 64 MB in float32


def query_noise(seed: int, query_ids: Sequence[int], n: int, draw: int = 0) -> Callable[[int], Tensor]:
    """Standard normal noise for `ddim_sample` that depends on (seed, query id, draw, step) alone, never on the batch.

    Each row comes from a Philox generator (counter-based) with (seed, id) as its key and (draw, step) in its counter.

    Args:
        seed: any integer; the lowest 64 bits count.
        query_ids: one integer a query, the lowest 64 bits count.
        n: values a query; the first m of n are what n = m gives.
        draw: which of several independent noises.

    Returns:
        A function of the step i -> (Q, n) float32 on the CPU.
    """
    low = 2**64 - 1
    keys = [np.array([seed & low, int(i) & low], np.uint64) for i in query_ids]

    def noise(step: int) -> Tensor:
        out = np.empty((len(keys), n), np.float32)
        counter = np.array([0, 0, draw, step], np.uint64)
        for row, key in zip(out, keys, strict=True):
            np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out)

    return noise


@torch.no_grad()
def diffusion_score_blocks(
    denoiser: AttentionDenoiser,
    queries: Tensor,
    candidates: Tensor | PreparedCandidates,
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    query_ids: Sequence[int] | None = None,
    shortlist: int | None = None,
    draws: int = 1,
    x0: X0 = "softmax",
    chunk: int | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """x0_hat of every query over the candidates, a block of queries at a time, so that (Q, N) is never held.

    A query's result does not depend on its block, up to rounding: its noise follows from (seed, its id, the candidate's
    place, draw and step), with a shortlist or without.

    Args:
        denoiser: of the direction that the queries ask in.
        queries: (Q, D) unit embeddings.
        candidates: (N, D) unit embeddings, or what `FactoredDenoiser(denoiser).prepare` made of them.
        schedule: of K levels.
        steps, eta, x0: as in `ddim_sample`.
        seed: of the noise.
        query_ids: an integer a query that its noise follows; None takes the row numbers.
        shortlist: sample over this many best candidates by cosine a query, as if there were no others; None takes all.
        draws: independent noise draws whose x0_hat are averaged.
        chunk: queries a block; None chooses by memory.

    Yields:
        The rows, and their x0_hat (rows, N), zero outside the shortlist, on the device of the queries; the work is done on
        that of the denoiser.

    Raises:
        ValueError: steps, eta, shortlist or draws out of range, or query_ids of another length.
    """
    ids = range(len(queries)) if query_ids is None else query_ids
    if len(ids) != len(queries):
        raise ValueError(f"{len(queries)} queries need as many query_ids, got {len(ids)}")
    if draws < 1 or (shortlist is not None and shortlist < 1):
        raise ValueError(f"draws and shortlist must be at least 1, got {draws} and {shortlist}")
    if isinstance(candidates, PreparedCandidates):
        prepared = candidates
    else:
        prepared = FactoredDenoiser(denoiser).prepare(candidates.to(denoiser.w_q.weight.device))
    embeddings = prepared.candidates[0]
    n, dim = embeddings.shape
    if shortlist is not None and shortlist >= n:
        shortlist = None
    if chunk is None:
        chunk = max(1, BLOCK_ENTRIES // max(n, (shortlist or 0) * dim))
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        query = queries[rows].to(embeddings)
        listed = None if shortlist is None else cosine_similarity(query, embeddings).topk(shortlist, dim=1).indices
        x0_hat = torch.zeros(len(query), n, dtype=embeddings.dtype, device=embeddings.device)
        for draw in range(draws):
            noise = query_noise(seed, ids[rows], n, draw)
            if listed is None:
                x0_hat += fast_ddim_sample(denoiser, query, prepared, schedule, steps, eta, noise, x0=x0)
            else:
                own_noise = _noise_of(noise, listed)
                own = fast_ddim_sample(denoiser, query, embeddings[listed], schedule, steps, eta, own_noise, x0=x0)
                x0_hat.scatter_add_(1, listed, own)
        yield rows, x0_hat.div_(draws).to(queries.device)


def diffusion_scores(
    denoiser: AttentionDenoiser,
    queries: Tensor,
    candidates: Tensor | PreparedCandidates,
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    query_ids: Sequence[int] | None = None,
    shortlist: int | None = None,
    draws: int = 1,
    x0: X0 = "softmax",
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """All blocks of `diffusion_score_blocks` as one matrix (Q, N); `progress` is called with (queries done, Q)."""
    blocks = diffusion_score_blocks(
        denoiser,
        queries,
        candidates,
        schedule,
        steps=steps,
        eta=eta,
        seed=seed,
        query_ids=query_ids,
        shortlist=shortlist,
        draws=draws,
        x0=x0,
        chunk=chunk,
    )
    n = len(candidates) if isinstance(candidates, Tensor) else candidates.candidates.shape[1]
    parts = [queries.new_zeros(0, n)]
    for rows, x0_hat in blocks:
        parts.append(x0_hat)
        if progress is not None:
            progress(rows.stop, len(queries))
    return torch.cat(parts)


@torch.no_grad()
def diffusion_draws(
    query: Tensor,
    prepared: PreparedCandidates,
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    query_id: int = 0,
    draws: int = 1,
    x0: X0 = "softmax",
    on_step: OnStep | None = None,
) -> Tensor:
    """What one query's distribution becomes from each of several noises: (S, N), whose mean is `diffusion_scores`' row.

    Args:
        query: (D,) unit vector.
        prepared: N candidates that all draws share.
        query_id: of the noise.
        draws: S.
        on_step: as in `ddim_sample`, with all draws as its rows.

    Raises:
        ValueError: steps, eta or draws out of range.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    n = prepared.candidates.shape[1]
    of_draw = [query_noise(seed, [query_id], n, draw) for draw in range(draws)]
    queries = query.to(prepared.candidates).expand(draws, -1)
    return fast_ddim_sample(
        prepared.factors,
        queries,
        prepared,
        schedule,
        steps,
        eta,
        lambda i: torch.cat([noise(i) for noise in of_draw]),
        x0=x0,
        on_step=on_step,
    )


def fuse(cosine: Tensor, x0_hat: Tensor, weight: float) -> Tensor:
    """The final score, cosine + weight * x0_hat, (Q, N)."""
    return cosine + weight * x0_hat


def _noise_of(noise: Callable[[int], Tensor], listed: Tensor) -> Callable[[int], Tensor]:
    """The noise of the listed candidates, (Q, shortlist), out of that of all."""
    return lambda step: noise(step).to(listed.device).gather(1, listed)
