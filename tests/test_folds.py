"""Held-out folds for phase two: dealt whatever the order, each embedded by encoders that never met it, turned onto one space."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from killed_runs import assert_killed_run_resumes_to_the_same
from pydantic import ValidationError
from safetensors.torch import load_file
from test_diffusion import owner_of, section, views
from test_features import make, typed_features
from test_features import recipe as features_recipe

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.data.manifest import Clip, Dataset, load_dataset
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation.embedded_split import Captions, cached_split
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.model import load_encoders, load_retriever
from diffatr_cli.progress import silent
from diffatr_cli.recipe_schema import DiffusionSection, Recipe
from diffatr_cli.runs import BEST, FIRST_PHASE, RECORD, Encoders
from diffatr_cli.training import folds as module
from diffatr_cli.training.batches import TrainSplit
from diffatr_cli.training.clips import PooledClips
from diffatr_cli.training.folds import FoldedBatches, deal, folds_of
from diffatr_cli.training.phase_folder import PhaseFolder, open_phase
from diffatr_cli.training.pretrain import PhaseOne, _train, pretrain
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.training.views import TrainingViews

FOLDS = "diffusion.folds=2"


@given(st.lists(st.integers(0, 30), min_size=8, max_size=60), st.integers(2, 4), st.randoms())
def test_dealing_keeps_groups_together_and_knows_no_order(groups: list[int], folds: int, random: Random) -> None:
    ids, group = [f"clip {i}" for i in range(len(groups))], np.array(groups)
    largest = max(Counter(groups).values())
    if len(set(groups)) < folds or largest > len(ids) / folds / 2:  # smaller groups can always be dealt evenly enough
        with contextlib.suppress(UsageError):
            deal(ids, group, folds)
        return
    fold = deal(ids, group, folds)
    for number in set(groups):
        assert len(set(fold[group == number])) == 1
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= largest
    order = list(range(len(ids)))
    random.shuffle(order)
    again = deal([ids[i] for i in order], group[order], folds)
    assert again.tolist() == fold[order].tolist()


def test_clips_that_share_captions_are_in_one_fold(workshop: Workshop) -> None:
    """Two pairs of kinds by caption: `positives` leaves four groups of clips, `negatives` none."""
    dataset = load_dataset(workshop.data, "tones")
    train = dataset.split("train")
    for same in ("positives", "negatives"):
        recipe = workshop.recipe(f"data.same_captions={same}")
        found = folds_of(dataset, recipe, 2)
        assert sorted(np.concatenate([fold.inside for fold in found])) == list(range(len(train)))
        assert all(sorted([*fold.inside, *fold.outside]) == list(range(len(train))) for fold in found)
        captions = [{text for place in fold.inside for text in train[place].captions} for fold in found]
        assert (not captions[0] & captions[1]) == (same == "positives")


def test_what_is_linked_to_nearly_all_is_refused() -> None:
    clips = tuple(Clip(str(i), "train", "", 1.0, ("the same",)) for i in range(9))
    clips += (Clip("other", "train", "", 1.0, ("another",)),)
    recipe = Recipe.model_validate({"data": {"same_captions": "positives"}})
    with pytest.raises(UsageError, match=r"diffusion\.folds: the 10 training clips .* 9 are linked"):
        folds_of(Dataset("d", Path(), clips, {}), recipe, 2)


def test_some_clips_of_a_split_are_read_as_they_are_in_it(workshop: Workshop) -> None:
    phase = PhaseOne(workshop.recipe(), 0, torch.device("cpu"))
    train = phase.read(load_dataset(workshop.data, "tones"), silent)
    places = np.array([3, 4, 9, 17])
    some = train.only(places)
    assert len(some.clips) == 4
    assert some.captions.texts == [text for p in places for text in train.captions.texts[2 * p : 2 * p + 2]]
    assert some.captions.clip_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert some.captions.first.tolist() == [0, 2, 4, 6, 8]
    assert np.diff(some.clips.offsets).tolist() == np.diff(train.clips.offsets)[places].tolist()
    assert train.vectors is not None
    assert some.vectors is not None
    assert torch.equal(some.vectors, train.vectors[[6, 7, 8, 9, 18, 19, 34, 35]])
    mine, whole = (
        split.clips.crop(which, np.random.default_rng(0)) for split, which in ((some, [1, 3]), (train, places[[1, 3]]))
    )
    assert torch.equal(mine, whole)
    pooled = TrainSplit(PooledClips(torch.arange(24.0)[:, None]), train.captions, None, train.positive_group).only(places)
    assert pooled.clips.crop([0, 2], np.random.default_rng(0)).tolist() == [[3.0], [9.0]]
    assert Captions.of([]).rows_of([]).tolist() == []


def test_a_batch_is_of_one_fold_and_an_epoch_visits_all() -> None:
    whole = views(clips=40)
    parts = [np.arange(0, 40, 2), np.arange(1, 40, 2)]
    of_fold = [part_of(whole, clips) for clips in parts]
    batches = FoldedBatches(of_fold, section(candidates=12, negatives="bank"), seed=0)
    assert len(batches) == 2 * (40 // 6)
    for epoch in range(2):
        drawn = [batches.place(epoch, inside) for inside in range(len(batches))]
        assert sorted(drawn) == [(fold, inside) for fold in range(2) for inside in range(6)]
        assert [fold for fold, _ in drawn] != sorted(fold for fold, _ in drawn)
        seen = []
        for inside in range(len(batches)):
            for direction, query, candidates, x_0, *_ in batches(epoch, inside):
                owners = {owner_of(vector, whole) % 2 for vector in (*query, *candidates)}
                assert owners == {drawn[inside][0]}
                assert torch.allclose(x_0.sum(1), torch.ones(6))
                seen += [owner_of(vector, whole) for vector in query] if direction == "t2a" else []
        assert max(Counter(seen).values()) <= 2  # of a clip's two captions
    assert [batches.place(0, i) for i in range(12)] != [batches.place(1, i) for i in range(12)]


def part_of(whole: TrainingViews, clips: np.ndarray) -> TrainingViews:
    rows = [row for row, clip in enumerate(whole.clip_index.tolist()) if clip in clips]
    index = torch.arange(len(clips)).repeat_interleave(2)
    return TrainingViews(whole.audio[:, clips], whole.text[rows], index, torch.arange(len(clips)))


@pytest.fixture(scope="module")
def folded(workshop: Workshop, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed folder of a run on two folds, trained in one go."""
    runs = tmp_path_factory.mktemp("folded")
    shutil.copytree(trained / "pretrain", runs / "tiny" / "seed-0" / "pretrain")
    return train_diffusion("tiny", workshop.recipe(FOLDS), data=workshop.data, runs=runs, device="cpu").folder.parent


