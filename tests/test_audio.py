"""Decoding, and the prepared WAV files."""

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

from diffatr_cli.data.audio import AudioError, load_audio
from diffatr_cli.data.manifest import read_piece
from diffatr_cli.data.write_wav import to_pcm16, wav_size, write_wav

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
    np.testing.assert_array_equal(to_pcm16(pcm.astype(np.float32) / 32_768), pcm)


def test_prepared_files_are_plain_wav_and_read_in_pieces(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 10_000).astype(np.int16)
    path = tmp_path / "sub" / "a.wav"
    write_wav(path, pcm)
    assert path.stat().st_size == wav_size(10_000)
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
    assert to_pcm16(np.array([2, -2, 1, -1], np.float32)).tolist() == [32_767, -32_768, 32_767, -32_768]


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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"diffatr\[audio\]"):
        load_audio(path)
