"""An export as one ZIP, made while it is sent: nothing of it is kept on a disk."""

from __future__ import annotations

import io
import itertools
import time
import zipfile
from collections.abc import Generator, Iterable, Iterator

from ..data.listing import folded
from ..errors import DiffATRError
from .edit_lists import FRAME_RATE
from .export import Exported, Piece, Unreadable, exporting, numbered

_EARLIEST, _LATEST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)  # that a ZIP can say


def zip_of(pieces: Iterable[Piece], *, cut: bool, title: str, rate: int = FRAME_RATE) -> Iterator[bytes]:
    """The bytes of a ZIP of pieces and lists, as `export.exporting` makes them. Sound does not shrink, so it is only stored.

    Raises:
        DiffATRError: a recording could be read to its middle only; the ZIP is not whole then.
    """
    sink = _Zip()
    for _ in exporting(pieces, sink, Exported(), cut=cut, title=title, rate=rate):
        if taken := sink.taken():
            yield taken
    sink.close()
    yield sink.taken()


class _Waiting(io.RawIOBase):
    """What was written and not yet taken. It cannot be sought in, so a ZIP is written from front to back."""

    def __init__(self) -> None:
        self._content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self._content += content
        return len(content)

    def take(self) -> bytes:
        content, self._content = bytes(self._content), bytearray()
        return content


class _Zip:
    """A `Sink` that is a ZIP."""

    def __init__(self) -> None:
        self._waiting, self._given = _Waiting(), set[str]()
        self._zip = zipfile.ZipFile(self._waiting, "w", zipfile.ZIP_STORED)

    def taken(self) -> bytes:
        """What there is since it was last asked for."""
        return self._waiting.take()

    def close(self) -> None:
        """Write the directory at the end."""
        self._zip.close()

    def write(self, name: str, content: Iterable[bytes], modified: float | None) -> Generator[None, None, str]:
        """As `export.Sink`, but what was sent cannot be taken back: of a file that ends too early it raises DiffATRError."""
        name = self._free(name)
        entry = zipfile.ZipInfo(name, _moment(modified))
        entry.external_attr = 0o644 << 16
        with self._zip.open(entry, "w", force_zip64=True) as out:
            try:
                for block in content:
                    out.write(block)
                    yield
            except Unreadable as error:
                raise DiffATRError(f"{name}: {error} The ZIP is not whole.") from None
        return name

    def write_lists(self, lists: dict[str, bytes]) -> list[str]:
        """As `export.Sink`."""
        names = [self._free(name) for name in lists]
        for name, content in zip(names, lists.values(), strict=True):
            entry = zipfile.ZipInfo(name, _moment(None))
            entry.external_attr = 0o644 << 16
            self._zip.writestr(entry, content, zipfile.ZIP_DEFLATED)
        return names

    def _free(self, name: str) -> str:
        free = next(each for number in itertools.count(1) if folded(each := numbered(name, number)) not in self._given)
        self._given.add(folded(free))
        return free


def _moment(modified: float | None) -> tuple[int, int, int, int, int, int]:
    try:
        moment = time.localtime(modified)[:6]
    except (OverflowError, OSError, ValueError):
        return _EARLIEST
    return min(max(moment, _EARLIEST), _LATEST)
