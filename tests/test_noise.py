"""The noise of sampling: the generator by its published answers, normals by their definition, and every way of drawing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from diffatr_cli.core import noise
from diffatr_cli.core.noise import ROUNDING, normals_eager, philox, query_noise
from diffatr_cli.core.noise_numba import normals_numba

ALL = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_answers_that_random123_publishes(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    a, b, c, d = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox((a, b, c, d), key)) == answer


def words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 as the paper defines it, in Python's integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & ALL, (left >> 32) ^ d ^ k1, left & ALL
        k0, k1 = (k0 + 0x9E3779B9) & ALL, (k1 + 0xBB67AE85) & ALL
    return [a, b, c, d]


def defined(seed: int, query: int, place: int, draw: int, step: int) -> float:
    """One value of the noise by its definition, in float64."""
    counter = place // 4, draw + 65536 * step, query & ALL, query >> 32 & ALL
    four = words(counter, (seed & ALL, seed >> 32 & ALL))
    a, b = four[place % 4 // 2 * 2 :][:2]
    radius, angle = np.sqrt(-2 * np.log((a // 512 + 0.5) / 2**23)), 2 * np.pi * b / 2**32
    return float(radius * (np.sin(angle) if place % 2 else np.cos(angle)))


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(1, 40),
    st.integers(0, 65535),
    st.integers(0, 65535),
)
def test_a_value_is_what_its_seed_query_place_draw_and_step_define(seed: int, query: int, n: int, draw: int, step: int) -> None:
    got = query_noise(seed, [7, query], n, draw)(step)
    assert (got.dtype, got.shape) == (torch.float32, (2, n))
    assert_allclose(got[1], [defined(seed, query, place, draw, step) for place in range(n)], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("word", [0, 1, 511, 512, 2**31 - 1, 2**31, ALL - 512, ALL])
def test_normals_at_the_ends_of_the_words(word: int) -> None:
    """Radii from the largest to the smallest, and angles around every quarter of a turn."""
    quarters = [(turn + offset) % 2**32 for turn in range(0, 2**32, 2**29) for offset in (-1, 0, 1)]
    got = torch.stack(noise._box_muller(torch.full((len(quarters),), word), torch.tensor(quarters)))
    radius, angle = np.sqrt(-2 * np.log((word // 512 + 0.5) / 2**23)), 2 * np.pi * np.array(quarters) / 2**32
    assert_allclose(got, [radius * np.cos(angle), radius * np.sin(angle)], atol=ROUNDING, rtol=0)
    assert got.abs().max() < 5.78


@settings(max_examples=20)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=5), st.integers(0, 5000))
def test_numba_draws_what_torch_draws(seed: int, ids: list[int], n: int) -> None:
    rows = torch.tensor(ids, dtype=torch.int64)
    got, plain = normals_numba(seed, rows, n, 65536 * 3 + 2), normals_eager(seed, rows, n, 65536 * 3 + 2)
    assert got.shape == plain.shape == (len(ids), n)
    torch.testing.assert_close(got, plain, atol=ROUNDING, rtol=0)


def test_much_noise_is_compiled_on_all_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = range(-3, 30)
    small = query_noise(2**70 + 3, ids, 2000)(5)
    monkeypatch.setattr(noise, "SMALL", 0)
    torch.testing.assert_close(query_noise(2**70 + 3, ids, 2000)(5), small, atol=ROUNDING, rtol=0)


def test_noise_of_listed_places_is_that_of_all() -> None:
    places = torch.tensor([[0, 5, 6, 7, 999], [3, 2, 1, 0, 3]])
    whole = query_noise(1, [4, -9], 1000, 2)(3)
    assert torch.equal(query_noise(1, [4, -9], 1000, 2, places)(3), whole.gather(1, places))


def test_values_are_standard_normal_and_know_nothing_of_one_another() -> None:
    """Moments, the distribution by Kolmogorov and Smirnov, and correlations between neighbours in every direction."""
    values = np.stack([query_noise(0, range(200), 1000, draw)(step).numpy() for draw in range(2) for step in range(2)])
    flat = np.sort(values.ravel()).astype(np.float64)
    count = len(flat)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = np.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[power] / count)
        assert abs((flat**power).mean() - moment) < 5 * spread
    at_most = torch.special.ndtr(torch.from_numpy(flat)).numpy()
    assert np.abs(at_most - (np.arange(count) + 0.5) / count).max() < 2 / np.sqrt(count)
    for axis in range(3):
        ahead, behind = np.moveaxis(values, axis, 0)[1:], np.moveaxis(values, axis, 0)[:-1]
        for power in (1, 2):
            assert abs(np.corrcoef((ahead**power).ravel(), (behind**power).ravel())[0, 1]) < 5 / np.sqrt(ahead.size)


def test_what_a_counter_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="draw 65536"):
        query_noise(0, [0], 3, 65536)
    with pytest.raises(ValueError, match="candidates at most"):
        query_noise(0, [0], 2**34 + 1)
    with pytest.raises(ValueError, match="step 65536"):
        query_noise(0, [0], 3)(65536)