def test_each_fold_has_encoders_that_never_met_it(workshop: Workshop, trained: Path, folded: Path) -> None:
    dataset = load_dataset(workshop.data, "tones")
    first = load_file(trained / "pretrain" / BEST)
    hashes = json.loads((folded / "diffusion" / RECORD).read_text())["folds"]
    assert len(set(hashes)) == 2
    for fold in folds_of(dataset, workshop.recipe(), 2):
        folder = folded / "folds" / f"{fold.number}-of-2" / "pretrain"
        record = json.loads((folder / RECORD).read_text())
        assert record["fold"] == f"fold {fold.number + 1} of 2"
        assert record["recipe"] == workshop.recipe().model_dump(mode="json")  # that of the encoders, whatever phase two is
        assert record["resume"].startswith("diffatr train-diffusion tiny")
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
        # The same as phase one on a data set that lacks the fold.
        val = [clip for clip in dataset.clips if clip.split != "train"]
        train = dataset.split("train")
        without = dataclasses.replace(dataset, clips=(*(train[place] for place in fold.outside), *val))
        phase = PhaseOne(workshop.recipe(), 0, torch.device("cpu"))
        run = folded.parent / f"plain-{fold.number}"
        with open_phase(run, "pretrain", workshop.recipe(), FIRST_PHASE, 0, "", "") as opened:
            _train(phase, workshop.recipe().pretrain, without, opened, silent)
        one, same = load_file(folder / BEST), load_file(run / "pretrain" / BEST)
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert any(not torch.equal(one[key], first[key]) for key in one)


