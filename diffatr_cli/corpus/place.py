"""Where an index is kept: a folder of this machine, or a prefix in object storage (`object_storage`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffATRError, UsageError
from . import checksums
from .report import CannotUpdate, folder_gone
from .scan import identity_of
from .snapshot import mark_of_tables
from .troubles import refused, told_of_system

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import DBConnection
    from lancedb.table import Table

    from .frames import Frames, FrameTable

TABLE_ID = b"diffatr.table"
"""In the metadata of a table's schema: what tells one that was made anew from the one before, of equal version."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # s3://..., which a Path writes with one slash; no drive of Windows
_NOWHERE = {"db", "file", "file+uring", "file-object-store", "memory", "shared-memory"}  # known to LanceDB, and no storage
_POLL = 0.2  # seconds between two looks whether another process is done


class Place(ABC):
    """Where an index is kept. `str` gives it as a person writes it.

    Attributes:
        address: names it to `place_of`, in whatever folder a process works.
        local: the folder of the files that this machine keeps of it. They can be made again from the tables.
        remote: whether all else lies elsewhere, so that what was read is worth keeping on this machine.
        within: a folder that this place lies below, and that is not to be made with it where it is gone.
    """

    address: str
    local: Path
    remote = False
    within: Path | None = None

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def check(self) -> None:
        """Raises DiffATRError where it cannot be reached, so far as that shows at once."""

    @abstractmethod
    def is_used(self) -> bool:
        """Whether there is, or ever was, an index."""

    @abstractmethod
    def connect(self) -> DBConnection:
        """LanceDB's connection to the tables."""

    def make(self, table: str, rows: pa.Table | pa.RecordBatchReader) -> Table:
        """Make a table of these rows, in one commit, in the place of any other."""
        import pyarrow as pa

        schema = rows.schema.with_metadata({TABLE_ID: uuid.uuid4().hex})
        if isinstance(rows, pa.Table):
            rows = rows.cast(schema)
        else:
            rows = pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in rows))
        return self.connect().create_table(table, rows, mode="overwrite" if self.has(table) else "create")

    @abstractmethod
    def has(self, table: str) -> bool:
        """Whether there is such a table; the remains of one that was being made are none."""

    @abstractmethod
    def tables(self, prefix: str) -> list[str]:
        """The names of the tables that begin with `prefix`, and perhaps of remains of some."""

    @abstractmethod
    def remove(self, table: str) -> None:
        """Remove a table, or what is there of it."""

    @abstractmethod
    def frames(self, name: str) -> Frames:
        """The table of frames of this name."""

    @abstractmethod
    def mark(self, tables: Sequence[str], frames: Sequence[str] = ()) -> str | None:
        """What any commit to these tables, and tables of frames, changes; None where one is missing."""

    @abstractmethod
    def locked(self, wait: Callable[[str], None] | None) -> contextlib.AbstractContextManager[bool]:
        """While the block runs, nobody else writes; gives whether that was waited for.

        Args:
            wait: for whoever writes now, until that is done or killed. It is told once, with a sentence for the person, when the
                waiting begins. None does not wait.

        Raises:
            CannotUpdate: somebody else is writing, or nothing can be locked there.
            FolderGone: the folder `within` which it lies is gone.
        """

    @abstractmethod
    def told(self, error: Exception) -> DiffATRError | None:
        """What a person is to be told of an error of LanceDB or of the system; None where it is damage."""

    @abstractmethod
    def may_write(self) -> None:
        """Raises CannotUpdate where the lock that was taken is not held any more, or what was locked is gone."""

    # Checksums of a table's files, as `checksums` has them, where nothing else sees to it that files stay as they are.

    @abstractmethod
    def misfits(self, table: str, without: str | None = None) -> Iterator[str]:
        """The files of a table that do not fit their checksums, by their names below it."""

    @abstractmethod
    def seal(self, table: str) -> None:
        """Record the checksums of a table's files."""

    @abstractmethod
    def prune(self, table: str) -> None:
        """Drop the checksums of files that are gone."""

    @abstractmethod
    def remove_below(self, table: str, folder: str) -> None:
        """Remove a folder of a table in which a file does not fit its checksum."""

    @abstractmethod
    def size(self, table: str) -> int:
        """Bytes of a table that is damaged, as far as they are known."""


