from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.metrics import Measure, MetricAccumulator, retrieval_metrics

MEASURES = [Measure(), Measure(ap_cutoff=None, share=True), Measure(ap_cutoff=3), Measure(ap_cutoff=None), Measure(share=True)]


def brute_force(scores, relevant, measure=MEASURES[0]):
    """Mean over every order of the candidates that the scores allow; for the rank, the mean of the best and the worst."""
    table = []
    for row, good in zip(scores, relevant, strict=True):
        ranks, hits, precisions = [], [], []
        for order in permutations(range(len(row))):
            if any(row[a] < row[b] for a, b in pairwise(order)):
                continue
            found = [i + 1 for i, c in enumerate(order) if c in good]
            ranks.append(found[0])
            counted = [sum(rank <= k for rank in found) for k in (1, 5, 10)]
            hits.append([count / len(good) if measure.share else count > 0 for count in counted])
            last = measure.ap_cutoff or len(row)
            precisions.append(sum((n + 1) / rank for n, rank in enumerate(found) if rank <= last) / min(len(good), last))
        table.append([*np.mean(hits, 0), np.mean(precisions), (min(ranks) + max(ranks)) / 2])
    r1, r5, r10, ap, meanr = np.mean(table, 0)
    medr = np.median([row[4] for row in table])
    return {"r1": 100 * r1, "r5": 100 * r5, "r10": 100 * r10, measure.ap_name: 100 * ap, "medr": medr, "meanr": meanr}


queries = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=6, max_size=6), st.sets(st.integers(0, 5), min_size=1)), min_size=1, max_size=2
)


@settings(max_examples=60)
@given(queries, st.sampled_from(MEASURES))
def test_equals_every_tie_order_tried(rows, measure):
    scores, relevant = np.array([r[0] for r in rows], float), [sorted(r[1]) for r in rows]
    assert retrieval_metrics(scores, relevant, measure) == pytest.approx(brute_force(scores, relevant, measure))


@pytest.mark.parametrize("captions", [1, 5, 40])
def test_a_constant_scorer_gets_chance(captions):
    """Chance by simulation-free counting: a random order puts a relevant one first with probability captions / 200, and so on."""
    got = retrieval_metrics(torch.zeros(3, 200), [list(range(i, i + captions)) for i in range(3)])
    missed = np.cumprod([(200 - captions - i) / (200 - i) for i in range(10)])
    assert [got["r1"], got["r5"], got["r10"]] == pytest.approx([100 * (1 - missed[i]) for i in (0, 4, 9)])
    assert got["medr"] == got["meanr"] == 1 + (200 - captions) / 2
    harmonic = sum(captions / 200 * (1 + (k - 1) * (captions - 1) / 199) / k for k in range(1, 11))
    assert got["map10"] == pytest.approx(100 * harmonic / min(captions, 10))


def test_a_perfect_scorer_is_perfect_and_the_arithmetic_of_a_known_case():
    relevant = torch.eye(4).repeat_interleave(3, 1).bool()
    perfect = {"r1": 100, "r5": 100, "r10": 100, "map10": 100, "medr": 1, "meanr": 1}
    assert retrieval_metrics(relevant.float(), relevant) == perfect
    assert retrieval_metrics(relevant.half(), relevant) == perfect
    # Query 0: relevant at ranks 2 and 5; query 1: relevant at rank 11, its tie with rank 12 irrelevant.
    scores = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2], [12.0, 11, 10, 9, 8, 7, 6, 5, 4, 3, 0, 0]])
    got = retrieval_metrics(scores, [[1, 4], [10]])
    assert got == pytest.approx({"r1": 0, "r5": 50, "r10": 50, "map10": 50 * (1 / 2 + 2 / 5) / 2, "medr": 6.75, "meanr": 6.75})


@pytest.mark.parametrize("wanted", [1, 3, 100])
def test_blocks_types_and_forms_of_relevance_agree(wanted):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, (23, 300)).astype(np.float32)
    relevant = np.stack([rng.permutation(300) < wanted for _ in range(23)])
    whole = retrieval_metrics(scores, relevant)
    accumulator = MetricAccumulator()
    for start in range(0, 23, 5):
        lists = [np.flatnonzero(r).tolist() * 2 for r in relevant[start : start + 5]]  # a repeated index counts once
        accumulator.update(torch.from_numpy(scores[start : start + 5]).bfloat16(), lists)
    assert accumulator.result() == whole
    assert len(accumulator.ranks) == 23
    above = [(row > row[good].max()).sum() for row, good in zip(scores, relevant, strict=True)]
    assert (accumulator.ranks >= np.array(above) + 1).all()


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        ([[0.0, np.nan]], [[0]], "NaN"),
        ([[0.0, 1.0]], [[]], "no relevant"),
        ([[0.0, 1.0]], np.zeros((1, 2), bool), "no relevant"),
        ([[0.0, 1.0]], [[2]], "candidate 2 of 2"),
        ([[0.0, 1.0]], [[-1]], "candidate -1 of 2"),
        ([[0.0, 1.0]], [[0], [1]], "each query"),
        ([[0.0, 1.0]], np.ones((1, 2)), "boolean"),
        (np.zeros((0, 2)), [], "no query"),
    ],
)
def test_what_is_refused(scores, relevant, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.array(scores), relevant)
