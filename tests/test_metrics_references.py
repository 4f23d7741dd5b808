"""The metrics equal those of torchmetrics and scikit-learn on scores without ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from diffatr_cli.core.metrics import CUTOFFS, Measure, MetricAccumulator


@pytest.fixture(scope="module", params=[1, 5, 30])
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Scores (40, 120), all distinct, that favour what is relevant; relevance, from one to that many a query.

    They are positive: torchmetrics takes a candidate of another score for one that was not retrieved.
    """
    rng = np.random.default_rng(request.param)
    relevant = np.stack([rng.permutation(120) < rng.integers(1, request.param + 1) for _ in range(40)])
    return 10 + rng.normal(size=(40, 120)) + 1.5 * relevant, relevant


def measured(case: tuple[np.ndarray, np.ndarray], measure: Measure) -> dict[str, np.ndarray]:
    accumulator = MetricAccumulator(measure)
    accumulator.update(*case)
    return accumulator.queries()


def of_each(function, case, **options) -> np.ndarray:  # type: ignore[no-untyped-def]
    scores, relevant = map(torch.from_numpy, case)
    return np.array([100 * float(function(row, good, **options)) for row, good in zip(scores, relevant, strict=True)])


def test_mean_ap_of_the_whole_ranking(case: tuple[np.ndarray, np.ndarray]) -> None:
    ours = measured(case, Measure(ap_cutoff=None))["map"]
    theirs = [100 * average_precision_score(good, row) for row, good in zip(*case, strict=True)]
    assert ours == pytest.approx(np.array(theirs))
    assert ours == pytest.approx(of_each(retrieval_average_precision, case))


@pytest.mark.parametrize("cutoff", [10, 16])
def test_ap_at_a_cutoff(case: tuple[np.ndarray, np.ndarray], cutoff: int) -> None:
    """torchmetrics divides by the relevant candidates that it found among the first k, we by those that could be there."""
    scores, relevant = case
    best = np.argsort(-scores, axis=1)[:, :cutoff]
    found = np.take_along_axis(relevant, best, 1).sum(1)
    ours = measured(case, Measure(ap_cutoff=cutoff))[f"map{cutoff}"]
    theirs = of_each(retrieval_average_precision, case, top_k=cutoff)
    assert ours == pytest.approx(theirs * found / np.minimum(relevant.sum(1), cutoff))


def test_recalls_and_ranks(case: tuple[np.ndarray, np.ndarray]) -> None:
    any_of, share = measured(case, Measure()), measured(case, Measure(share=True))
    for k in CUTOFFS:
        assert any_of[f"r{k}"] == pytest.approx(of_each(retrieval_hit_rate, case, top_k=k))
        assert share[f"r{k}"] == pytest.approx(of_each(retrieval_recall, case, top_k=k))
    assert 100 / any_of["rank"] == pytest.approx(of_each(retrieval_reciprocal_rank, case), rel=1e-5)
