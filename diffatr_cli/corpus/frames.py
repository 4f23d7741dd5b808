"""The frames of an index's windows, beside the tables: one SQLite file a model, of which a search reads a shortlist's rows alone.

In object storage they lie in a table of LanceDB (`stored_frames`).

They are many times the size of the vectors, so nothing holds all of them. As in `store`, each row carries a checksum, what does
not fit is never used, and `FrameTable.mend` throws it out so that an update makes it again. A content counts once all its
windows are there: windows may be written while its recording is still being read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.ragged import Ragged
from ..files import replacing
from .report import Damaged
from .sqlite_file import UNREADABLE, SqliteFile, connected, refusal

_KEEP_SECONDS = 600.0  # what no file has any more: a search that began before may still ask for it
_WINDOWS = "SELECT number, length, checksum, frames FROM frames WHERE hash = ? AND number < ? ORDER BY number"
_TABLES = """
    CREATE TABLE contents (hash TEXT PRIMARY KEY, windows INTEGER NOT NULL, added REAL NOT NULL, unused_since REAL) WITHOUT ROWID;
    CREATE TABLE frames (
        hash TEXT NOT NULL, number INTEGER NOT NULL, length INTEGER NOT NULL, checksum INTEGER NOT NULL, frames BLOB NOT NULL,
        UNIQUE (hash, number)
    );
"""


class Frames(Protocol):
    """The frames of contents, by one model. The frames of a window are (T, F) float16.

    Attributes:
        unreadable: whether `mend` could read nothing of it.
    """

    unreadable: bool

    def contents(self) -> set[str]:
        """The contents whose frames are there, by hash; whether they are whole shows where they are read. Raises Damaged."""

    def open(self) -> None:
        """See that `read` gives what is there now, whatever is deleted in the next minutes."""

    def read(self, windows: Sequence[tuple[str, int]]) -> Ragged:
        """The frames of some windows, named by the hash of their content and their number in it.

        Raises:
            Damaged: one of them is not there or does not fit its checksum.
        """

    def mend(self, *, anew: bool = False) -> tuple[set[str], set[str]]:
        """The contents that are whole, and those that were not: the table is rid of these, or made where there is none.

        Args:
            anew: write the table anew, since changing it failed.
        """

    def add(self, content: str, first: int, frames: Sequence[np.ndarray]) -> None:
        """Put in some windows of a content, of numbers from `first` on; it counts once `complete` was called."""

    def complete(self, contents: Mapping[str, int]) -> None:
        """Count these contents, with how many windows each has."""

    def keep(self, used: set[str]) -> None:
        """Delete the frames of contents that have not been used for a while, and those of contents that were never completed."""


class FrameTable(SqliteFile):
    """`Frames` in a file.

    Attributes:
        path: of its file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.unreadable = False

    def contents(self) -> set[str]:
        """As `Frames`."""
        if not self.exists:
            return set()
        with self._open() as database:
            return {content for (content,) in database.execute("SELECT hash FROM contents")}

    def open(self) -> None:
        """As `Frames`: `keep` sees to it."""

    def read(self, windows: Sequence[tuple[str, int]]) -> Ragged:
        """As `Frames`."""
        found = []
        with self._open() as database:
            for content, number in windows:
                command = "SELECT number, length, checksum, frames FROM frames WHERE hash = ? AND number = ?"
                row = database.execute(command, (content, number)).fetchone()
                if row is None or not _fits(content, number, row):
                    raise Damaged(self._folder)
                found.append(np.frombuffer(row[3], "<f2").reshape(row[1], -1))
        return Ragged.of_halves(found)

    def mend(self, *, anew: bool = False) -> tuple[set[str], set[str]]:
        """As `Frames`."""
        try:
            return self._mended(anew)
        except Damaged:
            self.unreadable = True
            self._write_anew({})
            return set(), set()

    def _mended(self, anew: bool) -> tuple[set[str], set[str]]:
        if not self.exists:
            self._write_anew({})
            return set(), set()
        with self._open() as database:
            whole, damaged = _checked(database)
        if damaged or anew:  # nothing is changed inside a damaged file
            self._write_anew(whole)
        return set(whole), damaged

    def add(self, content: str, first: int, frames: Sequence[np.ndarray]) -> None:
        """As `Frames`."""
        rows = []
        for number, each in enumerate(frames, first):
            values = np.ascontiguousarray(each, "<f2").tobytes()
            rows.append((content, number, len(each), frames_checksum(content, number, len(each), values), values))
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?)", rows)

    def complete(self, contents: Mapping[str, int]) -> None:
        """As `Frames`."""
        with self._open() as database:
            _count(database, contents)

    def keep(self, used: set[str]) -> None:
        """As `Frames`."""
        now = time.time()
        with self._open() as database:
            for content, since in database.execute("SELECT hash, unused_since FROM contents").fetchall():
                if content in used and since is not None:
                    database.execute("UPDATE contents SET unused_since = NULL WHERE hash = ?", (content,))
                elif content not in used and since is None:
                    database.execute("UPDATE contents SET unused_since = ? WHERE hash = ?", (now, content))
                elif content not in used and not now - _KEEP_SECONDS <= since <= now:
                    database.execute("DELETE FROM contents WHERE hash = ?", (content,))
            _delete_incomplete(database)

    def _write_anew(self, contents: Mapping[str, int]) -> None:
        """Make the table, with some contents of the one that is there, by how many windows each has."""
        with self._told(), replacing(self.path) as temporary:
            temporary.unlink(missing_ok=True)
            with contextlib.closing(connected(temporary, "rwc")) as new, new:
                new.executescript(_TABLES)
                if contents:
                    with self._open() as old:
                        for content, windows in contents.items():
                            rows = ((content, *row) for row in old.execute(_WINDOWS, (content, windows)))
                            new.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?)", rows)
                    _count(new, contents)
            Path(f"{os.fspath(self.path)}-journal").unlink(missing_ok=True)  # of the file that is replaced


