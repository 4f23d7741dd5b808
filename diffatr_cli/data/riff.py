"""The chunks of a RIFF file (WAV, BWF, RF64) that are not sound, by a bounded look at its structure."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from typing import BinaryIO

MOST_BYTES = 1 << 20
"""Of a chunk that is read; of a longer one only so much."""
_MOST_CHUNKS = 256
_FORMS = {b"RIFF", b"RF64", b"BW64", b"RIFX"}
_IN_DS64 = 0xFFFFFFFF  # a size that does not fit into 32 bits stands in the chunk `ds64`


def chunks(stream: BinaryIO, wanted: Set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of these names with what is in them, as they come; nothing of a file that is not RIFF.

    A size that points beyond the file ends it: what was found so far holds.
    """
    head = stream.read(12)
    if len(head) < 12 or head[:4] not in _FORMS:
        return
    order = ">" if head[:4] == b"RIFX" else "<"
    size_of_data = None
    for _ in range(_MOST_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            return
        name, size = head[:4], struct.unpack(f"{order}I", head[4:])[0]
        begin = stream.tell()
        if name == b"ds64":
            sizes = stream.read(16)
            size_of_data = struct.unpack("<Q", sizes[8:16])[0] if len(sizes) == 16 else None
        elif name in wanted:
            yield name, stream.read(min(size, MOST_BYTES))
        if name == b"data" and size == _IN_DS64:
            if size_of_data is None:
                return
            size = size_of_data
        stream.seek(begin + size + size % 2)


def listed(chunk: bytes, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a chunk `LIST` of a kind, such as `INFO`."""
    if chunk[:4] != kind:
        return
    at = 4
    while at + 8 <= len(chunk):
        size = struct.unpack("<I", chunk[at + 4 : at + 8])[0]
        yield chunk[at : at + 4], chunk[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
