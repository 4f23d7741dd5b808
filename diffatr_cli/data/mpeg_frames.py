"""The frames of MPEG audio (mp3, mp2, mp1), so that all of it is read.

libsndfile stops where a Xing header says, or where a guess from the file's length says, which is far too soon for a variable
rate. So frames are counted here, each run of them becomes a file of its own, and a header that tells the true count is put
before it. What is no frame (tags, pieces of other files) stays out, which also keeps the decoder from remarking on it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from .spliced_file import Piece

_SAME = 0xFFFE_0C00  # what all frames of a recording have in common: version, layer and sample rate
_MONO = 0xC0
_MARKS = (b"Xing", b"Info")
_MARK_OF_ITS_OWN = b"VBRI"  # of Fraunhofer's encoder, at one place in every kind of frame
_MARK = 1024  # frames from one mark to the next
_RESERVOIR = 0.6  # seconds of earlier frames, at most, in which a frame keeps some of its bits
_SURE = 3  # frames in a row that no other file has by chance
_WINDOW = 1 << 20
_DELAY = 529  # samples that every decoder of layer 3 is late
_LONGEST = 2048  # bytes, more than any frame has
_BITRATES = {  # kbit/s, by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


_HEADER = re.compile(rb"(?=\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef])", re.DOTALL)
"""Where bytes may begin a frame. Most do not: a card that was erased is nothing but 255."""


@dataclass
class Run:
    """Frames of one kind, one recording's as far as can be told."""

    header: int
    """Of the first frame."""
    frames: int = 0
    """With sound: the one that holds a Xing header does not count."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Where those frames lie."""
    info: bytes = b""
    """The frame with the Xing header."""
    announced: int | None = None
    """Frames by that header."""
    marks: list[int] = field(default_factory=list)
    """Where every `_MARK`th frame lies."""
    untouched: bool = False
    """Whether the file holds this and little else, and its header counts right, so that it can be read as it is."""

    @property
    def layer(self) -> int:
        return 4 - (self.header >> 17 & 3)

    @property
    def rate(self) -> int:
        return _rate(self.header)

    @property
    def samples(self) -> int:
        """Of each channel, without those that encoders put before and behind the sound and decoders take off."""
        before, behind = self._added or (_DELAY, 0)
        if self.layer != 3:
            before = 0
        return max(0, self.frames * _samples(self.header) - before - (0 if self.missing else behind))

    @property
    def _added(self) -> tuple[int, int] | None:
        """Samples that the encoder put before and behind the sound, where it says so."""
        at = _info_at(self.header) + 120
        if self.layer != 3 or self.info[at : at + 4] not in (b"LAME", b"Lavc", b"Lavf") or len(self.info) < at + 24:
            return None
        both = int.from_bytes(self.info[at + 21 : at + 24])
        return both >> 12, both & 0xFFF

    @property
    def missing(self) -> int:
        """Frames announced that are not there; encoders may be off by two."""
        lacking = 0 if self.announced is None else self.announced - self.frames
        return lacking if lacking > 2 else 0

    def is_told(self, size: int) -> bool:
        """Whether its own header counts right, in a file of `size` bytes, so that a decoder needs no help."""
        at = _info_at(self.header)
        if len(self.spans) != 1 or self.announced != self.frames or self.info[at : at + 4] not in _MARKS:
            return False
        flags, _, told = struct.unpack_from(">III", self.info, at + 4)
        return not flags & 2 or abs(told - size) * 100 < size

    def add(self, frames: int, first: int, end: int) -> None:
        """So many more frames, from there to there."""
        self.frames += frames
        if self.spans and self.spans[-1][1] == first:
            first = self.spans.pop()[0]
        self.spans.append((first, end))

    def pieces(self) -> list[Piece]:
        """The run as a file of its own."""
        return [*([self._counted()] if self.layer == 3 else []), *self.spans]

    def pieces_from(self, seconds: float) -> tuple[list[Piece], float]:
        """The rest of the run as a file of its own, and the second at which it begins, some time before the one asked for.

        So that nobody has to look for a place among a million frames.
        """
        number = int(max(0.0, seconds - _RESERVOIR) * self.rate / _samples(self.header)) // _MARK
        if not 0 < number < len(self.marks):
            return self.pieces(), 0.0
        first = self.marks[number]
        spans = [(max(first, span[0]), span[1]) for span in self.spans if span[1] > first]
        rest = Run(self.header, self.frames - number * _MARK, spans)
        before = self._added[0] if self._added else 0
        return rest.pieces(), (number * _MARK * _samples(self.header) - before) / self.rate

    def _counted(self) -> bytes:
        """A frame with a Xing header that tells the number of frames: the run's own, corrected, or a new one."""
        size = sum(end - first for first, end in self.spans)
        at = _info_at(self.header)
        if self.info and self.info[at : at + 4] in _MARKS:
            out = bytearray(self.info)
            flags = struct.unpack_from(">I", out, at + 4)[0]
            for bit, value in ((1, self.frames), (2, size + len(out))):
                if flags & bit:
                    struct.pack_into(">I", out, at + 8 + 4 * (bit == 2 and flags & 1), value)
            if flags & 1:
                padding = at + 120 + 21 + 1  # LAME's count of samples to drop at the end, which a cut file does not have
                if self.missing and out[at + 120 : at + 124] == b"LAME" and len(out) >= padding + 2:
                    out[padding] &= 0xF0
                    out[padding + 1] = 0
                return bytes(out)
        header = self.header & ~0xF200 | 0x0001_0000  # without padding and checksum
        bits = next(bits for bits in range(1, 15) if _length(header | bits << 12) >= at + 16)
        header |= bits << 12
        info = struct.pack(">4sIII", b"Info", 3, self.frames, size + _length(header))
        return (struct.pack(">I", header).ljust(at, b"\0") + info).ljust(_length(header), b"\0")


