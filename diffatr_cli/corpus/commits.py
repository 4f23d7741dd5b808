"""What an update has taken in and not yet put into the tables.

Frames are committed before the windows that they are of, and windows before the files that need them, so a kill at any moment
leaves contents without a file, which the next update uses or removes, never a file that passes for done and is not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from .batches import Batches, Vectors
from .contents import ContentWindows
from .frames import Frames
from .note_table import NoteRow, NoteTable
from .notes import Note
from .report import Damaged
from .store import FileRow, FileTable, WindowTable

if TYPE_CHECKING:
    from ..model import Retriever

_COMMIT_WINDOWS = 4096
_COMMIT_SECONDS = 5.0  # a kill loses about so much work, and what was read of recordings without their ends


class Part:
    """A content on its way into the tables: its windows so far, some of them with their vectors (and stored frames)."""

    def __init__(self) -> None:
        self.content = ""
        self.spans: list[tuple[float, float]] = []
        self.vectors: list[np.ndarray] = []

    @property
    def windows(self) -> ContentWindows:
        return ContentWindows(np.array(self.spans), np.stack(self.vectors))


class Commits:
    """Collects files and their contents, has their windows embedded, and commits now and then. A context manager.

    Args:
        files, windows, frames, notes: the tables; no frames for a model that does not re-rank by them. Notes are those that were
            read with the sound.
        with_vectors: the contents in `windows`, which grows.

    Attributes:
        batches: take the windows of parts.
        changed: whether anything was written.
    """

    def __init__(
        self,
        files: FileTable,
        windows: WindowTable,
        frames: Frames | None,
        notes: NoteTable,
        model: Retriever,
        with_vectors: set[str],
    ) -> None:
        self.batches = Batches[Part](model, frames is not None, self._keep)
        self.changed = False
        self._files, self._windows, self._frames, self._notes = files, windows, frames, notes
        self._can_note = False
        self._with_vectors = with_vectors
        self._rows: dict[bytes, FileRow] = {}  # what is to be committed next,
        self._parts: dict[str, Part] = {}  # with the contents that go there as well,
        self._new_notes: dict[bytes, NoteRow] = {}
        self._uncommitted = 0  # windows of the parts
        self._committed = time.monotonic()
        self._writing: Future[None] | None = None  # of what was taken in before

    def __enter__(self) -> Commits:
        self.batches.__enter__()
        self._writer = ThreadPoolExecutor(1, "writing")
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self.batches.__exit__()

    def add(self, path: bytes, row: FileRow, part: Part | None, note: Note | None) -> None:
        """Take a file in, with its content where that is new, and commit where that is due.

        Raises:
            CannotUpdate, Damaged: what was taken in before cannot be written.
            DiffATRError: the vectors are not finite.
        """
        self._rows[path] = row
        if part is not None:
            self._parts[part.content] = part
            self._uncommitted += len(part.spans)
        if note is not None:
            self._new_notes[path] = NoteRow(row.stamp, note)
        if self._uncommitted >= _COMMIT_WINDOWS or time.monotonic() - self._committed > _COMMIT_SECONDS:
            # Frames are written as they come, by one thread.
            self.commit(ahead=self.batches.on_gpu and self._frames is None)

    def _keep(self, parts: Sequence[Part], found: Vectors) -> None:
        """Keep the vectors, and frames, of windows of some parts."""
        vectors, frames = found
        if self._frames is not None:
            by_part: dict[int, tuple[Part, list[np.ndarray]]] = {}
            for part, each in zip(parts, frames, strict=True):
                if each is not None:
                    by_part.setdefault(id(part), (part, []))[1].append(each)
            for part, own in by_part.values():
                self._frames.add(part.content, len(part.vectors), own)
        for part, vector in zip(parts, vectors.astype(np.float16), strict=True):
            part.vectors.append(vector)

    def commit(self, *, ahead: bool = False) -> None:
        """Write what was taken in. Raises as `add`.

        `ahead`: leave out what a GPU has not embedded yet, and come back when what was written before is there, so that the GPU
        has windows to work on meanwhile.
        """
        if not ahead:
            self.batches.finish()
        unfinished = self.batches.unfinished()
        later = {content: part for content, part in self._parts.items() if id(part) in unfinished}
        parts = {content: part for content, part in self._parts.items() if content not in later}
        rows = {path: row for path, row in self._rows.items() if row.content not in later}
        self._parts, self._rows = later, {path: row for path, row in self._rows.items() if row.content in later}
        self._uncommitted = sum(len(part.spans) for part in later.values())
        self._end_writing()
        if ahead:
            self._writing = self._writer.submit(self._write, parts, rows)
        else:
            self._write(parts, rows)
        self._committed = time.monotonic()

    def _end_writing(self) -> None:
        """Wait for what is being written, if anything."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, parts: Mapping[str, Part], rows: Mapping[bytes, FileRow]) -> None:
        """Put contents, and the files that have them, into the tables."""
        if parts:
            if self._frames is not None:
                self._frames.complete({content: len(part.spans) for content, part in parts.items()})
            new = {content: part.windows for content, part in parts.items() if content not in self._with_vectors}
            if new:
                self._windows.add(new)
                self._with_vectors |= new.keys()
        if rows:
            self._files.put(rows)
            self.changed = True
        notes = {path: self._new_notes.pop(path) for path in rows if path in self._new_notes}
        if notes:
            with contextlib.suppress(Damaged):  # of which no other table is to blame; all notes can be read again
                if not self._can_note:
                    self._notes.mend()
                    self._can_note = True
                self._notes.put(notes)
