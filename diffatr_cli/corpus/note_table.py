"""The table of an index that keeps what is known of files beside their sound: one row a file, by path.

All of it can be read again from the files, so that of a table which is damaged nothing but the whole rows are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from .notes import Note
from .place import Place
from .report import Damaged
from .scan import Stamp
from .table import StoredTable
from .troubles import changing, troubles

_COLUMNS = [
    ("path", pa.binary()),  # as in the table of files
    ("size", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("ctime_ns", pa.int64()),
    ("inode", pa.uint64()),
    ("channels", pa.int32()),
    ("rate", pa.int32()),
    ("day", pa.int32()),
    ("fields", pa.string()),
    ("checksum", pa.int64()),
]


class NoteRow(NamedTuple):
    """What is noted of a file, and what the system said of it then."""

    stamp: Stamp
    note: Note


class NoteTable(StoredTable):
    """The notes on the files of one corpus."""

    def __init__(self, place: Place, name: str) -> None:
        super().__init__(place, name, pa.schema(_COLUMNS), added=len(_COLUMNS))

    def rows(self) -> dict[bytes, NoteRow]:
        """What is noted of each file, by path; nothing where there is no table. Raises Damaged where any row is."""
        if not self.exists:
            return {}
        if self._fits():
            rows, damaged = self._rows(careful=False)
            if not damaged:
                return rows
        raise Damaged(self._place)

    def mend(self, *, anew: bool = False) -> dict[bytes, NoteRow]:
        """The rows that are whole: the table is rid of all others, or made where there is none.

        Args:
            anew: write all of the table anew, since changing it failed.
        """
        rows: dict[bytes, NoteRow] = {}
        damaged, present = 0, self.exists
        if present:
            anew = anew or not self._fits()
            self._place.prune(self._name)
            try:
                rows, damaged = self._rows(careful=anew)
            except Damaged:
                self.unreadable = True
        if anew or damaged or self.unreadable or not present:
            self._write_all(lambda: self._to_arrow(rows), anew=anew or self.unreadable or not present)
        return rows

    def put(self, rows: Mapping[bytes, NoteRow]) -> None:
        """Add or replace these rows."""
        with changing(self._place):
            merge = self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(self._to_arrow(rows))

    def keep(self, paths: set[bytes]) -> None:
        """Delete the rows of all other files."""
        with changing(self._place):
            merge = self._table.merge_insert("path").when_not_matched_by_source_delete()
            merge.execute(pa.table([sorted(paths)], schema=pa.schema([("path", pa.binary())])))

    def _rows(self, *, careful: bool) -> tuple[dict[bytes, NoteRow], int]:
        """The rows that are whole, and how many others there are. Raises Damaged."""
        with troubles(self._place):
            source, _ = self._source(careful=careful)
            batches = self._batches(source)
            columns = pa.Table.from_batches(batches, (self._table if source is None else source).schema).to_pydict()
            stamps = map(Stamp, *(columns[name] for name in ("size", "mtime_ns", "ctime_ns", "inode")))
            notes = map(Note, *(columns[name] for name in ("channels", "rate", "day", "fields")))
            triples = zip(columns["path"], map(NoteRow, stamps, notes), columns["checksum"], strict=True)
            rows = {path: row for path, row, checksum in triples if _checksum(path, row) == checksum}
            return rows, len(columns["path"]) - len(rows)

    def _to_arrow(self, rows: Mapping[bytes, NoteRow]) -> pa.Table:
        columns: dict[str, list[object]] = {name: [] for name in self._schema.names}
        for path, row in rows.items():
            for column, value in zip(columns.values(), (path, *row.stamp, *row.note, _checksum(path, row)), strict=True):
                column.append(value)
        return pa.table(columns, schema=self._schema)


def _checksum(path: bytes, row: NoteRow) -> int:
    rest = "\0".join(map(str, (*row.stamp, *row.note)))
    return zlib.crc32(rest.encode(), zlib.crc32(path))
