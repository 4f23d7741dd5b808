"""Scores of queries against candidates: cosine, diffusion, and their sum.

Q queries, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def query_noise(seed: int, query_ids: Sequence[int], n: int, draw: int = 0) -> Callable[[int], Tensor]:
    """Standard normal noise for `ddim_sample` that depends on (seed, query id, draw, step) alone, never on the batch.

    Each row comes from a Philox generator (counter-based) with (seed, id) as its key and (draw, step) in its counter.

    Args:
        seed: any integer; the lowest 64 bits count.
        query_ids: one integer a query, the lowest 64 bits count.
        n: values a query; the first m of n are what n = m gives.
        draw: which of several independent noises.

    Returns:
        A function of the step i -> (Q, n) float32 on the CPU.
    """
    low = 2**64 - 1
    keys = [np.array([seed & low, int(i) & low], np.uint64) for i in query_ids]

    def noise(step: int) -> Tensor:
        out = np.empty((len(keys), n), np.float32)
        counter = np.array([0, 0, draw, step], np.uint64)
        for row, key in zip(out, keys, strict=True):
            np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out)

    return noise
