"""What scores are worth: fits against known distributions, and the fit that phase two keeps."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from diffatr_cli.core.calibration import (
    Calibration,
    Logistic,
    distribution_of_cosines,
    of_known,
    presence_features,
    score_features,
)
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.metrics import auroc, reliability
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import Reranker
from diffatr_cli.core.text import normalise_caption
from diffatr_cli.data.manifest import Clip
from diffatr_cli.evaluation.embedded_split import Captions, EmbeddedWindows
from diffatr_cli.evaluation.matching import matching
from diffatr_cli.model import load_retriever
from diffatr_cli.training.fit_calibration import COMMON, LOST, _folders, _lists, fit_calibration
from diffatr_cli.types import DIRECTIONS


def test_logistic_recovers_what_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal([0.3, -50.0], [0.1, 20.0], (200_000, 2))
    truth = Logistic((12.0, 0.03), -2.0)
    labels = rng.uniform(size=len(features)) < truth(features)
    fitted = Logistic.fit(features, labels)
    grid = np.stack(np.meshgrid(np.linspace(0, 0.6, 9), np.linspace(-100, 0, 9)), -1)
    assert np.abs(fitted(grid) - truth(grid)).max() < 0.03
    assert fitted(features).mean() == pytest.approx(labels.mean(), abs=1e-6)  # as maximum likelihood has it


def test_logistic_weights_count_as_repetitions() -> None:
    rng = np.random.default_rng(1)
    features, counts = rng.normal(size=(40, 1)), rng.integers(1, 5, 40)
    labels = rng.uniform(size=40) < 0.5
    repeated = Logistic.fit(np.repeat(features, counts, 0), np.repeat(labels, counts))
    weighted = Logistic.fit(features, labels, counts.astype(float))
    assert weighted.weights == pytest.approx(repeated.weights)
    assert weighted.bias == pytest.approx(repeated.bias)


def test_logistic_of_separable_examples_is_finite_and_constants_say_nothing() -> None:
    fitted = Logistic.fit(np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]), np.array([False, False, True, True]))
    assert fitted.weights[1] == 0
    assert (np.diff(fitted([[0.0, 0], [1, 0], [2, 0], [3, 0]])) > 0).all()
    assert fitted([[1e6, 7], [-1e6, 7]]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="both labels"):
        Logistic.fit(np.zeros((3, 1)), np.ones(3, dtype=bool))


def test_presence_features() -> None:
    cosine = np.array([0.9, 0.1, -0.2, 0.3])
    sure, unsure, many = np.array([1.0, 0, 0, 0]), np.full(4, 0.25), math.log(4)
    assert presence_features(cosine, np.stack([sure, sure])).tolist() == pytest.approx([0.9, 0.9, 0, many, 0, 0, 0, many, 0, 0])
    flat = [0.9, cosine.mean(), math.log(0.25), 0, 0, 0, 0, many, 0, 0]
    assert presence_features(cosine, unsure[None]).tolist() == pytest.approx(flat)
    torn = presence_features(cosine, np.stack([sure, sure[::-1]]), 0.3, 0.8, candidates=100, heard=(0.7, 0.6))
    # Each draw is half a unit of mass away from the mean of the two.
    assert torn.tolist() == pytest.approx([0.9, 0.6, math.log(0.5), math.log(2), 0.5, 0.3, 0.8, math.log(100), 0.7, 0.6])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_auroc_counts_pairs(examples: list[tuple[int, bool]]) -> None:
    positive, negative = ([score for score, label in examples if label is wanted] for wanted in (True, False))
    scores, labels = np.array([s for s, _ in examples], float), np.array([label for _, label in examples])
    if not positive or not negative:
        with pytest.raises(ValueError, match="both"):
            auroc(scores, labels)
        return
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert auroc(scores, labels) == pytest.approx(won / (len(positive) * len(negative)))


def test_reliability_bins() -> None:
    probabilities = np.array([0.0, 0.05, 0.15, 0.95, 1.0, 0.98])
    labels = np.array([False, True, False, True, True, False])
    rows = reliability(probabilities, labels, bins=10)
    assert [(row.low, row.high, row.count) for row in rows] == [(0.0, 0.1, 2), (0.1, 0.2, 1), (0.9, 1.0, 3)]
    assert [row.predicted for row in rows] == pytest.approx([0.025, 0.15, 0.9766667])
    assert [row.observed for row in rows] == pytest.approx([0.5, 0, 2 / 3])


def clips(*captions: tuple[str, ...]) -> Captions:
    return Captions.of([Clip(str(i), "val", "", 1.0, some) for i, some in enumerate(captions)])


def test_a_caption_matches_the_clips_that_mention_it() -> None:
    texts, matches = matching(
        clips(
            ("A dog barks.",),
            ("a dog barks while rain falls", "rain"),
            ("rain falls", "a shower"),
            ("training",),
            ("a shower stops",),
        )
    )
    found = dict(zip(texts, matches.tolist(), strict=True))
    assert found["a dog barks"] == [True, True, False, False, False]
    assert found["rain falls"] == [False, True, True, False, True]  # a shower is rain, by the third clip
    assert found["a shower stops"] == [False, False, False, False, True]
    assert found["training"] == [False, False, False, True, False]
    assert not found["rain"][3]  # whole words


def test_calibration_tells_near_from_far_and_there_from_not() -> None:
    """Ten kinds of sound along ten axes, with noise: a match is about 0.86 in cosine, anything else about 0."""
    generator = torch.Generator().manual_seed(0)
    kinds, dim = torch.arange(80) % 10, 16
    audio = functional.normalize(torch.eye(10, dim)[kinds] + 0.1 * torch.randn(80, dim, generator=generator), dim=1)
    text = functional.normalize(torch.eye(10, dim)[kinds] + 0.1 * torch.randn(80, dim, generator=generator), dim=1)
    captions = clips(*((f"kind {'abcdefghij'[kind]}",) for kind in kinds))
    fitted = fit_calibration(whole(audio), text.numpy(), captions, reranker(dim), seed=0)
    for probability in (fitted.text_to_audio, fitted.audio_to_text, fitted.audio_to_audio):
        assert probability is not None
        features = score_features(np.array([0.85, 0.0]), 0.99, words=2, candidates=50)
        assert of_known(probability, features).tolist() == pytest.approx([1, 0], abs=0.05)
    spread = np.full((1, 50), 1 / 50)
    there, absent = (presence_features(np.r_[best, np.zeros(49)], spread) for best in (0.9, 0.2))
    assert fitted.presence is not None
    assert fitted.presence(there) > 0.9
    assert fitted.presence(absent) < 0.1
    assert fitted.fits(there) > 0.9  # type: ignore[operator]
    assert fitted.fits(absent) < 0.1  # type: ignore[operator]
    assert fitted.captions_measured["lost"] <= LOST + 0.01
    assert Calibration.from_json(fitted.to_json()) == fitted


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 40))
def test_of_a_made_up_list_one_caption_fits_or_none(matches: list[bool], size: int) -> None:
    fits = np.array(matches, bool)
    lists = list(_lists(fits, np.random.default_rng(0), (size,)))
    if fits.any() and (~fits).sum() >= 2:
        (without, there), (with_one, here) = lists[0][::-1], lists[1][::-1]
        assert (there, here) == (False, True)
        assert not fits[without].any()
        assert len(without) == min(size, (~fits).sum()) == len(set(without.tolist()))
        assert fits[with_one].sum() == 1
        assert with_one[:-1].tolist() == without.tolist()
    else:
        assert not lists


def test_score_features() -> None:
    features = score_features(np.array([0.9, 0.1]), 0.75, 0.6, 4, 100)
    assert features.tolist() == [pytest.approx([score, math.log(3), 0.6, math.log(4), math.log(100)]) for score in (0.9, 0.1)]
    unknown = score_features(np.array([0.9]))
    assert unknown[0, 1:].tolist() == pytest.approx([math.log(9999), 0, 0, 0], rel=1e-3)
    assert score_features(np.zeros(0), 0.0).shape == (0, 5)
    assert np.isfinite(score_features(np.ones(1), 0.0, words=0, candidates=0)).all()
    old = Logistic((2.0,), -1.0)  # of before: it knows the score alone
    assert of_known(old, features).tolist() == pytest.approx([1 / (1 + math.exp(-0.8)), 1 / (1 + math.exp(0.8))])


def test_long_recordings_are_fitted_too() -> None:
    """Sounds are fainter in long recordings: who fits on clips alone finds them absent."""
    generator = torch.Generator().manual_seed(0)
    kinds, dim = torch.arange(80) % 10, 32
    clear = functional.normalize(torch.eye(10, dim)[kinds] + 0.1 * torch.randn(80, dim, generator=generator), dim=1)
    faint = functional.normalize(torch.eye(10, dim)[kinds] + 0.6 * torch.randn(80, dim, generator=generator), dim=1)
    captions = clips(*((f"kind {'abcdefghij'[kind]}",) for kind in kinds))
    members = [np.array(sorted((i, (i + 1) % 80))) for i in range(0, 80, 2)]  # of 40 recordings
    joined = EmbeddedWindows(faint.numpy(), np.arange(41) * 2), members
    text = torch.eye(10, dim)[kinds].numpy()
    alone = fit_calibration(whole(clear), text, captions, None, seed=0)
    both = fit_calibration(whole(clear), text, captions, None, seed=0, joined=joined)
    told: dict[str, list[float]] = {"alone": [], "both": []}
    for kind in range(10):
        cosine = np.sort((faint @ torch.eye(10, dim)[kind]).numpy().astype(np.float64).reshape(40, 2).max(1))[::-1]
        features = presence_features(cosine, distribution_of_cosines(cosine))
        for name, fitted in (("alone", alone), ("both", both)):
            present = fitted.present(features)
            assert present is not None
            told[name].append(present)
    assert np.mean(told["alone"]) + 0.1 < np.mean(told["both"])
    assert min(told["both"]) >= both.told_below


def whole(audio: torch.Tensor) -> EmbeddedWindows:
    """Clips of one window each."""
    return EmbeddedWindows(audio.numpy(), np.arange(len(audio) + 1))


def reranker(dim: int) -> Reranker:
    denoisers = {d: AttentionDenoiser(dim, 8, generator=torch.Generator().manual_seed(i)) for i, d in enumerate(DIRECTIONS)}
    return Reranker(denoisers, NoiseSchedule.cosine(10), Sampling(), dict.fromkeys(DIRECTIONS, 0.1))


def test_each_probability_is_fitted_on_its_own() -> None:
    """Clips of which no two share a caption, as in Clotho: two sounds are never of one kind, the rest can be told."""
    generator = torch.Generator().manual_seed(0)
    audio, dim = functional.normalize(torch.randn(30, 16, generator=generator), dim=1), 16
    text = functional.normalize(audio + 0.05 * torch.randn(30, 16, generator=generator), dim=1)
    captions = clips(*((f"sound number {i} of {30 + i}",) for i in range(30)))
    fitted = fit_calibration(whole(audio), text.numpy(), captions, reranker(dim), seed=0)
    assert fitted.audio_to_audio is None
    assert fitted.text_to_audio is not None
    assert fitted.audio_to_text is not None
    assert fitted.presence is not None
    assert Calibration.from_json(fitted.to_json()) == fitted


def test_without_two_sounds_there_is_nothing_to_fit() -> None:
    audio = torch.eye(2, 4)
    nothing = fit_calibration(whole(audio), audio.numpy(), clips(("x",), ("x",)), reranker(4), seed=0)
    assert nothing == Calibration(None, None, None, None)


def test_a_recording_is_fitted_by_its_best_window() -> None:
    """One window of each long clip is its sound, the others are noise: fits on whole clips would find cosines near 0.4."""
    generator = torch.Generator().manual_seed(0)
    kinds, dim = torch.arange(60) % 10, 32
    sound = functional.normalize(torch.eye(10, dim)[kinds] + 0.05 * torch.randn(60, dim, generator=generator), dim=1)
    noise = functional.normalize(torch.eye(dim)[10 + torch.arange(60 * 5) % 20], dim=1).view(60, 5, dim)
    windows = torch.cat([sound[:, None], noise], 1).reshape(-1, dim)
    text = torch.eye(10, dim)[kinds]
    captions = clips(*((f"kind {'abcdefghij'[kind]}",) for kind in kinds))
    offsets = np.arange(61) * 6
    fitted = fit_calibration(EmbeddedWindows(windows.numpy(), offsets), text.numpy(), captions, reranker(dim), seed=0)
    assert fitted.text_to_audio is not None
    low, high = of_known(fitted.text_to_audio, score_features(np.array([0.5, 0.95]), 0.9, words=2, candidates=60))
    assert low < 0.5 < high


def test_matching_of_many_captions_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    words = ["a", "dog", "barks", "rain", "falls", "on", "the", "roof", "while", "two", "birds", "sing", "far", "away"]
    captions = clips(*(tuple(" ".join(rng.choice(words, rng.integers(0, 4))) for _ in range(3)) for _ in range(40)))
    texts, matches = matching(captions)
    said = [[normalise_caption(text) for text in captions.texts[a:b]] for a, b in pairwise(captions.first)]
    for text, row in zip(texts, matches, strict=True):
        together = {other for some in said if text in some for other in some}
        expected = [any(f" {each} " in f" {own} " for each in together for own in some) for some in said]
        assert row.tolist() == expected, text


def test_phase_two_keeps_its_calibration(trained: Path, workshop: Workshop) -> None:
    retriever = load_retriever(trained, "cpu")
    assert retriever.calibration is not None
    assert retriever.calibration.text_to_audio is not None
    assert retriever.calibration.text_to_audio.weights[0] > 0  # or probabilities would contradict the order of scores
    probability = of_known(retriever.calibration.text_to_audio, score_features(np.array([-1.0, 0.0, 1.0]), 0.99))
    assert (np.diff(probability) >= 0).all()
    assert (probability >= 0).all()
    assert (probability <= 1).all()


@given(st.integers(1, 30), st.integers(2, 200), st.integers(0, 2**31))
def test_made_up_folders_have_a_sound_rarely_often_or_not_at_all(own: int, others: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matches = rng.permutation(np.arange(own + others) < own)
    found = list(_folders(matches, rng, (16, 10**9)))
    counts: list[list[int]] = []
    for there, recordings in found:
        assert len(set(recordings.tolist())) == len(recordings)
        assert there == bool(matches[recordings].any())
        if not there:
            counts.append([])
            without = len(recordings)
        else:
            assert len(recordings) - int(matches[recordings].sum()) == without
            counts[-1].append(int(matches[recordings].sum()))
    assert len(counts) == 2
    for size, some in zip((min(16, others), others), counts, strict=True):
        rare = max(1, round(own * size / others))
        assert some == sorted({rare, max(rare, min(own, max(2, int(COMMON * size))))})
