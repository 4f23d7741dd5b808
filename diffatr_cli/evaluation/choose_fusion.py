"""How much x0_hat may say beside the cosine: chosen on a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.losses import cosine_similarity
from ..core.metrics import MetricAccumulator, mean_metrics
from ..core.scoring import Reranker, Shape, fuse, reach
from ..types import Direction
from .earning import MEASURE, FusionTask, earned, joined, mean_over_domains
from .ranking import score_blocks
from .validation import Validation


@dataclass(frozen=True)
class Fusion:
    """What validation chose.

    Attributes:
        weight, shape: of x0_hat beside the cosine (`scoring.fuse`).
        gain: mean AP over the cosine's, in percent, the mean over domains, and `error`, its standard error.
        worth: the best that any weight above 0 reached: of two denoisers the better one has more.
        metrics: of the chosen ranking, over all queries of the data set learnt from: r1, r5, r10, map (of the whole
            ranking), medr, meanr.
    """

    weight: float
    shape: Shape
    gain: float
    error: float
    worth: float
    metrics: dict[str, float]


class Scored(NamedTuple):
    """A split's queries with their scores.

    Attributes:
        base: what there is without x0_hat, (Q, N) of the task's queries: cosines, as a rule.
        x0_hat: distributions over the candidates, (Q, N).
    """

    base: Tensor
    x0_hat: Tensor
    task: FusionTask


def choose_fusion(
    splits: Sequence[Validation],
    direction: Direction,
    reranker: Reranker,
    weights: Sequence[float],
    shapes: Sequence[Shape] = ("sum",),
) -> Fusion:
    """The fusion of x0_hat with the cosine, less the prior, that validation splits earn, by `choose_weight`.

    Args:
        weights, shapes: as in `choose_weight`.
    """
    scored = []
    for each in splits:
        queries, candidates, _ = each.split.task(direction)
        task = each.tasks[direction]
        queries = queries[task.rows]
        prepared = reranker.prepare(direction, candidates)
        sight = reranker.sight(direction, each.states)
        how: dict[str, Any] = {"query_ids": task.rows.tolist(), "sight": sight and sight.of(task.rows)}
        blocks = score_blocks(queries, prepared, reranker.schedule, reranker.sampling, **how)
        x0_hat = torch.cat([scores for _, scores in blocks])
        base = cosine_similarity(queries, candidates) - reranker.offsets(direction, candidates)
        scored.append(Scored(base, x0_hat, task))
    return choose_weight(scored, weights, shapes)


def choose_weight(splits: Sequence[Scored], weights: Sequence[float], shapes: Sequence[Shape] = ("sum",)) -> Fusion:
    """The fusion of any distributions over the candidates with other scores that some splits earn (`earning.earned`).

    Args:
        splits: the first is that of the data set learnt from, of which the metrics are; every domain of each counts the same.
        weights, shapes: to choose from, every weight with every shape. Where 0, `base` alone, is not among them, no weight has to
            be earned.
    """

    def measured(weight: float, shape: Shape) -> list[dict[str, np.ndarray]]:
        found = []
        for base, x0_hat, task in splits:
            accumulator = MetricAccumulator(MEASURE)
            accumulator.update(fuse(base, x0_hat, weight, shape), task.relevant)
            found.append(accumulator.queries())
        return found

    def precision_of(found: list[dict[str, np.ndarray]]) -> np.ndarray:
        return np.concatenate([each[MEASURE.ap_name] for each in found])

    offered: list[tuple[float, Shape]] = [(0.0, shapes[0])] if 0 in weights else []
    offered += [(weight, shape) for weight, shape in product(weights, shapes) if weight]
    tried = {fusion: measured(*fusion) for fusion in offered}
    precision = {fusion: precision_of(found) for fusion, found in tried.items()}
    plain = precision.get((0.0, shapes[0]))
    if plain is None:
        plain = precision_of(measured(0.0, shapes[0]))
    task = joined([each.task for each in splits])
    chosen, gain, error = earned(precision, plain, task, lambda fusion: (reach(*fusion),))
    worth = max(mean_over_domains(each, task)[0] for (weight, _), each in precision.items() if weight or len(precision) == 1)
    return Fusion(*chosen, gain, error, worth, mean_metrics(tried[chosen][0]))
