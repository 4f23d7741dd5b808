"""Sound files that are damaged anyhow: an AudioError, or finite samples, in bounded steps and memory.

The corpus is made by `python tests/test_fuzz_sounds.py`, from the files that the other tests make.
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from fuzzing import CORPUS, corpus, fuzz
from test_chunks import COMMENT, aiff, au, caf, chunk, nist, rf64, w64, wav
from test_mpeg_frames import TAG1, TAG2, bare, frame, mp3
from test_ogg_pages import pages, vorbis, without_end_mark

from diffatr_cli.data import pyav_decoder, sound, soundfile_decoder
from diffatr_cli.data.audio_error import AudioError
from diffatr_cli.data.chunks import read_chunks
from diffatr_cli.data.mpeg_frames import read_runs
from diffatr_cli.data.ogg_pages import read_links
from diffatr_cli.data.sound import MOST_SAMPLES, open_sound

KEPT = 1 << 20  # samples of an input that are compared; of longer ones only the first
PARSING = 1 << 17  # bytes that a parser may take, beside a few times the file's
DECODING = 1 << 26  # and all of the decoding, which works on blocks
OTHER_BLOCK = 1000  # frames


class Counting(io.BytesIO):
    """A file that counts how often it is read, and how much."""

    reads = bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.reads += 1
        self.bytes_read += len(data)
        return data


@contextmanager
def memory_at_most(most: int) -> Iterator[None]:
    """For what Python and numpy take inside."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= most, f"{taken} bytes, {most} at most"


@contextmanager
def parsing(data: bytes) -> Iterator[Counting]:
    """For a parser of these bytes: it may look at each place of them a few times, and keep little."""
    stream = Counting(data)
    with memory_at_most(PARSING + 8 * len(data)):
        yield stream
    assert stream.reads <= 100 + 2 * len(data)
    assert stream.bytes_read <= (1 << 20) + 2000 * len(data)


def check_chunks(data: bytes) -> None:
    """The parser of chunks: where it finds samples, they are in the file."""
    start = 0
    while start < len(data):
        with parsing(data) as stream:
            found = read_chunks(stream, start, len(data))
        if found is None:
            break
        assert start < found.end <= len(data)
        assert 0 <= found.present <= len(data) - start
        assert found.first + found.present <= len(data) or not found.present
        assert found.announced is None or found.missing <= found.announced
        assert found.head is None or len(found.head) <= len(data) + 200
        start = found.end


def check_links(data: bytes) -> None:
    """The parser of pages: links follow one another, and all bytes belong to one."""
    with parsing(data) as stream:
        links = read_links(stream, 0, len(data))
    if links:
        assert [link.first for link in links] == [0, *(link.end for link in links[:-1])]
        assert links[-1].end == len(data)
        assert all(link.first < link.end and 0 <= link.lost <= link.end - link.first for link in links)


