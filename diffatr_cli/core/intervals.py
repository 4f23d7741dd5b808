"""How sure a measured difference is: the paired bootstrap over queries, clustered by clip.

Q queries, G clusters (clips), S training seeds, B resamples.

The queries of a test set are a sample; another sample would give another difference. The bootstrap (Efron 1979) asks how far it
would spread: it draws clips with replacement, as many as there are, takes all queries of each drawn clip together, because the
captions of one clip are alike, and computes the difference anew. Both systems and all seeds see the same draw, so that what is
hard for both cancels. The interval holds the middle of what B draws gave (percentiles). It speaks of the queries; the
deviation over training seeds is another thing, and is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 2**22  # counts of queries in memory together, where a median needs them

Statistic = Literal["mean", "median"]


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it, in the units of what was measured."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Its three numbers."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


class ClusterBootstrap:
    """B resamples of the clusters of Q queries, the same for whatever is measured on them.

    Args:
        clusters: (Q,) integers, equal for queries that are drawn together: the clip of each.
        resamples: B.
        level: how much of the resamples an interval holds.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        ValueError: no query, or settings out of their range.
    """

    def __init__(self, clusters: ArrayLike, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> None:
        labels = np.asarray(clusters)
        if labels.ndim != 1 or not labels.size:
            raise ValueError(f"clusters are (queries,), at least one, got {labels.shape}")
        if resamples < 1 or not 0 < level < 1:
            raise ValueError(f"{resamples} resamples, level {level}: at least 1, and between 0 and 1")
        self.level = level
        _, self._cluster = np.unique(labels, return_inverse=True)
        self._sizes = np.bincount(self._cluster)
        groups, generator = len(self._sizes), np.random.default_rng(seed)
        # (B, G): how often each cluster was drawn. One resample after another, so that the first are the same for any B.
        self._counts = np.stack(
            [np.bincount(generator.integers(groups, size=groups), minlength=groups) for _ in range(resamples)]
        ).astype(np.float64)

    def interval(self, values: ArrayLike, statistic: Statistic = "mean") -> Interval:
        """The statistic of some values, (Q,) or (S, Q), averaged over seeds, and its interval.

        Raises:
            ValueError: not Q values, no seed, or a value that is not finite.
        """
        return self._interval(*self._statistic(self._rows(values), statistic))

    def difference(self, first: ArrayLike, second: ArrayLike, statistic: Statistic = "mean") -> Interval:
        """The statistic of `second` minus that of `first`, each (Q,) or (S, Q) and averaged over its seeds, and its interval.

        Raises:
            ValueError: as `interval`.
        """
        (a, of_a), (b, of_b) = (self._statistic(self._rows(each), statistic) for each in (first, second))
        return self._interval(b - a, of_b - of_a)

    def _rows(self, values: ArrayLike) -> NDArray[np.float64]:
        rows = np.atleast_2d(np.asarray(values, np.float64))
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(self._cluster):
            raise ValueError(f"values are (seeds, {len(self._cluster)} queries), got {np.shape(values)}")
        if not np.isfinite(rows).all():
            raise ValueError("NaN or infinity among the values")
        return rows

    def _statistic(self, rows: NDArray[np.float64], statistic: Statistic) -> tuple[float, NDArray[np.float64]]:
        """The statistic of all queries, and (B,) of each resample; both averaged over seeds."""
        if statistic == "mean":
            mean = rows.mean(0)
            sums = np.bincount(self._cluster, weights=mean)
            return float(mean.mean()), self._counts @ sums / (self._counts @ self._sizes)
        medians = np.mean([self._medians(row) for row in rows], 0)
        return float(np.median(rows, axis=1).mean()), medians

    def _medians(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B,) the median of each resample, by how often it has each of the distinct values."""
        distinct, place = np.unique(values, return_inverse=True)
        medians = []
        step = max(1, _AT_ONCE // len(values))
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(distinct)))
        for begin in range(0, len(self._counts), step):
            drawn = np.add.reduceat(self._counts[begin : begin + step][:, self._cluster[order]], starts, axis=1).cumsum(1)
            for row in drawn:
                total = int(row[-1])
                middle = np.searchsorted(row, [(total - 1) // 2, total // 2], side="right")
                medians.append(distinct[middle].mean())
        return np.array(medians)

    def _interval(self, value: float, resampled: NDArray[np.float64]) -> Interval:
        low, high = np.quantile(resampled, [(1 - self.level) / 2, (1 + self.level) / 2]).tolist()
        return Interval(value, low, high)


Queries = Mapping[str, NDArray[np.float64]]
"""What `metrics.MetricAccumulator.queries` gives of Q queries."""


def metric_intervals(bootstrap: ClusterBootstrap, of: Sequence[Queries], minus: Sequence[Queries] = ()) -> dict[str, Interval]:
    """Each reported metric with its interval, averaged over seeds; with `minus`, the paired difference to another system.

    Args:
        of: the same queries as the bootstrap has, one mapping a training seed.
        minus: of the system that is taken off; it may have other seeds.

    Returns:
        r1, r5, r10, mean AP by its name, medr and meanr, as `metrics.mean_metrics` has them.
    """

    def interval(name: str, statistic: Statistic = "mean") -> Interval:
        values, others = ([seed[name] for seed in seeds] for seeds in (of, minus))
        return bootstrap.difference(others, values, statistic) if others else bootstrap.interval(values, statistic)

    means = {name: interval(name) for name in of[0] if name != "rank"}
    return means | {"medr": interval("rank", "median"), "meanr": interval("rank")}
