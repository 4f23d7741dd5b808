"""Renaming files such that it can be undone: each rename is in a log, on the disk, before it is done.

The log is JSON lines: first what it is and which folder it is of, then for each file its `old` and `new` path below the folder,
and its `size` and `mtime_ns`, by which it is known again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..errors import DiffATRError, UsageError
from ..files import reason
from ..printable import counted, were
from .names import Rename

_FORMAT = "diffatr renames"
_NOREPLACE, _EXCL, _AT_FDCWD = 1, 4, -100  # of renameat2 (Linux) and renamex_np (macOS)
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass
class Outcome:
    """What came of renaming: pairs of paths below the folder, from and to, and of what was not done each path with the reason."""

    done: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def apply_renames(corpus: Path, renames: Sequence[Rename], log: Path) -> Outcome:
    """Rename files, never over another one. What cannot be renamed is left as it is, and the others are renamed.

    Args:
        renames: those that have no `why_not`.
        log: a new file.

    Raises:
        UsageError: the log is there already.
        DiffATRError: the log cannot be written; what stands in it can be undone.
    """
    outcome = Outcome()
    with _new_log(log) as file:
        try:
            _write(file, {"format": _FORMAT, "version": 1, "folder": str(corpus.absolute())})
            for each in renames:
                old, new = corpus / each.old, corpus / each.new
                try:
                    stat = os.lstat(old)
                except OSError as error:
                    outcome.failed.append((each.old, reason(error)))
                    continue
                _write(file, {"old": each.old, "new": each.new, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
                _try(outcome, old, new, each.old, each.new)
        except OSError as error:
            done = len(outcome.done)
            raise DiffATRError(
                f"{log}: {reason(error)} {counted(done, 'file')} {were(done)} renamed, which --undo undoes."
            ) from error
    return outcome


def undo_renames(log: Path, corpus: Path | None = None) -> tuple[Path, Outcome]:
    """Rename back what a log says, the last first, where the file is still as it says; the folder, and what came of it.

    What was not renamed at all, because that was cut off or failed, or what was undone already, counts as neither.

    Args:
        corpus: where the folder is now; None for where the log says.

    Raises:
        DiffATRError: the log cannot be read, is none, or its folder is gone.
    """
    said, entries = _read(log)
    folder = Path(said) if corpus is None else corpus
    if not folder.is_dir():
        raise DiffATRError(f"{folder}: the folder of {log} is not there. If it was moved, name it: diffatr tag DIR --undo {log}")
    outcome = Outcome()
    for entry in reversed(entries):
        if isinstance(entry, str):
            outcome.failed.append((entry, "this line of the log cannot be read."))
            continue
        old, new = folder / entry["old"], folder / entry["new"]
        try:
            stat = os.lstat(new)
        except OSError:
            stat = None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (entry["size"], entry["mtime_ns"]):
            if _is(old, entry):  # it was never renamed, or is back
                continue
            outcome.failed.append((entry["new"], "no longer there." if stat is None else "it was changed since."))
            continue
        _try(outcome, new, old, entry["new"], entry["old"])
    return folder, outcome


def _is(path: Path, entry: dict[str, Any]) -> bool:
    try:
        stat = os.lstat(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (entry["size"], entry["mtime_ns"])


def _try(outcome: Outcome, source: Path, target: Path, name: str, to: str) -> None:
    try:
        rename_to_new(source, target)
    except FileExistsError:
        outcome.failed.append((name, f"{to} is there already."))
    except OSError as error:
        outcome.failed.append((name, reason(error)))
    else:
        outcome.done.append((name, to))


def rename_to_new(source: Path, target: Path) -> None:
    """Rename a file, in one step, to a name that is free.

    Raises:
        FileExistsError: there is something of that name, which stays as it is.
        OSError: it cannot be renamed.
    """
    if os.name == "nt":
        os.rename(source, target)  # which refuses by itself
        return
    try:
        if _renamed_exclusively(source, target):
            return
    except FileExistsError:
        # On a file system that ignores case, the name in another case is the file itself.
        if not (source.name != target.name and source.name.casefold() == target.name.casefold() and _is_one(source, target)):
            raise
    else:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def _is_one(one: Path, other: Path) -> bool:
    """Whether two names are of one entry of their folder, and not of two hard links."""
    return os.path.samefile(one, other) and other.name not in os.listdir(other.parent)


def _renamed_exclusively(source: Path, target: Path) -> bool:
    """Rename where the system can refuse a name that is taken, in the same step; False where it cannot. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(names[0], names[1], ctypes.c_uint(_EXCL))
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_NOREPLACE))
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(source))


@contextmanager
def _new_log(log: Path) -> Iterator[TextIOWrapper]:
    try:
        file = log.open("x", encoding="ascii")
    except FileExistsError:
        raise UsageError(f"--log {log}: is there already. Name a new file, so that the older log stays.") from None
    except OSError as error:
        raise DiffATRError(
            f"{log}: {reason(error)} The log of what is renamed goes there; name another place: --log FILE"
        ) from None
    with file:
        yield file


def _write(log: TextIOWrapper, entry: dict[str, Any]) -> None:
    """A line, on the disk when this returns."""
    log.write(json.dumps(entry) + "\n")  # in ASCII: names need not be valid text
    log.flush()
    os.fsync(log.fileno())


def _read(log: Path) -> tuple[str, list[dict[str, Any] | str]]:
    """The folder that a log is of and its entries; of a line that cannot be read its place. A last line that was cut off in the
    midst of writing is left out: what it tells of was not done."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DiffATRError(f"{log}: {reason(error)}") from None
    lines = text.split("\n")
    head = _parsed(lines[0])
    if head is None or head.get("format") != _FORMAT or not isinstance(head.get("folder"), str):
        raise DiffATRError(f"{log}: is no log of renamed files. `diffatr tag --rename PATTERN --apply` writes one.")
    entries: list[dict[str, Any] | str] = []
    for number, line in enumerate(lines[1:-1], 2):
        entry = _parsed(line)
        entries.append(entry if entry is not None and _is_entry(entry) else f"{log.name}:{number}")
    return head["folder"], entries


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_entry(entry: dict[str, Any]) -> bool:
    """Whether it names two files of one folder, below the log's."""
    old, new = entry.get("old"), entry.get("new")
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    one, other = Path(old), Path(new)
    inside = not one.is_absolute() and ".." not in one.parts and "\0" not in old + new
    known = all(isinstance(entry.get(key), int) for key in ("size", "mtime_ns"))
    return known and inside and bool(one.name and other.name) and one.parent == other.parent
