"""Metrics of ranking an embedded split, by cosine and by diffusion."""

from __future__ import annotations

from ..core.losses import cosine_similarity
from ..core.metrics import MetricAccumulator
from ..core.scoring import diffusion_score_blocks, fuse
from ..model import Retriever
from ..progress import Progress, silent
from ..types import Direction, System
from .embedded_split import EmbeddedSplit

QUERIES_AT_ONCE = 1024


def rank(
    retriever: Retriever,
    gallery: EmbeddedSplit,
    direction: Direction,
    steps: int | None = None,
    shortlist: int | None = None,
    noise_seed: int = 0,
    progress: Progress = silent,
) -> dict[System, dict[str, float]]:
    """Metrics of each system in one direction: `baseline` by cosine, `diff` by cosine + weight * x0_hat.

    With strategy `gen` there is no contrastive space: `diff` ranks by x0_hat alone, and there is no baseline. A model
    without phase two has no `diff`. Blocks of queries pass through, so the full matrix is never held.
    """
    queries, candidates, relevant = gallery.task(direction)
    by_cosine, by_diffusion = MetricAccumulator(), MetricAccumulator()
    if not retriever.denoisers:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            by_cosine.update(cosine_similarity(queries[rows], candidates), relevant[rows])
        return {"baseline": by_cosine.result()}
    alone = retriever.recipe.model.strategy == "gen"
    section = retriever.recipe.evaluation
    blocks = diffusion_score_blocks(
        retriever.denoisers[direction],
        queries,
        candidates,
        retriever.schedule,
        steps=steps or section.steps,
        eta=section.eta,
        seed=noise_seed,
        shortlist=shortlist or section.shortlist,
        draws=section.draws,
        x0=retriever.x0,
    )
    for rows, x0_hat in blocks:
        cosine = cosine_similarity(queries[rows], candidates)
        by_cosine.update(cosine, relevant[rows])
        by_diffusion.update(x0_hat if alone else fuse(cosine, x0_hat, retriever.fusion_weights[direction]), relevant[rows])
        progress(rows.stop, len(queries), f"diffusion, {direction}")
    return {"diff": by_diffusion.result()} if alone else {"baseline": by_cosine.result(), "diff": by_diffusion.result()}
