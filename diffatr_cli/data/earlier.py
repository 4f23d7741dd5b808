"""What earlier runs of `prepare` finished: the manifest, the journal of a run that did not end, and the WAV files themselves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DiffATRError
from ..files import reason
from ..interrupts import interrupts_wait
from ..printable import are, counted
from ..progress import Progress, silent
from .manifest import MANIFEST, Record, read_manifest
from .write_wav import stream_wav, wav_size

JOURNAL = "prepare.journal"
_BLOCK = 1 << 20  # bytes

Content = tuple[int, str]
"""Samples of a prepared WAV file and their md5."""


class Earlier:
    """The finished clips under `root`.

    Every WAV file that is to be kept is read and compared with its md5, in every run: damage on a disk changes neither the size
    nor the date of a file, so nothing cheaper finds it. It takes 2 s of one core for 1 GB, which is four hours of sound.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kind: str | None = None
        """Of data set; None where no manifest says it."""
        self.damage: str | None = None
        """What is wrong with the manifest; None if it is sound or there is none."""
        self.notes: list[str] = []
        """About damage that was found, once `take_over` has run."""
        self._records: dict[str, Record] = {}
        self._contents: dict[str, Content | None] = {}
        try:
            records, info = read_manifest(root)
            self.kind = info.get("kind")
            self._records = {record.clip_id: record for record in records if record.md5 is not None}
        except (FileNotFoundError, NotADirectoryError):
            pass
        except DiffATRError as error:
            self.damage = str(error)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for line in (root / JOURNAL).read_bytes().splitlines():
                if record := _from_journal(line):
                    self._records[record.clip_id] = record

    def take_over(self, records: Sequence[Record], progress: Progress = silent) -> list[Record]:
        """Each record as it was finished before, if it is of the same source and its file is whole; else the record as it is.

        Where the manifest is damaged, a WAV file that is younger than its source is taken for finished.
        """
        done = [self._before(record) for record in records]
        pairs = list(zip(records, done, strict=True))
        self._read([record.path for record, before in pairs if before or self._may_be_finished(record)], progress)
        taken: list[Record] = []
        damaged: list[str] = []
        for record, before in pairs:
            content = self._contents.get(record.path)
            if before and content == (before.frames, before.md5):
                taken.append(before)
            elif content and not before and self._may_be_finished(record):
                taken.append(record._replace(frames=content[0], md5=content[1]))
            else:
                taken.append(record)
                if before and os.path.exists(self.root / record.path):
                    damaged.append(record.path)
        if self.damage:
            kept = sum(record.md5 is not None for record in taken)
            self.notes.append(f"{MANIFEST} was damaged and is made anew; {counted(kept, 'clip')} {are(kept)} taken over as found")
        if damaged:
            which = f"{counted(len(damaged), 'clip')} found damaged {are(len(damaged))} prepared again"
            self.notes.append(f"{which}, such as {damaged[0]}")
        return taken

    def own_sources(self, wanted: Iterable[tuple[str, str, Path]], progress: Progress = silent) -> dict[str, str]:
        """Clip id -> source of those among (clip id, prepared path, source below `root`/raw) that need their source no more."""
        found: dict[str, tuple[str, str]] = {}
        for clip, path, source in wanted:
            record = self._records.get(clip)
            if record and is_own(record.source, self.root):
                found[clip] = record.path, record.source or ""
            elif self.damage:
                found[clip] = path, str(source.absolute())
        self._read([path for path, _ in found.values()], progress)
        return {clip: source for clip, (path, source) in found.items() if self._is_whole(clip, path)}

    def _is_whole(self, clip: str, path: str) -> bool:
        record, content = self._records.get(clip), self._contents[path]
        return content is not None and (record is None or content == (record.frames, record.md5))

    def _before(self, record: Record) -> Record | None:
        """The record as it was finished before, of the same source; whether its file is whole is another question."""
        before = self._records.get(record.clip_id)
        if before is None:
            return None
        if is_own(record.source, self.root) and record.source_mtime_ns == 0:  # unpacked by us, used, and deleted since
            record = record._replace(source_size=before.source_size, source_mtime_ns=before.source_mtime_ns)
        done = record._replace(frames=before.frames, md5=before.md5)
        return done if done == before._replace(captions=record.captions, license=record.license) else None

    def _may_be_finished(self, record: Record) -> bool:
        """Whether a file may be taken for the finished clip though no record says so."""
        if not self.damage:
            return False
        if record.source_mtime_ns == 0:
            return is_own(record.source, self.root)  # deleted after use; what is generated is generated again
        try:
            return (self.root / record.path).stat().st_mtime_ns >= record.source_mtime_ns
        except (OSError, ValueError):
            return False

    def _read(self, paths: Iterable[str], progress: Progress) -> None:
        """Fill in `_contents` for the paths that are not there yet. Progress is in clips."""
        todo = [path for path in dict.fromkeys(paths) if path not in self._contents]
        if not todo:
            return
        progress(0, len(todo), "checking")
        with interrupts_wait() as raise_interrupt:
            pool = ThreadPoolExecutor(os.cpu_count())  # reading and md5 both leave the interpreter to others
            try:
                contents = pool.map(lambda path: read_content(self.root / path), todo)
                for number, (path, content) in enumerate(zip(todo, contents, strict=True), 1):
                    self._contents[path] = content
                    progress(number, len(todo), "checking")
                    raise_interrupt()
            finally:
                pool.shutdown(cancel_futures=True)


