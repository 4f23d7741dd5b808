"""The windows of contents as a table gives them: a stream of batches in, whole contents out, so that no table need fit in memory.

W windows, D embedding size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Set
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class ContentWindows(NamedTuple):
    """The windows of one content in the order of time: `spans` (W, 2), seconds, and `vectors` (W, D), float16."""

    spans: np.ndarray
    vectors: np.ndarray


class Contents(NamedTuple):
    """The windows of contents.

    Attributes:
        rows_of: the rows of each content that is whole, in the order of time.
        spans: (W, 2) start and end, seconds.
        vectors: (W, D) float16; (0, D) where they were not asked for.
        sums: (W,) uint32, `vector_sums`; empty where they were not asked for.
        damaged: contents whose windows do not fit their checksum; they are not in `rows_of`.
    """

    rows_of: dict[str, slice]
    spans: np.ndarray
    vectors: np.ndarray
    sums: np.ndarray
    damaged: set[str]


def row_checksum(content: str, spans: np.ndarray, vectors: np.ndarray) -> int:
    """What each row of a content carries: of all its windows."""
    return zlib.crc32(vectors.tobytes(), zlib.crc32(spans.tobytes(), zlib.crc32(content.encode())))


def vector_sums(vectors: np.ndarray) -> np.ndarray:
    """The CRC-32 of each vector, (W, D) float16 -> (W,) uint32."""
    return np.fromiter((zlib.crc32(vector) for vector in np.ascontiguousarray(vectors)), np.uint32, len(vectors))


def vectors_of(batch: pa.RecordBatch | pa.Table) -> np.ndarray:
    """The column `vector`, (W, D) float16."""
    column = batch["vector"]
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), column.type.list_size)


def spans_of(batch: pa.RecordBatch | pa.Table) -> np.ndarray:
    """The columns `start` and `end`, (W, 2) float64."""
    return np.stack([batch["start"].to_numpy(), batch["end"].to_numpy()], 1)


def whole_contents(batches: Iterable[pa.RecordBatch], *, checked: bool) -> Iterator[tuple[str, ContentWindows | None]]:
    """Each content of a table, by hash, once all its windows have come; None for one whose windows fit no checksum.

    A content's rows lie together as a rule, and then two batches of it are held at most; where they do not, they wait. What
    comes of a content that was whole already is damage: it is given a second time, as None.

    Args:
        batches: without a missing value.
        checked: the rows carry checksums. Without, nothing tells when a content is whole: all wait for the end.
    """
    waiting: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for batch in batches:
        if not len(batch):
            continue
        names = batch["hash"].dictionary_encode()
        codes, hashes = names.indices.to_numpy(), names.dictionary.to_pylist()
        spans, vectors = spans_of(batch), vectors_of(batch)
        sums = batch["checksum"].to_numpy() if checked else np.zeros(len(batch), np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for first, end in pairwise(bounds):
            content = hashes[codes[first]]
            piece = spans[first:end], vectors[first:end], sums[first:end]
            if content in waiting:
                before = waiting.pop(content)
                piece = tuple(np.concatenate(pair) for pair in zip(before, piece, strict=True))  # type: ignore[assignment]
            windows = _in_time(piece[0], piece[1])
            if checked and (piece[2] == row_checksum(content, *windows)).all():
                yield content, windows
            else:
                waiting[content] = tuple(map(np.copy, piece))  # type: ignore[assignment]
    for content, (spans, vectors, _) in waiting.items():
        yield content, None if checked else _in_time(spans, vectors)


Found = Iterable[tuple[str, ContentWindows | None]]
"""What `whole_contents` gives."""


def gathered(found: Found, rows: int, dim: int, wanted: Set[str] | None, *, vectors: bool) -> Contents:
    """The windows of some contents in memory.

    Args:
        found: in `rows` windows altogether, of `dim` values each.
        wanted: hashes of the contents; None for all.
        vectors: keep the vectors; else their checksums.
    """
    spans, sums = np.empty((rows, 2)), np.empty(0 if vectors else rows, np.uint32)
    values = np.empty((rows if vectors else 0, dim), np.float16)
    rows_of, damaged, end = dict[str, slice](), set[str](), 0
    for content, windows in found:
        if windows is None:
            rows_of.pop(content, None)
            damaged.add(content)
        elif wanted is None or content in wanted:
            own = rows_of[content] = slice(end, end := end + len(windows.spans))
            spans[own] = windows.spans
            if vectors:
                values[own] = windows.vectors
            else:
                sums[own] = vector_sums(windows.vectors)
    return Contents(rows_of, spans[:end], values[:end], sums[:end], damaged)


def sorted_out(found: Found) -> tuple[set[str], set[str], set[int]]:
    """The hashes of the contents that are whole, those of the others, and the sizes of vectors that there are."""
    whole, damaged, dims = set[str](), set[str](), set[int]()
    for content, windows in found:
        (damaged if windows is None else whole).add(content)
        if windows is not None:
            dims.add(windows.vectors.shape[1])
    return whole - damaged, damaged, dims


def portions(found: Found, wanted: Set[str], rows: int) -> Iterator[dict[str, ContentWindows]]:
    """The contents `wanted`, by hash, some at a time, with about so many windows."""
    held, count = dict[str, ContentWindows](), 0
    for content, windows in found:
        if windows is not None and content in wanted:
            held[content] = ContentWindows(windows.spans.copy(), windows.vectors.copy())
            count += len(windows.spans)
        if count >= rows:
            yield held
            held, count = {}, 0
    yield held


def _in_time(spans: np.ndarray, vectors: np.ndarray) -> ContentWindows:
    starts = spans[:, 0]
    if (starts[1:] >= starts[:-1]).all():
        return ContentWindows(spans, vectors)
    order = np.argsort(starts, kind="stable")
    return ContentWindows(spans[order], vectors[order])
