"""The fixed feedback, which a learned one has to beat: a random walk over the candidates' neighbours beside the cosine.

Q queries, C candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.feedback import neighbours_of, walk_scores
from ..core.losses import cosine_similarity
from ..core.metrics import Measure, MetricAccumulator
from ..core.scoring import Shape, fuse
from ..data.manifest import Dataset
from ..model import Retriever
from ..processes import from_first
from ..progress import Progress, silent
from ..recipe_schema import Recipe
from ..types import DIRECTIONS, Direction
from .choose_fusion import Fusion, Scored, choose_weight
from .ranking import OnScores, rank_corrected
from .validation import Validation, validation_sets, validations


@dataclass(frozen=True)
class Walk:
    """A walk that starts from softmax(cosine / temperature), and how validation joins where it ends with the cosine.

    Its distribution stands where x0_hat does in `scoring.fuse`: it is one too, and its logarithm reaches far into it.

    Attributes:
        temperature: tau of Eq. 1.
        fusions: by direction.
    """

    temperature: float
    fusions: Mapping[Direction, Fusion]

    @classmethod
    def fit(cls, temperature: float, splits: Sequence[Validation], weights: Sequence[float], shapes: Sequence[Shape]) -> Walk:
        """The fusions that validation splits earn, by the rule for x0_hat's (`choose_weight`)."""

        def walked(each: Validation, direction: Direction) -> Scored:
            queries, candidates, _ = each.split.task(direction)
            task = each.tasks[direction]
            cosine = cosine_similarity(queries[task.rows], candidates)
            return Scored(cosine, walk_scores(cosine, neighbours_of(candidates), temperature), task)

        return cls(temperature, {d: choose_weight([walked(each, d) for each in splits], weights, shapes) for d in DIRECTIONS})

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
        """What each query gets by the cosine with the walk's part; the arguments are those of `ranking.rank_queries`.

        Where validation gave it none, there is nothing to walk for.
        """
        fusion = self.fusions[direction]
        neighbours = neighbours_of(candidates) if fusion.weight else None

        def walked(cosine: Tensor) -> Tensor:
            if neighbours is None:
                return cosine
            return fuse(cosine, walk_scores(cosine, neighbours, self.temperature), fusion.weight, fusion.shape)

        return rank_corrected(queries, candidates, relevant, "walk", walked, measure=measure, on_scores=on_scores)


def walk_of(model: Retriever, run: Path, dataset: Dataset, recipe: Recipe, progress: Progress = silent) -> Walk:
    """The walk of a run, fitted on the validation split of the data set that it learnt from, and those of `evaluation.domains`.

    Args:
        model: one with a contrastive space (`ranks_by_cosine`).
        recipe: what it was trained with; its `evaluation` section has the weights and shapes to choose from.
    """
    splits = validations(model, run, validation_sets(dataset, recipe), recipe, progress=progress)
    offered = recipe.evaluation.fusion_weights, recipe.evaluation.fusion_shapes
    return from_first(Walk.fit(recipe.model.temperature, splits, *offered))


def ranks_by_cosine(model: Retriever) -> bool:
    """Whether a model has a contrastive space, whose cosines mean something (not strategy `gen`)."""
    return model.reranker is None or model.reranker.fuses
