"""A prior of the candidates: what a bank says of them, what validation lets it say, and the same in every ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from fake_retriever import DIM, FakeRetriever, make_reranker
from hypothesis import given
from hypothesis import strategies as st
from killed_runs import assert_killed_run_resumes_to_the_same
from torch.nn import functional

from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.querybank import Prior
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.scoring import Reranker, diffusion_scores
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.index import Recordings
from diffatr_cli.corpus.search import search
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation.earning import FusionTask
from diffatr_cli.evaluation.embedded_split import EmbeddedSplit
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.ranking import rank
from diffatr_cli.evaluation.trajectory import measure_levels
from diffatr_cli.evaluation.validation import Validation
from diffatr_cli.model import load_retriever
from diffatr_cli.report.tables import evaluation_caption
from diffatr_cli.training import choosing
from diffatr_cli.training.choose_prior import ChosenPrior, bank_of, choose_prior
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS, Direction


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def offsets_of(bank: torch.Tensor, beta: float, weight: float, candidates: torch.Tensor) -> np.ndarray:
    """As the docstrings say it, in float64."""
    similarity = candidates.double().numpy() @ bank.double().numpy().T
    return weight * np.log(np.exp(beta * similarity).mean(1)) / beta


@given(st.integers(0, 500), st.sampled_from([0.5, 1.0, 10.0, 50.0]), st.floats(0, 1))
def test_a_prior_takes_a_share_of_what_the_bank_says(seed: int, beta: float, weight: float) -> None:
    bank, candidates = unit(13, 6, seed=seed), unit(9, 6, seed=seed + 1)
    got = Prior(bank, beta, weight).offsets(candidates)
    assert got.dtype == candidates.dtype
    np.testing.assert_allclose(got, offsets_of(bank, beta, weight, candidates), atol=1e-5)


def asked(split: EmbeddedSplit, direction: Direction, domain: np.ndarray | None = None) -> Validation:
    count = len(split.text)
    domains = np.zeros(count, int) if domain is None else domain
    task = FusionTask(np.arange(count), [np.array([i]) for i in range(count)], np.arange(count), domains)
    return Validation(split, {direction: task})


def split_with_hubs(count: int, hubs: int, seed: int = 0) -> tuple[EmbeddedSplit, torch.Tensor]:
    """Pairs, some of whose clips lie toward a direction that all queries share a little of; and such queries as a bank."""
    common = unit(1, 16, seed=99)
    of_pairs, others = unit(count, 16, seed=seed), unit(300, 16, seed=seed + 1)
    text = functional.normalize(of_pairs + 0.6 * common, dim=1)
    audio = functional.normalize(of_pairs + 0.8 * unit(count, 16, seed=seed + 2), dim=1)
    audio[:hubs] = functional.normalize(audio[:hubs] + 2 * common, dim=1)
    return EmbeddedSplit(audio, text, np.arange(count)), functional.normalize(others + 0.6 * common, dim=1)


def test_a_bank_that_knows_the_hubs_earns_its_weight() -> None:
    split, bank = split_with_hubs(200, 60)
    chosen = choose_prior([asked(split, "t2a")], "t2a", bank)
    assert chosen.prior is not None
    assert chosen.gain > 2 * chosen.error > 0
    relevant = [[i] for i in range(200)]
    cosine = split.text @ split.audio.T
    offsets = offsets_of(bank, chosen.prior.beta, chosen.prior.weight, split.audio)
    plain, corrected = (retrieval_metrics(scores, relevant)["r1"] for scores in (cosine.numpy(), cosine.numpy() - offsets))
    assert corrected > plain


def test_a_bank_that_knows_nothing_earns_none() -> None:
    """Or seldom: two standard errors are exceeded by chance now and then."""
    earned = 0
    for seed in range(0, 60, 3):
        audio = unit(150, 16, seed=seed)
        text = functional.normalize(audio + 0.8 * unit(150, 16, seed=seed + 1), dim=1)
        chosen = choose_prior([asked(EmbeddedSplit(audio, text, np.arange(150)), "a2t")], "a2t", unit(40, 16, seed=seed + 2))
        earned += chosen.prior is not None
        assert (chosen.gain > 0) == (chosen.prior is not None)
    assert earned <= 2


def test_a_bank_may_not_help_one_domain_at_the_cost_of_another() -> None:
    """In one half the hubs are wrong answers that the bank holds back, in the other they are the right ones."""
    split, bank = split_with_hubs(200, 60)
    other, _ = split_with_hubs(200, 0, seed=7)
    common = unit(1, 16, seed=99)
    turned = functional.normalize(other.audio + 2 * common, dim=1)
    both = EmbeddedSplit(torch.cat([split.audio, turned]), torch.cat([split.text, other.text]), np.arange(400))
    assert choose_prior([asked(both, "t2a", np.arange(400) // 200)], "t2a", bank).prior is None
    # The same of two data sets; in the second one, queries ask for hubs alone.
    hubs = torch.cat([turned[:60], other.audio[60:]])
    second = EmbeddedSplit(hubs, other.text[:60], np.arange(60))
    assert choose_prior([asked(split, "t2a")], "t2a", bank).prior is not None
    assert choose_prior([asked(split, "t2a"), asked(second, "t2a")], "t2a", bank).prior is None


def test_a_bank_is_drawn_from_all_the_queries_and_kept_in_half_precision() -> None:
    split = EmbeddedSplit(unit(30, 8), unit(60, 8, seed=1), np.repeat(np.arange(30), 2))
    for direction, queries in (("t2a", split.text), ("a2t", split.audio)):
        whole = bank_of(split, direction, 1000, seed=0)  # type: ignore[arg-type]
        assert torch.equal(whole, queries.half().float())
        some, again, others = (bank_of(split, direction, 9, seed=seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
        assert torch.equal(some, again)
        assert not torch.equal(some, others)
        assert (some[:, None] == whole[None]).all(2).any(1).all()
        assert len(torch.unique(some, dim=0)) == 9


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_every_ranking_takes_the_same_away(weight: float) -> None:
    """Evaluation, the levels of a trajectory and a search of a folder, against sums written out."""
    plain = make_reranker(weight=weight)
    priors = {"t2a": Prior(unit(20, DIM, seed=5), 5.0, 0.8), "a2t": Prior(unit(20, DIM, seed=6), 20.0, 1.0)}
    of_parts = plain.denoisers, plain.schedule, Sampling(shortlist=None), plain.fusion_weights
    reranker = Reranker(*of_parts, priors=priors)  # type: ignore[arg-type]
    split = EmbeddedSplit(unit(12, DIM, seed=1), unit(12, DIM, seed=2), np.arange(12))
    scores = {}
    for direction in DIRECTIONS:
        queries, candidates, relevant = split.task(direction)
        prior, cosine = priors[direction], queries @ candidates.T
        prepared = reranker.prepare(direction, candidates)
        x0_hat = diffusion_scores(queries, prepared, reranker.schedule, reranker.sampling)
        scores[direction] = (
            cosine.numpy() - offsets_of(prior.queries, prior.beta, prior.weight, candidates) + weight * x0_hat.numpy()
        )
        ranked = rank(split, direction, reranker)
        assert ranked["diff"] == pytest.approx(retrieval_metrics(scores[direction], relevant))
        assert ranked["baseline"] == pytest.approx(retrieval_metrics(cosine, relevant))
        levels, r1 = measure_levels(split, direction, reranker, reranker.sampling)
        assert levels[-1].r1_final == pytest.approx(ranked["diff"]["r1"])
        assert r1 == pytest.approx(ranked["baseline"]["r1"])
    retriever: Any = FakeRetriever(phase_two=True)
    retriever.reranker = reranker
    spans, files = np.array([[0.0, 1.0]] * 12), [f"{i:02d}.wav" for i in range(12)]
    recordings = Recordings(files, np.arange(12), np.arange(13), spans, split.audio.numpy())
    hits = search(retriever, recordings, split.text[:1].numpy(), reranker.sampling, top=5)[0].hits
    order = np.argsort(-scores["t2a"][0])[:5].tolist()
    assert [hit.path for hit in hits] == [files[i] for i in order]
    if not weight:  # the noise of a shortlist goes by the order of its cosines
        np.testing.assert_allclose([hit.score for hit in hits], scores["t2a"][0][order], atol=1e-5)


def test_captions_of_a_sound_too() -> None:
    retriever: Any = FakeRetriever(phase_two=True)
    captions = [f"{hz} Hz" for hz in (200, 400, 900, 2000, 4000)]
    sound = unit(DIM, seed=3).numpy()
    vectors = torch.from_numpy(retriever.embed_text(captions))
    prior = Prior(unit(20, DIM, seed=6), 20.0, 1.0)
    parts = retriever.reranker
    weights = {"t2a": 0.0, "a2t": 0.0}
    retriever.reranker = Reranker(parts.denoisers, parts.schedule, parts.sampling, weights, priors={"a2t": prior})
    hits = describe(retriever, sound, captions, top=5).hits
    expected = vectors.numpy() @ sound - offsets_of(prior.queries, prior.beta, prior.weight, vectors)
    assert [hit.caption for hit in hits] == [captions[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1], atol=1e-5)


@pytest.fixture
def earned_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if validation had found every bank worth half its weight; the clips of the tests are too few to find anything."""
    monkeypatch.setattr(choosing, "choose_prior", lambda splits, direction, bank: ChosenPrior(Prior(bank, 10.0, 0.5), 1.0, 0.1))


