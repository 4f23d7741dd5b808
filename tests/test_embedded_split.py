"""Embedded splits: which candidate is right for which query, and embedding that does not depend on the batch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import Workshop
from tiny import make_data

from diffatr_cli.checkpoint import load_weights
from diffatr_cli.core.level import levelled
from diffatr_cli.core.logmel import LogMel
from diffatr_cli.core.windows import spans
from diffatr_cli.data.logmels import cached_logmels
from diffatr_cli.data.manifest import Clip, load_dataset, read_piece
from diffatr_cli.evaluation.embedded_split import Captions, EmbeddedSplit, cached_split, cached_windows, embed_split
from diffatr_cli.evaluation.ranking import rank
from diffatr_cli.model import load_retriever
from diffatr_cli.runs import BEST
from diffatr_cli.training.pretrain import PhaseOne
from diffatr_cli.types import DIRECTIONS


def test_relevance_goes_by_clip_whatever_the_order() -> None:
    clip_index = np.array([2, 0, 1, 0, 2])
    embedded = EmbeddedSplit(torch.eye(3, 4), torch.eye(5, 4), clip_index)
    queries, candidates, relevant = embedded.task("t2a")
    assert len(queries) == 5
    assert len(candidates) == 3
    assert [row.tolist() for row in relevant] == [[2], [0], [1], [0], [2]]
    queries, candidates, relevant = embedded.task("a2t")
    assert len(queries) == 3
    assert [sorted(row.tolist()) for row in relevant] == [[1, 3], [2], [0, 4]]


def test_clips_of_one_sound_are_right_for_one_anothers_captions() -> None:
    clip_index = np.array([0, 0, 1, 2, 3])
    embedded = EmbeddedSplit(torch.eye(4), torch.eye(5, 4), clip_index, np.array([0, 1, 0, 3]))  # clips 0 and 2 are one sound
    assert [sorted(row.tolist()) for row in embedded.task("t2a")[2]] == [[0, 2], [0, 2], [1], [0, 2], [3]]
    assert [sorted(row.tolist()) for row in embedded.task("a2t")[2]] == [[0, 1, 3], [2], [0, 1, 3], [4]]


def test_one_hot_embeddings_rank_perfectly_and_a_constant_one_by_chance() -> None:
    clip_index = np.repeat(np.arange(8), 2)
    perfect = EmbeddedSplit(torch.eye(8), torch.eye(8)[clip_index], clip_index)
    constant = EmbeddedSplit(torch.ones(8, 3), torch.ones(16, 3), clip_index)
    for direction in DIRECTIONS:
        assert rank(perfect, direction)["baseline"]["r1"] == 100
        assert rank(constant, direction)["baseline"]["r1"] == 100 / 8


def test_captions_know_their_clips(workshop: Workshop) -> None:
    clips = load_dataset(workshop.data, "tones").split("val")
    captions = Captions.of(clips)
    for i, clip in enumerate(clips):
        assert tuple(captions.texts[captions.first[i] : captions.first[i + 1]]) == clip.captions
        assert set(captions.clip_index[captions.first[i] : captions.first[i + 1]]) == {i}


def test_cached_logmels_are_the_logmels(workshop: Workshop) -> None:
    dataset = load_dataset(workshop.data, "tones")
    logmels = cached_logmels(dataset, "val", 640)
    for i, clip in enumerate(dataset.split("val")):
        expected = LogMel(640)(torch.from_numpy(levelled(read_piece(dataset.root / clip.path)))[None])[0]
        got = logmels.whole([i])[0]
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 0.5 / 200 + 1e-4


def test_crops_lie_within_their_clip_and_are_padded_with_silence(workshop: Workshop) -> None:
    logmels = cached_logmels(load_dataset(workshop.data, "tones"), "val", 640)
    rng = np.random.default_rng(0)
    for i in range(len(logmels)):
        whole = logmels.whole([i])[0]
        short = logmels.crop([i], 10, rng)[0]
        assert any(torch.equal(short, whole[s : s + 10]) for s in range(len(whole) - 9))
        long = logmels.crop([i], 1000, rng)[0]
        assert len(long) == (32 if len(whole) <= 32 else 64)  # all of it, to a multiple of 32
        assert torch.equal(long[: len(whole)], whole)
        assert (long[len(whole) :] == -100).all()


def test_one_way_to_embed_a_split(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    """Phase one's own towers, a loaded model and its cache give the same vectors, each clip as if it were alone."""
    run = shutil.copytree(trained, tmp_path / "run")
    for cache in (run / "pretrain").glob("embeddings-*"):
        cache.unlink()
    dataset, model = load_dataset(workshop.data, "tones"), load_retriever(run, "cpu")
    fresh, again = (cached_split(model, run, dataset, "val") for _ in range(2))
    assert torch.equal(fresh.audio, again.audio)
    assert torch.equal(fresh.text, again.text)
    recipe = workshop.recipe()
    phase = PhaseOne(recipe, 0, torch.device("cpu"))
    phase.load_state_dict(phase.state_dict() | load_weights(run / "pretrain" / BEST)[0])
    phase.eval()
    with torch.no_grad():
        plain = embed_split(phase, dataset, "val")
    assert torch.allclose(plain.audio, fresh.audio, atol=1e-5)
    assert torch.allclose(plain.text, fresh.text, atol=1e-5)
    for i, clip in enumerate(dataset.split("val")):
        wave = torch.from_numpy(levelled(read_piece(dataset.root / clip.path)))[None]
        with torch.no_grad():
            alone = phase.towers.embed_pooled_audio(phase.towers.audio(wave))[0]
        assert torch.allclose(fresh.audio[i], alone, atol=1e-5)
        assert abs(float(alone.norm()) - 1) < 1e-5


