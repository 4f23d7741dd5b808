"""Stage one of a search where the vectors stay in the tables: the windows nearest to a query, fetched and scored exactly.

The approximate index (`vector_index`) chooses windows; their cosines are worked out from their vectors as they are stored, and of
each content the best window that was fetched counts. When that does not settle which contents are nearest, more is fetched, and
in the end the whole table is gone through once, without holding it.

C contents, W windows, D embedding size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .contents import vector_sums, vectors_of
from .report import Damaged
from .snapshot import Part, Recordings

if TYPE_CHECKING:
    import pyarrow as pa

    from .store import WindowTable

_FETCH = 512  # windows at least: PQ puts them in nearly the right order
_TIMES = 6  # windows fetched for each content that is asked for, at first
_MOST = 16_384  # windows fetched at a time at most
_ROUNDS = 12
_FEW = 4096  # windows of all that is allowed, which are fetched without the index
_AT_ONCE = 4096  # windows that are asked for by their places


class Windows(NamedTuple):
    """Windows of a corpus: their `rows` in it, and their `vectors` (n, D) float32."""

    rows: np.ndarray
    vectors: np.ndarray


class Fetching:
    """What vectors are asked for beside the nearest, of a place that gives them by their windows."""

    def __init__(self) -> None:
        self._some: np.ndarray | None = None

    def at(self, recordings: Recordings, rows: np.ndarray) -> np.ndarray:
        """As `Recordings.vectors_at`."""
        raise NotImplementedError

    def some(self, recordings: Recordings, count: int) -> np.ndarray:
        """As `VectorStore.some`; fetched once."""
        if self._some is None or len(self._some) < min(count, len(recordings.spans)):
            rows = np.unique(np.linspace(0, len(recordings.spans) - 1, count).astype(np.int64))
            self._some = self.at(recordings, rows)
        return self._some

    def whole(self, recordings: Recordings, contents: np.ndarray, dim: int) -> Windows:
        """All windows of some contents, with vectors of `dim` values."""
        ranges = (np.arange(*recordings.offsets[content : content + 2]) for content in contents)
        rows = np.concatenate([np.zeros(0, np.int64), *ranges])
        parts = [self.at(recordings, rows[first : first + _AT_ONCE]) for first in range(0, len(rows), _AT_ONCE)]
        return Windows(rows, np.concatenate(parts) if parts else np.zeros((0, dim), np.float32))


class StoredVectors(Fetching):
    """`Recordings.store` of an index.

    Args:
        table: of windows.
        snapshot: is removed where damage shows, so that the next update looks at everything.
        hashes: (C,) of the contents of the corpus, ASCII; the table may hold others.
    """

    def __init__(self, table: WindowTable, snapshot: Path, hashes: np.ndarray) -> None:
        super().__init__()
        self._table, self._snapshot = table, snapshot
        self._order = np.argsort(hashes)
        self._sorted = hashes[self._order]

    def at(self, recordings: Recordings, rows: np.ndarray) -> np.ndarray:
        """As `Recordings.vectors_at`."""
        contents = recordings.contents_at(rows)
        names = [each.decode("ascii") for each in recordings.hashes[contents].tolist()]
        table = self._table.windows_at(zip(names, recordings.spans[rows, 0].tolist(), strict=True))
        found = self._checked(recordings, table)
        place = {int(row): i for i, row in enumerate(found.rows)}
        if any(int(row) not in place for row in rows):
            raise self._damaged()
        return found.vectors[[place[int(row)] for row in rows]]

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
        """The `depth` contents nearest to a query, or more, each with its best window and perhaps others.

        Nearest by cosine - max(0, cosine to `unwanted`), whereas the index knows cosines alone: what it has not fetched can
        have no higher cosine than the lowest that it has, and so no higher score.

        Args:
            allowed: (C,) which contents are looked at; None for all. Where they are few, all of their windows are fetched.
            besides: numbers of contents that are to be among them wherever they lie, with all their windows.

        Raises:
            Damaged: what was fetched does not fit its checksum.
        """
        depth = min(depth, len(recordings.hashes) if allowed is None else int(allowed.sum()))
        windows: Windows | None = Windows(np.zeros(0, np.int64), np.zeros((0, len(query)), np.float32))
        if allowed is not None and np.diff(recordings.offsets)[allowed].sum() <= _FEW:
            windows = self.whole(recordings, np.flatnonzero(allowed), len(query))
        elif depth:
            windows = self._fetched(recordings, query, depth, unwanted, allowed)
        if windows is None:
            windows = self._scanned(recordings, query, depth, unwanted, allowed)
        if besides is not None and len(besides):
            there = np.unique(recordings.contents_at(windows.rows))
            more = self.whole(recordings, np.setdiff1d(besides, there), len(query))
            windows = Windows(*(np.concatenate(pair) for pair in zip(windows, more, strict=True)))
        return part_of(recordings, windows)

    def _fetched(
        self,
        recordings: Recordings,
        query: np.ndarray,
        depth: int,
        unwanted: np.ndarray | None,
        allowed: np.ndarray | None = None,
    ) -> Windows | None:
        """Windows with the best of the `depth` nearest contents among them; None where they do not settle which these are."""
        count, seen = max(_FETCH, _TIMES * depth), set[str]()
        rows, vectors = [np.zeros(0, np.int64)], [np.zeros((0, len(query)), np.float32)]
        for _ in range(_ROUNDS):
            table = self._table.nearest(query, count, seen)
            found = _only(recordings, self._checked(recordings, table), allowed)
            rows.append(found.rows)
            vectors.append(found.vectors)
            windows = Windows(np.concatenate(rows), np.concatenate(vectors))
            if len(table) < count:  # there are no more
                return windows
            contents = recordings.contents_at(windows.rows)
            if unwanted is None:
                if len(np.unique(contents)) >= depth:
                    return windows
                if count >= _MOST and allowed is not None:
                    return None
                if count >= _MOST:  # many windows of few contents, whose best windows are known: the next are those of others
                    seen.update(table["hash"].to_pylist())
                    continue
            else:
                best = np.full(len(recordings.hashes), -np.inf, np.float32)
                np.maximum.at(best, contents, _scores(windows.vectors, query, unwanted))
                lowest = float((vectors_of(table).astype(np.float32) @ query.astype(np.float32)).min())
                if np.sort(best)[-depth] >= lowest:
                    return windows
                if count >= _MOST:
                    return None
            rows, vectors = rows[:1], vectors[:1]
            count = min(4 * count, _MOST)
        return None

    def _scanned(
        self,
        recordings: Recordings,
        query: np.ndarray,
        depth: int,
        unwanted: np.ndarray | None,
        allowed: np.ndarray | None = None,
    ) -> Windows:
        """The best window of each of the `depth` nearest contents, found without the index."""
        best = np.full(len(recordings.hashes), -np.inf, np.float32)
        rows = np.zeros(len(recordings.hashes), np.int64)
        for batch in self._table.scan():
            found = _only(recordings, self._checked(recordings, batch), allowed)
            scores = _scores(found.vectors, query, unwanted)
            contents = recordings.contents_at(found.rows)
            order = np.lexsort((found.rows, -scores))  # the earlier of equal windows
            first = order[np.unique(contents[order], return_index=True)[1]]
            better = first[scores[first] > best[contents[first]]]
            best[contents[better]], rows[contents[better]] = scores[better], found.rows[better]
        nearest = np.argsort(-best, kind="stable")[:depth]
        chosen = rows[nearest[np.isfinite(best[nearest])]]
        return Windows(chosen, self.at(recordings, chosen))

    def _checked(self, recordings: Recordings, table: pa.Table | pa.RecordBatch) -> Windows:
        """The windows of the corpus among some rows. Raises Damaged."""
        contents, starts = self._contents(table), table["start"].to_numpy()
        own = np.flatnonzero(contents >= 0)
        contents, starts = contents[own], starts[own]
        rows = np.fromiter(_rows(recordings, contents, starts), np.int64, len(own))
        halves = vectors_of(table)[own]
        if (rows < 0).any() or (vector_sums(halves) != recordings.sums[rows]).any():
            raise self._damaged()
        return Windows(rows, halves.astype(np.float32))

    def _contents(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """The numbers of the contents of rows; -1 for one of another corpus, or one that came after this was read."""
        hashes = np.array([each.encode("ascii", "replace") for each in table["hash"].to_pylist()], self._sorted.dtype)
        places = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        return np.where(self._sorted[places] == hashes, self._order[places], -1)

    def _damaged(self) -> Damaged:
        with contextlib.suppress(OSError):
            self._snapshot.unlink(missing_ok=True)
        return self._table.damaged()


def part_of(recordings: Recordings, windows: Windows) -> Part:
    """Some windows as recordings of their own, in the order of the whole."""
    contents = recordings.contents_at(windows.rows)
    order = np.unique(windows.rows, return_index=True)[1]
    rows, contents = windows.rows[order], contents[order]
    numbers, firsts = np.unique(contents, return_index=True)
    files = np.sort(np.concatenate([np.zeros(0, np.int64), *(recordings.files_of(number) for number in numbers)]))
    frames = recordings.frames
    part = Recordings(
        [recordings.paths[file] for file in files],
        np.searchsorted(numbers, recordings.content[files]),
        np.append(firsts, len(rows)),
        recordings.spans[rows],
        windows.vectors[order],
        None if frames is None else lambda own: frames(rows[own]),
        recordings.hashes[numbers],
        among=len(recordings.hashes),
    )
    return Part(part, rows, files)


def _only(recordings: Recordings, windows: Windows, allowed: np.ndarray | None) -> Windows:
    """The windows of the contents that are allowed."""
    if allowed is None:
        return windows
    own = allowed[recordings.contents_at(windows.rows)]
    return Windows(windows.rows[own], windows.vectors[own])


def _rows(recordings: Recordings, contents: Iterable[int], starts: Iterable[float]) -> Iterator[int]:
    """The rows of windows by their contents and starts; -1 where there is none."""
    for content, start in zip(contents, starts, strict=True):
        first, end = recordings.offsets[content], recordings.offsets[content + 1]
        row = int(first + np.searchsorted(recordings.spans[first:end, 0], start))
        yield row if row < end and recordings.spans[row, 0] == start else -1


def _scores(vectors: np.ndarray, query: np.ndarray, unwanted: np.ndarray | None) -> np.ndarray:
    scores = vectors @ query.astype(np.float32)
    return scores if unwanted is None else scores - np.maximum(0, vectors @ unwanted.astype(np.float32))
