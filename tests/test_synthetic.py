"""The procedural sounds and the data set made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffatr_cli.data.manifest import load_dataset, read_piece
from diffatr_cli.data.sounds import KINDS, render, render_scene
from diffatr_cli.data.synthetic import _items, prepare_synthetic


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_audible_of_any_length_and_the_seed_s_alone(kind: str) -> None:
    for seconds in (0.3, 1.7):
        one, same, other = (render(kind, np.random.default_rng(seed), seconds) for seed in (0, 0, 1))
        assert one.dtype == np.float32
        assert one.shape == (round(seconds * 32_000),)
        assert np.abs(one).max() == pytest.approx(0.9, rel=1e-3)
        np.testing.assert_array_equal(one, same)
        assert np.corrcoef(one, other)[0, 1] < 0.9
    # Sound all along, not a click at one end: the loudest tenth of a second is not everything.
    tenths = np.square(one[: 17 * 3200 // 3200 * 3200].reshape(-1, 3200)).sum(axis=1)
    assert tenths.max() < 0.9 * tenths.sum()


def test_kinds_can_be_told_apart() -> None:
    """By the nearest neighbour on spectrum and modulation alone, from three examples of each; chance is one in 42."""

    def features(samples: np.ndarray) -> np.ndarray:
        frames = np.abs(np.fft.rfft(samples.reshape(-1, 512) * np.hanning(512))) ** 2
        parts = np.array_split(frames[:, 2:], np.geomspace(2, 250, 20).astype(int), axis=1)
        bands = np.stack([part.sum(axis=1) for part in parts])
        decibels = 10 * np.log10(bands + 1e-6)
        pulse = np.abs(np.fft.rfft(decibels.mean(axis=0) - decibels.mean()))[1:60]
        return np.concatenate([decibels.mean(axis=1), decibels.std(axis=1), 0.1 * pulse])

    examples = [(kind, features(render(kind, np.random.default_rng(seed), 2.048))) for kind in KINDS for seed in range(3)]
    right = 0
    for kind in KINDS:
        asked = features(render(kind, np.random.default_rng(99), 2.048))
        right += min(examples, key=lambda example: float(np.abs(example[1] - asked).sum()))[0] == kind
    assert right / len(KINDS) > 0.6


def test_a_longer_list_begins_with_the_shorter_and_says_what_is_heard() -> None:
    few, many = _items("train", 20, 3), _items("train", 40, 3)
    assert many[:20] == few
    assert _items("train", 20, 4) != few
    assert {item.clip_id for item in many}.isdisjoint(item.clip_id for item in _items("test", 40, 3))
    assert len({item.source for item in [*many, *_items("test", 40, 3)]}) == 80
    for item in many:
        kinds = [kind for kind in KINDS if kind in item.name.split()]
        assert len(kinds) in (1, 2)
        for caption in item.captions:
            assert all(any(clause in caption.lower() for clause in KINDS[kind].captions) for kind in kinds), caption
    assert len({frozenset(item.captions) for item in many}) == 40


def test_order_is_in_the_captions_and_in_the_sound() -> None:
    """A scene of alarm then thunder: high frequencies first, low ones later."""
    scene = '{"version": 1, "seed": [0, 0, 0], "seconds": 5.0, "join": "then", "kinds": ["alarm_beeping", "thunder"]}'
    samples = render_scene(scene)
    assert samples.shape == (160_000,)
    halves = [np.abs(np.fft.rfft(half)) ** 2 for half in (samples[:60_000], samples[-60_000:])]
    high = [half[len(half) // 10 :].sum() / half.sum() for half in halves]
    assert high[0] > 0.9 > 0.3 > high[1]


def test_the_set_is_the_same_every_time_and_finished_clips_stay(tmp_path: Path) -> None:
    report = prepare_synthetic(tmp_path / "a", 6, 2, 3, seed=5)
    assert {split: counts.clips for split, counts in report.splits.items()} == {"train": 6, "val": 2, "test": 3}
    assert report.splits["test"].captions == 15
    prepare_synthetic(tmp_path / "b", 6, 2, 3, seed=5, workers=1)
    a, b = (load_dataset(tmp_path, name) for name in "ab")
    assert a.fingerprint == b.fingerprint
    assert all(clip.seconds == 5 for clip in a.clips)
    one = a.split("val")[0]
    assert 0.2 < np.abs(read_piece(a.root / one.path)).max() < 0.95
    again = prepare_synthetic(tmp_path / "a", 8, 2, 3, seed=5)
    assert (again.converted, again.kept) == (2, 11)
    assert prepare_synthetic(tmp_path / "a", 8, 2, 3, seed=6).kept == 0
