"""The corpus as context in whole runs: the random walk as a rival that validation weighs, and feedback that phase two learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from diffatr_cli.core.feedback import neighbours_of, walk_scores
from diffatr_cli.core.metrics import Measure, retrieval_metrics
from diffatr_cli.core.scoring import LOG_FLOOR
from diffatr_cli.data.manifest import Clip
from diffatr_cli.evaluation.choose_fusion import Fusion, Scored, choose_weight
from diffatr_cli.evaluation.earning import fusion_task
from diffatr_cli.evaluation.embedded_split import EmbeddedSplit
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.trajectory import trajectory
from diffatr_cli.evaluation.validation import Validation
from diffatr_cli.evaluation.walk import Walk
from diffatr_cli.model import load_retriever
from diffatr_cli.report.tables import evaluation_caption, evaluation_table
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS

WEIGHTS = (0.0, 0.05, 0.2, 1.0, 5.0)


def clips_of_kinds(kinds: int, each: int, seed: int) -> tuple[EmbeddedSplit, list[Clip]]:
    """Recordings of some kinds of sound, with one caption a kind: kinds are well apart from each other, and captions lie anywhere
    near theirs."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, generator=generator), dim=1)

    centres = noise(kinds, 12)
    kind = np.repeat(np.arange(kinds), each)
    audio = functional.normalize(centres[kind] + 0.7 * noise(kinds * each, 12), dim=1)
    text = functional.normalize(centres + 0.9 * noise(kinds, 12), dim=1)[kind]
    clips = [Clip(f"{i}.wav", "val", f"{i}.wav", 1.0, (f"sound {k}",)) for i, k in enumerate(kind.tolist())]
    return EmbeddedSplit(audio, text, np.arange(len(kind)), kind * each), clips


def test_where_many_match_validation_takes_the_walk_and_it_gains() -> None:
    val, clips = clips_of_kinds(40, 12, 0)
    walk = Walk.fit(0.07, [Validation.of(val, clips, "positives")], WEIGHTS, ("sum", "log"))
    test, _ = clips_of_kinds(40, 12, 1)
    queries, candidates, relevant = test.task("t2a")
    fusion, measure = walk.fusions["t2a"], Measure(ap_cutoff=None)
    assert fusion.weight > 0
    assert fusion.gain > 2 * fusion.error
    blocks: list[tuple[str, Tensor]] = []
    what: Any = queries, candidates, relevant, "t2a"
    found = walk.rank_queries(*what, measure=measure, on_scores=lambda system, rows, scores: blocks.append((system, scores)))
    plain = Walk(0.07, {"t2a": Fusion(0.0, "sum", 0.0, 0.0, 0.0, {})}).rank_queries(*what, measure=measure)
    assert found.result()["map"] > plain.result()["map"] + 3
    # The score, as it is told.
    cosine = (queries @ candidates.T).double()
    ends = walk_scores(cosine, neighbours_of(candidates), 0.07)
    expected = cosine + fusion.weight * (ends if fusion.shape == "sum" else (1 + ends / LOG_FLOOR).log())
    assert [system for system, _ in blocks] == ["walk"]
    torch.testing.assert_close(blocks[0][1].double(), expected, atol=1e-4, rtol=1e-4)
    reference = retrieval_metrics(cosine, relevant)
    assert plain.result()["r1"] == pytest.approx(reference["r1"])


def test_the_rule_is_that_of_x0_hat() -> None:
    val, clips = clips_of_kinds(20, 6, 2)
    walk = Walk.fit(0.1, [Validation.of(val, clips, "negatives")], WEIGHTS, ("log",))
    for direction in DIRECTIONS:
        queries, candidates, _ = val.task(direction)
        task = fusion_task(val, direction, clips, "negatives")
        cosine = queries[task.rows] @ candidates.T
        ends = walk_scores(cosine, neighbours_of(candidates), 0.1)
        assert walk.fusions[direction] == choose_weight([Scored(cosine, ends, task)], WEIGHTS, ("log",))


def phase_two(workshop: Workshop, trained: Path, runs: Path, *overrides: str) -> Path:
    shutil.copytree(trained / "pretrain", runs / "tiny" / "seed-0" / "pretrain")
    recipe = workshop.recipe(*overrides)
    return train_diffusion("tiny", recipe, data=workshop.data, runs=runs, device="cpu").folder.parent


