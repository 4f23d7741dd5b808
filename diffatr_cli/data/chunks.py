"""Where the samples lie in files of chunks: WAV, RF64, W64, AIFF, CAF, AU and NIST, read from the files themselves.

libsndfile cuts what a header announces to what is there and says so only in a log, among other words of the file. Read here:
the sizes in the header, and what of them is there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

_ZERO = "the size in its header is zero, as a recorder leaves it that was cut off; read to the end"
_MOST_CHUNKS = 4096  # before the samples, and behind them; a file of nothing but chunks ends the search
_LONGEST_HEAD = 1 << 20  # bytes of a format's description
_PIPED = ((0x7FFF_0000, 0x8000_FFFF), (0xFFFF_0000, 0xFFFF_FFFF))
"""Sizes that writers to a pipe put, who cannot know it."""
_LITTLE_SECONDS, _LITTLE_BYTES = 0.05, 1024
"""Headers count some bytes too many, or a last buffer that was never written: no recording is cut for so little."""


@dataclass(frozen=True)
class Chunks:
    """The samples of one recording of chunks."""

    form: str
    """WAV, RF64, W64, AIFF, CAF, AU or NIST."""
    codec: int | bytes
    """How samples are coded: the tag of WAV, the four letters of AIFF and CAF, the number of AU, nothing of NIST."""
    channels: int
    rate: float
    """Hz, as the header says: perhaps beyond reason."""
    frame: int
    """Bytes of a sample of all channels, or of a block that is compressed."""
    byte_rate: float
    """Bytes a second; 0 where the header does not say."""
    first: int
    """Where the samples begin in the file."""
    announced: int | None
    """Bytes of samples by the header; None where it leaves that open."""
    present: int
    """Bytes of samples that are there."""
    end: int
    """Where the recording ends in the file; another one may follow."""
    notes: tuple[str, ...] = ()
    head: bytes | None = None
    """Where the sizes in the header are wrong: what the file should begin with, right before the samples."""

    @property
    def missing(self) -> int:
        """Bytes announced that are not there; 0 where it is too little to matter."""
        lacking = 0 if self.announced is None else self.announced - self.present
        return lacking if lacking >= max(_LITTLE_BYTES, self.byte_rate * _LITTLE_SECONDS) else 0


def read_chunks(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    """The samples of the recording that begins at byte `start` of a file of `size` bytes; None for other kinds of file, and
    for those that lack a description of the format, or samples."""
    head = _bytes(stream, start, 16)
    readers: dict[bytes, Callable[[BinaryIO, int, int], Chunks | None]] = {
        **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff),
        b"riff": _w64,
        b"FORM": _aiff,
        b"caff": _caf,
        **dict.fromkeys((b".snd", b"dns."), _au),
        b"NIST": _nist,
    }
    reader = readers.get(head[:4])
    try:
        return reader(stream, start, size) if reader else None
    except struct.error:  # the file ends inside its header
        return None


def _bytes(stream: BinaryIO, at: int, count: int) -> bytes:
    """What is there of so many bytes, wherever a header says that they are."""
    try:
        stream.seek(at)
    except (OSError, OverflowError, ValueError):  # beyond what a file can be
        return b""
    return stream.read(count)


def _riff(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    if _bytes(stream, start + 8, 4) != b"WAVE":
        return None
    kind = _bytes(stream, start, 4)
    order = ">" if kind == b"RIFX" else "<"
    wide = kind in (b"RF64", b"BW64")
    fmt = fact = b""
    long_size = None
    at = start + 12
    for _ in range(_MOST_CHUNKS):
        name, length = struct.unpack(f"{order}4sI", _bytes(stream, at, 8))
        if name == b"data":
            break
        if name == b"ds64":
            long_size = struct.unpack("<Q", _bytes(stream, at + 16, 8))[0]
        elif name == b"fmt ":
            fmt = _bytes(stream, at + 8, min(length, 4096))
        elif name == b"fact":
            fact = _bytes(stream, at + 8, min(length, 64))
        at = _after(stream, at + 8, length, size)
    else:
        return None
    tag, channels, rate, byte_rate, frame, bits = struct.unpack(f"{order}HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:  # the tag's place is in the format's long name
        tag = struct.unpack(f"{order}H", fmt[24:26])[0]
    if tag in (1, 3, 6, 7):  # samples one after the other, whatever the header multiplies
        frame = channels * -(-bits // 8) or frame
        byte_rate = rate * frame
    first = at + 8
    announced: int | None = long_size if wide and length in (0xFFFF_FFFF, 0) else length
    notes: tuple[str, ...] = ()
    there = size - first
    wrapped = length + (there - length >> 32 << 32)
    if announced == 0 and there and not _chunks_follow(stream, first, size, order):
        announced, notes = (
            None,
            (_ZERO,),
        )
    elif not wide and wrapped > length and there - wrapped < 1 << 16:
        announced, notes = wrapped, ("longer than the size in its header can say; read to the end",)
    elif not wide and any(low <= length <= high for low, high in _PIPED):
        announced = None
    present = there if announced is None else min(announced, there)
    found = Chunks("RF64" if wide else "WAV", tag, channels, rate, frame, byte_rate, first, announced, present, first, notes)
    found = _with_end(stream, found, size, order)
    if notes or kind == b"BW64":
        found = replace(found, head=_header(kind, order, fmt, fact, present))
    return found


def _after(stream: BinaryIO, at: int, length: int, size: int) -> int:
    """Where the chunk after one of `length` bytes at `at` begins: at an even byte, but some writers forget that."""
    after = at + length
    if length % 2 == 0 or after >= size or _is_name(_bytes(stream, after + 1, 4)) or not _is_name(_bytes(stream, after, 4)):
        return after + length % 2
    return after


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= sign < 127 for sign in name)


def _chunks_follow(stream: BinaryIO, at: int, size: int, order: str) -> bool:
    """Whether chunks fill the file from `at` to its end, to the byte: then those bytes are no samples."""
    for _ in range(_MOST_CHUNKS):
        head = _bytes(stream, at, 8)
        if len(head) < 8 or not _is_name(head[:4]):
            return False
        at += 8 + struct.unpack(f"{order}I", head[4:])[0]
        if at in (size, size - 1) or at + at % 2 == size:
            return True
        at += at % 2
    return False


def _with_end(stream: BinaryIO, found: Chunks, size: int, order: str) -> Chunks:
    """With the end of the recording, behind the chunks that follow its samples, and a note of what lies unread behind."""
    at = found.first + found.present
    if found.announced is None or found.announced > found.present:
        return replace(found, end=size)
    for _ in range(_MOST_CHUNKS):
        at += at % 2 if _is_name(_bytes(stream, at + at % 2, 4)) else 0
        head = _bytes(stream, at, 8)
        if len(head) < 8 or not _is_name(head[:4]) or head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
            break
        length = struct.unpack(f"{order}I", head[4:])[0]
        if at + 8 + length > size:
            break
        at += 8 + length
    return replace(found, end=min(at + at % 2, size))


def _header(kind: bytes, order: str, fmt: bytes, fact: bytes, present: int) -> bytes:
    """The header of a WAV file with so many bytes of samples: RF64, which may be longer than 4 GB, but for big-endian ones."""
    chunks = b"".join(
        name + struct.pack(f"{order}I", len(body)) + body for name, body in ((b"fmt ", fmt), (b"fact", fact)) if body
    )
    if order == ">":
        size = struct.pack(">I", min(present, 0xFFFF_FFFF))
        return kind + struct.pack(">I", min(12 + len(chunks) + present, 0xFFFF_FFFF)) + b"WAVE" + chunks + b"data" + size
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 4 + 36 + len(chunks) + 8 + present, present, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + chunks + b"data\xff\xff\xff\xff"


_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # of every chunk's name but the first


def _w64(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    if _bytes(stream, start + 24, 16) != b"wave" + _W64_TAIL:
        return None
    at, fmt, length = start + 40, b"", 0
    for _ in range(_MOST_CHUNKS):
        name, length = struct.unpack("<4s12xQ", _bytes(stream, at, 24))
        if name == b"data":
            break
        if name == b"fmt ":
            fmt = _bytes(stream, at + 24, min(length, 4096))
        at += max(24, length + -length % 8)
    else:
        return None
    tag, channels, rate, byte_rate, frame, _ = struct.unpack("<HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = struct.unpack("<H", fmt[24:26])[0]
    first, there = at + 24, size - at - 24
    # libsndfile reads to the end by itself where the size is nothing.
    announced = length - 24 if length > 24 else None
    return Chunks("W64", tag, channels, rate, frame, byte_rate, first, announced, min(there, announced or there), size)


def _aiff(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    kind = _bytes(stream, start + 8, 4)
    if kind not in (b"AIFF", b"AIFC"):
        return None
    at, described, samples = start + 12, b"", None
    for _ in range(_MOST_CHUNKS):
        head = _bytes(stream, at, 8)
        if len(head) < 8 or not _is_name(head[:4]):
            break
        name, length = struct.unpack(">4sI", head)
        if name == b"COMM":
            described = _bytes(stream, at + 8, min(length, 4096))
        elif name == b"SSND":
            offset = struct.unpack(">I", _bytes(stream, at + 8, 4))[0]
            samples = (at + 16 + offset, length - 8 - offset)
            if length <= 8 or at + 8 + length >= size:
                break
        at = _after(stream, at + 8, length, size)
    if samples is None or not described:
        return None
    channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", described[:18])
    codec = described[18:22] if kind == b"AIFC" else b"NONE"
    rate = _extended(exponent, mantissa)
    plain = codec in (b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64")
    frame = channels * -(-bits // 8) if plain else channels if codec.lower() in (b"ulaw", b"alaw") else 0
    first, announced = samples
    # libsndfile reads to the end by itself where the sizes are nothing.
    open_end = announced <= 0 or any(low <= announced <= high for low, high in _PIPED)
    there = max(0, size - first)
    known = None if open_end else announced
    present = there if known is None else min(known, there)
    end = size if known is None or known > there else min(size, max(at, first + present))
    return Chunks("AIFF", codec, channels, rate, frame, rate * frame, first, known, present, end)


def _extended(exponent: int, mantissa: int) -> float:
    """An 80-bit floating-point number, as Apple's headers have it."""
    try:
        return math.ldexp(mantissa, (exponent & 0x7FFF) - 16383 - 63)
    except OverflowError:
        return math.inf