class StoredFrames:
    """`Recordings.frames` of an index, read where a search asks.

    Args:
        snapshot: is removed where damage shows, so that the next update looks at everything.
        hashes: (C,) of the contents, ASCII.
        offsets: as in `Recordings`.
    """

    def __init__(self, table: Frames, snapshot: Path, hashes: np.ndarray, offsets: np.ndarray) -> None:
        self._table, self._snapshot, self._hashes, self._offsets = table, snapshot, hashes, offsets
        table.open()

    def __call__(self, rows: np.ndarray) -> Ragged:
        contents = np.searchsorted(self._offsets, rows, "right") - 1
        numbers = rows - self._offsets[contents]
        hashes = [each.decode("ascii") for each in self._hashes[contents].tolist()]
        try:
            return self._table.read(list(zip(hashes, numbers.tolist(), strict=True)))
        except Damaged:
            with contextlib.suppress(OSError):
                self._snapshot.unlink(missing_ok=True)
            raise


def _delete_incomplete(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM frames WHERE hash NOT IN (SELECT hash FROM contents)")


def _count(database: sqlite3.Connection, contents: Mapping[str, int]) -> None:
    now = time.time()
    rows = ((content, windows, now) for content, windows in contents.items())
    database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, NULL)", rows)


def _checked(database: sqlite3.Connection) -> tuple[dict[str, int], set[str]]:
    """The contents that are whole, with how many windows each has, and those that are not."""
    whole, damaged = dict[str, int](), set[str]()
    # The order in which they lie on the disk; each as a search reads it.
    for content, windows in database.execute("SELECT hash, windows FROM contents ORDER BY added").fetchall():
        try:
            rows = database.execute(_WINDOWS, (content, windows))
            fit = [_fits(content, number, row) for number, row in enumerate(rows)]
        except UNREADABLE as error:
            if refusal(error) is not None:
                raise
            fit = []
        if fit and all(fit) and len(fit) == windows:
            whole[content] = windows
        else:
            damaged.add(content)
    return whole, damaged


def _fits(content: str, number: int, row: Sequence[object]) -> bool:
    """Whether a row (number, length, checksum, frames) is what was written for a window."""
    found, length, checksum, values = row
    if found != number or not isinstance(length, int) or not isinstance(values, bytes):
        return False
    return checksum == frames_checksum(content, number, length, values)


def frames_checksum(content: str, number: int, length: int, values: bytes) -> int:
    """What a row of frames carries."""
    return zlib.crc32(values, zlib.crc32(f"{content} {number} {length}".encode()))
