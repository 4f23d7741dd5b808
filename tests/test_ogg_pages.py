"""Pages of Ogg files: links, and where a file ends too early. Vorbis by libsndfile, the rest by packets of our own."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import sine, write
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.data.audio import AudioError, load_audio, open_sound
from diffatr_cli.data.excerpt import duration, read_excerpt
from diffatr_cli.data.ogg_pages import read_links


def crc(page: bytes) -> int:
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ 0x04C1_1DB7 if register >> 31 else register << 1) & 0xFFFF_FFFF
    return register


def page(table: bytes, body: bytes, flags: int, granule: int, serial: int, number: int) -> bytes:
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(table)) + table
    return head[:22] + struct.pack("<I", crc(head + body)) + head[26:] + body


def pages(packets: list[tuple[bytes, int]], serial: int = 1, end_mark: bool = True) -> list[bytes]:
    """One packet a page, or several pages of a packet that needs them; each with the granule position after it."""
    out: list[bytes] = []
    for index, (packet, granule) in enumerate(packets):
        table = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        for first in range(0, len(table), 255):
            some = table[first : first + 255]
            last = first + 255 >= len(table)
            begin, final = index == first == 0, last and index == len(packets) - 1
            flags = (1 if first else 0) | 2 * begin | 4 * (final and end_mark)
            body = packet[255 * first : 255 * first + sum(some)]
            out.append(page(some, body, flags, granule if last else -1, serial, len(out)))
    return out


def vorbis(seconds: float = 2, rate: int = 44_100, hz: float = 1000) -> bytes:
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, format="OGG", subtype="VORBIS") as file:
        samples = sine(seconds, rate, hz)
        for start in range(0, len(samples), 10_000):
            file.write(samples[start : start + 10_000])
    return stream.getvalue()


def without_end_mark(content: bytes) -> bytes:
    at = content.rfind(b"OggS")
    last = bytearray(content[at:])
    last[5] &= ~4
    last[22:26] = bytes(4)
    last[22:26] = struct.pack("<I", crc(bytes(last)))
    return content[:at] + bytes(last)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


packets = st.lists(st.binary(max_size=10) | st.integers(0, 140_000).map(bytes), min_size=1, max_size=4)


@given(st.lists(packets, min_size=1, max_size=3), st.data())
def test_links_end_where_the_next_begins_and_cuts_are_seen(streams, data) -> None:
    made = [pages([(b"OpusHead", 0), *((packet, 960) for packet in some)]) for some in streams]
    content = b"".join(b"".join(each) for each in made)
    links = read_links(io.BytesIO(content), 0, len(content))
    ends = list(np.cumsum([sum(map(len, each)) for each in made]))
    assert [(link.first, link.end) for link in links] == list(zip([0, *ends[:-1]], ends, strict=True))
    assert all(link.codecs == ["opus"] and not link.cut and not link.lost for link in links)
    # Cut anywhere: whole only where a page ends and with it a packet.
    whole, at = set(), 0
    for each in (one for some in made for one in some):
        at += len(each)
        if each[26 + each[26]] != 255:
            whole.add(at)
    size = data.draw(st.integers(28, len(content)))
    assert read_links(io.BytesIO(content), 0, size)[-1].cut == (size not in whole)


def test_bytes_between_pages_are_counted_and_other_files_have_no_links() -> None:
    one = pages([(b"OpusHead", 0), (bytes(500), 960), (bytes(70_000), 1920)])
    content = one[0] + b"x" * 5000 + one[1] + b"OggS" + bytes([7]) * 100 + one[2]
    (link,) = read_links(io.BytesIO(content), 0, len(content))
    assert (link.lost, link.end, link.cut) == (5104, len(content), True)  # the last page is one of two
    assert read_links(io.BytesIO(b"RIFF" + content), 0, len(content)) == []


def test_a_recorder_leaves_the_end_mark_out_and_the_file_is_whole(tmp_path: Path) -> None:
    content = vorbis()
    for name, some in {"a.ogg": content, "b.ogg": without_end_mark(content)}.items():
        with open_sound(put(tmp_path / name, some)) as sound:
            assert sum(map(len, sound.blocks())) == 64_000
            assert (sound.partial, sound.notes) == (None, [])
    for share in (0.3, 0.9, 0.99):
        with pytest.raises(AudioError, match=r"truncated$"):
            load_audio(put(tmp_path / "c.ogg", content[: int(len(content) * share)]))


def test_chained_recordings_of_different_rates_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ogg", vorbis(2, 44_100, 1000) + vorbis(3, 22_050, 2000) + vorbis(1, 44_100, 3000))
    samples = load_audio(path)
    assert len(samples) == pytest.approx(6 * 32_000, abs=3)
    assert duration(path) == pytest.approx(6, abs=1e-3)
    for start, hz in ((0.5, 1000), (3, 2000), (5.3, 3000)):
        part = samples[round(start * 32_000) : round((start + 0.5) * 32_000)]
        assert 2 * np.abs(np.fft.rfft(part)).argmax() == hz  # bins of 2 Hz
        np.testing.assert_allclose(read_excerpt(path, start, start + 0.5)[100:-100], part[100:-100], atol=1e-2)
    assert len(read_excerpt(path, 1.5, 5.5)) == pytest.approx(4 * 32_000, abs=3)
    assert len(read_excerpt(path, 5.5, 9)) == pytest.approx(16_000, abs=3)


def test_chained_opus(tmp_path: Path) -> None:
    content = write(tmp_path / "one.opus", sine(1.5, 48_000), 48_000, format="OGG", subtype="OPUS").read_bytes()
    assert len(load_audio(put(tmp_path / "three.opus", 3 * content))) == pytest.approx(4.5 * 32_000, abs=3)


def ogg_flac(samples: np.ndarray, rate: int) -> bytes:
    """FLAC in Ogg, which libsndfile does not read: packets of a FLAC file cut at its frames' sync codes."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    flac = stream.getvalue()
    at, blocks = 4, []
    while not blocks or not blocks[-1][0] & 128:
        length = 4 + int.from_bytes(flac[at + 1 : at + 4])
        blocks.append(flac[at : at + length])
        at += length
    starts = [i for i in range(at, len(flac) - 5) if flac[i : i + 2] == b"\xff\xf8" and flac[i + 2] == flac[at + 2]]
    frames = [flac[i:j] for i, j in zip(starts, [*starts[1:], len(flac)], strict=True)]
    head = b"\x7fFLAC\1\0" + struct.pack(">H", len(blocks) - 1) + b"fLaC" + blocks[0]
    count = round(len(samples) / len(frames))
    sounds = [(frame, min((i + 1) * count, len(samples))) for i, frame in enumerate(frames)]
    return b"".join(pages([(head, 0), *((block, 0) for block in blocks[1:]), *sounds]))


def speex(seconds: float) -> bytes:
    """Silence in Speex at 8 kHz: every frame says that it has no sound, in five bits."""
    head = b"Speex   1.2".ljust(28, b"\0") + struct.pack("<13i", 1, 80, 8000, 0, 4, 1, -1, 160, 0, 1, 0, 0, 0)
    frame = bytes([0b0000_0011, 0b1111_1111])  # wideband bit, mode 0, then padding
    count = round(seconds * 50)
    note = struct.pack("<I", 4) + b"none" + struct.pack("<I", 0)
    return b"".join(pages([(head, 0), (note, 0), *((frame, 160 * (i + 1)) for i in range(count))]))


def test_what_only_pyav_reads_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    wanted = sine(1, 44_100)
    flac, voice = put(tmp_path / "a.ogg", ogg_flac(wanted, 44_100)), put(tmp_path / "b.ogg", speex(2))
    samples = load_audio(flac)
    assert len(samples) == 32_000
    assert np.abs(np.fft.rfft(samples)).argmax() == 1000
    assert len(load_audio(voice)) == pytest.approx(2 * 32_000, abs=1000)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for path in (flac, voice):
        with pytest.raises(AudioError, match=r"diffatr\[audio\]"):
            load_audio(path)
