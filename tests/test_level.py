"""One loudness for all that an encoder hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import sine, table, write
from hypothesis import given
from hypothesis import strategies as st

import diffatr_cli.model
from diffatr_cli.core import inference
from diffatr_cli.core.audio_encoder import SmallCnn
from diffatr_cli.core.level import LEVEL, SILENT, level, levelled, levelled_rows
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.data.audio import load_audio
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.logmels import cached_logmels
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.encoders import pool_clips
from diffatr_cli.model import load_retriever, shipped_model


def at(decibels: float, seconds: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """A tone of that level, whole periods of it in a tenth of a second."""
    return (sine(seconds, 32_000, 500, np.sqrt(2) * 10 ** (decibels / 20)) + offset).astype(np.float32)


@pytest.mark.parametrize("decibels", [-85.0, -40.0, -13.5, 0.0, 20.0])
def test_the_level_of_a_sine_is_half_its_square(decibels: float) -> None:
    assert level(at(decibels)) == pytest.approx(decibels, abs=0.01)
    assert level(at(decibels, offset=0.3), 0.3) == pytest.approx(decibels, abs=0.1)
    # Of the loudest tenth of a second, whatever lies around.
    around = np.concatenate([np.zeros(32_000, np.float32), at(decibels, 0.1), at(decibels - 20, 3)])
    assert level(around) == pytest.approx(decibels, abs=0.01)
    assert level(at(decibels, 0.05)) == pytest.approx(decibels, abs=0.01)
    assert level(np.zeros(10, np.float32)) == level(np.zeros(0, np.float32)) == float("-inf")


@given(
    decibels=st.floats(-80, 40),
    offset=st.sampled_from([0.0, 0.005, -0.005, 0.02, -0.3, 0.5]),
    seconds=st.sampled_from([0.02, 0.5, 3.0]),
)
def test_levels_are_brought_to_one_and_offsets_taken_out(decibels: float, offset: float, seconds: float) -> None:
    sound = at(decibels, seconds, offset)
    given_ = sound.copy()
    out = levelled(sound)
    np.testing.assert_array_equal(sound, given_)
    assert out.dtype == np.float32
    mean = float(out.mean(dtype=np.float64))
    assert level(out, mean) == pytest.approx(LEVEL, abs=0.1)
    assert abs(mean) < 1e-3
    expected = at(LEVEL, seconds)
    np.testing.assert_allclose(out, expected, atol=2e-3 + 1e-6 * abs(offset) * 10 ** (max(0, LEVEL - decibels) / 20))


@given(gain=st.floats(-28, 40), seed=st.integers(0, 100))
def test_a_sound_is_the_same_at_any_gain(gain: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.001, 20_000).astype(np.float32)
    one, two = levelled(noise), levelled(noise * np.float32(10 ** (gain / 20)))
    np.testing.assert_allclose(two, one, atol=1e-4)
    np.testing.assert_allclose(levelled(one), one, atol=1e-5)


def test_silence_stays_silence() -> None:
    for sound in (np.zeros(0, np.float32), np.zeros(32_000, np.float32), np.full(32_000, 0.25, np.float32), at(SILENT - 1)):
        assert levelled(sound) is sound
    dither = (np.random.default_rng(0).integers(-1, 2, 32_000) / 32_768).astype(np.float32) * np.float32(0.9)
    assert levelled(dither) is dither
    assert levelled(at(SILENT + 1)) is not at(SILENT + 1)
    assert level(levelled(at(SILENT + 1))) == pytest.approx(LEVEL, abs=0.01)


@given(
    levels=st.lists(st.one_of(st.floats(-120, 40), st.just(-np.inf)), min_size=1, max_size=4),
    samples=st.integers(1, 12_000),
    offset=st.sampled_from([0.0, -0.3, 0.02]),
    seed=st.integers(0, 100),
)
def test_many_at_once_are_as_each_alone(levels: list[float], samples: int, offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = (
        rng.normal(0, 1, (len(levels), samples))
        * rng.uniform(0.1, 1, (len(levels), samples // 3_000 + 1)).repeat(3_000, 1)[:, :samples]
    )
    waveforms = (noise * 10 ** (np.array(levels)[:, None] / 20) + offset).astype(np.float32)
    given_ = waveforms.copy()
    out = levelled_rows(torch.from_numpy(waveforms)).numpy()
    np.testing.assert_array_equal(waveforms, given_)
    for got, waveform in zip(out, waveforms, strict=True):
        about = level(waveform, float(waveform.mean(dtype=np.float64)))
        if abs(about - SILENT) > 0.01:  # or rounding decides
            np.testing.assert_allclose(got, levelled(waveform), rtol=2e-5, atol=2e-6)


def test_an_encoder_hears_one_level_wherever_sounds_are_brought_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one before they are sent, and on a device all of a batch, but those that have silence put behind them."""
    encoder, rng = SmallCnn((8, 8)).eval(), np.random.default_rng(0)
    waves = [torch.from_numpy(0.01 * rng.normal(0, 1, n).astype(np.float32) + 0.2) for n in (100, 40_000, 64_000, 700, 64_000)]
    expected = inference.pooled_features(encoder, [torch.from_numpy(levelled(wave.numpy())) for wave in waves])
    here = inference.pooled_features(encoder, waves, level=True)
    many, at_once = [], inference.levelled_rows

    def noted(waveforms: torch.Tensor) -> torch.Tensor:
        many.append(tuple(waveforms.shape))
        return at_once(waveforms)

    monkeypatch.setattr(inference, "_levels", lambda device: True)
    monkeypatch.setattr(inference, "levelled_rows", noted)
    there = inference.pooled_features(encoder, waves, level=True)
    assert many == [(1, 40_000), (2, 64_000)]
    torch.testing.assert_close(here, expected, rtol=0, atol=0)
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(inference.pooled_features(encoder, waves), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", True), ("cpu", False), ("mps", False)])
def test_sounds_are_brought_to_a_level_where_there_is_float64(device: str, expected: bool) -> None:
    """A Mac's GPU has none."""
    assert inference._levels(torch.device(device)) is expected


@pytest.mark.parametrize("there", [False, True])
def test_an_encoder_hears_arrays_of_any_layout_and_type(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(inference, "_levels", lambda device: there)
    encoder = SmallCnn((8, 8)).eval()
    wave = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    fixed = wave.copy()
    fixed.flags.writeable = False
    backwards = wave[::-1].copy()
    given_ = [wave, fixed, wave.repeat(2)[::2], backwards[::-1], wave.astype(">f4"), wave.astype(np.float64)]
    expected = inference.pooled_features(encoder, [torch.from_numpy(levelled(wave))])
    for each in given_:
        before = each.copy()
        torch.testing.assert_close(pool_clips(encoder, [each], torch.device("cpu")), expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(each, before)


def test_the_loudest_part_decides_for_all_of_it() -> None:
    """The silence around a bark is raised with the bark, not to a level of its own."""
    bark = np.concatenate([at(-70, 2), at(-50, 0.5), at(-70, 2)])
    out = levelled(bark)
    np.testing.assert_allclose(out, bark * np.float32(10 ** ((LEVEL + 50) / 20)), rtol=1e-3, atol=1e-5)


def test_the_encoders_hear_a_quiet_recording_as_they_hear_it_at_full_level(tmp_path: Path) -> None:
    """By the shipped model at search, and in the log-mels that training reads."""
    clip = load_audio(Path(__file__).parents[1] / "examples" / "clips" / "dog_barking.ogg")
    model = load_retriever(shipped_model(), "cpu")
    whole, quiet, beside, loud, levelled_too = model.embed_audio(
        [clip, 0.01 * clip, 0.01 * clip + 0.3, 30 * clip, levelled(clip)]
    )
    for other in (quiet, beside, loud, levelled_too):
        assert whole @ other > 0.999

    for name, gain in (("full", 0.2), ("quiet", 0.005)):
        write(tmp_path / "given" / f"{name}.wav", gain * clip.astype(np.float64), 32_000)
    table(tmp_path / "given" / "c.csv", "file,caption,split", [[f"{name}.wav", "a dog", "train"] for name in ("full", "quiet")])
    prepare_folder(tmp_path / "data" / "dogs", tmp_path / "given", workers=1)
    logmels = cached_logmels(load_dataset(tmp_path / "data", "dogs"), "train", 640)
    full, quiet = (logmels.whole([index])[0].numpy() for index in (0, 1))
    heard = full > full.max() - 30  # what the steps of 16 bits do not hide in the quiet one
    assert heard.any()
    np.testing.assert_allclose(quiet[heard], full[heard], atol=2)


def test_what_was_embedded_in_another_way_is_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of before levels were brought into the range is of the same weights, and its vectors do not compare."""
    for number in range(2):
        write(tmp_path / "clips" / f"{number}.wav", sine(1, 32_000, 300 + 200 * number, 0.001), 32_000)
    index = FolderIndex(tmp_path / "clips")
    with monkeypatch.context() as before:
        before.setattr(diffatr_cli.model, "HEARING", "as it is")
        before.setattr(inference, "levelled", lambda waveform: waveform)
        old = load_retriever(shipped_model(), "cpu")
        assert index.update(old).embedded == 2
        unlevelled = index.read(old.model_id).vectors
    model = load_retriever(shipped_model(), "cpu")
    report = index.update(model)
    assert (report.embedded, report.reused, report.unchanged) == (2, 0, 0)
    found = index.read(model.model_id)
    heard = model.embed_audio([load_audio(tmp_path / "clips" / path) for path in found.paths])
    np.testing.assert_allclose(found.vectors, heard, atol=1e-3)
    assert (abs(found.vectors - unlevelled).max(1) > 0.01).all()
    assert index.update(model).embedded == 0
