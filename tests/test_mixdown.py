"""Many channels to one: the mean, or the louder channel while they cancel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.data.mixdown import Mixdown

RATE = 8000


def mix(sound: np.ndarray, cuts: tuple[int, ...] = ()) -> np.ndarray:
    sound = sound.astype(np.float32)
    mixdown = Mixdown(RATE, sound.shape[1])
    parts = [mixdown(part) for part in np.split(sound, cuts)]
    return np.concatenate([*parts, mixdown(sound[:0], last=True)])


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_that_do_not_cancel_are_averaged(channels: int) -> None:
    sound = np.stack([noise(3, seed) for seed in range(channels)], 1)
    np.testing.assert_allclose(mix(sound), sound.mean(1), atol=1e-6)
    alone = np.zeros((3 * RATE, 8))
    alone[:, 5] = noise(3)  # one of eight microphones hears something
    np.testing.assert_allclose(mix(alone), alone.mean(1), atol=1e-6)


@pytest.mark.parametrize(("gain", "offset"), [(0.95, 0), (0.8, 0.3), (1.1, -0.2)])
def test_of_channels_that_cancel_the_louder_is_taken(gain: float, offset: float) -> None:
    sound = noise(3)
    both = np.stack([sound, -gain * sound], 1) + noise(3, 1, 0.003)[:, None] + offset
    np.testing.assert_allclose(mix(both), both[:, 0 if gain < 1 else 1], atol=1e-6)
    surround = np.stack([sound, -sound, 0 * sound, 0 * sound], 1)
    np.testing.assert_allclose(mix(surround), sound, atol=1e-6)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=4),
    st.lists(st.integers(0, 40_000), max_size=8),
)
def test_blocks_do_not_matter(parts, cuts) -> None:
    sound = np.concatenate(
        [np.stack([noise(seconds, 1, 0.1 * level), noise(seconds, 1, 0.1 * level) * like], 1) for seconds, like, level in parts]
    )
    np.testing.assert_array_equal(mix(sound), mix(sound, tuple(sorted(min(cut, len(sound)) for cut in cuts))))


def test_a_wire_that_is_swapped_on_the_way_loses_less_than_a_half_second() -> None:
    left = noise(12)
    right = np.concatenate([left[: 6 * RATE], -left[6 * RATE :]])
    mixed = mix(np.stack([left, right], 1))
    loud = np.sqrt(np.square(mixed).reshape(-1, RATE // 4).mean(1))
    assert (loud > 0.05).sum() >= len(loud) - 1
    # And back: what is in one channel only is heard again at once.
    other = np.concatenate([noise(6), np.zeros(6 * RATE)])
    mixed = mix(np.stack([other, np.concatenate([-noise(6), noise(6, 2)])], 1))
    assert np.square(mixed[6 * RATE :]).mean() > 0.2 * 0.1**2


def test_quiet_hum_of_opposite_sign_does_not_cost_a_channel() -> None:
    """Hum cancels between two calls of a bird that only the second microphone hears."""
    hum = 0.001 * np.sin(np.arange(20 * RATE) * 2 * np.pi * 50 / RATE)
    bird = np.zeros(20 * RATE)
    for second in (2, 9, 16):
        bird[second * RATE : (second + 1) * RATE] = noise(1)
    mixed = mix(np.stack([hum, bird - hum], 1))
    for second in (2, 9, 16):
        part = slice(second * RATE, (second + 1) * RATE)
        assert np.square(mixed[part]).mean() > 0.2 * np.square(bird[part]).mean()


def test_a_change_makes_no_click() -> None:
    tone = np.sin(np.arange(12 * RATE) * 2 * np.pi * 100 / RATE)
    sign = np.where(np.arange(len(tone)) < 6.2 * RATE, 1, -1)
    mixed = mix(np.stack([tone, sign * tone], 1))
    step = np.abs(np.diff(mixed)).max()
    assert step < 0.2  # of the tone itself 0.08; where the wire is swapped the mean falls from tone to nothing by itself up to 1


def test_silence_and_numbers_that_are_none_pass() -> None:
    assert not mix(np.zeros((3 * RATE, 2))).any()
    broken = np.stack([noise(2), noise(2, 1)], 1)
    broken[100, 0] = np.nan
    broken[9000, 1] = np.inf
    assert (~np.isfinite(mix(broken))).sum() == 2
