"""Ranking metrics over 100,000 queries and as many candidates: counted in blocks of rows, so that no full matrix exists.

The plain version sorts every row; it is timed on a slice and extrapolated. Both include the product that makes the scores,
from embeddings of 64 values, and give the same figures, which is checked here.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffatr_cli.core.metrics import MetricAccumulator

from .common import Case, Row, Size, pick, seconds

DIM = 64
BLOCK = 256  # queries


def plain_metrics(scores: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """R@1 and R@10 (percent) and mean rank of scores (Q, N) without ties by sorting; relevant (Q, R) indices."""
    order = np.argsort(-scores, axis=1)
    places = np.argsort(order, axis=1)
    best = np.take_along_axis(places, relevant, 1).min(1) + 1
    return {"r1": 100 * (best <= 1).mean(), "r10": 100 * (best <= 10).mean(), "meanr": best.mean()}


def square(relevant: int, size: Size) -> list[Row]:
    """As many queries as candidates, `relevant` of them right for each query."""
    n, few = pick(size, 50, 10_000, 100_000), pick(size, 20, 64, 128)
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(n, DIM, generator=generator)
    queries = candidates + 2 * torch.randn(n, DIM, generator=generator)
    right = (np.arange(n)[:, None] + np.arange(relevant)) % n

    def scores(start: int, rows: int) -> Tensor:
        return queries[start : start + rows] @ candidates.T

    def fast(end: int) -> dict[str, float]:
        accumulator = MetricAccumulator()
        for start in range(0, end, BLOCK):
            rows = min(BLOCK, end - start)
            accumulator.update(scores(start, rows), list(right[start : start + rows]))
        return accumulator.result()

    plain, counted = plain_metrics(scores(0, few).numpy(), right[:few]), fast(few)
    if any(abs(plain[key] - counted[key]) > 1e-9 for key in plain):
        raise AssertionError(f"the metrics differ: {plain} by sorting, {counted} by counting")
    sorting = seconds(lambda: plain_metrics(scores(0, few).numpy(), right[:few])) * n / few
    return [
        Row(
            f"{n:,} x {n:,}, {relevant} relevant",
            seconds(lambda: fast(n)),
            sorting,
            goal="goal: at most 2 GB",
            remark=f"plain: {few} queries, extrapolated",
        )
    ]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"text to audio": partial(square, 1), "audio to text": partial(square, 5)}
