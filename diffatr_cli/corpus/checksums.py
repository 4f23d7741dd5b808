"""Checksums of the files of a LanceDB table, kept beside it.

LanceDB believes what it reads. Most damage shows by the checksums of rows, but some makes it ask for more memory than there is,
which ends the process. So its files are looked at before. It never changes a file that it has written, so that a checksum
holds for as long as there is such a file; those of an update that was killed have none before the next one ends.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DiffATRError
from ..files import file_crc32, write_text

_HINT = "latest_version_hint.json"  # the one file that is written again and again; LanceDB does without


def misfits(table: Path, without: str | None = None) -> Iterator[str]:
    """The files of a table that do not fit their checksums, by their names below it.

    Args:
        without: a folder of it that is not looked at.
    """
    known = _known(table)
    for name, path in _files(table):
        if without is not None and name.startswith(f"{without}/"):
            continue
        with contextlib.suppress(FileNotFoundError):  # tidied away by an update that runs now
            if name in known and known[name] != file_crc32(path):
                yield name


def record(table: Path) -> None:
    """Give the files of a table checksums that have none yet, if the disk has room for them."""
    known = _known(table)
    _write(table, {name: known[name] if name in known else file_crc32(path) for name, path in _files(table)})


def prune(table: Path) -> None:
    """Drop the checksums of files that are gone: of a manifest that was lost the name is used again."""
    known = _known(table)
    kept = {name: known[name] for name, _ in _files(table) if name in known}
    if kept != known:
        _write(table, kept)


def forget(table: Path) -> None:
    """To be called before a table is made anew, whose files may have the same names."""
    _beside(table).unlink(missing_ok=True)


def _beside(table: Path) -> Path:
    return table.with_suffix(".checksums")


def _known(table: Path) -> dict[str, int]:
    try:
        known = json.loads(_beside(table).read_bytes())
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}


def _write(table: Path, sums: dict[str, int]) -> None:
    with contextlib.suppress(OSError, DiffATRError):
        write_text(_beside(table), json.dumps(sums))


def _files(table: Path) -> Iterator[tuple[str, Path]]:
    for below, _, names in os.walk(table):
        for name in names:
            path = Path(below, name)
            if name != _HINT:
                yield path.relative_to(table).as_posix(), path
