"""What x0_hat may say beside the cosine is earned on validation: a gain is taken, noise is not, no domain pays for another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional

from diffatr_cli.core.scoring import LOG_FLOOR, Reranker, fuse, reach
from diffatr_cli.core.text import normalise_caption
from diffatr_cli.data.manifest import Clip
from diffatr_cli.evaluation import choose_fusion as module
from diffatr_cli.evaluation.choose_fusion import choose_fusion
from diffatr_cli.evaluation.earning import FusionTask, _large_enough, domains_of, fusion_task, joined, mean_over_domains
from diffatr_cli.evaluation.embedded_split import Captions, EmbeddedSplit
from diffatr_cli.evaluation.ranking import rank
from diffatr_cli.evaluation.validation import Validation
from diffatr_cli.types import DIRECTIONS

WEIGHTS = (0.0, 0.05, 0.2, 0.5, 1.0)


class Oracle:
    """A reranker whose x0_hat the test has written down."""

    schedule, sampling = None, None
    of: ClassVar[Tensor]

    def prepare(self, direction: str, candidates: Tensor) -> None:
        return None

    def offsets(self, direction: str, candidates: Tensor) -> Tensor:
        return torch.zeros(len(candidates))

    def sight(self, direction: str, states: None) -> None:
        return None


def split_of(count: int, seed: int = 0) -> EmbeddedSplit:
    """As many clips as captions, hard to tell: their cosine is 0.5, and others' are spread around 0."""
    generator = torch.Generator().manual_seed(seed)
    audio = functional.normalize(torch.randn(count, 8, generator=generator), dim=1)
    text = functional.normalize(audio + functional.normalize(torch.randn(count, 8, generator=generator), dim=1), dim=1)
    return EmbeddedSplit(audio, text, np.arange(count))


def choose(
    monkeypatch: pytest.MonkeyPatch, split: EmbeddedSplit, x0_hat: Tensor, domain: np.ndarray, **how: Any
) -> module.Fusion:
    def blocks(*_: Any, query_ids: list[int], **__: Any) -> Iterator[tuple[slice, Tensor]]:
        yield slice(0, len(query_ids)), x0_hat[query_ids]

    monkeypatch.setattr(module, "score_blocks", blocks)
    return choose_fusion([validation_of(split, domain)], "t2a", Oracle(), **{"weights": WEIGHTS} | how)  # type: ignore[arg-type]


def validation_of(split: EmbeddedSplit, domain: np.ndarray) -> Validation:
    """Every caption asks for its own clip."""
    count = len(split.text)
    task = FusionTask(np.arange(count), [np.array([i]) for i in range(count)], np.arange(count), domain)
    return Validation(split, {"t2a": task})


def peaks(count: int, right: np.ndarray, seed: int = 0) -> Tensor:
    """Distributions with 0.9 on the right candidate where `right`, elsewhere on another one."""
    others = (np.arange(count) + np.random.default_rng(seed).integers(1, count, count)) % count
    place = torch.from_numpy(np.where(right, np.arange(count), others))
    return 0.9 * functional.one_hot(place, count) + 0.1 / count


def test_what_helps_everywhere_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = np.arange(200) % 2
    chosen = choose(monkeypatch, split_of(200), peaks(200, np.random.default_rng(0).uniform(size=200) < 0.9), domain)
    assert chosen.weight > 0
    assert chosen.gain > 10 * chosen.error > 0
    assert chosen.worth >= chosen.metrics["map"]


def test_noise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(8):
        x0_hat = torch.softmax(torch.randn(200, 200, generator=torch.Generator().manual_seed(seed)), 1)
        chosen = choose(monkeypatch, split_of(200, seed), x0_hat, np.zeros(200, int), shapes=("sum", "log"))
        assert (chosen.weight, chosen.gain) == (0, 0)


