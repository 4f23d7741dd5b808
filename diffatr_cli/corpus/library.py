"""A library: several folders, each with its own index, searched as one."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import DiffATRError
from ..progress import Progress, silent
from .index import CannotUpdate, FolderIndex, IndexReport, Recordings, Skipped, Watched
from .joined import dispatched, join, named
from .report import FolderGone
from .subfolder import Subfolder, through_ancestor

if TYPE_CHECKING:
    from ..core.ragged import Ragged
    from ..model import Retriever
    from .elsewhere import Elsewhere


Folder = FolderIndex | Subfolder


class Searched(Protocol):
    """What is searched and kept up to date: one folder (`FolderIndex`, `Subfolder`), or several (`Library`)."""

    @property
    def corpus(self) -> Path:
        """The folder that paths are below, as a person names it."""

    @property
    def roots(self) -> list[Path]:
        """The folders whose recordings are searched."""

    def update(
        self,
        model: Retriever,
        progress: Progress = silent,
        workers: int | None = None,
        wait: Callable[[str], None] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        elsewhere: Elsewhere | None = None,
    ) -> IndexReport:
        """As `FolderIndex.update`."""

    def read(self, model_id: str, *, frames: bool = False) -> Recordings:
        """As `FolderIndex.read`."""

    def with_frames(self, model_id: str, recordings: Recordings) -> Recordings:
        """As `FolderIndex.with_frames`."""

    def report(self, model_id: str, *, frames: bool = False) -> IndexReport | None:
        """As `FolderIndex.report`."""

    def watched(self) -> list[Watched]:
        """What to look at, to see whether there is something to update."""

    def contents(self) -> dict[str, str]:
        """As `FolderIndex.contents`."""

    @property
    def collections_file(self) -> Path:
        """As `FolderIndex.collections_file`."""

    def kept_file(self, what: str) -> Path:
        """As `FolderIndex.kept_file`."""


class Library:
    """Several folders as one, with what `FolderIndex` has for those who search and update. Paths begin with the folder's name.

    A folder that lies in another one of them is not gone through twice. One that cannot be used is told, and the others go on.

    Args:
        folders: two or more.
        problems: why others that were named cannot be used.

    Attributes:
        problems: what is wrong with folders that were named, by the folder.
    """

    def __init__(self, folders: Sequence[Folder], problems: dict[Path, str] | None = None) -> None:
        self.folders, self.problems = list(folders), dict(problems or {})
        self.corpus = Path()
        self._gone = set[Path]()  # folders whose recordings the last update did not find

    @property
    def roots(self) -> list[Path]:
        """As of `FolderIndex`."""
        return [folder.corpus for folder in self.folders]

    def update(
        self,
        model: Retriever,
        progress: Progress = silent,
        workers: int | None = None,
        wait: Callable[[str], None] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        elsewhere: Elsewhere | None = None,
    ) -> IndexReport:
        """As `FolderIndex.update`, of each folder; `tell` is told what is wrong with one of them.

        Raises:
            DiffATRError: none of them can be updated.
        """
        reports: list[tuple[Path, IndexReport]] = []
        failures: list[DiffATRError] = []
        for folder in self.in_order():
            root, before = folder.corpus, self.problems.pop(folder.corpus, None)
            self._gone.discard(root)
            try:
                reports.append((root, folder.update(model, _of(root, progress), workers, wait, tell, elsewhere)))
            except DiffATRError as error:
                if isinstance(error, FolderGone):
                    self._gone.add(root)
                failures.append(error)
                self.problems[root] = str(error)
                if before != str(error):
                    rest = " Searching what is indexed of it so far." if isinstance(error, CannotUpdate) else ""
                    tell(f"{_about(root, error)}{rest}")
        if not reports:
            raise next((each for each in failures if isinstance(each, CannotUpdate)), failures[0])
        return _together(reports)

    def read(self, model_id: str, *, frames: bool = False) -> Recordings:
        """As `FolderIndex.read`, of all folders together; those that cannot be read, or whose recordings are gone, are left out.

        Raises:
            DiffATRError: none of them can be read.
        """
        parts: list[tuple[Path, Recordings]] = []
        failures: list[DiffATRError] = []
        for folder in self.in_order():
            if folder.corpus in self._gone:
                continue
            try:
                parts.append((folder.corpus, folder.read(model_id, frames=frames)))
            except DiffATRError as error:
                failures.append(error)
                self.problems[folder.corpus] = str(error)
        if failures and not parts:
            raise failures[0]
        order = self.roots
        return join(sorted(parts, key=lambda each: order.index(each[0])))

    def with_frames(self, model_id: str, recordings: Recordings) -> Recordings:
        """As `FolderIndex.with_frames`, each content's from a folder that has them."""
        owner = np.full(len(recordings.hashes), -1)
        names = [each.decode("ascii") for each in recordings.hashes.tolist()]
        of_folders = []
        for number, folder in enumerate(self.folders):
            there = folder.frame_contents(model_id)
            owner[[i for i, name in enumerate(names) if owner[i] < 0 and name in there]] = number
            of_folders.append(folder.with_frames(model_id, recordings).frames)

        def frames(rows: np.ndarray) -> Ragged:
            contents = recordings.contents_at(rows)
            return dispatched(of_folders, owner[contents], rows)

        return replace(recordings, frames=frames)

    def report(self, model_id: str, *, frames: bool = False) -> IndexReport | None:
        """As `FolderIndex.report`, of all folders together; None where there is none of one of them."""
        reports = []
        for folder in self.in_order():
            report = folder.report(model_id, frames=frames)
            if report is None:
                return None
            reports.append((folder.corpus, report))
        return _together(reports)

    def watched(self) -> list[Watched]:
        """As of `FolderIndex`."""
        return [each for folder in self.in_order() for each in folder.watched()]

    def contents(self) -> dict[str, str]:
        """As `FolderIndex.contents`, of all folders that can be read, by the paths that `join` gives."""
        found = dict[str, str]()
        for folder in self.in_order():
            with contextlib.suppress(DiffATRError):  # `read` tells of it
                found |= {named(folder.corpus, path): content for path, content in folder.contents().items()}
        return found

    @property
    def collections_file(self) -> Path:
        """That of the first folder: members are known by their contents, wherever they lie."""
        return self.folders[0].collections_file

    def kept_file(self, what: str) -> Path:
        """As of `FolderIndex`, beside the index of the first folder; other folders together have others."""
        together = b"\0".join(os.fsencode(os.path.realpath(root)) for root in self.roots)
        return self.folders[0].kept_file(f"{what}-{hashlib.blake2b(together, digest_size=8).hexdigest()}")

    def in_order(self) -> Iterator[Folder]:
        """The folders to go through, outer ones first; one in another that could be used is left out."""
        used: list[Path] = []
        for real, folder in sorted(((each.corpus.resolve(), each) for each in self.folders), key=lambda pair: len(pair[0].parts)):
            if not any(_covers(other, real) for other in used):
                yield folder
                if folder.corpus not in self.problems:
                    used.append(real)


