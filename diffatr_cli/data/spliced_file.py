"""A file as it should be: given bytes and stretches of another file, read as one."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

Piece = bytes | tuple[int, int]
"""Bytes as they are, or from where to where in the file."""


class SplicedFile(io.RawIOBase):
    """Reads pieces one after the other: a new header before old samples, or a stretch of a file as a file of its own.

    Decoders call it from C, where an exception would only be printed. What goes wrong reads as the file's end, and is kept
    in `trouble`.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._pieces = pieces
        self._ends = list(accumulate(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces))
        self._at = 0
        self.trouble: OSError | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, len(self))[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target) and self._at < len(self):
            number = bisect_right(self._ends, self._at)
            piece, left = self._pieces[number], self._ends[number] - self._at
            count = min(left, len(target) - done)
            if isinstance(piece, bytes):
                first = len(piece) - left
                target[done : done + count] = piece[first : first + count]
            else:
                try:
                    where = piece[1] - left
                    if self._file.tell() != where:
                        self._file.seek(where)
                    count = self._file.readinto(target[done : done + count])
                except OSError as error:
                    self.trouble, count = error, 0
                if not count:
                    break
            done += count
            self._at += count
        return done

    def close(self) -> None:
        self._file.close()
        super().close()
