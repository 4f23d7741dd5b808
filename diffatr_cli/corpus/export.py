"""Taking sounds out of a corpus: copies of the files, or of the parts that were found as WAV, with lists for other programs.

A folder and a ZIP are made by the same steps: a `Sink` is where they go.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..data.audio import AudioError
from ..data.cut import cut_wav
from ..data.excerpt import duration
from ..data.listing import folded
from ..errors import DiffATRError, UsageError
from ..files import reason
from .edit_lists import FRAME_RATE, Listed, edit_lists, playlist, table
from .names import legal, shortened
from .renaming import rename_to_new
from .report import Skipped

_BLOCK = 1 << 18  # bytes copied at a time


@dataclass(frozen=True)
class Piece:
    """What is to be taken out: a file, and the part of it that is meant.

    Attributes:
        path: below the corpus, by which it is told of.
        file: where it is.
        start, end: seconds; `end` is None where the whole file is meant.
        query, rank, score: by which it was found.
        why_not: why it cannot be taken out, where that is known before.
    """

    path: str
    file: Path
    start: float = 0.0
    end: float | None = None
    query: str = ""
    rank: int | None = None
    score: float | None = None
    why_not: str | None = None


@dataclass
class Exported:
    """What came of it.

    Attributes:
        files: each piece that was taken, with the name of its file; two pieces may be in one file.
        lists: names of the lists.
        skipped: what could not be read, by its path below the corpus, and why.
    """

    files: list[tuple[Piece, str]] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


class Unreadable(Exception):
    """A recording cannot be read, or not any further; the message says why, in a few words."""


class Sink(Protocol):
    """Where copies and lists go. Names have no folders, and fit every system."""

    def write(self, name: str, content: Iterable[bytes], modified: float | None) -> Generator[None, None, str]:
        """Write a file, and yield now and then; returns the name that it got, which is free.

        Args:
            modified: when it was changed last, by `time.time`; now if None.

        Raises:
            Unreadable: by `content`; of the file nothing is there.
            DiffATRError: it cannot be written.
        """

    def write_lists(self, lists: dict[str, bytes]) -> list[str]:
        """Write small files that belong together; returns their names, which all have the same number or none."""


def exporting(
    pieces: Iterable[Piece], sink: Sink, outcome: Exported, *, cut: bool, title: str, rate: int = FRAME_RATE
) -> Iterator[None]:
    """Take pieces out, and yield now and then, so that whoever waits for bytes gets them.

    A recording that cannot be read is skipped and listed. What is wanted twice is written once.

    Args:
        outcome: is filled with what came of it.
        cut: the parts as WAV, not the files. A piece without an end is copied whole all the same.
        title: of the lists.
        rate: frames a second of the EDL.
    """
    names: dict[tuple[Path, float, float | None], str] = {}
    failed: dict[tuple[Path, float, float | None], str] = {}
    for piece in pieces:
        cuts = cut and piece.end is not None
        key = (piece.file, piece.start, piece.end) if cuts else (piece.file, 0.0, None)
        if piece.why_not is not None:
            outcome.skipped.append(Skipped(piece.path, piece.why_not))
            continue
        if key in failed:
            continue
        if key not in names:
            content = _cut(piece) if cuts else _whole(piece.file)
            try:
                first = next(content, b"")
                modified = None if cuts else piece.file.stat().st_mtime
                names[key] = yield from sink.write(name_of(piece, cut=cut), itertools.chain([first], content), modified)
            except (Unreadable, OSError) as error:  # the second from a look at the file; sinks raise none
                failed[key] = str(error) if isinstance(error, Unreadable) else f"cannot be read ({error.strerror})"
                outcome.skipped.append(Skipped(piece.path, failed[key]))
                continue
        outcome.files.append((piece, names[key]))
    listed = [_listed(piece, name, cut=cut) for piece, name in outcome.files]
    outcome.lists += sink.write_lists(lists_of(listed, title, rate, outcome.skipped))
    yield


def export_folder(pieces: Iterable[Piece], folder: Path, *, cut: bool, title: str, rate: int = FRAME_RATE) -> Exported:
    """Take pieces out into a folder, which is made if it is not there. Arguments as of `exporting`.

    Nothing that is there is changed: a file of the same name and content is taken for the copy, and any other name that is taken
    gets a number.

    Raises:
        DiffATRError: the folder cannot be written; it says how many files were written before.
    """
    outcome = Exported()
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiffATRError(f"{folder}: {reason(error)}") from None
        deque(exporting(pieces, _Folder(folder), outcome, cut=cut, title=title, rate=rate), maxlen=0)
    except DiffATRError as error:
        count = len({name for _, name in outcome.files})
        raise DiffATRError(f"{error} Files written to {folder} before that: {count}.") from None
    return outcome


def check_target(folder: Path, corpus: Path) -> None:
    """Raises UsageError where copies would be found in the next search."""
    if folder.resolve().is_relative_to(corpus.resolve()):
        raise UsageError(f"{folder}: lies in the folder of recordings {corpus}, where the copies would be found as well.")


def lists_of(listed: Sequence[Listed], title: str, rate: int, skipped: Sequence[Skipped] = ()) -> dict[str, bytes]:
    """The lists of an export, by their names."""
    stem = shortened(legal(title), 60)
    lists = {f"{stem}.csv": table(listed), f"{stem}.m3u8": playlist(listed)}
    for number, content in enumerate(edit_lists(listed, title, rate), 1):
        lists[f"{stem}.edl" if number == 1 else f"{stem}-{number}.edl"] = content
    if skipped:
        lines = (f"{each.path}: {each.reason}\n" for each in skipped)
        lists[f"{stem} skipped.txt"] = "".join(lines).encode("utf-8", "surrogateescape")
    return lists


def in_place(piece: Piece) -> Listed:
    """A piece in a list that goes without copies."""
    return _listed(piece, str(piece.file), cut=False)


def name_of(piece: Piece, *, cut: bool) -> str:
    """The name of a copy: that of the file; of a part with where it begins, such as `rain_01m30.0s.wav`."""
    base = os.path.basename(piece.path)
    stem, suffix = os.path.splitext(base)
    if cut and piece.end is not None:
        tenths = round(10 * piece.start)
        hours, minutes, seconds = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
        stem, suffix = f"{stem}_{f'{hours}h' if hours else ''}{minutes:02d}m{seconds:04.1f}s", ".wav"
    return shortened(legal(stem), len(os.fsencode(suffix))) + legal(suffix, whole=False)


def numbered(name: str, number: int) -> str:
    """The `number`th name of those that would be the same; the first is the name itself."""
    if number == 1:
        return name
    stem, suffix = os.path.splitext(name)
    ending = f" ({number}){suffix}"
    return shortened(stem, len(ending.encode())) + ending


def _listed(piece: Piece, name: str, *, cut: bool) -> Listed:
    end = piece.end
    if end is None:
        with contextlib.suppress(AudioError):
            end = duration(piece.file)
    cuts = cut and piece.end is not None
    offset = piece.start if cuts else 0.0
    return Listed(name, piece.file, piece.start, end, offset, piece.query, piece.rank, piece.score, cuts)


def _cut(piece: Piece) -> Iterator[bytes]:
    assert piece.end is not None
    try:
        yield cut_wav(piece.file, piece.start, piece.end)
    except AudioError as error:
        raise Unreadable(error.reason) from None


def _whole(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise Unreadable("missing" if gone else f"cannot be read ({error.strerror or error})") from None


class _Folder:
    """A `Sink` that is a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._given = folder, set[str]()
        self._temporary = folder / f".diffatr-{os.getpid()}.tmp"

    def write(self, name: str, content: Iterable[bytes], modified: float | None) -> Generator[None, None, str]:
        """As `Sink`. It is whole before it gets its name."""
        temporary = self._temporary
        try:
            with self._refusals(), temporary.open("wb") as out:
                for block in content:
                    out.write(block)
                    yield
            if modified is not None:
                with contextlib.suppress(OSError):
                    os.utime(temporary, (modified, modified))
            for number in itertools.count(1):
                final = numbered(name, number)
                if folded(final) in self._given:
                    continue
                with self._refusals():
                    if self._place(temporary, self._folder / final):
                        self._given.add(folded(final))
                        return final
            raise AssertionError("numbers end")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def write_lists(self, lists: dict[str, bytes]) -> list[str]:
        """As `Sink`."""
        for number in itertools.count(1):
            names = [numbered(name, number) for name in lists]
            if all(self._is_free(name, content) for name, content in zip(names, lists.values(), strict=True)):
                break
        for name, content in zip(names, lists.values(), strict=True):
            deque(self.write(name, [content], None), maxlen=0)
        return names

    def _is_free(self, name: str, content: bytes) -> bool:
        path = self._folder / name
        with self._refusals():
            same = path.is_file() and not path.is_symlink() and path.read_bytes() == content
            return folded(name) not in self._given and (same or not os.path.lexists(path))

    def _place(self, temporary: Path, target: Path) -> bool:
        """Give a file its name, unless that is taken by another content."""
        try:
            rename_to_new(temporary, target)
        except FileExistsError:
            return not target.is_symlink() and target.is_file() and _same(temporary, target)
        return True

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiffATRError(f"{self._folder}: {reason(error)}") from None


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_BLOCK):
            if second.read(len(block)) != block:
                return False
    return True
