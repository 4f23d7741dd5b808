"""How much x0_hat may say beside the cosine: chosen on a validation split, by what is not saturated there.

Recalls of a split whose clips share captions are near 100 % for any ranking, and a sum of them is then decided by noise. What
chooses here is the mean average precision over all that match, of which a clip among its like, a scene found first and a
ranking's tail all have their part; and each domain of the split counts the same.

Q queries, N candidates, C clusters of queries that are alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.losses import cosine_similarity
from ..core.metrics import Measure, MetricAccumulator, mean_metrics
from ..core.scoring import Reranker, Shape, fuse, reach
from ..core.sight import Sight
from ..core.text import normalise_caption
from ..data.manifest import Clip
from ..types import Direction
from .embedded_split import Captions, EmbeddedSplit
from .matching import matching
from .ranking import score_blocks

FEWEST = 20
"""Clusters that a domain needs to count as one; smaller ones are put together."""

EARNED = 2
"""Standard errors by which a weight must gain on the cosine: of some twenty that are tried, one gains by chance."""

_MEASURE = Measure(ap_cutoff=None)


@dataclass(frozen=True)
class FusionTask:
    """What the choice is made on: the queries of `EmbeddedSplit.task`, or some of them.

    Attributes:
        rows: (Q,) their places among the task's queries.
        relevant: for each the indices of the candidates that match.
        cluster: (Q,) equal for queries that are alike, as the captions of one clip are.
        domain: (Q,) a number for the domain of each.
    """

    rows: np.ndarray
    relevant: list[np.ndarray]
    cluster: np.ndarray
    domain: np.ndarray


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


def domains_of(clips: Sequence[Clip]) -> np.ndarray:
    """(n,) a number for the domain of each clip: the folder that its file was in.

    Whoever collects recordings from several places keeps them in folders; a set that is all in one folder is one domain.
    """
    folders = [os.path.dirname(clip.clip_id) for clip in clips]
    number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
    return np.array([number[folder] for folder in folders])


def fusion_task(split: EmbeddedSplit, direction: Direction, clips: Sequence[Clip], same_captions: str) -> FusionTask:
    """The queries of a validation split to choose by.

    Where equal captions mean equal sounds (`positives`), each text asks once, and what matches is `matching`'s, which knows that
    a scene with rain in it is one with rain. Else queries and matches are those that evaluation counts.
    """
    captions = Captions.of(clips)
    domain = domains_of(clips)
    _, _, relevant = split.task(direction)
    rows = np.arange(len(relevant))
    cluster = np.array(captions.positive_groups(same_captions))
    if same_captions == "positives":
        distinct, matches = matching(captions)
        number = {text: i for i, text in enumerate(distinct)}
        of_caption = np.array([number[normalise_caption(text)] for text in captions.texts])
        if direction == "t2a":
            rows = np.unique(of_caption, return_index=True)[1]
        table = matches[of_caption[rows]] if direction == "t2a" else matches[of_caption].T
        relevant = [np.flatnonzero(row) for row in table]
    if direction == "t2a":
        domain, cluster = domain[captions.clip_index[rows]], cluster[captions.clip_index[rows]]
    return FusionTask(rows, relevant, cluster, _large_enough(domain, cluster))


def _large_enough(domain: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Domains with `FEWEST` clusters at least, the smaller ones put together."""
    domain = domain.copy()
    while True:
        sizes = sorted((len(np.unique(cluster[domain == each])), each) for each in np.unique(domain).tolist())
        if len(sizes) == 1 or sizes[0][0] >= FEWEST:
            return domain
        domain[domain == sizes[0][1]] = sizes[1][1]


def choose_fusion(
    split: EmbeddedSplit,
    direction: Direction,
    reranker: Reranker,
    task: FusionTask,
    weights: Sequence[float],
    shapes: Sequence[Shape] = ("sum",),
    sight: Sight | None = None,
) -> Fusion:
    """The fusion of x0_hat with the cosine that a validation split earns, by `choose_weight`.

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
    return choose_weight(cosine_similarity(queries, candidates), x0_hat, task, weights, shapes)


def choose_weight(
    cosine: Tensor, x0_hat: Tensor, task: FusionTask, weights: Sequence[float], shapes: Sequence[Shape] = ("sum",)
) -> Fusion:
    """The fusion of any distributions over the candidates with the cosine that a task earns.

    A weight is earned where mean AP, the mean over domains, gains more than `EARNED` standard errors over the cosine, and no
    domain loses more than one. The best of those has the highest mean AP, and the one taken is that which can move scores least
    (`scoring.reach`) and is within one standard error of the best. Where none is earned, the weight is 0. Standard errors are
    those of paired differences, with the queries of one cluster taken together.

    Args:
        cosine, x0_hat: (Q, N) of the task's queries.
        weights, shapes: to choose from, every weight with every shape. Where 0, the cosine, is not among them, no weight has to
            be earned.
    """

    def measured(weight: float, shape: Shape) -> dict[str, np.ndarray]:
        accumulator = MetricAccumulator(_MEASURE)
        accumulator.update(fuse(cosine, x0_hat, weight, shape), task.relevant)
        return accumulator.queries()

    offered: list[tuple[float, Shape]] = [(0.0, shapes[0])] if 0 in weights else []
    offered += [(weight, shape) for weight, shape in product(weights, shapes) if weight]
    tried = {fusion: measured(*fusion) for fusion in offered}
    precision = {fusion: found[_MEASURE.ap_name] for fusion, found in tried.items()}
    plain = precision.get((0.0, shapes[0]))
    if plain is None:
        plain = measured(0.0, shapes[0])[_MEASURE.ap_name]
    means = {fusion: _mean(each, task)[0] for fusion, each in precision.items()}

    def is_earned(fusion: tuple[float, Shape]) -> bool:
        over = precision[fusion] - plain
        gained, error = _mean(over, task)
        return gained > EARNED * error and all(mean >= -error for mean, error in _by_domain(over, task))

    eligible = [fusion for fusion in offered if not fusion[0] or is_earned(fusion)] if 0 in weights else offered
    best = max(eligible, key=lambda fusion: means[fusion])

    def is_as_good(fusion: tuple[float, Shape]) -> bool:
        lost, error = _mean(precision[best] - precision[fusion], task)
        return lost <= error

    chosen = min((fusion for fusion in eligible if is_as_good(fusion)), key=lambda fusion: (reach(*fusion), -means[fusion]))
    gain, error = _mean(precision[chosen] - plain, task)
    worth = max((mean for (weight, _), mean in means.items() if weight), default=means[chosen])
    return Fusion(*chosen, gain, error, worth, mean_metrics(tried[chosen]))


def _by_domain(values: np.ndarray, task: FusionTask) -> Iterator[tuple[float, float]]:
    """The mean of some values (Q,) in each domain, and its standard error."""
    for domain in np.unique(task.domain):
        inside = task.domain == domain
        mean = float(values[inside].mean())
        _, cluster = np.unique(task.cluster[inside], return_inverse=True)
        sums = np.bincount(cluster, weights=values[inside] - mean)
        count = len(sums)
        # Of one cluster there is no telling how another one would be.
        error = float(np.sqrt(count / (count - 1) * (sums**2).sum()) / inside.sum()) if count > 1 else np.inf
        yield mean, error


def _mean(values: np.ndarray, task: FusionTask) -> tuple[float, float]:
    """The mean over domains, and its standard error."""
    means, errors = (np.array(column) for column in zip(*_by_domain(values, task), strict=True))
    return float(means.mean()), float(np.sqrt((errors**2).sum()) / len(means))
