"""Evaluation: figures equal those computed by hand from the embeddings, whatever the block size, seeds and caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workshop

from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.scoring import query_noise
from diffatr_cli.data.manifest import load_dataset, read_piece
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation import evaluate as evaluation
from diffatr_cli.evaluation.evaluate import cross_domain, evaluate
from diffatr_cli.model import load_retriever
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion


def run(workshop: Workshop, source: str = "tones", target: str = "tones2", **options: object) -> evaluation.EvaluationResult:
    return evaluate(source, target, data=workshop.data, runs=workshop.runs, device="cpu", **options)  # type: ignore[arg-type]


def test_figures_equal_those_by_hand(workshop: Workshop, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(workshop)
    assert (result.clips, result.captions, result.seeds) == (12, 24, (0,))
    retriever = load_retriever(trained, "cpu")
    clips = load_dataset(workshop.data, "tones2").split("test")
    waves = [read_piece(workshop.data / "tones2" / clip.path) for clip in clips]
    audio = torch.from_numpy(np.concatenate([retriever.embed_audio([wave]) for wave in waves]))
    text = torch.from_numpy(np.concatenate([retriever.embed_text([c]) for clip in clips for c in clip.captions]))
    relevant = np.repeat(np.arange(12), 2)[:, None] == np.arange(12)
    for direction, queries, candidates, truth in (("t2a", text, audio, relevant), ("a2t", audio, text, relevant.T)):
        cosine = queries @ candidates.T
        denoiser = retriever.denoisers[direction].double()  # type: ignore[index]
        noise = query_noise(0, range(len(queries)), len(candidates))(0).double()
        x0_hat = ddim_sample(denoiser, queries.double(), candidates.double(), retriever.schedule, noise=noise).detach()
        fused = cosine + retriever.fusion_weights[direction] * x0_hat  # type: ignore[index]
        for system, scores in (("baseline", cosine), ("diff", fused)):
            expected = retrieval_metrics(scores, truth)
            got = result.get(system, direction)  # type: ignore[arg-type]
            assert got is not None
            for metric, value in expected.items():
                assert got.mean(metric) == pytest.approx(value, abs=1e-6), (system, direction, metric)


def test_a_cache_changes_nothing_and_new_audio_is_seen(workshop: Workshop, trained: Path) -> None:
    first = run(workshop).to_json()
    assert run(workshop).to_json() == first


def test_steps_shortlist_and_noise_are_heard(workshop: Workshop, trained: Path) -> None:
    result = run(workshop, steps=3, shortlist=4)
    assert (result.steps, result.shortlist, result.chain) == (3, 4, 10)
    with pytest.raises((UsageError, ValueError), match="11"):
        run(workshop, steps=11)


def test_seeds_are_averaged_and_missing_ones_named(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    recipe = workshop.recipe("pretrain.epochs=1", "diffusion.epochs=1")
    for seed in (1, 2):
        for job in (pretrain, train_diffusion):
            job("tiny", recipe, data=workshop.data, runs=tmp_path, seed=seed, device="cpu")
    result = evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
    assert result.seeds == (1, 2)
    singles = [
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, seeds=(s,), device="cpu").get("baseline", "t2a")
        for s in (1, 2)
    ]
    both = result.get("baseline", "t2a")
    assert both is not None
    assert both.mean("r1") == pytest.approx(np.mean([s.mean("r1") for s in singles if s]))
    with pytest.raises(UsageError, match="7"):
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, seeds=(1, 7), device="cpu")


def test_phase_one_alone_has_no_diff_and_gen_no_baseline(workshop: Workshop, tmp_path: Path) -> None:
    for name, systems in (("dis", {"baseline"}), ("gen", {"diff"})):
        recipe = workshop.recipe("pretrain.epochs=1", f"model.strategy={name}")
        pretrain(name, recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu")
        result = evaluate("tones", "tones", data=workshop.data, runs=tmp_path, recipe=name, device="cpu")
        assert {s.system for s in result.systems} == systems


def test_several_recipes_need_a_choice(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="diffatr pretrain"):
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
    for name in ("one", "two"):
        pretrain(name, workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=tmp_path, seed=0, device="cpu")
    with pytest.raises(UsageError, match="--recipe"):
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
    assert evaluate("tones", "tones", data=workshop.data, runs=tmp_path, recipe="two", device="cpu").recipe == "two"


def test_cross_domain_goes_both_ways(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    pretrain("other", workshop.recipe("data.name=tones2", "pretrain.epochs=1"), data=workshop.data, runs=tmp_path, device="cpu")
    pretrain("tiny", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=tmp_path, device="cpu")
    results = cross_domain(("tones", "tones2"), data=workshop.data, runs=tmp_path, device="cpu")
    assert [(r.source, r.target) for r in results] == [("tones", "tones2"), ("tones2", "tones")]


def test_an_unprepared_target_names_the_command(workshop: Workshop, trained: Path) -> None:
    with pytest.raises(DiffATRError, match="diffatr prepare"):
        run(workshop, target="nothing")


def test_a_run_without_a_finished_epoch_is_told(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "seed-0" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes((trained / "pretrain" / "run.json").read_bytes())
    with pytest.raises(UsageError, match="no seed has finished"):
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
