"""One table of an index, kept by LanceDB: opened late, read in batches, written in single commits, mended where it is damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from .place import Place
from .report import Damaged
from .salvage import salvage
from .troubles import changing, troubles

if TYPE_CHECKING:
    from lancedb.table import Table

BATCH = 8192
"""Rows that are read at a time."""
_KEEP_VERSIONS = timedelta(minutes=10)  # so that a search which began before an update's tidying can end


class StoredTable:
    """One table of LanceDB.

    Args:
        place: of the index.
        name: of the table.
        schema: what it holds.
        added: the last columns of `schema`, which tables of the last version lack.

    Attributes:
        unreadable: whether `mend` could read nothing of it.
    """

    def __init__(self, place: Place, name: str, schema: pa.Schema, added: int) -> None:
        self.unreadable = False
        self._place, self._name = place, name
        self._schema, self._forms = schema, (schema.names, schema.names[:-added])
        self._opened: Table | None = None

    @property
    def exists(self) -> bool:
        """Whether there is such a table; the remains of one that was being made are none."""
        return self._place.has(self._name)

    def damaged(self) -> Damaged:
        """The error where what it gave is not what was written."""
        return Damaged(self._place)

    @property
    def _table(self) -> Table:
        if self._opened is None:
            self._opened = self._place.connect().open_table(self._name)
        return self._opened

    def _fits(self) -> bool:
        with troubles(self._place):
            return next(self._place.misfits(self._name), None) is None

    def _source(self, *, careful: bool) -> tuple[pa.Table | None, bool]:
        """Where `_batches` is to read the rows, and whether they have checksums; those of the last version have none.

        Args:
            careful: the table is known to be damaged.

        Raises:
            Damaged: it cannot be read.
        """
        table = salvage(self._place, self._name) if careful else None
        if careful and table is None:
            raise Damaged(self._place)
        names = (self._table if table is None else table).schema.names
        if names not in self._forms:
            raise Damaged(self._place)
        return table, names == self._forms[0]

    def _batches(self, source: pa.Table | None, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, some at a time, of `source` or, without, of the table. Raises Damaged where a value is missing."""
        if source is None:
            query = self._table.search()
            batches = (query if columns is None else query.select(columns)).to_batches(BATCH)
        else:
            batches = source.to_batches(BATCH)
        for batch in batches:
            if any(column.null_count for column in batch.columns):
                raise Damaged(self._place)
            yield batch

    def _write_all(self, rows: Callable[[], pa.Table | pa.RecordBatchReader], *, anew: bool) -> None:
        """Make `rows()` the content of the table; `anew`: what is there now is of no use, not even to go on from."""
        if not anew:
            with contextlib.suppress(Damaged), changing(self._place):  # one commit, so that a kill loses nothing
                self._opened = self._place.make(self._name, rows())
                return
        with changing(self._place):
            kept = rows()
            if isinstance(kept, pa.RecordBatchReader):  # before what it reads is removed
                kept = kept.read_all()
            self._place.remove(self._name)
            self._opened = self._place.make(self._name, kept)

    def tidy(self) -> None:
        """Join small pieces, and drop versions that nobody reads any more."""
        with changing(self._place):
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def seal(self) -> None:
        """Record the checksums of its files, so that damage will show."""
        self._place.seal(self._name)
