"""Frames of MPEG audio: counted one by one, and handed to the decoder with a header that tells the count."""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import sine
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.data.audio import AudioError, load_audio, open_sound
from diffatr_cli.data.excerpt import read_excerpt
from diffatr_cli.data.mpeg_frames import read_runs

BITRATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
"""Of MPEG 1 layer 3, kbit/s."""
TAG2 = b"ID3\4\0\0\0\0\1\0" + bytes(range(1, 129))
TAG1 = b"TAG" + b"title".ljust(125)


def frame(bits: int, padding: int = 0, mono: bool = True) -> bytes:
    """One frame of 44.1 kHz, MPEG 1 layer 3, without sound in it."""
    header = 0xFFFB_0000 | bits + 1 << 12 | padding << 9 | (0xC0 if mono else 0)
    return struct.pack(">I", header).ljust(144 * BITRATES[bits] * 1000 // 44_100 + padding, b"\0")


def xing(frames: int, mono: bool = True) -> bytes:
    out = bytearray(frame(8, mono=mono))
    out[(21 if mono else 36) : (21 if mono else 36) + 12] = struct.pack(">4sII", b"Xing", 1, frames)
    return bytes(out)


def mp3(seconds: float = 2, rate: int = 44_100, hz: float = 1000, channels: int = 1, mode: str = "VARIABLE") -> bytes:
    stream = io.BytesIO()
    sound = np.stack([sine(seconds, rate, hz)] * channels, 1)
    soundfile.write(stream, sound, rate, format="MP3", bitrate_mode=mode)
    return stream.getvalue()


def bare(content: bytes) -> bytes:
    """Without the frame that holds the Xing header: as recorders write it, who cannot go back."""
    header = int.from_bytes(content[:4])
    rate = (44_100, 48_000, 32_000)[header >> 10 & 3]
    assert header >> 19 & 3 == 3, "MPEG 1"
    return content[144 * BITRATES[(header >> 12 & 15) - 1] * 1000 // rate + (header >> 9 & 1) :]


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


frames = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 1)), min_size=4, max_size=30)
junk = st.sampled_from([b"", TAG2, b"hello world " * 100, bytes(999)])


@given(runs=st.lists(st.tuples(frames, st.booleans(), junk), min_size=1, max_size=4), lead=junk, end=st.sampled_from([b"", TAG1]))
def test_every_frame_is_counted_and_nothing_else(runs, lead, end) -> None:
    content, wanted, lost, mono = lead, [], len(lead) if lead[:1] == b"h" else 0, False
    for some, counted, between in runs:
        mono = not mono  # a change of channels begins another recording
        if counted:
            content += xing(len(some), mono)
        wanted.append((len(some), len(some) if counted else None))
        content += b"".join(frame(*each, mono) for each in some) + between
        lost += len(between) if between[:1] == b"h" else 0
    content += end
    found, left_out = read_runs(io.BytesIO(content), 0, len(content))
    assert [(run.frames, run.announced) for run in found] == wanted
    assert left_out == lost
    spans = [span for run in found for span in run.spans]
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(content[first : first + 2] == b"\xff\xfb" for first, _ in spans)
    # Each as a file of its own has its frames and the right count.
    for run in found:
        alone = b"".join(piece if isinstance(piece, bytes) else content[slice(*piece)] for piece in run.pieces())
        (again,), rest = read_runs(io.BytesIO(alone), 0, len(alone))
        assert (again.frames, again.announced, rest, again.untouched) == (run.frames, run.frames, 0, True)


@pytest.mark.parametrize("count", [1, 5])
def test_a_count_of_fraunhofers_encoder_begins_another_recording(count: int) -> None:
    """Behind one frame or more of the recording before, of which none lacks."""
    info = bytearray(frame(8))
    info[36:54] = struct.pack(">4sHHHII", b"VBRI", 1, 0, 75, 0, 7)
    content = frame(8) * count + bytes(info) + frame(8) * 7
    found, left_out = read_runs(io.BytesIO(content), 0, len(content))
    assert [(run.frames, run.announced) for run in found] == [(count, None), (7, 7)]
    assert left_out == 0


@given(st.binary(max_size=3000), st.binary(max_size=5))
def test_other_bytes_are_no_frames(noise: bytes, head: bytes) -> None:
    found, _ = read_runs(io.BytesIO(head + noise), 0, len(head + noise))
    assert sum(run.frames for run in found) * 24 <= len(head + noise)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_without_a_header_all_of_it_is_read(tmp_path: Path, mode: str) -> None:
    """libsndfile guesses the length from the first frames, and stopped there."""
    noise = np.concatenate([np.zeros(3 * 44_100), np.random.default_rng(0).normal(0, 0.3, 3 * 44_100)])
    stream = io.BytesIO()
    soundfile.write(stream, noise, 44_100, format="MP3", bitrate_mode=mode)
    path = put(tmp_path / "a.mp3", bare(stream.getvalue()))
    samples = load_audio(path)
    assert len(samples) == pytest.approx(6 * 32_000, abs=3000)
    assert np.abs(samples[-32_000:]).std() > 0.05


