"""Metrics of ranking an embedded split, by cosine and by diffusion."""

from __future__ import annotations

from ..core.losses import cosine_similarity
from ..core.metrics import MetricAccumulator
from ..core.sampling import Sampling
from ..core.scoring import Reranker, diffusion_score_blocks
from ..progress import Progress, silent
from ..types import Direction, System
from .embedded_split import EmbeddedSplit

QUERIES_AT_ONCE = 1024


def rank(
    split: EmbeddedSplit,
    direction: Direction,
    reranker: Reranker | None = None,
    sampling: Sampling | None = None,
    progress: Progress = silent,
) -> dict[System, dict[str, float]]:
    """Metrics of each system in one direction: `baseline` by cosine, `diff` by the reranker's final score.

    `sampling` is the reranker's own if None. A reranker that does not fuse belongs to a model without a contrastive space
    (strategy `gen`): there is no baseline. Blocks of queries pass through, so the full matrix is never held.
    """
    queries, candidates, relevant = split.task(direction)
    by_cosine, by_diffusion = MetricAccumulator(), MetricAccumulator()
    if reranker is None:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            by_cosine.update(cosine_similarity(queries[rows], candidates), relevant[rows])
        return {"baseline": by_cosine.result()}
    prepared = reranker.prepare(direction, candidates)
    for rows, x0_hat in diffusion_score_blocks(queries, prepared, reranker.schedule, sampling or reranker.sampling):
        cosine = cosine_similarity(queries[rows], candidates)
        by_cosine.update(cosine, relevant[rows])
        by_diffusion.update(reranker.final_score(direction, cosine, x0_hat), relevant[rows])
        progress(rows.stop, len(queries), f"diffusion, {direction}")
    results: dict[System, dict[str, float]] = {"baseline": by_cosine.result()} if reranker.fuses else {}
    return results | {"diff": by_diffusion.result()}
