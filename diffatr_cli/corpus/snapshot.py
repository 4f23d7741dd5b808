"""What a search reads: the recordings of a folder with their vectors, in memory and, beside the tables, as one file.

Reading the file takes no LanceDB. It carries marks of the tables and of the folder as they were, and checksums of all that is
in it. One that is missing, of another time or damaged is as good as none.

F files, C different contents, W windows, D embedding size.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..errors import DiffATRError
from ..files import replacing
from .notes import ARRAYS, UNKNOWN, Notes
from .report import IndexReport
from .scan import fingerprint

if TYPE_CHECKING:
    from ..core.ragged import Ragged

_SOMETIMES = ("hashes", "sums")


@dataclass(frozen=True)
class Recordings:
    """What a search looks at, in memory. Files of equal content share it: the windows of content c are rows
    offsets[c]..offsets[c + 1].

    Attributes:
        paths: F paths below the folder, sorted.
        content: (F,) the number of each file's content. Contents are numbered as the first of their files come.
        offsets: (C + 1,) integers, ascending; every content has at least one window.
        spans: (W, 2) start and end of each window in its file, seconds.
        vectors: (W, D) float32 unit vectors; (0, D) where they stay in the tables, and `store` gives them.
        frames: gives the frames of some windows, by their rows, where they are kept: a sequence each. It may raise Damaged.
        hashes: (C,) of the contents, ASCII; (0,) where these are no files of an index.
        sums: (W,) uint32, `contents.vector_sums`, where the vectors stay in the tables; else (0,).
        store: gives vectors where they stay in the tables.
        among: how many contents there are in the whole of which these are a part; None where these are all.
        notes: what is known of the files beside their sound; None where nothing was noted.
        updated: when the index was changed last, by `time.time`; None where that is not known.
    """

    paths: list[str]
    content: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    vectors: np.ndarray
    frames: Callable[[np.ndarray], Ragged] | None = None
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, "S32"))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    store: VectorStore | None = None
    among: int | None = None
    notes: Notes | None = None
    updated: float | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def known(self) -> Notes:
        """`notes`; of recordings without any, their names alone."""
        return self.notes or Notes.of(self.paths, [UNKNOWN] * len(self))

    @classmethod
    def none(cls) -> Recordings:
        """Those of a folder without any."""
        return cls([], np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros((0, 2)), np.zeros((0, 1), np.float32))

    @property
    def candidates(self) -> int:
        """How many different contents are searched."""
        return len(self.offsets) - 1 if self.among is None else self.among

    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some windows, (n, D) float32. Raises Damaged."""
        return self.vectors[rows] if self.store is None else self.store.at(self, rows)

    def contents_at(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the contents that some windows are of, (n,)."""
        return np.searchsorted(self.offsets, rows, "right") - 1

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The numbers of the files by their paths."""
        return {path: number for number, path in enumerate(self.paths)}

    @cached_property
    def _by_content(self) -> tuple[np.ndarray, np.ndarray]:
        """The files in order of their contents, and where those of each content begin."""
        order = np.argsort(self.content, kind="stable")
        return order, np.searchsorted(self.content[order], np.arange(len(self.offsets)))

    def files_of(self, content: int) -> np.ndarray:
        """The numbers of the files with a content, ascending."""
        order, first = self._by_content
        return order[first[content] : first[content + 1]]

    def rows_of(self, file: int) -> slice:
        """The windows of a file."""
        content = self.content[file]
        return slice(int(self.offsets[content]), int(self.offsets[content + 1]))


class VectorStore(Protocol):
    """Where vectors stay that are not in memory (`nearest.StoredVectors`)."""

    def at(self, recordings: Recordings, rows: np.ndarray) -> np.ndarray:
        """As `Recordings.vectors_at`."""

    def near(
        self,
        recordings: Recordings,
        query: np.ndarray,
        depth: int,
        unwanted: np.ndarray | None = None,
        *,
        allowed: np.ndarray | None = None,
        besides: np.ndarray | None = None,
    ) -> Part:
        """The `depth` contents nearest to a query, of those that are `allowed`, (C,) bool, and the contents `besides`."""

    def some(self, recordings: Recordings, count: int) -> np.ndarray:
        """The vectors of `count` windows from all over the corpus, (n, D); fewer if there are no more."""


class Part(NamedTuple):
    """Some contents of many, with some of their windows: which `rows` these are in the whole, and which `files`."""

    recordings: Recordings
    rows: np.ndarray
    files: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read.

    Attributes:
        folder: mark of the folder as it was when it had just been indexed; None where something was left to be tried again.
        report: of an update that finds the folder like that.
        updated: as of `Recordings`.
    """

    folder: str | None
    report: IndexReport
    updated: float | None
    _arrays: dict[str, np.ndarray]

    @property
    def windows(self) -> int:
        """How many there are to search."""
        return len(self._arrays["spans"])

    def recordings(self) -> Recordings:
        """What a search reads, but for frames, and for vectors that stay in the tables."""
        arrays = self._arrays
        vectors = arrays["vectors"]
        return Recordings(
            unpacked_paths(arrays["paths"].tobytes()),
            arrays["content"],
            arrays["offsets"],
            arrays["spans"],
            vectors.astype(np.float32),
            hashes=arrays.get("hashes", np.zeros(0, "S32")),
            sums=arrays.get("sums", np.zeros(0, np.uint32)),
            notes=Notes.of_arrays(arrays) if arrays.keys() >= set(ARRAYS) else None,
            updated=self.updated,
        )

    def report_below(self, below: bytes) -> IndexReport:
        """`report`, of what lies below a folder of the corpus alone."""
        arrays = self._arrays
        return report_below(self.report, unpacked_paths(arrays["paths"].tobytes()), arrays["content"], arrays["offsets"], below)


def report_below(
    report: IndexReport, paths: Sequence[str], content: np.ndarray, offsets: np.ndarray, below: bytes
) -> IndexReport:
    """What a report says of a folder of the corpus, by its path and a separator at its end; the arrays are those of `Recordings`.

    The counts of what an update did are as they are: it did nothing elsewhere.
    """
    if not below:
        return report
    own = np.array([os.fsencode(path).startswith(below) for path in paths], bool)
    contents = np.unique(content[own])
    skipped, partial = ([each for each in some if is_below(each.path, below)] for some in (report.skipped, report.partial))
    files, windows = int(own.sum()), int((offsets[contents + 1] - offsets[contents]).sum())
    unchanged = max(0, files - report.embedded - report.reused)
    return replace(report, files=files, windows=windows, unchanged=unchanged, skipped=skipped, partial=partial)


def is_below(path: str, below: bytes) -> bool:
    """Whether a path lies below a folder that is given with a separator at its end, or is that folder."""
    return os.path.join(os.fsencode(path), b"").startswith(below)


def packed_paths(paths: Sequence[str]) -> bytes:
    """Paths one behind the other, as the system has them; `unpacked_paths` gives them back."""
    return b"\0".join(map(os.fsencode, paths))


def unpacked_paths(packed: bytes) -> list[str]:
    """The paths of `packed_paths`; none has no letter."""
    return os.fsdecode(packed).split("\0") if packed else []


def read_snapshot(path: Path, tables: str | None) -> Snapshot | None:
    """The snapshot at `path`, if it is whole and was made of the tables with the mark `tables`.

    All of it is checked: zlib does 1.5 GB a second, which is little beside what reading and a search take.
    """
    try:
        with zipfile.ZipFile(path) as file:
            facts = json.loads(_array(file, "facts").tobytes())
            if tables is None or facts["tables"] != tables:
                return None
            arrays = {name: _array(file, name) for name in facts["arrays"]}
            return Snapshot(facts["folder"], IndexReport.from_json(facts["report"]), facts["updated"], arrays)
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
    arrays: dict[str, Any] = {
        "paths": np.frombuffer(packed_paths(recordings.paths), np.uint8),
        "content": recordings.content,
        "offsets": recordings.offsets,
        "spans": recordings.spans,
        "vectors": recordings.vectors.astype(np.float16),  # as they are in the tables: exact
    }
    arrays |= {name: value for name in _SOMETIMES if len(value := getattr(recordings, name))}
    arrays |= recordings.notes.arrays() if recordings.notes else {}
    facts = {"folder": folder, "tables": tables, "report": asdict(report), "updated": recordings.updated, "arrays": list(arrays)}
    # Left by an update that was killed, or by a version of the package that wrote others.
    for kind in (".snapshot-*.tmp", ".files-*.tmp", ".windows-*.tmp", "snapshot-v1*", "snapshot-v2*"):
        for left in path.parent.glob(kind):
            left.unlink(missing_ok=True)
    with (
        contextlib.suppress(DiffATRError, OSError),
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)


def mark_of_tables(folder: Path, names: Sequence[str], beside: Sequence[Path] = ()) -> str | None:
    """A hash of the names, sizes and times of the files of tables, which any commit changes; None where a table is missing.

    `beside` are tables that are one file each.
    """
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
    for table_file in beside:
        try:
            stat = os.stat(table_file)
        except OSError:
            return None
        files[os.fsencode(table_file.name)] = stat.st_size, stat.st_mtime_ns
    return fingerprint(files)
