"""Phase two: its batches hold what they say, it learns, resumes to the same result, and chooses the weight on validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workshop
from killed_runs import assert_killed_run_resumes_to_the_same
from torch.nn import functional

from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.model import load_retriever
from diffatr_cli.recipe_schema import DiffusionSection
from diffatr_cli.training.candidates import CandidateBatches, nearest_others
from diffatr_cli.training.denoisers import denoising_loss
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.training.views import TrainingViews


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def views(clips: int = 20, per_clip: int = 2, count: int = 3) -> TrainingViews:
    clip_index = torch.arange(clips).repeat_interleave(per_clip)
    return TrainingViews(unit(count, clips, 8), unit(clips * per_clip, 8, seed=1), clip_index, torch.arange(clips))


def test_clips_of_one_sound_are_true_together_and_no_negatives() -> None:
    train = dataclasses.replace(views(), positive_group=torch.arange(20) // 4)
    for direction, query, candidates, x_0, *_ in CandidateBatches(train, section(), seed=0)(0, 0):
        for row in range(6):
            same = [owner_of(c, train) // 4 == owner_of(query[row], train) // 4 for c in candidates]
            assert x_0[row].tolist() == pytest.approx([1 / sum(same) if s else 0 for s in same]), direction
    near = CandidateBatches(train, section(candidates=5, negatives="nearest"), seed=0)(0, 0)
    for _, query, candidates, *_ in near:
        for row in range(6):
            others = {owner_of(c, train) // 4 for c in candidates[row, 1:]}
            assert owner_of(query[row], train) // 4 not in others


def section(**fields: object) -> DiffusionSection:
    return DiffusionSection(batch_size=6, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, {"candidates": 12, "negatives": "bank"}, {"candidates": 5, "negatives": "nearest"}])
def test_batches_put_the_truth_where_x_0_says(fields: dict[str, object]) -> None:
    train = views()
    batches = CandidateBatches(train, section(**fields), seed=0)
    seen = []
    for inside in range(len(batches)):
        for direction, query, candidates, x_0, *_ in batches(0, inside):
            assert torch.allclose(x_0.sum(1), torch.ones(6))
            shared = candidates.expand(6, -1, -1) if candidates.ndim == 2 else candidates
            assert shared.shape[:2] == x_0.shape
            if fields:
                assert x_0.shape[1] == fields["candidates"]
            for row in range(6):
                clip = owner_of(query[row], train)
                seen += [clip] if direction == "t2a" else []
                for i in range(x_0.shape[1]):
                    assert (owner_of(shared[row, i], train) == clip) == (x_0[row, i] > 0)
    assert len(seen) == len(batches) * 6
    assert max(np.bincount(seen)) <= 2  # an epoch visits each of a clip's two captions once at most


def owner_of(vector: torch.Tensor, train: TrainingViews) -> int:
    near_text = (train.text - vector).norm(dim=1)
    near_audio = (train.audio - vector).norm(dim=2).amin(0)
    return int(train.clip_index[near_text.argmin()]) if near_text.min() < near_audio.min() else int(near_audio.argmin())


def test_nearest_others_by_brute_force() -> None:
    queries, candidates = unit(9, 4), unit(14, 4, seed=2)
    query_clips, candidate_clips = torch.arange(9) % 5, torch.arange(14) % 5
    found = nearest_others(queries, candidates, query_clips, candidate_clips, 4)
    for q in range(9):
        others = [i for i in range(14) if candidate_clips[i] != query_clips[q]]
        others.sort(key=lambda i: -float(queries[q] @ candidates[i]))
        assert found[q].tolist() == others[:4]


def test_jitter_has_the_norm_it_says() -> None:
    wide = TrainingViews(unit(1, 30, 256), unit(30, 256, seed=1), torch.arange(30), torch.arange(30))
    _, query, *_ = next(iter(CandidateBatches(wide, section(jitter=0.5), 0)(0, 0)))
    cosines = (query @ wide.text.T).amax(1)
    assert torch.allclose(cosines, torch.full((6,), 1 / (1 + 0.5**2) ** 0.5), atol=0.03)  # an orthogonal push of norm 0.5


def test_the_loss_of_a_perfect_and_of_an_ignorant_denoiser() -> None:
    schedule = NoiseSchedule.cosine(10)
    x_0 = functional.one_hot(torch.tensor([1, 0, 2]), 4).float()

    def ask(logits: torch.Tensor) -> float:
        perfect = AttentionDenoiser(4, 4)
        perfect.factored_forward = lambda *_: logits  # type: ignore[method-assign]
        return denoising_loss(perfect, schedule, torch.zeros(3, 4), torch.zeros(4, 4), x_0).item()

    assert ask(x_0 * 100) < 1e-6
    assert ask(torch.zeros(3, 4)) == pytest.approx(np.log(4))


def test_learns_and_keeps_a_record(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]
    retriever = load_retriever(trained, "cpu")
    assert retriever.reranker is not None
    assert set(retriever.reranker.denoisers) == set(retriever.reranker.fusion_weights) == {"t2a", "a2t"}


def test_a_killed_run_resumes_to_the_same_result(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    assert_killed_run_resumes_to_the_same(workshop, workshop.recipe(), trained, tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_is_told(
    value: str, workshop: Workshop, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step's gradients are enough to spoil the weights: clipping leaves them no numbers, and the loss shows it."""
    folder = tmp_path / "tiny" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "pretrain").symlink_to(trained / "pretrain")
    steps = []

    def loss(*arguments: object) -> torch.Tensor:
        steps.append(1)
        return denoising_loss(*arguments) * (float(value) if len(steps) == 1 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr("diffatr_cli.training.denoisers.denoising_loss", loss)
    with pytest.raises(DiffATRError, match=r"the loss is nan in epoch 1\. Lower diffusion\.lr"):
        train_diffusion("tiny", workshop.recipe(), data=workshop.data, runs=tmp_path, device="cpu")
    assert len(steps) > 4
    assert not (folder / "diffusion" / "best.safetensors").exists()


def test_order_and_strategy_are_checked(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(DiffATRError, match="diffatr pretrain"):
        train_diffusion("r", workshop.recipe(), data=workshop.data, runs=tmp_path, device="cpu")
    with pytest.raises(UsageError, match=r"model\.strategy"):
        train_diffusion("r", workshop.recipe("model.strategy=dis"), data=workshop.data, runs=tmp_path, device="cpu")


def test_denoisers_of_other_encoders_are_refused(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    import shutil

    runs = tmp_path / "runs"
    shutil.copytree(trained.parent, runs / "tiny")
    shutil.rmtree(runs / "tiny" / "seed-0" / "pretrain")
    pretrain("tiny", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=runs, seed=0, device="cpu")
    with pytest.raises(DiffATRError, match="train-diffusion again"):
        load_retriever(runs / "tiny" / "seed-0", "cpu")


@pytest.mark.parametrize("field", ["pretrain.precision=bf16", "diffusion.precision=bf16"])
def test_bf16_trains_to_nearly_the_same_loss(workshop: Workshop, tmp_path: Path, field: str) -> None:
    def losses(name: str, *overrides: str) -> list[float]:
        recipe = workshop.recipe("pretrain.epochs=1", "diffusion.epochs=1", *overrides)
        folders = [
            job(name, recipe, data=workshop.data, runs=tmp_path, device="cpu").folder for job in (pretrain, train_diffusion)
        ]
        return [json.loads((folder / "metrics.jsonl").read_text())["loss"] for folder in folders]

    plain, rounded = losses("fp32"), losses("bf16", field)
    assert plain != rounded
    assert rounded == pytest.approx(plain, rel=0.2)  # a few steps at a high rate