def check_runs(data: bytes) -> None:
    """The parser of frames: they lie in the file one behind the other, and each run of them is told as it is."""
    with parsing(data) as stream:
        runs, lost = read_runs(stream, 0, len(data))
    spans = [span for run in runs for span in run.spans]
    assert all(first < end for first, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert not spans or 0 <= spans[0][0] < spans[-1][1] <= len(data)
    assert 0 <= lost <= len(data)
    for run in runs:
        assert 0 < run.frames <= sum(end - first for first, end in run.spans)
        alone = b"".join(piece if isinstance(piece, bytes) else data[slice(*piece)] for piece in run.pieces())
        if alone[-128:-125] != b"TAG":  # in the midst of a frame, which no encoder writes
            again, left_out = read_runs(io.BytesIO(alone), 0, len(alone))
            assert ([each.frames for each in again], left_out) == ([run.frames], 0)
        assert run.samples >= 0


def check_decoding(data: bytes) -> None:
    """All that comes of a file is finite and in blocks; in blocks of another size it is the same."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as changed:
        path = Path(folder, "sound")
        path.write_bytes(data)
        # The line about which a sound is resampled is told by its first block, so it may differ; that has tests of its own.
        changed.enter_context(mock.patch.object(sound, "_OFFSET", np.inf))
        with memory_at_most(DECODING + 64 * len(data)):
            whole = decoded(path)
        for module in (soundfile_decoder, pyav_decoder):
            changed.enter_context(mock.patch.object(module, "BLOCK_FRAMES", OTHER_BLOCK))
        in_blocks = decoded(path)
    if isinstance(whole, str) or isinstance(in_blocks, str):
        assert whole == in_blocks
    else:
        assert len(whole) == len(in_blocks)
        assert np.allclose(whole, in_blocks, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(whole).max(initial=0.0))))


def decoded(path: Path) -> np.ndarray | str:
    """The first samples of a file, or why there are none."""
    kept, count = [np.zeros(0, np.float32)], 0
    try:
        with open_sound(path) as opened:
            for block in opened.blocks():
                assert len(block) <= MOST_SAMPLES
                assert block.dtype == np.float32
                assert np.isfinite(block).all()
                kept.append(block[: max(0, KEPT - count)].copy())
                count += len(block)
            seconds = opened.duration()
            assert seconds is None or seconds >= 0
    except AudioError as error:
        return error.reason
    return np.concatenate(kept)


PARSERS: dict[str, Callable[[bytes], None]] = {
    "wav": check_chunks,
    "aiff": check_chunks,
    "ogg": check_links,
    "mpeg": check_runs,
}
WORDS = {
    "wav": [b"RIFF", b"RIFX", b"RF64", b"BW64", b"WAVE", b"fmt ", b"data", b"ds64", b"fact", b"LIST", b"\xfe\xff", b"\x55\0"],
    "aiff": [
        b"FORM",
        b"AIFF",
        b"AIFC",
        b"COMM",
        b"SSND",
        b"sowt",
        b"fl32",
        b"caff",
        b"desc",
        b"lpcm",
        b"data",
        b"NIST_1A",
        b".snd",
    ],
    "ogg": [b"OggS\0", b"OggS\0\2", b"OggS\0\4", b"\x01vorbis", b"OpusHead", b"OpusTags", b"\x7fFLAC", b"Speex   ", b"\xff" * 8],
    "mpeg": [
        b"ID3\4\0\0",
        b"TAG",
        b"APETAGEX",
        b"LYRICSBEGIN",
        b"Xing",
        b"Info",
        b"LAME",
        b"VBRI",
        b"\xff\xfb",
        b"\xff\xfa",
        frame(0),
    ],
}


@pytest.mark.parametrize("kind", PARSERS)
def test_the_corpus(kind: str) -> None:
    for path in corpus(kind):
        PARSERS[kind](path.read_bytes())
        check_decoding(path.read_bytes())


def test_what_the_fuzzing_begins_with_can_be_read(tmp_path: Path) -> None:
    """Else nothing behind the first refusal is ever reached."""
    for kind, some in made().items():
        for name in some:
            copy = shutil.copy(CORPUS / kind / name, tmp_path / "sound")
            assert not isinstance(decoded(copy), str), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARSERS)
def test_fuzz_the_parser(kind: str) -> None:
    fuzz(PARSERS[kind], kind, WORDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARSERS)
def test_fuzz_decoding(kind: str) -> None:
    fuzz(check_decoding, kind, WORDS[kind])


HUGE = {  # a megabyte, about, of what is looked through piece by piece
    "erased behind frames": mp3(0.2) + b"\xff" * 1_000_000,
    "headers without frames": mp3(0.2) + bytes.fromhex("fffb90c4") * 250_000,
    "tags": mp3(0.2) + (b"TAG" + b"\1" * 125) * 8000,
    "tags of nothing": mp3(0.2) + b"ID3\4\0\0\0\0\0\0" * 100_000,
    "recordings of nothing": wav(b"") * 20_000,
    "recordings of two samples": wav(b"abcd") * 20_000,
    "chunks of nothing": wav(b"abcd")[:12] + b"LIST\0\0\0\0" * 125_000,
    "pages of nothing": (b"OggS\0\2" + bytes(21)) * 40_000,
    "pages of another version": b"OggS\0\2" + bytes(21) + b"OggS\1" * 200_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_steps_do_not_grow_faster_than_files(name: str) -> None:
    """Counted, not timed: four times the bytes are at most about four times the reads."""
    counts = []
    for content in (HUGE[name][:260_000], HUGE[name][:1_040_000]):
        stream = Counting(content)
        if content[:4] == b"OggS":
            read_links(stream, 0, len(content))
        elif content[:4] == b"RIFF":
            start: int | None = 0
            while start is not None and start < len(content):
                found = read_chunks(stream, start, len(content))
                start = found.end if found else None
        else:
            read_runs(stream, 0, len(content))
        counts.append((stream.reads, stream.bytes_read))
    (reads, amount), (more_reads, more) = counts
    assert more_reads <= 5 * reads + 100
    assert more <= 5 * amount + (4 << 20)


def made() -> dict[str, dict[str, bytes]]:
    """The inputs that the fuzzing begins with, by kind and name. All of them can be read."""
    pcm = (8000 * np.sin(np.arange(800) / 3)).astype("<i2").tobytes()
    mulaw = bytes(range(256)) * 2
    floats = np.linspace(-1, 1, 400, dtype="<f4").tobytes()
    info = chunk(b"LIST", b"INFOICMT" + struct.pack("<I", len(COMMENT)) + COMMENT)
    return {
        "wav": {
            "mono": wav(pcm, rate=8000),
            "stereo": wav(pcm, channels=2),
            "floats": wav(floats, tag=3, bits=32),
            "floats-scaled": wav((np.frombuffer(floats, "<f4") * 30_000).tobytes(), tag=3, bits=32),
            "mulaw": wav(mulaw, tag=7, bits=8),
            "comment": wav(pcm, before=info, after=info),
            "sizes-zero": wav(pcm, size=0, riff=0),
            "too-large": wav(pcm, size=len(pcm) + 512),
            "cut": wav(pcm, size=50_000),
            "big-endian": wav(pcm, kind=b"RIFX"),
            "rf64": rf64(pcm),
            "bw64-zero": rf64(pcm, size=0, kind=b"BW64"),
            "w64": w64(pcm),
            "joined": wav(pcm, rate=8000) + wav(pcm, rate=16_000, channels=2),
            "mp3-inside": wav(mp3(0.1), tag=0x55, bits=0),
        },
        "aiff": {
            "whole": aiff(pcm),
            "sizes-zero": aiff(pcm, size=0, frames=0),
            "comment": aiff(pcm, before=chunk(b"ANNO", COMMENT, None, ">"), after=chunk(b"ANNO", COMMENT, None, ">")),
            "joined": aiff(pcm) + aiff(pcm),
            "caf": caf(pcm),
            "caf-zero": caf(pcm, size=0),
            "au": au(pcm),
            "au-pipe": au(pcm, size=0xFFFF_FFFF),
            "nist": nist(pcm),
        },
        "ogg": {
            "vorbis": vorbis(0.1, 8000),
            "no-end-mark": without_end_mark(vorbis(0.1, 8000)),
            "chained": vorbis(0.1, 8000) + vorbis(0.1, 16_000),
            "opus": opus(),
        },
        "mpeg": {
            "variable": mp3(0.2, 44_100),
            "bare": bare(mp3(0.2)),
            "tagged": TAG2 + bare(mp3(0.1)) + TAG1,
            "joined": mp3(0.1) + TAG2 + mp3(0.1, channels=2),
            "mpeg2": mp3(0.2, 16_000),
            "silence": frame(0) * 12,
            "changing": frame(0) * 8 + frame(3, mono=False) * 8,
        },
    }


def opus() -> bytes:
    """Silence, by the shortest packets there are."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 312, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 4) + b"test" + bytes(4)
    return b"".join(pages([(head, 0), (tags, 0), *((b"\xf8\xff\xfe", 960 * (number + 1)) for number in range(10))]))


if __name__ == "__main__":
    for kind, some in made().items():
        (CORPUS / kind).mkdir(parents=True, exist_ok=True)
        for name, content in some.items():
            (CORPUS / kind / name).write_bytes(content)
