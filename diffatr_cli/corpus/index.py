"""The remembered embeddings of a folder of recordings: LanceDB tables that follow the folder (`store`, `update`).

What files say of themselves beside their sound has a table of its own (`noting`). For a model that re-ranks by frames there is a
table of these too (`frames`). Runs on the same encoders share all tables.

Of a large corpus the vectors stay in the tables (`nearest`), which an approximate index then searches (`vector_index`).

Beside them lies a snapshot: what a search reads, with marks of the folder and of the tables as they were. Where the marks fit,
neither an update nor a search needs the tables, so that a search starts without LanceDB. The tables stay the truth: a snapshot
that is missing, damaged or of another time is passed over, and written anew by the next update.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.windows import spans
from ..errors import DiffATRError, UsageError
from ..printable import counted
from ..progress import Progress, silent
from .examine import reader
from .notes import UNKNOWN, Notes
from .place import place_of
from .report import CannotUpdate, Damaged, FolderGone, IndexReport, Skipped, folder_gone, no_sounds, sounds_gone
from .scan import Listing, Stamp, fingerprint, identity_of, scan
from .snapshot import Recordings, Snapshot, read_snapshot, report_below, write_snapshot

if TYPE_CHECKING:
    from ..model import Retriever
    from .elsewhere import Elsewhere
    from .frames import Frames
    from .nearest import StoredVectors
    from .note_table import NoteTable
    from .store import WindowTable

__all__ = ["CannotUpdate", "FolderIndex", "IndexReport", "Recordings", "Skipped", "no_sounds", "spans"]

FOLDER = ".diffatr"
"""Where the index lives inside the folder that it remembers."""
BOUND = 2_000_000
"""Windows beyond which a search is approximate, and the vectors are not read into memory, where nothing else is said."""
_TRIES = 3  # to read tables that belong together, where another process takes away what it has just replaced


class FolderIndex:
    """The index of one folder.

    Args:
        corpus: the folder of recordings.
        index: where the index lives, a folder or an address as of `place_of`; `corpus/.diffatr` if None. One such place may
            hold the indexes of several corpora.
        approximate: leave the vectors in the tables, and train an index to search them by; None does so beyond `BOUND` windows.

    Attributes:
        folder: where this machine's own files of it lie: the index itself, unless it is in object storage.
        own_place: whether it lives where nobody named a place for it.
        unsettled: paths, as the system's bytes, that updates leave as they are: files that are still being written.

    Raises:
        UsageError: `corpus` is no folder, or nothing can be kept at `index`.
    """

    def __init__(self, corpus: Path, index: Path | str | None = None, approximate: bool | None = None) -> None:
        if not corpus.is_dir():
            raise UsageError(
                f"{corpus}: {'not a folder' if corpus.exists() else 'there is no such folder'}. Name a folder of recordings."
            )
        self.corpus, self.approximate, self.own_place = corpus, approximate, index is None
        self.unsettled: Set[bytes] = frozenset()
        self._seen: Mapping[bytes, Stamp] | None = None
        self.place = place_of(corpus / FOLDER if index is None else index)
        self.folder = self.place.local
        inside = self.folder.resolve() == (corpus / FOLDER).resolve()
        if not self.place.remote and self.folder.resolve().is_relative_to(corpus.resolve()):
            self.place.within = corpus
        # Inside, the name does not say which corpus, so that both can be moved together.
        self._suffix = "" if inside else "-" + hashlib.blake2b(os.fsencode(corpus.resolve()), digest_size=8).hexdigest()

    def update(
        self,
        model: Retriever,
        progress: Progress = silent,
        workers: int | None = None,
        wait: Callable[[str], None] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        elsewhere: Elsewhere | None = None,
        below: bytes = b"",
    ) -> IndexReport:
        """Bring the index up to date with the folder: embed new and changed files, forget those that are gone.

        A file that the system says nothing new of (size, times, inode) is left alone; one whose content is known, by hash,
        keeps its vectors. Files that cannot be used are listed, remembered, and tried again when they change, or when another
        version of the package may read them. What is damaged in the index is thrown out and made again.

        Args:
            model: whose vectors to bring up to date.
            progress: told of files.
            workers: threads, or for a GPU processes, that read and decode while the model embeds; None takes one a CPU.
            wait: for another process that is updating this index, until it is done or killed; then go on, which usually finds
                everything done. Told once, with a sentence for the person, when the waiting begins. None does not wait.
            tell: told a sentence where recordings that were embedded are to be read again, for the frames that this model needs.
            elsewhere: what reads and embeds in the place of this process, which commits.
            below: a folder of the corpus, by its path and a separator at its end: nothing else is updated, nor reported.

        Raises:
            CannotUpdate: the index cannot be read or written, or without `wait`, another process is updating it. What was
                committed stays.
            FolderGone: the folder is gone, also while it is indexed, or holds no sounds any more: nothing is forgotten.
            DiffATRError: the folder holds no sound files and never did, or the index is damaged and cannot be mended.
        """
        state = self._look(below, progress)
        if report := self._report_for(state, model):
            return report
        with self.place.locked(wait) as waited:
            if waited:
                state = self._look(below, progress)
                if report := self._report_for(state, model):
                    return report
            try:
                return self._update(state, model, progress, workers or os.cpu_count() or 1, tell, elsewhere)
            except DiffATRError as error:  # of the index, which may be gone with the folder
                if not isinstance(error, FolderGone):
                    self._check_there(state)
                raise

    def read(self, model_id: str, *, frames: bool = False) -> Recordings:
        """What is remembered for a model, as of the last commit; other processes may be updating meanwhile.

        Args:
            frames: the model re-ranks by frames: recordings without them are left out.

        Raises:
            DiffATRError: the index is damaged, or cannot be read.
        """
        snapshot = self._snapshot(model_id, frames)
        recordings = snapshot.recordings() if snapshot else self._fetch(model_id, frames)
        if len(recordings.sums):
            recordings = replace(recordings, store=self.stored_vectors(model_id, frames, recordings.hashes))
        return self.with_frames(model_id, recordings) if frames else recordings

    def report(self, model_id: str, *, frames: bool = False, below: bytes = b"") -> IndexReport | None:
        """What an update finds that has nothing to do; None where the last one was not completed. `below` as in `update`."""
        snapshot = self._snapshot(model_id, frames)
        return snapshot.report_below(below) if snapshot else None

    @property
    def roots(self) -> list[Path]:
        """The folders whose recordings it has."""
        return [self.corpus]

    def contents(self) -> dict[str, str]:
        """The hash of the content of each file that can be searched, by its path below the corpus, as of the last commit.

        Raises:
            DiffATRError: the index is damaged, or cannot be read.
        """
        from .store import FileTable

        table = FileTable(self.place, self._table_names("")[0])
        if not table.exists:
            return {}
        return {os.fsdecode(path): row.content for path, row in table.rows().items() if not row.reason}

    @property
    def collections_file(self) -> Path:
        """Where people's collections of these sounds are kept, which nothing can make again: beside the index, or, where that is
        in object storage, of which this machine keeps only copies, in `.diffatr` in the corpus."""
        return (self.corpus / FOLDER if self.place.remote else self.folder) / f"{self.name_beside('collections')}.json"

    def kept_file(self, what: str) -> Path:
        """A file of this machine's own for what was made of the index, and can be made again."""
        return self.folder / self.name_beside(what)

    def _fetch(self, model_id: str, frames: bool) -> Recordings:
        """What the tables hold; where they lie elsewhere, a snapshot of it stays here."""
        mark = self._mark_of_tables(model_id, frames)  # before: of what changes meanwhile nothing is said
        recordings = self._read_tables(model_id, frames=frames)
        if self.place.remote:
            path = self._snapshot_path(model_id, frames, bool(len(recordings.sums)))
            write_snapshot(path, mark, None, IndexReport(), recordings)
        return recordings

    def with_frames(self, model_id: str, recordings: Recordings) -> Recordings:
        """Recordings that have their `hashes`, with their frames, which are read where a search asks."""
        from .frames import StoredFrames

        path = self._snapshot_path(model_id, frames=True, approximate=bool(len(recordings.sums)))
        of_windows = StoredFrames(self._frame_table(model_id), path, recordings.hashes, recordings.offsets)
        return replace(recordings, frames=of_windows)

    def frame_contents(self, model_id: str) -> set[str]:
        """The contents, by hash, of which frames are kept. Raises Damaged."""
        return self._frame_table(model_id).contents()

    def stored_vectors(self, model_id: str, frames: bool, hashes: np.ndarray) -> StoredVectors:
        """Where the vectors of some contents (C,) are, if they stay in the tables. Raises Damaged."""
        return self._store(model_id, self._snapshot_path(model_id, frames, approximate=True), hashes)

    def _store(self, model_id: str, snapshot: Path, hashes: np.ndarray) -> StoredVectors:
        """Where the vectors are. Raises Damaged where the index that finds them is."""
        from .nearest import StoredVectors
        from .store import WindowTable

        table = WindowTable(self.place, self._table_names(model_id)[1])
        table.check_index()
        return StoredVectors(table, snapshot, hashes)

    def holds(self, model_id: str | None) -> bool:
        """Whether files were indexed for a model; for any if None."""
        files, windows = self._table_names(model_id or "")
        return self.place.has(files) and (model_id is None or self.place.has(windows))

    def watched(self) -> list[Watched]:
        """What to look at, to see whether there is something to update."""
        return [Watched(self.corpus, self.folder, lambda: self._seen, self._leave)]

    def _leave(self, paths: Set[bytes]) -> None:
        self.unsettled = paths

    def _look(self, below: bytes, progress: Progress) -> _State:
        """See what is in the folder. Raises DiffATRError where it holds no sound files and never did, FolderGone where it did."""
        seen = scan(self.corpus, self.folder, progress)
        if (identity := identity_of(root := self.corpus / os.fsdecode(below))) is None:
            raise folder_gone(root)
        before = self._seen or {}
        settled = {path: stamp for path, stamp in seen.files.items() if path not in self.unsettled}
        self._seen = settled | {path: before[path] for path in self.unsettled if path in before}
        if not seen.files and not self.place.is_used():
            raise no_sounds(self.corpus, [*seen.unlisted, *seen.unreadable])
        if not any(path.startswith(below) for path in seen.files) and self._has_some(below):
            if seen.unlisted:
                raise FolderGone(*no_sounds(root, seen.unlisted).args)
            table = os.path.join(str(self.place), f"{self._table_names('')[0]}.lance")
            forget = f"index the folder above, diffatr index {self.corpus}" if below else f"remove {table}"
            raise sounds_gone(root, forget)
        unreadable = {os.fsencode(each.path): () for each in seen.unreadable}
        mark = f"{fingerprint(seen.files)} {fingerprint(unreadable)} {reader()}"
        if not below:
            return _State(seen, mark, mark, below, identity)
        own = {path: stamp for path, stamp in seen.files.items() if path.startswith(below)}
        unreadable = {path: () for path in unreadable if path.startswith(below)}
        return _State(seen, mark, f"{below.hex()} {fingerprint(own)} {fingerprint(unreadable)} {reader()}", below, identity)

    def _has_some(self, below: bytes) -> bool:
        """Whether files below a folder can be searched; also where that cannot be read, so that nothing is forgotten for it."""
        try:
            return any(os.fsencode(path).startswith(below) for path in self.contents())
        except Damaged:
            return True

    def _check_there(self, state: _State) -> None:
        """Raises FolderGone where the folder is not the one any more that was looked at."""
        if identity_of(root := self.corpus / os.fsdecode(state.below)) != state.identity:
            raise folder_gone(root, while_indexed=True)

    def _report_for(self, state: _State, model: Retriever) -> IndexReport | None:
        """The report of an update that has nothing to do; None where it has."""
        if state.seen.unlisted or self.unsettled:
            return None
        snapshot = self._snapshot(model.model_id, model.sees_frames)
        return snapshot.report_below(state.below) if snapshot and snapshot.folder in (state.mark, state.mark_below) else None

    def _update(
        self,
        state: _State,
        model: Retriever,
        progress: Progress,
        workers: int,
        tell: Callable[[str], None],
        elsewhere: Elsewhere | None,
    ) -> IndexReport:
        from .gone import GONE, GoneContents
        from .store import FileTable, WindowTable
        from .update import Update

        check = partial(self._check_there, state)

        def new_update(*, anew: bool = False) -> Update:
            files_name, windows_name = self._table_names(model.model_id)
            files, windows = FileTable(self.place, files_name), WindowTable(self.place, windows_name, model.dim)
            frames = self._frame_table(model.model_id) if model.sees_frames else None
            gone = GoneContents(FileTable(self.place, f"{GONE}{self._suffix}"))
            return Update(self.corpus, files, windows, frames, self._note_table(), model, gone, check, anew=anew)

        update = new_update()
        if again := sum(row.content in update.without_frames for row in update.known.values()):
            tell(
                f"{self.place}: {counted(again, 'recording')} embedded without the frames by which {model.name} re-ranks: read "
                f"and embedded again, once, which takes as long as it took then, and {_megabytes(model)} of the disk for "
                "each minute of sound."
            )

        def aside(path: bytes) -> bool:
            return path in unsettled or not path.startswith(state.below)

        unsettled = self.unsettled
        try:
            report = update.run(state.seen, progress, workers, elsewhere, aside)
        except Damaged:  # in a place that shows only where the tables are changed
            repaired = update.report.repaired
            update = new_update(anew=True)
            report = update.run(state.seen, progress, workers, elsewhere, aside)
            report.repaired += repaired
        from .noting import update_notes

        usable = {path: row.stamp for path, row in update.rows.items() if not row.reason}
        update_notes(self.corpus, self._note_table(), usable, progress, workers, check)
        # Where something is to be tried again, no state of the folder makes the next update needless.
        pending = state.seen.unlisted or update.unsettled or (update.put_off and unsettled)
        mark = None if pending else state.mark_below if update.put_off else state.mark
        model_id, with_frames = model.model_id, model.sees_frames
        recordings = replace(self._read_tables(model_id, frames=with_frames, training=tell), updated=time.time())
        report.windows = len(recordings.spans)
        unchanged = IndexReport(
            report.files, report.windows, unchanged=report.files, skipped=report.skipped, partial=report.partial
        )
        tables = self._mark_of_tables(model_id, with_frames)
        approximate = bool(len(recordings.sums))
        if self.approximate is None:
            self._snapshot_path(model_id, with_frames, not approximate).unlink(missing_ok=True)
        write_snapshot(self._snapshot_path(model_id, with_frames, approximate), tables, mark, unchanged, recordings)
        return report_below(report, recordings.paths, recordings.content, recordings.offsets, state.below)

    def _read_tables(self, model_id: str, *, frames: bool = False, training: Callable[[str], None] | None = None) -> Recordings:
        """What the tables hold, read without the snapshot. Raises Damaged, so that nothing damaged is ever searched.

        Args:
            training: see to the approximate index first where one is needed; told a sentence if it is trained.
        """
        from .store import FileTable, WindowTable

        files_name, windows_name = self._table_names(model_id)
        for _ in range(_TRIES):
            before = self.place.mark([files_name])
            file_table, window_table = FileTable(self.place, files_name), WindowTable(self.place, windows_name)
            if not (file_table.exists and window_table.exists):
                return Recordings.none()
            files = {path: row.content for path, row in file_table.rows().items() if not row.reason}
            wanted = set(files.values())
            approximate = self._approximates(window_table, wanted)
            if approximate and training:
                window_table.train(training)
            contents = window_table.read(wanted, vectors=not approximate)
            if contents.damaged & wanted:
                raise Damaged(self.place)
            usable = contents.rows_of.keys() & (self._frame_table(model_id).contents() if frames else contents.rows_of.keys())
            if usable >= wanted or self.place.mark([files_name]) == before:
                break  # else what is missing may be of files that have changed meanwhile
        present = sorted(path for path, content in files.items() if content in usable)
        number = {content: i for i, content in enumerate(dict.fromkeys(files[path] for path in present))}
        noted, paths = self._note_table().rows(), list(map(os.fsdecode, present))
        slices = [contents.rows_of[content] for content in number]
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(each.start, each.stop) for each in slices)])
        return Recordings(
            paths,
            np.array([number[files[path]] for path in present], np.int64),
            np.cumsum([0, *(each.stop - each.start for each in slices)]),
            contents.spans[rows],
            (contents.vectors if approximate else contents.vectors[rows]).astype(np.float32),
            hashes=np.array(list(number), "S32"),
            sums=contents.sums[rows] if approximate else contents.sums,
            notes=Notes.of(paths, [noted[path].note if path in noted else UNKNOWN for path in present]),
        )

    def _approximates(self, windows: WindowTable, contents: Set[str]) -> bool:
        """Whether the vectors of these contents stay in the table."""
        if self.approximate is not None or windows.count() <= BOUND:
            return bool(self.approximate)
        return sum(count for content, count in windows.counts().items() if content in contents) > BOUND

    def name_beside(self, what: str) -> str:
        """The name of something else that is remembered of this corpus, in `folder`; other corpora there have others."""
        return f"{what}{self._suffix}"

    def _snapshot(self, model_id: str, frames: bool) -> Snapshot | None:
        """The snapshot of the tables as they are, in the form that a search is to have; None where there is none."""
        mark = self._mark_of_tables(model_id, frames)
        for approximate in (True, False) if self.approximate is None else (self.approximate,):
            snapshot = read_snapshot(self._snapshot_path(model_id, frames, approximate), mark)
            if snapshot and (self.approximate is not None or (snapshot.windows > BOUND) == approximate):
                return snapshot
        return None

    def _snapshot_path(self, model_id: str, frames: bool = False, approximate: bool = False) -> Path:
        what = ("-frames" if frames else "") + ("-approximate" if approximate else "")
        return self.folder / f"snapshot-v3{self._suffix}-{model_id}{what}.npz"

    def _frame_table(self, model_id: str) -> Frames:
        return self.place.frames(self._frames_name(model_id))

    def _note_table(self) -> NoteTable:
        from .note_table import NoteTable

        return NoteTable(self.place, self._notes_name)

    @property
    def _notes_name(self) -> str:
        return f"notes-v1{self._suffix}"

    @staticmethod
    def _frames_name(model_id: str) -> str:
        return f"frames-v1-{model_id}"

    def _table_names(self, model_id: str) -> tuple[str, str]:
        """Of the tables of files and of windows."""
        return f"files-v1{self._suffix}", f"windows-v1-{model_id}"

    def _mark_of_tables(self, model_id: str, frames: bool = False) -> str | None:
        return self.place.mark([*self._table_names(model_id), self._notes_name], [self._frames_name(model_id)] if frames else [])


class Watched(NamedTuple):
    """A folder of recordings to look at.

    Attributes:
        exclude: what of it is no recording.
        seen: gives the files as the last update saw them, by path below the folder; None before one did.
        leave: told the paths that updates are to leave as they are, since these files are still being written.
    """

    corpus: Path
    exclude: Path
    seen: Callable[[], Mapping[bytes, Stamp] | None]
    leave: Callable[[Set[bytes]], None]


class _State(NamedTuple):
    """A folder as it was seen, a mark that any change of it changes, one for what lies `below` a folder of it, and that folder's
    identity."""

    seen: Listing
    mark: str
    mark_below: str
    below: bytes
    identity: tuple[int, int]


def _megabytes(model: Retriever) -> str:
    """The disk that frames take, as words for a minute of a long recording."""
    windowing = model.windowing
    _, (frames,) = model.embed_with_frames([np.zeros(windowing.length, np.float32)])
    megabytes = 2 * frames.numel() * 60 * windowing.rate / windowing.hop / 1e6
    return f"{megabytes:.1f} MB"
