"""The LanceDB tables of an index. They are loaded only where they must be read or changed: LanceDB takes a second.

`files` says which file of one corpus holds which content (by hash) or why it cannot be used. `windows` holds the vectors of
contents, one table a model. Every call below that writes is one commit, atomic by itself.

Disks and memory flip bits, and LanceDB has no checksums. So each row of `files` carries one of itself, and each row of
`windows` one of all windows of its content: what does not fit is never used. `FileTable.mend` and `WindowTable.mend` throw it
out, so that an update makes it again; of a table that cannot be read at all they begin a new one.

W windows, D embedding size.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from . import vector_index
from .contents import Contents, ContentWindows, gathered, portions, row_checksum, sorted_out, whole_contents
from .place import Place
from .report import Damaged
from .scan import Stamp
from .table import BATCH, StoredTable
from .troubles import changing, troubles

if TYPE_CHECKING:
    from lancedb.table import Table

_NEVER = Stamp(0, 0, 0, 0)  # fits no file


class FileRow(NamedTuple):
    """What is remembered of a file.

    Attributes:
        stamp: what the system said of it when it was looked into.
        content: hash of its content.
        reason: why it cannot be used; empty when it can.
        missing: which part of the recording is missing; empty where none is.
        reader: the reader that gave the reason; another one may do better.
    """

    stamp: Stamp
    content: str
    reason: str
    missing: str
    reader: str


class FileTable(StoredTable):
    """The files of one corpus. Names of such tables begin with `files-`; the rest tells the corpora of one index apart."""

    def __init__(self, place: Place, name: str) -> None:
        columns = [
            ("path", pa.binary()),  # below the corpus, as the system's bytes, since names need not be valid text
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("hash", pa.string()),
            ("reason", pa.string()),
            ("ctime_ns", pa.int64()),
            ("inode", pa.uint64()),
            ("missing", pa.string()),
            ("reader", pa.string()),
            ("checksum", pa.int64()),
        ]
        super().__init__(place, name, pa.schema(columns), added=5)

    def rows(self) -> dict[bytes, FileRow]:
        """What is remembered of each file, by path. Raises Damaged where any row is."""
        if self._fits():
            rows, damaged, _ = self._rows()
            if not damaged:
                return rows
        raise Damaged(self._place)

    def mend(self, *, anew: bool = False) -> tuple[dict[bytes, FileRow], int]:
        """The rows that are whole, and how many others there were: the table is rid of these, or made where there is none.

        Args:
            anew: write all of the table anew, since changing it failed.
        """
        rows: dict[bytes, FileRow] = {}
        damaged, present = 0, False
        if self.exists:
            anew = anew or not self._fits()
            self._place.prune(self._name)
            try:
                rows, damaged, present = self._rows(careful=anew)
            except Damaged:
                self.unreadable = True
        if anew or damaged or not present:
            self._write_all(lambda: self._to_arrow(rows), anew=anew or self.unreadable or not self.exists)
        return rows, damaged

    def put(self, rows: Mapping[bytes, FileRow]) -> None:
        """Add or replace these rows."""
        with changing(self._place):
            merge = self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(self._to_arrow(rows))

    def keep(self, rows: Mapping[bytes, FileRow]) -> None:
        """Delete all other rows."""
        with changing(self._place):
            self._table.merge_insert("path").when_not_matched_by_source_delete().execute(self._to_arrow(rows))

    def write(self, rows: Mapping[bytes, FileRow]) -> None:
        """Make these rows all that the table holds, in one commit; without any there is no table."""
        if rows:
            self._write_all(lambda: self._to_arrow(rows), anew=not self.exists)
            self.tidy()
            self.seal()
        else:
            with changing(self._place):
                self._place.remove(self._name)

    def contents_of_others(self) -> set[str] | None:
        """The hashes that the files of the other corpora of this index have; None where that cannot be found out."""
        found: set[str] = set()
        for name in self._place.tables("files-"):
            other = FileTable(self._place, name)
            try:
                if name != self._name and other.exists:
                    found.update(row.content for row in other.rows().values())
            except Damaged:
                return None
        return found

    def _rows(self, *, careful: bool = False) -> tuple[dict[bytes, FileRow], int, bool]:
        """The rows that are whole; how many others there are; whether the table has its present form. Raises Damaged."""
        with troubles(self._place):
            source, checked = self._source(careful=careful)
            columns = pa.Table.from_batches(self._batches(source), (self._table if source is None else source).schema).to_pydict()
            if not checked:  # each file is to be looked into once
                rows = {
                    path: FileRow(_NEVER, each, "", "", "") for path, each in zip(columns["path"], columns["hash"], strict=True)
                }
                return rows, 0, False
            stamps = map(Stamp, *(columns[name] for name in ("size", "mtime_ns", "ctime_ns", "inode")))
            values = map(FileRow, stamps, *(columns[name] for name in ("hash", "reason", "missing", "reader")))
            triples = zip(columns["path"], values, columns["checksum"], strict=True)
            rows = {path: row for path, row, checksum in triples if _file_checksum(path, row) == checksum}
            return rows, len(columns["path"]) - len(rows), True

    def _to_arrow(self, rows: Mapping[bytes, FileRow]) -> pa.Table:
        columns: dict[str, list[object]] = {name: [] for name in self._schema.names}
        for path, row in rows.items():
            stamp = row.stamp
            values = (path, stamp.size, stamp.mtime_ns, row.content, row.reason, stamp.ctime_ns, stamp.inode)
            added = (row.missing, row.reader, _file_checksum(path, row))
            for column, value in zip(columns.values(), (*values, *added), strict=True):
                column.append(value)
        return pa.table(columns, schema=self._schema)


class WindowTable(StoredTable):
    """The windows of contents, embedded by one model with `dim` values each; to read them, `dim` is not needed."""

    def __init__(self, place: Place, name: str, dim: int = 0) -> None:
        columns = [
            ("hash", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("vector", pa.list_(pa.float16(), dim)),
            ("checksum", pa.int64()),
        ]
        super().__init__(place, name, pa.schema(columns), added=1)
        self._dim = dim

    def read(self, wanted: Set[str] | None = None, *, vectors: bool = True) -> Contents:
        """The windows of some contents, or of all.

        Args:
            wanted: hashes of the contents; None for all.
            vectors: keep them in memory; else their checksums.

        Raises:
            Damaged: nothing can be read, or not without danger.
        """
        if not self._fits():
            raise Damaged(self._place)
        with troubles(self._place):
            source, checked = self._source(careful=False)
            dim = self._table.schema.field("vector").type.list_size
            found = whole_contents(self._batches(source), checked=checked)
            return gathered(found, self._table.count_rows(), dim, wanted, vectors=vectors)

    def mend(self, *, anew: bool = False) -> tuple[set[str], set[str]]:
        """The contents that are whole, and those that were not: the table is rid of these, or made where there is none.

        Damage in the vector index alone costs the index.

        Args:
            anew: write all of the table anew, since changing it failed.
        """
        whole, damaged, present, source = set[str](), set[str](), False, None
        if self.exists:
            misfits = list(self._place.misfits(self._name))
            careful = anew = anew or any(not vector_index.holds(name) for name in misfits)
            try:
                if misfits and not careful:
                    with troubles(self._place):
                        vector_index.drop(self._table)
                        self._place.remove_below(self._name, vector_index.FOLDER)
                self._place.prune(self._name)
                with troubles(self._place):
                    source, present = self._source(careful=careful)
                    whole, damaged, dims = sorted_out(whole_contents(self._batches(source), checked=present))
                if dims - {self._dim}:
                    raise Damaged(self._place)
            except Damaged:
                self.unreadable, source, whole, damaged = True, None, set(), set()
        if anew or damaged or not present or self.unreadable:
            anew = anew or self.unreadable or not self.exists
            self._write_all(lambda: self._only(whole, source, present), anew=anew)
        return whole, damaged

    def _only(self, whole: set[str], source: pa.Table | None, checked: bool) -> pa.RecordBatchReader:
        """The rows of the contents `whole` in the table's present form, a batch at a time."""
        found = whole_contents(self._batches(source), checked=checked) if whole else ()
        batches = (batch for some in portions(found, whole, BATCH) for batch in self._to_arrow(some).to_batches())
        return pa.RecordBatchReader.from_batches(self._schema, batches)

    def train(self, tell: Callable[[str], None]) -> None:
        """See that there is a vector index which fits the table's size; `tell` is told a sentence before one is trained."""
        with changing(self._place):
            if vector_index.is_due(self._table):
                tell(
                    f"{self._place}: training an index over {self.count():,} windows, by which searches find the nearest "
                    "without reading all. This is done again only when there are twice as many."
                )
                vector_index.train(self._table)
                self.seal()

    def check_index(self) -> None:
        """Raises Damaged where the files by which a search finds its way are; vectors carry checksums of their own."""
        with troubles(self._place):
            if next(self._place.misfits(self._name, without="data"), None) is not None:
                raise Damaged(self._place)

    def counts(self) -> dict[str, int]:
        """How many windows each content has, by hash."""
        found = Counter[str]()
        with troubles(self._place):
            for batch in self._batches(None, ["hash"]):
                found.update({each["values"].as_py(): each["counts"].as_py() for each in batch["hash"].value_counts()})
        return found

    def nearest(self, query: np.ndarray, count: int, seen: Set[str] = frozenset()) -> pa.Table:
        """`vector_index.nearest` among the contents that are not `seen`."""
        return self._asked(lambda table: vector_index.nearest(table, query, count, seen))

    def windows_at(self, places: Iterable[tuple[str, float]]) -> pa.Table:
        """The rows of the windows of a content, by hash, with a start: `hash`, `start`, `end`, `vector`."""
        return self._asked(lambda table: vector_index.at(table, places))

    def scan(self) -> Iterator[pa.RecordBatch]:
        """All rows, some at a time."""
        with troubles(self._place):
            yield from self._batches(None)

    def _asked(self, question: Callable[[Table], pa.Table]) -> pa.Table:
        """The answer of the table as it was opened, or, where those files were tidied away meanwhile, as it is now."""
        with troubles(self._place):
            try:
                return question(self._table)
            except Exception:
                self._opened = None
                return question(self._table)

    def count(self) -> int:
        """Windows of all contents."""
        with troubles(self._place):
            return int(self._table.count_rows())

    def add(self, contents: Mapping[str, ContentWindows]) -> None:
        """Append contents, by hash, that are not there."""
        with changing(self._place):
            self._table.add(self._to_arrow(contents))

    def keep(self, contents: set[str]) -> None:
        """Delete the windows of all other contents."""
        with changing(self._place):
            merge = self._table.merge_insert("hash").when_not_matched_by_source_delete()
            merge.execute(pa.table([sorted(contents)], schema=pa.schema([("hash", pa.string())])))

    def _to_arrow(self, contents: Mapping[str, ContentWindows]) -> pa.Table:
        counts = [len(each.spans) for each in contents.values()]
        sums = [row_checksum(content, *each) for content, each in contents.items()]
        spans = np.concatenate([np.zeros((0, 2)), *(each.spans for each in contents.values())])
        vectors = np.concatenate([np.zeros((0, self._dim), np.float16), *(each.vectors for each in contents.values())])
        columns = [
            pa.array(np.repeat(list(contents), counts) if contents else [], pa.string()),
            pa.array(spans[:, 0]),
            pa.array(spans[:, 1]),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._dim),
            pa.array(np.repeat(np.array(sums, np.int64), counts)),
        ]
        return pa.table(columns, schema=self._schema)


def _file_checksum(path: bytes, row: FileRow) -> int:
    rest = "\0".join((*map(str, row.stamp), *row[1:]))
    return zlib.crc32(rest.encode(), zlib.crc32(path))
