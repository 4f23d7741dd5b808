"""Bringing the notes of an index up to date: reading what new and changed files say of themselves, without their sound."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..progress import Progress
from .examine import note_of
from .note_table import NoteRow, NoteTable
from .report import Damaged
from .scan import Stamp

_TOGETHER = 256  # files that are read between two looks at the clock
_COMMIT_SECONDS = 5.0


def update_notes(
    corpus: Path,
    table: NoteTable,
    files: Mapping[bytes, Stamp],
    progress: Progress,
    workers: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Make the table hold what these files say of themselves, and nothing of others.

    A file that looks as it did when it was noted is not opened. What was read before a kill stays.

    Args:
        check: raises where the folder is gone; asked before what was read is kept, since of a file that is gone nothing is known.

    Raises:
        CannotUpdate: the table cannot be written.
        Damaged: it cannot be written because of what it holds, not even anew.
    """
    try:
        _update(corpus, table, files, progress, workers, check, anew=False)
    except Damaged:  # in a place that shows only where the table is changed
        _update(corpus, table, files, progress, workers, check, anew=True)


def _update(
    corpus: Path,
    table: NoteTable,
    files: Mapping[bytes, Stamp],
    progress: Progress,
    workers: int,
    check: Callable[[], None],
    *,
    anew: bool,
) -> None:
    known = table.mend(anew=anew)
    todo = [(path, stamp) for path, stamp in files.items() if path not in known or known[path].stamp != stamp]
    waiting, committed = dict[bytes, NoteRow](), time.monotonic()
    with ThreadPoolExecutor(workers, "notes") as pool:
        for first in range(0, len(todo), _TOGETHER):
            if first:  # a few files take no time worth telling of
                progress(first, len(todo), "reading metadata")
            some = todo[first : first + _TOGETHER]
            notes = pool.map(lambda each: note_of(corpus / os.fsdecode(each[0]), each[1]), some)
            read = {path: NoteRow(stamp, note) for (path, stamp), note in zip(some, notes, strict=True)}
            check()
            waiting |= read
            if time.monotonic() - committed > _COMMIT_SECONDS:
                table.put(waiting)
                waiting, committed = {}, time.monotonic()
    if waiting:
        table.put(waiting)
    if len(todo) > _TOGETHER:
        progress(len(todo), len(todo), "reading metadata")
    gone = known.keys() - files.keys()
    if gone:
        table.keep(set(files))
    if todo or gone or anew:
        table.tidy()
    table.seal()
