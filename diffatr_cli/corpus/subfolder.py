"""A folder below one that is indexed already, searched and updated through that index: one index, and nothing embedded twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..progress import Progress, silent
from .index import FolderIndex, IndexReport, Recordings, Skipped, Watched
from .notes import Notes
from .place import Place
from .scan import Stamp
from .snapshot import VectorStore

if TYPE_CHECKING:
    from ..model import Retriever
    from .elsewhere import Elsewhere


class Subfolder:
    """A part of the index of a folder above, with what `FolderIndex` has for those who search and update.

    Args:
        corpus: the folder, as a person names it.
        whole: the index above it.

    Attributes:
        place: where that index is kept.
    """

    def __init__(self, corpus: Path, whole: FolderIndex) -> None:
        self.corpus, self.whole = corpus, whole
        self._below = os.path.join(os.fsencode(corpus.resolve().relative_to(whole.corpus.resolve())), b"")

    @property
    def place(self) -> Place:
        """As of `FolderIndex`."""
        return self.whole.place

    @property
    def roots(self) -> list[Path]:
        """As of `FolderIndex`."""
        return [self.corpus]

    def update(
        self,
        model: Retriever,
        progress: Progress = silent,
        workers: int | None = None,
        wait: Callable[[str], None] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        elsewhere: Elsewhere | None = None,
    ) -> IndexReport:
        """As `FolderIndex.update`, of what lies in this folder; the rest of the index stays as it is."""
        report = self.whole.update(model, progress, workers, wait, tell, elsewhere, self._below)
        return replace(report, skipped=self._named(report.skipped), partial=self._named(report.partial))

    def read(self, model_id: str, *, frames: bool = False) -> Recordings:
        """As `FolderIndex.read`, of what lies in this folder."""
        recordings = self.whole.read(model_id, frames=frames)
        return self._part(recordings, lambda hashes: self.whole.stored_vectors(model_id, frames, hashes))

    def with_frames(self, model_id: str, recordings: Recordings) -> Recordings:
        """As `FolderIndex.with_frames`."""
        return self.whole.with_frames(model_id, recordings)

    def frame_contents(self, model_id: str) -> set[str]:
        """As of `FolderIndex`."""
        return self.whole.frame_contents(model_id)

    def report(self, model_id: str, *, frames: bool = False) -> IndexReport | None:
        """As `FolderIndex.report`, of what lies in this folder."""
        report = self.whole.report(model_id, frames=frames, below=self._below)
        return report and replace(report, skipped=self._named(report.skipped), partial=self._named(report.partial))

    def contents(self) -> dict[str, str]:
        """As `FolderIndex.contents`, of what lies in this folder."""
        packed = {os.fsencode(path): content for path, content in self.whole.contents().items()}
        length = len(self._below)
        return {os.fsdecode(path[length:]): each for path, each in packed.items() if path.startswith(self._below)}

    @property
    def collections_file(self) -> Path:
        """That of the whole."""
        return self.whole.collections_file

    def kept_file(self, what: str) -> Path:
        """As of `FolderIndex`; each folder below it has its own."""
        return self.whole.kept_file(f"{what}-{hashlib.blake2b(self._below, digest_size=8).hexdigest()}")

    def watched(self) -> list[Watched]:
        """As `FolderIndex.watched`."""
        (whole,) = self.whole.watched()

        def seen() -> dict[bytes, Stamp] | None:
            files, length = whole.seen(), len(self._below)
            if files is None:
                return None
            return {path[length:]: stamp for path, stamp in files.items() if path.startswith(self._below)}

        def leave(paths: Set[bytes]) -> None:
            whole.leave({self._below + path for path in paths})

        return [Watched(self.corpus, whole.exclude, seen, leave)]

    def _named(self, files: list[Skipped]) -> list[Skipped]:
        """Files by their paths below this folder."""
        length = len(self._below)
        return [Skipped(os.fsdecode(os.fsencode(each.path)[length:]) or ".", each.reason) for each in files]

    def _part(self, whole: Recordings, store_of: Callable[[np.ndarray], VectorStore]) -> Recordings:
        packed = [os.fsencode(path) for path in whole.paths]
        files = np.array([number for number, path in enumerate(packed) if path.startswith(self._below)], np.int64)
        contents, content = np.unique(whole.content[files], return_inverse=True)
        # Contents are numbered as the first of their files come, which need not be so any more in a part.
        order = np.argsort(_firsts(content, len(contents)), kind="stable")
        number = np.argsort(order)
        contents = contents[order]
        lengths = whole.offsets[contents + 1] - whole.offsets[contents]
        rows = _rows(whole.offsets[contents], lengths)
        hashes = whole.hashes[contents]
        frames, places = whole.frames, np.full(len(whole), -1)
        places[files] = np.arange(len(files))
        return replace(
            whole,
            paths=[os.fsdecode(packed[file][len(self._below) :]) for file in files],
            content=number[content],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            spans=whole.spans[rows],
            vectors=whole.vectors if whole.store else whole.vectors[rows],
            frames=None if frames is None else lambda own: frames(rows[own]),
            hashes=hashes,
            sums=whole.sums[rows] if len(whole.sums) else whole.sums,
            store=store_of(hashes) if whole.store else None,
            notes=whole.notes and Notes.gathered([(whole.notes, places)], len(files)),
        )


def _firsts(content: np.ndarray, count: int) -> np.ndarray:
    """The first place of each of `count` numbers."""
    firsts = np.full(count, len(content), np.int64)
    np.minimum.at(firsts, content, np.arange(len(content)))
    return firsts


def _rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i] .. starts[i] + lengths[i] of all i, one behind the other."""
    ends = np.cumsum(lengths)
    shifts: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    return shifts + np.arange(len(shifts))


def through_ancestor(folder: FolderIndex, model_id: str | None, home: Path | None = None) -> FolderIndex | Subfolder:
    """The index by which a folder is searched: its own, or that of the nearest folder above it that is indexed for this model.

    Only where nobody said where the index is, and the folder has none of its own for this model. A folder above counts whose
    scan sees this one: nothing between them is hidden. Nothing is looked for beyond the file system that the folder lies on, nor
    in the person's home folder or above that.

    Args:
        model_id: of the model; None where an index of any model will do, as for what is known of files and not of their vectors.
        home: the home folder; that of whoever runs this if None.
    """
    if not folder.own_place or folder.holds(model_id):
        return folder
    for above in _ancestors(folder.corpus.resolve(), home):
        index = FolderIndex(above, approximate=folder.approximate)
        if index.holds(model_id):
            return Subfolder(folder.corpus, index)
    return folder


def _ancestors(corpus: Path, home: Path | None) -> Iterator[Path]:
    try:
        end = (Path.home() if home is None else home).resolve()
    except (OSError, RuntimeError):  # there is no home
        end = Path(corpus.anchor)
    here = corpus
    while here != here.parent and not here.name.startswith(".") and not here.is_mount():
        here = here.parent
        if here == here.parent or end.is_relative_to(here):
            return
        yield here