def test_no_domain_pays_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It helps three domains much and one is ranked at random by it: the mean gains, and the cosine stays."""
    domain = np.arange(200) % 4
    x0_hat = peaks(200, domain > 0)
    assert choose(monkeypatch, split_of(200), x0_hat, np.zeros(200, int), weights=(0.0, 0.5, 1.0)).weight > 0
    assert choose(monkeypatch, split_of(200), x0_hat, domain, weights=(0.0, 0.5, 1.0)).weight == 0


def test_no_data_set_pays_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of two splits of other sizes: what helps the first one much and ruins the second is not taken."""
    sizes = 150, 60
    x0_hats = {150: peaks(150, np.ones(150, bool)), 60: peaks(60, np.zeros(60, bool))}
    monkeypatch.setattr(module, "score_blocks", lambda queries, *_, **__: iter([(slice(0, len(queries)), x0_hats[len(queries)])]))
    splits = [validation_of(split_of(size, seed=size), np.zeros(size, int)) for size in sizes]
    weights = 0.0, 0.5, 1.0
    alone = choose_fusion(splits[:1], "t2a", Oracle(), weights)  # type: ignore[arg-type]
    both = choose_fusion(splits, "t2a", Oracle(), weights)  # type: ignore[arg-type]
    assert alone.weight > 0
    assert (both.weight, both.gain) == (0, 0)
    # Its metrics are those of the first: by the cosine now.
    cosine = (splits[0].split.text @ splits[0].split.audio.T).numpy()
    expected = [
        100 * average_precision_score(truth, scores) for truth, scores in zip(np.eye(150, dtype=bool), cosine, strict=True)
    ]
    assert both.metrics["map"] == pytest.approx(np.mean(expected))
    # What helps both is taken.
    x0_hats[60] = peaks(60, np.ones(60, bool))
    assert choose_fusion(splits, "t2a", Oracle(), weights).weight > 0  # type: ignore[arg-type]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6), min_size=1, max_size=4))
def test_splits_that_are_joined_share_nothing(splits: list[list[tuple[int, int]]]) -> None:
    """Queries are of one cluster (domain) in the joined task where they are in their own split, and nowhere else."""
    tasks = [FusionTask(np.arange(len(s)), [np.array([0])] * len(s), *np.array(s, int).reshape(-1, 2).T) for s in splits]
    found = joined(tasks)
    named = [(i, *query) for i, split in enumerate(splits) for query in split]
    assert len(found.rows) == len(found.relevant) == len(named)
    for a, first in enumerate(named):
        for b, second in enumerate(named):
            assert (found.cluster[a] == found.cluster[b]) == (first[:2] == second[:2])
            assert (found.domain[a] == found.domain[b]) == (first[::2] == second[::2])


