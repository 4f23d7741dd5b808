"""Galleries: which candidate is right for which query, and embedding that does not depend on the batch."""

from __future__ import annotations

import numpy as np
import torch
from conftest import Workshop

from diffatr_cli.core.logmel import LogMel
from diffatr_cli.data.logmels import LogMels, cached_logmels
from diffatr_cli.data.manifest import Clip, load_dataset, read_piece
from diffatr_cli.evaluation.embedded_split import Captions, EmbeddedSplit, cosine_metrics, embed_logmels
from diffatr_cli.model import build_towers


def test_relevance_goes_by_clip_whatever_the_order() -> None:
    clip_index = np.array([2, 0, 1, 0, 2])
    gallery = EmbeddedSplit(torch.eye(3, 4), torch.eye(5, 4), clip_index)
    queries, candidates, relevant = gallery.task("t2a")
    assert len(queries) == 5
    assert len(candidates) == 3
    assert [row.tolist() for row in relevant] == [[2], [0], [1], [0], [2]]
    queries, candidates, relevant = gallery.task("a2t")
    assert len(queries) == 3
    assert [sorted(row.tolist()) for row in relevant] == [[1, 3], [2], [0, 4]]


def test_clips_of_one_sound_are_right_for_one_anothers_captions() -> None:
    clip_index = np.array([0, 0, 1, 2, 3])
    gallery = EmbeddedSplit(torch.eye(4), torch.eye(5, 4), clip_index, np.array([0, 1, 0, 3]))  # clips 0 and 2 are one sound
    assert [sorted(row.tolist()) for row in gallery.task("t2a")[2]] == [[0, 2], [0, 2], [1], [0, 2], [3]]
    assert [sorted(row.tolist()) for row in gallery.task("a2t")[2]] == [[0, 1, 3], [2], [0, 1, 3], [4]]


def test_one_hot_embeddings_rank_perfectly_and_a_constant_one_by_chance() -> None:
    clip_index = np.repeat(np.arange(8), 2)
    perfect = cosine_metrics(EmbeddedSplit(torch.eye(8), torch.eye(8)[clip_index], clip_index))
    assert all(perfect[d]["r1"] == 100 for d in perfect)
    constant = cosine_metrics(EmbeddedSplit(torch.ones(8, 3), torch.ones(16, 3), clip_index))
    assert constant["t2a"]["r1"] == 100 / 8
    assert constant["a2t"]["r1"] == 100 / 8


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
        expected = LogMel(640)(torch.from_numpy(read_piece(dataset.root / clip.path))[None])[0]
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


def test_an_embedding_does_not_depend_on_its_neighbours(workshop: Workshop) -> None:
    recipe = workshop.recipe()
    torch.manual_seed(0)
    towers = build_towers(recipe)
    logmels = cached_logmels(load_dataset(workshop.data, "tones"), "val", 640)
    together = embed_logmels(towers, logmels, torch.device("cpu"))
    for i in range(len(logmels)):
        alone = towers.eval().embed_logmel(logmels.whole([i]))[0]
        assert torch.allclose(together[i], alone, atol=1e-5)
        assert abs(float(alone.detach().norm()) - 1) < 1e-5


def test_clips_that_share_a_caption_are_one_sound() -> None:
    texts = (("A dog barks.", "woof"), ("rain",), ("WOOF!", "a hound"), ("rain falls",), ("a hound",), ("rain",))
    captions = Captions.of([Clip(str(i), "train", "", 1.0, some) for i, some in enumerate(texts)])
    assert captions.positive_groups("negatives").tolist() == [0, 1, 2, 3, 4, 5]
    assert captions.positive_groups("positives").tolist() == [0, 1, 0, 3, 0, 1]


def test_a_clip_too_short_for_a_feature_frame_is_embedded_too(workshop: Workshop) -> None:
    towers = build_towers(workshop.recipe())
    short = towers.audio.reduction - 1
    rng = np.random.default_rng(0)
    values = rng.integers(-12_000, -2_000, (short + 40, 64)).astype(np.int16)
    logmels = LogMels(values, np.array([0, short, short + 40]))
    vectors = embed_logmels(towers, logmels, torch.device("cpu"))
    padded = np.concatenate([values[:short], np.full((1, 64), -20_000, np.int16)])
    alone = embed_logmels(towers, LogMels(padded, np.array([0, short + 1])), torch.device("cpu"))
    assert torch.allclose(vectors[0], alone[0], atol=1e-6)
    assert torch.isfinite(vectors).all()
