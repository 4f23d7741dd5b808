"""Sizes of chunks, read from the bytes: what is there, what is missing, and where the recording ends."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.data.audio import AudioError, load_audio, open_sound
from diffatr_cli.data.chunks import Chunks, read_chunks

RATE = 32_000
PCM = (8000 * np.sin(np.arange(2 * RATE) / 10)).astype("<i2").tobytes()
COMMENT = b"Luogo: Roma\nData: 20230415\nSSND : 99999999\n data size : 5\0"
"""What libsndfile copies into its log, where it looks like the log's own words."""


def chunk(name: bytes, body: bytes, size: int | None = None, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def wav(
    pcm: bytes = PCM,
    rate: int = RATE,
    channels: int = 1,
    before: bytes = b"",
    after: bytes = b"",
    size: int | None = None,
    riff: int | None = None,
    kind: bytes = b"RIFF",
    tag: int = 1,
    bits: int = 16,
) -> bytes:
    order = ">" if kind == b"RIFX" else "<"
    frame = channels * bits // 8
    fmt = struct.pack(f"{order}HHIIHH", tag, channels, rate, rate * frame & 0xFFFF_FFFF, frame & 0xFFFF, bits)
    body = b"WAVE" + before + chunk(b"fmt ", fmt, None, order) + chunk(b"data", pcm, size, order) + after
    return kind + struct.pack(f"{order}I", len(body) if riff is None else riff) + body


def rf64(pcm: bytes = PCM, size: int | None = None, kind: bytes = b"RF64") -> bytes:
    ds64 = struct.pack("<QQQI", len(pcm) + 72, len(pcm) if size is None else size, len(pcm) // 2, 0)
    return wav(pcm, before=chunk(b"ds64", ds64), size=0xFFFF_FFFF, riff=0xFFFF_FFFF, kind=kind)


def aiff(pcm: bytes = PCM, size: int | None = None, frames: int | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    big = np.frombuffer(pcm, "<i2").astype(">i2").tobytes()
    rate = b"\x40\x0d\xfa\x00" + bytes(6)  # 32000 as an 80-bit float
    described = struct.pack(">HIH", 1, len(pcm) // 2 if frames is None else frames, 16) + rate
    sound = chunk(b"SSND", bytes(8) + big, None if size is None else size, ">")
    body = b"AIFF" + before + chunk(b"COMM", described, None, ">") + sound + after
    return b"FORM" + struct.pack(">I", len(body)) + body


def caf(pcm: bytes = PCM, size: int | None = None, before: bytes = b"") -> bytes:
    described = struct.pack(">d4sIIIII", RATE, b"lpcm", 2, 2, 1, 1, 16)
    data = b"data" + struct.pack(">q", len(pcm) + 4 if size is None else size) + bytes(4) + pcm
    return b"caff\0\1\0\0" + b"desc" + struct.pack(">q", 32) + described + before + data


def au(pcm: bytes = PCM, size: int | None = None) -> bytes:
    big = np.frombuffer(pcm, "<i2").astype(">i2").tobytes()
    return b".snd" + struct.pack(">5I", 28, len(pcm) if size is None else size, 3, RATE, 1) + b"note" + big


def w64(pcm: bytes = PCM, size: int | None = None) -> bytes:
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    data = b"data" + tail + struct.pack("<Q", 24 + len(pcm) if size is None else size) + pcm
    body = b"wave" + tail + b"fmt " + tail + struct.pack("<Q", 40) + fmt + data
    return b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000") + struct.pack("<Q", 24 + len(body)) + body


def nist(pcm: bytes = PCM, frames: int | None = None) -> bytes:
    fields = ("channel_count", 1), ("sample_rate", RATE), ("sample_n_bytes", 2), ("sample_sig_bits", 16)
    lines = [f"{name} -i {value}" for name, value in (*fields, ("sample_count", len(pcm) // 2 if frames is None else frames))]
    head = "\n".join(["NIST_1A", "   1024", *lines, "sample_coding -s3 pcm", "sample_byte_format -s2 01", "end_head", ""])
    return head.encode().ljust(1024) + pcm


FORMS = {"WAV": wav, "RF64": rf64, "AIFF": aiff, "CAF": caf, "AU": au, "W64": w64, "NIST": nist}
UNKNOWN = {  # what each writes for a size that it does not know, or did not live to write
    "a crash, WAV": wav(size=0, riff=0),
    "a crash, big-endian WAV": wav(np.frombuffer(PCM, "<i2").astype(">i2").tobytes(), size=0, riff=0, kind=b"RIFX"),
    "a crash, extended WAV": rf64(size=0),
    "a crash, Broadcast Wave 64": rf64(size=0, kind=b"BW64"),
    "a crash, AIFF": aiff(size=0, frames=0),
    "a crash, CAF": caf(size=0),
    "a crash, AU": au(size=0),
    "a crash, W64": w64(size=0),
    "a pipe, WAV": wav(size=0xFFFF_FFFF, riff=0xFFFF_FFFF),
    "a pipe, SoX": wav(size=0x7FFF_F000, riff=0x7FFF_F024),
    "a pipe, arecord": wav(size=0x8000_0000, riff=0x8000_0024),
    "a pipe, CAF": caf(size=-1),
    "a pipe, AU": au(size=0xFFFF_FFFF),
}


def layout(content: bytes) -> Chunks:
    found = read_chunks(io.BytesIO(content), 0, len(content))
    assert found is not None
    return found


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_its_stump_is_known(tmp_path: Path, form: str) -> None:
    content = FORMS[form]()
    found = layout(content)
    assert (found.form, found.channels, found.rate, found.byte_rate) == (form, 1, RATE, 2 * RATE)
    assert (found.announced, found.present, found.missing, found.end) == (len(PCM), len(PCM), 0, len(content))
    expected = np.frombuffer(PCM, "<i2") / np.float32(32_768)
    np.testing.assert_array_equal(load_audio(put(tmp_path / "whole", content)), expected)
    stump = put(tmp_path / "stump", content[: len(content) - len(PCM) // 2])
    with pytest.raises(AudioError, match=r"truncated$"):
        load_audio(stump)
    np.testing.assert_array_equal(load_audio(stump, partial="keep"), expected[: len(expected) // 2])
    with open_sound(stump) as sound:
        list(sound.blocks())
    assert (sound.partial, sound.notes) == ("truncated", ["1.0 s of 2.0 s are there"])


@pytest.mark.parametrize("form", FORMS)
@given(lacking=st.integers(0, len(PCM) - 2))
def test_a_recording_is_cut_for_more_than_a_twentieth_of_a_second(form: str, lacking: int) -> None:
    content = FORMS[form]()
    found = layout(content[: len(content) - lacking])
    assert found.present == len(PCM) - lacking
    assert found.missing == (lacking if lacking >= 0.05 * 2 * RATE else 0)


@pytest.mark.parametrize("writer", UNKNOWN)
def test_sizes_that_nobody_knew_are_read_to_the_end(tmp_path: Path, writer: str) -> None:
    path = put(tmp_path / "a.wav", UNKNOWN[writer])
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound.blocks()))
    np.testing.assert_array_equal(samples, np.frombuffer(PCM, "<i2") / np.float32(32_768))
    assert sound.partial is None
    assert sound.duration() == 2
    # W64 and AIFF are mended by libsndfile without a word.
    noted = "crash" in writer and not writer.endswith(("AIFF", "W64"))
    assert [note[:23] for note in sound.notes] == ["the size in its header "] * noted


@pytest.mark.parametrize("make", [wav, aiff, caf, au])
def test_sizes_a_little_too_large_make_nothing_short(tmp_path: Path, make) -> None:
    for more in (8, 44, 512, 2000):
        size = len(PCM) + more + (8 if make is aiff else 4 if make is caf else 0)
        assert len(load_audio(put(tmp_path / "a", make(size=size)))) == 2 * RATE


def test_words_in_comments_are_only_words(tmp_path: Path) -> None:
    info = chunk(b"LIST", b"INFO" + chunk(b"ICMT", COMMENT))
    note = chunk(b"ANNO", COMMENT, None, ">")
    text = b"info" + struct.pack(">q", 4 + len(b"comments\0" + COMMENT)) + b"\0\0\0\1comments\0" + COMMENT
    for name, content in {
        "before.wav": wav(before=info),
        "behind.wav": wav(after=info),
        "before.aiff": aiff(before=note),
        "behind.aiff": aiff(after=note),
        "before.caf": caf(before=text),
    }.items():
        with open_sound(put(tmp_path / name, content)) as sound:
            assert sum(map(len, sound.blocks())) == 2 * RATE
            assert (sound.partial, sound.notes) == (None, [])


names = st.sampled_from([b"JUNK", b"bext", b"LIST", b"id3 ", b"cue ", b"iXML", b"data"[::-1]])
chunks = st.lists(st.tuples(names, st.binary(max_size=50)), max_size=4)


@given(before=chunks, after=chunks, samples=st.integers(0, 200))
def test_chunks_around_the_samples_change_nothing(before, after, samples: int) -> None:
    before, after = (b"".join(chunk(*each) for each in some) for some in (before, after))
    pcm = b"\1\2" * samples
    content = wav(pcm, before=before, after=after)
    found = layout(content)
    assert found.first == 12 + len(before) + 24 + 8
    assert (found.announced, found.present, found.end, found.notes, found.head) == (len(pcm), len(pcm), len(content), (), None)


@given(st.sampled_from(sorted(FORMS)), st.data())
def test_any_bytes_give_an_answer(form: str, data) -> None:
    """Of headers with any four bytes changed: nothing but a layout within the file, or none."""
    content = bytearray(FORMS[form](PCM[:64]))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    content = content[: data.draw(st.integers(0, len(content)))]
    found = read_chunks(io.BytesIO(bytes(content)), 0, len(content))
    if found is not None:
        assert found.present >= 0
        assert found.first + found.present <= max(len(content), found.first)
        assert found.missing >= 0
        assert found.end <= len(content)


def test_recordings_joined_by_cat_are_read_on(tmp_path: Path) -> None:
    other = wav(PCM[: RATE // 2], rate=16_000, after=chunk(b"LIST", b"INFO"))
    assert len(load_audio(put(tmp_path / "a.wav", wav() + other + wav()))) == 2 * RATE + RATE // 2 + 2 * RATE


def test_bytes_behind_the_samples_are_named(tmp_path: Path) -> None:
    with open_sound(put(tmp_path / "a.wav", wav() + bytes([1, 2, 3, 4]) * 1000)) as sound:
        assert sum(map(len, sound.blocks())) == 2 * RATE
    assert sound.notes == ["4000 bytes behind the samples are not read"]


def test_more_than_four_gigabytes_in_a_plain_wav(tmp_path: Path) -> None:
    """The size wraps around at 2^32. The file has a hole, so that it takes no room."""
    head = wav(b"", size=1000, riff=1036)
    path = put(tmp_path / "a.wav", head)
    os.truncate(path, len(head) + (1 << 32) + 1000)
    with open_sound(path) as sound:
        assert sound.duration() == pytest.approx(((1 << 32) + 1000) / 2 / RATE)
        assert len(sound.excerpt(67_100, 67_101)) == RATE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(PCM[:2000], rate=0), "a sample rate of 0 Hz"),
        (wav(PCM[:2000], rate=999), "a sample rate of 999 Hz"),
        (wav(PCM[:2000], rate=768_001), "a sample rate of 768001 Hz"),
        (wav(PCM[:2000], rate=2**32 - 1), "a sample rate of 4294967295 Hz"),
        (caf().replace(struct.pack(">d", RATE), struct.pack(">d", float("nan"))), "a sample rate of 0 Hz"),
        (caf().replace(struct.pack(">d", RATE), struct.pack(">d", 1e300)), "a sample rate of 1000000000"),
        (wav(PCM[:2000], channels=0), "a header that says 0 channels"),
        (wav(PCM[:2000], channels=65_535), "a header that says 65535 channels"),
        (wav(PCM[:100], channels=1000, size=4000), "1000 channels, and not one sample of each"),
    ],
)
def test_what_a_header_asks_for_in_vain(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        load_audio(put(tmp_path / "a.wav", content))
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("rate", [1000, 768_000])
def test_the_lowest_and_the_highest_rate(tmp_path: Path, rate: int) -> None:
    samples = np.full(rate // 2, 4096, "<i2").tobytes()
    assert len(load_audio(put(tmp_path / "a.wav", wav(samples, rate=rate)))) == RATE // 2