class Folder(Place):
    """A folder of this machine, or of a drive that is mounted there."""

    def __init__(self, path: Path) -> None:
        self.address, self.local = os.path.abspath(path), path
        self._locked: tuple[int, int] | None = None

    def __str__(self) -> str:
        return str(self.local)

    def check(self) -> None:
        """As `Place`. What is wrong with a folder shows where it is read or written."""

    def is_used(self) -> bool:
        """As `Place`."""
        return self.local.exists()

    def connect(self) -> DBConnection:
        """As `Place`."""
        import lancedb

        return lancedb.connect(self.local)

    def has(self, table: str) -> bool:
        """As `Place`."""
        return any(self._of(table).glob("_versions/*.manifest"))

    def tables(self, prefix: str) -> list[str]:
        """As `Place`."""
        return [path.stem for path in self.local.glob(f"{prefix}*.lance")]

    def remove(self, table: str) -> None:
        """As `Place`."""
        checksums.forget(self._of(table))
        shutil.rmtree(self._of(table), ignore_errors=True)

    def frames(self, name: str) -> FrameTable:
        """As `Place`."""
        from .frames import FrameTable

        return FrameTable(self.local, name)

    def mark(self, tables: Sequence[str], frames: Sequence[str] = ()) -> str | None:
        """As `Place`. It takes no LanceDB."""
        return mark_of_tables(self.local, tables, [self.frames(name).path for name in frames])

    @contextlib.contextmanager
    def locked(self, wait: Callable[[str], None] | None) -> Iterator[bool]:
        """As `Place`."""
        import filelock

        lock, waited = filelock.FileLock(self.local / "lock"), False
        try:
            while not lock.is_locked:
                if self.within is not None and not self.within.is_dir():  # each time: the lock makes the folders above it
                    raise folder_gone(self.within)
                self.local.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire(timeout=0)
                    break
                text = f"{self}: another process is indexing this folder now."
                if wait is None:
                    raise CannotUpdate(f"{text} Wait for it, then run the command again.")
                if not waited:
                    wait(f"{text} Waiting until it is done.")
                waited = True
                time.sleep(_POLL)
        except OSError as error:
            raise refused(self.local, error.errno) from None
        except NotImplementedError:  # a file system without locks
            raise refused(self.local, None) from None
        self._locked = identity_of(self.local)
        try:
            yield waited
        finally:
            self._locked = None
            lock.release()

    def told(self, error: Exception) -> DiffATRError | None:
        """As `Place`."""
        return told_of_system(self.local, error)

    def may_write(self) -> None:
        """As `Place`. What the system has locked stays so, but a folder may be moved, or its drive be pulled."""
        if self._is_gone():
            raise CannotUpdate(f"{self}: the folder of the index is gone while it was written. Run the command again.")

    def misfits(self, table: str, without: str | None = None) -> Iterator[str]:
        """As `Place`."""
        return checksums.misfits(self._of(table), without)

    def seal(self, table: str) -> None:
        """As `Place`."""
        if not self._is_gone():
            checksums.record(self._of(table))

    def prune(self, table: str) -> None:
        """As `Place`."""
        if not self._is_gone():
            checksums.prune(self._of(table))

    def remove_below(self, table: str, folder: str) -> None:
        """As `Place`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._of(table) / folder)

    def size(self, table: str) -> int:
        """As `Place`."""
        return sum(path.stat().st_size for path in self._of(table).rglob("*") if path.is_file())

    def _is_gone(self) -> bool:
        """Whether what was locked is not there any more. Whoever writes there makes it anew, where nobody looks for it."""
        return self._locked is not None and identity_of(self.local) != self._locked

    def _of(self, table: str) -> Path:
        return self.local / f"{table}.lance"


def place_of(index: str | Path) -> Place:
    """The place that a person names: a folder, or an address such as s3://bucket/prefix.

    Raises:
        UsageError: an address at which nothing can be kept.
    """
    text = index if isinstance(index, str) else index.as_posix()
    match = _SCHEME.match(text)
    if match is None or Path(text).exists():
        return Folder(Path(index))
    from .object_storage import ObjectStorage

    scheme, rest = match[1].lower(), text[match.end() :].rstrip("/")
    if scheme in _NOWHERE or not rest:
        raise no_place(text)
    return ObjectStorage(f"{scheme}://{rest}")


def no_place(index: str) -> UsageError:
    """The error for an address at which nothing can be kept."""
    return UsageError(
        f"{index}: an index is kept in a folder, or in object storage that LanceDB knows, such as s3://bucket/prefix. "
        "Name such a place: --index DIR|URI"
    )
