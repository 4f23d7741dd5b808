"""Phase one: it learns, resumes to the same result, and its batches and rates are what they say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffatr_cli.core.audio_encoder import SmallCnn
from diffatr_cli.core.towers import TwoTowers
from diffatr_cli.data.manifest import Clip, load_dataset
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.embedded_split import Captions
from diffatr_cli.model import load_retriever
from diffatr_cli.progress import silent
from diffatr_cli.recipe_schema import PretrainSection, Recipe
from diffatr_cli.runs import BEST, LAST
from diffatr_cli.training.batches import epoch_batches, overlapped_batches
from diffatr_cli.training.phase_folder import PhaseFolder
from diffatr_cli.training.pretrain import PhaseOne, learning_rate, pretrain
from diffatr_cli.training.refit_heads import PooledViews, refit_heads


class Killed(Exception):
    """Stands for a kill: nothing in the code under test catches it."""


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_keeps_a_record(workshop: Workshop, trained: Path) -> None:
    folder = trained / "pretrain"
    log = rows(folder)
    assert [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["loss"] < log[0]["loss"]
    assert max(row["score"] for row in log) > 200  # chance is about 150 here: R@1 12, R@5 60, R@10 100 both ways, less siblings
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 0
    assert {"torch", "diffatr", "python"} <= set(record["starts"][0]["versions"])
    assert record["resume"].startswith("diffatr pretrain tiny")
    assert record["recipe"] == workshop.recipe().model_dump(mode="json")
    assert len((folder / "metrics.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("text.finetune=true",),
        ("pretrain.items=clips", "pretrain.captions_per_clip=2"),
        ("model.strategy=gen",),
        ("pretrain.compose=0.5", "pretrain.items=clips", "pretrain.captions_per_clip=2", "pretrain.by_length=true"),
        ("pretrain.compose=1.0", "data.seconds=3"),
        ("pretrain.compose=0.5", "text.finetune=true"),
        ("audio.members=2", "model.head_width=24"),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(workshop: Workshop, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = workshop.recipe("pretrain.epochs=2", "pretrain.checkpoint_minutes=1e-9", *overrides)

    def run(runs: Path, die_at: int | None = None) -> Path:
        def progress(done: int, total: int, note: str) -> None:
            if note.startswith("epoch") and done == die_at:
                raise Killed

        return pretrain("r", recipe, data=workshop.data, runs=runs, seed=3, device="cpu", progress=progress).folder

    whole = run(tmp_path / "a")
    for die_at in (2, len(rows(whole)) + 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", die_at)
    resumed = run(tmp_path / "b")
    assert rows(whole) == rows(resumed)
    one, other = load_file(whole / "best.safetensors"), load_file(resumed / "best.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    last, again = (load_file(f / LAST) for f in (whole, resumed))
    assert last.keys() == again.keys()
    assert all(torch.equal(last[k], again[k]) for k in last)
    assert run(tmp_path / "b") == resumed  # a finished run finishes at once
    assert rows(whole) == rows(resumed)


def test_seeds_differ_and_a_seed_repeats(workshop: Workshop, tmp_path: Path) -> None:
    def weights(runs: str, seed: int) -> dict[str, torch.Tensor]:
        recipe = workshop.recipe("pretrain.epochs=1")
        return load_file(
            pretrain("r", recipe, data=workshop.data, runs=tmp_path / runs, seed=seed, device="cpu").folder / "best.safetensors"
        )

    first, again, other = weights("a", 0), weights("b", 0), weights("c", 1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_members_and_the_width_of_heads_are_trained_and_loaded(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe("audio.members=2", "model.head_width=24", "pretrain.epochs=1")
    folder = pretrain("r", recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu").folder
    kept = load_file(folder / "best.safetensors")
    one, other = (kept[f"towers.audio.members.{number}.stem.weight"] for number in range(2))
    assert not torch.equal(one, other)
    assert kept["towers.audio_head.0.weight"].shape == (24, 2 * recipe.audio.channels[-1])
    model = load_retriever(folder.parent, "cpu")
    assert model.embed_audio([np.ones(9000, np.float32)]).shape == (1, recipe.model.dim)


def test_frozen_bert_is_not_in_the_checkpoint(trained: Path) -> None:
    assert not [k for k in load_file(trained / "pretrain" / "best.safetensors") if ".text." in k]


def test_another_recipe_does_not_mix_into_a_run(workshop: Workshop, trained: Path) -> None:
    with pytest.raises(UsageError, match=r"pretrain\.lr"):
        pretrain("tiny", workshop.recipe("pretrain.lr=0.5"), data=workshop.data, runs=workshop.runs, seed=0, device="cpu")


def test_a_loss_that_is_no_number_stops_the_run(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe("pretrain.lr=1e30", "pretrain.schedule=constant", "pretrain.epochs=3")
    with pytest.raises(DiffATRError, match=r"pretrain\.lr"):
        pretrain("r", recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu")


def test_missing_data_names_the_command(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(DiffATRError, match="diffatr prepare"):
        pretrain("r", workshop.recipe(), data=tmp_path, runs=tmp_path, device="cpu")


@given(st.lists(st.integers(1, 6), min_size=2, max_size=30), st.integers(2, 7), st.integers(1, 4), st.integers(0, 99))
def test_batches_visit_everything_once(counts: list[int], size: int, per_clip: int, epoch: int) -> None:
    captions = Captions.of([Clip(str(i), "train", "", 1.0, ("x",) * n) for i, n in enumerate(counts)])
    pairs = epoch_batches(captions, PretrainSection(items="pairs", batch_size=size), 0, epoch)
    seen = np.concatenate(pairs)
    assert len(set(seen)) == len(seen) == max(sum(counts) // size * size, min(sum(counts), size))
    clips = epoch_batches(captions, PretrainSection(items="clips", batch_size=size, captions_per_clip=per_clip), 0, epoch)
    owners = [captions.clip_index[batch] for batch in clips]
    assert all(len(set(o)) == min(size, len(counts)) for o in owners)
    assert len({c for o in owners for c in o}) == sum(len(set(o)) for o in owners)
    for batch, clip_index in zip(clips, owners, strict=True):
        assert len(set(batch)) == len(batch)
        assert all((clip_index == clip).sum() == min(per_clip, counts[clip]) for clip in set(clip_index))


def test_batches_by_length_hold_clips_of_about_one_length() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 1000, 960)
    captions = Captions.of([Clip(str(i), "train", "", 1.0, ("x",)) for i in range(960)])
    fields = {"items": "clips", "batch_size": 8}
    plain = epoch_batches(captions, PretrainSection(**fields), 0, 0, lengths)
    sorted_ = epoch_batches(captions, PretrainSection(by_length=True, **fields), 0, 0, lengths)
    assert sorted(np.concatenate(sorted_)) == list(range(960))
    padding = [sum(lengths[b].max() * len(b) - lengths[b].sum() for b in batches) / lengths.sum() for batches in (plain, sorted_)]
    assert padding[1] < padding[0] / 3
    longest = [lengths[batch].max() for batch in sorted_]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3  # short and long ones take turns
    again = epoch_batches(captions, PretrainSection(by_length=True, **fields), 0, 0, lengths)
    assert all((a == b).all() for a, b in zip(sorted_, again, strict=True))


def test_short_batches_are_padded_to_their_longest_clip(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = workshop.recipe("data.seconds=30")
    phase = PhaseOne(recipe, 0, torch.device("cpu"))
    train = phase.read(load_dataset(workshop.data, "tones"), silent)
    assert train.clips.longest == 1501
    shapes = {logmels.shape[1] for _, _, logmels in overlapped_batches(train, recipe.pretrain, 0, 3, 0)}
    assert shapes == {64}  # of clips of up to 50 frames, where 30 s would be 1501


def test_learning_rates() -> None:
    step = PretrainSection(lr=1.0, schedule="step", lr_step=20, lr_decay=0.1)
    assert [learning_rate(step, s, 10) for s in (0, 199, 200, 399, 400)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cycle = PretrainSection(lr=1.0, schedule="onecycle", epochs=10)
    torch_cycle = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0), 1.0, total_steps=100, div_factor=25, final_div_factor=400
    )
    theirs = []
    for _ in range(100):
        theirs.append(torch_cycle.get_last_lr()[0])
        torch_cycle.optimizer.step()
        torch_cycle.step() if len(theirs) < 100 else None
    assert np.allclose([learning_rate(cycle, s, 10) for s in range(100)], theirs)


HEADS = ("pretrain.head_steps=30", "pretrain.head_batch=16", "pretrain.head_lr=0.01", "pretrain.head_jitter=0.3")


def test_the_heads_are_refitted_after_the_last_epoch(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = workshop.recipe(*HEADS)
    before = pretrain("r", workshop.recipe(), data=workshop.data, runs=tmp_path / "before", seed=0, device="cpu")
    monkeypatch.setattr(PhaseOne, "validate", climbing(PhaseOne.validate))
    after = pretrain("r", recipe, data=workshop.data, runs=tmp_path / "after", seed=0, device="cpu")
    rows = [json.loads(line) for line in (after.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert after.best["epoch"] == 5
    assert rows[4]["loss"] != rows[3]["loss"]
    old, new = (load_file(result.folder / BEST) for result in (before, after))
    old_last = {k.removeprefix("model."): v for k, v in load_file(before.folder / LAST).items() if k.startswith("model.")}
    changed = {name for name in new if not torch.equal(new[name], old_last[name])}
    assert changed == {name for name in new if name.startswith(("towers.audio_head", "towers.text_head"))}
    assert old.keys() == new.keys()
    again = pretrain("r", recipe, data=workshop.data, runs=tmp_path / "after", seed=0, device="cpu")
    assert again.best == after.best
    assert all(torch.equal(value, load_file(after.folder / BEST)[name]) for name, value in new.items())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_keeping_the_refitted_heads(
    moment: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = workshop.recipe(*HEADS)
    validate = PhaseOne.validate

    def run(runs: Path, validated: int = 0) -> Path:
        monkeypatch.setattr(PhaseOne, "validate", climbing(validate, validated))
        return pretrain("r", recipe, data=workshop.data, runs=runs, seed=0, device="cpu").folder

    calm = run(tmp_path / "calm")
    name = "keep_best" if moment == "before" else "save"
    plain = getattr(PhaseFolder, name)

    def killing(folder: PhaseFolder, *arguments: Any) -> None:
        facts = arguments[-1]
        if facts.get("refitted") or (name == "keep_best" and facts["best"]["epoch"] == 5):
            raise KeyboardInterrupt
        plain(folder, *arguments)

    monkeypatch.setattr(PhaseFolder, name, killing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(PhaseFolder, name, plain)
    killed = run(tmp_path / "killed", validated=4)
    assert (killed / "metrics.jsonl").read_text() == (calm / "metrics.jsonl").read_text()
    expected = load_file(calm / BEST)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(killed / BEST).items())


def climbing(validate: Callable[..., dict[str, Any]], start: int = 0) -> Callable[..., dict[str, Any]]:
    """Validation whose score rises from call to call, so that whatever comes last is kept."""
    calls = itertools.count(start)
    return lambda phase, dataset: validate(phase, dataset) | {"score": float(next(calls))}


def test_refitting_learns_from_jittered_captions() -> None:
    """Two kinds of clip with a caption each: the heads learn which goes with which, whatever the encoders made of them."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(40) % 4
    audio, text = torch.randn(4, 12, generator=generator)[kinds], torch.randn(4, 10, generator=generator)[kinds]
    recipe = Recipe.model_validate(
        {"text": {"finetune": False}, "pretrain": {"head_steps": 80, "head_batch": 16, "head_lr": 1e-2, "head_jitter": 0.2}}
    )
    towers = TwoTowers(SmallCnn((8, 12)), None, 12, 10, 8)
    captions = Captions.of([Clip(str(i), "train", "", 1.0, (f"kind {int(kind)}",)) for i, kind in enumerate(kinds)])
    views = PooledViews(audio[None].repeat(2, 1, 1), text, captions, captions.positive_groups("positives"))
    loss = refit_heads(towers, views, recipe.pretrain, recipe.model.temperature, 0)
    towers.eval()
    cosine = towers.embed_pooled_text(text + 0.2 * torch.randn(40, 10, generator=generator)) @ towers.embed_pooled_audio(audio).T
    same = kinds[:, None] == kinds[None]
    assert cosine[same].mean() > cosine[~same].mean() + 0.7
    assert loss < 0.3
    with pytest.raises(ValueError, match="head_steps"):
        Recipe.model_validate({"pretrain": {"head_steps": 5}})
