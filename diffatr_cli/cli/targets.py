"""Whether a file or folder that a user names may be written: looked at before any work, so that no content of theirs is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import UsageError


def check_file(
    option: str, path: Path, *, ours: Callable[[bytes], bool] | None = None, read: Mapping[str, Path | None] | None = None
) -> None:
    """A file that is to be written, perhaps in the place of an older one.

    Args:
        option: by which it is named, for messages.
        ours: whether a file that begins with these bytes was written by the same command, and may be replaced; None where
            nothing may. An empty file may always.
        read: files that the same command reads or writes, by the options that name them.

    Raises:
        UsageError: there would be another content lost, it has the ending of a recording, or its folder is not there.
    """
    from ..data.formats import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES

    named = f"{option} {path}"
    if path.suffix.lower() in AUDIO_SUFFIXES | UNREADABLE_SUFFIXES:
        raise UsageError(f"{named}: has the ending of a recording, and would be taken for one. Name another file.")
    for other, file in (read or {}).items():
        if file is not None and _is_one(path, file):
            raise UsageError(f"{named}: is the file of {other}. Name another file.")
    if path.is_dir():
        raise UsageError(f"{named}: a folder is where a file should be. Name a file in it.")
    _check_parent(named, path)
    if os.path.lexists(path) and not _may_go(path, ours):
        what = "is there already" if ours is None else "is there already, and was not written by this command"
        raise UsageError(f"{named}: {what}. Name a new file, so that the older one stays.")


def check_folder(option: str, path: Path) -> None:
    """A folder that is to be filled, and made if it is not there. Raises UsageError where it cannot be one, or where the folder
    that it is to lie in is not there: a path that is spelt wrong would be made."""
    named = f"{option} {path}"
    if os.path.lexists(path):
        if not path.is_dir():
            raise UsageError(f"{named}: a file is where a folder should be. Name a folder.")
        return
    _check_parent(named, path)


def _check_parent(named: str, path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{named}: there is no folder {path.parent}. Make it first, if the path is right.")


def _is_one(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _may_go(path: Path, ours: Callable[[bytes], bool] | None) -> bool:
    """Whether a file may be replaced. One that cannot be read is left alone, and so are devices and pipes."""
    if ours is None or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            beginning = file.read(4096)
    except OSError:
        return False
    return not beginning or ours(beginning)