def test_of_equals_the_one_that_moves_scores_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfect distributions: from some weight on every weight is perfect."""
    split, x0_hat = split_of(100), peaks(100, np.ones(100, bool))
    chosen = choose(monkeypatch, split, x0_hat, np.zeros(100, int), shapes=("sum", "log"))
    precision = {}
    truth = np.eye(100, dtype=bool)
    for weight in WEIGHTS:
        for shape in ("sum", "log"):
            scores = fuse(split.text @ split.audio.T, x0_hat, weight, shape).numpy()  # type: ignore[arg-type]
            precision[weight, shape] = np.array([100 * average_precision_score(t, s) for t, s in zip(truth, scores, strict=True)])
    best = max(precision.values(), key=lambda each: float(each.mean()))
    good = [f for f, each in precision.items() if (lost := best - each).mean() <= lost.std(ddof=1) / 10]
    assert (chosen.weight, chosen.shape) == min(good, key=lambda f: reach(*f))  # type: ignore[arg-type]
    assert chosen.metrics["map"] == pytest.approx(precision[chosen.weight, chosen.shape].mean())


def test_one_weight_alone_is_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    split, x0_hat = split_of(50), peaks(50, np.zeros(50, bool))
    monkeypatch.setattr(module, "score_blocks", lambda *_, query_ids, **__: iter([(slice(0, 50), x0_hat)]))
    chosen = choose_fusion([validation_of(split, np.zeros(50, int))], "t2a", Oracle(), (5.0,))  # type: ignore[arg-type]
    assert chosen.weight == 5
    assert chosen.gain < 0


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_standard_errors_are_those_of_cluster_means(clusters: int, each: int, seed: int) -> None:
    """With clusters of one size, the error is the deviation of their means over the root of their number."""
    values = np.random.default_rng(seed).normal(size=(clusters, each))
    task = FusionTask(np.arange(values.size), [], np.repeat(np.arange(clusters), each), np.zeros(values.size, int))
    mean, error = mean_over_domains(values.ravel(), task)
    assert mean == pytest.approx(values.mean())
    expected = values.mean(1).std(ddof=1) / np.sqrt(clusters) if clusters > 1 else np.inf
    assert error == pytest.approx(expected)


def clip(name: str, *captions: str) -> Clip:
    return Clip(name, "val", f"{name}.wav", 1.0, captions)


def test_domains_are_folders_and_small_ones_are_put_together() -> None:
    clips = [
        clip(f"val/{folder}/{i}", f"{folder} {i}") for folder, n in (("a", 30), ("b", 25), ("c", 12), ("d", 9)) for i in range(n)
    ]
    domain, cluster = domains_of(clips), np.arange(76)
    assert [int((domain == k).sum()) for k in np.unique(domain)] == [30, 25, 12, 9]
    joined = _large_enough(domain, cluster)
    assert sorted(int((joined == k).sum()) for k in np.unique(joined)) == [21, 25, 30]
    assert len(set(domains_of([clip("x", "y"), clip("z", "y")]).tolist())) == 1
    assert len(np.unique(_large_enough(np.arange(3), np.arange(3)))) == 1


def test_what_matches_is_what_is_said_to_be_in_a_clip() -> None:
    clips = [
        clip("scenes/0", "a dog barks while rain falls"),
        clip("single/1", "a dog barks"),
        clip("single/2", "A dog barks.", "rain falls"),
    ]
    captions = Captions.of(clips)
    split = EmbeddedSplit(torch.eye(3), torch.eye(4, 3), captions.clip_index, captions.positive_groups("positives"))
    task = fusion_task(split, "t2a", clips, "positives")
    asked = {normalise_caption(captions.texts[row]): found.tolist() for row, found in zip(task.rows, task.relevant, strict=True)}
    assert asked == {"a dog barks while rain falls": [0], "a dog barks": [0, 1, 2], "rain falls": [0, 1, 2]}
    heard = fusion_task(split, "a2t", clips, "positives")
    assert [each.tolist() for each in heard.relevant] == [[0, 1, 2, 3], [1, 2, 3], [1, 2, 3]]
    plain = EmbeddedSplit(torch.eye(3), torch.eye(4, 3), captions.clip_index)
    for direction in DIRECTIONS:
        expected = plain.task(direction)[2]
        assert [each.tolist() for each in fusion_task(plain, direction, clips, "negatives").relevant] == [
            e.tolist() for e in expected
        ]


@given(st.floats(0, 10), st.floats(0, 1))
def test_shapes(weight: float, x0_hat: float) -> None:
    cosine, value = torch.tensor([0.3], dtype=torch.float64), torch.tensor([x0_hat], dtype=torch.float64)
    assert fuse(cosine, value, weight).item() == pytest.approx(0.3 + weight * x0_hat)
    assert fuse(cosine, value, weight, "log").item() == pytest.approx(0.3 + weight * np.log1p(x0_hat / LOG_FLOOR))
    assert fuse(cosine, 0 * value, weight, "log").item() == pytest.approx(0.3)  # what was not sampled keeps its cosine
    assert reach(weight, "log") == pytest.approx(weight * np.log1p(1e6))
    assert torch.isfinite(fuse(cosine, -value, weight, "log")).all()  # clipped x0_hat may be below 0


def test_weight_nothing_samples_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_retriever import DIM, make_reranker

    reranker = make_reranker(DIM, weight=0.0)
    monkeypatch.setattr(Reranker, "prepare", lambda *_: pytest.fail("sampled"))
    generator = torch.Generator().manual_seed(0)
    audio, text = (functional.normalize(torch.randn(6, DIM, generator=generator), dim=1) for _ in range(2))
    for direction in DIRECTIONS:
        found = rank(EmbeddedSplit(audio, text, np.arange(6)), direction, reranker)
        assert found["diff"] == found["baseline"]
        assert not reranker.counts(direction)
        assert reranker.with_weight(0.1).counts(direction)
    assert make_reranker(DIM, weight=None).counts("t2a")
    with pytest.raises(ValueError, match="x0_hat alone"):
        make_reranker(DIM, weight=None).with_weight(0.5)
    assert copy.copy(reranker).fusion_weights == {"t2a": 0.0, "a2t": 0.0}
