"""What a search reads: the recordings of a folder with their vectors, in memory and, beside the tables, as one file.

Reading the file takes no LanceDB. It carries marks of the tables and of the folder as they were, and checksums of all that is
in it. One that is missing, of another time or damaged is as good as none.

F files, W windows, D embedding size.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import DiffATRError
from ..files import replacing
from .report import IndexReport
from .scan import fingerprint


@dataclass(frozen=True)
class Recordings:
    """What a search looks at, in memory: the windows of file f are rows offsets[f]..offsets[f + 1].

    Attributes:
        paths: F paths below the folder, sorted.
        offsets: (F + 1,) integers, ascending; every file has at least one window.
        spans: (W, 2) start and end of each window in its file, seconds.
        vectors: (W, D) float32 unit vectors.
    """

    paths: list[str]
    offsets: np.ndarray
    spans: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def none(cls) -> Recordings:
        """Those of a folder without any."""
        return cls([], np.zeros(1, np.int64), np.zeros((0, 2)), np.zeros((0, 1), np.float32))


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read.

    Attributes:
        folder: mark of the folder as it was when it had just been indexed; None where something was left to be tried again.
        report: of an update that finds the folder like that.
    """

    folder: str | None
    report: IndexReport
    _arrays: dict[str, np.ndarray]

    def recordings(self) -> Recordings:
        """What a search reads."""
        paths, vectors = self._arrays["paths"], self._arrays["vectors"]
        names = os.fsdecode(paths.tobytes()).split("\0") if len(paths) else []
        return Recordings(names, self._arrays["offsets"], self._arrays["spans"], vectors.astype(np.float32))


def read_snapshot(path: Path, tables: str | None) -> Snapshot | None:
    """The snapshot at `path`, if it is whole and was made of the tables with the mark `tables`.

    All of it is checked: zlib does 1.5 GB a second, which is little beside what reading and a search take.
    """
    try:
        with zipfile.ZipFile(path) as file:
            facts = json.loads(_array(file, "facts").tobytes())
            if facts["tables"] != tables:
                return None
            arrays = {name: _array(file, name) for name in ("paths", "offsets", "spans", "vectors")}
            return Snapshot(facts["folder"], IndexReport.from_json(facts["report"]), arrays)
    except Exception:  # none there, or damaged in one of many ways; the tables hold all of it
        return None


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    # Not by np.load: it stops where the array's own header says, so that zipfile may never come to the checksum.
    return np.asarray(np.lib.format.read_array(io.BytesIO(file.read(f"{name}.npy"))))


def write_snapshot(path: Path, tables: str | None, folder: str | None, report: IndexReport, recordings: Recordings) -> None:
    """Write a snapshot if the disk has room for it; searches take a second longer without.

    Args:
        tables, folder, report: as `Snapshot` has them, and the mark of the tables.
        recordings: what the tables hold.
    """
    facts = {"folder": folder, "tables": tables, "report": asdict(report)}
    for kind in ("snapshot", "files", "windows"):
        for left in path.parent.glob(f".{kind}-*.tmp"):  # by an update that was killed
            left.unlink(missing_ok=True)
    with (
        contextlib.suppress(DiffATRError, OSError),
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(
            file,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            paths=np.frombuffer(b"\0".join(map(os.fsencode, recordings.paths)), np.uint8),
            offsets=recordings.offsets,
            spans=recordings.spans,
            vectors=recordings.vectors.astype(np.float16),  # as they are in the tables: exact
        )


def mark_of_tables(folder: Path, names: Sequence[str]) -> str | None:
    """A hash of the names, sizes and times of the files of tables, which any commit changes; None where a table is missing."""
    files: dict[bytes, tuple[int, ...]] = {}
    for name in names:
        table = folder / f"{name}.lance"
        if not table.is_dir():
            return None
        for below, _, below_names in os.walk(table):
            for path in (os.path.join(below, each) for each in below_names):
                with contextlib.suppress(FileNotFoundError):  # tidied away by an update that runs now
                    stat = os.stat(path)
                    files[os.fsencode(os.path.relpath(path, folder))] = stat.st_size, stat.st_mtime_ns
    return fingerprint(files)