def is_own(source: str | None, root: Path) -> bool:
    """Whether a source was unpacked by us, below `root`/raw."""
    return source is not None and Path(source).is_relative_to((root / "raw").absolute())


def read_content(path: Path) -> Content | None:
    """The content of a prepared WAV file; None if it is missing or its header is not the one that we write."""
    try:
        with path.open("rb") as stream:
            frames, rest = divmod(os.fstat(stream.fileno()).st_size - wav_size(0), 2)
            if rest or frames < 0 or stream.read(wav_size(0)) != _header(frames):
                return None
            digest = hashlib.md5()
            while block := stream.read(_BLOCK):
                digest.update(block)
            return frames, digest.hexdigest()
    except (OSError, ValueError):  # of a name that no file can have
        return None


def _header(frames: int) -> bytes:
    """The bytes before the samples of a prepared WAV file."""
    stream = io.BytesIO()
    stream_wav(stream, np.zeros(0, np.int16))
    header = bytearray(stream.getvalue())
    for place in (4, len(header) - 4):  # the sizes of the file after this one, and of the samples
        struct.pack_into("<I", header, place, struct.unpack_from("<I", header, place)[0] + 2 * frames & 0xFFFF_FFFF)
    return bytes(header)


def append(journal: IO[str], record: Record) -> None:
    """Write a finished clip down at once.

    Raises:
        DiffATRError: the disk is full.
    """
    try:
        # The newline comes first: the line before may have been cut short.
        journal.write("\n" + json.dumps(record._replace(captions=())._asdict()))
        journal.flush()
    except OSError as error:
        raise DiffATRError(f"{journal.name}: {reason(error)}") from error


_TEXTS, _NUMBERS = ("clip_id", "split", "path", "md5"), ("source_size", "source_mtime_ns", "frames")


def _from_journal(line: bytes) -> Record | None:
    """The clip of a line; None for one that a kill cut short, or that is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.keys() != set(Record._fields):
        return None
    texts = [row[name] for name in _TEXTS] + [row[name] for name in ("source", "license") if row[name] is not None]
    if not all(isinstance(text, str) for text in texts) or not all(type(row[name]) is int for name in _NUMBERS):
        return None
    return Record(**{**row, "captions": (), "skipped": None})
