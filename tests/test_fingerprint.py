"""Fingerprints against a plain reading of the paper, and what they hold for and do not confuse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffatr_cli.core.fingerprint import FRAME, HOP, RATE, Fingerprint, fingerprint
from diffatr_cli.core.fingerprint_match import LIKELY, SURE, align, candidates
from diffatr_cli.core.sets import connected_sets
from diffatr_cli.corpus.duplicates import alike_pairs


def effect(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Some clicks, sweeps and noises of random colour, one after another, which no other seed has."""
    rng, samples = np.random.default_rng(seed), round(seconds * RATE)
    out = np.zeros(samples)
    for _ in range(max(3, round(6 * seconds))):
        length = int(rng.integers(RATE // 10, RATE // 2))
        time = np.arange(length) / RATE
        low, high = rng.uniform(150, 3500, 2)
        noise = rng.normal(0, rng.uniform(0.05, 1), length)
        sound = np.sin(2 * np.pi * (low + (high - low) * time / time[-1] / 2) * time) + noise
        at = int(rng.integers(0, samples))
        sound = (sound * np.exp(-time * rng.uniform(1, 12)))[: samples - at]
        out[at : at + len(sound)] += rng.uniform(0.1, 1) * sound
    return (0.3 * out / np.abs(out).max()).astype(np.float32)


def of(samples: np.ndarray) -> Fingerprint:
    return fingerprint([samples.astype(np.float32)])


def found(*sounds: np.ndarray) -> dict[tuple[int, int], list]:
    """What pairs of sounds have in common, as a search finds it."""
    prints = [of(each) for each in sounds]
    pairs = candidates(prints)
    links = {
        (int(a), int(b)): align(prints[a], prints[b], offsets)
        for a, b, offsets in zip(pairs.first, pairs.second, pairs.offsets, strict=True)
    }
    return {pair: stretches for pair, stretches in links.items() if stretches}


def test_the_bits_are_those_of_the_paper() -> None:
    """Equation 1, frame by frame and band by band, with bands 200 Hz to 3400 Hz on whole lines of the spectrum."""
    samples = effect(0, 0.7)
    around = np.concatenate([np.zeros(FRAME // 2 + HOP), samples, np.zeros(FRAME)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    edges = [round(200 * 17 ** (band / 33) * FRAME / RATE) for band in range(34)]
    powers = []
    for frame in range(len(samples) // HOP + 2):
        spectrum = np.abs(np.fft.fft(around[frame * HOP : frame * HOP + FRAME] * window)) ** 2
        powers.append([spectrum[a:b].sum() for a, b in pairwise(edges)])
    got, different = of(samples), 0
    assert len(got) == len(powers) - 1
    for n in range(1, len(powers)):
        before, now = powers[n - 1], powers[n]
        for m in range(32):
            larger = now[m] - now[m + 1] - (before[m] - before[m + 1]) > 0
            different += larger != bool(int(got.bits[n - 1]) >> (31 - m) & 1)
    assert different <= 0.002 * 32 * len(got)  # by rounding, where a band has next to nothing


@given(seed=st.integers(0, 50), cuts=st.lists(st.integers(0, 160_000), max_size=4))
@settings(max_examples=10)
def test_blocks_give_what_the_whole_gives(seed: int, cuts: list[int]) -> None:
    samples = np.tile(effect(seed, 2.0), 8)
    whole, parts = of(samples), fingerprint(np.split(samples, sorted(cuts)))
    assert np.array_equal(whole.bits, parts.bits)
    assert np.array_equal(whole.levels, parts.levels)
    assert whole.seconds == parts.seconds == len(samples) / RATE


@example(seed=87, gain=0.0, start=0.0, length=2.0, silence=(0.0, 0.0))
@given(
    seed=st.integers(0, 1000),
    gain=st.floats(-30, 30),
    start=st.floats(0, 0.9),
    length=st.floats(2.0, 2.5),
    silence=st.tuples(st.floats(0, 2), st.floats(0, 2)),
)
@settings(max_examples=25)
def test_a_cut_of_any_level_in_silence_is_found_in_its_place(
    seed: int, gain: float, start: float, length: float, silence: tuple[float, float]
) -> None:
    whole = effect(seed, 4.0)
    first, last = round(start * RATE), round((start + length) * RATE)
    before, after = (np.zeros(round(each * RATE)) for each in silence)
    piece = np.concatenate([before, whole[first:last] * 10 ** (gain / 20), after])
    sounding = np.flatnonzero(np.abs(whole[first:last]) > 1e-3 * np.abs(whole).max())  # a sound may begin late, and end early
    (stretch,) = found(whole, piece)[0, 1]
    assert stretch.start - stretch.other_start == pytest.approx(start - silence[0], abs=0.03)
    assert stretch.level == pytest.approx(gain, abs=0.5)
    assert stretch.end - stretch.start > (sounding[-1] - sounding[0]) / RATE - 2 * FRAME / RATE - 0.3
    assert stretch.errors < 0.15


def test_a_piece_cut_out_of_the_middle_leaves_two_stretches() -> None:
    whole = effect(5, 8.0)
    first, second = found(whole, np.concatenate([whole[: 3 * RATE], whole[5 * RATE :]]))[0, 1]
    assert (first.start, first.end) == pytest.approx((0, 3), abs=0.3)
    assert (second.start, second.end) == pytest.approx((5, 8), abs=0.3)
    assert (second.other_start, second.other_end) == pytest.approx((3, 6), abs=0.3)


def test_others_are_not_confused() -> None:
    """Different sounds of one make, noises of one level, tones of other pitch, and silences."""
    rng, time = np.random.default_rng(1), np.arange(3 * RATE) / RATE
    others = [effect(seed) for seed in range(100, 140)]
    noises = [rng.normal(0, 0.1, 3 * RATE) for _ in range(20)]
    tones = [0.3 * np.sin(2 * np.pi * hz * time) for hz in (300, 440, 445, 1000, 1003, 2500)]
    silences = [np.zeros(RATE), np.zeros(2 * RATE), rng.normal(0, 1e-6, RATE)]
    assert found(*others, *noises, *tones, *silences) == {}
    assert not any(of(silence).heard.any() for silence in silences)


def test_the_best_stretch_is_that_of_all_stretches() -> None:
    """Against each start and end, at each offset that is tried."""
    first, second = of(effect(7, 0.6)), of(effect(7, 0.6)[800:4000])
    best = 0.0
    for offset in range(5, 12):
        gains = [
            LIKELY * 32 - int(first.bits[i] ^ second.bits[i - offset]).bit_count()
            if first.heard[i] and second.heard[i - offset]
            else 0.0
            for i in range(offset, min(len(first), len(second) + offset))
        ]
        sums = np.concatenate([[0], np.cumsum(gains)])
        best = max(best, max(sums[b] - sums[a] for a in range(len(sums)) for b in range(a, len(sums))))
    assert best > SURE
    assert max(each.score for each in align(first, second, [8])) == pytest.approx(best)


def test_many_copies_are_joined_without_comparing_all() -> None:
    sounds = [effect(3, 1.0) * (1 - number / 200) for number in range(100)] + [effect(4, 1.0)]
    pairs = found(*sounds)
    assert connected_sets(101, pairs) == [list(range(100)), [100]]
    assert len(pairs) < 100 * 99 / 2


@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_connected_sets_are_those_of_a_search_from_each(pairs: list[tuple[int, int]]) -> None:
    reached = np.eye(10, dtype=bool)
    for a, b in pairs:
        reached[a, b] = reached[b, a] = True
    for _ in range(4):
        reached = reached @ reached
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in reached})
    assert connected_sets(10, pairs) == [list(each) for each in expected]


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 99), at_once=st.integers(1, 40))
@settings(max_examples=40)
def test_alike_are_those_of_which_each_window_has_a_near_one(sizes: list[int], seed: int, at_once: int) -> None:
    rng, offsets = np.random.default_rng(seed), np.cumsum([0, *sizes])
    vectors = rng.normal(size=(offsets[-1], 2)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {}
    for a in range(len(sizes)):
        for b in range(a + 1, len(sizes)):
            cosines = vectors[offsets[a] : offsets[a + 1]] @ vectors[offsets[b] : offsets[b + 1]].T
            cosine = max(cosines.max(1).min(), cosines.max(0).min())
            if cosine >= 0.6:
                expected[a, b] = float(cosine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffatr_cli.corpus.duplicates._AT_ONCE", at_once)
        got = {(a, b): cosine for a, b, cosine in alike_pairs(vectors, offsets, 0.6)}
    assert got == pytest.approx(expected, abs=1e-5)
