"""Finding the files that tables name, however they spell them, with one listing of each folder instead of a look for each row."""

from __future__ import annotations

import ntpath
import os
import posixpath
import unicodedata
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
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
    entries: dict[str, os.DirEntry[str]]
    real: str
    """The folder's path without symbolic links."""
    alike: dict[str, list[str]] = field(default_factory=dict)
    """Names in composed small letters -> as on disk; filled in when it is first needed."""


class Listing:
    """The folders that tables point into, each read when it is first asked for."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder | None] = {}
        self._below: dict[tuple[str, str], str | None] = {}
        self.problems: dict[str, str] = {}
        """Folders that are there and could not be read, with the reason."""

    def find(self, base: str, name: str) -> Found | None:
        """The file that `name` is, relative to `base`, which is absolute, or absolute itself; None when there is none.

        Backslashes may part folders. Letters may be composed or taken apart, and where the file system takes no notice of case,
        neither does this.
        """
        for spelled in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            head, slash, last = spelled.rpartition("/")
            if os.path.isabs(spelled):  # not from the root down: some systems list no folder that nobody has entered
                folder: str | None = head or slash
            else:
                folder = self._walk(base, head) if head else base
            if folder is not None and (found := self._file(folder, last)):
                return found
        return None

    def _walk(self, folder: str, names: str) -> str | None:
        """The folder that a relative path leads to, as the system goes: `link/..` is the parent of what `link` points at."""
        known = self._below.get((folder, names), "")
        if known != "":
            return known
        here: str | None = folder
        for name in names.split("/"):
            if here is None:
                break
            if name == "..":
                here = os.path.dirname(os.path.realpath(here) if os.path.islink(here) else here)
            elif name not in ("", "."):
                there = self._entry(here, name)
                here = os.path.join(here, there.name) if there and _is_folder(there) else None
        self._below[folder, names] = here
        return here

    def _file(self, folder: str, name: str) -> Found | None:
        entry = self._entry(folder, name)
        try:
            if entry is None or not entry.is_file():
                return None
            path = os.path.join(folder, entry.name)
            status = os.stat(path)
        except (OSError, ValueError):  # a link in a circle; gone since
            return None
        listed = self._folders[folder]
        assert listed is not None
        real = os.path.realpath(path) if entry.is_symlink() else os.path.join(listed.real, entry.name)
        # Systems without hard links may give two files one number after another; there every file has one name.
        return Found(path, (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else real)

    def _entry(self, folder: str, name: str) -> os.DirEntry[str] | None:
        listed = self._list(folder)
        if listed is None:
            return None
        if name in listed.entries:
            return listed.entries[name]
        if not listed.alike:
            for there in listed.entries:
                listed.alike.setdefault(_composed(there).casefold(), []).append(there)
        alike = listed.alike.get(_composed(name).casefold())
        if alike is None:
            return None
        composed = [there for there in alike if _composed(there) == _composed(name)]
        same = (there for there in alike if _same(os.path.join(folder, name), os.path.join(folder, there)))
        found = next(chain(composed, same), None)
        return None if found is None else listed.entries[found]

    def _list(self, folder: str) -> _Folder | None:
        if folder not in self._folders:
            self._folders[folder] = None
            try:
                with os.scandir(folder) as entries:
                    self._folders[folder] = _Folder({entry.name: entry for entry in entries}, os.path.realpath(folder))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                pass
            except OSError as error:
                self.problems[folder] = error.strerror or str(error)
        return self._folders[folder]


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


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
