"""Finding the files that tables name, however they spell them, with one listing of each folder instead of a look for each row."""

from __future__ import annotations

import ntpath
import os
import posixpath
import unicodedata
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from .audio import AUDIO_SUFFIXES


@dataclass(frozen=True)
class Found:
    """A file that a table names."""

    path: str
    """Absolute, its last part spelled as on disk."""
    key: Hashable
    """Equal for all names of one file: other spellings, symbolic and hard links."""


@dataclass
class _Folder:
    path: str
    real: str
    """Without symbolic links."""
    entries: dict[str, os.DirEntry[str]]

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """Names of which a file system may take one for another -> as on disk."""
        alike: dict[str, list[str]] = {}
        for name in self.entries:
            alike.setdefault(folded(name), []).append(name)
        return alike

    def entry(self, name: str) -> os.DirEntry[str] | None:
        if name in self.entries:
            return self.entries[name]
        alike = self.alike.get(folded(name), [])
        composed = (there for there in alike if _composed(there) == _composed(name))
        same = (there for there in alike if _same(os.path.join(self.path, name), os.path.join(self.path, there)))
        found = next(chain(composed, same), None)
        return None if found is None else self.entries[found]

    def file(self, name: str) -> Found | None:
        entry = self.entry(name)
        try:
            if entry is None or not entry.is_file():
                return None
            path = os.path.join(self.path, entry.name)
            status = os.stat(path)
        except (OSError, ValueError):  # a link in a circle; gone since
            return None
        real = os.path.realpath(path) if entry.is_symlink() else os.path.join(self.real, entry.name)
        # Systems without hard links may give two files one number after another; there every file has one name.
        return Found(path, (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else real)


class Listing:
    """The folders that tables point into, each read when it is first asked for."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder] = {}
        self._ways: dict[tuple[str, str], _Folder] = {}
        self.problems: dict[str, str] = {}
        """Folders that are there and could not be read, with the reason."""

    def find(self, bases: Iterable[str], name: str) -> Found | None:
        """The file that `name` is, relative to the first of `bases` that has it, which are absolute, or absolute itself; None
        when there is none.

        Backslashes may part folders. Letters may be composed or taken apart, and where the file system takes no notice of case,
        neither does this.
        """
        way, slash, last = name.rpartition("/")
        alike = folded(last)
        for base in bases:
            folder = self._folder(base, way + slash)
            if alike in folder.alike and (found := folder.file(last)):
                return found
            if "\\" in name and (found := self.find((base,), name.replace("\\", "/"))):
                return found
        return None

    def _folder(self, base: str, way: str) -> _Folder:
        """Where a way leads that starts at `base` or is absolute: "", or something with a slash behind it."""
        folder = self._ways.get((base, way))
        if folder is None:
            # Not from the root down: some systems list no folder that nobody has entered.
            path = (way.rstrip("/") or "/") if os.path.isabs(way) else self._walk(base, way)
            folder = self._ways[base, way] = _Folder("", "", {}) if path is None else self._list(path)
        return folder

    def _walk(self, base: str, way: str) -> str | None:
        """The folder that a relative way leads to, as the system goes: `link/..` is the parent of what `link` points at."""
        here = base
        for name in way.split("/"):
            if name == "..":
                here = os.path.dirname(os.path.realpath(here) if os.path.islink(here) else here)
            elif name not in ("", "."):
                there = self._list(here).entry(name)
                if there is None or not _is_folder(there):
                    return None
                here = os.path.join(here, there.name)
        return here

    def _list(self, path: str) -> _Folder:
        folder = self._folders.get(path)
        if folder is None:
            folder = _Folder(path, path, {})
            try:
                with os.scandir(path) as entries:
                    folder = _Folder(path, os.path.realpath(path), {entry.name: entry for entry in entries})
            except (FileNotFoundError, NotADirectoryError, ValueError):
                pass
            except OSError as error:
                self.problems[path] = error.strerror or str(error)
            self._folders[path] = folder
        return folder


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def plain_name(name: str) -> str | None:
    """A name in its one spelling, for files that are not there: composed letters, no `.`, no `sub/..`, no backslashes.

    None for what cannot name a file: `..`, `.`, `/`, a folder's name with a slash behind it.
    """
    slashed = _composed(name).replace("\\", "/")
    if "/" not in slashed and not slashed.startswith("."):
        return slashed or None
    if posixpath.basename(slashed) in ("", ".", ".."):
        return None
    return posixpath.normpath(slashed)


def file_stem(name: str) -> str:
    """The last part of a name, without its ending if that is one of sound files."""
    last = ntpath.basename(name)  # which splits at slashes of both kinds
    return os.path.splitext(last)[0] if has_ending(last) else last


def as_text(name: str) -> str:
    """A name of the file system as text that can be stored: bytes in it that are not UTF-8 are replaced."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "replace")


def has_ending(name: str) -> bool:
    """Whether a name ends as those of sound files do."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def none_found(sought: str, found: str | None) -> str:
    """A note for when not one file that a table names is there: how the names that are there differ can be seen."""
    return f"not one of the files was found: the table names {sought}, " + (
        f"while there is {found}" if found else "and there is no sound file at all"
    )


def walk_files(folders: Iterable[Path], leave_out: Path, problems: dict[str, str] | None = None) -> Iterator[Path]:
    """All files below the folders, each folder's in order, except those in `leave_out` (what is being prepared) and in hidden
    folders; each once. Folders that cannot be read go into `problems` with the reason."""
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        if problems is not None:
            problems[str(error.filename)] = error.strerror or str(error)

    for folder in folders:
        for parent, children, names in os.walk(folder, onerror=unreadable):
            if parent in seen:
                children.clear()
                continue
            seen.add(parent)
            children[:] = sorted(child for child in children if not child.startswith(".") and Path(parent, child) != leave_out)
            yield from (Path(parent, name) for name in sorted(names))


def walk_sounds(folders: Iterable[Path], leave_out: Path, problems: dict[str, str] | None = None) -> Iterator[Path]:
    """The files of `walk_files` with an ending of sound files."""
    return (path for path in walk_files(folders, leave_out, problems) if path.suffix.lower() in AUDIO_SUFFIXES)
