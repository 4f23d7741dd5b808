"""The remembered embeddings of a folder of recordings: LanceDB tables that follow the folder.

Two kinds of table (`index_tables`). `files` says which file holds which content (by hash) or why it cannot be used. `windows`
holds the vectors of a content, one table a model. Windows are committed before the files that need them, so a kill at any
moment leaves contents without a file, which the next update uses or removes, never a file that passes for done and is not.

Beside them lies a snapshot: what a search reads, as plain arrays, with marks of the folder and of the tables as they were.
Where the marks fit, neither an update nor a search needs the tables, so that a search starts without LanceDB. The tables stay
the truth: a snapshot that is missing, damaged or of another time is passed over, and written anew by the next update.

F files, W windows, D embedding size.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.windows import spans
from ..data.audio import AUDIO_SUFFIXES, PYAV_SUFFIXES, AudioError, Samples, load_audio
from ..errors import DiffATRError, UsageError
from ..files import replacing
from ..progress import Progress, silent
from ..types import SAMPLE_RATE

if TYPE_CHECKING:
    from ..model import Retriever

FOLDER = ".diffatr"
"""Where the index lives inside the folder that it remembers."""

_SUFFIXES = {suffix.encode() for suffix in AUDIO_SUFFIXES}
_BATCH = 64  # windows embedded in one call
_COMMIT_WINDOWS = 4096
_COMMIT_SECONDS = 5.0  # a kill loses about so much work
_READ_AHEAD = 256 << 20  # bytes of files that are decoded or waiting at a time; decoded mp3 is about 8 times its file
_LOUDEST = 1e9  # full scale is 1; the power of louder samples overflows float32 and would make the embedding NaN
_NEEDS_PYAV = "needs the extra `audio`: pip install 'diffatr[audio]'"


class CannotUpdate(DiffATRError):
    """The index cannot be changed now, but what it holds can be searched."""


@dataclass(frozen=True)
class Skipped:
    """A file (or folder) that could not be used, and why."""

    path: str
    reason: str


@dataclass
class IndexReport:
    """What an update found and did; all but `windows` count files.

    Attributes:
        files: that can be searched.
        windows: of those files.
        embedded: read and embedded by this update.
        reused: new, renamed or touched files whose content was embedded before.
        unchanged: left alone.
        removed: gone from the folder, and from the index.
        skipped: all that cannot be used, those known from before too.
        newly_skipped: how many of `skipped` were not known before.
    """

    files: int = 0
    windows: int = 0
    embedded: int = 0
    reused: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    newly_skipped: int = 0

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> IndexReport:
        """The reverse of `dataclasses.asdict`."""
        return cls(**document | {"skipped": [Skipped(**each) for each in document["skipped"]]})


@dataclass(frozen=True)
class Recordings:
    """What a search looks at, in memory: the windows of file f are rows offsets[f]..offsets[f + 1].

    Attributes:
        paths: F paths below the folder, sorted.
        offsets: (F + 1,) integers, ascending; every file has at least one window.
        spans: (W, 2) start and end of each window in its file, seconds.
        vectors: (W, D) float32 unit vectors.
    """

    paths: list[str]
    offsets: np.ndarray
    spans: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


class _File(NamedTuple):
    size: int
    mtime_ns: int
    hash: str
    reason: str


class _Examined(NamedTuple):
    """A new or changed file: `waveform` where it has to be embedded; `row` is None where nothing is to be remembered."""

    path: bytes
    row: _File | None
    waveform: Samples | None = None
    reason: str = ""


def scan(corpus: Path, exclude: Path) -> tuple[dict[bytes, os.stat_result], list[Skipped]]:
    """All sound files below a folder by relative path, in order, and the folders that could not be listed.

    Hidden files and folders and `exclude` are left out. Links are followed; a folder that is reached twice is listed once,
    under its real place if that is below `corpus`, so loops end.
    """
    files: dict[bytes, os.stat_result] = {}
    unlisted: list[Skipped] = []
    root = os.fsencode(corpus)
    seen = {_identity(os.stat(exclude))} if exclude.exists() else set()
    folders, links = [b""], deque[bytes]()
    while folders or links:
        below = folders.pop() if folders else links.popleft()
        try:
            identity = _identity(os.stat(os.path.join(root, below)))
            if below and identity in seen:
                continue
            seen.add(identity)
            prefix = os.path.join(below, b"") if below else b""
            with os.scandir(os.path.join(root, below)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    path = prefix + entry.name
                    with contextlib.suppress(OSError):  # a link to nothing, or gone meanwhile
                        if entry.is_dir():
                            (links if entry.is_symlink() else folders).append(path)
                        elif entry.name[entry.name.rfind(b".") :].lower() in _SUFFIXES and entry.is_file():
                            files[path] = entry.stat()
        except OSError as error:
            unlisted.append(Skipped(os.fsdecode(below) or ".", f"folder cannot be listed ({error.strerror})"))
    return dict(sorted(files.items())), unlisted


def _mark_of(files: dict[bytes, os.stat_result]) -> str:
    """A hash of files' paths, sizes and times."""
    rows = [b"%s\0%d %d" % (path, stat.st_size, stat.st_mtime_ns) for path, stat in sorted(files.items())]
    return hashlib.blake2b(b"\0".join(rows), digest_size=16).hexdigest()


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


