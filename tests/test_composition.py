"""Composed training items: what is mixed, what is said of it, and what is no negative of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logmel import reference_filters, reference_logmel

from diffatr_cli.core.level import LEVEL, level, levelled
from diffatr_cli.core.losses import nt_xent
from diffatr_cli.core.mixing import mix_logmels, mix_waveforms
from diffatr_cli.data.logmels import LogMels
from diffatr_cli.data.manifest import Clip, load_dataset
from diffatr_cli.evaluation.embedded_split import Captions
from diffatr_cli.progress import silent
from diffatr_cli.recipe_schema import PretrainSection, Recipe
from diffatr_cli.training.batches import Batch, TrainSplit, epoch_batches, overlapped_batches
from diffatr_cli.training.clips import LogMelCrops, WaveformCrops
from diffatr_cli.training.composition import Mixture, compose_epoch, join_captions, place
from diffatr_cli.training.pretrain import PhaseOne
from diffatr_cli.training.streams import numpy_stream

RATE, HOP = 32000, 640


def noise(seed: int, seconds: float, band: tuple[float, float] = (200, 10000)) -> np.ndarray:
    """Noise of a band of frequencies, brought to the level of all sounds."""
    samples = int(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(0, 0.1, samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum[(frequency < band[0]) | (frequency > band[1])] = 0
    return levelled(np.fft.irfft(spectrum, samples).astype(np.float32))


def logmel(wave: np.ndarray) -> np.ndarray:
    return reference_logmel(wave, HOP).astype(np.float32)


def mixed(parts: list[np.ndarray], decibels: list[float], starts: list[int], samples: int) -> np.ndarray:
    """Waveforms mixed, in float64."""
    wave = np.zeros(samples)
    for part, gain, start in zip(parts, decibels, starts, strict=True):
        wave[start : start + len(part)] += 10 ** (gain / 20) * part[: samples - start].astype(np.float64)
    return wave


class TestMixing:
    def test_powers_are_added_and_brought_to_the_level(self) -> None:
        """Against float64: every value but for one change of level, which is that of the rule."""
        parts = [logmel(noise(seed, seconds)) for seed, seconds in ((0, 1.0), (1, 0.5), (2, 0.7))]
        decibels, starts, frames = [-3.0, -15.0, 0.0], [0, 20, 40], 70
        power = np.zeros((frames, 64))
        for part, gain, start in zip(parts, decibels, starts, strict=True):
            inside = part[: frames - start]
            power[start : start + len(inside)] += 10 ** ((inside.astype(np.float64) + gain) / 10)
        got = mix_logmels(parts, decibels, starts, frames, HOP)
        held = power > 1e-8
        change = (got - 10 * np.log10(np.maximum(power, 1e-10)))[held]
        assert np.ptp(change) < 1e-3
        # Weights under which the filters add up to one in the band of these sounds, and Parseval: the power of a frame's samples.
        filters = reference_filters()[7:321]
        weights = np.linalg.lstsq(filters, np.ones(len(filters)), rcond=None)[0]
        of_frames = 10 ** (got.astype(np.float64) / 10) @ weights * 2 / 1024 / (1024 * 0.375)
        tenths = of_frames[: frames // 5 * 5].reshape(-1, 5).mean(1)
        assert 10 * np.log10(tenths.max()) == pytest.approx(LEVEL, abs=0.05)

    @pytest.mark.parametrize("gap", [0.0, 20.0])
    def test_it_is_what_the_waveforms_sound_like(self, gap: float) -> None:
        """The cross terms are the difference: 1.7 dB at most in the mean, whatever the levels, and none in the mean power."""
        errors, powers = [], []
        for seed in range(6):
            parts = [noise(2 * seed, 1.0), noise(2 * seed + 1, 1.5)]
            decibels, starts = [0.0, -gap * seed / 5], [9600, 0]
            wave = levelled(mixed(parts, decibels, starts, 48000).astype(np.float32))
            expected = logmel(wave)
            got = mix_logmels([logmel(part) for part in parts], decibels, [15, 0], len(expected), HOP)
            held = (expected > -60) & (got > -60)
            errors.append(np.abs(got - expected)[held].mean())
            powers.append((10 ** (got / 10)).mean() / (10 ** (expected / 10)).mean())
        assert 0.2 < np.mean(errors) < 1.7
        assert 10 * abs(np.log10(np.mean(powers))) < 0.3

    def test_sounds_one_after_another_are_each_itself(self) -> None:
        one, other = noise(0, 0.5), noise(1, 0.5)
        got = mix_logmels([logmel(one), logmel(other)], [0.0, -10.0], [0, 40], 80, HOP)
        expected = logmel(levelled(mixed([one, other], [0.0, -10.0], [0, 40 * HOP], 80 * HOP).astype(np.float32)))[:80]
        inside = [*range(2, 23), *range(42, 63)]  # away from where a sound begins or ends within a window
        held = expected[inside] > -60
        assert np.abs(got[inside] - expected[inside])[held].max() < 0.5
        assert (got[[*range(27, 40), *range(67, 80)]] == -100).all()

    def test_silence_stays_silence(self) -> None:
        silence = np.full((20, 64), -100, np.float32)
        assert (mix_logmels([silence, silence], [0.0, -5.0], [0, 3], 30, HOP) == -100).all()
        sound = logmel(noise(0, 0.3))
        assert np.allclose(mix_logmels([sound, silence], [0.0, 0.0], [0, 0], 16, HOP), sound, atol=0.3)

    def test_waveforms(self) -> None:
        """Levels are drawn among equally loud recordings; the mixture is as loud as the first one was."""
        quiet, loud = 0.01 * noise(0, 1.0), 2 * noise(1, 0.7)
        got = mix_waveforms([quiet, loud], [-2.0, -9.0], [0, 8000], 32000)
        expected = mixed([levelled(quiet), levelled(loud)], [-2.0, -9.0], [0, 8000], 32000)
        factor = got @ expected / (expected @ expected)
        assert np.allclose(got, factor * expected, atol=1e-6 * np.abs(got).max() + 1e-9)
        assert level(got, float(got.mean())) == pytest.approx(level(quiet, float(quiet.mean())), abs=1e-3)
        nothing = np.zeros(100, np.float32)
        assert not mix_waveforms([nothing, nothing], [0.0, 0.0], [0, 0], 100).any()


class TestComposition:
    @given(
        st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=2, max_size=12),
        st.integers(5, 50),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.integers(0, 99),
    )
    @settings(max_examples=60)
    def test_what_is_drawn(self, clips: list[tuple[int, int]], longest: int, share: float, seed: int) -> None:
        lengths, group = (np.array(each) for each in zip(*clips, strict=True))
        section = PretrainSection(compose=share, compose_levels=12.0)
        owner = np.random.default_rng(seed).integers(0, len(clips), 20)
        found = compose_epoch(section, np.random.default_rng(seed), owner, lengths, longest, group)
        rng = np.random.default_rng(seed)
        for item in range(20):
            mixture = place(found, item, section, rng, lengths, longest)
            assert mixture.clips[0] == owner[item]
            groups = group[list(mixture.clips)]
            assert len(set(groups)) == len(groups) <= 4
            assert mixture.lengths == tuple(min(lengths[clip], longest) for clip in mixture.clips)
            assert max(mixture.lengths) <= mixture.length <= min(sum(mixture.lengths), longest)
            ends = [start + length for start, length in zip(mixture.starts, mixture.lengths, strict=True)]
            assert min(mixture.starts) >= 0
            assert max(ends) <= mixture.length
            assert all(-12 <= gain <= 0 for gain in mixture.decibels)
            if found.in_turn[item]:
                assert mixture.length == sum(mixture.lengths)
                spans = sorted(zip(mixture.starts, ends, strict=True))
                assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
            if len(groups) == 1:
                assert mixture == Mixture((owner[item],), mixture.lengths, (0,), (0.0,), mixture.lengths[0])
            if not share or len(set(group)) == 1:
                assert len(groups) == 1

    def test_shares(self) -> None:
        section, n = PretrainSection(compose=0.4), 4000
        lengths, group = np.full(n, 10), np.arange(n) // 2
        found = compose_epoch(section, np.random.default_rng(0), np.arange(n), lengths, 40, group)
        others = (found.parts >= 0).sum(1) - 1
        assert np.mean(others > 0) == pytest.approx(0.4, abs=0.03)
        assert [np.mean(others[others > 0] == number) for number in (1, 2, 3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.04)
        assert np.mean(found.in_turn[others > 0]) == pytest.approx(0.5, abs=0.05)
        assert len(np.unique(found.parts[:, 1:])) > 0.3 * n  # of all clips, not of few
        mixtures = [place(found, item, section, np.random.default_rng(item), lengths, 40) for item in np.flatnonzero(others)]
        gaps = np.concatenate([np.subtract(mixture.decibels[1:], mixture.decibels[0]) for mixture in mixtures])
        assert gaps.std() == pytest.approx(20 / math.sqrt(6), abs=0.5)  # of the difference of two even draws
        assert np.abs(gaps).max() <= 20

    def test_batches_by_length_have_their_share_and_little_padding(self) -> None:
        section, n = PretrainSection(compose=0.5, by_length=True, batch_size=40, items="clips"), 2000
        rng = np.random.default_rng(0)
        lengths, captions = (
            rng.choice([10, 20, 40, 100], n),
            Captions.of([Clip(str(i), "train", "", 1.0, ("x",)) for i in range(n)]),
        )
        found = compose_epoch(section, rng, np.arange(n), lengths, 100, np.arange(n))
        batches = epoch_batches(captions, section, 0, 0, found.order)
        shares = [found.composed[batch].mean() for batch in batches]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
        assert np.std(shares) < 0.12
        heard = [found.lengths[batch] for batch in batches]
        random = [found.lengths[part] for part in np.split(rng.permutation(n), len(batches))]
        padding, at_random = (sum(each.max() * len(each) - each.sum() for each in group) for group in (heard, random))
        assert padding < at_random * 0.7

    def test_every_epoch_is_drawn_anew(self) -> None:
        section, n = PretrainSection(compose=1.0), 200
        epochs = [
            compose_epoch(section, numpy_stream(0, "composition", epoch), np.arange(n), np.full(n, 5), 9, np.arange(n))
            for epoch in (0, 0, 1)
        ]
        assert (epochs[0].parts == epochs[1].parts).all()
        assert np.mean(epochs[0].parts[:, 1] == epochs[2].parts[:, 1]) < 0.05


NAMES = ("A dog barks.", "rain falls", "TV noise!", "I sing;")
AFTER, TOGETHER = re.compile(r", then | and then | before "), re.compile(r" while | as ")


class TestCaptions:
    @given(
        st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), min_size=1, max_size=4),
        st.integers(0, 9999),
    )
    @settings(max_examples=400)
    def test_time_is_said_only_where_the_places_say_so(self, places: list[tuple[int, int]], seed: int) -> None:
        starts, lengths = (tuple(each) for each in zip(*places, strict=True))
        mixture = Mixture(tuple(range(len(places))), lengths, starts, (0.0,) * len(places), 20)
        said = join_captions(NAMES[: len(places)], mixture, np.random.default_rng(seed))
        words = [re.sub(r"[^a-z ]", "", name.lower()) for name in NAMES]
        order = sorted(range(len(places)), key=lambda i: said.lower().index(words[i]))
        assert [said.lower().count(words[i]) for i in order] == [1] * len(places)
        heard = [set(range(start, start + length)) for start, length in places]
        if AFTER.search(said):
            assert len(AFTER.findall(said)) == len(places) - 1
            for before, after in itertools.combinations(order, 2):
                assert max(heard[before]) < min(heard[after])
        if TOGETHER.search(said):
            assert len(TOGETHER.findall(said)) == 1
            for one, other in itertools.combinations(order, 2):
                assert 2 * len(heard[one] & heard[other]) >= min(len(heard[one]), len(heard[other]))

    def test_in_the_words_of_each(self) -> None:
        turns = Mixture((0, 1), (5, 5), (5, 0), (0.0, 0.0), 10)
        together = Mixture((0, 1), (5, 5), (0, 0), (0.0, 0.0), 5)
        said, at_once = (
            {join_captions(["A dog barks.", "TV noise."], each, np.random.default_rng(seed)) for seed in range(300)}
            for each in (turns, together)
        )
        assert {"TV noise, then a dog barks.", "TV noise before a dog barks.", "A dog barks and TV noise."} <= said
        assert {"TV noise while a dog barks.", "A dog barks as TV noise.", "A dog barks, TV noise."} <= at_once
        assert not any(AFTER.search(each) for each in at_once)
        assert not any(TOGETHER.search(each) for each in said)
        alone = Mixture((0,), (5,), (0,), (0.0,), 5)
        assert join_captions(["A dog, barks. "], alone, np.random.default_rng(0)) == "A dog, barks. "


def reference_nt_xent(audio: np.ndarray, text: np.ndarray, temperature: float, parts: list[set[int]]) -> float:
    """Eq. 8 term by term: of the others those count that hold something that the row lacks, and lack something that it holds."""
    score = text / np.linalg.norm(text, axis=1, keepdims=True) @ (audio / np.linalg.norm(audio, axis=1, keepdims=True)).T
    score, total, rows = np.exp(score / temperature), 0.0, range(len(audio))
    for i in rows:
        others = [i] + [j for j in rows if not parts[i] <= parts[j] and not parts[j] <= parts[i]]
        total += math.log(score[i, i] / score[i, others].sum()) + math.log(score[i, i] / score[others, i].sum())
    return -total / 2 / len(audio)


@given(st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=9), st.integers(0, 99))
def test_a_mixture_and_its_parts_are_no_negatives(parts: list[set[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio, text = rng.normal(size=(2, len(parts), 3))
    ids = torch.tensor([rng.permutation([*each, *[-1] * (4 - len(each))]).tolist() for each in parts])
    got = nt_xent(torch.from_numpy(audio), torch.from_numpy(text), 0.3, ids)
    assert got.item() == pytest.approx(reference_nt_xent(audio, text, 0.3, parts))


def split_of(counts: list[int], lengths: list[int], same: str = "positives") -> TrainSplit:
    """Clips of constant log-mels, with so many captions; every third shares its first caption with the one before."""
    captions = Captions.of(
        [
            Clip(str(i), "train", "", 1.0, tuple(f"<{i - 1 if i % 3 == 2 and not c else i}.{c}>" for c in range(count)))
            for i, count in enumerate(counts)
        ]
    )
    offsets = np.cumsum([0, *lengths])
    values = np.repeat(np.arange(len(counts)), lengths)[:, None] * np.ones(64) * 100 - 8000
    clips = LogMelCrops(LogMels(values.astype(np.int16), offsets), 40, HOP)
    return TrainSplit(clips, captions, None, captions.positive_groups(same))


@pytest.mark.parametrize("items", ["pairs", "clips"])
@pytest.mark.parametrize("same", ["positives", "negatives"])
def test_what_a_batch_takes_for_negatives(items: str, same: str) -> None:
    """By brute force, from what the joined captions say."""
    rng = np.random.default_rng(0)
    train = split_of(rng.integers(1, 4, 24).tolist(), rng.integers(5, 60, 24).tolist(), same)
    section = PretrainSection(batch_size=12, items=items, captions_per_clip=2, compose=0.6, epochs=3)
    steps = len(epoch_batches(train.captions, section, 0, 0))
    group_of = {}
    for text, clip in zip(train.captions.texts, train.captions.clip_index, strict=True):
        group_of.setdefault(text, set()).add(int(train.positive_group[clip]))
    audio = torch.from_numpy(rng.normal(size=(40, 4)))
    composed = 0
    for step, batch, crops in overlapped_batches(train, section, 0, steps, 0):
        clips, captions_of = np.unique(train.captions.clip_index[batch.rows], return_counts=True)
        assert len(crops) == len(clips)
        if items == "clips":  # one joined caption, or as many as there are and may be
            there = np.minimum(np.diff(train.captions.first)[clips], 2)
            joined = np.array([batch.composed[train.captions.clip_index[batch.rows] == clip].all() for clip in clips])
            assert (captions_of == np.where(joined, 1, there)).all()
        named = [re.findall(r"<.*?>", text) for text in batch.texts]
        if same == "positives":  # a caption tells its group
            parts = [{next(iter(group_of[name])) for name in names} for names in named]
            got = [set(ids[ids >= 0].tolist()) for ids in batch.clip_ids]
            assert got == parts
            rows = len(batch.rows)
            loss = nt_xent(audio[:rows], audio[:rows].flip(1), 0.3, torch.from_numpy(batch.clip_ids))
            expected = reference_nt_xent(audio[:rows].numpy(), audio[:rows].flip(1).numpy(), 0.3, parts)
            assert loss.item() == pytest.approx(expected)
        for row, names, text, mixed_here in zip(batch.rows, named, batch.texts, batch.composed, strict=True):
            assert train.captions.texts[row] in names
            assert (len(names) > 1) == mixed_here
            if not mixed_here:
                assert text == train.captions.texts[row]
        composed += int(batch.composed.sum())
        assert step < 3 * steps
    assert composed > 20


def test_some_of_the_clips_are_composed_of_one_another() -> None:
    """As a fold's encoders see them: the mixtures are those of the same recordings among all."""
    whole = split_of([2] * 9, [30, 20, 25, 40, 12, 33, 18, 27, 22])
    places = np.array([1, 3, 4, 6, 8])
    some = whole.only(places)
    section = PretrainSection(batch_size=4, epochs=2, compose=1.0)
    composed = 0
    for _, batch, crops in overlapped_batches(some, section, 0, 2, 0):
        assert set(batch.clip_ids.ravel().tolist()) <= {-1, *whole.positive_group[places].tolist()}
        composed += int(batch.composed.sum())
        assert len(crops)
    assert composed
    mixture = Mixture((0, 2), (20, 12), (0, 5), (0.0, -6.0), 20)
    placed = dataclasses.replace(mixture, clips=(1, 4))
    one, other = (clips.mix([each], np.random.default_rng(3)) for clips, each in ((some.clips, mixture), (whole.clips, placed)))
    assert torch.equal(one, other)