def test_the_cache_is_of_these_encoders_and_data(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    dataset, model = load_dataset(workshop.data, "tones"), load_retriever(run, "cpu")
    before = cached_split(model, run, dataset, "val")
    other = dataclasses.replace(dataset, info=dataset.info | {"audio_md5": "changed"})
    calls = []
    pool = model.pool_audio
    model.pool_audio = lambda waves: calls.append(len(waves)) or pool(waves)  # type: ignore[method-assign, func-returns-value]
    assert torch.equal(cached_split(model, run, other, "val").audio, before.audio)
    assert calls == [8]
    model.model_id = "others"
    cached_split(model, run, other, "val")
    assert calls == [8, 8]


def test_windows_of_a_split_are_those_of_an_index(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    make_data(tmp_path / "data", "long", sizes=(1, 3, 1), seconds=(9, 27))
    dataset, model = load_dataset(tmp_path / "data", "long"), load_retriever(run, "cpu")
    windows = cached_windows(model, run, dataset, "val")
    for i, clip in enumerate(dataset.split("val")):
        wave = read_piece(dataset.root / clip.path)
        expected = model.embed_audio([wave[a:b] for a, b in spans(len(wave))])
        assert np.allclose(windows.vectors[windows.offsets[i] : windows.offsets[i + 1]], expected, atol=1e-6)
    assert len(windows.vectors) > 3
    assert np.array_equal(cached_windows(model, run, dataset, "val").vectors, windows.vectors)


def test_clips_that_share_a_caption_are_one_sound() -> None:
    texts = (("A dog barks.", "woof"), ("rain",), ("WOOF!", "a hound"), ("rain falls",), ("a hound",), ("rain",))
    captions = Captions.of([Clip(str(i), "train", "", 1.0, some) for i, some in enumerate(texts)])
    assert captions.positive_groups("negatives").tolist() == [0, 1, 2, 3, 4, 5]
    assert captions.positive_groups("positives").tolist() == [0, 1, 0, 3, 0, 1]