def _rate(header: int) -> int:
    version = header >> 19 & 3
    return (44100, 48000, 32000, 0)[header >> 10 & 3] >> (0 if version == 3 else 1 if version == 2 else 2)


def _samples(header: int) -> int:
    layer = 4 - (header >> 17 & 3)
    return 384 if layer == 1 else 1152 if layer == 2 or header >> 19 & 3 == 3 else 576


def _length(header: int) -> int:
    """Bytes of a frame; 0 where the header is none, or of the rare kind that does not tell."""
    version, layer, bits = header >> 19 & 3, 4 - (header >> 17 & 3), header >> 12 & 15
    rate, padding = _rate(header), header >> 9 & 1
    if header >> 21 & 0x7FF != 0x7FF or version == 1 or layer == 4 or bits in (0, 15) or not rate:
        return 0
    bitrate = 1000 * _BITRATES[version == 3, layer][bits]
    return (12 * bitrate // rate + padding) * 4 if layer == 1 else _samples(header) // 8 * bitrate // rate + padding


_LENGTHS = [_length(0xFFE0_0000 | bits << 9) for bits in range(1 << 12)]
"""By the twelve bits of a header that decide."""


def _info_at(header: int) -> int:
    """Where in the first frame of layer 3 a Xing header lies."""
    mono = header & _MONO == _MONO
    return 4 + ((17 if mono else 32) if header >> 19 & 3 == 3 else (9 if mono else 17))


class _Window:
    """A stretch of a file by position, read a megabyte at a time."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self._stream, self._end = stream, end
        self._base, self._held = 0, b""

    def at(self, where: int, count: int) -> bytes:
        """So many bytes from there on, fewer at the end."""
        offset = where - self._base
        if offset < 0 or offset + count > len(self._held):
            self._stream.seek(where)
            self._base, self._held, offset = where, self._stream.read(min(_WINDOW, max(0, self._end - where))), 0
        return self._held[offset : offset + count]

    def header(self, where: int) -> int:
        """The header of the frame that begins there and is whole; 0 where there is none."""
        header = int.from_bytes(self.at(where, 4))
        length = _LENGTHS[header >> 9 & 0xFFF] if header >> 21 == 0x7FF else 0
        return header if length and where + length <= self._end else 0

    def like(self, header: int, where: int, before: int, marks: list[int]) -> tuple[int, int]:
        """How many frames like that one follow one another from there on, and where they end. A header that counts ends them.

        `before` frames of the run came before them; those that are due are added to its `marks`.

        A long recording has a million frames: what is done for each is done here, and is little.
        """
        kind, mono, mark = header & _SAME, header & _MONO == _MONO, _info_at(header)
        frames, lengths = 0, _LENGTHS
        while len(self.at(where, _LONGEST)) == _LONGEST:
            held, at, last = self._held, where - self._base, len(self._held) - _LONGEST
            while at <= last:
                found = int.from_bytes(held[at : at + 4])
                length = lengths[found >> 9 & 0xFFF]
                if found & _SAME != kind or not length or (found & _MONO == _MONO) is not mono:
                    return frames, self._base + at
                if held[at + mark : at + mark + 4] in _MARKS or held[at + 36 : at + 40] == _MARK_OF_ITS_OWN:
                    return frames, self._base + at
                if not (before + frames) % _MARK:
                    marks.append(self._base + at)
                at += length
                frames += 1
            where = self._base + at
        return frames, where


def read_runs(stream: BinaryIO, first: int, end: int, search: int = 4096) -> tuple[list[Run], int]:
    """The runs of frames between two places of a file, and how many bytes there are neither frames nor tags.

    None where frames do not begin within `search` bytes, behind a tag: then it is no MPEG audio.
    """
    size = end - first
    if _Window(stream, end).at(max(first, end - 128), 3) == b"TAG":
        end = max(first, end - 128)
    window = _Window(stream, end)
    runs: list[Run] = []
    start = _behind_tags(window, first, end)
    at = _sync(window, start, min(end, start + search), end)
    if at is None:
        return [], 0
    lost = at - start
    while at < end:
        header = window.header(at)
        same = bool(runs) and _alike(header, runs[-1].header)
        if not header or (not same and not _chains(window, at, end)):
            if (after := _behind_tags(window, at, end)) == at:
                found = _sync(window, at + 1, end, end)
                after = end if found is None else found
                lost += after - at
            at = after
            continue
        after = at + _LENGTHS[header >> 9 & 0xFFF]
        announced = _announced(window.at(at, min(after - at, 512)), header)
        if not same or announced is not None:
            runs.append(Run(header, announced=announced, info=b"" if announced is None else window.at(at, after - at)))
        if announced is None:
            run = runs[-1]
            if not run.frames % _MARK:
                run.marks.append(at)
            more, after = window.like(header, after, run.frames + 1, run.marks)
            run.add(1 + more, at, after)
        at = after
    runs = [run for run in runs if run.frames]
    if len(runs) == 1 and not lost:
        runs[0].untouched = runs[0].is_told(size)
    return runs, lost


def _alike(header: int, other: int) -> bool:
    """Whether two frames can be of one recording: one rate, one number of channels."""
    return not (header ^ other) & _SAME and (header & _MONO == _MONO) == (other & _MONO == _MONO)


def _announced(frame: bytes, header: int) -> int | None:
    """How many frames this one says that follow; None where it holds sound, as nearly all do."""
    if 4 - (header >> 17 & 3) != 3:
        return None
    at = _info_at(header)
    if frame[at : at + 4] in _MARKS and not any(frame[4:at]) and len(frame) >= at + 12:
        flags, frames = struct.unpack_from(">II", frame, at + 4)
        return frames if flags & 1 else 0
    if frame[36:40] == _MARK_OF_ITS_OWN and not any(frame[6:36]) and len(frame) >= 54:
        return int.from_bytes(frame[50:54])
    return None


def _chains(window: _Window, at: int, end: int) -> bool:
    """Whether frames of one kind follow one another from there on, three of them or to the end."""
    kind = window.header(at)
    for _ in range(_SURE):
        header = window.header(at)
        if not header or not _alike(header, kind):
            return False
        at += _LENGTHS[header >> 9 & 0xFFF]
        if at >= end or _behind_tags(window, at, end) > at:
            return True
    return True


def _sync(window: _Window, at: int, limit: int, end: int) -> int | None:
    """The first place before `limit` where frames begin."""
    while at < limit:
        # Overlapping by what a header has: the places of a stretch that can begin one, found at once.
        held = window.at(at, min(limit - at, 1 << 16) + 2)
        for match in _HEADER.finditer(held):
            if at + match.start() < limit and _chains(window, at + match.start(), end):
                return at + match.start()
        at += max(1, len(held) - 2)
    return None


def _behind_tags(window: _Window, at: int, end: int) -> int:
    """The place behind the tags, and the zeros, that begin there."""
    while at < end:
        head = window.at(at, 32)
        if head[:3] == b"ID3" and len(head) >= 10:
            length = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            after = at + 10 + length + (10 if head[5] & 16 else 0)
        elif head[:3] == b"TAG" and at + 128 <= end:  # in the middle where files were joined
            after = at + 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            # The size counts the entries and the footer; the header comes before.
            after = at + int.from_bytes(head[12:16], "little") + (32 if head[23] & 32 else 0)
        elif head[:11] == b"LYRICSBEGIN":
            after = at + len(head) + (found + 9 if (found := window.at(at + 32, 1 << 16).find(b"LYRICS200")) >= 0 else 0)
        elif head and not any(head):
            held = window.at(at, 1 << 16)
            after = at + len(held) - len(held.lstrip(b"\0"))
        else:
            return at
        at = max(at + 1, min(after, end))
    return min(at, end)
