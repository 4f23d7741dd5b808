"""The frames of an index in object storage: a table of LanceDB a model, of which a search reads a shortlist's rows alone.

A row is the frames of a window, with a checksum. One more row of each content says how many windows it has: it comes last, and a
content counts once it is there. Rows are written many at a time, since each commit takes several requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..core.ragged import Ragged
from .frames import frames_checksum
from .place import Place
from .report import Damaged
from .troubles import changing, troubles

if TYPE_CHECKING:
    from lancedb.table import Table

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("hash", pa.string()),
        ("number", pa.int64()),
        ("length", pa.int64()),
        ("checksum", pa.int64()),
        ("frames", pa.binary()),
    ]
)
_LAST = -1  # the number of the row whose length is how many windows there are
_PENDING = 32 << 20  # bytes that wait to be written
_BATCH = 256  # rows that are read at a time
_NAMES = 500  # in one condition
_INDEXED = 10_000  # rows from which on an index finds a key
_KEEP_VERSIONS = timedelta(minutes=10)  # so that a search which began before an update's tidying can end
_FAR = timedelta(days=1)


class StoredFrameTable:
    """`Frames` in a table."""

    def __init__(self, place: Place, name: str) -> None:
        self.unreadable = False
        self._place, self._name = place, name
        self._doubt = place.local / f"{name}.doubt"  # there once a row did not fit its checksum
        self._opened: Table | None = None
        self._pending, self._bytes = list[dict[str, Any]](), 0
        self._present, self._complete = set[str](), set[str]()  # as of `mend`, and what came since
        self._changed = False

    @property
    def _table(self) -> Table:
        if self._opened is None:
            self._opened = self._place.connect().open_table(self._name)
        return self._opened

    def contents(self) -> set[str]:
        """As `Frames`."""
        if not self._place.has(self._name):
            return set()
        with troubles(self._place):
            return set(self._table.search().where(f"number = {_LAST}").select(["hash"]).to_arrow()["hash"].to_pylist())

    def open(self) -> None:
        """As `Frames`."""
        with troubles(self._place):
            self._opened = self._place.connect().open_table(self._name)

    def read(self, windows: Sequence[tuple[str, int]]) -> Ragged:
        """As `Frames`."""
        found: dict[str, dict[str, Any]] = {}
        with troubles(self._place):
            for some in _portions([_key(*window) for window in windows]):
                found |= {row["key"]: row for row in self._rows(some).to_pylist()}
        pieces = []
        for window in windows:
            row = found.get(_key(*window))
            if row is None or not _fits(row):
                self._place.local.mkdir(parents=True, exist_ok=True)
                self._doubt.touch()
                raise Damaged(self._place)
            pieces.append(np.frombuffer(row["frames"], "<f2").reshape(row["length"], -1))
        return Ragged.of_halves(pieces)

    def mend(self, *, anew: bool = False) -> tuple[set[str], set[str]]:
        """As `Frames`. Checksums are looked at only where a search met one that did not fit, as frames are most of an index."""
        try:
            whole, damaged = self._mended(anew)
        except Damaged:
            self.unreadable = True
            self._make(_SCHEMA.empty_table())
            whole, damaged = set(), set()
        self._doubt.unlink(missing_ok=True)
        self._present, self._complete = set(whole), set(whole)
        return whole, damaged

    def _mended(self, anew: bool) -> tuple[set[str], set[str]]:
        if not self._place.has(self._name):
            self._make(_SCHEMA.empty_table())
            return set(), set()
        with troubles(self._place):
            present, whole, damaged = self._checked(thorough=anew or self._doubt.exists())
        if anew:
            with troubles(self._place):
                self._make(pa.RecordBatchReader.from_batches(_SCHEMA, self._only(whole)))
        else:
            self._delete(present - whole)
        return whole, damaged

    def _checked(self, *, thorough: bool) -> tuple[set[str], set[str], set[str]]:
        """All contents of which anything is there, those that are whole, and those that were and are not."""
        seen, windows, wrong = dict[str, int](), dict[str, int](), set[str]()
        columns = _SCHEMA.names if thorough else ["hash", "number", "length"]
        for batch in self._table.search().select(columns).to_batches(_BATCH if thorough else None):
            for row in batch.to_pylist():
                content, number = row["hash"], row["number"]
                if number == _LAST:
                    windows[content] = row["length"]
                elif number >= 0:
                    seen[content] = seen.get(content, 0) | 1 << number
                if thorough and not _fits(row):
                    wrong.add(content)
        whole = {content for content, count in windows.items() if not ~seen.get(content, 0) & ((1 << count) - 1)} - wrong
        return seen.keys() | windows.keys() | wrong, whole, (windows.keys() | wrong) - whole

    def _only(self, contents: Set[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._table.search().select(_SCHEMA.names).to_batches(_BATCH):
            yield batch.filter(pa.array([content in contents for content in batch["hash"].to_pylist()]))

    def _make(self, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Make the table of these rows, some of which may come from the one that is there."""
        with changing(self._place):
            if isinstance(rows, pa.Table):
                self._place.remove(self._name)
            self._opened = self._place.make(self._name, rows)

    def add(self, content: str, first: int, frames: Sequence[np.ndarray]) -> None:
        """As `Frames`."""
        for number, each in enumerate(frames, first):
            self._put(content, number, len(each), np.ascontiguousarray(each, "<f2").tobytes())
        self._present.add(content)
        if self._bytes > _PENDING:
            self._write()

    def complete(self, contents: Mapping[str, int]) -> None:
        """As `Frames`."""
        for content, windows in contents.items():
            self._put(content, _LAST, windows, b"")
        self._complete |= contents.keys()
        self._write()

    def keep(self, used: set[str]) -> None:
        """As `Frames`. Searches that began before go on in the version of the table that they opened."""
        self._pending, self._bytes = [], 0  # of recordings that failed
        self._delete(self._present - (used & self._complete))
        if self._changed:
            with changing(self._place):
                if not self._table.list_indices() and self._table.count_rows() >= _INDEXED:
                    from lancedb.index import BTree

                    self._table.create_index("key", config=BTree(), wait_timeout=_FAR)
                self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def _put(self, content: str, number: int, length: int, values: bytes) -> None:
        checksum = frames_checksum(content, number, length, values)
        row = (_key(content, number), content, number, length, checksum, values)
        self._pending.append(dict(zip(_SCHEMA.names, row, strict=True)))
        self._bytes += len(values)

    def _write(self) -> None:
        if self._pending:
            with changing(self._place):
                self._table.add(pa.Table.from_pylist(self._pending, schema=_SCHEMA))
            self._pending, self._bytes, self._changed = [], 0, True

    def _delete(self, contents: Set[str]) -> None:
        for some in _portions(sorted(contents)):
            with changing(self._place):
                self._table.delete(f"hash IN ({_quoted(some)})")
            self._changed = True

    def _rows(self, keys: Sequence[str]) -> pa.Table:
        """The rows of the table as it was opened, or, where those files were tidied away meanwhile, as it is now."""
        try:
            return _rows(self._table, keys)
        except Exception:
            self._opened = None
            return _rows(self._table, keys)


def _key(content: str, number: int) -> str:
    return f"{content}-{number}"


def _rows(table: Table, keys: Sequence[str]) -> pa.Table:
    """The rows of some windows. They are found first, and fetched then: no others' frames are read."""
    found = table.search().where(f"key IN ({_quoted(keys)})").select(["key"]).with_row_id(True).to_arrow()
    return table.take_row_ids(found["_rowid"].to_pylist()).select(_SCHEMA.names).to_arrow()


def _fits(row: Mapping[str, Any]) -> bool:
    values = (row["hash"], row["number"], row["length"], row["frames"])
    return (row["key"], row["checksum"]) == (_key(*values[:2]), frames_checksum(*values))


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[first : first + _NAMES] for first in range(0, len(names), _NAMES))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
