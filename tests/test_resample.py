"""Resampling: true to the sound, and the same however the input is cut."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import resampy
import soxr
from audio_files import sine
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.data.resample import Resampler, choose_resampler, resample, resampling_stream
from diffatr_cli.errors import UsageError

RESAMPLERS = get_args(Resampler)


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_sine_stays_the_same_sine(rate: int, resampler: Resampler) -> None:
    hz = 0.4 * min(rate, 32_000) * 0.8
    samples = resample(sine(1, rate, hz).astype(np.float32), rate, resampler)
    assert len(samples) == 32_000
    expected = sine(1, 32_000, hz)
    np.testing.assert_allclose(samples[4000:28_000], expected[4000:28_000], atol=1e-3)


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_no_mel_band_loses_a_hundredth_of_a_decibel(rate: int, resampler: Resampler) -> None:
    """Against resampling without error: the same spectrum, cut off at 16 kHz."""
    seconds = 4
    noise = np.random.default_rng(1).normal(0, 0.1, seconds * rate)
    spectrum = np.fft.rfft(noise)[: seconds * 16_000 + 1]
    perfect = np.fft.irfft(spectrum, seconds * 32_000) * 32_000 / rate
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 14_000 / 700), 66) / 2595) - 1)
    hz = np.fft.rfftfreq(1024, 1 / 32_000)
    bands = np.array([np.interp(hz, edges[i : i + 3], [0, 1, 0]) for i in range(64)])
    bands = bands[bands.sum(axis=1) > 0]

    def mel(samples: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(samples[2048:-2048], 1024)[::320]
        return 10 * np.log10(bands @ (np.abs(np.fft.rfft(frames * np.hanning(1025)[:-1])) ** 2).mean(axis=0))

    difference = mel(resample(noise.astype(np.float32), rate, resampler).astype(np.float64)) - mel(perfect)
    assert len(bands) > 50
    assert np.abs(difference).max() < 0.01


def length(samples: np.ndarray, rate: int) -> int:
    return int(np.floor(len(samples) * 32_000 / rate + 0.5))


def whole(samples: np.ndarray, rate: int, resampler: Resampler) -> np.ndarray:
    """As the library itself resamples it in one piece, silence behind it."""
    if resampler == "soxr":
        return np.asarray(soxr.resample(samples, rate, 32_000, quality="HQ"))
    padded = np.concatenate([samples, np.zeros(rate, np.float32)])
    return np.asarray(resampy.resample(padded, rate, 32_000, filter="kaiser_best"))[: length(samples, rate)]


@pytest.mark.parametrize("resampler", RESAMPLERS)
@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 80_000), max_size=4),
    rate=st.sampled_from([1000, 8000, 32_000, 44_056, 44_100, 48_000, 96_000, 31_999, 768_000]),
)
def test_pieces_give_what_the_whole_gives(resampler: Resampler, cuts: list[int], rate: int) -> None:
    cuts = [cut // (20 if rate == 1000 else 1) for cut in cuts]
    samples = np.random.default_rng(len(cuts)).normal(0, 1, sum(cuts)).astype(np.float32)
    stream, at, pieces = resampling_stream(rate, resampler), 0, []
    for cut in cuts:
        pieces.append(stream(samples[at : at + cut]))
        at += cut
    pieces.append(stream(samples[at:], last=True))
    found = np.concatenate(pieces)
    assert found.dtype == np.float32
    if len(samples) and not length(samples, rate):
        np.testing.assert_allclose(found, [samples.mean()], atol=1e-6)
        return
    assert found.shape == (length(samples, rate),)
    np.testing.assert_allclose(found, whole(samples, rate, resampler) if rate != 32_000 else samples, atol=1e-5)


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("to", [16_000, 32_000, 48_000])
def test_of_a_sound_shorter_than_a_sample_one_is_left(to: int, resampler: Resampler) -> None:
    for count in (1, 2, 5, 23):
        samples = np.linspace(0.1, 0.3, count, dtype=np.float32)
        stream = resampling_stream(768_000, resampler, to)
        found = np.concatenate([*(stream(samples[i : i + 1]) for i in range(count)), stream(samples[:0], last=True)])
        assert len(found) == max(1, int(np.floor(count * to / 768_000 + 0.5)))
        if count * to / 768_000 < 0.5:
            np.testing.assert_allclose(found, [0.2 if count > 1 else 0.1], atol=1e-6)
    assert len(resample(np.zeros(0, np.float32), 768_000, resampler, to)) == 0


def test_there_are_two_resamplers() -> None:
    assert [choose_resampler(name) for name in RESAMPLERS] == ["soxr", "resampy"]
    for name in ("auto", "polyphase", "kaiser_fast"):
        with pytest.raises(UsageError, match=f"{name}.*soxr or resampy"):
            choose_resampler(name)
