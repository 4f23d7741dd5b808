"""What is found in many files of a folder, read ahead of the one who uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..core.windows import Windowing
from .examine import Content, Finding, examine
from .read_ahead import read_ahead
from .reading_processes import MOST, PARCEL, Parcel, Readers, in_groups, pay
from .scan import Stamp
from .windows import Window

READ_AHEAD = 128 << 20
"""Bytes of windows that are decoded and wait at a time."""


def read_files(
    corpus: Path,
    files: Mapping[bytes, Stamp],
    windowing: Windowing,
    is_settled: Callable[[bytes, str], bool],
    workers: int,
    *,
    for_gpu: bool,
) -> Generator[tuple[bytes, Finding | None]]:
    """What `examine` finds in each file, with its path below the folder, and None at its end. Files come one after the other.

    `for_gpu`: they come side by side, as fast as `workers` of them can be read: by processes where these pay.

    Args:
        corpus: the folder.
        windowing: how the files are cut.
        is_settled: whether a file with this content, by hash, need not be decoded; asked in threads, and again while it is.
        workers: threads, or processes.

    Raises:
        DiffATRError: no process can be started.
    """
    if for_gpu and pay(files.values(), workers):
        yield from _by_processes(corpus, files, windowing, is_settled, min(workers, MOST))
        return
    paths = list(files)
    makers = (partial(_examined, corpus, path, files[path], windowing, partial(is_settled, path)) for path in paths)
    with contextlib.closing(read_ahead(makers, weight, READ_AHEAD, workers, workers if for_gpu else 1)) as found:
        for number, finding in found:
            yield paths[number], finding


def _examined(
    corpus: Path, path: bytes, stamp: Stamp, windowing: Windowing, is_settled: Callable[[str], bool]
) -> Iterator[Finding]:
    content = ""
    for finding in examine(corpus / os.fsdecode(path), stamp, windowing, is_settled):
        yield finding
        if isinstance(finding, Content):
            content = finding.hash
        elif is_settled(content):  # by now
            return


def _by_processes(
    corpus: Path, files: Mapping[bytes, Stamp], windowing: Windowing, is_settled: Callable[[bytes, str], bool], workers: int
) -> Generator[tuple[bytes, Finding | None]]:
    with Readers(corpus, windowing) as readers:
        makers = (partial(readers.examine, group, is_settled) for group in in_groups(files, workers))
        limit = max(READ_AHEAD, 4 * PARCEL * workers)
        with contextlib.closing(read_ahead(makers, _parcel_weight, limit, workers, workers)) as found:
            for _, parcel in found:
                yield from parcel or ()


def weight(finding: Finding | None) -> int:
    """Bytes of memory that its samples take."""
    return finding.samples.nbytes if isinstance(finding, Window) else 0


def _parcel_weight(parcel: Parcel | None) -> int:
    return sum(weight(finding) for _, finding in parcel or ())