class FolderIndex:
    """The index of one folder.

    Args:
        corpus: the folder of recordings.
        folder: where the index lives, `corpus/.diffatr` if None. One such folder may hold the indexes of several corpora.

    Raises:
        UsageError: `corpus` is no folder.
    """

    def __init__(self, corpus: Path, folder: Path | None = None) -> None:
        if not corpus.is_dir():
            raise UsageError(
                f"{corpus}: {'not a folder' if corpus.exists() else 'there is no such folder'}. Name a folder of recordings."
            )
        self.corpus = corpus
        self.folder = corpus / FOLDER if folder is None else folder
        inside = self.folder.resolve() == (corpus / FOLDER).resolve()
        # Inside, the name does not say which corpus, so that both can be moved together.
        place = "" if inside else "-" + hashlib.blake2b(os.fsencode(corpus.resolve()), digest_size=8).hexdigest()
        self._place = place
        self._files_name = f"files-v1{place}"

    def update(self, model: Retriever, progress: Progress = silent, workers: int | None = None) -> IndexReport:
        """Bring the index up to date with the folder: embed new and changed files, forget those that are gone.

        A file whose size and time are as remembered is left alone; one whose content is known, by hash, keeps its vectors.
        Files that cannot be used are listed, remembered, and tried again when they change.

        Args:
            model: whose vectors to bring up to date.
            progress: told of files.
            workers: threads that read and decode while the model embeds; None takes one a CPU.

        Raises:
            CannotUpdate: another process is updating the index, or it cannot be written. What was committed stays.
            DiffATRError: the folder holds no sound files and never did, or the index is damaged.
        """
        found, unlisted = scan(self.corpus, self.folder)
        if not found and not self.folder.exists():
            raise no_sounds(self.corpus, unlisted)
        mark = _mark_of(found) + (" PyAV" if importlib.util.find_spec("av") else "")  # which makes more files readable
        if not unlisted and (snapshot := self._snapshot(model.model_id)) and snapshot[0]["folder"] == mark:
            return IndexReport.from_json(snapshot[0]["report"])
        with self._locked():
            update = _Update(self, model)
            report = update.run(found, unlisted, progress, workers or os.cpu_count() or 1)
            # Where something is to be tried again, no state of the folder makes the next update needless.
            self._save_snapshot(model.model_id, None if unlisted or update.unsettled else mark, report)
        return report

    def read(self, model_id: str) -> Recordings:
        """What is remembered for a model, as of the last commit; other processes may be updating meanwhile.

        Raises:
            DiffATRError: the index is damaged.
        """
        if snapshot := self._snapshot(model_id, "paths", "offsets", "spans", "vectors"):
            paths, offsets, spans, vectors = snapshot[1]
            names = os.fsdecode(paths.tobytes()).split("\0") if len(paths) else []
            return Recordings(names, offsets, spans, vectors.astype(np.float32))
        return self._read_tables(model_id)

    def _read_tables(self, model_id: str) -> Recordings:
        with _guarded(self.folder, "read"):
            from .store import Tables

            tables = Tables.find(self.folder, self._files_name, _windows_name(model_id))
            if tables is None:
                return Recordings([], np.zeros(1, np.int64), np.zeros((0, 2)), np.zeros((0, 1), np.float32))
            files = {path: content for path, (_, _, content, reason) in tables.files().items() if not reason}
            rows_of, spans, vectors = tables.windows()
        present = sorted(path for path, content in files.items() if content in rows_of)
        rows = np.concatenate([np.zeros(0, np.int64), *(rows_of[files[path]] for path in present)])
        return Recordings(
            [os.fsdecode(path) for path in present],
            np.cumsum([0, *(len(rows_of[files[path]]) for path in present)]),
            spans[rows],
            vectors[rows].astype(np.float32),
        )

    def _snapshot_path(self, model_id: str) -> Path:
        return self.folder / f"snapshot-v1{self._place}-{model_id}.npz"

    def _snapshot(self, model_id: str, *names: str) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """The facts of the snapshot and its arrays of these names, if it is of the tables as they are now."""
        try:
            with np.load(self._snapshot_path(model_id)) as file:
                facts = json.loads(file["facts"].tobytes())
                return (facts, [file[name] for name in names]) if facts["tables"] == self._mark_of_tables(model_id) else None
        except Exception:  # none there, or damaged in one of many ways, which checksums show; the tables hold all of it
            return None

    def _save_snapshot(self, model_id: str, folder: str | None, report: IndexReport) -> None:
        """Write down what the tables hold, under the lock, for the state `folder` of the corpus."""
        unchanged = IndexReport(report.files, report.windows, unchanged=report.files, skipped=report.skipped)
        facts = {"folder": folder, "tables": self._mark_of_tables(model_id), "report": asdict(unchanged)}
        recordings = self._read_tables(model_id)
        for left in self.folder.glob(".snapshot-*.tmp"):  # by an update that was killed
            left.unlink(missing_ok=True)
        with (
            contextlib.suppress(DiffATRError, OSError),  # such as a disk that is full: searches take a second longer
            replacing(self._snapshot_path(model_id)) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(
                file,
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
                paths=np.frombuffer(b"\0".join(map(os.fsencode, recordings.paths)), np.uint8),
                offsets=recordings.offsets,
                spans=recordings.spans,
                vectors=recordings.vectors.astype(np.float16),  # as they are in the tables: exact
            )

    def _mark_of_tables(self, model_id: str) -> str | None:
        """A hash of the names, sizes and times of the tables' files, which any commit changes; None where one is missing."""
        files: dict[bytes, os.stat_result] = {}
        for name in (self._files_name, _windows_name(model_id)):
            table = self.folder / f"{name}.lance"
            if not table.is_dir():
                return None
            for below, _, names in os.walk(table):
                for path in (os.path.join(below, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):  # tidied away by an update that runs now
                        files[os.fsencode(os.path.relpath(path, self.folder))] = os.stat(path)
        return _mark_of(files)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import filelock

        lock = filelock.FileLock(self.folder / "lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise CannotUpdate(
                f"{self.folder}: another process is indexing this folder now. Wait for it, then run the command again."
            ) from None
        except OSError as error:
            raise CannotUpdate(
                f"{self.folder}: the index cannot be written there ({error.strerror}). Name a place for it: --index DIR"
            ) from None
        try:
            yield
        finally:
            lock.release()


class _Update:
    """One run of `FolderIndex.update`, under its lock."""

    def __init__(self, index: FolderIndex, model: Retriever) -> None:
        self.corpus, self.folder, self.model = index.corpus, index.folder, model
        with _guarded(self.folder, "opened"):
            from .store import Tables

            self.tables = Tables.make(index.folder, index._files_name, _windows_name(model.model_id), model.dim)
            self.known = {path: _File(*row) for path, row in self.tables.files().items()}
            self.embedded = self.tables.contents()
        self.no_pyav = importlib.util.find_spec("av") is None
        self.rows: dict[bytes, _File] = {}  # what `files` is to hold in the end
        self.new_rows: dict[bytes, _File] = {}  # of those, what is to be committed next,
        self.waiting: list[tuple[str, int, int, Samples]] = []  # with windows to embed
        self.spans: list[tuple[str, float, float]] = []  # and windows that have
        self.vectors: list[np.ndarray] = []  # their vectors
        self.committed = time.monotonic()
        self.changed = False
        self.unsettled = False  # whether a file was skipped for now only
        self.report = IndexReport()

    def run(self, found: dict[bytes, os.stat_result], unlisted: list[Skipped], progress: Progress, workers: int) -> IndexReport:
        report = self.report
        report.skipped += unlisted
        report.newly_skipped += len(unlisted)
        todo = self._compare(found)
        for done, file in enumerate(self._examine(todo, workers)):
            progress(done, len(todo), "indexing")
            self._take(file)
        self._commit()
        progress(len(todo), len(todo), "indexing")
        with _guarded(self.folder, "written"):
            self._forget_gone()
            self._forget_orphans()
            if self.changed:
                self.tables.tidy()
            report.windows = self.tables.count_windows()
        report.files = sum(not row.reason for row in self.rows.values())
        report.skipped += [Skipped(os.fsdecode(path), row.reason) for path, row in self.rows.items() if row.reason]
        report.skipped.sort(key=lambda skipped: skipped.path)
        return report

    def _compare(self, found: dict[bytes, os.stat_result]) -> dict[bytes, os.stat_result]:
        """Keep the rows of files that look as remembered; return the files to look into."""
        todo = {}
        for path, stat in found.items():
            row = self.known.get(path)
            same = row is not None and (row.size, row.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
            if row and same and (row.hash in self.embedded or (row.reason and (row.reason != _NEEDS_PYAV or self.no_pyav))):
                self.rows[path] = row
                self.report.unchanged += not row.reason
            else:
                todo[path] = stat
        return todo

    def _examine(self, todo: dict[bytes, os.stat_result], workers: int) -> Iterator[_Examined]:
        """Hash and decode files in threads (which libsndfile, soxr and hashlib let run in parallel), in order, within bounds."""
        waiting = deque(todo.items())
        ahead: deque[tuple[int, Future[_Examined]]] = deque()
        pool = ThreadPoolExecutor(workers, "decode")
        try:
            while waiting or ahead:
                while waiting and len(ahead) < 4 * workers:
                    path, stat = waiting[0]
                    if ahead and stat.st_size + sum(size for size, _ in ahead) > _READ_AHEAD:
                        break
                    waiting.popleft()
                    ahead.append((stat.st_size, pool.submit(self._look_into, path, stat)))
                yield ahead[0][1].result()
                ahead.popleft()
        finally:
            pool.shutdown(cancel_futures=True)

    def _look_into(self, path: bytes, stat: os.stat_result) -> _Examined:
        full = self.corpus / os.fsdecode(path)
        if self.no_pyav and full.suffix.lower() in PYAV_SUFFIXES:
            return _Examined(path, _File(stat.st_size, stat.st_mtime_ns, "", _NEEDS_PYAV))
        try:
            with full.open("rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            return _Examined(path, None, reason=f"cannot be read ({error.strerror})")
        before = self.known.get(path)
        row = _File(stat.st_size, stat.st_mtime_ns, content, before.reason if before and before.hash == content else "")
        if row.reason or content in self.embedded:
            return _Examined(path, row)
        waveform, reason = None, ""
        try:
            waveform = load_audio(full)
            if not len(waveform):
                reason = "no samples"
            elif np.abs(waveform).max() > _LOUDEST:
                reason = "samples beyond any scale"
        except AudioError as error:
            reason = error.reason
        try:
            after = full.stat()
        except OSError as error:
            return _Examined(path, None, reason=f"cannot be read ({error.strerror})")
        if (after.st_size, after.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            return _Examined(path, None, reason="changed while it was read")  # hash and samples may be of different contents
        return _Examined(path, row._replace(reason=reason), None if reason else waveform)

    def _take(self, file: _Examined) -> None:
        if file.row is None:
            self.report.skipped.append(Skipped(os.fsdecode(file.path), file.reason))
            self.report.newly_skipped += 1
            self.unsettled = True
            return
        self.rows[file.path] = self.new_rows[file.path] = file.row
        if file.row.reason:
            before = self.known.get(file.path)
            self.report.newly_skipped += before is None or (before.hash, before.reason) != (file.row.hash, file.row.reason)
        elif file.waveform is None or file.row.hash in self.embedded:
            self.report.reused += 1
        else:
            self.report.embedded += 1
            self.embedded.add(file.row.hash)
            self.waiting += [(file.row.hash, start, end, file.waveform) for start, end in spans(len(file.waveform))]
        if len(self.waiting) >= _BATCH:
            self._embed_waiting()
        if len(self.spans) >= _COMMIT_WINDOWS or time.monotonic() - self.committed > _COMMIT_SECONDS:
            self._commit()

    def _embed_waiting(self) -> None:
        for first in range(0, len(self.waiting), _BATCH):
            batch = self.waiting[first : first + _BATCH]
            vectors = self.model.embed_audio([waveform[start:end] for _, start, end, waveform in batch])
            if not np.isfinite(vectors).all():
                raise DiffATRError(
                    f"model {self.model.model_id}: embeddings are not finite. Its training diverged; use another --run."
                )
            self.vectors.append(vectors.astype(np.float16))
            self.spans += [(content, start / SAMPLE_RATE, end / SAMPLE_RATE) for content, start, end, _ in batch]
        self.waiting.clear()

    def _commit(self) -> None:
        self._embed_waiting()
        with _guarded(self.folder, "written"):
            if self.spans:
                self.tables.add_windows(self.spans, np.concatenate(self.vectors))
            if self.new_rows:
                self.tables.put_files(self.new_rows)
                self.changed = True
        self.spans, self.vectors, self.new_rows = [], [], {}
        self.committed = time.monotonic()

    def _forget_gone(self) -> None:
        self.report.removed = len(self.known.keys() - self.rows.keys())
        if self.report.removed:
            self.tables.keep_files(self.rows)
            self.changed = True

    def _forget_orphans(self) -> None:
        """Remove contents that no file of any corpus of this index has; an update that was killed leaves some too."""
        used = self.tables.used_contents()
        if self.embedded - used:
            self.tables.keep_contents(used)
            self.changed = True


def no_sounds(corpus: Path, skipped: list[Skipped]) -> DiffATRError:
    """The error for a folder in which nothing can be searched, with the first reasons."""
    if not skipped:
        return DiffATRError(f"{corpus}: no sound files in it (wav, flac, ogg, opus, mp3 ...; hidden ones do not count).")
    shown = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
    return DiffATRError(f"{corpus}: none of its sound files can be used, {len(skipped)} skipped: {shown}")


@contextlib.contextmanager
def _guarded(folder: Path, what: str) -> Iterator[None]:
    """Tell a person about the troubles of LanceDB, which come as any of these errors."""
    import pyarrow as pa

    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        if any(words in str(error) for words in ("No space left", "os error 28", "os error 122")):
            raise CannotUpdate(
                f"{folder}: the disk is full. Free some space and run the command again; what is indexed is kept."
            ) from error
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DiffATRError(
            f"{folder}: the index could not be {what} ({text}). If this repeats, remove that folder and index again."
        ) from error


def _windows_name(model_id: str) -> str:
    return f"windows-v1-{model_id}"
