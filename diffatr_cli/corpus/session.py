"""A folder of recordings to ask and to listen to, while its index keeps up with it: what a page or any other window shows.

F files, W windows, D embedding size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np

from ..data.audio import Samples
from ..errors import DiffATRError
from ..printable import counted
from ..progress import Progress, silent
from .asking import ask_sound, ask_texts, check_by, read_words
from .filtering import Columns
from .filters import filters_of
from .index import IndexReport, Recordings
from .library import Searched
from .priority_lock import PriorityLock
from .report import FolderGone, Skipped
from .search import Found, check_texts, embed_sound, embed_texts, token_states
from .selection import By
from .snapshot import packed_paths
from .together import Together
from .trajectory import Trajectory, trajectory
from .yielding_model import YieldingModel

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever

T = TypeVar("T")

_REREAD = 5.0  # seconds at least between two looks at an index that grows


class NotServed(DiffATRError):
    """A clip that is not given out; `gone` where it is not there (any more), else it is refused."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


@dataclass(frozen=True)
class Clip:
    """A recording of the index. `path`: as it is named below the folder; `real`: the file behind all links; `seconds` long."""

    path: Path
    real: Path
    seconds: float


class IndexStatus(NamedTuple):
    """How the index stands. `indexing`: (done, total) of files while it is brought up to date; `problem`: why it could not be."""

    files: int
    windows: int
    skipped: int
    indexing: tuple[int, int] | None
    problem: str | None


class IndexState(NamedTuple):
    """One state of the index, only ever replaced as a whole, so that whoever reads it needs no lock.

    Attributes:
        files: the number in `recordings` of the file that a key stands for.
        outside: files that links lead to outside the folder, by path.
        version: a hash of `recordings` but for frames.
        since: when this version was first taken up, by `time.time`.
    """

    recordings: Recordings
    files: dict[str, int]
    outside: dict[str, str]
    version: str
    since: float

    @classmethod
    def of(cls, recordings: Recordings, outside: dict[str, str], version: str, since: float) -> IndexState:
        """The state of recordings, with the keys of its files, ready for filters."""
        Columns.of(recordings).prepare()
        return cls(recordings, {key_of(path): number for number, path in enumerate(recordings.paths)}, outside, version, since)


class _Asked(NamedTuple):
    """What `by_text` was asked."""

    text: str
    top: int
    unwanted: str | None
    by: By


class _Stopped(Exception):
    """Ends an update between two files."""


