"""Retrieval metrics with a stated tie rule, for any number of relevant candidates a query, at any size.

The rules, for one query:

rank    The rank of the best relevant candidate: 1 + the candidates that score higher + half the irrelevant ones that score
        the same, which is the mean of the best and the worst rank that the tie allows it. Ranks may end in .5.
R@k     1 if a relevant candidate is among the first k. Where a tie spans rank k, the probability of it when ties are broken
        at random, so that a constant scorer gets exactly chance.
AP@10   1 / min(R, 10) times the sum, over the relevant candidates among the first 10, of the precision at their rank, R
        being the number of relevant candidates. Under ties the expectation when they are broken at random.

With several relevant candidates (audio-to-text, five captions a clip) rank and R@k count the best of them, as the paper
does; AP@10 counts all. A `Measure` states otherwise: another cutoff of AP or none, or R@k as the share of the relevant
candidates that are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Scores = Tensor | NDArray[np.floating]
Relevant = Tensor | NDArray[np.bool_] | Sequence[Sequence[int] | NDArray[np.integer]]

CUTOFFS = (1, 5, 10)
AP_CUTOFF = 10
FEW = 32  # relevant candidates up to which counting is faster than sorting the row


@dataclass(frozen=True)
class Measure:
    """Which of the definitions in use the metrics follow, where there are several.

    Attributes:
        ap_cutoff: k of AP@k; None takes the whole ranking, where AP is what scikit-learn calls `average_precision_score`.
        share: R@k is the share of the relevant candidates that are among the first k, and not whether one of them is.
    """

    ap_cutoff: int | None = AP_CUTOFF
    share: bool = False

    @property
    def ap_name(self) -> str:
        """The key of the mean of AP: `map10`, `map16`, or `map` of the whole ranking."""
        return f"map{self.ap_cutoff or ''}"


def mean_metrics(queries: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """What is reported of some queries: the means of what `MetricAccumulator.queries` holds, and of the ranks the median too."""
    means = {name: float(values.mean()) for name, values in queries.items() if name != "rank"}
    return means | {"medr": float(np.median(queries["rank"])), "meanr": float(queries["rank"].mean())}


class MetricAccumulator:
    """Metrics over blocks of queries, so that the (Q, C) matrix of scores need never exist as a whole."""

    def __init__(self, measure: Measure | None = None) -> None:
        self.measure = measure or Measure()
        self._rows: list[tuple[float, ...]] = []  # of each query: rank, R@1, R@5, R@10, AP

    def update(self, scores: Scores, relevant: Relevant) -> None:
        """Count some queries.

        Args:
            scores: (B, C), higher is better, any floating type.
            relevant: (B, C) booleans, or for each query the indices of its relevant candidates.

        Raises:
            ValueError: NaN among the scores, a query without a relevant candidate, an index or shape that does not fit.
        """
        rows = _as_array(scores)
        if rows.ndim != 2 or len(rows) != len(relevant):
            raise ValueError(
                f"scores are (queries, candidates) with relevance for each query, got {rows.shape} and {len(relevant)}"
            )
        self._rows += [
            _query(row, indices, self.measure) for row, indices in zip(rows, _as_indices(relevant, rows.shape), strict=True)
        ]

    @property
    def ranks(self) -> NDArray[np.float64]:
        """Rank of the best relevant candidate of each query so far, (Q,), from 1, by the module's tie rule."""
        return np.array([row[0] for row in self._rows])

    def queries(self) -> dict[str, NDArray[np.float64]]:
        """The metrics of each query so far, (Q,) each: `rank`, and in percent `r1`, `r5`, `r10` and AP by its name."""
        table = np.array(self._rows).reshape(-1, 2 + len(CUTOFFS))
        names = (*(f"r{k}" for k in CUTOFFS), self.measure.ap_name)
        return {"rank": table[:, 0]} | {name: 100 * table[:, i] for i, name in enumerate(names, 1)}

    def result(self) -> dict[str, float]:
        """r1, r5, r10 and mean AP (`map10`, unless the measure says otherwise) in percent, medr and meanr in ranks.

        Raises:
            ValueError: no query was counted.
        """
        if not self._rows:
            raise ValueError("there is no query to measure")
        return mean_metrics(self.queries())


def retrieval_metrics(scores: Scores, relevant: Relevant, measure: Measure | None = None) -> dict[str, float]:
    """R@1, R@5, R@10, mAP@10 (percent), median and mean rank; see the module for the rules.

    Args:
        scores: (Q, C), higher is better.
        relevant: (Q, C) booleans, or for each query the indices of its relevant candidates.
        measure: other definitions; None takes the paper's.

    Returns:
        A dict with keys r1, r5, r10, map10 (or the measure's `ap_name`), medr, meanr.

    Raises:
        ValueError: NaN among the scores, no query, a query without a relevant candidate, shapes that disagree.
    """
    accumulator = MetricAccumulator(measure)
    accumulator.update(scores, relevant)
    return accumulator.result()


