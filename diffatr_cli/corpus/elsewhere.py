"""Files that are read and embedded by an engine's workers, in the place of this process."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..engines import Engine, ItemLost
from ..errors import UsageError
from .batches import Batches, Vectors
from .examine import Failure, Finding, Vector
from .findings import read_files
from .reading_processes import Readers, pay
from .scan import Stamp
from .windows import Window

if TYPE_CHECKING:
    from ..model import Retriever

_FILES, _GPU_FILES = 16, 256  # that a worker gets together, by what it computes on; one that dies loses its work on them


class Elsewhere(NamedTuple):
    """Where files are read and embedded, if not in this process.

    Attributes:
        engine: whose workers do it.
        load: gives a worker the model, by the name of a device.
    """

    engine: Engine
    load: Callable[[str], Retriever]

    def findings(
        self,
        corpus: Path,
        todo: Mapping[bytes, Stamp],
        model: Retriever,
        embedded: set[str],
        reason_of: Callable[[bytes], str],
    ) -> Generator[tuple[bytes, Finding | None]]:
        """What is found in each file, as `read_files` gives it, but with vectors in the place of windows.

        Args:
            embedded: contents that need not be decoded.
            reason_of: the content of a file, by its path, for which the reason why it cannot be used is known; or nothing.
        """
        if not todo:
            return
        settled = np.array(sorted(map(bytes.fromhex, embedded)), "S16")
        items = [_File(path, stamp.size, reason_of(path)) for path, stamp in todo.items()]
        work = EmbedFiles(
            corpus.absolute(),
            self.load,
            model.model_id,
            self.engine.device,
            self.engine.threads,
            model.sees_frames,
            settled,
            items[0],
        )
        with contextlib.closing(self.engine.map(work, items)) as lanes:
            for item, lane in zip(items, lanes, strict=True):
                try:
                    for finding in lane:
                        yield item.path, finding
                except ItemLost as lost:
                    yield item.path, Failure(f"cannot be decoded ({lost})", lasting=False)
                yield item.path, None


class _File(NamedTuple):
    """A file for a worker: its path below the corpus, its bytes, and a content of which it is known that it cannot be used."""

    path: bytes
    size: int
    unusable: str


@dataclass(frozen=True)
class EmbedFiles:
    """The work on files: each as `examine` finds it, with vectors in the place of windows.

    Attributes:
        corpus: the folder, by its whole path, which has to be the same on all machines.
        load, device: give the model, which has to be `model_id`.
        threads: that decode while the model embeds.
        frames: whether frames are wanted too.
        settled: hashes (N,) of contents that need not be decoded, ascending.
        first: a file by which a worker sees that it has the folder.
    """

    corpus: Path
    load: Callable[[str], Retriever]
    model_id: str
    device: str
    threads: int
    frames: bool
    settled: np.ndarray
    first: _File

    @property
    def _on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def batch(self) -> int:
        """As `engines.Work`: how much work a worker loses that dies."""
        return _GPU_FILES if self._on_gpu else _FILES

    def open(self) -> Callable[[Sequence[_File]], Iterator[tuple[int, Finding]]]:
        """As `engines.Work`. Raises where the files or the model are not there."""
        if not self._sees_files():
            raise UsageError(
                f"{self.corpus} is not to be seen there. The workers read the recordings themselves: put them where every "
                "machine of the cluster has them under this same path, such as a network drive."
            )
        from ..model import load_the_same

        model = load_the_same(self.load, self.device, self.model_id)
        by_processes = self._on_gpu and pay(self.threads)
        return partial(self._embedded, model, Readers(self.corpus, model.windowing) if by_processes else None)

    def _sees_files(self) -> bool:
        """Whether this machine has the recordings. A place where a drive is not mounted is an empty folder."""
        try:
            return (self.corpus / os.fsdecode(self.first.path)).exists() or any(True for _ in os.scandir(self.corpus))
        except OSError:
            return False

    def _embedded(self, model: Retriever, readers: Readers | None, files: Sequence[_File]) -> Generator[tuple[int, Finding]]:
        places = {file.path: place for place, file in enumerate(files)}
        told = _Told(len(files))
        stamps = dict[bytes, Stamp]()
        for file in files:
            there = self._looked_at(file)
            if isinstance(there, Failure):
                told.add(places[file.path], there)
                told.add(places[file.path], None)
            else:
                stamps[file.path] = there

        def is_settled(path: bytes, content: str) -> bool:
            return content == files[places[path]].unusable or self._is_settled(content)

        # Frames are large, so that they are not kept until what comes before is told.
        found = read_files(
            self.corpus,
            stamps,
            model.windowing,
            is_settled,
            self.threads,
            side_by_side=self._on_gpu and not self.frames,
            readers=readers,
        )
        with Batches[_Waiting](model, self.frames, _embed) as batches, contextlib.closing(found):
            for path, finding in found:
                waiting = told.add(places[path], finding)
                if isinstance(finding, Window):
                    batches.add(waiting, finding)
                yield from told.ready()
            batches.finish()
            yield from told.ready()

    def _looked_at(self, file: _File) -> Stamp | Failure:
        """What this machine's system says of a file, unless it is another one here than there."""
        try:
            # Numbers of files and times of changes are another machine's own matter: what counts is that they stay.
            stamp = Stamp.of((self.corpus / os.fsdecode(file.path)).stat())
        except OSError as error:
            return Failure(f"cannot be read ({error.strerror or type(error).__name__})", lasting=False)
        return stamp if stamp.size == file.size else Failure("changed while it was read", lasting=False)

    def _is_settled(self, content: str) -> bool:
        place = int(np.searchsorted(self.settled, np.array(bytes.fromhex(content), "S16")))
        return place < len(self.settled) and bool(self.settled[place] == np.array(bytes.fromhex(content), "S16"))


class _Waiting:
    """A finding, or an end, that is told after what comes before it; a window as the Vector that comes of it."""

    def __init__(self, finding: Finding | None) -> None:
        self.finding = finding


class _Told:
    """What is found in some files, in the order of the files, as far as the windows before it are embedded."""

    def __init__(self, files: int) -> None:
        self._lanes = [deque[_Waiting]() for _ in range(files)]
        self._next = 0

    def add(self, place: int, finding: Finding | None) -> _Waiting:
        waiting = _Waiting(finding)
        self._lanes[place].append(waiting)
        return waiting

    def ready(self) -> Iterator[tuple[int, Finding]]:
        """What can be told and was not."""
        while self._next < len(self._lanes) and (lane := self._lanes[self._next]):
            if isinstance(lane[0].finding, Window):
                return
            finding = lane.popleft().finding
            if finding is None:
                self._next += 1
            else:
                yield self._next, finding


def _embed(waiting: Sequence[_Waiting], found: Vectors) -> None:
    for each, vector, frames in zip(waiting, *found, strict=True):
        assert isinstance(each.finding, Window)
        each.finding = Vector(each.finding.start, each.finding.end, vector, frames)
