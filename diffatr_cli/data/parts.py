"""What a file consists of: the recordings in it, one after the other, and which decoder reads each. By content alone.

Most files hold one recording and can be handed to libsndfile as they are. For the others this says which bytes make a
recording, what has to be put right before a decoder sees it, and what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from .audio_error import TRUNCATED, AudioError, check_rate
from .chunks import Chunks, read_chunks
from .mpeg_frames import Run, read_runs
from .ogg_pages import read_links
from .spliced_file import Piece

By = Literal["libsndfile", "PyAV"]

_MOST_CHANNELS = 1024
_MPEG_TAGS = (0x50, 0x55)  # mp2 and mp3 in a WAV file
_SMALL = 1024  # bytes behind a recording that are not worth a word
_FLAC = b"fLaC\0\0\0\x22"  # with the beginning of its first block
_SEARCH = 1 << 18
_MARKS: dict[int, tuple[bytes, ...]] = {
    0: (
        b"\x1a\x45\xdf\xa3",
        b"0&\xb2u",
        b"FLV\1",
        b"#!AMR",
        b".RMF",
        b".ra\xfd",
        b"wvpk",
        b"MAC ",
        b"TTA",
        b"MPCK",
        b"MP+",
        b"tBaK",
    ),
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
    8: (b"AVI ",),
}
"""What files begin with that only PyAV reads, by place."""


class Mark(NamedTuple):
    """What the system says of a file; another content shows in it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class Part:
    """One recording of a file."""

    by: tuple[By, ...] = ("libsndfile", "PyAV")
    """Decoders to try, in this order."""
    pieces: tuple[Piece, ...] | None = None
    """What they are to see; None for the file as it is."""
    seconds: float | None = None
    """How long it is, where that was counted."""
    furthest: int | None = None
    """The last frame to which libsndfile can seek; None where it can anywhere."""
    notes: tuple[str, ...] = ()
    partial: str | None = None
    """Why not all of it is there."""


