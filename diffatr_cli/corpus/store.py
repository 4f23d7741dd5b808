"""The LanceDB tables of an index. `index` loads this module only where tables must be read or changed: LanceDB takes a second.

`files` says which file of one corpus holds which content (by hash) or why it cannot be used. `windows` holds the vectors of
contents, one table a model. Every call below that writes is one commit, atomic by itself.
Methods raise OSError, RuntimeError, ValueError or pyarrow.ArrowException, whatever LanceDB makes of a trouble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

FileRow = tuple[int, int, str, str]
"""size in bytes, time of change in ns, hash of the content, reason why it cannot be used (empty when it can)"""

_KEEP_VERSIONS = timedelta(minutes=10)  # so that a search which began before an update's tidying can end
_FILES = pa.schema(
    [
        ("path", pa.binary()),  # below the folder, as the system's bytes, since names need not be valid text
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("hash", pa.string()),
        ("reason", pa.string()),
    ]
)


class Tables:
    """The tables named `files` and `windows` in a folder."""

    def __init__(self, db: DBConnection, files: Table, windows: Table) -> None:
        self._db, self._files, self._windows = db, files, windows

    @classmethod
    def make(cls, folder: Path, files: str, windows: str, dim: int) -> Tables:
        """Open the tables, with vectors of `dim` values; make those that are missing."""
        db = lancedb.connect(folder)
        columns = [("hash", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("vector", pa.list_(pa.float16(), dim))]
        return cls(
            db,
            db.create_table(files, schema=_FILES, exist_ok=True),
            db.create_table(windows, schema=pa.schema(columns), exist_ok=True),
        )

    @classmethod
    def find(cls, folder: Path, files: str, windows: str) -> Tables | None:
        """Open the tables if both are there."""
        if not folder.is_dir() or not {files, windows} <= _names(db := lancedb.connect(folder)):
            return None
        return cls(db, db.open_table(files), db.open_table(windows))

    def files(self) -> dict[bytes, FileRow]:
        """The rows of `files` by path."""
        columns = self._files.to_arrow().to_pydict()
        values = zip(*(columns[name] for name in _FILES.names[1:]), strict=True)
        return dict(zip(columns["path"], values, strict=True))

    def contents(self) -> set[str]:
        """The hashes of the contents whose windows are there."""
        return set(_hashes(self._windows))

    def windows(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """The rows of each content's windows from its start to its end; their spans (W, 2), seconds; vectors (W, D) float16."""
        table = self._windows.to_arrow().combine_chunks()
        start = table["start"].to_numpy()
        contents = table["hash"].combine_chunks().dictionary_encode()
        codes = contents.indices.to_numpy()
        order = np.lexsort((start, codes))
        bounds = np.searchsorted(codes[order], np.arange(len(contents.dictionary) + 1))
        rows_of = {
            content: order[a:b] for content, a, b in zip(contents.dictionary.to_pylist(), bounds, bounds[1:], strict=False)
        }
        vectors = table["vector"].combine_chunks()
        spans = np.stack([start, table["end"].to_numpy()], 1)
        return rows_of, spans, vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size)

    def count_windows(self) -> int:
        """Windows of all contents."""
        return int(self._windows.count_rows())

    def add_windows(self, spans: Sequence[tuple[str, float, float]], vectors: np.ndarray) -> None:
        """Append windows: hash of the content, start and end in seconds, and (W, D) float16."""
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        self._windows.add(pa.table([*zip(*spans, strict=True), values], schema=self._windows.schema))

    def put_files(self, rows: Mapping[bytes, FileRow]) -> None:
        """Add or replace these rows of `files`."""
        merge = self._files.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(_files_table(rows))

    def keep_files(self, rows: Mapping[bytes, FileRow]) -> None:
        """Delete all other rows of `files`."""
        self._files.merge_insert("path").when_not_matched_by_source_delete().execute(_files_table(rows))

    def used_contents(self) -> set[str]:
        """The hashes that files of any corpus of this folder have."""
        tables = [self._db.open_table(name) for name in _names(self._db) if name.startswith("files-")]
        return {content for table in tables for content in _hashes(table)}

    def keep_contents(self, contents: set[str]) -> None:
        """Delete the windows of all other contents."""
        merge = self._windows.merge_insert("hash").when_not_matched_by_source_delete()
        merge.execute(pa.table([sorted(contents)], schema=pa.schema([("hash", pa.string())])))

    def tidy(self) -> None:
        """Join small pieces, and drop versions that nobody reads any more."""
        for table in (self._files, self._windows):
            table.optimize(cleanup_older_than=_KEEP_VERSIONS)


def _names(db: DBConnection) -> set[str]:
    names: set[str] = set()
    token = None
    while True:
        page: Any = db.list_tables(page_token=token)
        names.update(page.tables)
        token = page.page_token
        if not token:
            return names


def _files_table(rows: Mapping[bytes, FileRow]) -> pa.Table:
    return pa.table([list(rows), *([row[i] for row in rows.values()] for i in range(4))], schema=_FILES)


def _hashes(table: Table) -> list[str]:
    values: list[str] = table.search().select(["hash"]).to_arrow()["hash"].to_pylist()
    return values
