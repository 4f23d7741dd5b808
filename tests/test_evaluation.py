"""Evaluation: figures equal those computed by hand from the embeddings, whatever the block size, seeds and caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from tiny import make_data

from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.data.manifest import load_dataset, read_piece
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation import ranking
from diffatr_cli.evaluation.evaluate import cross_domain, evaluate
from diffatr_cli.evaluation.results import EvaluationResult
from diffatr_cli.model import load_retriever
from diffatr_cli.runs import recipe_of
from diffatr_cli.training.phase_folder import TrainingResult
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS


def run(workshop: Workshop, source: str = "tones", target: str = "tones2", **options: object) -> EvaluationResult:
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
    reranker = retriever.reranker
    assert reranker is not None
    for direction, queries, candidates, truth in (("t2a", text, audio, relevant), ("a2t", audio, text, relevant.T)):
        cosine = queries @ candidates.T
        denoiser = reranker.denoisers[direction].double()  # type: ignore[index]
        noise = query_noise(0, range(len(queries)), len(candidates))(0).double()
        x0_hat = ddim_sample(denoiser, queries.double(), candidates.double(), reranker.schedule, noise=noise).detach()
        fused = cosine + reranker.fusion_weights[direction] * x0_hat  # type: ignore[index]
        for system, scores in (("baseline", cosine), ("diff", fused)):
            expected = retrieval_metrics(scores, truth)
            got = result.get(system, direction)  # type: ignore[arg-type]
            assert got is not None
            for metric, value in expected.items():
                assert got.mean(metric) == pytest.approx(value, abs=1e-6), (system, direction, metric)


def test_a_cache_changes_nothing_and_new_audio_is_seen(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(workshop.runs, tmp_path / "runs")
    make_data(tmp_path / "data", "tones2", sizes=(4, 4, 12), seed=1)

    def measured() -> dict[str, Any]:
        return evaluate("tones", "tones2", data=tmp_path / "data", runs=runs, device="cpu").to_json()

    first = measured()
    assert measured() == first
    make_data(tmp_path / "data", "tones2", sizes=(4, 4, 12), seed=7)  # the same names and captions over other sounds
    assert measured()["systems"] != first["systems"]


def test_steps_shortlist_and_noise_reach_the_sampler(workshop: Workshop, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sampling] = []
    plain = ranking.diffusion_score_blocks

    def listening(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[3])
        return plain(*arguments, **options)

    monkeypatch.setattr(ranking, "diffusion_score_blocks", listening)
    run(workshop, weight=0.5)
    result = run(workshop, steps=3, shortlist=4, noise_seed=9, weight=0.5)
    assert (result.steps, result.shortlist, result.chain) == (3, 4, 10)
    assert seen == [Sampling()] * 2 + [Sampling(steps=3, shortlist=4, seed=9)] * 2
    assert result.fusion_weights == {"t2a": (0.5,), "a2t": (0.5,)}
    seen.clear()
    plain_cosine = run(workshop, weight=0.0)
    assert seen == []
    for direction in DIRECTIONS:
        baseline, diff = (plain_cosine.get(system, direction) for system in ("baseline", "diff"))  # type: ignore[arg-type]
        assert baseline is not None
        assert diff is not None
        assert baseline.per_seed == diff.per_seed
    with pytest.raises(UsageError, match="11"):
        run(workshop, steps=11)


def test_phase_twos_own_settings_are_those_it_is_judged_by(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    """Every field of `diffusion` and `evaluation` that shapes the model or its sampling, given to phase two alone."""
    shutil.copytree(trained / "pretrain", tmp_path / "tiny" / "seed-0" / "pretrain")
    overrides = (
        "diffusion.steps=6",
        "diffusion.hidden=24",
        "diffusion.output=add_logit",
        "diffusion.attention_scale=sqrt_dim",
        "diffusion.input_scale=none",
        "diffusion.schedule=linear",
        "diffusion.x0=clip",
        "diffusion.epochs=1",
        "evaluation.steps=4",
        "evaluation.eta=0.5",
        "evaluation.draws=2",
        "evaluation.shortlist=5",
        "evaluation.fusion_weights=[5.0]",  # so that x0_hat counts
    )
    recipe = workshop.recipe(*overrides)
    train_diffusion("tiny", recipe, data=workshop.data, runs=tmp_path, device="cpu")
    model = load_retriever(tmp_path / "tiny" / "seed-0", "cpu")
    assert model.reranker is not None
    config = model.reranker.denoisers["t2a"].config
    assert (config.hidden, config.output, config.attention_scale, config.input_scale) == (24, "add_logit", "sqrt_dim", "none")
    assert torch.equal(model.reranker.schedule.betas, NoiseSchedule.linear(6).betas)
    assert model.reranker.sampling == Sampling(4, 0.5, "clip", 2, 5)
    result = evaluate("tones", "tones", data=workshop.data, runs=tmp_path, split="val", device="cpu")
    assert (result.chain, result.steps, result.shortlist) == (6, 4, 5)
    log = (tmp_path / "tiny" / "seed-0" / "diffusion" / "metrics.jsonl").read_text(encoding="utf-8")
    validated = json.loads(log.splitlines()[-1])
    for direction in DIRECTIONS:  # the figures that validation saw are those that evaluation finds
        measured = result.get("diff", direction)
        assert measured is not None
        for metric in ("r1", "r5", "r10"):
            assert measured.mean(metric) == pytest.approx(validated[f"{direction}_{metric}"], abs=1e-6)
        assert validated[f"{direction}_weight"] == 5


def test_overrides_that_contradict_the_encoders_are_refused(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "pretrain", tmp_path / "tiny" / "seed-0" / "pretrain")
    recipe = workshop.recipe("model.temperature=0.2", "pretrain.epochs=9", "diffusion.epochs=1")

    def run(*stated: str) -> TrainingResult:
        return train_diffusion("tiny", recipe, data=workshop.data, runs=tmp_path, device="cpu", stated=stated)

    with pytest.raises(UsageError, match=r"^model\.temperature, pretrain\.epochs: the encoders") as refused:
        run("model.temperature", "pretrain.epochs", "diffusion.epochs")
    assert refused.value.exit_code == 2
    assert not (tmp_path / "tiny" / "seed-0" / "diffusion").exists()
    result = run("diffusion.epochs")  # the recipe's file says otherwise: told, and the encoders' values stand
    assert "model.temperature, pretrain.epochs" in result.notes[0]
    assert recipe_of(tmp_path / "tiny" / "seed-0").model.temperature == workshop.recipe().model.temperature


def test_seeds_of_different_settings_are_not_averaged(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "tiny" / "seed-0")
    pretrain("tiny", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=tmp_path, seed=1, device="cpu")
    with pytest.raises(UsageError, match=r"pretrain\.epochs"):
        evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
    assert evaluate("tones", "tones", data=workshop.data, runs=tmp_path, seeds=(1,), device="cpu").seeds == (1,)


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


def test_recipes_of_both_sources_can_be_named(workshop: Workshop, tmp_path: Path) -> None:
    for name, data in (("one", "tones"), ("two", "tones"), ("three", "tones2"), ("four", "tones2")):
        recipe = workshop.recipe(f"data.name={data}", "pretrain.epochs=1")
        pretrain(name, recipe, data=workshop.data, runs=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="--recipe"):
        cross_domain(("tones", "tones2"), data=workshop.data, runs=tmp_path, device="cpu")
    results = cross_domain(("tones", "tones2"), recipes=("two", "four"), data=workshop.data, runs=tmp_path, device="cpu")
    assert [(r.source, r.recipe) for r in results] == [("tones", "two"), ("tones2", "four")]


def test_a_record_that_cannot_be_read_is_named_and_passed_over(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "tiny" / "seed-0")
    for name, content in (("old", {"recipe": {"data": {"name": "tones", "lost_field": 1}}}), ("torn", None)):
        (tmp_path / name / "seed-0" / "pretrain").mkdir(parents=True)
        text = json.dumps(content) if content else '{"recipe": '
        (tmp_path / name / "seed-0" / "pretrain" / "run.json").write_text(text)
    result = evaluate("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")
    assert result.recipe == "tiny"
    assert len(result.notes) == 2
    assert any("lost_field" in note and "old" in note for note in result.notes)
    assert any("torn" in note for note in result.notes)