def _caf(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    at, described = start + 8, b""
    for _ in range(_MOST_CHUNKS):
        name, length = struct.unpack(">4sq", _bytes(stream, at, 12))
        if name == b"data":
            break
        if name == b"desc":
            described = _bytes(stream, at + 12, 32)
        if length < 0:
            return None
        at += 12 + length
    else:
        return None
    rate, codec, _, packet, frames, channels, _ = struct.unpack(">d4sIIIII", described)
    if not math.isfinite(rate):
        rate = 0.0
    byte_rate = rate * packet / frames if packet and frames else 0.0
    first = at + 16  # the samples come after a number of edits
    there = size - first
    announced = length - 4 if length > 4 else None
    if there <= 0:
        return None
    present = there if announced is None else min(announced, there)
    found = Chunks("CAF", codec, channels, rate, packet, byte_rate, first, announced, present, size)
    if announced == present or first - start > _LONGEST_HEAD:
        return found
    # libsndfile refuses sizes that are open or too large.
    notes = () if length == -1 or announced else (_ZERO,)
    head = _bytes(stream, start, at - start) + struct.pack(">4sqI", b"data", present + 4, 0)
    return replace(found, notes=notes, head=head)


def _au(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    order = ">" if _bytes(stream, start, 4) == b".snd" else "<"
    first, length, codec, rate, channels = struct.unpack(f"{order}5I", _bytes(stream, start + 4, 20))
    first += start
    if first > size:
        return None
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(codec, 0)
    there = size - first
    announced = None if length in (0, 0xFFFF_FFFF) else length
    present = there if announced is None else min(announced, there)
    found = Chunks("AU", codec, channels, rate, width * channels, float(rate) * width * channels, first, announced, present, size)
    if length or not there or first - start > _LONGEST_HEAD:
        return found
    head = _bytes(stream, start, first - start)
    notes = (_ZERO,)
    return replace(found, notes=notes, head=head[:8] + b"\xff" * 4 + head[12:])


def _nist(stream: BinaryIO, start: int, size: int) -> Chunks | None:
    lines = _bytes(stream, start, 1024).split(b"\n")
    fields = {words[0]: words[2] for line in lines if len(words := line.split()) >= 3}
    try:
        first = start + int(lines[1])
        rate, channels, width, frames = (
            int(fields[name]) for name in (b"sample_rate", b"channel_count", b"sample_n_bytes", b"sample_count")
        )
    except (KeyError, ValueError, IndexError):
        return None
    if first <= start or not all(0 <= number < 1 << 48 for number in (rate, channels, width, frames)):
        return None
    frame, there = width * channels, max(0, size - first)
    return Chunks(
        "NIST", b"", channels, rate, frame, float(rate) * frame, first, frames * frame, min(frames * frame, there), size
    )
