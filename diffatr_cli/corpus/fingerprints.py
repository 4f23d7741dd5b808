"""The fingerprints of a folder's recordings, kept beside its index: a file is read once, and again when it changes."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.fingerprint import RATE, Fingerprint, fingerprint
from ..data.audio import open_sound
from ..engines import by_item
from ..files import replacing
from ..progress import Progress, silent
from .examine import Content, Failure, look_into, reader
from .gone import DAYS, MANY
from .index import FolderIndex
from .read_ahead import read_ahead
from .report import Damaged, Skipped, folder_gone, no_sounds
from .scan import Stamp, identity_of, scan
from .sqlite_file import SqliteFile, connected
from .windows import Missing

_COMMIT_SECONDS = 5.0  # a kill loses about so much work
_READ_AHEAD = 16 << 20  # bytes of fingerprints that wait to be taken
_TABLES = """
    CREATE TABLE files (
        path BLOB PRIMARY KEY, stamp TEXT NOT NULL, hash TEXT NOT NULL, reason TEXT NOT NULL, missing TEXT NOT NULL,
        reader TEXT NOT NULL, checksum INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE fingerprints (
        hash TEXT PRIMARY KEY, seconds REAL NOT NULL, bits BLOB NOT NULL, levels BLOB NOT NULL, checksum INTEGER NOT NULL
    );
"""
_UNUSED = "{} FROM fingerprints WHERE hash NOT IN (SELECT hash FROM files) AND hash NOT IN (SELECT hash FROM gone)"


@dataclass(frozen=True)
class Fingerprints:
    """What a folder holds, as fingerprints.

    Attributes:
        files: the paths below the folder of each content, by its hash, sorted.
        prints: of each content, by its hash.
        skipped: what cannot be read, and why.
        partial: what is used although a part of the recording is missing.
        read: how many files were read for it.
    """

    files: dict[str, list[str]]
    prints: dict[str, Fingerprint]
    skipped: list[Skipped]
    partial: list[Skipped]
    read: int


class _File(NamedTuple):
    """What is remembered of a file: its Stamp as text, the hash of its content, why it cannot be used, what is missing of it, and
    which reader says so."""

    stamp: str
    content: str
    reason: str
    missing: str
    reader: str


def read_fingerprints(folder: FolderIndex, progress: Progress = silent, workers: int | None = None) -> Fingerprints:
    """The fingerprints of all recordings in a folder; what is not known yet is read, in blocks, and remembered.

    Args:
        folder: whose recordings.
        progress: told of files.
        workers: threads that read; None takes one a CPU.

    Raises:
        CannotUpdate: what is remembered cannot be read or written.
        FolderGone: the folder is gone, or goes while this reads in it; nothing is forgotten.
        DiffATRError: the folder holds no sound that can be used.
    """
    if (identity := identity_of(folder.corpus)) is None:
        raise folder_gone(folder.corpus)
    seen = scan(folder.corpus, folder.folder)
    skipped = [*seen.unlisted, *seen.unreadable]
    if not seen.files:
        raise no_sounds(folder.corpus, skipped)
    table = _Table(folder.folder, folder.name_beside("fingerprints-v1"))
    known, prints = table.load()
    now = reader()
    files = {
        path: known[path]
        for path, stamp in seen.files.items()
        if path in known and known[path].stamp == _text(stamp) and _holds(known[path], prints, now)
    }
    todo = {path: stamp for path, stamp in seen.files.items() if path not in files}
    missing_of = {row.content: row.missing for row in known.values()}
    makers = (
        partial(look_into, folder.corpus / os.fsdecode(path), stamp, prints.__contains__, partial(_heard, folder.corpus, path))
        for path, stamp in todo.items()
    )
    new, committed = dict[bytes, _File](), time.monotonic()
    with contextlib.closing(read_ahead(makers, _weight, _READ_AHEAD, workers or os.cpu_count() or 1)) as found:
        for done, (path, of_file) in enumerate(zip(todo, by_item(found, len(todo)), strict=True)):
            progress(done, len(todo), "fingerprinting")
            content, heard, missing, failure = "", None, "", None
            for finding in of_file:
                match finding:
                    case Content(hash=content):
                        pass
                    case Fingerprint():
                        heard = finding
                    case Missing(what=missing):
                        pass
                    case Failure():
                        failure = finding
            if failure is not None:
                if failure.lasting:
                    new[path] = _File(_text(todo[path]), content, failure.reason, "", now)
                else:
                    skipped.append(Skipped(os.fsdecode(path), failure.reason))
            else:
                if heard is not None:
                    prints[content] = heard
                    missing_of[content] = missing
                new[path] = _File(_text(todo[path]), content, "", missing_of.get(content, ""), now)
            if identity_of(folder.corpus) != identity:
                raise folder_gone(folder.corpus, while_indexed=True)
            if time.monotonic() - committed > _COMMIT_SECONDS:
                table.add(new, prints)
                files |= new
                new, committed = {}, time.monotonic()
    files |= new
    if new or files.keys() != known.keys():
        table.add(new, prints)
        table.keep(files)
    progress(len(todo), len(todo), "fingerprinting")
    skipped += [Skipped(os.fsdecode(path), row.reason) for path, row in files.items() if row.reason]
    by_content: dict[str, list[str]] = {}
    for path, row in sorted(files.items()):
        if not row.reason:
            by_content.setdefault(row.content, []).append(os.fsdecode(path))
    if not by_content:
        raise no_sounds(folder.corpus, skipped)
    partly = [Skipped(os.fsdecode(path), row.missing) for path, row in sorted(files.items()) if row.missing]
    used = {content: prints[content] for content in by_content}
    return Fingerprints(by_content, used, sorted(skipped, key=lambda each: each.path), partly, len(todo))


def _heard(corpus: Path, path: bytes) -> Iterator[Fingerprint | Missing]:
    with open_sound(corpus / os.fsdecode(path), rate=RATE) as sound:
        yield fingerprint(sound.blocks())
        if sound.partial:
            yield Missing(sound.partial)


def _weight(finding: Content | Fingerprint | Missing | Failure | None) -> int:
    return finding.bits.nbytes + finding.levels.nbytes if isinstance(finding, Fingerprint) else 0


def _text(stamp: Stamp) -> str:
    return " ".join(map(str, stamp))


def _holds(row: _File, prints: Mapping[str, Fingerprint], now: str) -> bool:
    """Whether what is remembered of a file that did not change need not be found out again."""
    return row.reader == now if row.reason else row.content in prints


class _Table(SqliteFile):
    """What is remembered of the files of one corpus, and the fingerprints of their contents.

    Each row carries a checksum; one that does not fit counts as not there. A table that cannot be read is made anew.
    """

    def load(self) -> tuple[dict[bytes, _File], dict[str, Fingerprint]]:
        """What is remembered, and is whole. Raises CannotUpdate."""
        if self.exists:
            try:
                return self._read()
            except Damaged:
                pass
        with self._told(), replacing(self.path) as temporary:
            temporary.unlink(missing_ok=True)
            with contextlib.closing(connected(temporary, "rwc")) as new, new:
                new.executescript(_TABLES)
        return {}, {}

    def add(self, files: Mapping[bytes, _File], prints: Mapping[str, Fingerprint]) -> None:
        """Put in these files, with the fingerprints of their contents."""
        wanted = {row.content for row in files.values() if not row.reason}
        with self._open() as database:
            for content in wanted:
                each = prints[content]
                values = each.seconds, each.bits.astype("<u4").tobytes(), each.levels.astype("<f2").tobytes()
                row = (content, *values, _checksum(content, *values))
                database.execute("INSERT OR REPLACE INTO fingerprints VALUES (?, ?, ?, ?, ?)", row)
            rows = [(path, *row, _checksum(path, *row)) for path, row in files.items()]
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def keep(self, files: Mapping[bytes, _File]) -> None:
        """Forget all other files, and fingerprints that no file has; those that go many at once stay a while, as in `gone`."""
        with self._open() as database:
            gone = [path for (path,) in database.execute("SELECT path FROM files").fetchall() if path not in files]
            database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
            database.execute("CREATE TABLE IF NOT EXISTS gone (hash TEXT PRIMARY KEY, since REAL NOT NULL)")
            lost = database.execute(_UNUSED.format("SELECT hash")).fetchall()
            now = time.time()
            if len(lost) >= MANY:
                database.executemany("INSERT INTO gone VALUES (?, ?)", [(content, now) for (content,) in lost])
            back = "hash IN (SELECT hash FROM files) OR since NOT BETWEEN ? AND ?"
            database.execute(f"DELETE FROM gone WHERE {back}", (now - DAYS * 24 * 3600, now))
            database.execute(_UNUSED.format("DELETE"))

    def _read(self) -> tuple[dict[bytes, _File], dict[str, Fingerprint]]:
        files, prints = dict[bytes, _File](), dict[str, Fingerprint]()
        with self._open() as database:
            for path, *row, checksum in database.execute("SELECT * FROM files"):
                if checksum == _checksum(path, *row):
                    files[path] = _File(*row)
            for content, *values, checksum in database.execute("SELECT * FROM fingerprints"):
                if checksum == _checksum(content, *values):
                    seconds, bits, levels = values
                    prints[content] = Fingerprint(np.frombuffer(bits, "<u4"), np.frombuffer(levels, "<f2"), seconds)
        return files, prints


def _checksum(*values: object) -> int:
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value if isinstance(value, bytes) else f"\0{value}".encode("utf-8", "surrogateescape"), checksum)
    return checksum