@pytest.mark.parametrize("between", [b"", TAG2, TAG1 + TAG2])
def test_joined_files_are_read_to_the_end(tmp_path: Path, between: bytes) -> None:
    one, two, three = mp3(2, hz=1000), mp3(1, 32_000, hz=2000), mp3(1, hz=3000, channels=2)
    path = put(tmp_path / "a.mp3", one + between + two + between + three)
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound.blocks()))
        assert (sound.partial, sound.notes) == (None, [])
    assert sound.duration() == pytest.approx(4, abs=1e-3)
    assert len(samples) == pytest.approx(4 * 32_000, abs=3)
    for start, hz in ((0.5, 1000), (2.25, 2000), (3.25, 3000)):
        part = samples[round(start * 32_000) :][:16_000]
        assert 2 * np.abs(np.fft.rfft(part)).argmax() == hz


def test_a_rate_that_changes_without_a_word_is_heard(tmp_path: Path) -> None:
    path = put(tmp_path / "a.mp3", bare(mp3(2, 44_100, 1000)) + bare(mp3(3, 48_000, 1000)) + bare(mp3(1, 32_000, 1000)))
    samples = load_audio(path)
    assert len(samples) == pytest.approx(6 * 32_000, abs=5000)
    for start in range(6):
        part = samples[round((start + 0.4) * 32_000) :][:16_000]
        assert 2 * np.abs(np.fft.rfft(part)).argmax() == 1000


def test_a_cut_file_is_known_by_its_header_only(tmp_path: Path) -> None:
    content = mp3()
    stump = put(tmp_path / "a.mp3", content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"truncated$"):
        load_audio(stump)
    with open_sound(stump) as sound:
        kept = sum(map(len, sound.blocks()))
    assert 0.4 < kept / 64_000 < 0.6
    assert sound.notes == ["0.9 s of 2.0 s are there"] or sound.notes == ["1.0 s of 2.0 s are there"]
    assert len(load_audio(put(tmp_path / "b.mp3", bare(content)[: len(content) // 2]))) > 20_000


def test_junk_between_frames_is_left_out_and_named(tmp_path: Path) -> None:
    content = bare(mp3())
    with open_sound(put(tmp_path / "a.mp3", content + b"hello world " * 100 + content)) as sound:
        assert sum(map(len, sound.blocks())) == pytest.approx(4 * 32_000, abs=3000)
    assert sound.notes == ["1200 bytes between its frames are no sound and left out"]


def test_mp3_inside_a_wav_file(tmp_path: Path) -> None:
    content = mp3()
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2, 417, 1, 1393)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(content)) + content
    path = put(tmp_path / "a.wav", b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(load_audio(path)) == pytest.approx(2 * 32_000, abs=3)


def test_layer_two(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp2"), "w", format="mp2") as out:
        stream = out.add_stream("mp2", rate=44_100, layout="mono")
        sound = (sine(2, 44_100) * 32_767).astype(np.int16)[None]
        for first in range(0, sound.shape[1] - 1151, 1152):
            piece = av.AudioFrame.from_ndarray(sound[:, first : first + 1152].copy(), format="s16", layout="mono")
            piece.sample_rate = 44_100
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    assert len(load_audio(tmp_path / "a.mp2")) == pytest.approx(2 * 32_000, abs=1000)


@pytest.mark.parametrize("content", ["bare", "counted", "joined"])
def test_any_stretch_of_a_long_recording_is_where_it_is_in_the_whole(tmp_path: Path, content: str) -> None:
    """Thousands of frames, so that reading begins at a mark in the middle."""
    noise = np.random.default_rng(0).normal(0, 1, 90 * 44_100)
    stream = io.BytesIO()
    soundfile.write(stream, np.convolve(noise, np.ones(40) / 60, "same"), 44_100, format="MP3", bitrate_mode="VARIABLE")
    one = stream.getvalue()
    path = put(tmp_path / "a.mp3", {"bare": bare(one), "counted": one, "joined": mp3(5) + one}[content])
    with path.open("rb") as file:
        assert len(read_runs(file, 0, path.stat().st_size)[0][-1].marks) == 4
    whole = load_audio(path)
    for start in (0.0, 1.0, 20.0, 26.7, 27.5, 60.0, 88.0):
        part = read_excerpt(path, start, start + 0.5)
        assert len(part) == 16_000
        first = round(start * 32_000)
        np.testing.assert_allclose(part[300:-300], whole[first + 300 : first + 15_700], atol=1e-5)
