"""The links of an Ogg file: each is a recording of its own, and players play them one after the other.

Links come from `cat a.ogg b.ogg` and from radio streams, which begin a new one with every title. libsndfile reads the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

_HEADER = 27  # bytes of a page before its table of segments
_LONGEST_PAGE = _HEADER + 255 + 255 * 255
_BEGINS = 2  # flag of the first page of a stream
_CODECS = {
    b"\x01vorbis": "vorbis",
    b"OpusHead": "opus",
    b"\x7fFLAC": "flac",
    b"Speex   ": "speex",
    b"\x80theora": "theora",
    b"fishead\0": "skeleton",
    b"OVP80": "vp8",
    b"\x01video": "video",
    b"\x01audio": "audio",
}


@dataclass
class Link:
    """One recording of an Ogg file: bytes `first` to `end`."""

    first: int
    end: int
    codecs: list[str]
    """Of its streams, in the order of their first pages; "" for others."""
    cut: bool = False
    """Whether the file ends inside a page or a packet. A missing end mark alone means nothing: recorders leave it out."""
    lost: int = 0
    """Bytes between its pages that are no pages."""
    last_page_at: int = 0
    """The sample at which the sound of its last page begins, by the page before."""


def read_links(stream: BinaryIO, first: int, size: int) -> list[Link]:
    """The links of the Ogg stream from byte `first` to `size`, from the headers of its pages; none where it is no Ogg."""
    links: list[Link] = []
    at, opening, granule = first, False, 0
    while at < size:
        stream.seek(at)
        head = stream.read(_HEADER + 255)
        if head[:4] != b"OggS" or (len(head) > 4 and head[4]):
            after = _next_page(stream, at + 1, size)
            if not links:
                return []
            links[-1].lost += after - at
            at = links[-1].end = after
            continue
        segments = head[26] if len(head) > 26 else 255
        table = head[_HEADER : _HEADER + segments]
        after = at + _HEADER + segments + sum(table)
        begins = len(head) > 5 and bool(head[5] & _BEGINS)
        if begins and not opening:
            links.append(Link(at, at, []))
            granule = 0
        if not links:
            return []
        opening = begins
        if begins:
            stream.seek(at + _HEADER + segments)
            links[-1].codecs.append(_codec(stream.read(8)))
        # A packet goes on in the next page where its last segment is a full one.
        links[-1].cut = len(table) < segments or after > size or (bool(table) and table[-1] == 255)
        at = links[-1].end = min(after, size)
        links[-1].last_page_at = granule
        granule = max(granule, int.from_bytes(head[6:14], "little", signed=True))
    return links


def _codec(packet: bytes) -> str:
    return next((name for mark, name in _CODECS.items() if packet.startswith(mark)), "")


def _next_page(stream: BinaryIO, at: int, size: int) -> int:
    """Where the next page begins, or the file's end."""
    while at < size:
        stream.seek(at)
        part = stream.read(_LONGEST_PAGE)
        if (found := part.find(b"OggS\0")) >= 0:
            return at + found
        at += max(1, len(part) - 4)
    return size