class SearchSession:
    """One folder, its index and a model. All methods may be called from any thread; the model works for one at a time.

    A clip goes by a key, a hash of its path below the folder, and keys are looked up among the files that the index holds:
    no request can spell a path.

    Args:
        sampling: as in `search`.
        tell: as in `FolderIndex.update`.
    """

    def __init__(
        self,
        model: Retriever,
        folder: Searched,
        sampling: Sampling | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.folder, self._tell = model, folder, tell
        self.corpus = Path(os.path.abspath(folder.corpus))
        self._sampling = sampling
        self._lock = PriorityLock()
        self._by_texts = Together(self._answer_texts, self._lock.take)
        self._roots = [os.path.realpath(root) for root in folder.roots]
        self._state = nothing_yet()
        self._updating, self._starting = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._indexing: tuple[int, int] | None = None
        self._problem: str | None = None
        self._skipped = 0

    @property
    def roots(self) -> list[str]:
        """The folders that are searched."""
        return [os.path.abspath(root) for root in self.folder.roots]

    @property
    def title(self) -> str:
        """What is searched, for people: the folder, or the folders."""
        return ", ".join(self.roots)

    @property
    def diffuses(self) -> bool:
        """Whether answers to texts come out of noise, so that there is a trajectory to show."""
        return self.model.reranker is not None and self.model.reranker.counts("t2a")

    @property
    def status(self) -> IndexStatus:
        """How the index stands now."""
        recordings = self._state.recordings
        return IndexStatus(len(recordings), len(recordings.spans), self._skipped, self._indexing, self._problem)

    def skipped(self) -> list[Skipped]:
        """The files that cannot be used, or not all of them, and why, as the last update that was completed found them."""
        report = self.folder.report(self.model.model_id, frames=self.model.sees_frames)
        return [] if report is None else [*report.skipped, *report.partial]

    @property
    def version(self) -> tuple[str, float]:
        """Of the index as it is searched now: a hash of what it holds, and when that was taken up, by `time.time`."""
        state = self._state
        return state.version, state.since

    @property
    def state(self) -> IndexState:
        """What is searched now."""
        return self._state

    @property
    def sampling(self) -> Sampling | None:
        """How x_0 is sampled here; None is the model's own way."""
        return self._sampling

    def patiently(self, work: Callable[[], T]) -> T:
        """Do work with the model as soon as nobody waits for an answer."""
        with self._lock.take(patient=True):
            return work()

    def by_text(self, text: str, top: int, unwanted: str | None = None, by: By = "both") -> Found:
        """The best files for a text, which may hold filters (`filters`), that do not sound like another one.

        Raises UsageError for one without a letter or digit, or with a filter that makes no sense.

        Who asks while others are answered is answered together with all who wait.
        """
        check_by(by, unwanted=unwanted is not None)
        words = read_words(text).words
        check_texts([words] if unwanted is None else [words, unwanted])
        return self._by_texts(_Asked(text, top, unwanted, by))

    def _answer_texts(self, asked: Sequence[_Asked]) -> list[Found]:
        recordings = self._state.recordings
        found: dict[_Asked, Found] = {}
        for top, unwanted, by in dict.fromkeys((each.top, each.unwanted, each.by) for each in asked):
            texts = list(dict.fromkeys(each.text for each in asked if each[1:] == (top, unwanted, by)))
            against = None if unwanted is None else embed_texts(self.model, [unwanted])[0]
            of_texts = ask_texts(self.model, recordings, texts, self._sampling, by=by, unwanted=against, top=top)
            found |= {_Asked(text, top, unwanted, by): each for text, each in zip(texts, of_texts, strict=True)}
        return [found[each] for each in asked]

    def by_sound(self, waveform: Samples, top: int, within: str = "") -> Found:
        """The best files for a sound, mono at the rate of the model's windowing, not empty.

        Args:
            within: a text as it may be asked, whose filters hold here too; its words say nothing here.

        Raises:
            FilterError: a filter makes no sense.
        """
        only = filters_of(within)
        with self._lock.take():
            query = embed_sound(self.model, waveform)
            return ask_sound(self.model, self._state.recordings, query, self._sampling, only=only, top=top)

    def like(self, key: str, start: float, top: int, within: str = "") -> Found:
        """The best other files for the window of a clip that begins nearest to `start` seconds.

        Args:
            within: as of `by_sound`.

        Raises:
            NotServed: there is no such clip.
            FilterError: a filter makes no sense.
        """
        only = filters_of(within)
        state = self._state
        file = _file_of(state, key)
        recordings = state.recordings
        rows = recordings.rows_of(file)
        row = rows.start + int(np.abs(recordings.spans[rows, 0] - start).argmin())
        with self._lock.take():
            query = recordings.vectors_at(np.array([row]))[0]
            found = ask_sound(self.model, recordings, query, self._sampling, only=only, top=top + 1)
        others = [hit for hit in found.hits if hit.path != recordings.paths[file]][:top]
        return replace(found, hits=[replace(hit, rank=rank) for rank, hit in enumerate(others, 1)])

    def trajectory(self, text: str) -> Trajectory:
        """How the answer to a text comes out of noise. Raises UsageError for a text without words, or without a denoiser."""
        with self._lock.take():
            words = read_words(text).words
            query = embed_texts(self.model, [words])[0]
            return trajectory(self.model, self._state.recordings, query, self._sampling, token_states(self.model, [words]))

    def seconds(self, path: str) -> float:
        """How long a found file is: where its last window ends; 0 for one that the index has forgotten meanwhile."""
        state = self._state
        file = state.files.get(key_of(path))
        return 0.0 if file is None else _seconds(state, file)

    def path(self, key: str) -> str:
        """The path of a clip below the folder. Raises NotServed where the index has none of this key."""
        state = self._state
        return state.recordings.paths[_file_of(state, key)]

    def clip(self, key: str) -> Clip:
        """The clip of a key, if its file may be given out.

        Links are followed as the index's own scan follows them, so the file may lie outside the folder: but then only where
        its link led when the index last took it in. A link that was put in a recording's place since then could lead to
        anything, and is refused until the next update has looked at what is there.

        Raises:
            NotServed: no such clip, its file is gone, or a link leads elsewhere.
        """
        state = self._state
        file = _file_of(state, key)
        path = state.recordings.paths[file]
        full = self.corpus / path
        real = os.path.realpath(full)
        if not _inside(real, self._roots) and real != state.outside.get(path):
            raise NotServed(f"{path}: a link leads out of the folder, to where it did not when it was indexed.", gone=False)
        if not os.path.isfile(real):
            raise NotServed(f"{path}: the file is gone. Refresh the index.", gone=True)
        return Clip(full, Path(real), _seconds(state, file))

    def update(self, progress: Progress = silent) -> IndexReport | None:
        """Bring the index up to date, while searches go on in what it held, and in what it holds by and by.

        Returns:
            What was done; None if an update is under way already, or `stop` ended this one.

        Raises:
            DiffATRError: as `FolderIndex.update`; the state tells of it as well.
        """
        if not self._updating.acquire(blocking=False):
            return None
        try:
            self._indexing, self._problem = (0, 0), None
            patient = cast("Retriever", YieldingModel(self.model, self._lock))
            report = self.folder.update(patient, self._reading_along(progress), tell=self._tell)
            self._skipped = len(report.skipped)
            if not report.files:
                self._problem = f"No sound in {self.title} can be searched; {counted(len(report.skipped), 'file')} skipped."
            self._load(settled=True)
            return report
        except _Stopped:
            return None
        except DiffATRError as error:
            self._problem = str(error)
            if not isinstance(error, FolderGone):  # the index may be gone with the folder; what was read of it is searched
                with contextlib.suppress(DiffATRError):
                    self._load(settled=False)
            raise
        finally:
            self._indexing = None
            self._updating.release()

    def start(
        self,
        watch: Callable[[], AbstractContextManager[Progress]] = lambda: contextlib.nullcontext(silent),
        told: Callable[[IndexReport | DiffATRError], None] = lambda outcome: None,
    ) -> None:
        """Begin an update in a thread of its own, and get the model ready for a first question; nothing if one is under way.

        Args:
            watch: gives the progress to tell, for as long as the update takes.
            told: called with what came of it.
        """
        with self._starting:
            if self._thread is not None and self._thread.is_alive():
                if self._indexing is not None:
                    return
                self._thread.join()  # the update is over, and what came of it is being told
            first = self._thread is None
            self._indexing = (0, 0)  # now, or whoever asks for the state next would take it for done
            self._thread = threading.Thread(target=self._work, args=(first, watch, told), name="index", daemon=True)
            self._thread.start()

    def _work(
        self,
        first: bool,
        watch: Callable[[], AbstractContextManager[Progress]],
        told: Callable[[IndexReport | DiffATRError], None],
    ) -> None:
        outcome: IndexReport | DiffATRError | None
        try:
            if first:
                with contextlib.suppress(DiffATRError):  # what is wrong shows in the update, or in the first search
                    self._load(settled=False)
                    self._warm()
            with watch() as progress:
                outcome = self.update(progress)
        except DiffATRError as error:
            outcome = error
        finally:
            self._indexing = None
        if outcome is not None:
            told(outcome)

    def stop(self, timeout: float = 5.0) -> None:
        """End an update after the file that it is at; what it committed stays."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _warm(self) -> None:
        """A first search, and a first sound, load the encoders and compile what is compiled, which takes seconds."""
        self.by_text("1 kHz tone", 1)
        if self.diffuses:
            self.trajectory("1 kHz tone")
        with self._lock.take(patient=True):
            self.model.embed_audio([np.zeros(self.model.windowing.rate, np.float32)])

    def _reading_along(self, progress: Progress) -> Progress:
        due = time.monotonic() + _REREAD

        def step(done: int, total: int, note: str) -> None:
            nonlocal due
            if self._stopping.is_set():
                raise _Stopped
            self._indexing = (done, total)
            progress(done, total, note)
            if (began := time.monotonic()) > due:
                self._load(settled=False)
                now = time.monotonic()
                due = now + max(_REREAD, 20 * (now - began))  # a large index is read less often

        return step

    def _load(self, *, settled: bool) -> None:
        """Take up what the index holds. Links out of the folder are trusted only where an update has just seen every file."""
        recordings = self.folder.read(self.model.model_id, frames=self.model.sees_frames)
        outside = _outside(os.path.realpath(self.folder.corpus), self._roots, recordings.paths) if settled else {}
        version, before = _version(recordings), self._state
        since = before.since if version == before.version else time.time()
        self._state = IndexState.of(recordings, outside, version, since)


def key_of(path: str) -> str:
    """What a clip goes by in addresses: a hash of its path, since names of files need not be valid text."""
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def nothing_yet() -> IndexState:
    """The state before anything was read."""
    none = Recordings.none()
    return IndexState.of(none, {}, _version(none), time.time())


def _version(recordings: Recordings) -> str:
    content = hashlib.blake2b(packed_paths(recordings.paths), digest_size=8)
    noted = recordings.notes.arrays().values() if recordings.notes else ()
    for array in (recordings.content, recordings.offsets, recordings.spans, recordings.vectors, recordings.sums, *noted):
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()


def _file_of(state: IndexState, key: str) -> int:
    if (file := state.files.get(key)) is None:
        raise NotServed("There is no such clip in the index.", gone=True)
    return file


def _seconds(state: IndexState, file: int) -> float:
    return float(state.recordings.spans[state.recordings.rows_of(file).stop - 1, 1])


def _inside(real: str, roots: Sequence[str]) -> bool:
    return any(real.startswith(os.path.join(root, "")) for root in roots)


def _outside(corpus: str, roots: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Where links lead that leave the folders `roots`: the real file of each such path below `corpus`."""
    folders: dict[str, str] = {}
    found = {}
    for path in paths:
        below, name = os.path.split(path)
        if below not in folders:
            folders[below] = os.path.realpath(os.path.join(corpus, below))
        real = os.path.join(folders[below], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not _inside(real, roots):
            found[path] = real
    return found
