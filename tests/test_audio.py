"""Decoding, resampling and the prepared WAV files."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import bad_files, shorten, sine, tone, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffatr_cli.data import audio
from diffatr_cli.data.audio import AudioError, load_audio, resample
from diffatr_cli.data.manifest import read_piece
from diffatr_cli.errors import UsageError

FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "aiff": {},
    "au": {},
    "w64": {},
}
RESAMPLERS = ["polyphase", *(name for name in ("soxr", "resampy") if importlib.util.find_spec(name))]


def level(samples: np.ndarray, hz: float) -> float:
    """Amplitude of a sine of that frequency in the middle of the samples."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return float(2 * abs(np.mean(middle * np.exp(-2j * np.pi * hz * np.arange(len(middle)) / 32_000))))


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_decodes_and_its_stump_is_truncated(tmp_path: Path, ending: str) -> None:
    rate = 48_000 if ending == "opus" else 44_100
    noise = np.random.default_rng(0).normal(0, 0.01, 2 * rate)  # so that cutting off bytes cuts off sound
    path = write(tmp_path / f"a.{ending}", sine(2, rate) + noise, rate, **FORMATS[ending])
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 64_000) <= 8
    assert level(samples, 1000) == pytest.approx(0.5, rel=0.02)
    for share in (0.5, 0.95):
        stump = tmp_path / f"{share}.{ending}"
        stump.write_bytes(path.read_bytes())
        with pytest.raises(AudioError) as caught:
            load_audio(shorten(stump, share))
        assert caught.value.reason.startswith("truncated"), caught.value


def test_bad_files_are_refused_in_one_line_with_the_name(tmp_path: Path) -> None:
    reasons = bad_files(tmp_path)
    for name in ("silent.wav", "one sample.wav"):  # decodable; `prepare` leaves them out
        assert len(load_audio(tmp_path / name)) > 0
        del reasons[name]
    for name, reason in reasons.items():
        with pytest.raises(AudioError) as caught:
            load_audio(tmp_path / name)
        assert caught.value.reason.startswith(reason)
        assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"
        assert "\n" not in str(caught.value)
        copy = pickle.loads(pickle.dumps(caught.value))  # as it comes back from a worker
        assert (str(copy), copy.reason) == (str(caught.value), caught.value.reason)
    with pytest.raises(AudioError, match="folder"):
        load_audio(tmp_path)


def test_a_writer_to_a_pipe_does_not_know_the_length_and_is_believed(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert len(load_audio(path)) == 16_000


def test_an_mp3_without_a_frame_count_is_no_truncated_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sine(2, 44_100), 44_100, bitrate_mode="CONSTANT")
    content = path.read_bytes()
    second = content.find(content[:2], max(content.find(b"Info"), content.find(b"Xing")))
    path.write_bytes(content[second:] + b"TAG" + bytes(125))
    assert level(load_audio(path), 1000) == pytest.approx(0.5, rel=0.02)


def test_channels_are_averaged(tmp_path: Path) -> None:
    gains = np.array([0.1, -0.2, 0.3, 0.05, 0.25, 0.4, -0.1, 0.2])
    path = write(tmp_path / "8.wav", sine(0.5, 32_000)[:, None] * gains, 32_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path), sine(0.5, 32_000) * gains.mean(), atol=1e-7)


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_sine_stays_the_same_sine(rate: int, resampler: audio.Resampler) -> None:
    hz = 0.4 * min(rate, 32_000) * 0.8
    samples = resample(sine(1, rate, hz).astype(np.float32), rate, resampler)
    assert abs(len(samples) - 32_000) <= 1
    expected = sine(1, 32_000, hz)
    np.testing.assert_allclose(samples[4000:28_000], expected[4000:28_000], atol=1e-3)


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_no_mel_band_loses_a_hundredth_of_a_decibel(rate: int, resampler: audio.Resampler) -> None:
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