def test_a_folds_space_is_turned_onto_the_encoders_own(workshop: Workshop, folded: Path) -> None:
    """Cosines inside a fold are those of its own encoders, and what both were trained on lies near to itself."""
    dataset = load_dataset(workshop.data, "tones")
    caught: list[list[TrainingViews]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FoldedBatches", lambda found, *_: caught.append(found))
        whole = load_encoders(folded, "cpu")
        folder = PhaseFolder(folded / "diffusion", "diffusion", workshop.recipe(FOLDS), 0, "", "")
        module.folded_batches(
            Encoders(folded), whole, workshop.recipe(FOLDS).diffusion, dataset, 0, torch.device("cpu"), folder, 1, silent
        )
    (turned,) = caught
    target = cached_split(whole, folded, dataset, "train")
    for fold, mine in zip(folds_of(dataset, workshop.recipe(), 2), turned, strict=True):
        run = folded / "folds" / f"{fold.number}-of-2"
        plain = load_file(run / "pretrain" / "embeddings-views2.safetensors")
        for one, other in ((mine.text, plain["text"]), (mine.audio[0], plain["audio"][0])):
            assert torch.allclose(one @ one.T, other @ other.T, atol=1e-5)
        assert torch.allclose(mine.audio[0] @ mine.text.T, plain["audio"][0] @ plain["text"].T, atol=1e-5)
        own = cached_split(load_encoders(run, "cpu"), run, dataset, "train")
        rows = Captions.of(dataset.split("train")).rows_of(fold.inside)
        assert torch.equal(plain["text"], own.text[rows])
        assert (mine.text * target.text[rows]).sum(1).mean() > (plain["text"] * target.text[rows]).sum(1).mean() - 1e-3
        assert mine.clip_index.tolist() == np.repeat(np.arange(len(fold.inside)), 2).tolist()


def test_a_killed_run_resumes_to_the_same(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    assert_killed_run_resumes_to_the_same(workshop, workshop.recipe(FOLDS), trained, tmp_path)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [("fold 1 of 2: epoch", 5), ("fold 2 of 2: epoch", 9), ("fold 2 of 2: training clips", 12)])
def test_killed_in_a_fold_it_resumes_to_the_same(
    workshop: Workshop, trained: Path, folded: Path, tmp_path: Path, at: tuple[str, int]
) -> None:
    shutil.copytree(trained / "pretrain", tmp_path / "tiny" / "seed-0" / "pretrain")

    def run(*, dies: bool) -> Path:
        def progress(done: int, total: int, note: str) -> None:
            if dies and note.startswith(at[0]) and done == at[1]:
                raise Killed

        recipe = workshop.recipe(FOLDS)
        return train_diffusion("tiny", recipe, data=workshop.data, runs=tmp_path, device="cpu", progress=progress).folder

    with pytest.raises(Killed):
        run(dies=True)
    assert not (tmp_path / "tiny" / "seed-0" / "diffusion").exists()
    again = run(dies=False)
    for name in ("diffusion", "folds/0-of-2/pretrain", "folds/1-of-2/pretrain"):
        one, other = load_file(folded / name / BEST), load_file(again.parent / name / BEST)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (folded / "diffusion" / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()


def test_phase_twos_on_one_runs_encoders_share_its_folds(
    workshop: Workshop, folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = shutil.copytree(folded.parents[1], tmp_path / "runs")
    base = runs / "tiny" / "seed-0"
    steps: list[int] = []
    monkeypatch.setattr(PhaseOne, "step", lambda *_: steps.append(1))
    recipe = workshop.recipe(FOLDS, "diffusion.steps=6", "diffusion.epochs=1")
    options = {"data": workshop.data, "runs": runs, "seed": 3, "device": "cpu"}
    other = train_diffusion("other", recipe, encoders=base, **options).folder.parent  # type: ignore[arg-type]
    assert not steps
    assert not (other / "folds").exists()
    records = [json.loads((run / "diffusion" / RECORD).read_text()) for run in (base, other)]
    assert records[0]["folds"] == records[1]["folds"]
    model = load_retriever(other, "cpu")
    assert model.reranker is not None
    found = evaluate("tones", "tones2", data=workshop.data, runs=runs, recipe="other", device="cpu")
    assert found.get("diff", "t2a") is not None
    # A finished phase two needs its folds no more.
    shutil.rmtree(base / "folds")
    train_diffusion("other", recipe, encoders=base, **options)  # type: ignore[arg-type]
    assert not (base / "folds").exists()


def test_folds_that_have_changed_are_noticed(workshop: Workshop, folded: Path, trained: Path, tmp_path: Path) -> None:
    """A phase two that was cut off goes on with the encoders that it was begun with, or not at all."""
    runs = shutil.copytree(folded.parents[1], tmp_path / "runs")
    base = runs / "tiny" / "seed-0"
    shutil.rmtree(base / "diffusion")

    def stop(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 2"):
            raise Killed

    options = {"data": workshop.data, "runs": runs, "device": "cpu"}
    with pytest.raises(Killed):
        train_diffusion("tiny", workshop.recipe(FOLDS), progress=stop, **options)  # type: ignore[arg-type]
    checkpoint = base / "folds" / "1-of-2" / "pretrain" / BEST
    tensors, facts = load_weights(checkpoint)
    save_weights(checkpoint, {name: tensor * 1.5 for name, tensor in tensors.items()}, facts)
    with pytest.raises(UsageError, match="other encoders of the folds"):
        train_diffusion("tiny", workshop.recipe(FOLDS), **options)  # type: ignore[arg-type]
    # A run with another number of folds is another run.
    with pytest.raises(UsageError, match=r"diffusion\.folds"):
        train_diffusion("tiny", workshop.recipe("diffusion.folds=3"), **options)  # type: ignore[arg-type]


def test_by_frames_there_are_no_folds() -> None:
    assert DiffusionSection().folds == 0
    with pytest.raises(ValidationError, match=r"diffusion\.folds: each fold has encoders of its own"):
        DiffusionSection(folds=2, conditioning="frames")
    for number in (-1, 1):
        with pytest.raises(ValidationError):
            DiffusionSection(folds=number)


@pytest.mark.parametrize(
    "overrides",
    [("pretrain.head_steps=5", "pretrain.head_batch=8", "data.same_captions=positives"), ("model.heads=none", "model.dim=12")],
)
def test_folds_of_vectors_of_ones_own(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Heads alone are trained without each fold; where there are none, every fold's space is the encoders' own already."""
    matrices = make(text_size=12, shared=True)
    assert typed_features(matrices.write(tmp_path), tmp_path / "data").code == 0
    chosen = features_recipe(*overrides, FOLDS)
    for job in (pretrain, train_diffusion):
        folder = job("f", chosen, data=tmp_path / "data", runs=tmp_path, device="cpu").folder
    hashes = json.loads((folder / RECORD).read_text())["folds"]
    assert len(hashes) == 2
    kept = [load_weights(folder.parent / "folds" / f"{fold}-of-2" / "pretrain" / BEST) for fold in (0, 1)]
    heads = [{name: tensor.tolist() for name, tensor in tensors.items()} for tensors, _ in kept]
    assert (heads[0] == heads[1]) == (chosen.model.heads == "none")
    views = load_file(folder.parent / "folds" / "0-of-2" / "pretrain" / "embeddings-views4.safetensors")
    assert views["audio"].shape == (1, 20, chosen.model.dim)  # no augmentation touches vectors
    assert views["text"].shape == (40, chosen.model.dim)


def test_heads_are_refitted_on_what_is_left(workshop: Workshop, tmp_path: Path) -> None:
    heads = ("pretrain.head_steps=5", "pretrain.head_batch=8", "pretrain.epochs=1", "diffusion.epochs=1")
    recipe = workshop.recipe(*heads, FOLDS)
    for job in (pretrain, train_diffusion):
        folder = job("r", recipe, data=workshop.data, runs=tmp_path, device="cpu").folder
    log = (folder.parent / "folds" / "1-of-2" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in log] == [1, 2]
