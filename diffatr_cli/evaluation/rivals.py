"""What diffusion has to beat, beside the plain cosine: querybank normalisation, and the model itself in a single step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.metrics import Measure, MetricAccumulator
from ..core.querybank import querybank_offsets
from ..core.sampling import Sampling
from ..core.sight import Sight
from ..data.manifest import Dataset
from ..model import Retriever
from ..progress import Progress, silent
from ..types import DIRECTIONS, Direction, System
from .embedded_split import EmbeddedSplit, cached_split, recall_sum
from .ranking import OnScores, rank_corrected, rank_queries
from .walk import ranks_by_cosine

BETAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""The inverse temperatures that validation chooses from; Bogolin et al. use 20."""


@dataclass(frozen=True)
class Querybank:
    """Banks of training queries, and the beta that validation chose, for each direction.

    Attributes:
        queries: (B, D): captions for text-to-audio, clips for audio-to-text.
    """

    queries: Mapping[Direction, Tensor]
    betas: Mapping[Direction, float]

    @classmethod
    def fit(cls, train: EmbeddedSplit, val: EmbeddedSplit, betas: Sequence[float] = BETAS) -> Querybank:
        """All queries of a training split, and of `betas` the one that is best on validation; of equals the smallest."""
        queries: dict[Direction, Tensor] = {"t2a": train.text, "a2t": train.audio}
        chosen: dict[Direction, float] = {}
        for direction in DIRECTIONS:
            tried = {beta: recall_sum(cls(queries, {direction: beta}).rank(val, direction)) for beta in sorted(betas)}
            chosen[direction] = max(tried, key=tried.__getitem__)
        return cls(queries, chosen)

    def rank(self, split: EmbeddedSplit, direction: Direction) -> dict[str, float]:
        """Metrics of a split by the normalised cosine."""
        return self.rank_queries(*split.task(direction), direction).result()

    def rank_queries(
        self,
        queries: Tensor,
        candidates: Tensor,
        relevant: Sequence[np.ndarray],
        direction: Direction,
        *,
        measure: Measure | None = None,
        on_scores: OnScores | None = None,
    ) -> MetricAccumulator:
        """What each query gets by the normalised cosine; the arguments are those of `ranking.rank_queries`."""
        offsets = querybank_offsets(candidates, self.queries[direction], self.betas[direction])
        shown: dict[str, Any] = {"measure": measure, "on_scores": on_scores}
        return rank_corrected(queries, candidates, relevant, "qbnorm", lambda cosine: cosine - offsets.to(cosine), **shown)


def querybank_of(
    model: Retriever, run: Path, dataset: Dataset, same_captions: str, progress: Progress = silent
) -> Querybank | None:
    """The bank of a run from the data set that it learnt from; None for a model without a contrastive space (strategy `gen`)."""
    if not ranks_by_cosine(model):
        return None
    train, val = (cached_split(model, run, dataset, split, same_captions, progress) for split in ("train", "val"))
    return Querybank.fit(train, val)


def rank_rivals(
    queries: Tensor,
    candidates: Tensor,
    relevant: Sequence[np.ndarray],
    direction: Direction,
    model: Retriever,
    bank: Querybank | None,
    sampling: Sampling,
    progress: Progress = silent,
    *,
    query_ids: Sequence[int] | None = None,
    measure: Measure | None = None,
    on_scores: OnScores | None = None,
    sight: Sight | None = None,
) -> dict[System, MetricAccumulator]:
    """What each query got of each rival: `qbnorm` with a bank, `one-step` of a model that has a chain.

    One step is the model as it is, its weight of x0_hat too, with noise at x_K and the first answer taken. The arguments are
    those of `ranking.rank_queries`.
    """
    found: dict[System, MetricAccumulator] = {}
    if bank is not None:
        found["qbnorm"] = bank.rank_queries(queries, candidates, relevant, direction, measure=measure, on_scores=on_scores)
    if model.reranker is not None and sampling.noise:

        def as_one_step(system: System, rows: slice, scores: Tensor) -> None:
            if system == "diff" and on_scores is not None:
                on_scores("one-step", rows, scores)

        what = queries, candidates, relevant, direction, model.reranker, sampling.but(steps=1), progress
        how: dict[str, Any] = {"query_ids": query_ids, "measure": measure, "on_scores": as_one_step, "sight": sight}
        found["one-step"] = rank_queries(*what, **how)["diff"]
    return found
