"""The log-mel front end against float64 and the authors' own, and SpecAugment's stripes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.logmel import N_MELS, SILENCE, LogMel, mel_filters, perturb, spec_augment

SHARED = Path(__file__).parents[2] / "shared"


def reference_filters() -> np.ndarray:
    """Slaney's triangles one value at a time, (513, 64)."""

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    low, high = 50 * 3 / 200, 15 + math.log(14000 / 1000) / (math.log(6.4) / 27)
    corners = [hz(low + (high - low) * i / 65) for i in range(66)]
    filters = np.zeros((513, 64))
    for k in range(513):
        for m, (left, centre, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
            f = k * 32000 / 1024
            if left < f < right:
                slope = (f - left) / (centre - left) if f <= centre else (right - f) / (right - centre)
                filters[k, m] = slope * 2 / (right - left)
    return filters


def reference_logmel(waveform: np.ndarray, hop: int) -> np.ndarray:
    """Frame by frame in float64: reflect, Hann, FFT, power, mel, dB."""
    padded = np.pad(waveform.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [padded[i * hop : i * hop + 1024] * window for i in range(len(waveform) // hop + 1)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    return 10 * np.log10(np.maximum(power @ reference_filters(), 1e-10))


def test_filters() -> None:
    np.testing.assert_allclose(mel_filters(), reference_filters(), atol=1e-12)


@pytest.mark.parametrize("hop", [320, 640])
@pytest.mark.parametrize("samples", [513, 4000, 4160])
def test_against_float64(hop: int, samples: int) -> None:
    rng = np.random.default_rng(samples + hop)
    waveform = rng.normal(0, 0.1, (2, samples)).astype(np.float32)
    got = LogMel(hop)(torch.from_numpy(waveform))
    assert got.shape == (2, samples // hop + 1, N_MELS)
    for clip, expected in zip(got.numpy(), [reference_logmel(w, hop) for w in waveform], strict=True):
        np.testing.assert_allclose(clip, expected, atol=1e-3)


def test_silence_is_the_floor_and_a_tone_fills_its_bin() -> None:
    assert (LogMel()(torch.zeros(1, 3200)) == -100).all()
    tone = torch.sin(2 * torch.pi * 4000 * torch.arange(32000) / 32000)[None]
    assert LogMel()(tone)[0, 20].argmax() == reference_filters()[128].argmax()  # bin 128 is 4 kHz


def test_decibels_keep_their_precision_under_autocast() -> None:
    waveform = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", torch.bfloat16):
        low = LogMel()(waveform)
    assert low.dtype == torch.float32
    assert torch.equal(low, LogMel()(waveform))


def test_too_short_to_reflect() -> None:
    with pytest.raises(ValueError, match="more than 512 samples, this one has 512"):
        LogMel()(torch.zeros(1, 512))


def test_nothing_of_the_front_end_is_saved() -> None:
    assert not LogMel().state_dict()


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="no golden arrays beside the checkout")
def test_golden() -> None:
    golden = np.load(SHARED / "golden" / "panns_golden.npz")
    got = LogMel()(torch.from_numpy(golden["waveform"])[None])[0].numpy()
    loud = golden["logmel"] > -60
    assert loud.any()
    assert np.abs(got - golden["logmel"])[loud].max() < 1e-3


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no recordings beside the checkout")
def test_against_torchlibrosa_on_recordings() -> None:
    stft = pytest.importorskip("torchlibrosa.stft")
    soundfile = pytest.importorskip("soundfile")
    spectrogram = stft.Spectrogram(n_fft=1024, hop_length=320, win_length=1024, freeze_parameters=True)
    log_mel = stft.LogmelFilterBank(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000, amin=1e-10, top_db=None)
    for path in sorted((SHARED / "data" / "ambience").glob("*.ogg"))[::24]:
        samples, _ = soundfile.read(path, frames=160000, dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples.mean(1))[None]
        with torch.no_grad():
            theirs = log_mel(spectrogram(waveform))[:, 0]
        loud = theirs > -60
        assert loud.any()
        assert (LogMel()(waveform) - theirs)[loud].abs().max() < 1e-3, path


def runs(gone: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], gone.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


@given(
    frames=st.integers(1, 90),
    time_stripe=st.integers(1, 80),
    mel_stripe=st.integers(1, 80),
    stripes=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_spec_augment_zeroes_whole_stripes_within_bounds(
    frames: int, time_stripe: int, mel_stripe: int, stripes: int, seed: int
) -> None:
    logmel = torch.rand(3, frames, N_MELS, generator=torch.Generator().manual_seed(seed)) + 1
    before = logmel.clone()
    out = spec_augment(logmel, time_stripe, mel_stripe, stripes, torch.Generator().manual_seed(seed))
    assert torch.equal(logmel, before)
    for clip, source in zip(out.numpy(), logmel.numpy(), strict=True):
        rows, columns = (clip == 0).all(1), (clip == 0).all(0)
        if not rows.all() and not columns.all():  # where they are, the other axis' stripes cannot be told apart
            assert (clip == source * ~(rows[:, None] | columns[None])).all()
            for gone, widest in ((rows, time_stripe), (columns, mel_stripe)):
                assert len(runs(gone)) <= stripes
                assert sum(runs(gone)) <= stripes * (widest - 1)


def test_spec_augment_draws_per_clip_and_by_its_generator() -> None:
    logmel = torch.ones(16, 200, N_MELS)
    one, same, other = (spec_augment(logmel, 64, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len({clip.numpy().tobytes() for clip in one}) > 8
    assert 64 < (one == 0).all(2).sum(1).max() <= 126  # two stripes, of up to 63 frames each


def perturbed(logmel: torch.Tensor, seed: int = 0, **settings: object) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        off = {"STRETCH": 0.0, "SHIFT": 0.0, "GAIN": 0.0, "COLOUR": 0.0, "BACKGROUND": (300.0, 300.0)}
        for name, value in (off | settings).items():
            patch.setattr(f"diffatr_cli.core.logmel.{name}", value)
        torch.manual_seed(seed)
        return perturb(logmel)


def sweep() -> torch.Tensor:
    """(2, 200, 64) dB: a ridge that climbs one bin every four frames, over a floor, then silence."""
    frames, bins = torch.arange(200.0)[:, None], torch.arange(64.0)
    ridge = -60 + 40 * torch.exp(-(((bins - 10 - frames / 4) / 2) ** 2))
    ridge[150:] = SILENCE
    return ridge.expand(2, -1, -1).clone()


def test_perturb_with_nothing_to_vary_changes_nothing() -> None:
    assert torch.allclose(perturbed(sweep()), sweep(), atol=1e-3)


def test_perturb_changes_speed_pitch_and_loudness_as_it_says() -> None:
    x = sweep()
    gained = perturbed(x, GAIN=12.0) - x
    for clip in range(2):
        sound, silence = gained[clip, :150], gained[clip, 150:]
        assert float(sound.max() - sound.min()) < 1e-3
        assert 0.1 < abs(float(sound.mean())) <= 12
        assert silence.abs().max() < 1e-3  # stays silence
    assert gained[0, 0, 0] != gained[1, 0, 0]
    shifted = perturbed(x, SHIFT=2.0)[:, 100].argmax(1).float() - x[:, 100].argmax(1).float()
    assert (shifted.abs() <= 2.5).all()
    seeds = range(8)
    slopes = []
    for seed in seeds:
        top = perturbed(x, seed, STRETCH=0.2)[0, 20:100].argmax(1).double()
        slopes.append(float(np.polyfit(np.arange(80), top, 1)[0] * 4))
    assert all(0.77 < slope < 1.23 for slope in slopes)  # 1 as it was
    assert max(slopes) - min(slopes) > 0.1


def test_perturb_puts_another_clip_behind_at_the_level_it_says() -> None:
    x = torch.full((2, 50, 64), float(SILENCE))
    x[0, :, :32], x[1, :, 32:] = -20.0, -50.0
    for seed in range(20):
        y = perturbed(x, seed, BACKGROUND=(10.0, 10.0))
        behind = [float(y[0, :, 40].mean()), float(y[1, :, 10].mean())]
        for clip, level in enumerate((-20.0, -50.0)):
            assert behind[clip] == pytest.approx(level - 10, abs=0.1) or behind[clip] == pytest.approx(SILENCE, abs=0.1)
        if behind[0] > -99 and behind[1] > -99:
            return
    raise AssertionError("no background in twenty tries")