@lru_cache(maxsize=128)
def parts_of(path: Path, mark: Mark) -> tuple[Part, ...]:
    """The recordings of a file in their order, at least one. Remembered while the file is the same, by its mark.

    Raises:
        AudioError: the header asks for the impossible.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return tuple(_parts(path, stream, mark.size))


def looks_like_media(path: Path) -> bool:
    """Whether a file begins as those do that PyAV reads and libsndfile does not, or not always."""
    with path.open("rb") as stream:
        head = stream.read(1 << 10)
    return _is_foreign(head) or head.startswith((b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"OggS"))


def _is_foreign(head: bytes) -> bool:
    """Whether a file begins as those do that only PyAV reads."""
    packets = any(len(head[at::step]) > 2 and set(head[at::step][:3]) == {0x47} for at, step in ((0, 188), (4, 192)))
    adts = len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return packets or adts or any(head[at : at + len(mark)] == mark for at, marks in _MARKS.items() for mark in marks)


def _parts(path: Path, stream: BinaryIO, size: int) -> Iterator[Part]:
    head = stream.read(1 << 10)
    if (chunks := read_chunks(stream, 0, size)) is not None:
        yield from _of_chunks(path, stream, chunks, size)
    elif head[:4] == b"OggS":
        yield from _of_ogg(stream, size)
    elif head[:4] == b"fLaC":
        yield from _of_flac(stream, size)
    elif head[:2] == b"\xf0\x7e":  # of samplers; libsndfile prints remarks on these among the results
        yield Part(("PyAV",))
    elif _is_foreign(head) or head[:4] in (b"RIFF", b"FORM", b"caff", b"riff"):  # which may hold MPEG audio among other things
        yield Part()
    else:
        yield from _of_mpeg(stream, size)


def _of_chunks(path: Path, stream: BinaryIO, chunks: Chunks, size: int) -> Iterator[Part]:
    start = 0
    while True:
        yield from _of_samples(path, stream, chunks, start, size)
        start = chunks.end
        following = read_chunks(stream, start, size) if start < size - 12 else None
        if following is None:
            break
        chunks = following


def _of_samples(path: Path, stream: BinaryIO, chunks: Chunks, start: int, size: int) -> Iterator[Part]:
    check_rate(path, chunks.rate)
    if not 1 <= chunks.channels <= _MOST_CHANNELS:
        raise AudioError(path, f"a header that says {chunks.channels} channels")
    if chunks.announced and chunks.present < min(chunks.frame, chunks.announced):
        raise AudioError(path, f"{chunks.channels} channels, and not one sample of each")
    notes, partial = chunks.notes, None
    if chunks.missing:
        partial = TRUNCATED
        if chunks.byte_rate > 0 and chunks.announced:
            there, all_of_it = (count / chunks.byte_rate for count in (chunks.present, chunks.announced))
            notes += (f"{there:.1f} s of {all_of_it:.1f} s are there",)
    if start == 0 and chunks.end < size - _SMALL and read_chunks(stream, chunks.end, size) is None:
        notes += (f"{size - chunks.end} bytes behind the samples are not read",)
    span = (chunks.first, chunks.first + chunks.present)
    if chunks.form in ("WAV", "RF64", "W64") and chunks.codec in _MPEG_TAGS:
        runs, _ = read_runs(stream, *span)
        if runs:
            yield from (_mpeg_part(run, notes, partial) for run in runs)
            return
    by: tuple[By, ...] = ("libsndfile", "PyAV")
    if chunks.form == "WAV" and chunks.codec == 1 and chunks.channels == 2 and _is_disguised(stream, chunks.first):
        by = ("PyAV",)
    seconds = chunks.present / chunks.byte_rate if chunks.byte_rate > 0 else None
    whole = start == 0 and (chunks.end >= size or chunks.head is None)
    pieces: tuple[Piece, ...] | None = None
    if chunks.head is not None:
        pieces = (chunks.head, span)
    elif not whole:
        pieces = ((start, chunks.end),)
    yield Part(by, pieces, seconds, None, notes, partial)


def _is_disguised(stream: BinaryIO, first: int) -> bool:
    """Whether what is said to be 16-bit samples is AC-3 or DTS, as it travels over cables made for samples."""
    stream.seek(first)
    head = stream.read(1 << 14)
    for sync in (b"\x72\xf8\x1f\x4e", b"\xfe\x7f\x01\x80", b"\xff\x1f\x00\xe8"):
        at = head.find(sync)
        if at >= 0 and at % 4 == 0 and (not any(head[:at])) and head.find(sync, at + 4) >= 0:
            return True
    return False


def _of_ogg(stream: BinaryIO, size: int) -> Iterator[Part]:
    links = read_links(stream, 0, size)
    if not links:
        yield Part()
    for link in links:
        known = len(link.codecs) == 1 and link.codecs[0] in ("vorbis", "opus")
        notes = (f"{link.lost} bytes between its pages are damaged and left out",) if link.lost > _SMALL else ()
        pieces: tuple[Piece, ...] | None = None if len(links) == 1 and link.first == 0 else ((link.first, link.end),)
        # Inside the last page libsndfile takes the end for the page's full length, and seeks to wrong places.
        furthest = link.last_page_at if link.codecs == ["vorbis"] else None
        by: tuple[By, ...] = ("libsndfile", "PyAV") if known else ("PyAV",)
        yield Part(by, pieces, None, furthest, notes, TRUNCATED if link.cut else None)


def _of_flac(stream: BinaryIO, size: int) -> Iterator[Part]:
    starts, at, kept = [0], len(_FLAC), b""
    stream.seek(at)
    while part := stream.read(_SEARCH):
        held = kept + part
        found = held.find(_FLAC)
        while found >= 0:
            starts.append(at - len(kept) + found)
            found = held.find(_FLAC, found + 1)
        at += len(part)
        kept = held[-len(_FLAC) + 1 :]
    for first, end in zip(starts, [*starts[1:], size], strict=True):
        yield Part(pieces=None if len(starts) == 1 else ((first, end),))


def _of_mpeg(stream: BinaryIO, size: int) -> Iterator[Part]:
    runs, lost = read_runs(stream, 0, size)
    if not runs:
        yield Part()
    notes = (f"{lost} bytes between its frames are no sound and left out",) if lost > _SMALL else ()
    for run in runs:
        yield _mpeg_part(run, notes, None)
        notes = ()


def _mpeg_part(run: Run, notes: tuple[str, ...], partial: str | None) -> Part:
    seconds = run.samples / run.rate
    if run.missing and run.announced:
        partial = TRUNCATED
        notes += (f"{seconds:.1f} s of {seconds * run.announced / run.frames:.1f} s are there",)
    # libsndfile only guesses how many frames of layers 1 and 2 there are, and reads no more than its guess.
    by: tuple[By, ...] = ("libsndfile", "PyAV") if run.layer == 3 else ("PyAV", "libsndfile")
    return Part(by, None if run.untouched else tuple(run.pieces()), seconds, None, notes, partial)
