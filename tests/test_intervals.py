"""Bootstrap intervals: a plain loop gives the same, theory gives nearly the same, and they hold what they say they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.intervals import ClusterBootstrap, metric_intervals
from diffatr_cli.core.metrics import MetricAccumulator, mean_metrics

STATISTICS = {"mean": np.mean, "median": np.median}


def plain(first, second, clusters, statistic, resamples, seed):  # type: ignore[no-untyped-def]
    """Clips drawn one by one, their queries put into a list, the statistic taken of the list."""
    of, names = STATISTICS[statistic], sorted(set(clusters))
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        queries = [q for g in generator.integers(len(names), size=len(names)) for q in np.flatnonzero(clusters == names[g])]
        drawn.append(np.mean([of(row[queries]) for row in second]) - np.mean([of(row[queries]) for row in first]))
    value = np.mean([of(row) for row in second]) - np.mean([of(row) for row in first])
    return value, *np.quantile(drawn, [0.025, 0.975])


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.sampled_from(sorted(STATISTICS)))
def test_equals_a_plain_loop(seed: int, queries: int, seeds: int, others: int, statistic: str) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 5, queries) * 7 - 3  # any labels, in any order, of any sizes
    first, second = rng.integers(0, 4, (seeds, queries)) / 2, rng.integers(0, 4, (others, queries)) / 2
    got = ClusterBootstrap(clusters, 30, seed=seed).difference(first, second, statistic)  # type: ignore[arg-type]
    assert (got.mean, got.low, got.high) == pytest.approx(plain(first, second, clusters, statistic, 30, seed))


def test_medians_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 50))
    bootstrap = ClusterBootstrap(np.arange(50) // 2, 100)
    whole = bootstrap.interval(values, "median")
    monkeypatch.setattr("diffatr_cli.core.intervals._AT_ONCE", 160)
    assert bootstrap.interval(values, "median") == whole


def test_equals_the_closed_form_for_independent_queries() -> None:
    """The mean of n independent differences spreads with their deviation over root n; 1.96 of it on either side are 95 %."""
    rng = np.random.default_rng(3)
    first = rng.normal(size=4000)
    second = first + rng.normal(0.1, 0.5, 4000)
    got = ClusterBootstrap(np.arange(4000), 4000).difference(first, second)
    half = 1.959964 * (second - first).std() / np.sqrt(4000)
    assert got.mean == pytest.approx((second - first).mean())
    assert got.mean - got.low == pytest.approx(half, rel=0.07)
    assert got.high - got.mean == pytest.approx(half, rel=0.07)


def test_captions_that_are_alike_count_as_one() -> None:
    """Five copies of each query say no more than one: clustered the interval stays, unclustered it is narrower by root five."""
    values = np.random.default_rng(4).normal(size=600)
    copies = np.repeat(values, 5)
    once = ClusterBootstrap(np.arange(600), 2000).interval(values)
    clustered = ClusterBootstrap(np.repeat(np.arange(600), 5), 2000).interval(copies)
    assert (clustered.mean, clustered.low, clustered.high) == pytest.approx((once.mean, once.low, once.high))
    independent = ClusterBootstrap(np.arange(3000), 2000).interval(copies)
    assert (clustered.high - clustered.low) / (independent.high - independent.low) == pytest.approx(5**0.5, rel=0.1)


def test_what_is_hard_for_both_cancels() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, 400)
    paired = ClusterBootstrap(np.arange(400)).difference(hard, hard + 0.25)
    assert (paired.mean, paired.low, paired.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(("seeds", "statistic"), [(1, "mean"), (3, "mean"), (1, "median")])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, statistic: str) -> None:
    """300 test sets from one population, of clips with one to six captions that are alike; 95 % within four deviations."""
    rng = np.random.default_rng(6)
    held = 0
    for trial in range(300):
        clips = np.repeat(np.arange(120), rng.integers(1, 7, 120))
        of_clip = rng.normal(size=120)[clips]
        first = rng.normal(size=(seeds, len(clips))) + of_clip
        second = rng.normal(size=(seeds, len(clips))) + of_clip * 0.3 + 0.5  # symmetric, so mean and median both move by 0.5
        got = ClusterBootstrap(clips, 300, seed=trial).difference(first, second, statistic)  # type: ignore[arg-type]
        held += got.low <= 0.5 <= got.high
    assert abs(held / 300 - 0.95) < 4 * (0.95 * 0.05 / 300) ** 0.5


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=100)
    clusters = np.arange(100) // 3

    def interval(seed: int) -> object:
        return ClusterBootstrap(clusters, 50, seed=seed).interval(values)

    assert interval(1) == interval(1) != interval(2)


def test_metrics_of_queries_are_those_reported() -> None:
    rng = np.random.default_rng(8)
    systems = []
    for _ in range(2):
        accumulator = MetricAccumulator()
        accumulator.update(rng.normal(size=(60, 20)), [[i % 20] for i in range(60)])
        assert accumulator.result() == mean_metrics(accumulator.queries())
        systems.append(accumulator)
    bootstrap = ClusterBootstrap(np.arange(60) // 3)
    own = metric_intervals(bootstrap, [systems[1].queries()])
    assert list(own) == list(systems[1].result())
    assert {name: each.mean for name, each in own.items()} == pytest.approx(systems[1].result())
    difference = metric_intervals(bootstrap, [systems[1].queries()], minus=[systems[0].queries()])
    for name, each in difference.items():
        assert each.mean == pytest.approx(systems[1].result()[name] - systems[0].result()[name])
        assert each.low <= each.mean <= each.high


@pytest.mark.parametrize(
    ("clusters", "values", "settings", "message"),
    [
        ([], [], {}, "at least one"),
        ([[1, 2]], [1, 2], {}, "at least one"),
        ([1, 2], [1, 2, 3], {}, "2 queries"),
        ([1, 2], np.zeros((0, 2)), {}, "2 queries"),
        ([1, 2], [1, np.nan], {}, "NaN"),
        ([1, 2], [1, 2], {"resamples": 0}, "at least 1"),
        ([1, 2], [1, 2], {"level": 1.0}, "between 0 and 1"),
    ],
)
def test_what_is_refused(clusters: object, values: object, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterBootstrap(clusters, **settings).interval(values)  # type: ignore[arg-type]
