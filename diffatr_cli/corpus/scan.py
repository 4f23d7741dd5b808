"""Walking a folder of recordings: which sound files are there, and what tells whether one is still the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from ..data.audio import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES
from ..progress import Progress, silent
from .report import Skipped

_SUFFIXES = {suffix.encode() for suffix in AUDIO_SUFFIXES}
_UNREADABLE = {suffix.encode() for suffix in UNREADABLE_SUFFIXES}
_SOON = 1.0  # seconds for which nobody is told anything


class Stamp(NamedTuple):
    """What the system says of a file. Whoever changes a content, or puts another file in its place, changes one of these.

    Size and time alone are not enough: two files of equal size and time may be swapped. `ctime_ns` is the time of the last
    change of content, name or rights (on Windows, of creation).
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        # On Windows a folder's listing gives no file number, and `os.stat` does.
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, 0 if os.name == "nt" else stat.st_ino)


class Listing(NamedTuple):
    """What is in a folder and below it.

    Attributes:
        files: sound files by relative path, in order.
        unreadable: files of sound and music of kinds that nothing here reads.
        unlisted: folders that could not be listed.
    """

    files: dict[bytes, Stamp]
    unreadable: list[Skipped]
    unlisted: list[Skipped]


def scan(corpus: Path, exclude: Path, progress: Progress = silent) -> Listing:
    """List a folder of recordings; `progress` is told of sound files, whose total nobody knows yet, folder by folder.

    Hidden files and folders and `exclude` are left out. Links are followed; a folder that is reached twice is listed once,
    under its real place if that is below `corpus`, so loops end.
    """
    due = time.monotonic() + _SOON
    files: dict[bytes, Stamp] = {}
    unreadable: list[Skipped] = []
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
                            continue
                        suffix = entry.name[entry.name.rfind(b".") :].lower()
                        if suffix in _SUFFIXES and entry.is_file():
                            files[path] = Stamp.of(entry.stat())
                        elif suffix in _UNREADABLE and entry.is_file():
                            unreadable.append(Skipped(os.fsdecode(path), f"{suffix.decode()} files cannot be read"))
            if time.monotonic() > due:
                progress(len(files), 0, "looking for recordings")
        except OSError as error:
            unlisted.append(Skipped(os.fsdecode(below) or ".", f"folder cannot be listed ({error.strerror})"))
    return Listing(dict(sorted(files.items())), sorted(unreadable, key=lambda each: each.path), unlisted)


def fingerprint(files: Mapping[bytes, tuple[int, ...]]) -> str:
    """A hash of files' paths and of some numbers of each."""
    rows = [b"%s\0%s" % (path, " ".join(map(str, numbers)).encode()) for path, numbers in sorted(files.items())]
    return hashlib.blake2b(b"\0".join(rows), digest_size=16).hexdigest()


def identity_of(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of its name, such as a drive from its mount point; None where there is none."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return _identity(stat) if S_ISDIR(stat.st_mode) else None


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
