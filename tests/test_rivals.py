"""The rivals of diffusion: querybank normalisation by its equation, one step, and the denoiser without diffusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional

from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.losses import generation_loss
from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.querybank import querybank_offsets
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import Reranker, diffusion_scores
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation.embedded_split import EmbeddedSplit
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.ranking import rank
from diffatr_cli.evaluation.rivals import Querybank
from diffatr_cli.evaluation.trajectory import trajectory
from diffatr_cli.model import load_retriever, sampling_of
from diffatr_cli.report.tables import evaluation_caption
from diffatr_cli.training.denoisers import Noising, denoising_loss
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def ranking(scores: np.ndarray) -> list[list[int]]:
    return np.argsort(-scores, axis=1, kind="stable").tolist()


@given(seed=st.integers(0, 1000), beta=st.sampled_from([0.5, 1.0, 5.0, 20.0, 60.0]), bank=st.integers(1, 40))
def test_the_offsets_rank_as_the_inverted_softmax_as_it_is_printed(seed: int, beta: float, bank: int) -> None:
    queries, candidates, others = unit(7, 6, seed=seed), unit(11, 6, seed=seed + 1), unit(bank, 6, seed=seed + 2)
    q, c, b = (each.double().numpy() for each in (queries, candidates, others))
    printed = np.exp(beta * (q @ c.T)) / np.exp(beta * (b @ c.T)).sum(0)
    ours = (queries @ candidates.T).double() - querybank_offsets(candidates, others, beta)
    assert np.allclose(np.exp(beta * ours.numpy()) / bank, printed, rtol=1e-4)
    assert retrieval_metrics(ours, [[0]] * 7) == retrieval_metrics(printed, [[0]] * 7)


def test_norms_do_not_count_and_large_betas_do_not_overflow() -> None:
    candidates, bank = unit(9, 5), unit(30, 5, seed=1)
    assert torch.allclose(querybank_offsets(candidates * 7, bank * 3, 20.0), querybank_offsets(candidates, bank, 20.0), atol=1e-6)
    greatest = (candidates @ bank.T).amax(1).double()
    assert torch.allclose(querybank_offsets(candidates, bank, 1e6), greatest, atol=1e-4)
    assert torch.allclose(querybank_offsets(candidates, bank, 1e-6), (candidates @ bank.T).mean(1).double(), atol=1e-4)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            querybank_offsets(candidates, bank, beta)


def test_a_bank_of_nothing_or_of_no_preference_changes_no_ranks() -> None:
    queries, candidates = unit(8, 6), unit(12, 6, seed=1)
    cosine = (queries @ candidates.T).double()
    empty = querybank_offsets(candidates, torch.zeros(0, 6), 20.0)
    axes = torch.cat([candidates, torch.zeros(12, 1)], 1)  # the bank lies across all of them
    uniform = querybank_offsets(axes, functional.one_hot(torch.full((5,), 6), 7).float(), 20.0)
    for offsets in (empty, uniform):
        assert ranking((cosine - offsets).numpy()) == ranking(cosine.numpy())
    assert len(querybank_offsets(torch.zeros(0, 6), candidates, 20.0)) == 0


def test_a_hub_is_held_back_and_equal_candidates_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, other = unit(2, 4)
    bank = functional.normalize(hub + 0.1 * unit(50, 4, seed=3), dim=1)
    offsets = querybank_offsets(torch.stack([hub, other]), bank, 20.0)
    assert offsets[0] > offsets[1] + 0.2
    monkeypatch.setattr("diffatr_cli.core.querybank.BLOCK_ENTRIES", 150)  # three candidates at a time
    repeated = unit(5, 64).repeat(7, 1)
    offsets = querybank_offsets(repeated, unit(50, 64, seed=9), 20.0).view(7, 5)
    assert (offsets == offsets[0]).all()


def test_beta_is_the_best_on_validation_and_of_equals_the_smallest() -> None:
    clip_index = np.repeat(np.arange(10), 2)
    audio = unit(10, 8)

    def split(seed: int) -> EmbeddedSplit:
        return EmbeddedSplit(audio, functional.normalize(audio[clip_index] + 0.9 * unit(20, 8, seed=seed), dim=1), clip_index)

    train, val = split(1), split(2)
    betas = (50.0, 1.0, 5.0)
    bank = Querybank.fit(train, val, betas)
    for direction in DIRECTIONS:
        queries, candidates, relevant = val.task(direction)
        others = train.text if direction == "t2a" else train.audio
        scores = {}
        for beta in betas:
            sums = torch.exp(beta * (others @ candidates.T).double()).sum(0)
            found = retrieval_metrics(torch.exp(beta * (queries @ candidates.T).double()) / sums, relevant)
            scores[beta] = found["r1"] + found["r5"] + found["r10"]
        assert bank.betas[direction] == min(beta for beta in betas if scores[beta] == pytest.approx(max(scores.values())))


@pytest.fixture(scope="module")
def measured(workshop: Workshop, trained: Path) -> Any:
    return evaluate("tones", "tones2", data=workshop.data, runs=workshop.runs, rivals=True, device="cpu")


def test_rivals_stand_beside_both_systems_and_off_by_default(workshop: Workshop, measured: Any) -> None:
    rows = [(each.direction, each.system) for each in measured.systems]
    assert rows == [(d, s) for d in DIRECTIONS for s in ("baseline", "qbnorm", "diff", "one-step")]
    plain = evaluate("tones", "tones2", data=workshop.data, runs=workshop.runs, device="cpu")
    assert {each.system for each in plain.systems} == {"baseline", "diff"}
    for each in plain.systems:
        assert each.per_seed == measured.get(each.system, each.direction).per_seed
    single = evaluate("tones", "tones2", data=workshop.data, runs=workshop.runs, steps=1, device="cpu")
    for direction in DIRECTIONS:
        assert measured.get("one-step", direction).per_seed == single.get("diff", direction).per_seed
    assert set(measured.to_json()["querybank_betas"]) == set(DIRECTIONS)
    assert "QB-Norm's beta: t2a" in evaluation_caption(measured)


def discriminative(workshop: Workshop, trained: Path, runs: Path, *overrides: str) -> Path:
    shutil.copytree(trained / "pretrain", runs / "tiny" / "seed-0" / "pretrain")
    recipe = workshop.recipe("diffusion.objective=discriminative", "evaluation.draws=3", "evaluation.eta=0.5", *overrides)
    return train_diffusion("tiny", recipe, data=workshop.data, runs=runs, device="cpu").folder.parent


def test_without_diffusion_the_loss_is_a_classifiers(workshop: Workshop) -> None:
    torch.manual_seed(0)
    denoiser, schedule = AttentionDenoiser(6, 8), NoiseSchedule.cosine(10)
    queries, candidates, truth = unit(5, 6), unit(9, 6, seed=1), torch.tensor([3, 1, 4, 1, 5])
    x_0 = functional.one_hot(truth, 9).float()
    logits = denoiser(torch.zeros(5, 9), torch.full((5,), 9), queries, candidates)
    loss = denoising_loss(denoiser, schedule, queries, candidates, x_0, noising=Noising("discriminative"))
    assert torch.allclose(loss, functional.cross_entropy(logits, truth), atol=1e-6)
    assert torch.equal(loss, denoising_loss(denoiser, schedule, queries, candidates, x_0, noising=Noising("discriminative")))
    assert not torch.allclose(loss, denoising_loss(denoiser, schedule, queries, candidates, x_0), atol=1e-6)
    # and that is what is asked when candidates are ranked
    reranker = Reranker(dict.fromkeys(DIRECTIONS, denoiser.eval()), schedule, Sampling(steps=1, noise=False), {})
    x0_hat = diffusion_scores(queries, reranker.prepare("t2a", candidates), schedule, reranker.sampling)
    assert torch.allclose(x0_hat, logits.softmax(1), atol=1e-5)
    assert torch.allclose(generation_loss(x0_hat.log(), truth), loss, atol=1e-5)


def test_a_run_without_diffusion_is_its_own_rival(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    run = discriminative(workshop, trained, tmp_path)
    model = load_retriever(run, "cpu")
    assert model.reranker is not None
    assert model.reranker.sampling == Sampling(steps=1, draws=1, noise=False)
    log = [json.loads(line) for line in (run / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]

    def measured(**options: Any) -> Any:
        return evaluate("tones", "tones2", data=workshop.data, runs=tmp_path, rivals=True, device="cpu", **options)

    result = measured()
    assert {each.system for each in result.systems} == {"baseline", "qbnorm", "diff"}
    assert (result.steps, result.objective) == (1, "discriminative")
    assert "without diffusion" in evaluation_caption(result)
    assert [each.per_seed for each in measured(noise_seed=7).systems] == [each.per_seed for each in result.systems]
    with pytest.raises(UsageError, match="without diffusion"):
        measured(steps=4)
    with pytest.raises(UsageError, match="without diffusion"):
        sampling_of(model, draws=2)
    with pytest.raises(UsageError, match="without diffusion"):
        trajectory("tones", "tones2", data=workshop.data, runs=tmp_path, device="cpu")
    short = measured(shortlist=4)
    assert short.get("diff", "t2a") is not None


def test_its_scores_are_those_of_the_network_at_zero(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    model = load_retriever(discriminative(workshop, trained, tmp_path, "diffusion.epochs=1"), "cpu")
    assert model.reranker is not None
    audio, text = unit(6, 16), unit(12, 16, seed=1)
    split = EmbeddedSplit(audio, text, np.repeat(np.arange(6), 2))
    for direction in DIRECTIONS:
        queries, candidates, relevant = split.task(direction)
        denoiser = model.reranker.denoisers[direction]
        x_k, level = torch.zeros(len(queries), len(candidates)), torch.full((len(queries),), 9)
        with torch.no_grad():
            x0_hat = denoiser(x_k, level, queries, candidates).softmax(1)
        expected = retrieval_metrics(queries @ candidates.T + model.reranker.fusion_weights[direction] * x0_hat, relevant)
        assert rank(split, direction, model.reranker)["diff"] == pytest.approx(expected)


def test_the_objectives_do_not_mix(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    run = discriminative(workshop, trained, tmp_path, "diffusion.epochs=1")
    before = load_file(run / "diffusion" / "best.safetensors")
    with pytest.raises(UsageError, match=r"diffusion\.objective"):
        train_diffusion("tiny", workshop.recipe("diffusion.epochs=1"), data=workshop.data, runs=tmp_path, device="cpu")
    after = load_file(run / "diffusion" / "best.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