def test_a_recipe_may_ask_for_the_walk(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    offered = "evaluation.fusion_weights=[5.0]", "evaluation.fusion_shapes=[sum]"
    phase_two(workshop, trained, tmp_path, "evaluation.feedback=walk", *offered, "diffusion.epochs=1")

    def measured(**options: Any) -> Any:
        return evaluate("tones", "tones2", data=workshop.data, runs=tmp_path, device="cpu", **options)

    asked, without = measured(), measured(walk=False)
    rows = [(each.direction, each.system) for each in asked.systems]
    assert rows == [(d, s) for d in DIRECTIONS for s in ("baseline", "walk", "diff")]
    assert {each.system for each in without.systems} == {"baseline", "diff"}
    assert asked.to_json()["walk_weights"] == {"t2a": [5.0], "a2t": [5.0]}
    assert asked.to_json()["walk_shapes"] == {"t2a": ["sum"], "a2t": ["sum"]}
    assert "Weight of the random walk beside the cosine" in evaluation_caption(asked)
    assert "walk" in asked.differences
    assert "baseline, random walk" in evaluation_table(asked).columns[0]._cells
    # Only 5 was offered, so the walk has its part in the scores, over the very candidates that were ranked.
    measured(export=tmp_path / "export", matrices=True)
    cosine, walked = (np.load(tmp_path / "export" / system / "scores-seed-0.npz") for system in ("baseline", "walk"))
    embedded = load_file(tmp_path / "tiny" / "seed-0" / "pretrain" / "embeddings-tones2-test.safetensors")
    for direction, of in (("t2a", embedded["audio"]), ("a2t", embedded["text"])):
        ends = walk_scores(torch.from_numpy(cosine[direction]).double(), neighbours_of(of), workshop.recipe().model.temperature)
        np.testing.assert_allclose(walked[direction], cosine[direction] + 5 * ends.numpy(), rtol=0, atol=0.01)
        assert 5 * ends.mean() > 0.1
    # What was kept is completed, not thrown away.
    measured(walk=False)
    assert {each.system for each in measured(walk=False, reuse=True).systems} == {"baseline", "diff"}
    rivals = measured(walk=False, rivals=True, reuse=True)
    assert {each.system for each in rivals.systems} == {"baseline", "qbnorm", "diff", "one-step"}
    assert {each.system for each in measured(reuse=True).systems} == {"baseline", "walk", "diff"}  # the rivals stay kept
    everything = measured(rivals=True, reuse=True)
    assert {each.system for each in everything.systems} == {"baseline", "qbnorm", "walk", "diff", "one-step"}
    again = measured(rivals=True, reuse=True)
    assert again.walk_weights == {}  # nothing was ranked
    assert [each.per_seed for each in again.systems] == [each.per_seed for each in everything.systems]
    for direction in DIRECTIONS:
        assert again.get("walk", direction).per_seed == asked.get("walk", direction).per_seed


def test_the_walk_is_off_by_default(workshop: Workshop, trained: Path) -> None:
    result = evaluate("tones", "tones2", data=workshop.data, runs=workshop.runs, device="cpu")
    assert {each.system for each in result.systems} == {"baseline", "diff"}
    assert result.to_json()["walk_weights"] == {}


def test_phase_two_learns_feedback_and_everything_applies_it(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    overrides = "diffusion.feedback=neighbours", "diffusion.x0_scale=14", "evaluation.fusion_weights=[1.0]"
    run = phase_two(workshop, trained, tmp_path, *overrides)
    kept = load_file(run / "diffusion" / "best.safetensors")
    model = load_retriever(run, "cpu")
    assert model.reranker is not None
    for direction in DIRECTIONS:
        learnt = kept[f"{direction}.neighbour_gain"]
        assert float(learnt) != 0
        gain = model.reranker.denoisers[direction].neighbour_feedback
        assert gain is not None
        assert gain.item() == pytest.approx(float(learnt) / workshop.recipe().model.temperature)

    def measured() -> Any:
        result = evaluate("tones", "tones2", data=workshop.data, runs=tmp_path, device="cpu")
        shown = trajectory("tones", "tones2", data=workshop.data, runs=tmp_path, device="cpu")
        return [result.get("diff", direction).per_seed for direction in DIRECTIONS], shown.x0_hat

    _, x0_hat = measured()
    audio = functional.normalize(torch.randn(9, model.dim, generator=torch.Generator().manual_seed(0)), dim=1)
    draws = model.reranker.draws("t2a", audio[0], audio, model.reranker.sampling)
    with torch.no_grad():
        for denoiser in model.reranker.denoisers.values():
            assert denoiser.neighbour_gain is not None
            denoiser.neighbour_gain.fill_(0.0)
    model.reranker._factors.clear()
    assert not torch.equal(draws, model.reranker.draws("t2a", audio[0], audio, model.reranker.sampling))
    assert np.isfinite(x0_hat).all()