def test_polyphase_is_the_windowed_sinc_at_every_output() -> None:
    """Sample by sample from the formula, for rates with long and short periods, in the middle and at both ends."""
    for rate in (44_100, 48_000, 37_800, 8000, 11_025, 31_999):
        samples = np.random.default_rng(0).normal(0, 1, 700).astype(np.float32)
        found = resample(samples, rate, "polyphase")
        assert len(found) == 700 * 32_000 // rate
        crossings, beta, rolloff = (32, 10.0, 0.94) if rate > 32_000 else (64, 8.0, 0.99)
        scale = min(1, 32_000 / rate)
        for n in (0, 1, 50, len(found) // 2, len(found) - 1):
            u = (np.arange(700) - n * rate / 32_000) * scale
            window = np.where(abs(u) <= crossings, np.i0(beta * np.sqrt(np.maximum(0, 1 - (u / crossings) ** 2))), 0) / np.i0(
                beta
            )
            assert found[n] == pytest.approx(np.sum(samples * scale * rolloff * np.sinc(rolloff * u) * window), abs=1e-4)


@given(st.integers(0, 3000), st.sampled_from([8000, 44_100, 48_000, 96_000, 44_056]))
def test_any_length_can_be_resampled(length: int, rate: int) -> None:
    """And silence around a sound does not change it."""
    samples = np.random.default_rng(length).normal(0, 1, length).astype(np.float32)
    found = resample(samples, rate)
    assert found.shape == (length * 32_000 // rate,)
    longer = resample(np.concatenate([samples, np.zeros(5000, np.float32)]), rate)
    np.testing.assert_allclose(longer[: len(found)], found, atol=1e-5)


def test_the_resampler_is_chosen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audio.choose_resampler("auto") == "polyphase"
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: None)
    assert audio.choose_resampler("auto") == "polyphase"
    with pytest.raises(UsageError, match="soxr is not installed"):
        audio.choose_resampler("soxr")
    with pytest.raises(UsageError, match="kaiser"):
        audio.choose_resampler("kaiser_fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [" Ambience Birds .wav", "-rf.wav", 'it\'s "quoted".wav', "🐕 wuff.flac", "a.b.c.ogg", b"caf\xe9.wav"]
)
def test_any_name_can_be_read(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / (name if isinstance(name, str) else os.fsdecode(name))
    source = tone(tmp_path / f"plain{path.suffix}")
    source.rename(path)
    assert len(load_audio(path)) == 16_000


@given(arrays(np.int16, st.integers(1, 300)))
def test_sixteen_bits_survive_the_way_there_and_back(pcm: np.ndarray) -> None:
    np.testing.assert_array_equal(audio.to_pcm16(pcm.astype(np.float32) / 32_768), pcm)


def test_prepared_files_are_plain_wav_and_read_in_pieces(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 10_000).astype(np.int16)
    path = tmp_path / "sub" / "a.wav"
    audio.write_wav(path, pcm)
    assert path.stat().st_size == audio.wav_size(10_000)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (32_000, 1, "PCM_16", 10_000)
    whole = read_piece(path)
    np.testing.assert_array_equal(whole, pcm / np.float32(32_768))
    for start, frames in ((0, 5), (17, 100), (9990, 100), (10_000, 5), (20_000, -1), (400, -1)):
        expected = whole[start:] if frames < 0 else whole[start : start + frames]
        np.testing.assert_array_equal(read_piece(path, start, frames), expected)
    with pytest.raises(AudioError, match=r"missing.*prepare"):
        read_piece(tmp_path / "b.wav")
    with pytest.raises(AudioError, match="32 kHz"):
        read_piece(tone(tmp_path / "c.wav", rate=16_000))
    assert audio.to_pcm16(np.array([2, -2, 1, -1], np.float32)).tolist() == [32_767, -32_768, 32_767, -32_768]


def test_m4a_by_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a b:c.m4a"
    with av.open(f"file:{path}", "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("aac", rate=44_100, layout="stereo")
        samples = np.stack([sine(2, 44_100), 0 * sine(2, 44_100)]).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    decoded = load_audio(path)
    assert len(decoded) == pytest.approx(64_000, abs=3000)
    assert level(decoded, 1000) == pytest.approx(0.25, rel=0.05)
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        load_audio(shorten(path, 0.5))
    (tmp_path / "text.m4a").write_text("no sound")
    with pytest.raises(AudioError, match="not audio"):
        load_audio(tmp_path / "text.m4a")
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"diffatr\[audio\]"):
        load_audio(path)