def _as_array(scores: Scores) -> NDArray[np.floating]:
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        return np.asarray(scores.to(torch.promote_types(scores.dtype, torch.float32)).numpy())
    return np.asarray(scores)


def _as_indices(relevant: Relevant, shape: tuple[int, ...]) -> list[NDArray[np.intp]]:
    """Sorted, distinct indices of each query's relevant candidates."""
    if isinstance(relevant, Tensor):
        relevant = relevant.cpu().numpy()
    if isinstance(relevant, np.ndarray):
        if relevant.dtype != np.bool_ or relevant.shape != shape:
            raise ValueError(
                f"the relevance matrix of scores {shape} is boolean and so shaped, got {relevant.dtype} {relevant.shape}"
            )
        indices = [np.flatnonzero(row) for row in relevant]
    else:
        indices = [np.unique(np.asarray(row, np.intp)) for row in relevant]
    for i, row in enumerate(indices):
        if not row.size:
            raise ValueError(f"query {i} of the block has no relevant candidate")
        if row[0] < 0 or row[-1] >= shape[1]:
            raise ValueError(f"query {i} of the block: relevant candidate {row[-1] if row[0] >= 0 else row[0]} of {shape[1]}")
    return indices


def _query(row: NDArray[np.floating], relevant: NDArray[np.intp], measure: Measure) -> tuple[float, ...]:
    """Rank, R@k for each cutoff and AP of one query with scores (C,) and sorted indices of its relevant candidates."""
    if np.isnan(row.max()):
        raise ValueError("NaN among the scores")
    values, hits = np.unique(row[relevant], return_counts=True)
    if len(values) <= FEW:
        above = [int(np.count_nonzero(row > value)) for value in values]
        size = [int(np.count_nonzero(row == value)) for value in values]
    else:
        ascending = np.sort(row)
        above = [len(row) - int(np.searchsorted(ascending, value, "right")) for value in values]
        size = [len(row) - int(np.searchsorted(ascending, v, "left")) - n for v, n in zip(values, above, strict=True)]
    # Groups of equal score that hold a relevant candidate, best first: candidates above, candidates within, relevant within.
    groups = list(zip(above[::-1], size[::-1], hits[::-1].tolist(), strict=True))

    best, tied, good = groups[0]
    recalls = [_share(groups, k) / len(relevant) if measure.share else _any(groups[0], k) for k in CUTOFFS]

    cutoff = len(row) if measure.ap_cutoff is None else measure.ap_cutoff
    precision_sum, found = 0.0, 0
    for start, members, wanted in groups:
        places = np.arange(max(0, min(members, cutoff - start)))
        # P(this place is relevant) x E(relevant ones up to here | it is) / rank
        before = places * ((wanted - 1) / max(members - 1, 1))
        precision_sum += wanted / members * float(((found + 1 + before) / (start + places + 1)).sum())
        found += wanted
    return best + 1 + (tied - good) / 2, *recalls, precision_sum / min(len(relevant), cutoff)


def _any(group: tuple[int, int, int], k: int) -> float:
    """The probability that one of the relevant candidates in this group, the best that has any, is among the first k."""
    above, tied, good = group
    places = min(max(k - above, 0), tied)  # places of this tie among the first k
    orders = comb(tied, places)
    return (orders - comb(tied - good, places)) / orders


def _share(groups: list[tuple[int, int, int]], k: int) -> float:
    """The expected number of relevant candidates among the first k."""
    return sum(wanted * min(max(k - above, 0), members) / members for above, members, wanted in groups)


def auroc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The probability that a positive example scores higher than a negative one, ties counting half.

    Args:
        scores: (n,).
        labels: (n,), True for positive examples.

    Raises:
        ValueError: examples of one label only.
    """
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not len(positive) or not len(negative):
        raise ValueError("AUROC compares examples of both labels")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / (2 * len(negative)))


@dataclass(frozen=True)
class ReliabilityBin:
    """Examples whose probability lies in [low, high): how many, their mean probability, and the share that came true."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def bins_of(probabilities: NDArray[np.floating], bins: int = 10) -> NDArray[np.intp]:
    """Which of equal bins of [0, 1] each probability lies in, (n,); 1 lies in the last one."""
    return np.minimum((probabilities * bins).astype(np.intp), bins - 1)


def reliability(probabilities: NDArray[np.floating], labels: NDArray[np.bool_], bins: int = 10) -> list[ReliabilityBin]:
    """How often what was given a probability came true, in equal bins of [0, 1]; empty bins are left out.

    Args:
        probabilities: (n,) within [0, 1].
        labels: (n,) what came true.
    """
    which = bins_of(probabilities, bins)
    return [
        ReliabilityBin(
            b / bins,
            (b + 1) / bins,
            int((which == b).sum()),
            float(probabilities[which == b].mean()),
            float(labels[which == b].mean()),
        )
        for b in np.unique(which).tolist()
    ]
