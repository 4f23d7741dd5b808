"""What the processes of one service share, in a folder of their own: the index as it is searched, how it stands, and requests.

One process publishes, the others follow. The arrays of an index are files that every process maps into its memory, so that the
machine holds them once. A version that is published is never changed; one that nobody looks for any more is removed, and stays
in the memory of those who are still at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DiffATRError
from ..files import reason, write_text
from .filtering import Columns
from .notes import ARRAYS, Notes
from .session import IndexState, IndexStatus
from .snapshot import Recordings, packed_paths, unpacked_paths

_ARRAYS = ("content", "offsets", "spans", "vectors", "hashes")
_KINDS = "kinds.json"  # the type and shape of each
_DATA = "index-"  # and the version: folders of arrays
_TRIES = 20  # to read what is published, where a newer version takes its place meanwhile


class Mark(NamedTuple):
    """What tells one published index from another, at the cost of a look at a file."""

    inode: int
    mtime_ns: int


class Board:
    """The folder that the processes of a service share.

    Args:
        place: the folder. Whoever starts the service makes it, and removes it in the end.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._current, self._status, self._wanted = place / "current.json", place / "status.json", place / "wanted"

    def publish(self, state: IndexState) -> IndexState:
        """Let the others take up a state of the index; the same state in memory that is shared with them.

        Raises:
            DiffATRError: there is no room for it.
        """
        data = self.place / f"{_DATA}{state.version}"
        try:
            if not data.is_dir():
                _write(data, state.recordings)
            facts = {"version": state.version, "since": state.since, "outside": state.outside}
            write_text(self._current, json.dumps(facts))
            for old in self.place.glob(f"{_DATA}*"):
                if old != data:
                    shutil.rmtree(old, ignore_errors=True)
            recordings = replace(_mapped(data), frames=state.recordings.frames)
            Columns.of(recordings).prepare()
            return state._replace(recordings=recordings)
        except OSError as error:
            raise DiffATRError(f"{self.place}: {reason(error)}") from error

    def mark(self) -> Mark | None:
        """That of what is published now; None where nothing is."""
        try:
            stat = self._current.stat()
        except FileNotFoundError:
            return None
        return Mark(stat.st_ino, stat.st_mtime_ns)

    def published(self) -> IndexState | None:
        """What is published now, in memory that all processes share; None where nothing is. `frames` are left out."""
        for _ in range(_TRIES):
            try:
                facts = json.loads(self._current.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            with contextlib.suppress(FileNotFoundError):  # a newer one was published after the line above
                recordings = _mapped(self.place / f"{_DATA}{facts['version']}")
                return IndexState.of(recordings, facts["outside"], facts["version"], facts["since"])
        raise DiffATRError(f"{self.place}: what is published there cannot be read. Start the service again.")

    def tell(self, status: IndexStatus) -> None:
        """Let the others know how the index stands."""
        write_text(self._status, json.dumps(status))

    def forget_status(self) -> None:
        """Whoever told it is gone."""
        self._status.unlink(missing_ok=True)

    def status(self) -> IndexStatus:
        """How the index stands, as it was told last. Until anything is told, it is about to be brought up to date."""
        wanted = self.is_wanted()  # first: once it is not wanted any more, the status tells of it
        try:
            files, windows, skipped, indexing, problem = json.loads(self._status.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return IndexStatus(0, 0, 0, (0, 0), None)
        return IndexStatus(files, windows, skipped, (0, 0) if wanted else indexing and tuple(indexing), problem)

    def want_update(self) -> None:
        """Ask the process that publishes to bring the index up to date."""
        self._wanted.touch()

    def is_wanted(self) -> bool:
        """Whether that was asked for and has not begun."""
        return self._wanted.exists()

    def update_began(self) -> None:
        """What was asked for is told by the status from here on."""
        self._wanted.unlink(missing_ok=True)


def _write(data: Path, recordings: Recordings) -> None:
    temporary = data.with_name(f".{data.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        (temporary / "paths").write_bytes(packed_paths(recordings.paths))
        kinds = {}
        arrays = {name: getattr(recordings, name) for name in _ARRAYS}
        for name, array in (arrays | (recordings.notes.arrays() if recordings.notes else {})).items():
            array = np.ascontiguousarray(array)
            array.tofile(temporary / name)
            kinds[name] = (array.dtype.str, array.shape)
        (temporary / _KINDS).write_text(json.dumps(kinds), encoding="utf-8")
        os.replace(temporary, data)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _mapped(data: Path) -> Recordings:
    kinds = json.loads((data / _KINDS).read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {name: _array(data / name, *kinds[name]) for name in _ARRAYS}
    noted = {name: _array(data / name, *kinds[name]) for name in ARRAYS if name in kinds}
    notes = Notes.of_arrays(noted) if noted else None
    return Recordings(unpacked_paths((data / "paths").read_bytes()), **arrays, notes=notes)


def _array(path: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if 0 in shape:  # which cannot be mapped
        return np.zeros(shape, dtype)
    # As a plain array: the class of memory maps makes each slice of one slow. Not by numpy's own format, whose header is parsed
    # as Python is, which several threads cannot do at once in Python 3.11.
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))