def _covers(folder: Path, other: Path) -> bool:
    """Whether a scan of one folder, by its real path, goes through the other."""
    return other.is_relative_to(folder) and not any(part.startswith(".") for part in other.relative_to(folder).parts)


def _of(folder: Path, progress: Progress) -> Progress:
    return lambda done, total, note: progress(done, total, f"{folder}: {note}")


def _about(folder: Path, error: DiffATRError) -> str:
    text = str(error)
    return text if text.startswith(str(folder)) else f"{folder}: {text}"


def _together(reports: Sequence[tuple[Path, IndexReport]]) -> IndexReport:
    """One report of all folders, with paths as `join` gives them."""
    whole = IndexReport()
    for folder, report in reports:
        for field in fields(IndexReport):
            value = getattr(report, field.name)
            if isinstance(value, list):
                value = [Skipped(named(folder, each.path), each.reason) for each in value]
            setattr(whole, field.name, getattr(whole, field.name) + value)
    return whole


def open_corpora(
    corpora: Sequence[Path],
    index: Path | str | None = None,
    approximate: bool | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> FolderIndex | Library:
    """The index of a folder, or of several folders as one; one that is named twice counts once.

    Args:
        index, approximate: as of `FolderIndex`; one place may hold the indexes of all.
        tell: told what is wrong with one folder of several.

    Raises:
        DiffATRError: none of them can be used, as far as that shows at once.
    """
    different = list({os.path.realpath(corpus): corpus for corpus in reversed(corpora)}.values())[::-1]
    folders, problems, failures = [], dict[Path, str](), list[DiffATRError]()
    for corpus in different:
        try:
            folder = FolderIndex(corpus, index, approximate)
            folder.place.check()
            folders.append(folder)
        except DiffATRError as error:
            problems[corpus] = str(error)
            failures.append(error)
    if len(different) == len(failures) == 1:
        raise failures[0]
    if not folders:
        raise type(failures[0])(*(_about(*each) for each in zip(problems, failures, strict=True)))
    if len(different) == 1:
        return folders[0]
    for corpus, failure in zip(problems, failures, strict=True):
        tell(f"{_about(corpus, failure)} The other folders are searched.")
    return Library(folders, problems)


def through_ancestors(
    searched: FolderIndex | Library, model_id: str, tell: Callable[[str], None] = lambda text: None
) -> Folder | Library:
    """The same folders, those below an indexed folder through its index (`through_ancestor`), which is told."""
    if not isinstance(searched, Library):
        return placed_folder(searched, model_id, tell)
    inner = set(searched.folders) - set(searched.in_order())
    return Library(
        [each if each in inner else placed_folder(each, model_id, tell) for each in searched.folders], searched.problems
    )


def placed_folder(folder: Folder, model_id: str | None, tell: Callable[[str], None]) -> Folder:
    """One folder, if it lies below an indexed one through the index of that, which is told. `model_id` as there."""
    found = folder if isinstance(folder, Subfolder) else through_ancestor(folder, model_id)
    if isinstance(found, Subfolder) and found is not folder:
        tell(f"{found.corpus}: searched through the index of {found.whole.corpus}, which holds it. --index keeps one apart.")
    return found