def same_batch(one: tuple[int, Batch, Any], other: tuple[int, Batch, Any]) -> bool:
    return (
        one[0] == other[0]
        and one[1].texts == other[1].texts
        and all((getattr(one[1], name) == getattr(other[1], name)).all() for name in ("rows", "composed", "clip_ids"))
        and torch.equal(one[2], other[2])
    )


@pytest.mark.parametrize("by_length", [True, False])
def test_each_batch_depends_on_the_seed_and_the_step_alone(by_length: bool) -> None:
    rng = np.random.default_rng(1)
    train = split_of([2] * 30, rng.integers(5, 30, 30).tolist())
    section = PretrainSection(batch_size=7, compose=0.5, epochs=3, by_length=by_length)
    steps = len(epoch_batches(train.captions, section, 0, 0))
    whole = list(overlapped_batches(train, section, 4, steps, 0))
    assert len(whole) == 3 * steps
    for start in (1, steps, 2 * steps + 3):
        rest = list(overlapped_batches(train, section, 4, steps, start))
        assert all(same_batch(one, other) for one, other in zip(whole[start:], rest, strict=True))
    assert not any(
        same_batch(one, other) for one, other in zip(whole, overlapped_batches(train, section, 5, steps, 0), strict=True)
    )


def test_nothing_composed_is_as_if_there_were_no_composing() -> None:
    """The streams of order and crops alone, and one number a clip for the loss."""
    train = split_of([2] * 30, [50, 20, 70] * 10)
    section = PretrainSection(batch_size=7, epochs=1)
    rows = epoch_batches(train.captions, section, 3, 0)
    for step, batch, crops in overlapped_batches(train, section, 3, len(rows), 0):
        assert (batch.rows == rows[step]).all()
        clips = train.captions.clip_index[batch.rows]
        assert torch.equal(crops, train.clips.logmels.crop(np.unique(clips), 40, numpy_stream(3, "crop", step)))
        assert (batch.clip_ids == train.positive_group[clips]).all()
        assert batch.texts == [train.captions.texts[row] for row in batch.rows]
        assert not batch.composed.any()