def test_a_model_keeps_its_bank(workshop: Workshop, trained: Path, tmp_path: Path, earned_by_all: None) -> None:
    recipe = workshop.recipe("evaluation.bank=7", "diffusion.epochs=1")
    found = train_diffusion("banked", recipe, data=workshop.data, runs=tmp_path, encoders=trained, device="cpu")
    model = load_retriever(found.folder.parent, "cpu")
    assert model.reranker is not None
    for prior in model.reranker.priors.values():
        assert (prior.beta, prior.weight, len(prior.queries)) == (10.0, 0.5, 7)
        np.testing.assert_allclose(prior.queries.norm(dim=1), 1, atol=1e-2)
    result = evaluate("tones", "tones2", recipe="banked", data=workshop.data, runs=tmp_path, device="cpu")
    assert result.to_json()["bank_weights"] == {"t2a": [0.5], "a2t": [0.5]}
    assert "a bank of training queries, has the weight t2a 0.5; a2t 0.5" in evaluation_caption(result)


def test_what_is_not_earned_is_not_kept(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "choose_prior", lambda *_: ChosenPrior(None, 0.0, 0.0))
        recipe = workshop.recipe("evaluation.bank=7", "diffusion.epochs=1")
        found = train_diffusion("tiny", recipe, data=workshop.data, runs=tmp_path, encoders=trained, device="cpu")
    model = load_retriever(found.folder.parent, "cpu")
    assert model.reranker is not None
    assert model.reranker.priors == {}
    result = evaluate("tones", "tones2", data=workshop.data, runs=tmp_path, device="cpu")
    assert result.to_json()["bank_weights"] == {"t2a": [0.0], "a2t": [0.0]}


def test_a_killed_run_with_a_bank_resumes_to_the_same(
    workshop: Workshop, trained: Path, tmp_path: Path, earned_by_all: None
) -> None:
    assert_killed_run_resumes_to_the_same(workshop, workshop.recipe("evaluation.bank=7"), trained, tmp_path)


def test_a_bank_needs_phase_two(workshop: Workshop) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.bank: is fitted in phase two"):
        workshop.recipe("evaluation.bank=7", "model.strategy=dis")
