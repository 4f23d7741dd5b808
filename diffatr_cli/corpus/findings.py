"""What is found in many files of a folder, read ahead of the one who uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..core.windows import Windowing
from .examine import Content, Finding, Left, examine
from .read_ahead import read_ahead
from .reading_processes import PARCEL, Parcel, Readers, Settled, in_groups
from .scan import Stamp
from .windows import Window

READ_AHEAD = 128 << 20
"""Bytes of windows that are decoded and wait at a time; where processes read, some parcels of each."""
_PARCELS = 4


def read_files(
    corpus: Path,
    files: Mapping[bytes, Stamp],
    windowing: Windowing,
    is_settled: Settled,
    workers: int,
    *,
    side_by_side: bool = False,
    readers: Readers | None = None,
) -> Generator[tuple[bytes, Finding | None]]:
    """What `examine` finds in each file, with its path below the folder, and None at its end.

    Args:
        corpus: the folder.
        windowing: how the files are cut.
        is_settled: whether a file, by its path, need not be decoded with a content, by hash: then nothing follows its Content.
            Asked in threads, and again while it is decoded, which Left ends then.
        workers: threads.
        side_by_side: what is found in `workers` files at a time is given as it comes; otherwise one file comes after the other.
        readers: processes that read in the place of the threads, and give the Note of a file that is decoded, too.

    Raises:
        DiffATRError: no process can be started.
    """
    at_once = workers if side_by_side else 1
    if readers is not None:
        groups = (partial(readers.examine, group, is_settled) for group in in_groups(files, workers))
        limit = max(READ_AHEAD, _PARCELS * PARCEL * workers)
        with contextlib.closing(read_ahead(groups, _parcel_weight, limit, workers, at_once)) as parcels:
            for _, parcel in parcels:
                yield from parcel or ()
        return
    paths = list(files)
    makers = (partial(_examined, corpus, path, files[path], windowing, partial(is_settled, path)) for path in paths)
    with contextlib.closing(read_ahead(makers, _weight, READ_AHEAD, workers, at_once)) as found:
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
            yield Left()
            return


def _weight(finding: Finding | None) -> int:
    """Bytes of memory that its samples take."""
    return finding.samples.nbytes if isinstance(finding, Window) else 0


def _parcel_weight(parcel: Parcel | None) -> int:
    return sum(_weight(finding) for _, finding in parcel or ())
