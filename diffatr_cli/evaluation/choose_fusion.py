"""How much x0_hat may say beside the cosine: chosen on a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.losses import cosine_similarity
from ..core.metrics import MetricAccumulator, mean_metrics
from ..core.scoring import Reranker, Shape, fuse, reach
from ..core.sight import Sight
from ..types import Direction
from .earning import MEASURE, FusionTask, earned, mean_over_domains
from .embedded_split import EmbeddedSplit
from .ranking import score_blocks


@dataclass(frozen=True)
class Fusion:
    """What validation chose.

    Attributes:
        weight, shape: of x0_hat beside the cosine (`scoring.fuse`).
        gain: mean AP over the cosine's, in percent, the mean over domains, and `error`, its standard error.
        worth: the best that any weight above 0 reached: of two denoisers the better one has more.
        metrics: of the chosen ranking, over all queries: r1, r5, r10, map (of the whole ranking), medr, meanr.
    """

    weight: float
    shape: Shape
    gain: float
    error: float
    worth: float
    metrics: dict[str, float]


def choose_fusion(
    split: EmbeddedSplit,
    direction: Direction,
    reranker: Reranker,
    task: FusionTask,
    weights: Sequence[float],
    shapes: Sequence[Shape] = ("sum",),
    sight: Sight | None = None,
) -> Fusion:
    """The fusion of x0_hat with the cosine, less the prior, that a validation split earns, by `choose_weight`.

    Args:
        weights, shapes: as in `choose_weight`.
        sight: as in `ranking.rank_queries`, of all queries of the task.
    """
    queries, candidates, _ = split.task(direction)
    queries = queries[task.rows]
    prepared = reranker.prepare(direction, candidates)
    seen = sight and sight.of(task.rows)
    how: dict[str, Any] = {"query_ids": task.rows.tolist(), "sight": seen}
    blocks = score_blocks(queries, prepared, reranker.schedule, reranker.sampling, **how)
    x0_hat = torch.cat([scores for _, scores in blocks])
    base = cosine_similarity(queries, candidates) - reranker.offsets(direction, candidates)
    return choose_weight(base, x0_hat, task, weights, shapes)


def choose_weight(
    base: Tensor, x0_hat: Tensor, task: FusionTask, weights: Sequence[float], shapes: Sequence[Shape] = ("sum",)
) -> Fusion:
    """The fusion of any distributions over the candidates with other scores that a task earns (`earning.earned`).

    Args:
        base: what there is without them, (Q, N) of the task's queries: cosines, as a rule.
        x0_hat: the distributions, (Q, N).
        weights, shapes: to choose from, every weight with every shape. Where 0, `base` alone, is not among them, no weight has to
            be earned.
    """

    def measured(weight: float, shape: Shape) -> dict[str, np.ndarray]:
        accumulator = MetricAccumulator(MEASURE)
        accumulator.update(fuse(base, x0_hat, weight, shape), task.relevant)
        return accumulator.queries()

    offered: list[tuple[float, Shape]] = [(0.0, shapes[0])] if 0 in weights else []
    offered += [(weight, shape) for weight, shape in product(weights, shapes) if weight]
    tried = {fusion: measured(*fusion) for fusion in offered}
    precision = {fusion: found[MEASURE.ap_name] for fusion, found in tried.items()}
    plain = precision.get((0.0, shapes[0]))
    if plain is None:
        plain = measured(0.0, shapes[0])[MEASURE.ap_name]
    chosen, gain, error = earned(precision, plain, task, lambda fusion: (reach(*fusion),))
    worth = max(mean_over_domains(each, task)[0] for (weight, _), each in precision.items() if weight or len(precision) == 1)
    return Fusion(*chosen, gain, error, worth, mean_metrics(tried[chosen]))
