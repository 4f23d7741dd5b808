"""From a source to a prepared WAV file: kept or skipped, and what is told of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import shorten, sine, table, tone, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffatr_cli.data import convert
from diffatr_cli.data.audio import load_audio
from diffatr_cli.data.convert import Converter
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.write_wav import PcmCounter, to_pcm16


def test_a_long_recording_is_written_as_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than are held back give the same file as few."""
    path = write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 20 * 44_100), 44_100)
    few = Converter()(str(path), tmp_path / "few.wav")
    monkeypatch.setattr(convert, "_HELD", 1)
    many = Converter()(str(path), tmp_path / "many.wav")
    assert few == many
    assert few.frames == 20 * 32_000
    assert (tmp_path / "few.wav").read_bytes() == (tmp_path / "many.wav").read_bytes()
    pcm, _ = soundfile.read(tmp_path / "many.wav", dtype="int16")
    np.testing.assert_array_equal(pcm, to_pcm16(load_audio(path)))
    assert many.md5 == hashlib.md5(pcm.tobytes()).hexdigest()


@pytest.mark.parametrize("held", [1, 1000])
def test_a_recording_cut_short_is_skipped_or_kept_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(convert, "_HELD", held)
    path = shorten(write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 40 * 8000), 8000), 0.5)
    target = tmp_path / "out.wav"
    assert Converter()(str(path), target).skipped == "truncated"
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))
    outcome = Converter(partial="keep")(str(path), target)
    assert (outcome.skipped, outcome.partial, outcome.notes) == (None, "truncated", ("20.0 s of 40.0 s are there",))
    assert outcome.frames == pytest.approx(20 * 32_000, abs=100)


@pytest.mark.parametrize("held", [1, 1000])
def test_what_is_silent_to_its_end_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(convert, "_HELD", held)
    for value, rate in ((0.0, 8000), (0.25, 32_000)):
        path = write(tmp_path / "a.wav", np.full(40 * rate, value), rate)
        assert Converter()(str(path), tmp_path / "out.wav").skipped == "silent"
        assert not list(tmp_path.glob("*out.wav*"))


@given(arrays(np.float32, st.integers(0, 200), elements=st.floats(-4, 4, width=32)), st.integers(0, 200))
def test_clipping_is_counted(samples: np.ndarray, cut: int) -> None:
    counter = PcmCounter()
    pcm = np.concatenate([counter(samples[:cut]), counter(samples[cut:])])
    exact = np.rint(samples.astype(np.float64) * 32_768)
    np.testing.assert_array_equal(pcm, np.clip(exact, -32_768, 32_767))
    # +1.0 is no clipping: one step of 65536 is less than rounding is elsewhere.
    assert counter.clipped == np.count_nonzero(np.abs(samples.astype(np.float64) * 32_768) > 32_768.5)
    assert counter.frames == len(samples)
    assert counter.silent == (len(samples) == 0 or np.ptp(pcm.astype(int)) == 0)


def test_the_report_says_what_was_clipped_cut_and_put_right(tmp_path: Path) -> None:
    given_ = tmp_path / "given"
    tone(given_ / "good.wav")
    write(given_ / "hot.wav", 2.5 * sine(1, 32_000), 32_000, subtype="FLOAT")
    write(given_ / "integers.wav", 32_767 * sine(1, 32_000), 32_000, subtype="FLOAT")
    shorten(write(given_ / "cut.wav", sine(1, 32_000), 32_000))
    names = ["good.wav", "hot.wav", "integers.wav", "cut.wav"]
    table(given_ / "c.csv", "file,caption,split", [[name, f"a {name}", "train"] for name in names])
    report = prepare_folder(tmp_path / "data" / "set", given_, workers=1)
    assert (report.clips, report.clipped, report.partial) == (3, 1, 0)
    assert [skip.reason for skip in report.skipped] == ["truncated"]
    share = 100 * np.count_nonzero(np.abs(2.5 * sine(1, 32_000)) > 1.0) / 32_000
    assert report.notes == [
        f"1 clip louder than full scale is clipped, train/hot.wav the most ({share:.2g} % of it)",
        "1 recording is not quite as the header says, such as train/integers.wav: "
        "its samples are on the scale of integers, and were divided by 32768",
    ]
    report = prepare_folder(tmp_path / "data" / "kept", given_, workers=1, partial="keep")
    assert (report.clips, report.partial) == (4, 1)
    assert "1 clip is what is left of recordings cut short, such as train/cut.wav" in report.notes
    assert report.to_json()["clipped"] == 1