def test_crops_of_mixtures(workshop: Workshop) -> None:
    """A recording alone is a crop of it as ever; the parts of the others are found at their places."""
    train = split_of([1] * 6, [30, 60, 10, 12, 25, 40])
    alone, turns = (
        Mixture((1,), (40,), (0,), (0.0,), 40),
        Mixture((2, 3), (10, 12), (12, 0), (-3.0, -8.0), 22),
    )
    got = train.clips.mix([alone, turns], np.random.default_rng(0))
    assert got.shape == (2, 40, 64)
    assert torch.allclose(got[0], torch.tensor(-39.5))
    assert (got[1, 22:] == -100).all()
    first, second = got[1, :12].double(), got[1, 12:22].double()
    assert float(second.mean() - first.mean()) == pytest.approx((-39.0 - 3.0) - (-38.5 - 8.0), abs=1e-3)
    assert torch.equal(train.clips.mix([alone, turns], np.random.default_rng(0), slice(1, 2)), got[1:])


class Plain:
    """An encoder of waveforms that shows what it would hear."""

    rate, longest = RATE, None

    @staticmethod
    def inputs(waves: list[np.ndarray]) -> list[np.ndarray]:
        return waves


def test_waveforms_of_a_data_set(workshop: Workshop) -> None:
    dataset = load_dataset(workshop.data, "tones")
    clips = WaveformCrops(dataset, "train", Plain(), 30.0)
    samples = np.diff(clips.offsets)
    mixture = Mixture((4, 7), tuple(samples[[4, 7]].tolist()), (0, 1000), (0.0, -6.0), int(samples[4]))
    alone = Mixture((3,), (int(samples[3]),), (0,), (0.0,), int(samples[3]))
    whole, one, other, third = clips.crop([4, 4, 7, 3], np.random.default_rng(0))
    got = clips.mix([mixture, alone], np.random.default_rng(0))
    assert (got[1] == third).all()
    expected = mixed([levelled(one), levelled(other)], [0.0, -6.0], [0, 1000], int(samples[4]))
    assert np.corrcoef(got[0], expected)[0, 1] > 0.999999
    assert level(got[0], float(got[0].mean())) == pytest.approx(level(whole, float(whole.mean())), abs=0.01)


