"""Bringing the tables of an index up to date with its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import Progress, duration
from .commits import Commits, Part
from .elsewhere import Elsewhere
from .examine import Content, Failure, Finding, Left, Vector, reader
from .findings import read_files
from .frames import Frames
from .gone import GoneContents
from .note_table import NoteTable
from .notes import Note
from .reading_processes import MOST, Readers, pay
from .report import IndexReport, Skipped
from .scan import Listing, Stamp
from .store import FileRow, FileTable, WindowTable
from .windows import Missing, Window

if TYPE_CHECKING:
    from ..model import Retriever

_LONG = 600  # seconds; within a longer recording too it is told how far it is


class _File:
    """A file that is being taken in.

    Attributes:
        note: what it says of itself, where that was looked at too.
        reason: why it cannot be used.
        missing: what is missing of it.
        settled: whether nothing more that is found in it is of use.
        lost: whether it cannot be used for now, of which nothing is remembered.
        again: whether another file that has its content was being taken in, so that it is to be looked into once more, later.
    """

    def __init__(self, stamp: Stamp) -> None:
        self.stamp, self.part = stamp, Part()
        self.note: Note | None = None
        self.reason = self.missing = ""
        self.settled = self.lost = self.again = False


class Update:
    """One update, for one model. To be used once, under the index's lock.

    Args:
        corpus: the folder of recordings.
        files, windows: the tables.
        frames: the table of frames, for a model that re-ranks by them; None for others.
        notes: gets what files say of themselves, where that is read with their sound; `noting.update_notes` reads it of others.
        gone: keeps contents for a while whose files are gone many at once.
        check: raises FolderGone where the folder is.
        anew: write the tables anew, as far as they can be read, since changing them failed.

    Attributes:
        unsettled: whether a file was skipped for now only.
        put_off: how many changes this update was told to leave alone.
        without_frames: contents that were embedded when no frames were asked for; their files are read and embedded again.

    Raises:
        CannotUpdate: the tables cannot be read or written.
    """

    def __init__(
        self,
        corpus: Path,
        files: FileTable,
        windows: WindowTable,
        frames: Frames | None,
        notes: NoteTable,
        model: Retriever,
        gone: GoneContents,
        check: Callable[[], None],
        *,
        anew: bool = False,
    ) -> None:
        self.gone, self.check = gone, check
        self.corpus, self.files, self.windows, self.frames, self.model = corpus, files, windows, frames, model
        self.known, damaged_rows = files.mend(anew=anew)
        self.with_vectors, self.damaged = windows.mend(anew=anew)
        self.embedded, self.without_frames = set(self.with_vectors), set[str]()
        if frames is not None:
            framed, damaged = frames.mend(anew=anew)
            self.damaged |= damaged
            self.embedded &= framed
            if not frames.unreadable:
                self.without_frames = self.with_vectors - framed - damaged
        self.report = IndexReport(repaired=damaged_rows)
        self.changed = anew or bool(damaged_rows or self.damaged)
        self.unsettled = False
        self.put_off = 0
        self.reader = reader()
        self.missing_of = {row.content: row.missing for row in self.known.values() if row.missing}
        self.open: dict[bytes, _File] = {}  # files that are being taken in,
        self.taken: dict[str, _File] = {}  # and of them the one that has a content
        self.rows: dict[bytes, FileRow] = {}  # what `files` is to hold in the end
        self.commits = Commits(files, windows, frames, notes, model, self.with_vectors)

    def run(
        self,
        seen: Listing,
        progress: Progress,
        workers: int,
        elsewhere: Elsewhere | None = None,
        aside: Callable[[bytes], bool] = lambda path: False,
    ) -> IndexReport:
        """Update the tables for what a scan found, with threads that read here, or `elsewhere`.

        What is remembered of files that are `aside`, by path, stays as it is, whatever became of them.

        Raises:
            CannotUpdate: the tables cannot be written. What was committed stays.
            FolderGone: the folder went while this went on. What was committed stays, and nothing is forgotten.
            Damaged: they cannot be written because of what they hold.
            DiffATRError: the model's embeddings are not finite.
        """
        report = self.report
        report.skipped += [*seen.unlisted, *seen.unreadable]
        # What cannot be read is not remembered: it is told of once, when the folder is new.
        new = [*seen.unlisted, *(() if self.known else seen.unreadable)]
        report.newly_skipped += sum(not aside(os.path.join(os.fsencode(each.path), b"")) for each in new)
        todo = self._compare(seen.files)
        put_off = {path for path in todo.keys() | (self.known.keys() - seen.files.keys()) if aside(path)}
        self.rows |= {path: self.known[path] for path in put_off if path in self.known}
        todo = {path: stamp for path, stamp in todo.items() if path not in put_off}
        self.put_off = len(put_off)
        with self.commits:
            if elsewhere is None:
                found = self._read_here(todo, workers)
            else:
                found = elsewhere.findings(self.corpus, todo, self.model, self.embedded, self._unusable_content)
            left, more = todo, True
            while more:
                before, left = len(left), self._take_all(left, found, progress, len(todo))
                found, more = self._read_again(left, workers), 0 < len(left) < before
            self.unsettled |= bool(left)
            self.commits.commit()
        self.changed |= self.commits.changed
        self.check()
        progress(len(todo), len(todo), "finishing the index" if todo else "indexing")
        self._forget_gone(sure=not (seen.unlisted or self.unsettled))
        self._forget_orphans()
        if self.changed:
            self.files.tidy()
            self.windows.tidy()
        self.files.seal()
        self.windows.seal()
        report.files = sum(not row.reason for row in self.rows.values())
        report.skipped += [Skipped(os.fsdecode(path), row.reason) for path, row in self.rows.items() if row.reason]
        report.partial = [Skipped(os.fsdecode(path), row.missing) for path, row in sorted(self.rows.items()) if row.missing]
        report.skipped.sort(key=lambda skipped: skipped.path)
        return report

    def _compare(self, found: Mapping[bytes, Stamp]) -> dict[bytes, Stamp]:
        """Keep the rows of files that look as remembered; return the files to look into."""
        todo = {}
        for path, stamp in found.items():
            row = self.known.get(path)
            if row and row.stamp == stamp and (row.reader == self.reader if row.reason else row.content in self.embedded):
                self.rows[path] = row
                self.report.unchanged += not row.reason
            else:
                todo[path] = stamp
        return todo

    def _read_here(self, todo: Mapping[bytes, Stamp], workers: int) -> Generator[tuple[bytes, Finding | None]]:
        windowing, for_gpu = self.model.windowing, self.commits.batches.on_gpu
        with contextlib.ExitStack() as stack:
            readers = None
            if for_gpu and pay(workers, todo.values()):
                readers, workers = stack.enter_context(Readers(self.corpus, windowing)), min(workers, MOST)
            settled = self._is_settled
            yield from read_files(self.corpus, todo, windowing, settled, workers, side_by_side=for_gpu, readers=readers)

    def _read_again(self, todo: Mapping[bytes, Stamp], workers: int) -> Generator[tuple[bytes, Finding | None]]:
        return read_files(self.corpus, todo, self.model.windowing, self._is_settled, workers)

    def _is_settled(self, path: bytes, content: str) -> bool:
        """Whether a file with this content need not be decoded, for now; called in threads."""
        taking = self.taken.get(content)
        of_another = taking is not None and taking is not self.open.get(path)
        return of_another or content in self.embedded or bool(self._known_reason(path, content))

    def _known_reason(self, path: bytes, content: str) -> str:
        return self.known[path].reason if content and content == self._unusable_content(path) else ""

    def _unusable_content(self, path: bytes) -> str:
        """The content of a file for which it is known why this reader cannot use it; empty where there is none."""
        row = self.known.get(path)
        return row.content if row and row.reason and row.reader == self.reader else ""

    def _take_all(
        self,
        todo: Mapping[bytes, Stamp],
        found: Generator[tuple[bytes, Finding | None]],
        progress: Progress,
        total: int,
    ) -> dict[bytes, Stamp]:
        """Take in what is found in the last files of `total`; return those that are to be looked into again, since another file
        with the same content was being taken in."""
        left = dict(todo)
        with contextlib.closing(found):
            for path, finding in found:
                if path not in self.open:
                    progress(total - len(left), total, "indexing")
                    self.open[path] = _File(todo[path])
                file = self.open[path]
                if finding is not None:
                    if self._take(path, file, finding):
                        progress(total - len(left), total, f"indexing, {duration(file.part.spans[-1][1])} into a recording")
                    continue
                del self.open[path]
                if self.taken.get(file.part.content) is file:
                    del self.taken[file.part.content]
                if file.again or not (file.settled or file.part.spans):
                    continue
                if not file.lost:
                    self._keep_file(path, file)
                del left[path]
        return left

    def _take(self, path: bytes, file: _File, finding: Finding) -> bool:
        """Take in what is found in a file; whether a batch was full with it, of a recording that is long."""
        if file.settled:
            return False
        part, rate = file.part, self.model.windowing.rate
        match finding:
            case Content():
                content = part.content = finding.hash
                file.reason = self._known_reason(path, content)
                if file.reason or content in self.embedded:
                    file.missing, file.settled = self.missing_of.get(content, ""), True
                else:
                    file.again = file.settled = self.taken.setdefault(content, file) is not file
            case Window() | Vector():
                part.spans.append((finding.start / rate, finding.end / rate))
                return self.commits.batches.add(part, finding) and finding.end > _LONG * rate
            case Note():
                file.note = finding
            case Missing():
                file.missing = self.missing_of[part.content] = _text(finding.what)
            case Left():
                file.again = file.settled = True
                self.commits.batches.drop(part)
            case Failure():
                if file.missing:
                    self.missing_of.pop(part.content, None)
                file.reason, file.missing, file.settled = _text(finding.reason), "", True
                self.commits.batches.drop(part)
                if not finding.lasting:
                    self.report.skipped.append(Skipped(os.fsdecode(path), file.reason))
                    self.report.newly_skipped += 1
                    self.unsettled = file.lost = True
        return False

    def _keep_file(self, path: bytes, file: _File) -> None:
        """Keep what was found in a file."""
        before, content = self.known.get(path), file.part.content
        row = FileRow(file.stamp, content, file.reason, file.missing, self.reader if file.reason else "")
        self.rows[path] = row
        is_new = before is None or (before.content, before.reason, before.missing) != (content, file.reason, file.missing)
        self.report.newly_partial += bool(file.missing) and is_new
        part = None
        if file.reason:
            self.report.newly_skipped += is_new
        elif content in self.embedded:
            self.report.reused += 1
        else:
            self.report.embedded += 1
            self.embedded.add(content)
            part = file.part
        if self.files.unreadable or (before and self._has_lost_vectors(before)):
            self.report.repaired += 1
        self.commits.add(path, row, part, None if file.reason else file.note)

    def _has_lost_vectors(self, row: FileRow) -> bool:
        unreadable = self.windows.unreadable or (self.frames is not None and self.frames.unreadable)
        return not row.reason and (unreadable or row.content in self.damaged)

    def _forget_gone(self, *, sure: bool) -> None:
        """Forget the files that are gone; `sure`: all that is there was seen."""
        gone = self.known.keys() - self.rows.keys()
        self.report.removed = len(gone)
        there = {row.content for row in self.rows.values()}
        self.gone.settle({row.content for path in gone if not (row := self.known[path]).reason} - there, there, sure=sure)
        if gone:
            self.files.keep(self.rows)
            self.changed = True

    def _forget_orphans(self) -> None:
        """Remove contents that no file of any corpus of this index has, and that are not kept for files that are gone; an update
        that was killed leaves some too."""
        others = self.files.contents_of_others()
        if others is None:
            return
        used = others | {row.content for row in self.rows.values()}
        if self.with_vectors - used:
            self.windows.keep(used)
            self.changed = True
        if self.frames is not None:
            self.frames.keep(used)


def _text(words: str) -> str:
    """What a table can hold of it: names of files, which are cited, need not be valid text."""
    return words.encode("utf-8", "replace").decode()
