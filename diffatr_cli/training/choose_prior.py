"""How much a bank of training queries may say of the candidates before any query is asked: chosen on validation splits.

B queries of the bank, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..core.losses import cosine_similarity
from ..core.metrics import MetricAccumulator
from ..core.querybank import Prior, querybank_offsets
from ..evaluation.earning import MEASURE, earned, joined
from ..evaluation.embedded_split import EmbeddedSplit
from ..evaluation.validation import Validation
from ..types import Direction
from .streams import numpy_stream

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Of `Prior`; 1 is querybank normalisation."""
BETAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


class ChosenPrior(NamedTuple):
    """What validation chose: `prior` None where none was earned; `gain` in mean AP, percent, and its standard `error`."""

    prior: Prior | None
    gain: float
    error: float


def bank_of(train: EmbeddedSplit, direction: Direction, size: int, seed: int) -> Tensor:
    """(B, D) the bank of a direction, at most `size` queries drawn from a training split, as half precision keeps them."""
    queries = train.text if direction == "t2a" else train.audio
    drawn = np.sort(numpy_stream(seed, "query bank").permutation(len(queries))[:size])
    return queries[drawn].half().float()


def choose_prior(splits: Sequence[Validation], direction: Direction, bank: Tensor) -> ChosenPrior:
    """The weight and beta of a bank (B, D) that validation splits earn (`earned`): the smallest weight of those as good."""
    scored = []
    for each in splits:
        queries, candidates, _ = each.split.task(direction)
        task = each.tasks[direction]
        offsets = {beta: querybank_offsets(candidates, bank, beta) for beta in BETAS}
        scored.append((cosine_similarity(queries[task.rows], candidates), offsets, task))

    def precision(weight: float, beta: float) -> np.ndarray:
        found = []
        for cosine, offsets, task in scored:
            accumulator = MetricAccumulator(MEASURE)
            accumulator.update(cosine - (weight * offsets[beta]).to(cosine), task.relevant)
            found.append(accumulator.queries()[MEASURE.ap_name])
        return np.concatenate(found)

    options = [(0.0, BETAS[0]), *product(WEIGHTS, BETAS)]
    tried = {option: precision(*option) for option in options}
    task = joined([task for *_, task in scored])
    (weight, beta), gain, error = earned(tried, tried[options[0]], task, lambda option: option)
    return ChosenPrior(Prior(bank, beta, weight) if weight else None, gain, error)