@pytest.mark.parametrize("finetune", ["false", "true"])
def test_joined_captions_are_embedded_as_any_other(workshop: Workshop, finetune: str) -> None:
    recipe = workshop.recipe("pretrain.compose=0.5", f"text.finetune={finetune}", "data.seconds=2")
    phase = PhaseOne(recipe, 0, torch.device("cpu"))
    train = phase.read(load_dataset(workshop.data, "tones"), silent)
    assert (train.vectors is None) == (finetune == "true")
    _, batch, _ = next(overlapped_batches(train, recipe.pretrain, 0, 3, 0))
    assert 0 < batch.composed.sum() < len(batch.rows)
    mine = np.array([1, 2, 5, 7])
    phase.eval()
    with torch.no_grad():
        got = phase._embed_captions(train, batch, mine).numpy()
    np.testing.assert_allclose(got, phase.embed_text([batch.texts[i] for i in mine]), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"audio": {"encoder": "features"}, "text": {"encoder": "features"}}, r"audio\.encoder=features"),
        ({"audio": {"finetune": False}}, r"audio\.finetune=false"),
        ({"model": {"strategy": "gen"}}, r"model\.strategy to gen-dis or dis"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], told: str) -> None:
    Recipe.model_validate(fields)
    with pytest.raises(ValueError, match=rf"pretrain\.compose: .*{told}"):
        Recipe.model_validate({**fields, "pretrain": {"compose": 0.1}})
