"""A table of an index that is one SQLite file: opened in transactions, its refusals told to people, its damage told apart."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import DiffATRError
from .report import CannotUpdate, Damaged
from .troubles import refused

UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises; the second where an error's own words are damaged."""

_LOCKED_SECONDS = 60.0  # another process commits a few megabytes
_HEADER = b"SQLite format 3\0"
_JOURNAL_FORMS = b"\1\1"  # bytes 18 and 19: no write-ahead log
_REFUSALS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


class SqliteFile:
    """One file NAME.sqlite in the folder of an index.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.sqlite"
        self._folder = folder

    @property
    def exists(self) -> bool:
        """Whether there is such a table."""
        return self.path.is_file()

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The table, in one transaction. Raises Damaged or CannotUpdate."""
        with self._told():
            with self.path.open("rb") as file:
                if not (header := file.read(20)).startswith(_HEADER) or header[18:] != _JOURNAL_FORMS:
                    raise Damaged(self._folder)
            with contextlib.closing(connected(self.path, "rw")) as database, database:
                yield database

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DiffATRError as error:  # of `replacing`, which knows no other place to name
            if isinstance(error.__cause__, OSError) and not isinstance(error, CannotUpdate | Damaged):
                raise refused(self._folder, error.__cause__.errno) from error
            raise
        except FileNotFoundError as error:
            raise Damaged(self._folder) from error
        except OSError as error:
            raise refused(self._folder, error.errno) from error
        except UNREADABLE as error:
            number = refusal(error)
            raise (Damaged(self._folder) if number is None else refused(self._folder, number)) from error


def connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_LOCKED_SECONDS)


def refusal(error: Exception) -> int | None:
    """Which refusal of the system an error is, by its number; None where it is damage."""
    return _REFUSALS.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF)
